"""What the tests of the augmentation share: batches, the chain, and how it is undone."""

import jax
import numpy as np

from vireid_jax.data.augment import augment, standardize

OFF = dict(flip=0.0, pad=0)
KEY = jax.random.key(7)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FEW, MANY = 24, 2400  # rows; no other numbers, for each has its own compiled operations
VIEWS = ("visible", "infrared", "visible_second")


def noise(rows=FEW, size=(10, 6), seed=0):
    shape = (2, rows, *size, 3)
    images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return {
        "visible": images[0],
        "infrared": images[1],
        "label": np.arange(rows, dtype=np.int32),
        "camera": np.arange(2 * rows, dtype=np.int32).reshape(rows, 2),
    }


def run(batch, key=KEY, **options):
    """Operation by operation: that shares what is compiled between all sets of options."""
    return jax.tree.map(np.asarray, augment(key, batch, **options))


def exact(images):
    return np.asarray(standardize(images))


def unstandardize(images):
    """Undoes `standardize`: uint8, rounded and clipped."""
    pixels = np.asarray(images, np.float64) * 255 * STD + 255 * MEAN
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def coordinates(rows=MANY, size=(6, 8)):
    """Gray images of 1 + the number of a pixel, to read crops and flips off."""
    image = np.arange(1, 1 + size[0] * size[1], dtype=np.uint8).reshape(*size, 1).repeat(3, -1)
    return noise(rows, size) | {m: np.stack([image] * rows) for m in ("visible", "infrared")}


def places_of(images, pad):
    """(dy, dx, flipped) of augmented coordinate images, from the pixels about their center.

    The first channel says what a pixel was, whichever channel was copied there.
    """
    table = exact(np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)).ravel()
    order = np.argsort(table)
    height, width = images.shape[1:3]
    cy, cx = height // 2, width // 2
    pixels = order[np.searchsorted(table[order], images[:, cy, cx : cx + 2, 0])] // 3 - 1  # [B, 2]
    y, x = np.divmod(pixels[:, 0], width)
    flipped = pixels[:, 1] < pixels[:, 0]
    return np.stack([y - cy + pad, x - np.where(flipped, width - 1 - cx, cx) + pad, flipped], 1)


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
    shares = [np.searchsorted(np.sort(x), at, "right") / len(x) for x in (a, b)]
    return np.abs(shares[0] - shares[1]).max()
