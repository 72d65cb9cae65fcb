"""MUN's generator: against PyTorch, shapes, counts, what follows from its equations, refusals."""

import functools

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
from vireid_jax.methods.mun import generator
from vireid_jax.methods.mun.generator import CrossModality, IntraModality, ModalityUnifying

KEY = jax.random.key(0)
R = np.random.default_rng(5)


def _array(*shape):
    return jnp.asarray(R.normal(size=shape), jnp.float32)


# --- Against PyTorch --------------------------------------------------------------------------


@functools.cache
def _outputs(name, module, dtype, **options):
    """`module_outputs` of a case, once for both sources; `options` go to the module beside."""
    options = {**CASES[name].options, **options}
    train = () if module is _Joined else (options.pop("train", True),)
    net = module(**options)

    def init(*arrays):
        return net.init(KEY, *arrays, *train)

    def apply(variables, *arrays):
        y, updated = net.apply(variables, *arrays, *train, mutable=["batch_stats"])
        return y, updated.get("batch_stats", {})

    return module_outputs(name, init, apply, image_names(name), dtype)


class _Joined(ModalityUnifying):
    """The three maps of the generator, joined along channels."""

    def __call__(self, visible, infrared):
        return jnp.concatenate(super().__call__(visible, infrared, train=True), -1)


def _compare(name, actual, expected, rtol):
    """In training eq. 5 subtracts the mean: a bias before it has no gradient but rounding."""
    if CASES[name].options.get("train", True):
        scale = max(np.abs(v).max() for k, v in actual.items() if k.startswith("grad/params"))
        noise = {k for k in actual if k.startswith("grad/") and k.endswith("depthwise3/bias")}
        for k in noise:
            assert max(np.abs(actual[k]).max(), np.abs(expected[k]).max()) <= rtol * scale, k
        actual, expected = (
            {k: v for k, v in arrays.items() if k not in noise} for arrays in (actual, expected)
        )
    store.compare(actual, expected, rtol=rtol)


@source_and_dtypes
@pytest.mark.parametrize("name", cases("aux_intra"))
def test_intra_modality_learner(name, source, dtypes):
    for kernels, dtype, rtol in (
        ("cpu", "float32", 1e-5),
        ("cpu", "float64", 1e-12),
        ("xla", "float64", 1e-12),
    ):
        if dtype not in dtypes:
            continue
        actual = _outputs(name, IntraModality, dtype, kernels=kernels)
        _compare(name, actual, reference(name, source), rtol)


@source_and_dtypes
@pytest.mark.parametrize("name", cases("aux_cross"))
def test_cross_modality_learner(name, source, dtypes):
    for form, dtype, rtol in (
        ("folded", "float32", 1e-5),
        ("folded", "float64", 1e-12),
        ("direct", "float64", 1e-12),
    ):
        if dtype not in dtypes:
            continue
        actual = _outputs(name, CrossModality, dtype, form=form)
        store.compare(actual, reference(name, source), rtol=rtol)


@source_and_dtypes
@pytest.mark.parametrize("name", cases("aux_generator"))
def test_generator(name, source, dtypes):
    for dtype, rtol, remat in (("float32", 1e-5, True), ("float64", 1e-12, False)):
        if dtype not in dtypes:
            continue
        actual = _outputs(name, _Joined, dtype, kernels="cpu", remat=remat)
        _compare(name, actual, reference(name, source), rtol)


# --- Shapes and counts ------------------------------------------------------------------


def _counts(net, *shapes):
    """Parameters of a learner by path, in millions, without computing anything."""
    maps = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    params = jax.eval_shape(lambda *x: net.init(KEY, *x, True), *maps)["params"]
    return {k: np.prod(v.shape) / 1e6 for k, v in flatten(params).items()}


@pytest.mark.parametrize("channels, kernels", [(256, 542_976), (64, 37_440)])
def test_intra_learner_has_the_parameters_of_eqs_1_to_5(channels, kernels):
    """Kernels by hand: 25 C/2 + 49 C/2 + 4 C C + 9 4C + 4 C C; 20 C beside."""
    counts = _counts(IntraModality(), (1, 72, 36, channels))
    of_kernels = sum(v for k, v in counts.items() if k.endswith("kernel"))
    assert of_kernels * 1e6 == pytest.approx(kernels)
    assert (sum(counts.values()) - of_kernels) * 1e6 == pytest.approx(20 * channels)


def test_cross_learner_has_the_parameters_of_eqs_6_to_9():
    shape = (1, 72, 36, 256)
    counts = _counts(CrossModality(), shape, shape)
    inverse = sum(v for k, v in counts.items() if k.startswith("transposed"))
    assert inverse == pytest.approx(13.1, abs=0.02)
    assert counts["project/kernel"] == pytest.approx(0.52, abs=0.005)


@pytest.mark.parametrize(
    "net, inputs, billions", [(IntraModality(), 1, 1.41), (CrossModality(), 2, 1.36 + 1.36)]
)
def test_multiply_adds_for_a_pair_of_images_of_the_paper(net, inputs, billions):
    maps = [jax.ShapeDtypeStruct((1, 72, 36, 256), jnp.float32)] * inputs
    variables = jax.eval_shape(lambda *x: net.init(KEY, *x, True), *maps)
    lowered = jax.jit(lambda v, *x: net.apply(v, *x, False)).lower(variables, *maps)
    assert lowered.cost_analysis()["flops"] / 2e9 == pytest.approx(billions, rel=0.02)


