"""Whole models by the name of a reference case: a step and a short training, in float64.

With the weights of the PyTorch references; options are as in the recipes.
"""

import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests.support.parity import precision, reference, sources, to_jax, to_numpy, weights
from tests.support.reference import store
from tests.support.reference.cases_models import calm, settled, start, steady
from tests.support.reference.convert import flatten, nest
from tests.support.reference.inputs import CASES, case_inputs, cases
from vireid_jax import optim
from vireid_jax.methods import get_build
from vireid_jax.methods.common import with_backbone

KEY = jax.random.key(0)
STEPS_PER_EPOCH = 5
# A program runs once here: the compiler's time counts, not the program's.
FAST = {"xla_backend_optimization_level": 0}
NOT_OF_THE_MODEL = ("optimizer", "preset", "step", "switch")
MODALITIES = ("visible", "infrared")


def tests(*kinds, fast, faint=()):
    """The two tests of a method: every case of `kinds`, of which `fast` are in the fast tier.

    `faint` is as of `store.compare`.
    """
    slow = [
        pytest.param(name, marks=pytest.mark.slow) for name in cases(*kinds) if name not in fast
    ]

    @sources
    @pytest.mark.parametrize("name", [*fast, *slow])
    def test_model(name, source):
        store.compare(model(name), reference(name, source), rtol=1e-10, faint=faint)

    @sources
    @pytest.mark.slow
    def test_training_trajectory(source):
        for name in cases(*(f"{kind}_trajectory" for kind in kinds)):
            # Some stored files have features after the training, too; test_model compares features.
            expected = reference(name, source)
            expected = {k: v for k, v in expected.items() if "embed/" not in k}
            store.compare(trajectory(name), expected, rtol=1e-8, row=name)

    return test_model, test_training_trajectory


# --- One step --------------------------------------------------------------------------------


def method_of(name):
    """The method of a case; cases that differ in weights and steps alone share it."""
    case = CASES[name]
    given = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    if "optimizer" not in case.options:
        given = {"kernels": "xla", **given}  # smaller programs; trainings have the others
    given |= {"image_size": case.shape["size"], "num_ids": case.shape["ids"]}
    given |= {"num_instances": case.shape["instances"], "steps_per_epoch": STEPS_PER_EPOCH}
    given |= {"metric_from_epoch": case.options.get("switch", 0) / STEPS_PER_EPOCH}
    kind, preset = case.kind.removesuffix("_trajectory"), case.options.get("preset", "")
    if kind == "multi_feature":
        kind, preset = ("deen", "") if preset == "deen" else ("pdm", preset)
    return _built(kind, preset, tuple(given.items()))


@functools.cache
def _built(name, preset, given):
    build, options = get_build(name), dict(given)
    if name not in ("smcl", "mun"):  # whose cases are changes of the defaults of `build`
        config = importlib.import_module(f"configs.{name}").get_config(f"sysu,{preset}".strip(","))
        options = config.method.to_dict() | options
    for dropout in {"dropout", "modality_dropout"} & options.keys():
        options[dropout] = 0.0  # masks are drawn differently in PyTorch
    known = inspect.signature(build).parameters
    return build(**{k: v for k, v in with_backbone(options).items() if k in known})


def variables_of(method, name):
    """Seeded weights and statistics; and the memory of a training's start, or the case's."""
    memory = jax.eval_shape(method.init, KEY).get("memory", {})
    stored = case_inputs(name) if CASES[name].kind == "mun" else {}
    memory = {k: to_jax(stored.get(k, np.zeros(v.shape)), "float64") for k, v in memory.items()}

    def without_memory():
        return {k: v for k, v in method.init(KEY).items() if k != "memory"}

    drawn = nest(calm(flatten(weights(without_memory, name, "float64"))))
    return drawn | ({"memory": memory} if memory else {})


def batch_of(name, step):
    views = {k: v for k, v in case_inputs(name).items() if k != "prototype"}
    batch = {k: to_jax(v[step], "float64") for k, v in views.items()}
    return {**batch, "camera": jnp.zeros((len(batch["label"]), 2), jnp.int32)}


