"""Triplet losses: against PyTorch, loops in NumPy and their gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import loss_tests
from vireid_jax.losses import triplet
from vireid_jax.methods.agw import losses as agw
from vireid_jax.methods.smcl import losses

# Compiled whole: one operation at a time costs a test several times as much.
batch_hard_triplet = jax.jit(triplet.batch_hard_triplet)
weighted_regularized_triplet = jax.jit(agw.weighted_regularized_triplet, static_argnames="weights")
bdtr = jax.jit(losses.bdtr)
bi_center = jax.jit(losses.bi_center)
hetero_center_triplet = jax.jit(losses.hetero_center_triplet)

test_value_and_gradient, test_the_cases_test_something = loss_tests(
    {
        "batch_hard_triplet": (triplet.batch_hard_triplet, "features labels"),
        "weighted_regularized_triplet": (agw.weighted_regularized_triplet, "features labels"),
        "bdtr": (losses.bdtr, "features labels"),
        "bi_center": (losses.bi_center, "features labels"),
        "hetero_center_triplet": (losses.hetero_center_triplet, "features labels"),
    },
    rtol64=1e-12,
)

R = np.random.default_rng(11)
PERSONS = np.array([4, 0, 4, 9, 0, 4, 9], np.int32)  # 3, 2 and 2 rows, not adjacent
FEATURES = R.normal(size=(7, 2, 5)).astype(np.float32)


def _images(features, persons):
    """(person, modality, feature) of every image."""
    return [(int(p), m, x[m]) for p, x in zip(persons, features, strict=True) for m in range(2)]


def _centers(features, persons):
    return [
        (int(p), m, features[persons == p, m].mean(0)) for p in np.unique(persons) for m in range(2)
    ]


def _d(a, b):
    return math.dist(a[2].tolist(), b[2].tolist())


def _hardest(anchors, others, margin, far=None):
    """Mean hinge; `far` picks who may be a positive, besides being of the anchor's person."""
    hinges = []
    for a in anchors:
        own = [_d(a, b) for b in others if b[0] == a[0] and b is not a and (not far or far(a, b))]
        foreign = [_d(a, b) for b in others if b[0] != a[0]]
        hinges.append(max(0.0, margin + max(own) - min(foreign)))
    return float(np.mean(hinges))


def _of(items, m):
    return [x for x in items if x[1] == m]


def test_batch_hard_is_the_loop_over_images():
    images = _images(FEATURES, PERSONS)
    expected = _hardest(images, images, 0.3)
    np.testing.assert_allclose(batch_hard_triplet(FEATURES, PERSONS), expected, rtol=1e-5)


@pytest.mark.parametrize("weights, added", [("softmax", 0.0), ("released", 1e-6)])
def test_weighted_triplet_is_the_loop_over_images(weights, added):
    """At distances of about 10 and of about 100, where the softmax alone has negatives left."""
    for scale in (4, 40):
        images = _images(scale * FEATURES, PERSONS)
        terms = []
        for a in images:
            own = np.array([_d(a, b) for b in images if b[0] == a[0]])  # with the anchor itself
            foreign = np.array([_d(a, b) for b in images if b[0] != a[0]])
            e = np.exp(own - own.max())
            pull = (e * own).sum() / (e.sum() + added)
            e = np.exp(-foreign)
            push = (e * foreign).sum() / (e.sum() + added)
            terms.append(np.logaddexp(0, pull - push))
        actual = weighted_regularized_triplet(scale * FEATURES, PERSONS, weights=weights)
        np.testing.assert_allclose(actual, np.mean(terms), rtol=1e-5)


def _unit_images():
    lengths = np.linalg.norm(FEATURES, axis=-1, keepdims=True)
    return _images(FEATURES / lengths, PERSONS)


def test_bdtr_of_the_author_keeps_the_two_chosen_images_apart():
    images = _unit_images()
    expected = 0.0
    for m in (0, 1):
        anchors, others = _of(images, m), _of(images, 1 - m)
        expected += _hardest(anchors, others, 0.5)
        apart = []
        for a in anchors:
            p = max((b for b in others if b[0] == a[0]), key=lambda b, a=a: _d(a, b))
            n = min((b for b in others if b[0] != a[0]), key=lambda b, a=a: _d(a, b))
            apart.append(max(0.0, 1.2 - _d(p, n)))
        expected += 0.1 * np.mean(apart)
    actual = bdtr(FEATURES, PERSONS, intra_margin=1.2)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bi_center_is_the_loop_over_images_and_centers():
    images, centers = _images(FEATURES, PERSONS), _centers(FEATURES, PERSONS)
    expected = sum(_hardest(_of(images, m), _of(centers, 1 - m), 0.5) for m in (0, 1))
    np.testing.assert_allclose(bi_center(FEATURES, PERSONS), expected, rtol=1e-5)


def test_hetero_center_triplet_is_batch_hard_over_centers():
    centers = _centers(FEATURES, PERSONS)
    expected = _hardest(centers, centers, 0.3)
    np.testing.assert_allclose(hetero_center_triplet(FEATURES, PERSONS), expected, rtol=1e-5)


# --- What an optimizer would see ---------------------------------------------------------


def test_weights_of_a_softmax_still_push_at_large_distances():
    """The released ones vanish there, and the row that is far from its negatives stays."""
    x = np.array([[[0.0, 0.0]], [[50.0, 0.0]], [[0.0, 40.0]]], np.float32)
    slopes = jax.jit(
        jax.value_and_grad(agw.weighted_regularized_triplet), static_argnames="weights"
    )
    value, gradient = slopes(x, np.array([0, 0, 1]), weights="softmax")
    # Anchors 0, 1, 2 see their positive at 50, 50, 0 and their negative at 40, 64, 40.
    weights = [1 / (1 + math.exp(-gap)) for gap in (50 - 40, 50 - math.hypot(50, 40), -40)]
    assert float(value) == pytest.approx(10 / 3, rel=1e-4)
    away = -(weights[0] + weights[1] * 40 / math.hypot(50, 40) + weights[2]) / 3
    assert np.asarray(gradient)[2, 0, 1] == pytest.approx(away, rel=1e-4)
    # The same at any distance, without an overflow; released, the negatives do not count.
    for scale in (1, 1e4):
        value, gradient = slopes(scale * x, np.array([0, 0, 1]), weights="released")
        assert float(value) == pytest.approx((2 * 50 * scale + math.log(2)) / 3, rel=1e-5)
        assert np.isfinite(gradient).all() and np.abs(gradient[2]).max() < 1e-9


def test_equally_far_positives_share_the_gradient():
    """Rows at 0, 1, -1 of one identity and at 1.5 of another: 1 and -1 are as far from 0."""
    x = jnp.array([[[0.0]], [[1.0]], [[-1.0]], [[1.5]]])
    slope = jax.jit(jax.grad(triplet.batch_hard_triplet))
    gradient = slope(x, np.array([0, 0, 0, 1]), margin=1.0)
    # By anchor, with all three hinges open; the row at 1.5 has no positive and is no anchor.
    of_0 = np.array([0 + 1, 0.5, -0.5, -1])  # half a pull from either side cancels
    of_1 = np.array([0, 1 + 1, -1, -1])
    of_minus_1 = np.array([0, 1, -1 + 1, -1])
    expected = (of_0 + of_1 + of_minus_1) / 3
    np.testing.assert_allclose(gradient[:, 0, 0], expected, rtol=1e-5, atol=1e-6)
