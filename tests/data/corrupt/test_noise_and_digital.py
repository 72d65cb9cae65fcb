"""Noise by its statistics, colors and blocks by naive loops."""

import colorsys
import io
import math

import numpy as np
import pytest
from PIL import Image

from tests.support.rows import each
from vireid_jax.data.corrupt import SEVERITIES, corrupt, ops

from .pictures import flat, picture, run

SMALL = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
SMALL[0, :4] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0]]
WIDE = (200, 200)


@each(("severity", "sigma"), list(enumerate([0.08, 0.12, 0.18], 1)))
def test_gaussian_noise_has_its_sigma(severity, sigma):
    noise = run("gaussian_noise", flat(0.5, WIDE), severity).astype(np.float64) - 0.5
    # 0.18 is cut at 2.8 sigma, which takes 2 % off.
    assert noise.std() == pytest.approx(sigma, rel=0.025) and abs(noise.mean()) < 3e-3
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


@each(("severity", "photons"), list(enumerate([60, 25, 12, 5, 3], 1)))
def test_shot_noise_varies_as_its_mean(severity, photons):
    # Dark enough that almost nothing exceeds 1.
    for level in (0.05, 0.15):
        out = run("shot_noise", flat(level, WIDE), severity).astype(np.float64)
        assert out.mean() == pytest.approx(level, rel=0.03)
        assert out.var() == pytest.approx(level / photons, rel=0.05)
        np.testing.assert_allclose(out * photons, np.rint(out * photons), atol=1e-4)


@each(("severity", "share"), list(enumerate([0.03, 0.06, 0.09, 0.17, 0.27], 1)))
def test_impulse_noise_hits_its_share(severity, share):
    out = corrupt((flat(0.5, WIDE) * 255).astype(np.uint8), "impulse_noise", severity,
                  rng=np.random.default_rng(1))  # fmt: skip
    assert (out == 255).mean() == pytest.approx(share / 2, rel=0.06)
    assert (out == 0).mean() == pytest.approx(share / 2, rel=0.06)
    assert set(np.unique(out)) == {0, 127, 255}
    # Channels are hit one by one, not pixels.
    hit = out != 127
    assert hit.all(2).mean() == pytest.approx(share**3, abs=2e-3)


@each(("severity", "sigma"), list(enumerate([0.15, 0.2, 0.35, 0.45, 0.6], 1)))
def test_speckle_noise_grows_with_the_image(severity, sigma):
    for level in (0.1, 0.3):
        out = run("speckle_noise", flat(level, WIDE), severity).astype(np.float64)
        clipped = np.clip(1 + sigma * np.random.default_rng(9).standard_normal(400_000), 0, 1 / 0.3)
        assert out.std() == pytest.approx(level * clipped.std(), rel=0.02)
    assert (run("speckle_noise", flat(0.0, WIDE), severity) == 0).all()


def hsv_loop(image, change):
    out = np.empty(image.shape)
    for at in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[at] / 255).tolist())
        out[at] = colorsys.hsv_to_rgb(h, *change(s, v))
    return out


@each(("severity", "more"), list(enumerate([0.1, 0.2, 0.3, 0.4, 0.5], 1)))
def test_brightness_is_that_of_hsv(severity, more):
    expected = hsv_loop(SMALL, lambda s, v: (s, min(v + more, 1)))
    np.testing.assert_allclose(run("brightness", SMALL, severity), expected, atol=2e-6)


@each(("severity", "a", "b"), [(1, 0.3, 0), (2, 0.1, 0), (3, 2, 0), (4, 5, 0.1), (5, 20, 0.2)])
def test_saturate_is_that_of_hsv(severity, a, b):
    expected = hsv_loop(SMALL, lambda s, v: (min(s * a + b, 1), v))
    np.testing.assert_allclose(run("saturate", SMALL, severity), expected, atol=5e-6)


