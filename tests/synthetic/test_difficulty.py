"""The embedded data set is a fair, hard task, measured on its default test split.

Across modalities neither raw pixels nor histograms find a person; within the visible ones
they do, and the geometry that both modalities share is there to be learned.
"""

import pathlib
import tempfile

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax import synthetic
from vireid_jax.metrics import chance_map, cosine_distance, rank_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def test_split():
    # Two training people: the test images are the default ones all the same.
    # Kept between runs where the compilation cache is, not in the user's own cache.
    folder = pathlib.Path(tempfile.gettempdir()) / "vireid_jax_synthetic"
    return synthetic.load(
        train_ids=2, train_visible=1, train_infrared=1, val_ids=0, cache=folder
    ).test


def pixels(images):
    rows = images.reshape(len(images), -1).astype(np.float32)
    return rows - rows.mean(1, keepdims=True)


def grey(images):
    return pixels(images.astype(np.float32).mean(-1))


def border(images):
    """The outer columns hold the place, not the person."""
    return pixels(np.concatenate([images[:, :40, :3], images[:, :40, -3:]], axis=2))


def histogram(images):
    images = images.astype(np.float32)
    level = np.minimum((images / 256 * 16).astype(int), 15)
    rows = [[np.bincount(image[..., c].ravel(), minlength=16) for c in range(image.shape[-1])]
            for image in level]  # fmt: skip
    return np.sqrt(np.array(rows, np.float32).reshape(len(rows), -1))


def times_chance(query, gallery, feature, excluded=None):
    distance = cosine_distance(feature(query.images), feature(gallery.images))
    found = rank_metrics(distance, query.person, gallery.person, excluded=excluded)
    return found.mAP / chance_map(found.rows.num_true, found.rows.num_kept).mAP


@each(
    "feature",
    [
        pixels,
        lambda images: images.reshape(len(images), -1).astype(np.float32),  # not centered
        grey,
        histogram,
        lambda images: histogram(images.mean(-1, keepdims=True)),  # of intensity
    ],
)
def test_across_modalities_pixels_and_histograms_are_near_chance(test_split, feature):
    query = test_split.query.take(np.arange(0, len(test_split.query), 2))
    assert times_chance(query, test_split.gallery, feature) < 2


@each(("feature", "low", "high"), [(pixels, 3, np.inf), (border, 0, 1.6)])
def test_across_visible_cameras_the_person_is_found_and_not_by_the_place(
    test_split, feature, low, high
):
    gallery = test_split.gallery
    query = gallery.take(np.arange(0, len(gallery), 5))
    same = (query.person[:, None] == gallery.person) & (query.camera[:, None] == gallery.camera)
    assert low < times_chance(query, gallery, feature, same) < high


def test_within_a_camera_colors_tell_people_apart(test_split):
    gallery = test_split.gallery.take(test_split.gallery.camera == 4)
    itself = np.eye(len(gallery), dtype=bool)
    assert times_chance(gallery, gallery, histogram, itself) > 4
