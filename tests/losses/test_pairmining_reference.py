"""The losses of DEEN, PDM and CAJ against the formulas and the released code's, in PyTorch.

The released code's run on rows in that code's order, so that agreement is also that of our axes
with its chunks.
"""

import functools
from functools import partial

import jax
import numpy as np
import pytest

from tests.parity import loss_outputs, reference, sources
from tests.reference import store
from tests.reference.inputs import CASES, cases
from vireid_jax.losses import pairmining
from vireid_jax.losses.triplet import squared_difference


def _heterogeneity(logits, **options):
    return pairmining.heterogeneity(jax.nn.sigmoid(logits), logits, **options)


def _released_cpm(features):
    """As the method does: centers of both modalities, own and generated."""
    centers = pairmining.by_identity(features, 4).mean(1)  # [P, 2, R, D]
    return pairmining.center_pair_mining(centers[:, :, 0], centers[:, :, 1])


def _released_dcs(features, labels):
    rows = pairmining.by_identity(features, 4)
    return pairmining.dual_center_separation(rows.reshape(4, -1, rows.shape[-1]))


FUNCTIONS = {
    "cpm": (pairmining.center_pair_mining, "original generated"),
    "ort": (pairmining.orthogonality, "features"),
    "dcs": (pairmining.dual_center_separation, "features"),
    "ch": (_heterogeneity, "logits"),
    "caj": (squared_difference, "features labels"),
    "caj_far": (squared_difference, "features labels"),
    "cpm_released": (_released_cpm, "features"),
    "dcs_released": (_released_dcs, "features labels"),
    "ort_released": (lambda features: pairmining.orthogonality(features[:, 1:]), "features"),
}


@functools.cache
def _ours(name, dtype):
    """Once for both sources."""
    function, arguments = FUNCTIONS[CASES[name].kind]
    return loss_outputs(name, partial(function, **CASES[name].options), arguments, dtype)


@sources
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("name", cases(*FUNCTIONS))
def test_value_and_gradient(name, dtype, rtol, source):
    actual = _ours(name, dtype)
    assert {str(x.dtype) for x in actual.values()} == {dtype}
    store.compare(actual, reference(name, source), rtol=rtol)


@pytest.mark.parametrize("name", cases(*FUNCTIONS))
def test_the_cases_test_something(name):
    """A hinge that no row is in would agree with anything that is 0."""
    stored = store.load(name)
    assert all(np.abs(x).max() > 1e-3 for x in stored.values())
