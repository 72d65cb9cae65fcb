"""The embedded data set is a fair, hard task, measured on its default test split.

Across modalities neither raw pixels nor histograms find a person; within the visible ones
they do, and the geometry that both modalities share is there to be learned.
"""

import pathlib
import tempfile

import numpy as np
import pytest

from vireid_jax import synthetic
from vireid_jax.synthetic import dataset


@pytest.fixture(scope="module")
def test_split():
    # Two training people: the test images are the default ones all the same.
    # Kept between runs where the compilation cache is, not in the user's own cache.
    folder = pathlib.Path(tempfile.gettempdir()) / "vireid_jax_synthetic"
    return synthetic.load(
        train_ids=2, train_visible=1, train_infrared=1, val_ids=0, cache=folder
    ).test


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def pixels(records, center):
    rows = records.images.reshape(len(records), -1).astype(np.float32)
    return unit(rows - rows.mean(1, keepdims=True) if center else rows)


def grey(records):
    rows = records.images.astype(np.float32).mean(-1).reshape(len(records), -1)
    return unit(rows - rows.mean(1, keepdims=True))


def histogram(records, channels, bins=16):
    images = records.images.astype(np.float32)
    images = images if channels == 3 else images.mean(-1, keepdims=True)
    level = np.minimum((images / 256 * bins).astype(int), bins - 1)
    rows = [
        np.concatenate([np.bincount(level[n, ..., c].ravel(), minlength=bins)
                        for c in range(channels)]) for n in range(len(images))
    ]  # fmt: skip
    return unit(np.sqrt(np.array(rows, np.float32)))


def mean_ap(query, query_person, gallery, gallery_person, drop=None):
    """Mean average precision of cosine rankings; `drop` bool [Q, G] takes pairs out."""
    score = query @ gallery.T
    if drop is not None:
        score = np.where(drop, -np.inf, score)
    order = np.argsort(-score, axis=1, kind="stable")
    true = gallery_person[order] == query_person[:, None]
    if drop is not None:
        true &= ~np.take_along_axis(drop, order, axis=1)
    precision = np.cumsum(true, 1) / np.arange(1, true.shape[1] + 1)
    return float(np.mean((precision * true).sum(1) / true.sum(1)))


def chance_ap(positives, total):
    """Expected average precision of a random order: (p - 1)/(n - 1) + (n - p)/(n (n - 1)) H_n."""
    harmonic = np.sum(1.0 / np.arange(1, total + 1))
    p, n = positives, total
    return (p - 1) / (n - 1) + (n - p) / (n * (n - 1)) * harmonic


def test_chance_formula_against_simulation():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(6), 5)
    query = rng.normal(size=(4000, 8))
    simulated = mean_ap(query, np.zeros(4000, int), rng.normal(size=(30, 8)), person)
    draws = [
        mean_ap(rng.normal(size=(50, 8)), np.zeros(50, int), rng.normal(size=(30, 8)), person)
        for _ in range(100)
    ]
    assert abs(np.mean(draws) - chance_ap(5, 30)) < 0.01
    assert 0 < simulated < 1


@pytest.mark.slow
def test_across_modalities_pixels_and_histograms_are_near_chance(test_split):
    gallery = test_split.gallery
    query = test_split.query.take(np.arange(0, len(test_split.query), 2))
    chance = chance_ap(4 * 10, len(gallery))
    assert chance == pytest.approx(1 / 96, rel=0.3)
    for name, feature in {
        "pixels": lambda r: pixels(r, center=True),
        "pixels, not centered": lambda r: pixels(r, center=False),
        "grey pixels": grey,
        "color histogram": lambda r: histogram(r, 3),
        "intensity histogram": lambda r: histogram(r, 1),
    }.items():
        score = mean_ap(feature(query), query.person, feature(gallery), gallery.person)
        assert score < 2 * chance, f"{name}: mAP {score:.4f}, chance {chance:.4f}"


@pytest.mark.slow
def test_within_the_visible_identity_shows_in_raw_pixels(test_split):
    gallery = test_split.gallery
    rows = np.arange(0, len(gallery), 5)
    query = gallery.take(rows)
    same = (query.person[:, None] == gallery.person) & (query.camera[:, None] == gallery.camera)
    features = pixels(gallery, center=True)
    score = mean_ap(features[rows], query.person, features, gallery.person, drop=same)
    chance = chance_ap(3 * 10, len(gallery) - 10)
    assert score > 3 * chance, f"mAP {score:.4f}, chance {chance:.4f}"


@pytest.mark.slow
def test_within_a_camera_colors_tell_people_apart(test_split):
    gallery = test_split.gallery.take(test_split.gallery.camera == 4)
    self_pair = np.eye(len(gallery), dtype=bool)
    features = histogram(gallery, 3)
    score = mean_ap(features, gallery.person, features, gallery.person, drop=self_pair)
    chance = chance_ap(9, len(gallery) - 1)
    assert score > 4 * chance, f"mAP {score:.4f}, chance {chance:.4f}"


@pytest.mark.slow
def test_background_and_place_do_not_give_a_person_away(test_split):
    # The outer columns hold the place, not the person: across cameras they must be useless.
    gallery = test_split.gallery
    rows = np.arange(0, len(gallery), 5)
    border = np.concatenate([gallery.images[:, :40, :3], gallery.images[:, :40, -3:]], axis=2)
    features = border.reshape(len(gallery), -1).astype(np.float32)
    features = unit(features - features.mean(1, keepdims=True))
    query = gallery.take(rows)
    same = (query.person[:, None] == gallery.person) & (query.camera[:, None] == gallery.camera)
    score = mean_ap(features[rows], query.person, features, gallery.person, drop=same)
    assert score < 1.6 * chance_ap(30, len(gallery) - 10)


def test_default_sizes_serve_the_protocol():
    plan = {
        name: value
        for name, value in synthetic.load.__kwdefaults__.items()
        if name.startswith(("train", "val", "test"))
    }
    # Multi-shot draws ten images per person and camera; a class needs both modalities.
    assert plan["test_visible"] >= 10 and plan["test_ids"] >= 48
    assert plan["train_ids"] >= 64 and plan["val_ids"] >= 8
    assert dataset.FIRST_PERSON["val"] - dataset.FIRST_PERSON["train"] >= plan["train_ids"]
