"""The whole MUN model against PyTorch with the same weights, in float64."""

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
from tests.support.reference.cases_mun import settled, start, steady
from tests.support.reference.convert import flatten, nest
from tests.support.reference.inputs import CASES, case_inputs, cases
from vireid_jax import optim
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.mun import method as mun

KEY = jax.random.key(0)
STEPS_PER_EPOCH = 5
# A program runs once here: the compiler's time counts, not the program's.
FAST = {"xla_backend_optimization_level": 0}
NOT_OF_THE_MODEL = ("step", "optimizer")


METHODS = {}  # by their options: cases that differ by their step alone are compiled once


def _method(name):
    case = CASES[name]
    options = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    facts = {"num_ids": case.shape["ids"], "num_instances": case.shape["instances"]}
    options |= {"image_size": case.shape["size"], **facts}
    if repr(options) not in METHODS:
        METHODS[repr(options)] = mun.build(**with_backbone(options))
    return METHODS[repr(options)]


def _variables(name, method):
    """Seeded weights and statistics, and the memory as a training starts with it."""

    def without_memory():
        return {k: v for k, v in method.init(KEY).items() if k != "memory"}

    memory = jax.eval_shape(method.init, KEY).get("memory", {})
    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in memory.items()}
    filled = weights(without_memory, name, "float64")
    return {**filled, "memory": zeros} if zeros else filled


def _batch(name, step):
    data = case_inputs(name)
    batch = {k: to_jax(data[k][step], "float64") for k in ("visible", "infrared", "label")}
    return {**batch, "camera": jnp.zeros((len(batch["label"]), 2), jnp.int32)}


def _embeddings(method, variables, batch):
    return {
        name: jax.jit(method.embed, static_argnums=2, compiler_options=FAST)(
            variables, batch[name], modality
        )
        for modality, name in enumerate(("visible", "infrared"))
    }


@functools.cache
def _step(method):
    """Value and gradient of a method's loss."""

    def objective(params, rest, batch, step):
        return method.loss({**rest, "params": params}, batch, KEY, step)

    return jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=FAST)


@functools.cache
def _model(name):
    """Terms, total, gradients, statistics, memory and embeddings of one step."""
    with precision("float64"):
        method, data = _method(name), case_inputs(name)
        variables = _variables(name, method)
        if "memory" in variables:
            variables["memory"] = {"prototype": to_jax(data["prototype"], "float64")}
        batch = _batch(name, 0)
        (total, aux), gradient = _step(method)(
            variables["params"], variables, batch, jnp.asarray(CASES[name].options["step"])
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
@pytest.mark.parametrize("name", first_fast(cases("mun")))
def test_model(name, source):
    store.compare(_model(name), reference(name, source), rtol=1e-10)


@functools.cache
def _trajectory(name):
    """Losses of every step, final weights, memory and embeddings of a short training."""
    options = dict(CASES[name].options["optimizer"])
    tx, learning_rate = optim.make(
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=2,
        name="adam",
        decay="decoupled",
        no_decay=(r".*(scale|bias)$",),
        multipliers=(("backbone/", options.pop("backbone")),),
        milestones=[m / STEPS_PER_EPOCH for m in options.pop("milestones", ())],
        **options,
    )
    with precision("float64"):
        method = _method(name)
        variables = _variables(name, method)
        variables["params"] = nest(start(flatten(variables["params"])))
        state = tx.init(variables["params"])

        @functools.partial(jax.jit, compiler_options=FAST)
        def update(variables, state, batch, step):
            def objective(params):
                return method.loss({**variables, "params": params}, batch, KEY, step)

            (total, aux), gradient = jax.value_and_grad(objective, has_aux=True)(
                variables["params"]
            )
            updates, state = tx.update(gradient, state, variables["params"])
            params = optim.apply(variables["params"], updates, learning_rate(step))
            if method.project is not None:
                params = method.project(params)
            variables = {**variables, **aux.updates, "params": params}
            return variables, state, {**aux.terms, "total": total}

        history = []
        for t in range(CASES[name].shape["steps"]):
            variables, state, values = update(variables, state, _batch(name, t), jnp.asarray(t))
            history.append(values)
        stacked = {k: np.stack([h[k] for h in history]) for k in history[0]}
        embeddings = _embeddings(method, variables, _batch(name, 0))
        return steady(to_numpy({"history": stacked, **variables, "embed": embeddings}))


@pytest.mark.slow
@sources
@pytest.mark.parametrize("name", cases("mun_trajectory"))
def test_training_trajectory(name, source):
    """AdamW at two rates, decay of some weights, the memory, the projection, a milestone."""
    store.compare(_trajectory(name), reference(name, source), rtol=1e-8)


def test_a_trajectory_projects():
    """Some layer scale is held at its bound, so that the comparison above covers it."""
    golden = store.load("mun_trajectory")
    scales = [v for k, v in golden.items() if k.endswith("layer_scale")]
    assert len(scales) == 3 and any((v == 1).any() for v in scales)
    assert all((v > 0).all() and (v <= 1).all() for v in scales)
