"""SMCL as a method: test time, sizes of the paper, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import fresh
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.smcl import method as smcl
from vireid_jax.types import INFRARED, VISIBLE

KEY = jax.random.key(0)
SIZE = (32, 16)
SMALL = dict(num_classes=395, image_size=SIZE, steps_per_epoch=4, depth=10, width=8)
SMALL |= dict(smgm_width=4, metric_from_epoch=1.5)
R = np.random.default_rng(5)


def build(**options):
    return smcl.build(**with_backbone(SMALL | options))


# --- Test time --------------------------------------------------------------------------


@pytest.mark.slow
def test_an_image_is_embedded_the_same_in_any_company_and_by_one_stream():
    """Without generator and classifier."""
    method, images = build(), R.normal(size=(8, *SIZE, 3)).astype(np.float32)
    variables = {
        name: {k: v for k, v in tree.items() if k in ("backbone", "neck")}
        for name, tree in method.init(KEY).items()
    }
    embed = jax.jit(method.embed, static_argnums=2)
    together = embed(variables, images, VISIBLE)
    assert list(together) == ["bn", "pool"]  # the first is the headline
    alone = embed(variables, images[:1], VISIBLE)["bn"]
    np.testing.assert_allclose(alone, together["bn"][:1], rtol=1e-4, atol=1e-5)
    other = embed(variables, images, INFRARED)
    np.testing.assert_array_equal(other["pool"], together["pool"])


# --- Sizes of the paper -----------------------------------------------------------------


def test_shapes_and_sizes_at_the_paper_s_scale():
    method = smcl.build(num_classes=395, image_size=(384, 128), steps_per_epoch=1392)
    variables = jax.eval_shape(method.init, KEY)
    # A ResNet-50 has 25,557,032 parameters, of which 2,049,000 are its 1000-way classifier.
    assert fresh.sizes(method) == {
        "backbone": 25_557_032 - 2_049_000,
        "auxiliary": 7 * 16 + 3,
        "neck": 2048,
        "classifier": 2048 * 395,
    }
    images = jax.ShapeDtypeStruct((16, 384, 128, 3), jnp.float32)
    features = jax.eval_shape(functools.partial(method.embed, modality=0), variables, images)
    assert {k: v.shape for k, v in features.items()} == {"bn": (16, 2048), "pool": (16, 2048)}


def test_default_switch_is_epoch_220():
    """Traced with the step: the only number of that size in the program is Q."""
    options = {k: v for k, v in SMALL.items() if k != "metric_from_epoch"}
    method = smcl.build(**with_backbone(options | {"steps_per_epoch": 1392}))
    image = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)
    batch = {"visible": image, "infrared": image, "label": jax.ShapeDtypeStruct((2,), jnp.int32)}
    variables = jax.eval_shape(method.init, KEY)
    text = str(jax.make_jaxpr(method.loss)(variables, batch, KEY, jnp.asarray(0)))
    assert f"{220 * 1392}" in text


# --- Errors -----------------------------------------------------------------------------


def test_a_wrong_option_is_refused_with_its_value():
    for option, value in (
        ("metric", "triplet"),
        ("triplet_margin", -0.3),
        ("bicenter_margin", -0.5),
        ("auxiliary", "thermal"),
        ("auxiliary", "mun"),
        ("smgm_init", "zeros"),
        ("smgm_input", "uint8"),
        ("smgm_width", 0),
        ("dtype", "float16"),
        ("kernels", "einsum"),
        ("id_margin", -1.0),
        ("center_margin", -0.1),
        ("metric_weight", -0.5),
        ("metric_from_epoch", -1.0),
        ("depth", 101),
        ("num_classes", 1),
    ):
        with pytest.raises(ValueError, match=str(value)) as refused:
            build(**{option: value})
        assert option in str(refused.value) or option == "num_classes", refused.value


def test_identity_start_needs_three_channels():
    with pytest.raises(ValueError, match="smgm_width=3"):
        build(smgm_init="identity", smgm_width=16)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="id_margn"):
        build(id_margn=4.0)
