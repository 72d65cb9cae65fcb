"""Blur: gaussian_blur, defocus_blur, glass_blur, motion_blur, zoom_blur.

Sources and ranges as in `noise`. Radii are in pixels of the image as it is given, and the
cross-modality benchmark corrupts after the resize to 288 x 144. Beyond the border the nearest
pixel is repeated, in defocus_blur the image is mirrored, as in the benchmark.
"""

import numpy as np

from vireid_jax.data.corrupt import ops

_GAUSSIAN = (1.0, 2.0, 3.0, 4.0, 6.0)  # sigma
_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # disk radius, sigma of its rim
# sigma, reach of the shuffle, how often
_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
_MOTION = ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))  # radius, sigma
_ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))  # stop, step


def gaussian_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur, the kernel cut at four sigmas."""
    return ops.clip(ops.gaussian(ops.unit(image), ops.at(_GAUSSIAN, severity)))


def defocus_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A lens out of focus: every point becomes a disk."""
    radius, sigma = ops.at(_DEFOCUS, severity)
    return ops.clip(ops.convolve(ops.unit(image), ops.disk(radius, sigma)))


def glass_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Frosted glass: blur, displace every pixel a little at random, blur again.

    Differs from the benchmark's code: there a loop visits the pixels one after the other and
    overwrites each with a neighbor drawn from [-d, d) in both directions (it means to swap the
    two, but the swap of array views copies), so a pixel read later may have been displaced
    before. Here every pixel reads its neighbor from the same draw and range at once, `times`
    times over. Shifts have the same law, only chains within one pass are missing; pixels at the
    border move as well, and read the border where the draw points beyond it.
    """
    sigma, reach, times = ops.at(_GLASS, severity)
    out = ops.gaussian(ops.unit(image), sigma)
    height, width = out.shape[:2]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    for _ in range(times):
        shift = rng.integers(-reach, reach, (2, height, width))
        source = np.clip(rows + shift[0], 0, height - 1) * width
        source += np.clip(columns + shift[1], 0, width - 1)
        out = np.take(out.reshape(-1, 3), source, axis=0)
    return ops.clip(ops.gaussian(out, sigma))


def motion_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A moving camera: a one-sided Gaussian streak at an angle from U(-45, 45) degrees."""
    radius, sigma = ops.at(_MOTION, severity)
    kernel = ops.streak(radius, sigma, rng.uniform(-45, 45))
    return ops.clip(ops.smear(ops.unit(image), kernel))


def zoom_factors(severity: int) -> np.ndarray:
    """The magnifications that zoom_blur averages; rounding lets the first list reach its stop."""
    stop, step = ops.at(_ZOOM, severity)
    return np.arange(1, stop, step)


def zoom_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A camera that zooms in: the mean of the image and of its magnified versions."""
    clean = ops.unit(image)
    total, factors = clean.copy(), zoom_factors(severity)
    for factor in factors.tolist():
        total += ops.magnify(clean, factor, clean.shape[:2])
    return ops.clip(total / np.float32(len(factors) + 1))
