"""Distances, identity losses and centers: naive loops, degenerate input, precision, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import relative_error
from tests.support.rows import each
from vireid_jax.losses import center, distance, identity
from vireid_jax.losses.distance import safe_norm

R = np.random.default_rng(7)
LOGITS = R.normal(0, 3, (10, 6)).astype(np.float32)
LABELS = R.integers(6, size=10).astype(np.int32)

# Compiled whole: one operation at a time costs a test several times as much.
pairwise_distance = jax.jit(distance.pairwise_distance)
lengths = jax.jit(jax.value_and_grad(lambda x: safe_norm(x).sum()))
cross_entropy = jax.jit(identity.cross_entropy)
slopes = jax.jit(jax.value_and_grad(identity.cross_entropy))
row_centers = jax.jit(center.row_centers, static_argnames="normalize")


# --- Distances --------------------------------------------------------------------------


def test_pairwise_distance_is_the_loop_over_pairs():
    a, b = R.normal(size=(4, 9)).astype(np.float32), R.normal(size=(3, 9)).astype(np.float32)
    expected = [[math.dist(x, y) for y in b.tolist()] for x in a.tolist()]
    np.testing.assert_allclose(pairwise_distance(a, b), expected, rtol=1e-6)


def test_distance_keeps_its_digits_where_the_expanded_square_loses_them():
    a = R.normal(size=(4, 512)).astype(np.float32) * 2  # length about 45
    b = a + R.normal(size=a.shape).astype(np.float32) * 1e-3  # 0.02 away
    exact = np.sqrt(((a.astype(float) - b.astype(float)) ** 2).sum(1))
    assert relative_error(np.diag(pairwise_distance(a, b)), exact) < 1e-6


def test_norm_has_a_unit_gradient_that_vanishes_near_zero():
    for scale in (0.0, 1e-30, 1e-9):
        value, gradient = lengths(np.full((3, 4), scale, np.float32))
        np.testing.assert_allclose(value, 3e-6, rtol=1e-5)
        np.testing.assert_array_equal(gradient, 0)
    x = 1e-3 * R.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(lengths(x)[1], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(safe_norm(x, axis=0), np.linalg.norm(x, axis=0), rtol=1e-6)


def test_distances_of_identical_rows_have_finite_gradients():
    gradient = jax.jit(jax.grad(lambda x: distance.pairwise_distance(x, x).sum()))(np.ones((4, 8)))
    np.testing.assert_array_equal(gradient, 0)


def test_distances_in_half_precision_are_computed_in_float32():
    x = jnp.asarray(R.normal(size=(6, 256)), jnp.bfloat16)
    distances = pairwise_distance(x, x)
    assert distances.dtype == jnp.float32
    wide = x.astype(jnp.float32)
    np.testing.assert_allclose(distances, pairwise_distance(wide, wide), rtol=1e-2, atol=2e-6)


@each("a, b", [((3, 4), (3, 5)), ((3,), (3, 4)), ((2, 3, 4), (3, 4))])
def test_pairwise_distance_refuses_shapes_that_do_not_fit(a, b):
    with pytest.raises(ValueError, match=r"expected \[N, D\] and \[L, D\]"):
        pairwise_distance(np.zeros(a), np.zeros(b))


# --- Identity ---------------------------------------------------------------------------


def _by_hand(logits, labels, margin):
    total = 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        own = math.exp(z[y] - margin)
        total -= math.log(own / (own + sum(math.exp(v) for u, v in enumerate(z) if u != y)))
    return total / len(labels)


def test_cross_entropy_is_the_formula_in_any_order_of_rows():
    order = R.permutation(10)
    for margin in (0.0, 1.0, 4.0):
        expected = _by_hand(LOGITS, LABELS, margin)
        for z, y in ((LOGITS, LABELS), (LOGITS[order], LABELS[order])):
            value, _ = slopes(z, y, margin=margin)
            np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_margin_in_both_places_divides_the_odds_of_the_true_identity():
    def odds(margin):  # from the gradient of the true logit, (p - 1) / N
        _, gradient = slopes(LOGITS / 3, LABELS, margin=margin)
        p = 1 + 10 * np.asarray(gradient)[np.arange(10), LABELS]
        return p / (1 - p)

    np.testing.assert_allclose(odds(2.0) * np.exp(2), odds(0.0), rtol=1e-4)


@each(
    "classes, margin, expected",
    [(395, 0, 5.979), (395, 4, 9.976), (206, 0, 5.328), (206, 1, 6.325)],
)
def test_loss_of_a_fresh_classifier(classes, margin, expected):
    value = cross_entropy(np.zeros((16, classes)), np.arange(16), margin=float(margin))
    assert abs(float(value) - expected) < 5e-4


@each("size", [0.0, 1e4, 3e38])
def test_cross_entropy_of_extreme_logits_is_finite(size):
    signs = np.where(R.random((10, 6)) < 0.5, -1, 1).astype(np.float32)
    value, gradient = slopes(signs * np.float32(size / 100), LABELS, margin=4.0)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_cross_entropy_in_half_precision():
    value, half = (cross_entropy(z, LABELS) for z in (LOGITS, jnp.asarray(LOGITS, jnp.bfloat16)))
    assert half.dtype == value.dtype == jnp.float32
    np.testing.assert_allclose(half, value, rtol=1e-2)


@each("logits, labels", [((4,), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1))])
def test_cross_entropy_refuses_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"expected \[N, C\] and \[N\]"):
        cross_entropy(np.zeros(logits), np.zeros(labels, np.int32))


def test_accuracy_counts_the_largest_logits():
    expected = np.mean([np.argmax(z) == y for z, y in zip(LOGITS, LABELS, strict=True)])
    np.testing.assert_allclose(identity.accuracy(LOGITS, LABELS), expected, rtol=1e-6)


# --- Centers ----------------------------------------------------------------------------

FEATURES = R.normal(size=(6, 2, 5)).astype(np.float32)
PERSONS = np.array([4, 0, 4, 9, 0, 4], np.int32)  # 3, 2 and 1 rows, not adjacent


def test_row_centers_are_means_over_equal_labels():
    order = R.permutation(6)
    for features, persons in ((FEATURES, PERSONS), (FEATURES[order], PERSONS[order])):
        centers, weight = row_centers(features, persons)
        units, _ = row_centers(features, persons, normalize=True)
        for n, person in enumerate(persons):
            mean = features[persons == person].mean(0)
            np.testing.assert_allclose(centers[n], mean, rtol=1e-5, atol=1e-7)
            length = np.linalg.norm(mean, axis=-1, keepdims=True)
            np.testing.assert_allclose(units[n], mean / length, rtol=1e-5, atol=1e-7)
            assert float(weight[n]) == pytest.approx(1 / (persons == person).sum())
        assert float(weight.sum()) == pytest.approx(len(set(persons.tolist())))


@each("normalize", [False, True])
def test_row_centers_of_zero_features_have_finite_gradients(normalize):
    total = jax.jit(
        jax.value_and_grad(lambda x: center.row_centers(x, PERSONS, normalize=normalize)[0].sum())
    )
    value, gradient = total(np.zeros((6, 2, 5), np.float32))
    assert float(value) == 0 and np.isfinite(gradient).all()


def test_row_centers_of_half_precision_features_are_float32():
    half = jnp.asarray(FEATURES, jnp.bfloat16)
    centers, weight = row_centers(half, PERSONS)
    assert centers.dtype == weight.dtype == jnp.float32
    exact, _ = row_centers(np.asarray(half, np.float32), PERSONS)
    np.testing.assert_allclose(centers, exact, rtol=1e-6)


@each("features, labels", [((6, 5), (6,)), ((6, 2, 5), (5,)), ((6, 2, 5), (6, 2))])
def test_row_centers_refuse_shapes_that_do_not_fit(features, labels):
    with pytest.raises(ValueError, match=r"expected \[B, M, D\] and \[B\]"):
        row_centers(np.zeros(features), np.zeros(labels, np.int32))
