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
    """Frosted glass: blur, displace every pixel a little at random `times` times, blur again."""
    sigma, reach, times = ops.at(_GLASS, severity)
    out = ops.gaussian(ops.unit(image), sigma)
    height, width = out.shape[:2]
    for _ in range(times):
        inner = height - 2 * reach, width - 2 * reach
        source = shuffle_source(rng.integers(-reach, reach, (2, *inner)), reach)
        out = np.take(out.reshape(-1, 3), source.reshape(height, width), axis=0)
    return ops.clip(ops.gaussian(out, sigma))


def shuffle_source(shift: np.ndarray, reach: int) -> np.ndarray:
    """Where each pixel's color comes from in one pass of glass_blur.

    The benchmark's loop visits the inner pixels from the last row and column to the first, and
    each takes on the color that a neighbor within `reach` has at that moment (it means to swap
    the two, but the swap of array views copies). A neighbor further on in raster order has been
    overwritten by then, so its color came from that pixel's own neighbor, and so on. Those chains
    are followed here for all pixels at once: the same result without the loop. Each link goes on
    with a probability below one half, so few are long.

    Args:
      shift: int [2, H - 2 * reach, W - 2 * reach] in [-reach, reach), rows and columns; entry
        [0, 0] belongs to the pixel (reach + 1, reach + 1).
      reach: largest shift in pixels.

    Returns:
      int [H * W], flat indices.
    """
    height, width = (n + 2 * reach for n in shift.shape[1:])
    rows = np.arange(reach + 1, height - reach + 1)[:, None]
    columns = np.arange(reach + 1, width - reach + 1)
    taken = np.arange(height * width)
    taken[rows * width + columns] = (rows + shift[0]) * width + columns + shift[1]
    source = taken.copy()
    chained = np.flatnonzero(source > np.arange(height * width))
    while len(chained):
        before = source[chained]
        source[chained] = taken[before]
        chained = chained[source[chained] > before]
    return source


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
        total += ops.zoom(clean, factor)
    return ops.clip(total / np.float32(len(factors) + 1))
