"""Generated features: a convolution as a product, branches, loops, gates, starts, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference.case import fill
from tests.support.reference.convert import flatten, nest
from vireid_jax.nets import expansion
from vireid_jax.nets.expansion import Expansion, spatial_convolution

R = np.random.default_rng(41)
F, G, SIDE = 16, 3, 5
MAPS = R.normal(size=(2, 4, 3, F)).astype(np.float32)
KINDS = {
    "deen": {},
    "sum": {"fuse": "sum"},
    "cbam": {"attention": "sequential"},
    "concat": {"attention": "concat", "fuse": "sum"},
}
every = pytest.mark.parametrize("kind", KINDS)


def net_of(kind, **options):
    return Expansion(**{"branches": G, "kernel": SIDE, "reduction": 2, **KINDS[kind], **options})


def filled(net, seed="expansion"):
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), MAPS))
    return nest(fill({k: v.shape for k, v in flatten(shapes).items()}, seed))


# One compilation for most tests.
APPLY = {kind: jax.jit(net_of(kind).apply) for kind in KINDS}
VARIABLES = {kind: filled(net_of(kind)) for kind in KINDS}


# --- The spatial convolution --------------------------------------------------------------


def convolved(x, kernel):
    """Place by place: [N, h, w, G, c] and [G, k, k, c] -> [N, h, w, G]."""
    _, h, w, _, _ = x.shape
    half = kernel.shape[1] // 2
    y = np.zeros(x.shape[:-1])
    for r, s, i, j in itertools.product(range(h), range(w), range(h), range(w)):
        a, b = i - r + half, j - s + half
        if 0 <= a < kernel.shape[1] and 0 <= b < kernel.shape[1]:
            y[:, r, s] += (x[:, i, j] * kernel[:, a, b]).sum(-1)
    return y


SIZES = [(4, 3, 9), (4, 3, 7), (4, 3, 5), (4, 3, 3), (6, 2, 5), (3, 4, 1), (1, 5, 3)]


@pytest.mark.parametrize("form", expansion.FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_spatial_convolution_by_loops(size, form):
    """Kernels larger than the map, as large, smaller, and of one place."""
    h, w, side = size
    x, kernel = R.normal(size=(2, h, w, G, 2)), R.normal(size=(G, side, side, 2))
    with jax.enable_x64(True):
        y = spatial_convolution(jnp.asarray(x), jnp.asarray(kernel), form=form)
        np.testing.assert_allclose(y, convolved(x, kernel), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 3, 9), (4, 3, 3), (6, 2, 5)], ids=str)
def test_spatial_convolution_has_one_gradient_in_both_forms(size):
    h, w, side = size
    x, kernel, along = (
        R.normal(size=s) for s in ((2, h, w, G, 2), (G, side, side, 2), (2, h, w, G))
    )
    found = {}
    with jax.enable_x64(True):
        for form in ("dense", "convolution"):

            def loss(x, kernel, form=form):
                return (along * spatial_convolution(x, kernel, form=form)).sum()

            slopes = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
            found[form] = [np.asarray(g) for g in slopes]
    for a, b in zip(*found.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    # Linear in each: the sum of slope times value is the loss twice.
    value = (along * convolved(x, kernel)).sum()
    for g, v in zip(found["dense"], (x, kernel), strict=True):
        np.testing.assert_allclose((g * v).sum(), value, rtol=1e-10)


@pytest.mark.parametrize(
    "h, w, side, dense",
    [
        (24, 12, 49, True),  # PDM at 384 x 192, and on RegDB below
        (48, 24, 49, True),
        (48, 25, 49, False),  # more than 1152 places
        (24, 12, 9, True),  # 81 of 288 places, more than a quarter
        (24, 12, 7, False),
    ],
)
def test_auto_takes_the_product_for_small_maps_and_large_kernels(h, w, side, dense):
    x = jax.ShapeDtypeStruct((1, h, w, 2, 2), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, side, side, 2), jnp.float32)
    jaxpr = str(jax.make_jaxpr(spatial_convolution)(x, kernel))
    assert ("conv_general_dilated" in jaxpr) != dense
    assert ("dot_general" in jaxpr) == dense


# --- A map and those made of it -----------------------------------------------------------


def gates_by_loops(y, p, branch):
    """Channel gate [c] and a function for the spatial gate [h, w, 1] of one map [h, w, c]."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def excited(pooled):
        return np.maximum(pooled @ p["channel_squeeze"][branch], 0) @ p["channel_excite"][branch]

    def spatial(y):
        pooled = np.stack([y.max(-1), y.mean(-1)], -1)[None, :, :, None]
        kernel = p["spatial_kernel"][branch, ..., 0][None]
        return sigmoid(convolved(pooled, kernel)[0] + p["spatial_bias"][branch])

    return sigmoid(excited(y.max((0, 1))) + excited(y.mean((0, 1)))), spatial


