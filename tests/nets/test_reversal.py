"""Gradient reversal: the same value, the opposite gradient, and the ramp of its strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.methods.idkl.reversal import ramp, reverse_gradient

X = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4)), jnp.float32)
WEIGHT = jnp.asarray(np.random.default_rng(4).normal(size=(3, 4)), jnp.float32)


@jax.jit
def both(x, strength):
    """The value behind the reversal, and gradients of a loss of it."""

    def loss(x, strength):
        return (WEIGHT * jnp.sin(reverse_gradient(x, strength))).sum()

    return reverse_gradient(x, strength), jax.grad(loss, (0, 1))(x, strength)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, 3.0])
def test_the_value_is_the_same_and_the_gradient_minus_strength_times(strength):
    value, (gradient, by_strength) = both(X, jnp.float32(strength))
    np.testing.assert_array_equal(value, X)
    np.testing.assert_allclose(gradient, -strength * WEIGHT * jnp.cos(X), rtol=1e-5, atol=1e-7)
    assert by_strength == 0  # the strength is told, not learned


def test_a_number_that_is_no_array():
    value, gradient = jax.value_and_grad(lambda x: (3 * reverse_gradient(x, 2)).sum())(X)
    np.testing.assert_allclose(value, 3 * X.sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradient, np.full(X.shape, -6.0))


def test_twice_is_the_product_of_the_strengths():
    gradient = jax.grad(lambda x: reverse_gradient(reverse_gradient(x, 2.0), 3.0).sum())(X)
    np.testing.assert_array_equal(gradient, np.full(X.shape, 6.0))


def test_what_lies_behind_is_trained_as_ever():
    """The head descends; what comes before it ascends."""

    def loss(params):
        return (jnp.float32(2) * params["head"] * reverse_gradient(params["base"], 1.0)).sum()

    gradient = jax.grad(loss)({"head": jnp.float32(3), "base": jnp.float32(5)})
    assert gradient == {"head": 10, "base": -6}


def test_half_precision_keeps_its_type():
    x = X.astype(jnp.bfloat16)
    value = reverse_gradient(x, 0.5)
    gradient = jax.grad(lambda x: reverse_gradient(x, jnp.float32(0.5)).sum())(x)
    assert value.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(np.float32), np.full(X.shape, -0.5))


# --- The ramp ---------------------------------------------------------------------------


def test_the_ramp_goes_from_0_to_almost_1():
    """2 / (1 + e^-10q) - 1, by hand at the ends and in the middle."""
    steps = 101
    values = np.asarray(ramp(jnp.arange(steps), steps))
    expected = [2 / (1 + np.exp(-10 * n / (steps - 1))) - 1 for n in range(steps)]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert values[0] == 0 and (np.diff(values[:80]) > 0).all()
    assert values[-1] == pytest.approx(0.9999, abs=1e-5)
    assert values[50] == pytest.approx(0.98661, abs=1e-5)


@pytest.mark.parametrize(
    "step, steps, value", [(0, 1, 0.0), (5, 1, 0.99991), (500, 100, 0.99991), (-1, 100, 0.0)]
)
def test_steps_beyond_the_training_stay_in_the_range(step, steps, value):
    assert float(ramp(jnp.int32(step), steps)) == pytest.approx(value, abs=1e-5)
