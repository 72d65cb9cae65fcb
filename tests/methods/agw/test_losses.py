"""CAJ's enhanced squared difference: PyTorch, loops, its slope, edges, precision, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.loops import distance, numeric
from tests.support.parity import loss_tests
from tests.support.rows import each
from vireid_jax.methods.agw.losses import squared_difference, weighted_regularized_triplet


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    """Losses are compiled with optimizations, unlike the whole models of this folder."""


R = np.random.default_rng(31)
PERSONS = np.array([4, 0, 4, 9, 0], np.int32)  # not adjacent, one with a single image a modality
FEATURES = R.normal(size=(10, 1, 4))[PERSONS] + 0.9 * R.normal(size=(5, 2, 4))


def gaps(features, persons, added=1e-6):
    """For each row the weighted distance to its identity less the one to the others."""
    rows, persons = features.reshape(-1, features.shape[-1]), np.repeat(persons, features.shape[1])
    result = []
    for x, person in zip(rows, persons, strict=True):
        d = np.array([max(distance(x, y), 1e-6) for y in rows])  # as in the authors' code
        near, far = d[persons == person], d[persons != person]
        e = np.exp(near - near.max())
        pull = sum(e * near) / (sum(e) + added)
        push = sum(np.exp(-far) * far) / (sum(np.exp(-far)) + added)
        result.append(pull - push)
    return np.array(result)


def by_loops(features, persons=PERSONS, added=1e-6):
    """The authors' soft margin of a clamped square, log(1 + exp(-y x)) with y of -1 or 1."""
    values = []
    for gap in gaps(features, persons, added):
        x, y = min(gap**2, 88.0), -1 if gap > 0 else 1
        values.append(np.log1p(np.exp(-y * x)))
    return np.mean(values)


BOTH = jax.jit(jax.value_and_grad(squared_difference))
SOFTMAX = jax.jit(jax.value_and_grad(functools.partial(squared_difference, weights="softmax")))
PLAIN = jax.jit(jax.value_and_grad(weighted_regularized_triplet))


def ours(features, persons=PERSONS, both=BOTH):
    """Value and gradient in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, both(jnp.asarray(features), jnp.asarray(persons)))


def test_its_slope_grows_with_the_gap_and_is_none_where_there_is_none():
    """Unlike the slope of the loss without the square, which is 1/2 at a gap of 0."""
    small, large = (np.linalg.norm(ours(s * FEATURES)[1]) for s in (1e-4, 1e-3))
    np.testing.assert_allclose(large / small, 10, rtol=0.01)
    plain = [np.linalg.norm(ours(s * FEATURES, both=PLAIN)[1]) for s in (1e-4, 1e-3)]
    np.testing.assert_allclose(plain[1] / plain[0], 1, rtol=0.01)
    assert np.linalg.norm(ours(3 * FEATURES)[1]) > plain[1] > 100 * large


def test_a_gap_beyond_the_bound_is_not_reduced():
    """As in the authors' code: a square over 88 has no slope, so that such rows learn nothing.

    With released weights no negative brings it back: the loss stands at 88.
    """
    x = np.array([[[-30.0, 0], [30, 0]], [[0, 1], [0, -1]]])
    persons = np.array([1, 2])
    assert (gaps(x, persons)[:2] > 9.4).all()
    value, gradient = ours(x, persons)
    np.testing.assert_allclose(gradient, numeric(lambda x: by_loops(x, persons), x), atol=1e-6)
    np.testing.assert_allclose(value, by_loops(x, persons))
    value, gradient = ours(40 * FEATURES)
    np.testing.assert_allclose(value, 88)
    assert not gradient.any()
    value, gradient = ours(40 * FEATURES, both=SOFTMAX)
    np.testing.assert_allclose(value, by_loops(40 * FEATURES, added=0))
    assert value < 87 and gradient.any() and np.isfinite(gradient).all()


@pytest.mark.slow
def test_any_order_of_rows():
    order = R.permutation(len(PERSONS))
    expected, _ = ours(FEATURES)
    np.testing.assert_allclose(expected, by_loops(FEATURES), rtol=1e-12)
    moved, _ = ours(FEATURES[order][:, ::-1], PERSONS[order])
    np.testing.assert_allclose(moved, expected, rtol=1e-12)
    np.testing.assert_allclose(ours(FEATURES, PERSONS + 7)[0], expected)


def test_of_one_identity_it_is_0():
    value, gradient = ours(FEATURES, np.zeros_like(PERSONS))
    assert value == 0 and not gradient.any()


def test_of_equal_rows_and_rows_far_apart():
    """No gap: log 2, and no direction to go; roots written plainly have none but NaN."""
    value, gradient = BOTH(jnp.ones((5, 2, 4)), PERSONS)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert not gradient.any()
    x = np.float32(1000 * FEATURES)
    x[2, 0] = x[0, 1] = 0
    value, gradient = BOTH(x, PERSONS)
    assert np.isfinite(value) and np.isfinite(gradient).all() and 0 <= value <= 88


@pytest.mark.slow
def test_half_precision_is_widened():
    half = jnp.asarray(FEATURES, jnp.bfloat16)
    value, _ = BOTH(half, PERSONS)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, BOTH(half.astype(jnp.float32), PERSONS)[0], rtol=1e-6)
    np.testing.assert_allclose(value, by_loops(FEATURES), rtol=0.05)


@each("shape", [(5, 4), (4, 2, 4), (5, 2, 4, 1)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"expected \[B, M, D\] and \[B\]"):
        squared_difference(jnp.zeros(shape), PERSONS)


FUNCTIONS = {"caj": (squared_difference, "features labels")}
test_value_and_gradient, test_the_cases_test_something = loss_tests(FUNCTIONS, rtol64=1e-11)