def made_by_loops(f, p, branch, fuse="mean", attention="none"):
    """One map [h, w, F] of one branch, eqs. (1) and (2)."""
    h, w, c = *f.shape[:2], F // 4
    y = np.zeros((h, w, c))
    for d in (1, 2, 3):
        kernel = p[f"dilated_{d}"]["kernel"][..., branch * c : (branch + 1) * c]
        for r, s, i, j in itertools.product(range(h), range(w), range(3), range(3)):
            a, b = r + d * (i - 1), s + d * (j - 1)
            if 0 <= a < h and 0 <= b < w:
                y[r, s] += f[a, b] @ kernel[i, j] / (3 if fuse == "mean" else 1)
    if attention != "none":
        by_channel, spatial = gates_by_loops(y, p, branch)
        gated = y * by_channel
        if attention == "sequential":
            y = y + gated * spatial(gated)
        else:
            y = np.concatenate([gated, y * spatial(y)], -1)
    return np.maximum(y, 0) @ p["expand_kernel"][branch] + p["expand_bias"][branch]


@every
def test_by_loops(kind):
    y = np.asarray(APPLY[kind](VARIABLES[kind], MAPS))
    assert y.shape == (2, 1 + G, 4, 3, F)
    params = jax.tree.map(np.float64, VARIABLES[kind]["params"])
    for n in range(2):
        np.testing.assert_array_equal(y[n, 0], MAPS[n])  # a map comes before what is made of it
        for branch in range(G):
            expected = made_by_loops(np.float64(MAPS[n]), params, branch, **KINDS[kind])
            scale = np.abs(expected).max()
            np.testing.assert_allclose(y[n, 1 + branch], expected, atol=1e-5 * scale)


