"""Attention without softmax: orders of a product, folded maps, the blocks by loops, their start."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import image_names, module_outputs, reference, source_and_dtypes
from tests.support.reference import store
from tests.support.reference.case import fill
from tests.support.reference.convert import flatten, nest
from tests.support.reference.inputs import CASES, cases
from tests.support.rows import each
from vireid_jax.nets.attention import (
    Aggregation,
    ChannelAttention,
    NonLocal,
    PositionAttention,
    attend,
    fold_halves,
    unfold_halves,
)

R = np.random.default_rng(37)
HIGH = R.normal(size=(3, 4, 3, 8)).astype(np.float32)
LOW = {  # by the stride of phi and w
    1: R.normal(size=(3, 4, 3, 4)).astype(np.float32),
    2: R.normal(size=(3, 8, 6, 4)).astype(np.float32),
}
BLOCKS = {
    "nonlocal": (NonLocal, (HIGH,)),
    "cnl": (ChannelAttention, (HIGH, LOW[1])),
    "cnl, stride": (ChannelAttention, (HIGH, LOW[2])),
    "pnl": (PositionAttention, (HIGH, LOW[1])),
    "pnl, stride": (PositionAttention, (HIGH, LOW[2])),
    "mfa": (Aggregation, (HIGH, LOW[1])),
    "mfa, stride": (Aggregation, (HIGH, LOW[2])),
}
every = each("name", BLOCKS)


def filled(net, maps, seed="attention"):
    """Variables of which none is 0: a block as it starts passes its map on."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *maps, train=True))
    return nest(fill({k: v.shape for k, v in flatten(shapes).items()}, seed))


# --- The product --------------------------------------------------------------------------

# (q, n, c, d): places few, places many, one query, one channel.
SHAPES = [(3, 4, 9, 8), (9, 8, 3, 4), (1, 9, 5, 4), (9, 1, 5, 4), (6, 7, 1, 3), (2, 3, 1, 11)]


def made(q, n, c, d):
    return tuple(R.normal(size=(2, *shape)) for shape in ((q, c), (n, c), (n, d)))


def shapes_within(*arrays):
    jaxpr = jax.make_jaxpr(attend)(*arrays)
    return {v.aval.shape for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars}


@each("shape", SHAPES)
def test_attend_is_the_product_in_either_order(shape):
    theta, phi, g = arrays = made(*shape)
    q, n = shape[:2]
    expected = np.zeros((2, q, shape[3]))
    for image, i, j in itertools.product(range(2), range(q), range(n)):
        expected[image, i] += theta[image, i] @ phi[image, j] / n * g[image, j]
    with jax.enable_x64(True):
        np.testing.assert_allclose(attend(*map(jnp.asarray, arrays)), expected, rtol=1e-12)


@each("shape", SHAPES)
def test_attend_multiplies_as_little_as_it_can(shape):
    q, n, c, d = shape
    costs = {(2, q, n): q * n * c + q * n * d, (2, c, d): n * c * d + q * c * d}
    assert len(costs) == 2
    cheap, dear = sorted(costs, key=costs.get)
    assert costs[cheap] < costs[dear]
    found = shapes_within(*made(*shape))
    assert cheap in found and dear not in found


def test_both_orders_occur():
    orders = {(2, q, n) in shapes_within(*made(q, n, c, d)) for q, n, c, d in SHAPES}
    assert orders == {True, False}


def test_deen_s_first_block_needs_no_matrix_of_positions():
    """At 384 x 192: 2304 positions of 64 channels after the view."""
    x = jax.ShapeDtypeStruct((2, 2304, 64), jnp.float32)
    assert (2, 2304, 2304) not in shapes_within(x, x, x)


@each("wrong", [0, 1, 2])
def test_attend_refuses_shapes_that_do_not_fit(wrong):
    shapes = [(2, 3, 4), (2, 5, 4), (2, 5, 6)]
    assert attend(*map(jnp.zeros, shapes)).shape == (2, 3, 6)
    for axis in range(3 if wrong < 2 else 2):
        if (wrong, axis) in ((0, 1),):  # any number of queries
            continue
        changed = [list(s) for s in shapes]
        changed[wrong][axis] += 1
        with pytest.raises(ValueError, match=r"\[N, q, c\], \[N, n, c\]"):
            attend(*map(jnp.zeros, map(tuple, changed)))


# --- The view -----------------------------------------------------------------------------


