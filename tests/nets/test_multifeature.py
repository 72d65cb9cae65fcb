"""What DEEN's and PDM's network is made of: expansion (MFGM), prototypes (PLM) and SimAM."""

import functools
import itertools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import module_outputs, reference, source_and_dtypes, weights
from tests.support.plain import plainly
from tests.support.reference import store
from tests.support.reference.convert import flatten, nest
from tests.support.reference.inputs import CASES, cases
from tests.support.rows import each
from vireid_jax.methods.pdm.losses import heterogeneity
from vireid_jax.nets import init, multifeature
from vireid_jax.nets.multifeature import Expansion, Prototypes, simam, spatial_convolution

R = np.random.default_rng(41)
F, G, SIDE = 16, 3, 5
MAPS = R.normal(size=(2, 4, 3, F)).astype(np.float32)
KINDS = {
    "deen": {},
    "sum": {"fuse": "sum"},
    "cbam": {"attention": "sequential"},
    "concat": {"attention": "concat", "fuse": "sum"},
}
every = each("kind", KINDS)
ALONG = R.normal(size=(2, 1 + G, 4, 3, F)).astype(np.float32)
KEY = jax.random.key(0)


def net_of(kind, **options):
    return Expansion(**{"branches": G, "kernel": SIDE, "reduction": 2, **KINDS[kind], **options})


def filled(kind):
    net = net_of(kind)
    return weights(lambda: net.init(KEY, MAPS), "expansion", "float32")


VARIABLES = {kind: filled(kind) for kind in KINDS}


@functools.cache
def compiled(kind):
    """The maps, and the slopes along some direction: one program for most tests."""

    def run(variables, x):
        y, back = jax.vjp(net_of(kind).apply, variables, x)
        return y, back(ALONG)

    return jax.jit(run)


def ran(kind, variables, x=MAPS):
    with plainly():
        y, slopes = compiled(kind)(variables, x)
    return np.asarray(y), slopes


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


