"""Noise: gaussian_noise, shot_noise, impulse_noise, speckle_noise.

Constants are those of the common-corruptions benchmark (Hendrycks and Dietterich, ICLR 2019,
arXiv 1903.12261), which SYSU-MM01-C and RegDB-C take over (Chen et al., "Benchmarks for
corruption invariant person re-identification", NeurIPS 2021 D&B, arXiv 2111.00880). Every
function maps an image uint8, or float in [0, 1], [H, W, 3] to float32 in [0, 1].
"""

import numpy as np

from vireid_jax.data.corrupt import ops

_GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)
_SHOT = (60.0, 25.0, 12.0, 5.0, 3.0)
_IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)
_SPECKLE = (0.15, 0.2, 0.35, 0.45, 0.6)


def gaussian_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Sensor noise in low light: x + n, n ~ N(0, sigma), for every channel by itself."""
    sigma = np.float32(ops.at(_GAUSSIAN, severity))
    return ops.clip(ops.unit(image) + sigma * rng.standard_normal(image.shape, np.float32))


def shot_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Counted photons: Poisson(x c) / c, whose variance is its mean over c."""
    photons = ops.at(_SHOT, severity)
    counts = rng.poisson(ops.unit(image) * np.float32(photons))
    return ops.clip(counts.astype(np.float32) / np.float32(photons))


def impulse_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: a share of all values, each channel by itself, becomes 0 or 1."""
    share = ops.at(_IMPULSE, severity)
    chance = rng.random(image.shape, dtype=np.float32)
    out = ops.unit(image)
    out[chance < np.float32(share)] = 1.0
    out[chance < np.float32(share / 2)] = 0.0  # one half of those
    return out


def speckle_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Multiplied noise: x + x n, n ~ N(0, sigma)."""
    sigma = np.float32(ops.at(_SPECKLE, severity))
    noise = rng.standard_normal(image.shape, np.float32)
    return ops.clip(ops.unit(image) * (1 + sigma * noise))
