"""MUN's generator: against PyTorch, multiply-adds, what follows from its equations, refusals."""

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
from tests.support.reference.inputs import CASES
from tests.support.rows import each
from vireid_jax.methods.mun import generator
from vireid_jax.methods.mun.generator import CrossModality, IntraModality, ModalityUnifying
from vireid_jax.nets import init

KEY = jax.random.key(0)
R = np.random.default_rng(5)


def _array(*shape):
    return jnp.asarray(R.normal(size=shape), jnp.float32)


# --- Against PyTorch --------------------------------------------------------------------------


class _Joined(ModalityUnifying):
    """The three maps of the generator, joined along channels."""

    def __call__(self, visible, infrared, train):
        return jnp.concatenate(super().__call__(visible, infrared, train=train), -1)


@functools.cache
def _outputs(name, module, dtype, **options):
    """`module_outputs` of a case, once for both sources; `options` go to the module beside."""
    options = {**CASES[name].options, **options}
    train = options.pop("train", True)
    net = module(**options)

    def apply(variables, *arrays):
        y, updated = net.apply(variables, *arrays, train, mutable=["batch_stats"])
        return y, updated.get("batch_stats", {})

    return module_outputs(
        name, lambda *x: net.init(KEY, *x, train), apply, image_names(name), dtype
    )


LEARNERS = [
    (IntraModality, "aux_intra", "float32", dict(kernels="cpu")),
    (IntraModality, "aux_intra", "float64", dict(kernels="cpu")),
    (IntraModality, "aux_intra_test", "float64", dict(kernels="xla")),
    (CrossModality, "aux_cross", "float32", dict(form="folded")),
    (CrossModality, "aux_cross", "float64", dict(form="folded")),
    (CrossModality, "aux_cross", "float64", dict(form="direct")),
    (CrossModality, "aux_cross_eval", "float64", dict(form="folded")),
    # Of remat in the slow tier: the fast tier has the generator in the whole model.
    (_Joined, "aux_generator", "float32", dict(kernels="cpu", remat=True)),
]


@pytest.mark.slow
@source_and_dtypes
def test_learners_and_generator(source, dtypes):
    for module, name, dtype, options in LEARNERS:
        if dtype not in dtypes:
            continue
        row, rtol = f"{name}, {dtype}, {options}", {"float32": 1e-5, "float64": 1e-12}[dtype]
        found = _outputs(name, module, dtype, **options), reference(name, source)
        if CASES[name].options.get("train", True):
            # Eq. 5 subtracts the mean: a bias before it has no gradient but rounding.
            scale = max(np.abs(v).max() for k, v in found[0].items() if k.startswith("grad/params"))
            noise = {k for k in found[0] if k.startswith("grad/") and k.endswith("depthwise3/bias")}
            assert all(np.abs(x[k]).max() <= rtol * scale for x in found for k in noise), row
            found = [{k: v for k, v in x.items() if k not in noise} for x in found]
        store.compare(*found, rtol=rtol, row=row)


# --- Size ---------------------------------------------------------------------------


@each("net, inputs, billions", [(IntraModality(), 1, 1.41), (CrossModality(), 2, 1.36 + 1.36)])
def test_multiply_adds_for_a_pair_of_images_of_the_paper(net, inputs, billions):
    maps = [jax.ShapeDtypeStruct((1, 72, 36, 256), jnp.float32)] * inputs
    variables = jax.eval_shape(lambda *x: net.init(KEY, *x, True), *maps)
    lowered = jax.jit(lambda v, *x: net.apply(v, *x, False)).lower(variables, *maps)
    assert lowered.cost_analysis()["flops"] / 2e9 == pytest.approx(billions, rel=0.02)


# --- Depthwise --------------------------------------------------------------------------


@each("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
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


@functools.cache
def _cross(form, dtype=None):
    net = CrossModality(ratios=(2, 3), form=form, dtype=dtype)
    variables = net.lazy_init(KEY, _array(2, 6, 6, 4), _array(2, 6, 6, 4), True)
    return jax.jit(lambda *x: net.apply(variables, *x, True, mutable=["batch_stats"])[0])


@pytest.mark.slow
@each("form", ["direct", "folded"])
def test_what_the_auxiliary_map_depends_on(form):
    """On both inputs; normalization divides a common scale of theirs out.

    Which makes a scalar layer scale of the intra-modality learners idle.
    """
    v, r = _array(2, 6, 6, 4), _array(2, 6, 6, 4)
    y = _cross(form)(v, r)
    for other in ((v + _array(2, 6, 6, 4), r), (v, r + _array(2, 6, 6, 4))):
        assert relative_error(_cross(form)(*other), y) > 0.05
    assert relative_error(_cross(form)(v / 2, r / 2), y) < 1e-2
    half = _cross(form, jnp.bfloat16)(v, r)
    assert half.dtype == jnp.bfloat16 and relative_error(half, y) < 0.05


@pytest.mark.slow
@each("form", ["direct", "folded"])
def test_constant_maps_are_finite_in_value_and_gradient(form):
    x = jnp.zeros((2, 6, 6, 4))
    net = ModalityUnifying(ratios=(2, 3), form=form)
    variables = net.lazy_init(KEY, x, x, train=True)

    @jax.jit
    def run(params, x):
        def total(params, x):
            state = {**variables, "params": params}
            y, _ = net.apply(state, x, x, train=True, mutable=["batch_stats"])
            return sum((m**2).sum() for m in y)

        return jax.value_and_grad(total, (0, 1))(params, x)

    for value in (0.0, 5.0):
        found = run(variables["params"], x + value)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found)), value


@pytest.mark.slow
def test_half_precision_of_an_intra_learner_is_near_single():
    x = _array(2, 6, 6, 8)
    variables = IntraModality().lazy_init(KEY, x, True)
    training = dict(train=True, mutable=["batch_stats"])
    wide, half = (
        jax.jit(functools.partial(IntraModality(dtype=d).apply, **training))(variables, x)
        for d in (None, jnp.bfloat16)
    )
    (wide, _), (half, updated) = wide, half
    assert half.dtype == jnp.bfloat16 and relative_error(half, wide) < 0.05
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updated))


# --- Layer scales -----------------------------------------------------------------------


def test_scales_start_at_one_for_each_channel():
    x = jax.ShapeDtypeStruct((1, 6, 6, 4), jnp.float32)
    net = functools.partial(ModalityUnifying(ratios=(2,)).init, train=True)
    parts = init.start(net, KEY, x, x)["params"]
    assert len(parts) == 3
    for name, part in parts.items():
        np.testing.assert_array_equal(part["layer_scale"], np.ones(4), name)


def test_projection_moves_layer_scales_alone_into_the_unit_interval():
    params = {
        "auxiliary": {"cross": {"layer_scale": jnp.array([-1.0, 0.5, 3.0])}},
        "neck": {"scale": jnp.array([-1.0, 3.0])},
    }
    projected = generator.project_scales(params)
    scales = projected["auxiliary"]["cross"]["layer_scale"]
    np.testing.assert_allclose(scales, [1e-6, 0.5, 1.0], rtol=1e-6)
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
        ({"form": "folded", "groups": 2}, "method.generator_form is 'folded' with devices.bn_gro"),
        ({"image_size": (384, 128)}, "data.image_size is .*96 x 32.*48 such as 384 x 144"),
        ({"image_size": (289, 144)}, "73 x 36"),
        ({"channels": 9}, "halves"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.check(**{**good, **bad})