@pytest.mark.slow
@each("h, w, side", [(4, 3, 9), (4, 3, 5), (4, 3, 3), (6, 2, 5), (3, 4, 1)])
def test_spatial_convolution_by_loops_in_both_forms(h, w, side):
    """Kernels larger than the map, smaller, and of one place; slopes of the first and third."""
    x, kernel = R.normal(size=(2, h, w, G, 2)), R.normal(size=(G, side, side, 2))
    along, expected = R.normal(size=(2, h, w, G)), convolved(x, kernel)
    slopes = []
    for form in ("dense", "convolution"):

        def run(x, kernel, form=form):
            y, back = jax.vjp(lambda *a: spatial_convolution(*a, form=form), x, kernel)
            return y, back(along)

        with jax.enable_x64(True), plainly():
            y, found = jax.tree.map(np.asarray, jax.jit(run)(x, kernel))
        np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12, err_msg=form)
        # Linear in each: slope times value is the result along the direction.
        for g, v in zip(found, (x, kernel), strict=True):
            np.testing.assert_allclose((g * v).sum(), (along * expected).sum(), rtol=1e-9)
        slopes.append(found)
    for a, b in zip(*slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@each(
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


@pytest.mark.slow
@every
def test_by_loops(kind):
    y, _ = ran(kind, VARIABLES[kind])
    assert y.shape == (2, 1 + G, 4, 3, F)
    params = jax.tree.map(np.float64, VARIABLES[kind]["params"])
    for n in range(2):
        np.testing.assert_array_equal(y[n, 0], MAPS[n])  # a map comes before what is made of it
        for branch in range(G):
            expected = made_by_loops(np.float64(MAPS[n]), params, branch, **KINDS[kind])
            scale = np.abs(expected).max()
            np.testing.assert_allclose(y[n, 1 + branch], expected, atol=1e-5 * scale)


def of_branch(path, branch):
    """The entries of a parameter that belong to one branch, as an index."""
    if "dilated" in path:
        return (..., slice(branch * F // 4, (branch + 1) * F // 4))
    return (branch,)


@every
def test_branches_are_independent_and_every_weight_matters(kind):
    """Other weights in one branch change that branch alone; slopes are finite and reach all."""
    before, (by_weight, by_map) = ran(kind, VARIABLES[kind])
    flat, slopes = flatten(VARIABLES[kind]), flatten(by_weight)
    for path, x in flat.items():
        moved = np.array(x)
        moved[of_branch(path, 1)] += 0.5
        after, _ = ran(kind, nest({**flat, path: moved}))
        same = [np.array_equal(after[:, b], before[:, b]) for b in range(1 + G)]
        assert same == [True, True, False, True], path
        for branch in range(G):
            part = np.asarray(slopes[path])[of_branch(path, branch)]
            assert np.isfinite(part).all() and np.abs(part).max() > 1e-4, path
    assert np.isfinite(by_map).all()
    # Maps of one value everywhere: all places are the largest.
    _, slopes = ran(kind, VARIABLES[kind], np.zeros_like(MAPS))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_half_precision():
    for kind in KINDS:
        half = jax.ShapeDtypeStruct(MAPS.shape, jnp.bfloat16)
        net = net_of(kind, dtype=jnp.bfloat16)
        assert jax.eval_shape(net.apply, VARIABLES[kind], half).dtype == jnp.bfloat16, kind
    y = jax.jit(net.apply)(VARIABLES[kind], jnp.asarray(MAPS, jnp.bfloat16))
    expected, _ = ran(kind, VARIABLES[kind])
    error = np.abs(np.asarray(y, np.float32) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


def test_starts():
    """He normal by inputs for the convolutions, PyTorch's own for gates and biases; G draws."""
    net = net_of("cbam", kernel=9, reduction=1)
    maps = jax.ShapeDtypeStruct((1, 4, 4, 64), jnp.float32)
    params = jax.tree.map(np.asarray, init.start(net.init, jax.random.key(5), maps)["params"])
    for d in multifeature.DILATIONS:
        spread = params[f"dilated_{d}"]["kernel"].std()
        np.testing.assert_allclose(spread, np.sqrt(2 / (9 * 64)), rtol=0.05)
    np.testing.assert_allclose(params["expand_kernel"].std((1, 2)), np.sqrt(2 / 16), rtol=0.1)
    bounds = {"channel_squeeze": 16, "channel_excite": 16, "spatial_kernel": 2 * 81}
    for name, inputs in {**bounds, "expand_bias": 16, "spatial_bias": 2 * 81}.items():
        x = np.abs(params[name]) * np.sqrt(inputs)
        assert x.max() <= 1 + 1e-6 and (x.max() > 0.9 or name == "spatial_bias")
        assert not np.array_equal(x[0], x[1])


def test_the_channel_gate_keeps_a_channel_of_narrow_maps():
    """16 of PDM's code, of 4 channels in a small network: one, not none."""
    net = Expansion(attention="sequential", kernel=3)
    params = jax.eval_shape(lambda: net.init(KEY, MAPS))["params"]
    assert params["channel_squeeze"].shape == (2, 4, 1)


def test_errors():
    for options, message in (
        ({"fuse": "max"}, r"fuse is 'max', expected one of \['mean', 'sum'\]"),
        ({"attention": "cbam"}, "attention is 'cbam', expected one of .*sequential"),
        ({"kernel": 4}, "kernel is 4, expected an odd number"),
        ({"kernel": 0}, "kernel is 0"),
        ({"kernel": -3}, "kernel is -3"),
    ):
        with pytest.raises(ValueError, match=message):
            Expansion(**options).init(KEY, MAPS)


# --- Prototypes ---------------------------------------------------------------------------

COUNT, WIDTH = 4, 6
PLACES = R.normal(size=(3, 4, 2, WIDTH)).astype(np.float32)
PLM = Prototypes(COUNT)
pooled = jax.jit(PLM.apply)
PARAMS = weights(lambda: PLM.init(KEY, PLACES), "prototypes", "float32")["params"]


def parts(maps=PLACES, **params):
    return pooled({"params": {**PARAMS, **params}}, maps)


def test_prototypes_by_loops():
    """Eqs. (6) to (8), place by place; the map by rows, from above."""
    found = parts()
    assert found.features.shape == (3, COUNT, WIDTH) and found.similarity.shape == (3, COUNT, 8)
    for n in range(3):
        for i, p in enumerate(PARAMS["prototypes"]):
            part = np.zeros(WIDTH)
            for j in range(8):
                at, e = PLACES[n, j // 2, j % 2], PARAMS["positions"][j]
                logit = p @ (at + e)
                s = 1 / (1 + np.exp(-logit))
                part += s * at / 8
                np.testing.assert_allclose(found.logits[n, i, j], logit, atol=1e-5)
                np.testing.assert_allclose(found.similarity[n, i, j], s, atol=1e-6)
            np.testing.assert_allclose(found.features[n, i], part, atol=1e-5)


def test_positions_choose_places_and_are_not_pooled():
    black = parts(np.zeros_like(PLACES))
    assert not black.features.any() and np.ptp(np.asarray(black.similarity)) > 0.1


def test_parts_follow_prototypes_and_images():
    order = np.array([2, 0, 3, 1])
    moved = parts(PLACES[::-1], prototypes=PARAMS["prototypes"][order])
    for a, b in zip(moved, parts(), strict=True):
        np.testing.assert_allclose(a[::-1], b[:, order], atol=1e-6)


def test_a_starting_part_is_about_half_the_average():
    maps = np.maximum(R.normal(size=(2, 24, 12, 64)), 0).astype(np.float32)
    net = Prototypes()
    variables = init.start(net.init, KEY, maps)
    for name, count in (("prototypes", 10), ("positions", 288)):
        x = variables["params"][name]
        assert x.shape == (count, 64)
        np.testing.assert_allclose(x.std(), np.sqrt(2 / 64), rtol=0.05)
    parts = jax.jit(net.apply)(variables, maps).features
    ratio = np.asarray(parts) / maps.mean((1, 2))[:, None]
    np.testing.assert_allclose(ratio.mean(), 0.5, atol=0.1)


@each("form", ["code_rms", "cos_min"])
def test_alike_and_saturated_similarities_have_finite_gradients(form):
    """Maps of two equal prototypes are the same, and maps of large ones are 1 everywhere."""

    @jax.jit
    def slopes(prototypes, maps):
        def loss(params, maps):
            found = PLM.apply({"params": params}, maps)
            return heterogeneity(found.similarity, found.logits, form=form)

        return jax.grad(loss, (0, 1))({**PARAMS, "prototypes": prototypes}, maps)

    alike = np.array(PARAMS["prototypes"])
    alike[1] = alike[0]
    found = jax.tree.leaves(slopes(alike, PLACES))
    assert all(np.isfinite(g).all() for g in found) and any(g.any() for g in found)
    large = 1e4 + np.arange(COUNT * WIDTH, dtype=np.float32).reshape(COUNT, WIDTH)
    ahead = np.ones_like(PLACES)
    assert (parts(ahead, prototypes=large).similarity == 1).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(slopes(large, ahead)))


def test_prototypes_of_half_precision_are_widened():
    half = jnp.asarray(PLACES, jnp.bfloat16)
    found = parts(half)
    for a, b in zip(found, parts(half.astype(jnp.float32)), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(found.features, parts().features, atol=0.02)


@each("shape", [(3, 4, 3, WIDTH), (3, 4, 2, WIDTH + 1)])
def test_a_map_of_another_size_is_refused(shape):
    """The table of positions is that of one image size."""
    with pytest.raises(flax.errors.ScopeParamShapeError):
        PLM.apply({"params": PARAMS}, np.zeros(shape))


# --- SimAM --------------------------------------------------------------------------------

LEAST = 1 / (1 + np.exp(-0.5))  # 0.622

GATED = R.normal(size=(3, 4, 5, 2)).astype(np.float32) + 0.5
gated = jax.jit(simam)


def test_simam_by_loops():
    expected = np.zeros(GATED.shape)
    for n in range(3):
        for f in range(2):
            x = GATED[n, :, :, f].astype(float)
            mean = sum(x.ravel()) / 20
            total = sum((v - mean) ** 2 for v in x.ravel())
            for at in np.ndindex(4, 5):
                energy = (x[at] - mean) ** 2 / (4 * (total / 19 + 1e-4)) + 0.5
                expected[n, *at, f] = x[at] / (1 + np.exp(-energy))
    np.testing.assert_allclose(gated(GATED), expected, rtol=1e-5)


def test_the_gate_of_flat_maps_and_of_a_single_place():
    """No variance, and none to be estimated: the lowest gate, and finite gradients."""
    for x in (np.full((2, 3, 3, 2), 0.7, np.float32), R.normal(size=(2, 1, 1, 3))):
        x = np.float32(x)
        np.testing.assert_allclose(gated(x), LEAST * x, rtol=1e-6)
        slope = jax.jit(jax.grad(lambda x: simam(x).sum()))(x)
        np.testing.assert_allclose(slope, np.full_like(x, LEAST), rtol=1e-5)


def test_simam_in_half_precision():
    half = jnp.asarray(GATED, jnp.bfloat16)
    y = gated(half)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(gated(half.astype(jnp.float32)))
    np.testing.assert_allclose(np.asarray(y, np.float32), wide, rtol=2**-8)


# --- PyTorch ------------------------------------------------------------------------------


@functools.cache
def _outputs(name, dtype):
    """Once for both sources."""
    kind, options = CASES[name].kind, CASES[name].options
    if kind == "simam":
        return module_outputs(name, lambda x: {}, lambda _, x: (simam(x), {}), "maps", dtype)
    net = {"expansion": Expansion, "plm": Prototypes}[kind](**options)

    def apply(variables, maps):
        y = net.apply(variables, maps)
        return (y.reshape(-1, *y.shape[2:]) if kind == "expansion" else jnp.concatenate(y, -1)), {}

    return module_outputs(name, lambda x: net.init(KEY, x), apply, "maps", dtype)


@source_and_dtypes
def test_modules_against_pytorch(source, dtypes):
    rtol = {"float32": 1e-5, "float64": 1e-11}
    for name in cases("expansion", "plm", "simam"):
        for dtype in dtypes:
            found, row = _outputs(name, dtype), f"{name}, {dtype}"
            store.compare(found, reference(name, source), rtol=rtol[dtype], row=row)
