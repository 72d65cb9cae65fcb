"""What the tests of the augmentation share: batches, the compiled chain, and how it is undone."""

import functools

import jax
import numpy as np

from vireid_jax.data.augment import augment, standardize

OFF = dict(flip=0.0, pad=0)
KEY = jax.random.key(7)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def noise(rows=6, size=(10, 6), seed=0):
    shape = (2, rows, *size, 3)
    images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return {
        "visible": images[0],
        "infrared": images[1],
        "label": np.arange(rows, dtype=np.int32),
        "camera": np.arange(2 * rows, dtype=np.int32).reshape(rows, 2),
    }


def coordinates(rows, size):
    """Images whose red is 1 + row and whose green is 1 + column, to read crops and flips off."""
    y, x = np.mgrid[: size[0], : size[1]] + 1
    image = np.dstack([y, x, 0 * x]).astype(np.uint8)
    return noise(rows, size) | {m: np.stack([image] * rows) for m in ("visible", "infrared")}


def places_of(images, pad):
    """(dy, dx, flipped) of augmented coordinate images, from the pixels about their center."""
    pixels = unstandardize(images).astype(int)
    cy, cx = images.shape[1] // 2, images.shape[2] // 2
    flipped = pixels[:, cy, cx + 1, 1] < pixels[:, cy, cx, 1]
    column = np.where(flipped, images.shape[2] - 1 - cx, cx)
    dy, dx = pixels[:, cy, cx, 0] - 1 - cy + pad, pixels[:, cy, cx, 1] - 1 - column + pad
    return np.stack([dy, dx, flipped], axis=1)


def run(batch, key=KEY, **options):
    return jax.tree.map(np.asarray, jax.jit(functools.partial(augment, **options))(key, batch))


def exact(images):
    return np.asarray(jax.jit(standardize)(images))


def unstandardize(images):
    """Undoes `standardize`: uint8, rounded and clipped."""
    pixels = np.asarray(images, np.float64) * 255 * STD + 255 * MEAN
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def chi2(counts, expected=None):
    counts = np.asarray(counts, float)
    expected = counts.mean() if expected is None else np.asarray(expected, float)
    return ((counts - expected) ** 2 / expected).sum()


def assert_same(a, b, keys=None):
    for key in keys or a:
        np.testing.assert_array_equal(a[key], b[key])


def distance_of_distributions(a, b):
    """Kolmogorov and Smirnov's statistic."""
    at = np.unique(np.r_[a, b])
    return np.abs(
        np.searchsorted(np.sort(a), at, "right") / len(a)
        - np.searchsorted(np.sort(b), at, "right") / len(b)
    ).max()
