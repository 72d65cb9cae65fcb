"""Whole models of AGW, DEEN and PDM by the name of a reference case, in float64.

One step and a short training, with the weights of the PyTorch references.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import agw as agw_recipe
from configs import common
from configs import deen as deen_recipe
from configs import pdm as pdm_recipe
from tests.support.parity import precision, to_jax, to_numpy, weights
from tests.support.reference import store
from tests.support.reference.cases_mun import settled
from tests.support.reference.cases_pdm_model import calm
from tests.support.reference.convert import flatten, nest
from tests.support.reference.inputs import CASES, case_inputs
from vireid_jax import optim
from vireid_jax.methods import get_build
from vireid_jax.methods.common import with_backbone

KEY = jax.random.key(0)
# A program runs once here: the compiler's time counts, not the program's.
FAST = {"xla_backend_optimization_level": 0}
NOT_OF_THE_MODEL = ("optimizer", "preset")
MODALITIES = ("visible", "infrared")


def method_of(name):
    """The method of a case; cases that differ in weights and steps alone share it."""
    case = CASES[name]
    given = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    size = case.shape["size"], case.shape["ids"]
    return _built(case.options.get("preset", "agw"), tuple(given.items()), *size)


@functools.cache
def _built(preset, given, size, ids):
    recipe = {
        "agw": lambda: agw_recipe.get_config("sysu"),
        "deen": lambda: deen_recipe.get_config("sysu"),
    }.get(preset, lambda: pdm_recipe.get_config(f"sysu,{preset}"))()
    options = recipe.method.to_dict() | dict(given)
    if "dropout" in options:
        options["dropout"] = 0.0  # masks are drawn differently in PyTorch
    return get_build(options.pop("name"))(**with_backbone(options), image_size=size, num_ids=ids)


def _weights(method, name):
    drawn = weights(lambda: method.init(KEY), name, "float64")
    return nest(calm(flatten(drawn)))


def batch_of(name, step):
    data = case_inputs(name)
    batch = {k: to_jax(v[step], "float64") for k, v in data.items()}
    return {**batch, "camera": jnp.zeros((len(batch["label"]), 2), jnp.int32)}


@functools.cache
def _embed(method):
    # The modality as an array would do for methods without stems of their own only.
    return jax.jit(method.embed, static_argnums=2, compiler_options=FAST)


def _embeddings(method, variables, batch):
    found = {name: _embed(method)(variables, batch[name], m) for m, name in enumerate(MODALITIES)}
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

    def objective(params, rest, batch):
        return method.loss({**rest, "params": params}, batch, KEY, 0)

    return jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=FAST)


@functools.cache
def model(name):
    """Terms, total, gradients, statistics, embeddings and similarities of one step."""
    with precision("float64"):
        method = method_of(name)
        variables = _weights(method, name)
        batch = batch_of(name, 0)
        (total, aux), gradient = step_of(method)(variables["params"], variables, batch)
        return to_numpy(
            {
                "total": total,
                "terms": aux.terms,
                **settled(to_numpy({"grad": {"params": gradient}})),
                **aux.updates,
                **_embeddings(method, variables, batch),
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


@functools.cache
def trajectory(name):
    """Losses of every step, final weights and statistics of a short training."""
    recipe = common.base("agw", "sysu")
    common.agw_optimizer(recipe, milestones=(2.0,))
    options = recipe.optim.to_dict() | CASES[name].options["optimizer"]
    options |= dict(warmup_epochs=2.0, warmup_factor=0.125, gamma=0.125)
    tx, learning_rate = optim.make(steps_per_epoch=2, epochs=3, **options)
    with precision("float64"):
        method = method_of(name)
        variables = _weights(method, name)
        state = tx.init(variables["params"])

        @functools.partial(jax.jit, compiler_options=FAST)
        def update(params, gradient, state, step):
            updates, state = tx.update(gradient, state, params)
            return optim.apply(params, updates, learning_rate(step)), state

        history = []
        for t in range(CASES[name].shape["steps"]):
            (total, aux), gradient = step_of(method)(
                variables["params"], variables, batch_of(name, t)
            )
            params, state = update(variables["params"], gradient, state, jnp.asarray(t))
            variables = {**aux.updates, "params": params}
            history.append({**aux.terms, "total": total})
        stacked = {k: np.stack([h[k] for h in history]) for k in history[0]}
        return to_numpy({"history": stacked, **variables})
