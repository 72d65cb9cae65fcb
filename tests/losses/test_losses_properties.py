"""Distances, identity losses and centers: naive loops, degenerate input, precision, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import relative_error
from tests.support.rows import each
from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance, safe_norm
from vireid_jax.losses.identity import accuracy, cross_entropy

R = np.random.default_rng(7)
LOGITS = R.normal(0, 3, (10, 6)).astype(np.float32)
LABELS = R.integers(6, size=10).astype(np.int32)


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


@each("scale", [0.0, 1e-30, 1e-9])
def test_norm_at_and_near_zero_has_a_small_finite_gradient(scale):
    x = jnp.full((3, 4), scale)
    value, gradient = jax.value_and_grad(lambda x: safe_norm(x).sum())(x)
    np.testing.assert_allclose(value, 3e-6, rtol=1e-5)
    np.testing.assert_array_equal(gradient, 0)


def test_norm_away_from_zero_has_a_unit_gradient():
    x = jnp.asarray(R.normal(size=(5, 8)), jnp.float32) * 1e-3
    gradient = jax.grad(lambda x: safe_norm(x).sum())(x)
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=1), 1, rtol=1e-5)


def test_norm_along_another_axis():
    x = R.normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_allclose(safe_norm(x, axis=0), np.linalg.norm(x, axis=0), rtol=1e-6)


def test_distances_of_identical_rows_have_finite_gradients():
    x = jnp.ones((4, 8))
    gradient = jax.grad(lambda x: pairwise_distance(x, x).sum())(x)
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
        pairwise_distance(jnp.zeros(a), jnp.zeros(b))


# --- Identity ---------------------------------------------------------------------------


def _by_hand(logits, labels, margin):
    total = 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        z = np.array(z)
        own = math.exp(z[y] - margin)
        denominator = sum(math.exp(v) for u, v in enumerate(z) if u != y)
        total -= math.log(own / (own + denominator))
    return total / len(labels)


def test_cross_entropy_is_the_formula():
    for margin in (0.0, 1.0, 4.0):
        actual = cross_entropy(LOGITS, LABELS, margin=margin)
        np.testing.assert_allclose(actual, _by_hand(LOGITS, LABELS, margin), rtol=1e-5)


def test_no_margin_is_softmax():
    plain = -np.asarray(jax.nn.log_softmax(LOGITS))[np.arange(10), LABELS].mean()
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), plain, rtol=1e-6)


def test_the_margin_in_both_places_divides_the_odds_of_the_true_identity():
    def odds(margin):  # from the gradient of the true logit, (p - 1) / N
        z = LOGITS / 3
        gradient = jax.grad(lambda z: cross_entropy(z, LABELS, margin=margin))(z)
        p = 1 + 10 * np.asarray(gradient)[np.arange(10), LABELS]
        return p / (1 - p)

    np.testing.assert_allclose(odds(2.0) * np.exp(2), odds(0.0), rtol=1e-4)


@each(
    "classes, margin, expected",
    [(395, 0, 5.979), (395, 4, 9.976), (206, 0, 5.328), (206, 1, 6.325)],
)
def test_loss_of_a_fresh_classifier(classes, margin, expected):
    value = cross_entropy(jnp.zeros((16, classes)), jnp.arange(16), margin=float(margin))
    assert abs(float(value) - expected) < 5e-4


@each("size", [0.0, 1e4, 3e38])
def test_cross_entropy_of_extreme_logits_is_finite(size):
    signs = jnp.asarray(np.where(R.random((10, 6)) < 0.5, -1, 1), jnp.float32)
    value, gradient = jax.value_and_grad(lambda z: cross_entropy(z, LABELS, margin=4.0))(
        signs * size / 100
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_cross_entropy_has_no_order_of_rows():
    order = R.permutation(10)
    for margin in (0.0, 4.0):
        one = cross_entropy(LOGITS, LABELS, margin=margin)
        two = cross_entropy(LOGITS[order], LABELS[order], margin=margin)
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_cross_entropy_jitted_and_in_half_precision():
    def loss(z):
        return cross_entropy(z, LABELS, margin=4.0)

    eager = loss(LOGITS)
    np.testing.assert_allclose(jax.jit(loss)(LOGITS), eager, rtol=1e-6)
    half = loss(jnp.asarray(LOGITS, jnp.bfloat16))
    assert half.dtype == eager.dtype == jnp.float32
    np.testing.assert_allclose(half, eager, rtol=1e-2)


@each("logits, labels", [((4,), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1))])
def test_cross_entropy_refuses_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"expected \[N, C\] and \[N\]"):
        cross_entropy(jnp.zeros(logits), jnp.zeros(labels, jnp.int32))


def test_accuracy_counts_the_largest_logits():
    expected = np.mean([np.argmax(z) == y for z, y in zip(LOGITS, LABELS, strict=True)])
    np.testing.assert_allclose(accuracy(LOGITS, LABELS), expected, rtol=1e-6)


# --- Centers ----------------------------------------------------------------------------

FEATURES = R.normal(size=(6, 2, 5)).astype(np.float32)
PERSONS = np.array([4, 0, 4, 9, 0, 4], np.int32)  # 3, 2 and 1 rows, not adjacent


def test_row_centers_are_means_over_equal_labels():
    centers, weight = row_centers(FEATURES, PERSONS)
    for n, person in enumerate(PERSONS):
        rows = [k for k in range(6) if PERSONS[k] == person]
        np.testing.assert_allclose(centers[n], FEATURES[rows].mean(0), rtol=1e-5, atol=1e-7)
        assert float(weight[n]) == pytest.approx(1 / len(rows))
    assert float(weight.sum()) == pytest.approx(len(set(PERSONS.tolist())))


def test_row_centers_can_be_unit_vectors():
    centers, _ = row_centers(FEATURES, PERSONS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(centers, axis=-1), 1, rtol=1e-6)
    plain, _ = row_centers(FEATURES, PERSONS)
    cosine = (centers * plain).sum(-1) / np.linalg.norm(plain, axis=-1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


@each("normalize", [False, True])
def test_row_centers_follow_their_rows(normalize):
    order = R.permutation(6)
    one = row_centers(FEATURES, PERSONS, normalize=normalize)
    two = row_centers(FEATURES[order], PERSONS[order], normalize=normalize)
    for x, y in zip(one, two, strict=True):
        np.testing.assert_allclose(x[order], y, rtol=1e-5, atol=1e-6)


@each("normalize", [False, True])
def test_row_centers_of_zero_features_have_finite_gradients(normalize):
    def total(x):
        return row_centers(x, PERSONS, normalize=normalize)[0].sum()

    value, gradient = jax.value_and_grad(total)(jnp.zeros((6, 2, 5)))
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
        row_centers(jnp.zeros(features), jnp.zeros(labels, jnp.int32))
