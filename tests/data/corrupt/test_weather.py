"""Weather by its geometry: cover, symmetry, ranges, and a plasma by plain loops."""

import math

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.data.corrupt import SEVERITIES, ops
from vireid_jax.data.corrupt.weather import TEXTURES, ice

from .pictures import flat, run


def plasma_by_loop(size, decay, rng):
    grid, width = [[0.0]], 1.0
    while len(grid) < size:
        n = len(grid)
        shake = (rng.random((3, n, n), dtype=np.float32) * 2.0 - 1) * width
        finer = [[0.0] * (2 * n) for _ in range(2 * n)]
        for i in range(n):
            for j in range(n):
                finer[2 * i][2 * j] = grid[i][j]
                corners = [grid[(i + a) % n][(j + b) % n] for a in (0, 1) for b in (0, 1)]
                finer[2 * i + 1][2 * j + 1] = sum(corners) / 4 + shake[0, i, j]
        m = 2 * n
        for i in range(m):
            for j in range(m):
                if (i + j) % 2:
                    around = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
                    # Neighbors of an edge's middle are two nodes and two centers, all known.
                    mean = sum(finer[a % m][b % m] for a, b in around) / 4
                    finer[i][j] = mean + shake[1 if i % 2 == 0 else 2, i // 2, j // 2]
        grid, width = finer, width / decay**2
    grid = np.array(grid)
    return (grid - grid.min()) / (grid.max() - grid.min())


@each("decay", [1.4, 2.0])
def test_plasma_is_diamond_square(decay):
    out = ops.plasma((16, 16), decay, np.random.default_rng(0))
    expected = plasma_by_loop(16, decay, np.random.default_rng(0))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert out.min() == 0 and out.max() == 1


@each(("severity", "strength"), list(enumerate([1.5, 2, 2.5, 2.5, 3], 1)))
def test_fog_adds_cloud_and_dims(severity, strength):
    image = flat(0.2)
    image[:10] = 0.8
    out = run("fog", image, severity)
    decay = [2, 2, 1.7, 1.5, 1.4][severity - 1]
    cloud = ops.plasma((128, 64), decay, np.random.default_rng(0))
    expected = (image + strength * cloud[..., None]) * 0.8 / (0.8 + strength)
    np.testing.assert_allclose(out, np.minimum(expected, 1), atol=1e-5)


@each("severity", SEVERITIES)
def test_snow_falls_alike_when_turned_by_180_degrees(severity):
    out = run("snow", flat(0.2), severity)
    np.testing.assert_allclose(out, out[::-1, ::-1], atol=1e-6)
    mix = [0.8, 0.7, 0.7, 0.65, 0.55][severity - 1]
    # Between flakes: the scene mixed with max(x, 1.5 gray + 0.5).
    assert out.min() >= 0.2 * mix + 0.8 * (1 - mix) - 1e-5
    assert out.min() == pytest.approx(0.2 * mix + 0.8 * (1 - mix), abs=0.05)
    assert out.max() > out.min() + 0.2


@pytest.mark.slow
@each(
    ("severity", "mean", "std", "zoom", "threshold", "radius", "sigma", "mix"),
    [
        (1, 0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (2, 0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (3, 0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (4, 0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (5, 0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
)
def test_snow_lies_as_thick_as_its_constants_say(
    severity, mean, std, zoom, threshold, radius, sigma, mix
):
    """The mean amount of flakes against that of an own simulation with other random numbers."""
    dark = flat(0.0, (160, 160))
    outs = [run("snow", dark, severity, seed)[20:-20, 20:-20, 0] for seed in range(30)]
    # What is between flakes is 0.5 (1 - mix); what exceeds 1 is cut in both.
    rng, own = np.random.default_rng(99), []
    for _ in range(60):
        few = math.ceil(160 / zoom)
        nodes = mean + std * rng.standard_normal((few + 1, few + 1))
        grid = np.arange(160) * (few - 1) / 159
        low, part = grid.astype(int), grid % 1
        rows = nodes[low] * (1 - part[:, None]) + nodes[low + 1] * part[:, None]
        flakes = rows[:, low] * (1 - part) + rows[:, low + 1] * part
        flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
        weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
        fallen = sum(w * np.roll(flakes, k, 0) for k, w in enumerate(weights / weights.sum()))
        layer = fallen + fallen[::-1, ::-1]
        own.append(np.minimum(0.5 * (1 - mix) + layer, 1)[30:-30, 30:-30])
    expected = np.mean(own) - 0.5 * (1 - mix)
    assert np.mean(outs) - 0.5 * (1 - mix) == pytest.approx(expected, rel=0.12)
    assert np.std(outs) == pytest.approx(np.std(own), rel=0.15)


def test_snow_streaks_are_steep():
    flakes = [run("snow", flat(0.1), 3, seed)[..., 0].astype(float) for seed in range(20)]
    along = np.mean([np.abs(np.diff(f, axis=0)).mean() for f in flakes])
    across = np.mean([np.abs(np.diff(f, axis=1)).mean() for f in flakes])
    assert along < 0.7 * across


@each(
    ("severity", "share", "weight"),
    [(1, 1, 0.4), (2, 0.8, 0.6), (3, 0.7, 0.7), (4, 0.65, 0.7), (5, 0.6, 0.75)],
)
def test_frost_mixes_image_and_ice(severity, share, weight):
    dark = run("frost", flat(0.0), severity)
    np.testing.assert_allclose(run("frost", flat(0.1), severity), dark + 0.1 * share, atol=1e-6)
    assert 0.3 * weight < dark.mean() < 0.7 * weight and dark.std() > 0.05
    assert dark[..., 2].mean() > dark[..., 0].mean()  # bluish
    rng = np.random.default_rng(0)
    texture = ice(int(rng.integers(TEXTURES)), 128, 64)
    top, left = (int(rng.integers(n)) for n in (128, 64))
    crop = texture[top : top + 128, left : left + 64] / 255
    np.testing.assert_allclose(dark, np.minimum(crop * weight, 1), atol=1e-6)


def test_ice_is_made_once_and_cannot_be_changed():
    textures = [ice(n, 40, 20) for n in range(TEXTURES)]
    assert len({t.tobytes() for t in textures}) == TEXTURES
    assert ice(0, 40, 20) is textures[0]
    assert textures[0].shape == (80, 40, 3) and textures[0].dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        textures[0][0] = 0
    ice.cache_clear()
    np.testing.assert_array_equal(ice(0, 40, 20), textures[0])
    assert min(t.std() for t in textures) > 25
    means = [ice(n, 144, 72).mean() / 255 for n in range(TEXTURES)]  # neither dark nor white
    assert 0.4 < np.mean(means) < 0.6 and min(means) > 0.3 and max(means) < 0.7


def test_frost_uses_every_texture_and_place():
    seen = {run("frost", flat(0.0, (32, 16)), 1, seed).tobytes() for seed in range(60)}
    assert len(seen) > 55


@each("severity", SEVERITIES)
def test_rain_darkens_by_its_constants(severity):
    """Between drops, far enough for the blur, every channel has fallen by as much, to 0 at most."""
    image = flat(0.6, (200, 100)) * np.array([1, 0.5, 0.25], np.float32)
    out = run("rain", image, severity)
    expected = np.maximum(0.6 * np.array([1, 0.5, 0.25]) - (0.05 + 0.05 * severity), 0)
    dry = np.abs(out - expected).max(2) < 1e-5
    assert 0.02 < dry.mean() < 0.98
    assert (out >= expected - 1e-5).all()  # drops of 200 / 255 only add


@each(("severity", "cover"), [(1, 10 / 770), (2, 30 / 600), (4, 60 / 500)])
@each("size", [(300, 150), (40, 40)])
def test_rain_is_as_dense_on_any_size(severity, cover, size):
    """Every drop is one pixel wide: the lit share follows from number and length."""
    # Blurred light adds up to that of the drops; black stays black between them, and the fall
    # is undone where it left something. Bright enough that nothing is cut: a floor of 0.5.
    amounts = []
    for seed in range(30):
        out = run("rain", flat(0.5, size), severity, seed)
        lit = out[..., 0].astype(np.float64) + 0.05 + 0.05 * severity - 0.5
        amounts.append(lit.mean() / (200 / 255 - 0.5))
    # Overlaps hide a little: of a Poisson number of layers at least one.
    assert np.mean(amounts) == pytest.approx(1 - math.exp(-cover), rel=0.15)


def test_rain_falls_in_lines():
    out = run("rain", flat(0.3, (200, 100)), 2)[..., 0].astype(float)
    assert np.abs(np.diff(out, axis=0)).mean() < 0.6 * np.abs(np.diff(out, axis=1)).mean()


@each(
    ("severity", "mean", "std", "sigma", "threshold"),
    [(1, 0.65, 0.3, 4, 0.69), (2, 0.65, 0.3, 3, 0.68), (3, 0.65, 0.3, 2, 0.68)],
)
def test_water_covers_what_its_constants_say(severity, mean, std, sigma, threshold):
    shares = []
    for seed in range(24):
        image = flat(0.1, (200, 200))
        out = run("spatter", image, severity, seed)
        added = out - image
        assert (added >= 0).all()
        wet = added[..., 1] > 0
        np.testing.assert_allclose(
            added[wet] / added[wet][:, 1:2] * 238,
            np.tile([175, 238, 238], (wet.sum(), 1)),
            rtol=1e-3,
        )
        strength = [0.6, 0.6, 0.5][severity - 1]
        assert added.max() == pytest.approx(strength * 238 / 255, rel=1e-3)
        shares.append(wet[20:-20, 20:-20].mean())  # repeated edges vary more
    # Normal noise under a Gaussian of sigma keeps std / (2 sqrt(pi) sigma).
    z = (threshold - mean) / (std / (2 * math.sqrt(math.pi) * sigma))
    assert np.mean(shares) == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), rel=0.2)


@each("severity", [4, 5])
def test_mud_covers_in_brown(severity):
    image = flat(1.0, (200, 200))
    out = run("spatter", image, severity)
    muddy = out[..., 0] < 1
    assert 0.05 < muddy.mean() < 0.6
    # A cover of 0.8 or more, nothing between that and none.
    assert out[muddy][:, 0].max() <= 0.2 + 0.8 * 63 / 255 + 1e-5
    np.testing.assert_allclose(out.min((0, 1)), np.array([63, 42, 20]) / 255, atol=0.02)
