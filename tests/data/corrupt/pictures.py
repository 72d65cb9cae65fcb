"""Pictures for these tests: a figure of plain colors before a rough background."""

import numpy as np
from scipy import ndimage

from vireid_jax.data.corrupt import CORRUPTIONS


def picture(seed, size=(96, 48)):
    """uint8 [H, W, 3]: edges, colors, smooth shading and texture, as in a photograph."""
    rng = np.random.default_rng([77, seed])
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    base = rng.uniform(0.25, 0.6, 3) + 0.15 * (y + x)[..., None]
    rough = [ndimage.gaussian_filter(rng.standard_normal(size), s) * s for s in (0.7, 3, 8)]
    image = base + 0.08 * sum(rough)[..., None]
    for top, bottom, half in ((0.05, 0.2, 0.1), (0.2, 0.55, 0.25), (0.55, 0.95, 0.15)):
        part = (y > top) & (y < bottom) & (np.abs(x - 0.5 - 0.1 * np.sin(9 * y)) < half)
        image[part] = rng.uniform(0.05, 0.9, 3) + 0.04 * rough[0][part][:, None]
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 images in dB."""
    error = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def flat(level, size=(128, 64)):
    """float32 [H, W, 3] of one gray."""
    return np.full((*size, 3), level, np.float32)


def run(kind, image, severity, seed=0):
    """A corruption as float, before it is truncated to bytes."""
    return CORRUPTIONS[kind](image, severity, np.random.default_rng(seed))
