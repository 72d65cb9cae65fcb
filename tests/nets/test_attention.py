"""Attention without softmax: orders of a product, folded maps, the blocks by loops, their start."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import image_names, module_outputs, reference, source_and_dtypes, weights
from tests.support.plain import plainly
from tests.support.reference import store
from tests.support.reference.convert import flatten
from tests.support.reference.inputs import CASES, cases
from tests.support.rows import each
from vireid_jax.nets import init
from vireid_jax.nets.attention import (
    Aggregation,
    ChannelAttention,
    NonLocal,
    PositionAttention,
    attend,
    fold_halves,
    unfold_halves,
)

KEY = jax.random.key(0)
R = np.random.default_rng(37)
HIGH = R.normal(size=(3, 4, 3, 8)).astype(np.float32)
SAME = R.normal(size=(3, 4, 3, 4)).astype(np.float32)
TWICE = R.normal(size=(3, 8, 6, 4)).astype(np.float32)  # phi and w have stride 2
BLOCKS = {
    "nonlocal": (NonLocal, (HIGH,)),
    "nonlocal, half": (functools.partial(NonLocal, "half"), (HIGH,)),
    "cnl": (ChannelAttention, (HIGH, SAME)),
    "cnl, stride": (ChannelAttention, (HIGH, TWICE)),
    "pnl": (PositionAttention, (HIGH, SAME)),
    "pnl, stride": (PositionAttention, (HIGH, TWICE)),
    "mfa": (Aggregation, (HIGH, SAME)),
    "mfa, stride": (Aggregation, (HIGH, TWICE)),
}
every = each("name", BLOCKS)


def filled(net, maps):
    """Variables of which none is 0: a block as it starts passes its map on."""
    return weights(lambda: net.init(KEY, *maps, train=True), "attention", "float32")


def fresh(net, maps):
    return init.start(functools.partial(net.init, train=True), KEY, *maps)


@functools.cache
def applied(name):
    """Running statistics, in float64: one program a block."""
    make, _ = BLOCKS[name]
    jitted = jax.jit(lambda *x: make().apply(*x, train=False))

    def run(variables, *maps):
        with jax.enable_x64(True), plainly():
            return np.asarray(jitted(*jax.tree.map(np.float64, (variables, *maps))))

    return run


# --- The product --------------------------------------------------------------------------

# (q, n, c, d): places few, places many, one query, one channel.
SHAPES = [(3, 4, 9, 8), (9, 8, 3, 4), (1, 9, 5, 4), (6, 7, 1, 3)]


def shapes_within(*arrays):
    jaxpr = jax.make_jaxpr(attend)(*arrays)
    return {v.aval.shape for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars}


@each("shape", SHAPES)
def test_attend_is_the_product_in_the_cheaper_order(shape):
    q, n, c, d = shape
    arrays = theta, phi, g = [R.normal(size=(2, *s)) for s in ((q, c), (n, c), (n, d))]
    expected = np.zeros((2, q, d))
    for image, i, j in itertools.product(range(2), range(q), range(n)):
        expected[image, i] += theta[image, i] @ phi[image, j] / n * g[image, j]
    with jax.enable_x64(True):
        np.testing.assert_allclose(attend(*map(jnp.asarray, arrays)), expected, rtol=1e-12)
    costs = {(2, q, n): q * n * c + q * n * d, (2, c, d): n * c * d + q * c * d}
    cheap, dear = sorted(costs, key=costs.get)
    found = shapes_within(*arrays)
    assert cheap in found and dear not in found


def test_deen_s_first_block_needs_no_matrix_of_positions():
    """At 384 x 192: 2304 positions of 64 channels after the view; few positions do have one."""
    x = jax.ShapeDtypeStruct((2, 2304, 64), jnp.float32)
    assert (2, 2304, 2304) not in shapes_within(x, x, x)
    x = jax.ShapeDtypeStruct((2, 23, 64), jnp.float32)
    assert (2, 23, 23) in shapes_within(x, x, x)


def test_attend_refuses_shapes_that_do_not_fit():
    good = [(2, 3, 4), (2, 5, 4), (2, 5, 6)]
    assert jax.eval_shape(attend, *map(jnp.zeros, good)).shape == (2, 3, 6)
    for wrong, axis in ((0, 0), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)):
        changed = [list(s) for s in good]
        changed[wrong][axis] += 1
        with pytest.raises(ValueError, match=r"\[N, q, c\], \[N, n, c\]"):
            attend(*map(jnp.zeros, map(tuple, changed)))


# --- The view -----------------------------------------------------------------------------


@each("shape", [(2, 4, 3, 5), (2, 6, 1, 2), (1, 3, 2, 4), (2, 5, 6, 3)])
def test_fold_is_a_view_of_memory(shape):
    """Of [N, c, h, w] as [N, 2 c, h w / 2], which is torch's; for odd heights too."""
    x = R.normal(size=shape).astype(np.float32)
    n, h, w, c = shape
    memory = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    folded = fold_halves(jnp.asarray(x))
    np.testing.assert_array_equal(folded, memory.reshape(n, 2 * c, h * w // 2).transpose(0, 2, 1))
    np.testing.assert_array_equal(unfold_halves(folded, shape[1:]), x)


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
    theta, g = point(high, p["theta"]), point(low, p["g"])
    phi = point(low[::step, ::step], p["phi"])
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
def test_by_loops_image_by_image(name):
    make, maps = BLOCKS[name]
    by_loops, variables = LOOPS[getattr(make, "func", make)], filled(make(), maps)
    actual = applied(name)(variables, *maps)
    wide = jax.tree.map(np.float64, variables)
    for n in range(3):
        image = [np.float64(x[n]) for x in maps]
        expected = by_loops(*image, wide["params"], wide["batch_stats"])
        np.testing.assert_allclose(actual[n], expected, rtol=1e-10, atol=1e-10)
    assert np.abs(actual - maps[0]).max() > 0.1


@pytest.mark.slow
@every
def test_a_fresh_block_passes_its_map_on_and_learns_its_scale_first(name):
    make, maps = BLOCKS[name]
    target = R.normal(size=maps[0].shape).astype(np.float32)

    @jax.jit
    def slopes(params, stats):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            y, _ = make().apply(variables, *maps, train=True, mutable=["batch_stats"])
            return (y * target).sum(), y

        return jax.grad(loss, has_aux=True)(params)

    start = fresh(make(), maps)
    np.testing.assert_array_equal(applied(name)(start, *maps), maps[0])
    with plainly():
        first, y = slopes(start["params"], start["batch_stats"])
        then, _ = slopes(filled(make(), maps)["params"], start["batch_stats"])
    np.testing.assert_array_equal(y, maps[0])
    first, then = ({k: np.abs(g).max() for k, g in flatten(x).items()} for x in (first, then))
    assert all((v > 1e-3) == ("bn/" in k) for k, v in first.items()), first
    # A shift in front of a batch normalization never learns.
    assert all((v > 1e-3) != k.endswith("w/bias") for k, v in then.items()), then


@pytest.mark.slow
@each("name", ["nonlocal", "mfa, stride"])
def test_half_precision(name):
    make, maps = BLOCKS[name]
    variables = filled(make(), maps)
    half = [jnp.asarray(x, jnp.bfloat16) for x in maps]
    y = jax.jit(lambda *x: make(dtype=jnp.bfloat16).apply(variables, *x, train=False))(*half)
    expected = applied(name)(variables, *maps)
    assert y.dtype == jnp.bfloat16
    error = np.abs(np.asarray(y, np.float32) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


def test_channel_attention_takes_maps_of_one_size_or_twice_it():
    """7 x 5 places at stride 2 are 4 x 3, as they are in a strided convolution."""
    low = R.normal(size=(3, 7, 5, 4)).astype(np.float32)
    variables = filled(ChannelAttention(), (HIGH, low))
    apply = functools.partial(ChannelAttention().apply, variables, HIGH, train=False)
    np.testing.assert_allclose(apply(low), apply(low[:, ::2, ::2]), rtol=1e-6)
    for size in ((5, 3), (8, 3), (12, 9), (2, 2)):
        with pytest.raises(ValueError, match="one size or twice it"):
            apply(jnp.zeros((3, *size, 4)))


def test_a_block_as_released_has_one_inner_channel():
    """reduc_ratio // reduc_ratio, where the block's paper has half of the map's channels."""
    for net, inner in ((NonLocal(), 1), (NonLocal("half"), 4)):
        shapes = jax.tree.map(np.shape, filled(net, (HIGH,))["params"])
        assert all(shapes[k]["kernel"] == (8, inner) for k in ("theta", "phi", "g"))
        assert shapes["w"]["kernel"] == (inner, 8)


def test_convolutions_start_as_pytorch_s_do():
    """U(-b, b) with b = 1 / sqrt(inputs), biases too."""
    params = fresh(NonLocal("half"), [jax.ShapeDtypeStruct((2, 2, 2, 64), jnp.float32)])["params"]
    for name, inputs in (("theta", 64), ("phi", 64), ("g", 64), ("w", 32)):
        for leaf in ("kernel", "bias"):
            top = float(np.abs(params[name][leaf]).max()) * inputs**0.5
            assert 0.8 < top <= 1, (name, leaf, top)


# --- PyTorch ------------------------------------------------------------------------------


@functools.cache
def _block(name, dtype):
    """Once for both sources."""
    options = {"train": True, **CASES[name].options}
    train = options.pop("train")
    options.pop("stride", None)  # follows from the maps
    net = BLOCKS[CASES[name].kind][0](**options)

    def apply(variables, *maps):
        y, updated = net.apply(variables, *maps, train=train, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    def initialize(*maps):
        return net.init(KEY, *maps, train=True)

    return module_outputs(name, initialize, apply, image_names(name), dtype)


@source_and_dtypes
def test_blocks_against_pytorch(source, dtypes):
    for name in cases("nonlocal", "cnl", "pnl", "mfa"):
        for dtype in dtypes:
            rtol = {"float32": 1e-5, "float64": 1e-11}[dtype]
            faint = ()
            if name == "nonlocal" and dtype == "float32":
                # One inner channel: a factor of it is taken out by the normalization, and the
                # other gradients are small differences, too: 2e-5. In float64 all have 1e-11.
                rtol, faint = 1e-4, ("w/kernel",)
            actual, expected = _block(name, dtype), reference(name, source)
            if CASES[name].options.get("train", True):
                # A shift in front of a batch normalization: its gradient is what rounding leaves.
                shifts = [v for k, v in actual.items() if k.endswith("w/bias")]
                assert shifts and all(np.abs(v).max() < 100 * rtol for v in shifts), name
                actual, expected = (
                    {k: v for k, v in arrays.items() if not k.endswith("w/bias")}
                    for arrays in (actual, expected)
                )
            store.compare(actual, expected, rtol=rtol, row=f"{name}, {dtype}", faint=faint)
