"""Blurs by their response to one bright pixel, and by naive loops."""

import math

import numpy as np
import pytest
from scipy import ndimage

from tests.support.rows import each
from vireid_jax.data.corrupt import SEVERITIES, ops

from .pictures import picture, run

SIZE, MIDDLE = 121, 60


def response(kind, severity, seed=0):
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    image[MIDDLE, MIDDLE] = 1
    out = run(kind, image, severity, seed)
    np.testing.assert_allclose(out[..., 0], out[..., 2], atol=1e-7)
    assert out[..., 1].sum() == pytest.approx(1, abs=1e-4)
    return out[..., 1].astype(np.float64)


@each(("severity", "sigma"), list(enumerate([1, 2, 3, 4, 6], 1)))
def test_gaussian_blur_spreads_by_its_sigma(severity, sigma):
    out = response("gaussian_blur", severity)
    line = np.array([math.exp(-((x - MIDDLE) ** 2) / (2 * sigma**2)) for x in range(SIZE)])
    expected = np.outer(line, line) / line.sum() ** 2
    np.testing.assert_allclose(out, expected, atol=2e-4 * expected.max())


@each(("severity", "radius"), list(enumerate([3, 4, 6, 8, 10], 1)))
def test_defocus_blur_draws_a_disk(severity, radius):
    out = response("defocus_blur", severity)
    far = np.hypot(*(np.mgrid[:SIZE, :SIZE] - MIDDLE))
    level = 1 / sum(1 for r in np.ndindex(99, 99) if math.hypot(r[0] - 49, r[1] - 49) <= radius)
    np.testing.assert_allclose(out[far < radius - 2], level, rtol=0.02)
    assert np.abs(out[far > radius + 2.9]).max() < 1e-6
    np.testing.assert_allclose(out, out[::-1].T, atol=1e-7)


def test_a_disk_is_shared_and_cannot_be_changed():
    assert ops.disk(4, 0.5) is ops.disk(4, 0.5)
    with pytest.raises(ValueError, match="read-only"):
        ops.disk(4, 0.5)[0, 0] = 1


def test_convolve_is_the_plain_sum():
    rng = np.random.default_rng(0)
    image, kernel = rng.random((7, 6, 3), np.float32), rng.random((5, 5), np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect").astype(np.float64)
    expected = np.zeros(image.shape)
    for y, x, c in np.ndindex(image.shape):
        for i, j in np.ndindex(5, 5):
            expected[y, x, c] += kernel[i, j] * padded[y + 4 - i, x + 4 - j, c]
    np.testing.assert_allclose(ops.convolve(image, kernel), expected, rtol=1e-5)


@each("angle", [-45, -20, 0, 33.3, 45, -90, -135])
@each(("radius", "sigma"), [(10, 3), (20, 15)])
def test_a_streak_is_half_a_gaussian_along_a_line(radius, sigma, angle):
    kernel = ops.streak(radius, sigma, angle)
    assert sum(kernel.values()) == pytest.approx(1)
    total = sum(math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1))
    # At 45 degrees two steps can fall on one pixel.
    assert kernel[0, 0] >= 1 / total - 1e-12
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    for row, column in kernel:
        assert abs(row * cos - column * sin) <= 1  # beside the line
        assert -1 <= row * sin + column * cos <= 2 * radius + 1  # along it
    mean = sum(w * (r * sin + c * cos) for (r, c), w in kernel.items())
    steps = sum(i * math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)) / total
    assert mean == pytest.approx(steps, abs=0.5)


def test_smear_reads_where_the_kernel_says():
    image = np.random.default_rng(0).random((9, 8, 3), np.float32)
    kernel = {(0, 0): 0.5, (-1, 2): 0.3, (12, -9): 0.2}
    expected = np.zeros(image.shape)
    for y, x in np.ndindex(9, 8):
        for (r, c), w in kernel.items():
            expected[y, x] += w * image[min(max(y + r, 0), 8), min(max(x + c, 0), 7)]
    np.testing.assert_allclose(ops.smear(image, kernel), expected, rtol=1e-5)


