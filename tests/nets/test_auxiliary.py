"""Auxiliary modalities: shapes, counts and what follows from the equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import relative_error
from tests.support.reference.convert import flatten
from vireid_jax.data.augment import MEAN, STD
from vireid_jax.nets import auxiliary
from vireid_jax.nets.auxiliary import folding, pyramid
from vireid_jax.nets.auxiliary.unifying import CrossModality, IntraModality
from vireid_jax.nets.depthwise import depthwise

KEY = jax.random.key(0)
R = np.random.default_rng(5)


def _array(*shape):
    return jnp.asarray(R.normal(size=shape), jnp.float32)


def _counts(net, *shapes):
    """Parameters of a learner by path, in millions, without computing anything."""
    maps = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    params = jax.eval_shape(lambda *x: net.init(KEY, *x, True), *maps)["params"]
    return {k: np.prod(v.shape) / 1e6 for k, v in flatten(params).items()}


# --- Shapes and counts ------------------------------------------------------------------


@pytest.mark.parametrize("kind", auxiliary.IMAGE_KINDS)
def test_image_kinds_give_images(kind):
    net = auxiliary.make(kind)
    x = _array(2, 6, 4, 3)
    y, _ = net.init_with_output(KEY, x, _array(2, 6, 4, 3))
    assert y.shape == x.shape and y.dtype == x.dtype and np.isfinite(y).all()


def test_none_has_no_module():
    assert auxiliary.make("none") is None


@pytest.mark.parametrize("channels, kernels", [(256, 542_976), (64, 37_440)])
def test_intra_learner_has_the_parameters_of_eqs_1_to_5(channels, kernels):
    """Kernels by hand: 25 C/2 + 49 C/2 + 4 C C + 9 4C + 4 C C; 20 C beside."""
    counts = _counts(IntraModality(), (1, 72, 36, channels))
    of_kernels = sum(v for k, v in counts.items() if k.endswith("kernel"))
    assert of_kernels * 1e6 == pytest.approx(kernels)
    assert (sum(counts.values()) - of_kernels) * 1e6 == pytest.approx(20 * channels)


@pytest.mark.parametrize(
    "net, inputs, billions",
    [
        (IntraModality(), 1, 1.41),
        (CrossModality(form="direct"), 2, 1.36 + 1.36),
        (CrossModality(form="direct", transposed="reduce"), 2, 0.34 + 0.34),
        (CrossModality(form="direct", transposed="depthwise"), 2, 1.36),
    ],
)
def test_multiply_adds_for_a_pair_of_images_of_the_paper(net, inputs, billions):
    maps = [jax.ShapeDtypeStruct((1, 72, 36, 256), jnp.float32)] * inputs
    variables = jax.eval_shape(lambda *x: net.init(KEY, *x, True), *maps)
    lowered = jax.jit(lambda v, *x: net.apply(v, *x, False)).lower(variables, *maps)
    assert lowered.cost_analysis()["flops"] / 2e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    "transposed, inverse, projection",
    [("full", 13.1, 0.52), ("reduce", 3.28, 0.13), ("depthwise", 0.05, 0.52)],
)
def test_cross_learner_has_the_parameters_of_eqs_6_to_9(transposed, inverse, projection):
    shape = (1, 72, 36, 256)
    counts = _counts(CrossModality(transposed=transposed), shape, shape)
    assert sum(v for k, v in counts.items() if k.startswith("transposed")) == pytest.approx(
        inverse, abs=0.02
    )
    assert counts["project/kernel"] == pytest.approx(projection, abs=0.005)


def test_shapes_at_the_size_of_the_paper():
    x = jax.ShapeDtypeStruct((2, 72, 36, 256), jnp.float32)
    net = auxiliary.make("mun", generator={})
    maps, variables = jax.eval_shape(
        lambda *maps: net.init_with_output(KEY, *maps, train=True), x, x
    )
    assert [m.shape for m in maps] == [x.shape] * 3
    kernels = variables["params"]["cross"]
    assert [kernels[f"transposed{n}"]["kernel"].shape[0] for n in range(4)] == [2, 4, 6, 12]
    assert kernels["bn"]["scale"].shape == (2048,)


# --- Pyramid ----------------------------------------------------------------------------


def test_pooling_is_the_mean_of_blocks():
    x = np.asarray(_array(2, 6, 4, 3))
    y = pyramid.pool(jnp.asarray(x), (3, 2))
    for n, p, q in np.ndindex(2, 2, 2):
        block = x[n, 3 * p : 3 * p + 3, 2 * q : 2 * q + 2]
        np.testing.assert_allclose(y[n, p, q], block.mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_identity_at_every_place_rebuilds_the_block_means():
    x = _array(2, 4, 6, 3)
    cells = pyramid.pool(x, (2, 3))
    kernel = jnp.broadcast_to(jnp.eye(3), (2, 3, 3, 3))
    y = pyramid.expand(cells, kernel)
    np.testing.assert_allclose(y, cells.repeat(2, 1).repeat(3, 2), rtol=1e-6)


@pytest.mark.parametrize("window", [(2, 2), (3, 2)])
def test_the_matrix_form_is_laxs_transposed_convolution(window):
    cells, kernel = _array(2, 3, 2, 5), _array(*window, 5, 4)
    # lax correlates with the kernel; torch, and eq. 7, put it down as it is.
    expected = jax.lax.conv_transpose(
        cells, kernel[::-1, ::-1], window, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert relative_error(pyramid.expand(cells, kernel), expected) < 1e-5


def test_moments_of_a_rebuilt_map_follow_from_those_of_the_cells():
    cells = _array(3, 4, 2, 2 * 5) + 2
    for kernel in (_array(2, 3, 5, 4), _array(2, 3, 1, 5)):
        mean, var = folding.expanded_moments(*folding.moments(cells, 2), kernel)
        for m in range(2):
            rows = np.asarray(pyramid.expand(cells[..., 5 * m : 5 * m + 5], kernel), np.float64)
            np.testing.assert_allclose(mean[m], rows.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(var[m], rows.var((0, 1, 2)), rtol=1e-4)


def test_folding_is_chosen_where_the_batch_is_large():
    windows = [(2, 2), (4, 4), (6, 6), (12, 12)]
    place = 72 * 36
    assert folding.is_cheaper(32 * place, windows, 256, 256, 256)
    for pairs in (2, 8, 16):
        assert not folding.is_cheaper(pairs * place, windows, 256, 256, 256)
    assert not folding.is_cheaper(32 * place, windows, 256, 256, 1)
    assert not folding.is_cheaper(32 * place, windows, 256, 64, 256)
    assert not folding.is_cheaper(16 * 24 * 12, windows, 32, 32, 32)


# --- Depthwise --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_both_forms_of_a_depthwise_convolution_agree(dtype, tolerance):
    x, kernel, along = _array(2, 7, 5, 3), _array(5, 5, 1, 3), _array(2, 7, 5, 3)

    @functools.partial(jax.jit, static_argnums=0)
    def run(kernels, x, kernel):
        def value(x, kernel):
            y = depthwise(x.astype(dtype), kernel.astype(dtype), kernels=kernels)
            return (y.astype("float32") * along).sum(), y

        return jax.value_and_grad(value, (0, 1), has_aux=True)(x, kernel)

    (_, actual), gradients = run("cpu", x, kernel)
    (_, expected), wanted = run("xla", x, kernel)
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < tolerance
    for got, want in zip(gradients, wanted, strict=True):
        assert relative_error(got, want) < tolerance


# --- Properties of the learners ---------------------------------------------------------


def _cross(visible, infrared, variables=None, **options):
    net = CrossModality(**{"ratios": (2, 3), **options})
    variables = variables or net.lazy_init(KEY, visible, infrared, True)

    @jax.jit
    def run(variables, visible, infrared):
        return net.apply(variables, visible, infrared, True, mutable=["batch_stats"])[0]

    return run(variables, visible, infrared), variables


@pytest.mark.parametrize("form", ["direct", "folded"])
def test_the_auxiliary_map_depends_on_both_inputs(form):
    v, r = _array(2, 6, 6, 4), _array(2, 6, 6, 4)
    y, variables = _cross(v, r, form=form)
    for other in ((v + _array(2, 6, 6, 4), r), (v, r + _array(2, 6, 6, 4))):
        assert relative_error(_cross(*other, variables, form=form)[0], y) > 0.05


@pytest.mark.parametrize("form", ["direct", "folded"])
def test_normalization_divides_a_common_scale_of_the_inputs_out(form):
    """Which makes a scalar layer scale of the intra-modality learners idle."""
    v, r = _array(2, 6, 6, 4), _array(2, 6, 6, 4)
    y, variables = _cross(v, r, form=form)
    assert relative_error(_cross(v / 2, r / 2, variables, form=form)[0], y) < 1e-2


@pytest.mark.parametrize("form", ["direct", "folded"])
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_maps_are_finite_in_value_and_gradient(form, value):
    x = jnp.full((2, 6, 6, 4), value)
    net = auxiliary.make("mun", generator={"ratios": (2, 3), "form": form})
    variables = net.lazy_init(KEY, x, x, train=True)

    @jax.jit
    def run(params, x):
        def total(params, x):
            y, _ = net.apply(
                {**variables, "params": params}, x, x, train=True, mutable=["batch_stats"]
            )
            return sum((m**2).sum() for m in y)

        return jax.value_and_grad(total, (0, 1))(params, x)

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(variables["params"], x)))


def test_half_precision_is_near_single():
    v, r = _array(2, 6, 6, 8), _array(2, 6, 6, 8)
    for form in ("direct", "folded"):
        wide, variables = _cross(v, r, form=form)
        half, _ = _cross(v, r, variables, form=form, dtype=jnp.bfloat16)
        assert half.dtype == jnp.bfloat16
        assert relative_error(half, wide) < 0.05


def test_half_precision_of_an_intra_learner_is_near_single():
    x = _array(2, 6, 6, 8)
    variables = IntraModality().lazy_init(KEY, x, True)
    outputs = [
        jax.jit(
            lambda v, x, d=d: IntraModality(dtype=d).apply(v, x, True, mutable=["batch_stats"])
        )(variables, x)
        for d in (None, jnp.bfloat16)
    ]
    (wide, _), (half, updated) = outputs
    assert half.dtype == jnp.bfloat16 and relative_error(half, wide) < 0.05
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updated))


# --- Layer scales -----------------------------------------------------------------------


def test_scales_start_at_one_or_near_and_have_the_asked_shape():
    x = _array(1, 6, 6, 4)
    for form, start in (("project", 1.0), ("clip", 1.0), ("sigmoid", 4.0)):
        for shape, size in (("vector", 4), ("scalar", 1)):
            net = IntraModality(scale_form=form, scale_shape=shape)
            scale = net.lazy_init(KEY, x, True)["params"]["layer_scale"]
            assert scale.shape == (size,)
            np.testing.assert_array_equal(scale, start)


def test_projection_moves_layer_scales_alone_into_the_unit_interval():
    params = {
        "auxiliary": {"cross": {"layer_scale": jnp.array([-1.0, 0.5, 3.0])}},
        "neck": {"scale": jnp.array([-1.0, 3.0])},
    }
    projected = auxiliary.project_scales(params)
    np.testing.assert_allclose(
        projected["auxiliary"]["cross"]["layer_scale"], [1e-6, 0.5, 1.0], rtol=1e-6
    )
    np.testing.assert_array_equal(projected["neck"]["scale"], params["neck"]["scale"])
    assert params["auxiliary"]["cross"]["layer_scale"][0] == -1


# --- Images -----------------------------------------------------------------------------


def _standardize(pixels):
    return jnp.asarray((pixels - np.array(MEAN)) / np.array(STD), jnp.float32)


def _pixels(x):
    return np.asarray(x) * np.array(STD) + np.array(MEAN)


def test_gray_is_the_luma_of_the_pixels():
    pixels = R.uniform(size=(2, 3, 4, 3))
    y = auxiliary.make("gray").apply({}, _standardize(pixels), None)
    luma = 0.2989 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    for channel in range(3):
        np.testing.assert_allclose(_pixels(y)[..., channel], luma, atol=1e-6)


@pytest.mark.parametrize("space", ["unit", "standardized"])
def test_x_starts_as_the_mean_of_the_colors_and_keeps_dark_pixels(space):
    pixels = R.uniform(size=(2, 3, 4, 3))
    x = _standardize(pixels)
    y, _ = auxiliary.make("x", x_input=space).init_with_output(KEY, x, x)
    space_of = _pixels if space == "unit" else np.asarray
    expected = np.asarray(space_of(x)).mean(-1, keepdims=True)
    np.testing.assert_allclose(space_of(y), np.broadcast_to(expected, y.shape), atol=1e-5)


def test_a_mixture_has_one_share_for_each_pair():
    v, i = _array(4, 3, 2, 3), _array(4, 3, 2, 3)
    net = auxiliary.make("mixed", mix="beta")
    y = net.apply({}, v, i, rngs={"auxiliary": KEY})
    shares = np.asarray((y - i) / (v - i))
    np.testing.assert_allclose(shares, np.broadcast_to(shares[:, :1, :1, :1], y.shape), atol=1e-3)
    assert (shares >= -1e-3).all() and (shares <= 1 + 1e-3).all() and np.ptp(shares[:, 0]) > 0.1
    again = net.apply({}, v, i, rngs={"auxiliary": KEY})
    other = net.apply({}, v, i, rngs={"auxiliary": jax.random.key(1)})
    assert (y == again).all() and (y != other).any()
    np.testing.assert_allclose(auxiliary.make("mixed").apply({}, v, i), (v + i) / 2, rtol=1e-6)