@each(("severity", "c"), list(enumerate([0.4, 0.3, 0.2, 0.1, 0.05], 1)))
def test_contrast_shrinks_to_the_mean_of_each_channel(severity, c):
    out = run("contrast", SMALL, severity)
    for channel in range(3):
        values = [v / 255 for v in SMALL[..., channel].ravel().tolist()]
        mean = sum(values) / len(values)
        expected = [(v - mean) * c + mean for v in values]
        np.testing.assert_allclose(out[..., channel].ravel(), expected, atol=1e-6)


@each(("severity", "block"), [(2, 2), (5, 4)])
def test_pixelate_averages_blocks(severity, block):
    out = corrupt(SMALL, "pixelate", severity, rng=np.random.default_rng(0))
    for row in range(0, 16, block):
        for column in range(0, 16, block):
            cell = np.s_[row : row + block, column : column + block]
            assert np.ptp(out[cell], axis=(0, 1)).max() == 0
            mean = SMALL[cell].astype(float).mean((0, 1))
            assert np.abs(out[row, column] - mean).max() <= 1


@each(("severity", "fraction"), list(enumerate([0.6, 0.5, 0.4, 0.3, 0.25], 1)))
def test_pixelate_leaves_its_fraction_of_rows_and_columns(severity, fraction):
    image = np.random.default_rng(1).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    out = corrupt(image, "pixelate", severity, rng=np.random.default_rng(0))
    assert len(np.unique(out, axis=0)) == int(60 * fraction)
    assert len(np.unique(out, axis=1)[0]) == int(40 * fraction)


@each(("severity", "quality"), list(enumerate([25, 18, 15, 10, 7], 1)))
def test_jpeg_compression_is_pillows(severity, quality):
    image = picture(0)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer))
    out = corrupt(image, "jpeg_compression", severity, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(out, expected)


class Still(np.random.Generator):
    """Random numbers that move nothing."""

    def random(self, size=None, dtype=np.float64, out=None):
        return np.full(size, 0.5, dtype)


def test_elastic_transform_without_a_field_is_the_image():
    image = picture(1)
    still = Still(np.random.Philox(0))
    for severity in SEVERITIES:
        np.testing.assert_array_equal(
            corrupt(image, "elastic_transform", severity, rng=still), image
        )


@pytest.mark.slow
@each("size", [(300, 150), (150, 300)])
def test_elastic_transform_moves_by_its_constants(size):
    """On ramps the displacement itself can be read off; its size follows from the constants."""
    height, width = size
    image = np.zeros((*size, 3))
    image[..., 0] = np.arange(height)[:, None] / height
    image[..., 1] = np.arange(width) / width

    def left_of_noise(sigma):  # the share of its standard deviation
        reach = int(3 * sigma + 0.5)
        line = [math.exp(-(x**2) / (2 * sigma**2)) for x in range(-reach, reach + 1)]
        return math.sqrt(sum(v * v for v in line)) / sum(line)

    blurred = left_of_noise(0.01 * height) * left_of_noise(0.01 * width)
    for severity, alpha in enumerate([12.5, 16.25, 21.25, 25, 30], 1):
        expected = alpha * blurred * 0.005 * height / math.sqrt(3)
        inner = [
            (run("elastic_transform", image, severity, seed=9 * severity + n) - image)[
                25:-25, 25:-25
            ]
            for n in range(4)
        ]
        assert np.std(inner, axis=(0, 1, 2))[0] * height == pytest.approx(expected, rel=0.04)
        assert np.std(inner, axis=(0, 1, 2))[1] * width == pytest.approx(expected, rel=0.04)


def test_gray_is_luma():
    colors = np.eye(3, dtype=np.float32)[None]
    np.testing.assert_allclose(ops.gray(colors), [[0.299, 0.587, 0.114]], atol=1e-6)


def test_bytes_survive_and_are_truncated():
    levels = np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(3, 2)
    np.testing.assert_array_equal(ops.to_bytes(ops.unit(levels)), levels)
    np.testing.assert_array_equal(ops.to_bytes(levels / 255), levels)
    np.testing.assert_array_equal(
        ops.to_bytes(np.array([-0.2, 0.0, 0.99 / 255, 1.99 / 255, 254.9 / 255, 1.0, 7.0])),
        [0, 0, 0, 1, 254, 255, 255],
    )