@pytest.mark.slow
@each("severity", SEVERITIES)
def test_motion_blur_keeps_light_and_angle(severity):
    radius, sigma = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)][severity - 1]
    angles, lengths = [], []
    for seed in range(40):
        out = response("motion_blur", severity, seed)
        kernel = ops.streak(radius, sigma, np.random.default_rng(seed).uniform(-45, 45))
        for (row, column), weight in kernel.items():
            assert out[MIDDLE - row, MIDDLE - column] == pytest.approx(weight, abs=1e-6)
        columns = np.nonzero(out > 1e-5)[1]
        # The image is read to the right, so light spreads to the left.
        assert columns.max() == MIDDLE and columns.min() < MIDDLE - 4
        y = (out * (np.arange(SIZE)[:, None] - MIDDLE)).sum()
        x = (out * (np.arange(SIZE) - MIDDLE)).sum()
        lengths.append(MIDDLE - columns.min())
        angles.append(math.degrees(math.atan2(-y, -x)))
    # Where it is level: 2 r steps, or as many as a narrow Gaussian leaves visible.
    assert max(lengths) == pytest.approx(min(2 * radius, 4.4 * sigma), abs=1.5)
    assert -47 < min(angles) < -25 and 25 < max(angles) < 47


@each(
    ("severity", "step", "layers"),
    [(1, 0.01, 12), (2, 0.01, 16), (3, 0.02, 11), (4, 0.02, 13), (5, 0.03, 11)],
)
def test_zoom_blur_is_the_mean_of_its_layers(severity, step, layers):
    image = picture(0, (20, 16)) / 255
    expected = np.zeros(image.shape)
    for y, x in np.ndindex(image.shape[:2]):
        total = image[y, x].copy()
        for z in (1 + step * k for k in range(layers)):
            v, u = 9.5 + (y - 9.5) / z, 7.5 + (x - 7.5) / z
            i, j = min(int(v), 18), min(int(u), 14)
            a, b = v - i, u - j
            total += (1 - a) * ((1 - b) * image[i, j] + b * image[i, j + 1])
            total += a * ((1 - b) * image[i + 1, j] + b * image[i + 1, j + 1])
        expected[y, x] = total / (layers + 1)
    np.testing.assert_allclose(run("zoom_blur", image, severity), expected, atol=1e-5)


@each(
    ("severity", "sigma", "reach", "times"),
    [(1, 0.7, 1, 2), (2, 0.9, 2, 1), (3, 1, 2, 3), (4, 1.1, 3, 2), (5, 1.5, 4, 2)],
)
def test_glass_blur_is_blur_shuffle_blur(severity, sigma, reach, times):
    """One pixel after the other, from the last to the first, takes on a neighbor's color."""
    image = picture(5, (40, 24))
    rng = np.random.default_rng(0)
    out = np.stack([ndimage.gaussian_filter(c / 255, sigma, mode="nearest")
                    for c in image.transpose(2, 0, 1)], 2)  # fmt: skip
    for _ in range(times):
        shift = rng.integers(-reach, reach, (2, 40 - 2 * reach, 24 - 2 * reach))
        for y in range(40 - reach, reach, -1):
            for x in range(24 - reach, reach, -1):
                dy, dx = shift[:, y - reach - 1, x - reach - 1]
                out[y, x] = out[y + dy, x + dx]
    expected = ndimage.gaussian_filter(out, (sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(run("glass_blur", image, severity), expected, atol=1e-5)


def test_stretch_keeps_corners():
    layer = np.random.default_rng(0).random((5, 4), np.float32)
    rows = np.stack([np.interp(np.linspace(0, 4, 23), range(5), c) for c in layer.T], 1)
    expected = np.stack([np.interp(np.linspace(0, 3, 17), range(4), r) for r in rows])
    np.testing.assert_allclose(ops.stretch(layer, (23, 17)), expected, atol=1e-5)