@each("shape", [(2, 4, 3, 5), (2, 6, 1, 2), (1, 3, 2, 4), (2, 5, 6, 3)])
def test_fold_is_a_view_of_memory(shape):
    """Of [N, c, h, w] as [N, 2 c, h w / 2]; for odd heights too."""
    x = R.normal(size=shape).astype(np.float32)
    n, h, w, c = shape
    memory = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    expected = memory.reshape(n, 2 * c, h * w // 2).transpose(0, 2, 1)
    folded = fold_halves(jnp.asarray(x))
    np.testing.assert_array_equal(folded, expected)
    np.testing.assert_array_equal(unfold_halves(folded, shape[1:]), x)
    back = np.ascontiguousarray(expected.transpose(0, 2, 1)).reshape(n, c, h, w)
    np.testing.assert_array_equal(unfold_halves(folded, shape[1:]), back.transpose(0, 2, 3, 1))


@pytest.mark.torch
@each("shape", [(2, 4, 3, 5), (1, 3, 2, 4)])
def test_fold_is_torch_s_view(shape):
    torch = pytest.importorskip("torch")
    x = R.normal(size=shape).astype(np.float32)
    view = torch.tensor(x).movedim(-1, 1).contiguous().view(len(x), 2 * shape[-1], -1)
    np.testing.assert_array_equal(fold_halves(jnp.asarray(x)), view.transpose(1, 2).numpy())


def test_folding_joins_a_place_with_that_half_a_map_below():
    x = jnp.asarray(HIGH)
    folded = fold_halves(x).reshape(3, 2, 3, 16)
    for y, column, k in itertools.product(range(2), range(3), range(8)):
        np.testing.assert_array_equal(folded[:, y, column, 2 * k], x[:, y, column, k])
        np.testing.assert_array_equal(folded[:, y, column, 2 * k + 1], x[:, y + 2, column, k])


def test_an_odd_number_of_places_cannot_be_halved():
    with pytest.raises(ValueError, match="3 x 5 has an odd number of places"):
        fold_halves(jnp.zeros((2, 3, 5, 4)))


# --- The blocks ---------------------------------------------------------------------------


def point(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def ended(x, y, params, stats):
    """x + BN(W(y)) with running statistics."""
    y = point(y, params["w"])
    scale = params["bn"]["scale"] / np.sqrt(stats["bn"]["var"] + 1e-5)
    return x + (y - stats["bn"]["mean"]) * scale + params["bn"]["bias"]


def nonlocal_by_loops(x, p, s):
    rows = x.reshape(-1, x.shape[-1])
    theta, phi, g = (point(rows, p[k]) for k in ("theta", "phi", "g"))
    y = [sum(t @ f * v for f, v in zip(phi, g, strict=True)) / len(rows) for t in theta]
    return ended(x, np.array(y).reshape(*x.shape[:2], -1), p, s)


def channel_by_loops(high, low, p, s):
    """Channel i of theta meets channel j of phi over all places."""
    step = low.shape[0] // high.shape[0]
    theta, phi, g = (
        point(high, p["theta"]),
        point(low[::step, ::step], p["phi"]),
        point(low, p["g"]),
    )
    c = low.shape[-1]
    y = np.zeros_like(low)
    for i, j in itertools.product(range(c), range(c)):
        y[..., i] += (theta[..., i] * phi[..., j]).sum() / c * g[..., j]
    return ended(high, y[::step, ::step], p, s)


def position_by_loops(high, low, p, s):
    """Query (y, x) is place (y, x) with the place half a map below it; keys are too."""

    def pairs(x):
        top, bottom = np.split(x, 2)
        return np.concatenate([top, bottom], -1).reshape(-1, 2 * x.shape[-1])

    theta, phi, g = pairs(point(high, p["theta"])), *(pairs(point(low, p[k])) for k in ("phi", "g"))
    y = np.array([sum(t @ f * v for f, v in zip(phi, g, strict=True)) / len(phi) for t in theta])
    half = y.shape[-1] // 2
    top, bottom = (y[:, k : k + half].reshape(-1, high.shape[1], half) for k in (0, half))
    return ended(high, np.concatenate([top, bottom]), p, s)


def aggregation_by_loops(high, low, p, s):
    x = channel_by_loops(high, low, p["channel"], s["channel"])
    return position_by_loops(x, low, p["position"], s["position"])


LOOPS = {
    NonLocal: nonlocal_by_loops,
    ChannelAttention: channel_by_loops,
    PositionAttention: position_by_loops,
    Aggregation: aggregation_by_loops,
}


@every
def test_by_loops(name):
    """An image at a time, with running statistics."""
    make, maps = BLOCKS[name]
    wide = jax.tree.map(np.float64, filled(make(), maps))
    with jax.enable_x64(True):
        apply = jax.jit(lambda *x: make().apply(*x, train=False))
        actual = np.asarray(apply(wide, *map(np.float64, maps)))
    for n in range(3):
        expected = LOOPS[make](
            *(np.float64(x[n]) for x in maps), wide["params"], wide["batch_stats"]
        )
        np.testing.assert_allclose(actual[n], expected, rtol=1e-10, atol=1e-10)
    assert np.abs(actual - maps[0]).max() > 0.1


@every
@each("train", [True, False])
def test_a_fresh_block_passes_its_map_on(name, train):
    make, maps = BLOCKS[name]
    net = make()
    variables = net.lazy_init(jax.random.key(1), *maps, train=True)
    apply = jax.jit(lambda v, *x: net.apply(v, *x, train=train, mutable=["batch_stats"])[0])
    y = apply(variables, *maps)
    np.testing.assert_array_equal(y, maps[0])


@every
def test_a_fresh_block_learns_its_scale_first_and_then_everything(name):
    make, maps = BLOCKS[name]
    target = jnp.asarray(R.normal(size=maps[0].shape), jnp.float32)

    @jax.jit
    def slopes(params, stats):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            y, _ = make().apply(variables, *maps, train=True, mutable=["batch_stats"])
            return (y * target).sum()

        return jax.grad(loss)(params)

    variables = make().lazy_init(jax.random.key(1), *maps, train=True)
    params, stats = variables["params"], variables["batch_stats"]
    first = {k: np.abs(g).max() for k, g in flatten(slopes(params, stats)).items()}
    assert all((v > 1e-3) == ("bn/" in k) for k, v in first.items()), first
    params = filled(make(), maps)["params"]
    then = {k: np.abs(g).max() for k, g in flatten(slopes(params, stats)).items()}
    # A shift in front of a batch normalization never learns.
    assert all((v > 1e-3) != k.endswith("w/bias") for k, v in then.items()), then


@each("name", ["cnl, stride", "mfa, stride"])
def test_a_stride_reads_every_second_place(name):
    """Of a map at twice the resolution channel attention sees a quarter; PNL sees it all."""
    make, (high, low) = BLOCKS[name]
    variables = filled(make(), (high, low))
    moved = low.copy()
    moved[:, 1::2] += 1
    moved[:, :, 1::2] += 1
    same = jax.jit(lambda x: make().apply(variables, high, x, train=False))
    equal = np.array_equal(same(moved), same(low))
    assert equal == (make is ChannelAttention)


@every
def test_images_do_not_meet(name):
    make, maps = BLOCKS[name]
    variables = filled(make(), maps)
    apply = jax.jit(lambda *x: make().apply(variables, *x, train=False))
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(apply(*(x[order] for x in maps)), apply(*maps)[order], atol=1e-5)


@every
def test_half_precision(name):
    make, maps = BLOCKS[name]
    variables = filled(make(), maps)
    half = [jnp.asarray(x, jnp.bfloat16) for x in maps]
    apply = jax.jit(lambda net, *x: net.apply(variables, *x, train=False), static_argnums=0)
    y, expected = apply(make(dtype=jnp.bfloat16), *half), apply(make(), *maps)
    assert y.dtype == jnp.bfloat16
    error = np.abs(np.asarray(y, np.float32) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


@each("size", [(5, 3), (8, 3), (12, 9), (2, 2)])
def test_channel_attention_refuses_maps_of_other_sizes(size):
    low = jnp.zeros((3, *size, 4))
    with pytest.raises(ValueError, match="one size or twice it"):
        ChannelAttention().init(jax.random.key(0), HIGH, low, train=True)


def test_channel_attention_takes_odd_maps_at_twice_the_resolution():
    """7 x 5 places at stride 2 are 4 x 3, as they are in a strided convolution."""
    low = R.normal(size=(3, 7, 5, 4)).astype(np.float32)
    variables = filled(ChannelAttention(), (HIGH, low))
    apply = jax.jit(lambda x: ChannelAttention().apply(variables, HIGH, x, train=False))
    np.testing.assert_allclose(apply(low), apply(low[:, ::2, ::2]), rtol=1e-6)


def test_convolutions_start_as_pytorch_s_do():
    """U(-b, b) with b = 1 / sqrt(inputs), biases too."""
    x = jax.ShapeDtypeStruct((2, 2, 2, 64), jnp.float32)
    params = NonLocal().lazy_init(jax.random.key(3), x, train=True)["params"]
    for name, inputs in (("theta", 64), ("phi", 64), ("g", 64), ("w", 32)):
        for leaf in ("kernel", "bias"):
            top = float(jnp.abs(params[name][leaf]).max()) * inputs**0.5
            assert 0.8 < top <= 1, (name, leaf, top)


# --- PyTorch ------------------------------------------------------------------------------


@functools.cache
def _block(name, dtype):
    """Once for both sources."""
    net, train = BLOCKS[CASES[name].kind][0](), CASES[name].options.get("train", True)

    def apply(variables, *maps):
        y, updated = net.apply(variables, *maps, train=train, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    def init(*maps):
        return net.init(jax.random.key(0), *maps, train=True)

    return module_outputs(name, init, apply, image_names(name), dtype)


RTOL = {"float32": 1e-5, "float64": 1e-11}


def _without_shifts(arrays):
    return {k: v for k, v in arrays.items() if not k.endswith("w/bias")}


@source_and_dtypes
def test_blocks_against_pytorch(source, dtypes):
    for name in cases("nonlocal", "cnl", "pnl", "mfa"):
        for dtype in dtypes:
            rtol = RTOL[dtype]
            actual, expected = _block(name, dtype), reference(name, source)
            if CASES[name].options.get("train", True):
                # A shift in front of a batch normalization: its gradient is what rounding leaves.
                shifts = [v for k, v in actual.items() if k.endswith("w/bias")]
                assert shifts and all(np.abs(v).max() < 100 * rtol for v in shifts), name
                actual, expected = _without_shifts(actual), _without_shifts(expected)
            store.compare(actual, expected, rtol=rtol, row=f"{name}, {dtype}")
