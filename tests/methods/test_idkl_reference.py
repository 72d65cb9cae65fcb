"""The whole IDKL model against PyTorch with the same weights, in float64.

The reference sees every batch in the released code's order; its preset "official" has the losses
as that code has them. Ours are the presets as configs/idkl.py gives them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import idkl as recipe
from tests.support.parity import precision, reference, sources, to_jax, to_numpy, weights
from tests.support.reference import store
from tests.support.reference.cases_mun import settled
from tests.support.reference.inputs import CASES, case_inputs, cases
from vireid_jax import optim
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.idkl import method as idkl

KEY = jax.random.key(0)
# A program runs once here: the compiler's time counts, not the program's.
FAST = {"xla_backend_optimization_level": 0}
NOT_OF_THE_MODEL = ("step", "optimizer", "preset")


@functools.cache
def _method(name):
    case = CASES[name]
    options = {}
    if "preset" in case.options:
        options = recipe.get_config(f"sysu,{case.options['preset']}").method.to_dict()
        del options["name"]
    options |= {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    return idkl.build(
        **with_backbone(
            {
                **options,
                "modality_dropout": 0.0,  # masks are drawn differently in PyTorch
                "image_size": case.shape["size"],
                "num_ids": case.shape["ids"],
                "num_instances": case.shape["instances"],
            }
        )
    )


def _batch(name, step, dtype="float64"):
    data = case_inputs(name)
    batch = {k: to_jax(data[k][step], dtype) for k in ("visible", "infrared", "label")}
    return {**batch, "camera": jnp.zeros((len(batch["label"]), 2), jnp.int32)}


@functools.cache
def _embed(method):
    # The modality as an array: were it looked at, tracing would fail.
    return jax.jit(method.embed, compiler_options=FAST)


def _embeddings(method, variables, batch):
    return {
        name: _embed(method)(variables, batch[name], jnp.asarray(m))
        for m, name in enumerate(("visible", "infrared"))
    }


@functools.cache
def _step(method):
    """Value and gradient of a method's loss."""

    def objective(params, rest, batch, step):
        return method.loss({**rest, "params": params}, batch, KEY, step)

    return jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=FAST)


@functools.cache
def _model(name):
    """Terms, total, gradients, statistics and embeddings of one step."""
    with precision("float64"):
        method = _method(name)
        variables = weights(lambda: method.init(KEY), name, "float64")
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
@pytest.mark.parametrize("name", cases("idkl"))
def test_model(name, source):
    store.compare(_model(name), reference(name, source), rtol=1e-10)


@pytest.mark.parametrize("name", cases("idkl"))
def test_every_parameter_gets_a_gradient(name):
    """Of the stored ones, which ours equal; the digest of an array of zeros is zero."""
    gradients = {k: v for k, v in store.load(name).items() if "grad/" in k}
    without = {k.split("grad/params/")[1] for k, v in gradients.items() if not v.any()}
    # Biases in front of a batch normalization.
    heads = {k.split("/")[2] for k in gradients if k.endswith("fc1/kernel")}
    assert heads and without == {f"{head}/fc{i}/bias" for head in heads for i in (1, 2)}


@pytest.mark.parametrize("name", cases("idkl"))
def test_every_term_counts(name):
    """But the code's L_r, whose [.]_+ no identity of the batch is in; its own test has some."""
    terms = {k: v for k, v in store.load(name).items() if k.startswith("terms/")}
    idle = {"terms/r"} if CASES[name].options.get("preset") == "official" else set()
    assert {k for k, v in terms.items() if not v > 1e-4} <= idle


def test_the_code_s_reducing_loss_is_0_at_the_start():
    """Weights as a training starts with them, through the program compiled above."""
    name = "idkl_official"
    with precision("float64"):
        method = _method(name)
        variables = jax.tree.map(lambda x: x.astype("float64"), method.init(KEY))
        (_, aux), gradient = _step(method)(
            variables["params"], variables, _batch(name, 0), jnp.asarray(4)
        )
        terms, gradient = to_numpy(aux.terms), to_numpy(gradient)
    assert terms["r"] == 0
    assert terms["e"] > 0 and terms["tri_sh"] > 0
    # Logits are small then: a guess among 6 identities, and between 2 modalities.
    for term, classes in (("id_sh", 6), ("id_purified", 6), ("discriminator", 2), ("confuser", 2)):
        np.testing.assert_allclose(terms[term], np.log(classes), rtol=0.4)
    assert all(np.isfinite(g).all() for g in gradient.values())


@functools.cache
def _trajectory(name):
    """Losses of every step, final weights and embeddings of a short training."""
    tx, learning_rate = optim.make(
        steps_per_epoch=5,
        epochs=2,
        name="adam",
        decay="coupled",
        **CASES[name].options["optimizer"],
    )
    with precision("float64"):
        method = _method(name)
        variables = weights(lambda: method.init(KEY), name, "float64")
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
            return {**aux.updates, "params": params}, state, {**aux.terms, "total": total}

        history = []
        for t in range(CASES[name].shape["steps"]):
            variables, state, values = update(variables, state, _batch(name, t), jnp.asarray(t))
            history.append(values)
        stacked = {k: np.stack([h[k] for h in history]) for k in history[0]}
        embeddings = _embeddings(method, variables, _batch(name, 0))
        return to_numpy({"history": stacked, **variables, "embed": embeddings})


@sources
@pytest.mark.parametrize("name", cases("idkl_trajectory"))
def test_training_trajectory(name, source):
    """Ten steps of Adam with coupled decay of all parameters."""
    store.compare(_trajectory(name), reference(name, source), rtol=1e-8)
