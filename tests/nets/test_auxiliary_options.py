"""Impossible options of auxiliary modalities are refused by name, before anything is traced."""

import jax
import jax.numpy as jnp
import pytest

from vireid_jax.nets import auxiliary
from vireid_jax.nets.auxiliary.unifying import CrossModality, IntraModality

KEY = jax.random.key(0)
SIZE = (288, 144)


@pytest.mark.parametrize("kind", auxiliary.KINDS)
def test_the_defaults_pass(kind):
    auxiliary.check(kind, image_size=SIZE, channels=256, generator={})


@pytest.mark.parametrize("size", [(288, 144), (285, 141), (96, 48)])
def test_sizes_whose_map_divides_pass(size):
    auxiliary.check("mun", image_size=size)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "y"}, "method.auxiliary"),
        ({"smgm_init": "zero"}, "method.smgm_init"),
        ({"kind": "syncretic", "smgm_init": "identity"}, "smgm_width=3"),
        ({"smgm_input": "raw"}, "method.smgm_input"),
        ({"smgm_width": 0}, "method.smgm_width"),
        ({"smgm_shared": "no"}, "method.smgm_shared"),
        ({"x_width": 0}, "method.x_width"),
        ({"x_input": "raw"}, "method.x_input"),
        ({"mix": "third"}, "method.mix"),
        ({"generator": {"ratio": (2,)}}, "no option 'ratio'"),
        ({"generator": {"ratios": ()}}, "method.generator.ratios"),
        ({"generator": {"ratios": (2, 2)}}, "method.generator.ratios"),
        ({"generator": {"ratios": (0, 2)}}, "method.generator.ratios"),
        ({"generator": {"ratio_form": "x"}}, "method.generator.ratio_form"),
        ({"generator": {"transposed": "x"}}, "method.generator.transposed"),
        ({"generator": {"scale_shape": "x"}}, "method.generator.scale_shape"),
        ({"generator": {"scale_form": "x"}}, "method.generator.scale_form"),
        ({"generator": {"form": "x"}}, "method.generator.form"),
        ({"generator": {"residual": 1}}, "method.generator.residual"),
        ({"generator": {"relu": "yes"}}, "method.generator.relu"),
        ({"generator": {"remat": None}}, "method.generator.remat"),
        ({"image_size": (384, 128)}, "96 x 32.*multiples of 48 such as 384 x 144"),
        ({"image_size": (289, 144)}, "73 x 36"),
        ({"channels": 9}, "halves"),
        ({"channels": 6, "generator": {"transposed": "reduce"}}, "transposed='reduce'"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, message):
    options = {"kind": "mun", "image_size": SIZE, **options}
    with pytest.raises(ValueError, match=message):
        auxiliary.check(options.pop("kind"), **options)


def test_the_modules_refuse_what_they_cannot_do():
    x = jax.ShapeDtypeStruct((1, 6, 6, 6), jnp.float32)
    odd = jax.ShapeDtypeStruct((1, 6, 6, 5), jnp.float32)
    with pytest.raises(ValueError, match="does not divide by the ratios"):
        jax.eval_shape(lambda: CrossModality().init(KEY, x, x, True))
    with pytest.raises(ValueError, match="divides the map's 6 channels by 4"):
        net = CrossModality(ratios=(2,), transposed="reduce")
        jax.eval_shape(lambda: net.init(KEY, x, x, True))
    with pytest.raises(ValueError, match="halves"):
        jax.eval_shape(lambda: IntraModality().init(KEY, odd, True))
    with pytest.raises(ValueError, match="expected one of"):
        auxiliary.make("y")
    with pytest.raises(TypeError, match="ratio"):
        auxiliary.make("mun", generator={"ratio": (2,)})
