"""Layers and networks: layout of rows, precision, degenerate input, sizes, errors."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import relative_error
from tests.support.plain import plainly
from tests.support.reference.convert import flatten
from tests.support.rows import each
from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gap, gem, gem_above
from vireid_jax.nets.resnet import ResNet, deinterleave, feature_width, interleave
from vireid_jax.types import INFRARED, VISIBLE

KEY = jax.random.key(0)
R = np.random.default_rng(11)


@partial(jax.jit, static_argnums=1)
def _normalize(x, train=True):
    norm = BatchNorm()
    variables = norm.init(KEY, x, train=True)
    y, updated = norm.apply(variables, x, train=train, mutable=["batch_stats"])
    return y, updated["batch_stats"]


# --- Rows -------------------------------------------------------------------------------


def test_interleaved_rows_are_slot_times_modalities_plus_modality():
    arrays = [R.normal(size=(4, 2, 3)).astype(np.float32) for _ in range(3)]
    rows = interleave(arrays)
    assert rows.shape == (12, 2, 3)
    for slot, modality in np.ndindex(4, 3):
        np.testing.assert_array_equal(rows[3 * slot + modality], arrays[modality][slot])
    np.testing.assert_array_equal(deinterleave(rows, 3), np.stack(arrays, 1))


def test_a_network_keeps_the_order_of_rows_through_its_two_stems():
    """In eval mode each row depends on its own image and its own stem alone."""
    net = ResNet(depth=10, width=4, specific=1)
    v, i = (jnp.asarray(R.normal(size=(3, 32, 16, 3)), jnp.float32) for _ in range(2))
    both = (VISIBLE, INFRARED)
    variables = init.start(partial(net.init, stems=both, train=True), KEY, [v, i])

    @jax.jit
    def embed(v, i):
        together = net.apply(variables, [v, i], stems=both, train=False)
        swapped = net.apply(variables, [i, v], stems=both[::-1], train=False)
        alone = net.apply(variables, [i], stems=(INFRARED,), train=False)
        return deinterleave(together, 2), deinterleave(swapped, 2), alone

    with plainly():
        together, swapped, alone = embed(v, i)
    np.testing.assert_allclose(together, swapped[:, ::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[:, 1], alone, rtol=1e-4, atol=1e-5)
    assert relative_error(together[:, 0], together[:, 1]) > 0.01


def test_a_start_is_that_of_linen_and_computes_no_maps():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, v, i):
            maps = nn.Conv(4, (3, 3), kernel_init=init.kaiming_normal())(v * i)
            maps = nn.relu(BatchNorm()(maps, train=True))
            return nn.Dense(5, kernel_init=init.normal(0.1), bias_init=init.constant(0.0))(maps)

    images = (jnp.asarray(R.normal(size=(3, 32, 16, 3)), jnp.float32) for _ in range(2))
    expected = flatten(Net().init(KEY, *images))
    image = jax.ShapeDtypeStruct((10**6, 32, 16, 3), jnp.float32)  # 6 GB

    def start(key):
        return init.start(Net().init, key, image, image)

    for where in (start, jax.jit(start)):
        found = flatten(where(KEY))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name}, {where}")


# --- Batch normalization ----------------------------------------------------------------


def test_running_statistics_move_a_tenth_and_the_variance_is_unbiased():
    x = R.normal(3, 2, (5, 4)).astype(np.float32)
    _, stats = _normalize(x)
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-5)


def test_evaluation_changes_no_statistics():
    _, stats = _normalize(R.normal(5, 3, (5, 4)).astype(np.float32), False)
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


@each("offset, tolerance", [(0, 1e-5), (30, 1e-3), (300, 2e-1)])
def test_a_mean_far_from_zero_costs_digits_gracefully(offset, tolerance):
    x = (R.normal(size=(256, 4)) + offset).astype(np.float32)
    y, _ = _normalize(x)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert relative_error(y, exact) < tolerance


def test_a_mean_that_the_running_statistics_know_costs_none():
    x = (R.normal(size=(256, 4)) + 300).astype(np.float32)
    variables = {
        "params": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)},
        "batch_stats": {"mean": np.full(4, 300.0, np.float32), "var": np.ones(4, np.float32)},
    }
    apply = jax.jit(partial(BatchNorm().apply, train=True, mutable=["batch_stats"]))
    y, _ = apply(variables, x)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert relative_error(y, exact) < 1e-4


@each("value", [0.0, 7.0])
def test_a_constant_channel_is_finite_in_value_and_gradient(value):
    x = jnp.full((6, 3), value)
    along = jnp.asarray(R.normal(size=(6, 3)), jnp.float32)
    y, gradient = jax.value_and_grad(lambda x: (along * _normalize(x)[0]).sum())(x)
    assert np.isfinite(y) and np.isfinite(gradient).all()


def test_one_row_is_finite():
    y, stats = _normalize(jnp.ones((1, 3)))
    assert np.isfinite(y).all() and np.isfinite(stats["var"]).all()


def test_half_precision_input_has_float32_statistics():
    x = jnp.asarray(R.normal(100, 1, (512, 4)), jnp.bfloat16)
    y, stats = _normalize(x)
    assert y.dtype == jnp.bfloat16 and stats["mean"].dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats["mean"], 0.1 * wide.mean(0), rtol=1e-5)


# --- Pooling ----------------------------------------------------------------------------


def test_generalized_mean_lies_between_mean_and_maximum():
    x = R.uniform(0.1, 1, (3, 5, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(gem_above(x, 1.0), gap(x), rtol=1e-5)
    np.testing.assert_allclose(gem_above(x, 100.0), x.max((1, 2)), rtol=0.05)
    middle = gem_above(x, 3.0)
    assert (middle > gap(x)).all() and (middle < x.max((1, 2))).all()


def test_generalized_mean_of_an_empty_map_has_finite_gradients():
    """A channel that a ReLU has shut everywhere is common."""
    for pool in (gem, gem_above):
        value, gradient = jax.value_and_grad(lambda x, f=pool: f(x).sum())(jnp.zeros((2, 3, 3, 4)))
        assert np.isfinite(value) and np.isfinite(gradient).all()


@each("pool", [gap, gem, gem_above])
def test_pooling_of_half_precision_maps_is_float32(pool):
    x = jnp.asarray(R.uniform(0, 2, (2, 24, 8, 4)), jnp.bfloat16)
    y = pool(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, pool(x.astype(jnp.float32)), rtol=1e-6)


# --- ResNet -----------------------------------------------------------------------------


def _shape(size, **options):
    net = ResNet(**options)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    stems = (VISIBLE, INFRARED)

    def run(v, i):
        return net.init_with_output(KEY, [v, i], stems=stems, train=True)

    y, variables = jax.eval_shape(run, image, image)
    return y.shape, variables["params"]


@each(
    "options, size, expected",
    [
        (dict(depth=50), (384, 128), (4, 24, 8, 2048)),  # Wei et al., sec. 4.1
        (dict(depth=50, last_stride=2), (384, 128), (4, 12, 4, 2048)),
        (dict(depth=34), (288, 144), (4, 18, 9, 512)),
        (dict(depth=18, width=32), (97, 51), (4, 7, 4, 256)),
        (dict(depth=14, width=16), (96, 48), (4, 6, 3, 512)),
        (dict(depth=10, width=16, specific=5), (96, 48), (4, 6, 3, 128)),
    ],
)
def test_shape_of_the_maps(options, size, expected):
    shape, _ = _shape(size, **options)
    assert shape == expected
    assert feature_width(options["depth"], options.get("width", 64)) == expected[-1]


@each("depth, count", [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)])
def test_number_of_parameters_is_that_of_the_published_networks(depth, count):
    """The published counts less the 1000-way classifier: 11,689,512, 21,797,672, 25,557,032."""
    _, params = _shape((64, 32), depth=depth)
    assert sum(np.prod(x.shape) for x in flatten(params).values()) == count


@each("specific", range(6))
def test_specific_stages_exist_once_for_each_modality(specific):
    _, params = _shape((32, 16), depth=10, width=4, specific=specific)
    stages = ["stem", "layer1_0", "layer2_0", "layer3_0", "layer4_0"]
    own = {f"{s}_{m}" for s in stages[:specific] for m in ("visible", "infrared")}
    assert set(params) == own | set(stages[specific:])


@each(
    "options, stems, message",
    [
        ({"depth": 101}, None, "101"),
        ({"specific": -1}, (0, 1), "specific is -1"),
        ({"specific": 6}, (0, 1), "specific is 6"),
        ({"specific": 1}, None, "stem"),
        ({"specific": 1}, (0,), "stem"),
        ({"kernels": "fast"}, None, "fast"),
    ],
)
def test_a_wrong_network_is_refused(options, stems, message):
    net = ResNet(**{"depth": 10, "width": 4, **options})
    x = jnp.zeros((1, 32, 16, 3))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(KEY, [x, x], stems=stems, train=True))
