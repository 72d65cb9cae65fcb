"""The whole SMCL model against PyTorch with the same weights, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import (
    first_fast,
    precision,
    reference,
    sources,
    to_jax,
    to_numpy,
    weights,
)
from tests.support.reference import store
from tests.support.reference.cases_mun import settled, start
from tests.support.reference.convert import flatten, nest
from tests.support.reference.inputs import CASES, case_inputs, cases
from vireid_jax import optim
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.smcl import method as smcl

KEY = jax.random.key(0)
STEPS_PER_EPOCH = 5
SWITCH = 5
NOT_OF_THE_MODEL = ("optimizer", "switch")


def _method(name, switch):
    case = CASES[name]
    options = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    return smcl.build(
        image_size=case.shape["size"],
        steps_per_epoch=STEPS_PER_EPOCH,
        metric_from_epoch=switch / STEPS_PER_EPOCH,
        **with_backbone(options),
    )


def _batch(name, step, dtype="float64"):
    batch = {k: to_jax(v[step], dtype) for k, v in case_inputs(name).items()}
    rows = len(batch["label"])
    return {**batch, "camera": jnp.zeros((rows, 2), jnp.int32)}


def _embeddings(method, variables, batch):
    return {
        name: jax.jit(method.embed, static_argnums=2)(variables, batch[name], modality)
        for modality, name in enumerate(("visible", "infrared"))
    }


@functools.cache
def _model(name):
    """Terms, total, gradients and statistics at the step at which the metric terms come in."""
    with precision("float64"):
        method = _method(name, switch=SWITCH)
        variables = weights(lambda: method.init(KEY), name, "float64")
        batch = _batch(name, 0)

        def objective(params, rest, batch, step):
            return method.loss({**rest, "params": params}, batch, KEY, step)

        (total, aux), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(
            variables["params"], variables, batch, jnp.asarray(SWITCH)
        )
        return to_numpy(
            {
                "total": total,
                "terms": aux.terms,
                **settled(to_numpy({"grad": {"params": gradient}})),
                **aux.updates,
                "embed": _embeddings(method, variables, batch),
            }
        )


@sources
@pytest.mark.parametrize("name", first_fast(cases("smcl")))
def test_model(name, source):
    store.compare(_model(name), reference(name, source), rtol=1e-10)


def test_every_parameter_gets_a_gradient():
    """Of the stored ones, which ours equal; the digest of an array of zeros is zero."""
    for name in cases("smcl"):
        gradients = {k: v for k, v in store.load(name).items() if "grad/" in k}
        assert any("backbone" in k for k in gradients), name
        assert not [k for k, v in gradients.items() if not v.any()], name


@functools.cache
def _trajectory(name):
    """Losses of every step, final weights and embeddings of a short training."""
    options = dict(CASES[name].options["optimizer"])
    milestones = [m / STEPS_PER_EPOCH for m in options.pop("milestones", ())]
    tx, learning_rate = optim.make(
        steps_per_epoch=STEPS_PER_EPOCH, epochs=2, milestones=milestones, **options
    )
    with precision("float64"):
        method = _method(name, switch=CASES[name].options["switch"])
        variables = weights(lambda: method.init(KEY), name, "float64")
        variables["params"] = nest(start(flatten(variables["params"])))
        state = tx.init(variables["params"])

        @jax.jit
        def update(variables, state, batch, step):
            def objective(params):
                return method.loss({**variables, "params": params}, batch, KEY, step)

            (total, aux), gradient = jax.value_and_grad(objective, has_aux=True)(
                variables["params"]
            )
            updates, state = tx.update(gradient, state, variables["params"])
            params = optim.apply(variables["params"], updates, learning_rate(step))
            values = {**aux.terms, "total": total}
            return {**variables, **aux.updates, "params": params}, state, values

        history = []
        for t in range(CASES[name].shape["steps"]):
            step, batch = jnp.asarray(t), _batch(name, t)
            variables, state, values = update(variables, state, batch, step)
            history.append(values)
        stacked = {k: np.stack([h[k] for h in history]) for k in history[0]}
        embeddings = _embeddings(method, variables, _batch(name, 0))
        return to_numpy({"history": stacked, **variables, "embed": embeddings})


@pytest.mark.slow
@sources
@pytest.mark.parametrize("name", cases("trajectory"))
def test_training_trajectory(name, source):
    """Adam with coupled decay; ADSL and a milestone come in on the way."""
    store.compare(_trajectory(name), reference(name, source), rtol=1e-8)