def of_branch(path, x, branch):
    """The entries of a parameter that belong to one branch, as an index."""
    if "dilated" in path:
        return (..., slice(branch * F // 4, (branch + 1) * F // 4))
    return (branch,)


@every
def test_branches_are_independent(kind):
    """Other weights in one branch change that branch alone; every weight matters."""
    before = np.asarray(APPLY[kind](VARIABLES[kind], MAPS))
    flat = flatten(VARIABLES[kind])
    for path, x in flat.items():
        moved = x.copy()
        moved[of_branch(path, x, 1)] += 0.5
        after = np.asarray(APPLY[kind](nest({**flat, path: moved}), MAPS))
        same = [np.array_equal(after[:, b], before[:, b]) for b in range(1 + G)]
        assert same == [True, True, False, True], path


@every
def test_branches_in_another_order_give_rows_in_that_order(kind):
    order = np.array([2, 0, 1])
    moved = {}
    for path, x in flatten(VARIABLES[kind]).items():
        if "dilated" in path:
            moved[path] = x.reshape(*x.shape[:-1], G, -1)[..., order, :].reshape(x.shape)
        else:
            moved[path] = x[order]
    before, after = (np.asarray(APPLY[kind](v, MAPS)) for v in (VARIABLES[kind], nest(moved)))
    np.testing.assert_allclose(after[:, 1:], before[:, 1:][:, order], atol=1e-5)
    assert np.abs(before[:, 1] - before[:, 2]).max() > 0.1


@every
def test_images_do_not_meet(kind):
    one = APPLY[kind](VARIABLES[kind], MAPS[::-1])
    np.testing.assert_allclose(one[::-1], APPLY[kind](VARIABLES[kind], MAPS), atol=1e-5)


def with_leaves(kind, **values):
    """The filled variables with some leaves constant."""
    flat = flatten(VARIABLES[kind])
    for name, value in values.items():
        flat[f"params/{name}"] = np.full_like(flat[f"params/{name}"], value)
    return flat


def test_a_sum_is_three_times_a_mean():
    scaled = {k: 3 * v if "dilated" in k else v for k, v in flatten(VARIABLES["deen"]).items()}
    np.testing.assert_allclose(
        APPLY["sum"](VARIABLES["deen"], MAPS), APPLY["deen"](nest(scaled), MAPS), atol=1e-5
    )


def plain_of(flat, scale):
    """The variables without gates of those with gates, convolutions scaled."""
    gates = ("channel_", "spatial_")
    return nest(
        {
            k: scale * v if "dilated" in k else v
            for k, v in flat.items()
            if not k.split("/")[1].startswith(gates)
        }
    )


@pytest.mark.parametrize("bias, scale", [(-1e3, 1.0), (0.0, 1.25), (1e3, 1.5)])
def test_closed_half_open_and_open_gates(bias, scale):
    """CBAM goes around its input: y + y CA SA, with CA of 1/2 here and SA of 0, 1/2 and 1."""
    flat = with_leaves("cbam", channel_excite=0, spatial_kernel=0, spatial_bias=bias)
    expected = APPLY["deen"](plain_of(flat, scale), MAPS)
    np.testing.assert_allclose(APPLY["cbam"](nest(flat), MAPS), expected, atol=1e-5)


def test_concatenated_gates_see_the_same_map():
    """With both gates at 1/2 the two halves are alike and may share a kernel."""
    flat = with_leaves("concat", channel_excite=0, spatial_kernel=0, spatial_bias=0)
    half = flat["params/expand_kernel"][:, : F // 4]
    flat["params/expand_kernel"] = np.concatenate([half, half], 1)
    expected = plain_of({**flat, "params/expand_kernel": half}, 1.0)  # 1/2 + 1/2
    np.testing.assert_allclose(
        APPLY["concat"](nest(flat), MAPS), APPLY["sum"](expected, MAPS), atol=1e-5
    )


@every
def test_gradients_are_finite_and_reach_every_weight(kind):
    along = R.normal(size=(2, 1 + G, 4, 3, F)).astype(np.float32)

    @jax.jit
    def slopes(variables, x):
        return jax.grad(lambda v, x: (along * net_of(kind).apply(v, x)).sum(), (0, 1))(variables, x)

    by_weight, by_map = slopes(VARIABLES[kind], MAPS)
    for path, g in flatten(by_weight).items():
        for branch in range(G):
            part = np.asarray(g)[of_branch(path, g, branch)]
            assert np.isfinite(part).all() and np.abs(part).max() > 1e-4, path
    assert np.isfinite(by_map).all()
    # Maps of one value everywhere: all places are the largest.
    by_weight, by_map = slopes(VARIABLES[kind], np.zeros_like(MAPS))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((by_weight, by_map)))


@every
def test_half_precision(kind):
    net = net_of(kind, dtype=jnp.bfloat16)
    y = jax.jit(net.apply)(VARIABLES[kind], jnp.asarray(MAPS, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    expected = APPLY[kind](VARIABLES[kind], MAPS)
    error = np.abs(np.asarray(y, np.float32) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


def test_starts():
    """He normal by inputs for the convolutions, PyTorch's own for gates and biases; G draws."""
    net = net_of("cbam", kernel=9, reduction=1)
    maps = jax.ShapeDtypeStruct((1, 4, 4, 64), jnp.float32)
    params = net.lazy_init(jax.random.key(5), maps)["params"]
    for d in expansion.DILATIONS:
        np.testing.assert_allclose(
            params[f"dilated_{d}"]["kernel"].std(), np.sqrt(2 / (9 * 64)), rtol=0.05
        )
    np.testing.assert_allclose(params["expand_kernel"].std((1, 2)), np.sqrt(2 / 16), rtol=0.1)
    bounds = {"channel_squeeze": 16, "channel_excite": 16, "spatial_kernel": 2 * 81}
    for name, inputs in {**bounds, "expand_bias": 16, "spatial_bias": 2 * 81}.items():
        x = np.abs(np.asarray(params[name])) * np.sqrt(inputs)
        assert x.max() <= 1 + 1e-6 and (x.max() > 0.9 or name == "spatial_bias")
        assert not np.array_equal(x[0], x[1])


def test_the_channel_gate_keeps_a_channel_of_narrow_maps():
    """16 of PDM's code, of 4 channels in a small network: one, not none."""
    net = Expansion(attention="sequential", kernel=3)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), MAPS))["params"]
    assert params["channel_squeeze"].shape == (2, 4, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fuse": "max"}, r"expansion_fuse is 'max', expected one of \['mean', 'sum'\]"),
        ({"attention": "cbam"}, "attention is 'cbam', expected one of .*sequential"),
        ({"form": "fast"}, "attention_form is 'fast', expected one of .*dense"),
        ({"kernel": 4}, "attention_kernel is 4, expected an odd number"),
        ({"kernel": 0}, "attention_kernel is 0"),
        ({"kernel": -3}, "attention_kernel is -3"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Expansion(**options).init(jax.random.key(0), MAPS)
