"""IDKL as a whole: its weights, what a fresh model says, and what inference needs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import idkl as recipe
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.idkl import method as idkl
from vireid_jax.nets.pooling import gem_above
from vireid_jax.nets.resnet import ResNet
from vireid_jax.optim import path_name

SIZE, CLASSES = (32, 16), 395
PRESETS = ("", "official")
SMALL = dict(depth=10, width=8)


def build(preset="", *, num_ids=6, num_instances=2, **changes):
    options = recipe.get_config(f"sysu,{preset}" if preset else "sysu").method.to_dict()
    options.pop("name")
    facts = dict(num_classes=CLASSES, image_size=SIZE, num_steps=10)
    facts |= dict(num_ids=num_ids, num_instances=num_instances)
    return idkl.build(**facts, **with_backbone({**options, **SMALL, **changes}))


def batch(num_ids=6, num_instances=2):
    r = np.random.default_rng(5)
    shape = (num_ids * num_instances, *SIZE, 3)
    label = np.repeat(r.permutation(CLASSES)[:num_ids], num_instances).astype(np.int32)
    images = {k: r.normal(size=shape).astype(np.float32) for k in ("visible", "infrared")}
    return {**images, "label": label}


@functools.cache
def evaluated(preset):
    """The variables, and total, Aux and gradient of a fresh model."""
    method = build(preset)
    variables = dict(method.init(jax.random.key(0)))
    params = variables.pop("params")

    def loss(params):
        return method.loss({**variables, "params": params}, batch(), jax.random.key(1), 0)

    (total, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return {**variables, "params": params}, total, aux, gradient


WEIGHTS = {
    "": {
        **dict.fromkeys(("id_sh", "tri_sh", "id_sp", "tri_sp", "id_purified", "tri_purified"), 1.0),
        **dict.fromkeys(("confuser", "discriminator", "mdr_tgsa", "mdr_csa"), 1.0),
        **dict(e=0.1, r=0.1, tgsa=0.6, csa=0.8),
    },
    "official": {
        **dict.fromkeys(("id_sh", "tri_sh", "id_purified", "tri_purified"), 1.0),
        **dict.fromkeys(("confuser", "discriminator", "mdr_tgsa", "mdr_csa"), 1.0),
        **dict(mdr_csa_block=1.0, e=0.1, r=0.1, tgsa=0.6, csa=0.8, csa_block=0.8),
    },
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_total_is_the_sum_of_eq_21_on_any_batch(preset):
    """The batch here is not of 120 images, on which the released code's weights depend."""
    _, total, aux, _ = evaluated(preset)
    assert set(aux.terms) == set(WEIGHTS[preset])
    expected = sum(WEIGHTS[preset][name] * float(term) for name, term in aux.terms.items())
    np.testing.assert_allclose(total, expected, rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_fresh_model_knows_nothing(preset):
    _, _, aux, _ = evaluated(preset)
    for name in {"id_sh", "id_sp", "id_purified"} & set(aux.terms):
        assert float(aux.terms[name]) == pytest.approx(math.log(CLASSES), abs=0.6)
    for name in ("confuser", "discriminator"):
        assert float(aux.terms[name]) == pytest.approx(math.log(2), abs=0.4)
    if preset:
        assert float(aux.terms["r"]) == 0  # masks of a fresh purifier are nearly one for all
    else:
        assert float(aux.terms["r"]) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_gets_a_gradient(preset):
    variables, _, _, gradient = evaluated(preset)
    # The released L_r is 0 here and gives none, but its mask is in the purified features too.
    size = {
        path_name(path): float(np.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert np.isfinite(list(size.values())).all()
    # But for rounding, biases before a batch normalization get none.
    heads = ("confuser_neck", "discriminator_neck")
    without = {name for name, largest in size.items() if largest < 1e-6}
    assert without == {f"{head}/fc{i}/bias" for head in heads for i in (1, 2)}
    assert jax.tree.structure(gradient) == jax.tree.structure(variables["params"])


def test_embedding_needs_the_shared_branch_alone():
    variables, *_ = evaluated("")
    images = batch()["visible"]
    method = build()
    embed = jax.jit(lambda v, x: method.embed(v, x, 0))
    whole = embed(variables, images)

    def shared(tree):
        kept = {"neck_sh": tree["neck_sh"]}
        kept["backbone"] = {k: v for k, v in tree["backbone"].items() if "specific" not in k}
        return kept

    alone = embed({k: shared(v) for k, v in variables.items()}, images)
    assert list(whole) == ["bn", "pool"]
    for name in whole:
        np.testing.assert_array_equal(alone[name], whole[name])

    def plain(v, x):
        backbone = {k: tree["backbone"] for k, tree in v.items()}
        return gem_above(
            ResNet(**SMALL, last_stride=1, kernels="cpu").apply(backbone, [x], train=False)
        )

    def flops(function, v):
        return jax.jit(function).lower(v, images).compile().cost_analysis()["flops"]

    parts = {k: shared(v) for k, v in variables.items()}
    ratio = flops(lambda v, x: method.embed(v, x, 0), variables) / flops(plain, parts)
    assert 1 <= ratio < 1.02
    np.testing.assert_allclose(jax.jit(plain)(parts, images), whole["pool"], rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_half_precision_stays_inside_the_network(preset):
    method = build(preset, dtype="bfloat16")
    variables = jax.eval_shape(method.init, jax.random.key(0))

    def loss(params):
        state = {**variables_of(variables), "params": params}
        return method.loss(state, batch(), jax.random.key(1), 0)

    def variables_of(shapes):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))

    step = jax.value_and_grad(loss, has_aux=True)
    (total, aux), gradient = jax.eval_shape(step, variables["params"])
    leaves = jax.tree.leaves([total, list(aux.terms.values()), aux.updates, gradient])
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    image = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: method.embed(v, x, 0))(variables, image)
    convolutions = [e for e in jaxpr.eqns if "conv_general" in e.primitive.name]
    assert {e.outvars[0].aval.dtype for e in convolutions} == {jnp.dtype("bfloat16")}


def test_what_has_no_weight_has_no_parameters():
    method = build(purify_form="none", tgsa_weight=0.0, csa_weight=0.0, confuser_weight=0.0)
    names = set(jax.eval_shape(method.init, jax.random.key(0))["params"])
    expected = {"backbone", "discriminator_neck"}
    assert names == expected | {f"{k}_{f}" for k in ("neck", "classifier") for f in ("sh", "sp")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(confuser="grl"), r"method.confuser is 'grl', expected one of \['reversal'"),
        (dict(mask="spatial"), r"method.mask is 'spatial'"),
        (dict(tgsa_weight=-1.0), r"method.tgsa_weight is -1.0, expected 0 or more"),
        (dict(ip_weight=float("nan")), r"method.ip_weight is nan"),
        (dict(modality_dropout=1.0), r"method.modality_dropout is 1.0, expected 0 to below 1"),
        (dict(tgsa_temperature=0.0), r"method.tgsa_temperature is 0.0, expected above 0"),
        (dict(modality_stages=("layer5",)), r"method.modality_stages is \('layer5',\)"),
        (dict(modality_stages=()), r"method.modality_stages is \(\)"),
        (dict(specific_weight=0.0), r"choose e_head=own, or a weight"),
        (dict(purify_form="none", discriminator_input="purified"), r"needs method.purify_form"),
        (
            dict(modality_stages=("layer3",), discriminator_input="purified"),
            r"needs 'neck' in method.modality_stages",
        ),
        (dict(tgsa_cross="mix", num_ids=3, num_instances=1), r"the two halves need an even number"),
        (dict(num_ids=1), r"sampler.num_ids is 1, expected at least 2"),
        (dict(depth=11), r"no ResNet of depth 11"),
    ],
)
def test_bad_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_the_reversal_grows_if_asked_to():
    """The encoder's gradient from the confuser is 0 at the first step of a ramp."""
    only = dict(purify_form="none", specific_weight=1.0, tgsa_weight=0.0, csa_weight=0.0)
    only |= dict(mdr_tgsa_weight=0.0, mdr_csa_weight=0.0, reversal_ramp=True, modality_dropout=0.0)
    with_confuser, without = build(**only), build(**only, confuser_weight=0.0)
    variables = dict(with_confuser.init(jax.random.key(0)))
    params = variables.pop("params")

    @functools.partial(jax.jit, static_argnums=0)
    def first(method, params, step):
        def loss(params):
            return method.loss({**variables, "params": params}, batch(), jax.random.key(1), step)[0]

        return jax.grad(loss)(params)["backbone"]["stem"]["conv1"]["kernel"]

    base = first(without, params, 0)
    scale = float(jnp.abs(base).max())
    np.testing.assert_allclose(first(with_confuser, params, 0), base, atol=1e-5 * scale)
    assert float(jnp.abs(first(with_confuser, params, 9) - base).max()) > 1e-3 * scale
