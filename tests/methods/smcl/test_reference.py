"""The whole SMCL model against PyTorch with the same weights, in float64; and incremental training.

The other tests here run the program of the first comparison.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import whole
from tests.support.parity import precision, relative_error
from tests.support.reference import store
from tests.support.reference.convert import flatten
from tests.support.reference.inputs import CASES, cases

SWITCH, CLASSES, P, K = 5, 6, 4, 2

# Adam with coupled decay; ADSL and a milestone come in on the way.
test_model, test_training_trajectory = whole.tests("smcl", fast=("smcl",))


def test_every_parameter_gets_a_gradient():
    for name in cases("smcl"):
        assert any("grad/params/backbone" in k for k in store.load(name)), name
        assert not whole.without_gradient(name), name


@functools.cache
def started():
    variables = whole.method_of("smcl").init(whole.KEY)
    return jax.tree.map(lambda x: jnp.asarray(x, "float64"), variables)


def run(step=SWITCH, order=slice(None)):
    """(total, aux, gradient as {path: array}) of a fresh model, with slots in some order."""
    with precision("float64"):
        batch = {k: v[order] for k, v in whole.batch_of("smcl", 0).items()}
        step_of, variables = whole.step_of(whole.method_of("smcl")), started()
        args = variables["params"], variables, batch, jnp.asarray(step)
        (total, aux), gradient = step_of(*args)
        return float(total), aux, {k: np.asarray(v) for k, v in flatten(gradient).items()}


def test_first_losses_are_those_of_a_fresh_classifier():
    assert CASES["smcl"].options["switch"] == SWITCH
    terms = run()[1].terms
    assert float(terms["id_visible"]) == pytest.approx(math.log(CLASSES), abs=0.02)
    assert float(terms["id_syncretic"]) == pytest.approx(math.log(CLASSES), abs=0.02)
    harder = math.log(1 + (CLASSES - 1) * math.e**4)  # than that of visible images, by the margin
    assert float(terms["id_infrared"]) == pytest.approx(harder, abs=0.02)


def test_total_is_the_identity_terms_until_the_metric_terms_come_in():
    for step, metric in ((0, 0), (SWITCH - 1, 0), (SWITCH, 0.5), (10**6, 0.5)):
        total, aux, _ = run(step)
        t = {k: float(v) for k, v in aux.terms.items()}
        identity = t["id_visible"] + t["id_infrared"] + t["id_syncretic"]
        adsl = t["tri_center"] + t["global_center"]
        assert total == pytest.approx(identity + metric * adsl, rel=1e-5)
        assert len(t) == 5 and adsl > 0.1  # the terms are reported before they count
        names = {f"accuracy_{m}" for m in ("visible", "infrared", "syncretic")}
        assert set(aux.metrics) == names | {"auxiliary_std"}


def test_metric_terms_train_the_generator_and_the_trunk_but_not_neck_and_classifier():
    before, after = run(SWITCH - 1)[2], run(SWITCH)[2]
    changed = {k.split("/")[0] for k in after if relative_error(before[k], after[k]) > 1e-3}
    assert changed == {"auxiliary", "backbone"}


def test_identities_may_be_permuted_jointly():
    total, aux, gradient = run()
    order = np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel()
    moved, moved_aux, moved_gradient = run(order=order)
    assert moved == pytest.approx(total, rel=1e-9)
    for k, v in aux.terms.items():
        assert float(moved_aux.terms[k]) == pytest.approx(float(v), rel=1e-9)
    for k, v in gradient.items():
        assert relative_error(moved_gradient[k], v) < 1e-6, k