def embeddings(method, variables, batch):
    embed = jax.jit(method.embed, static_argnums=2, compiler_options=FAST)
    found = {name: embed(variables, batch[name], m) for m, name in enumerate(MODALITIES)}
    if not method.fusions:
        return {"embed": found}
    query, gallery = found["infrared"], found["visible"]
    fused = {
        row: sum(w * np.asarray(query[k]) @ np.asarray(gallery[k]).T for k, w in parts.items())
        for row, parts in method.fusions.items()
    }
    return {"embed": found, "similarity": fused}


@functools.cache
def step_of(method):
    """Value and gradient of a method's loss."""

    def objective(params, rest, batch, step):
        return method.loss({**rest, "params": params}, batch, KEY, step)

    return jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=FAST)


@functools.cache
def model(name):
    """Terms, total, gradients, statistics, embeddings and similarities of one step."""
    with precision("float64"):
        method = method_of(name)
        variables, batch = variables_of(method, name), batch_of(name, 0)
        step = jnp.asarray(CASES[name].options.get("step", 0))
        (total, aux), gradient = step_of(method)(variables["params"], variables, batch, step)
        return to_numpy(
            {
                "total": total,
                "terms": aux.terms,
                **settled(to_numpy({"grad": {"params": gradient}})),
                **aux.updates,
                **embeddings(method, variables, batch),
            }
        )


def without_gradient(name):
    """Parameters of a stored case that have none; the digest of an array of zeros is zero."""
    gradients = {k: v for k, v in store.load(name).items() if "grad/" in k}
    return {k.split("grad/params/")[1] for k, v in gradients.items() if not v.any()}


def idle_terms(name):
    """Terms of a stored case that are next to nothing."""
    terms = {k: v for k, v in store.load(name).items() if k.startswith("terms/")}
    return {k.removeprefix("terms/") for k, v in terms.items() if not abs(v) > 1e-4}


# --- A short training ------------------------------------------------------------------------


def _optimizer(kind, options):
    """`optim.make` for what the reference of a kind of case trains with."""
    if kind in ("agw", "multi_feature"):
        recipe = common.base("agw", "sysu")
        common.agw_optimizer(recipe, milestones=(2.0,))
        options = recipe.optim.to_dict() | options
        options |= dict(warmup_epochs=2.0, warmup_factor=0.125, gamma=0.125)
        return optim.make(steps_per_epoch=2, epochs=3, **options)
    if kind == "mun":
        no_decay, backbone = (r".*(scale|bias)$",), options.pop("backbone")
        options |= dict(no_decay=no_decay, multipliers=(("backbone/", backbone),))
    decay = "decoupled" if kind == "mun" else "coupled"
    milestones = [m / STEPS_PER_EPOCH for m in options.pop("milestones", ())]
    options |= dict(name="adam", decay=decay, milestones=milestones)
    return optim.make(steps_per_epoch=STEPS_PER_EPOCH, epochs=2, **options)


@functools.cache
def trajectory(name):
    """Losses of every step, final weights, statistics and memory of a short training."""
    case = CASES[name]
    kind = case.kind.removesuffix("_trajectory")
    tx, learning_rate = _optimizer(kind, dict(case.options["optimizer"]))
    with precision("float64"):
        method = method_of(name)
        variables = variables_of(method, name)
        variables["params"] = nest(start(flatten(variables["params"])))
        state = tx.init(variables["params"])

        @functools.partial(jax.jit, compiler_options=FAST)
        def update(params, gradient, state, step):
            updates, state = tx.update(gradient, state, params)
            params = optim.apply(params, updates, learning_rate(step))
            return params if method.project is None else method.project(params), state

        history = []
        for t in range(case.shape["steps"]):
            step, params = jnp.asarray(t), variables["params"]
            (total, aux), gradient = step_of(method)(params, variables, batch_of(name, t), step)
            params, state = update(params, gradient, state, step)
            variables = {**variables, **aux.updates, "params": params}
            history.append({**aux.terms, "total": total})
        stacked = {k: np.stack([h[k] for h in history]) for k in history[0]}
        return steady(to_numpy({"history": stacked, **variables}))
