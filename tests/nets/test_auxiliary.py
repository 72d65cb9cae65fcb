"""Third modalities that are images: against PyTorch, what follows from their formulas, refusals."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import (
    image_names,
    module_outputs,
    reference,
    relative_error,
    source_and_dtypes,
)
from tests.support.reference import store
from tests.support.reference.convert import flatten
from tests.support.reference.inputs import CASES, cases
from tests.support.rows import each
from vireid_jax.data.augment import MEAN, STD
from vireid_jax.nets import auxiliary, init
from vireid_jax.nets.auxiliary import SMGM, Gray, Mixed, X

KEY = jax.random.key(0)
R = np.random.default_rng(5)
VISIBLE, INFRARED = R.normal(size=(2, 4, 3, 2, 3)).astype(np.float32)
MODULES = {"smgm": SMGM, "aux_x": X, "aux_gray": Gray, "aux_mixed": Mixed}


def _standardize(pixels):
    return jnp.asarray((pixels - np.array(MEAN)) / np.array(STD), jnp.float32)


def _pixels(x):
    return np.asarray(x) * np.array(STD) + np.array(MEAN)


# --- Against PyTorch --------------------------------------------------------------------------


@functools.cache
def _outputs(name, kernels, dtype):
    """`module_outputs` of a case, once for both sources."""
    options = {"kernels": kernels} if kernels else {}
    net = MODULES[CASES[name].kind](**CASES[name].options, **options)
    return module_outputs(
        name,
        lambda v, i: net.init(KEY, v, i),
        lambda variables, v, i: (net.apply(variables, v, i), {}),
        image_names(name),
        dtype,
    )


@source_and_dtypes
@each("name", cases(*MODULES))
def test_values_and_gradients(name, source, dtypes):
    tried = ("cpu", "xla") if CASES[name].kind in ("smgm", "aux_x") else ("",)
    for kernels, dtype in itertools.product(tried, dtypes):
        actual, expected = dict(_outputs(name, kernels, dtype)), reference(name, source)
        if CASES[name].kind in ("aux_x", "aux_gray"):  # PyTorch gives no gradient, JAX zeros
            assert not actual.pop("grad/infrared").any(), (name, kernels, dtype)
        store.compare(actual, expected, rtol={"float32": 1e-5, "float64": 1e-12}[dtype])


# --- The syncretic modality -------------------------------------------------------------------


def _generate(options, visible, infrared):
    smgm = SMGM(**options)
    variables = init.start(smgm.init, KEY, visible, infrared)
    return jax.jit(smgm.apply)(variables, visible, infrared), variables["params"]


@each("space", auxiliary.INPUTS)
def test_a_syncretic_image_is_made_of_both_parents_alike_pixel_by_pixel(space):
    # Positive parents and many maps: no ReLU is shut for all of them.
    v, i = (np.abs(x[:1]) + 0.5 for x in (VISIBLE, INFRARED))
    smgm = SMGM(width=64, input=space)
    variables = init.start(smgm.init, KEY, v, i)

    apply = partial(smgm.apply, variables)
    run = jax.jit(lambda *x: (apply(*x), jax.jacobian(apply, (0, 1))(*x)))
    one, jacobians = run(v, i)
    np.testing.assert_allclose(run(i, v)[0], one, rtol=1e-5, atol=1e-6)
    for jacobian in jacobians:
        size = np.abs(np.asarray(jacobian)).max((0, 3, 4, 7))  # [h, w, h, w]
        for y, x in np.ndindex(3, 2):
            assert size[y, x, y, x] > 1e-3
            assert np.delete(size[y, x].ravel(), 2 * y + x).max() == 0


def test_a_start_at_the_identity_is_the_rectified_product():
    s, _ = _generate({"width": 3, "initial": "identity"}, VISIBLE, INFRARED)
    np.testing.assert_allclose(s, np.maximum(VISIBLE * INFRARED, 0), rtol=1e-5, atol=1e-6)


def test_syncretic_images_of_pixels_are_standardized():
    black, white = (np.asarray(_standardize(np.full((1, 2, 2, 3), x))) for x in (0, 1))
    options = {"width": 3, "initial": "identity", "input": "unit"}
    for v, i, expected in ((white, white, white), (white, black, black), (black, black, black)):
        np.testing.assert_allclose(_generate(options, v, i)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_syncretic_generator_has_7_width_plus_3_parameters():
    for width, count in ((1, 10), (3, 24), (16, 115), (64, 451)):
        params = init.start(SMGM(width).init, KEY, VISIBLE, INFRARED)["params"]
        assert sum(x.size for x in jax.tree.leaves(params)) == count
        assert all(not np.any(x) for k, x in flatten(params).items() if k.endswith("bias"))


# --- The others ---------------------------------------------------------------------------------


def test_gray_is_the_luma_of_the_pixels():
    pixels = R.uniform(size=(2, 3, 4, 3))
    y = auxiliary.make("gray").apply({}, _standardize(pixels), None)
    luma = 0.2989 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    for channel in range(3):
        np.testing.assert_allclose(_pixels(y)[..., channel], luma, atol=1e-6)


def test_x_starts_as_the_mean_of_the_colors_and_keeps_dark_pixels():
    x = _standardize(R.uniform(size=(2, 3, 4, 3)))
    y, _ = auxiliary.make("x").init_with_output(KEY, x, x)
    expected = _pixels(x).mean(-1, keepdims=True)
    np.testing.assert_allclose(_pixels(y), np.broadcast_to(expected, y.shape), atol=1e-5)


# --- What they share ----------------------------------------------------------------------------


def test_every_kind_gives_images_with_and_without_rematerialization():
    for kind in auxiliary.IMAGE_KINDS:
        variables = init.start(auxiliary.make(kind).init, KEY, VISIBLE, INFRARED)
        plain, again = (
            auxiliary.make(kind, remat=remat).apply(variables, VISIBLE, INFRARED)
            for remat in (False, True)
        )
        assert plain.shape == VISIBLE.shape and plain.dtype == VISIBLE.dtype, kind
        assert np.isfinite(plain).all() and relative_error(again, plain) < 1e-6, kind


def test_a_bad_option_is_refused_by_name():
    good = dict(smgm_width=16, smgm_init="kaiming", smgm_input="standardized")
    for kind in ("none", *auxiliary.IMAGE_KINDS):
        auxiliary.check(kind, ("none", *auxiliary.IMAGE_KINDS), **good)
    for bad, message in (
        ({"kind": "mun"}, "method.auxiliary is 'mun', expected one of .*'syncretic', 'x'"),
        ({"smgm_init": "zero"}, "method.smgm_init is 'zero'"),
        ({"smgm_init": "identity"}, "smgm_width=3, got 16"),
        ({"smgm_input": "raw"}, "method.smgm_input is 'raw'"),
        ({"smgm_width": 0}, "method.smgm_width is 0"),
    ):
        options = {"kind": "syncretic", **good, **bad}
        with pytest.raises(ValueError, match=message):
            auxiliary.check(options.pop("kind"), auxiliary.IMAGE_KINDS, **options)
    with pytest.raises(ValueError, match="expected one of"):
        auxiliary.make("y")
