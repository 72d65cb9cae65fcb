"""The gradient of the matrix of distances, which is not that of its differences."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.parity import relative_error
from tests.support.rows import each
from vireid_jax.losses.distance import pairwise_distance, safe_norm, unit

R = np.random.default_rng(2)


def _plain(a, b):
    """The same distances, differentiated as they stand."""
    return safe_norm(a[:, None, :] - b[None, :, :])


def _gradients(distance, a, b, along):
    return jax.jit(jax.grad(lambda a, b: (along * distance(a, b)).sum(), (0, 1)))(a, b)


@each("shape, shift", [((5, 7, 64), 0.0), ((1, 3, 4), 20.0), ((6, 1, 4), 20.0)])
def test_gradient_is_that_of_the_differences(shape, shift):
    rows, others, width = shape
    a, b = ((R.normal(size=(n, width)) + shift).astype(np.float32) for n in (rows, others))
    along = R.normal(size=(rows, others)).astype(np.float32)
    with jax.enable_x64(True):
        exact = _gradients(_plain, *(jnp.asarray(x, jnp.float64) for x in (a, b, along)))
    for actual, expected in zip(_gradients(pairwise_distance, a, b, along), exact, strict=True):
        assert relative_error(actual, expected) < 2e-6


def test_gradient_of_a_set_with_itself():
    x = R.normal(size=(6, 9)).astype(np.float32)
    x[3] = x[1]  # a duplicate, besides the diagonal
    along = R.normal(size=(6, 6)).astype(np.float32)
    actual, expected = (
        jax.jit(jax.grad(lambda x, f=f: (along * f(x, x)).sum()))(x)
        for f in (pairwise_distance, _plain)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@each("gap, error", [(1e-1, 1e-3), (1e-2, 1e-2), (1e-3, 1e-1)])
def test_gradient_of_a_close_pair_among_spread_rows(gap, error):
    """Rows of length 45: what is left of the direction of a pair `gap` apart."""
    x = R.normal(size=(12, 2048)).astype(np.float32)
    way = R.normal(size=2048)
    x[1] = x[0] + (gap * way / np.linalg.norm(way)).astype(np.float32)
    exact = x[0].astype(float) - x[1].astype(float)
    exact /= np.linalg.norm(exact)
    actual = jax.jit(jax.grad(lambda x: pairwise_distance(x, x)[0, 1]))(x)
    assert np.linalg.norm(actual[0] - exact) < error
    assert np.linalg.norm(actual[1] + exact) < error


def test_rows_equal_to_rounding_have_no_gradient():
    x = R.normal(size=(4, 2048)).astype(np.float32)
    x[1] = np.nextafter(x[0], np.inf)
    gradient = jax.jit(jax.grad(lambda x: pairwise_distance(x, x)[0, 1]))(x)
    np.testing.assert_array_equal(gradient, 0)


def test_gradient_holds_no_array_of_all_differences():
    x = jnp.zeros((96, 2048))
    compiled = jax.jit(jax.grad(lambda x: pairwise_distance(x, x).sum())).lower(x).compile()
    all_differences = 96 * 96 * 2048 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_differences / 10


def test_forward_mode_agrees_with_reverse_mode():
    a, b = (R.normal(size=(k, 8)).astype(np.float32) for k in (3, 4))
    forward, reverse = (
        jax.jit(jacobian(pairwise_distance))(a, b) for jacobian in (jax.jacfwd, jax.jacrev)
    )
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-6)


def test_what_is_not_a_number_keeps_its_gradient():
    x = R.normal(size=(3, 4)).astype(np.float32)
    x[0, 0] = np.nan
    assert np.isnan(jax.jit(jax.grad(lambda x: pairwise_distance(x, x)[0, 1]))(x)).any()


def test_sides_of_two_widths_meet_in_the_wider():
    with jax.enable_x64(True):
        a, b = jnp.ones((2, 3), jnp.bfloat16), jnp.zeros((2, 3), jnp.float64)
        gradients = _gradients(pairwise_distance, a, b, 1.0)
        assert pairwise_distance(a, b).dtype == jnp.float64
        assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float64]


def test_unit_vectors():
    x = R.normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(unit(x), x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-6)
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all() and not unit(jnp.zeros((2, 3))).any()