def test_shapes_at_the_size_of_the_paper():
    x = jax.ShapeDtypeStruct((2, 72, 36, 256), jnp.float32)
    net = ModalityUnifying()
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
    y = generator.pool(jnp.asarray(x), 2)
    for n, p, q in np.ndindex(2, 3, 2):
        block = x[n, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2]
        np.testing.assert_allclose(y[n, p, q], block.mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_identity_at_every_place_rebuilds_the_block_means():
    cells = generator.pool(_array(2, 4, 6, 3), 2)
    y = generator.expand(cells, jnp.broadcast_to(jnp.eye(3), (2, 2, 3, 3)))
    np.testing.assert_allclose(y, cells.repeat(2, 1).repeat(2, 2), rtol=1e-6)


@pytest.mark.parametrize("window", [(2, 2), (3, 2)])
def test_the_matrix_form_is_laxs_transposed_convolution(window):
    cells, kernel = _array(2, 3, 2, 5), _array(*window, 5, 4)
    # lax correlates with the kernel; torch, and eq. 7, put it down as it is.
    expected = jax.lax.conv_transpose(
        cells, kernel[::-1, ::-1], window, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert relative_error(generator.expand(cells, kernel), expected) < 1e-5


def test_moments_of_a_rebuilt_map_follow_from_those_of_the_cells():
    cells, kernel = _array(3, 4, 2, 2 * 5) + 2, _array(2, 3, 5, 4)
    mean, var = generator.expanded_moments(*generator.moments(cells, 2), kernel)
    for m in range(2):
        rows = np.asarray(generator.expand(cells[..., 5 * m : 5 * m + 5], kernel), np.float64)
        np.testing.assert_allclose(mean[m], rows.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(var[m], rows.var((0, 1, 2)), rtol=1e-4)


# --- Depthwise --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_both_forms_of_a_depthwise_convolution_agree(dtype, tolerance):
    x, kernel, along = _array(2, 7, 5, 3), _array(5, 5, 1, 3), _array(2, 7, 5, 3)

    @functools.partial(jax.jit, static_argnums=0)
    def run(kernels, x, kernel):
        def value(x, kernel):
            y = generator.depthwise(x.astype(dtype), kernel.astype(dtype), kernels=kernels)
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


@pytest.mark.slow
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
    net = ModalityUnifying(ratios=(2, 3), form=form)
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


@pytest.mark.slow
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


def test_scales_start_at_one_for_each_channel():
    x = _array(1, 6, 6, 4)
    scale = IntraModality().lazy_init(KEY, x, True)["params"]["layer_scale"]
    np.testing.assert_array_equal(scale, np.ones(4))


def test_projection_moves_layer_scales_alone_into_the_unit_interval():
    params = {
        "auxiliary": {"cross": {"layer_scale": jnp.array([-1.0, 0.5, 3.0])}},
        "neck": {"scale": jnp.array([-1.0, 3.0])},
    }
    projected = generator.project_scales(params)
    np.testing.assert_allclose(
        projected["auxiliary"]["cross"]["layer_scale"], [1e-6, 0.5, 1.0], rtol=1e-6
    )
    np.testing.assert_array_equal(projected["neck"]["scale"], params["neck"]["scale"])
    assert params["auxiliary"]["cross"]["layer_scale"][0] == -1


# --- Refusals -----------------------------------------------------------------------------


def test_a_bad_option_is_refused_by_name_before_anything_is_traced():
    good = dict(image_size=(288, 144), channels=256, ratios=(2, 4, 6, 12), form="direct", groups=1)
    for size in ((288, 144), (285, 141), (96, 48)):  # whose maps divide
        generator.check(**{**good, "image_size": size})
    generator.check(**{**good, "groups": 2})
    for bad, message in (
        ({"ratios": ()}, "method.generator_ratios is"),
        ({"ratios": (2, 2)}, "method.generator_ratios is"),
        ({"ratios": (0, 2)}, "method.generator_ratios is"),
        ({"ratios": (2, 5)}, "72 x 36 does not divide by the ratios .*multiples of 10"),
        ({"form": "auto"}, "method.generator_form is 'auto', expected one of"),
        (
            {"form": "folded", "groups": 2},
            "method.generator_form is 'folded' with devices.bn_groups=2",
        ),
        ({"image_size": (384, 128)}, "data.image_size is .*96 x 32.*48 such as 384 x 144"),
        ({"image_size": (289, 144)}, "73 x 36"),
        ({"channels": 9}, "halves"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.check(**{**good, **bad})


def test_the_modules_refuse_what_they_cannot_do():
    x = jax.ShapeDtypeStruct((1, 6, 6, 6), jnp.float32)
    odd = jax.ShapeDtypeStruct((1, 6, 6, 5), jnp.float32)
    for net, maps, message in (
        (CrossModality(), (x, x), "does not divide by the ratios"),
        (CrossModality(ratios=(2,), form="fast"), (x, x), "generator_form is 'fast'"),
        (IntraModality(), (odd,), "halves"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda net=net, maps=maps: net.init(KEY, *maps, True))
