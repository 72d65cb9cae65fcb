"""The samplers on SYSU-MM01's counts: published lengths, coverage and the released draws.

The table of images for each camera and identity lies beside the checkout, or where the variable
VIREID_SHARED says; without it these tests are skipped.
"""

import hashlib
import os
import pathlib

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.data import sampler
from vireid_jax.types import INFRARED, VISIBLE

SHARED = pathlib.Path(
    os.environ.get("VIREID_SHARED", pathlib.Path(__file__).resolve().parents[3] / "shared")
)
TABLE = SHARED / "data" / "sysu_images_per_camera_and_id.npy"
pytestmark = pytest.mark.skipif(not TABLE.exists(), reason=f"no {TABLE}")

# The 96 identities of the released test_id.txt.
TEST_IDS = np.array(
    """
    6 10 17 21 24 25 27 28 31 34 36 37 40 41 42 43 44 45 49 50 51 54 63 69 75 80 81 82 83 84 85 86
    87 88 89 90 93 102 104 105 106 108 112 116 117 122 125 129 130 134 138 139 150 152 162 166 167
    170 172 176 185 190 192 202 204 207 210 215 223 229 232 237 252 253 257 259 263 266 269 272
    273 274 275 282 285 291 300 301 302 303 307 312 315 318 331 333
    """.split(),
    int,
)


@pytest.fixture(scope="module")
def counts():
    """(visible, infrared) images of the 395 training and validation identities, [395, 2]."""
    table = np.load(TABLE)  # [6 cameras, 533 identities]
    both = np.stack([table[[0, 1, 3, 4]].sum(0), table[[2, 5]].sum(0)], axis=1)
    trained = both.all(axis=1) & ~np.isin(np.arange(1, 534), TEST_IDS)
    assert both[trained].sum(0).tolist() == [22258, 11909]
    return both[trained]


@pytest.fixture(scope="module")
def images(counts):
    """(label, modality), all visible images first, by identity as the released lists are."""
    label = np.concatenate([np.repeat(np.arange(395), n) for n in counts.T])
    return label.astype(np.int32), np.repeat([VISIBLE, INFRARED], counts.sum(0)).astype(np.int8)


def make(images, rule, num_ids, num_instances, epoch=0):
    size = dict(num_ids=num_ids, num_instances=num_instances)
    return sampler.plan(*images, seed=0, epoch=epoch, rule=rule, **size)


def test_the_released_draws_of_agw(images):
    label, _ = images
    plans = [make(images, "agw_legacy", 8, 4, epoch) for epoch in (0, 1)]
    visible, infrared = (plans[0][:, m] - (0, 22258)[m] for m in (VISIBLE, INFRARED))
    assert label[plans[0][0, 0, ::4]].tolist() == [329, 318, 317, 65, 59, 287, 212, 60]
    assert visible[0, :5].tolist() == [20927, 20945, 20945, 20933, 20710]
    assert infrared[0, :5].tolist() == [10597, 10605, 10597, 10588, 10348]
    digests = [
        hashlib.sha1(b"".join((p[:, m] - (0, 22258)[m]).astype("<i8").tobytes() for m in (0, 1)))
        for p in plans
    ]
    assert [d.hexdigest()[:12] for d in digests] == ["a379306ff4d3", "e26b368551b8"]


@each(
    "rule, num_ids, num_instances, steps",
    [
        ("exhaust", 16, 4, 183),
        ("exhaust", 12, 5, 196),
        ("permute", 16, 4, 25),  # the authors drop the last, partial block: 24
        ("permute", 12, 5, 33),
    ],
)
def test_steps_of_an_epoch(images, rule, num_ids, num_instances, steps):
    size = dict(num_ids=num_ids, num_instances=num_instances)
    assert sampler.steps_per_epoch(*images, rule=rule, **size) == steps


@each("num_ids, num_instances, published", [(16, 4, 182), (12, 5, 195)])
def test_an_exhausted_epoch_is_at_most_two_steps_longer_than_the_authors(
    counts, images, num_ids, num_instances, published
):
    chunks = counts.min(axis=1) // num_instances
    fixed = len(make(images, "exhaust", num_ids, num_instances))
    lengths = []
    for seed in range(10):
        rng, left, length = np.random.default_rng(seed), chunks.copy(), 0
        while (left > 0).sum() >= num_ids:
            left[rng.choice(np.flatnonzero(left), num_ids, replace=False)] -= 1
            length += 1
        lengths.append(length)
    assert published in lengths
    assert min(fixed - np.array(lengths)) >= 0 and max(fixed - np.array(lengths)) <= 2
    # Of the images that are shown, at most two steps' are not among the authors' chunks.
    label = images[0]
    ids = label[make(images, "exhaust", num_ids, num_instances)[:, 0, ::num_instances]]
    beyond = np.maximum(np.bincount(ids.ravel(), minlength=395) - chunks, 0).sum()
    assert beyond <= 2 * num_ids


@each(
    "rule, num_ids, num_instances, visible, infrared",
    [
        ("agw", 8, 4, 0.53, 0.80),
        ("agw_legacy", 8, 4, 0.53, 0.80),
        ("exhaust", 16, 4, 0.52, 0.98),
        ("exhaust", 12, 5, 0.52, 0.98),
    ],
)
def test_part_of_the_images_that_an_epoch_shows(
    counts, images, rule, num_ids, num_instances, visible, infrared
):
    plan = make(images, rule, num_ids, num_instances)
    for m, expected in ((VISIBLE, visible), (INFRARED, infrared)):
        assert abs(len(np.unique(plan[:, m])) / counts[:, m].sum() - expected) < 0.01
    repeats = np.mean([len(np.unique(step)) < len(step) for step in plan[:, VISIBLE]])
    assert abs(repeats - (0.77 if rule.startswith("agw") else 0.0)) < 0.05
    if rule == "exhaust":
        shown = np.bincount(images[0][plan[:, 0]].ravel(), minlength=395) // num_instances
        assert (shown >= counts.min(axis=1) // num_instances - 1).mean() > 0.95
