"""The maximum mean discrepancy: a loop in NumPy, its known values, and its edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.methods.mun import mmd as module
from vireid_jax.methods.mun.mmd import BANDWIDTHS

R = np.random.default_rng(3)
X = R.normal(size=(4, 6)).astype(np.float32)
Y = (1.5 * R.normal(size=(4, 6)) + 0.5).astype(np.float32)
SIGMA = 9.0

mmd = jax.jit(module.mmd, static_argnames=("bandwidth", "sigma"))
every = pytest.mark.parametrize("bandwidth", BANDWIDTHS)


@partial(jax.jit, static_argnums=2)
def _with_gradient(x, y, bandwidth):
    def total(x):
        return module.mmd(x, y, bandwidth=bandwidth, sigma=SIGMA).sum()

    return jax.value_and_grad(total)(x)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _by_hand(x, y, bandwidth):
    rows = np.concatenate([x, y]).astype(float)
    squared = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    pairs = [squared[j, k] for j in range(len(rows)) for k in range(j)]
    if bandwidth == "median":
        kernel = np.exp(-squared / np.median(pairs))
    else:
        b = {"adaptive": np.mean(pairs), "fixed": SIGMA}[bandwidth]
        kernel = sum(np.exp(-squared / (b * s)) for s in (0.25, 0.5, 1, 2, 4))
    sign = np.repeat([1.0, -1.0], len(x))
    return sign @ kernel @ sign / len(x) ** 2


@every
def test_mmd_is_the_mean_of_kernels(bandwidth):
    actual = mmd(X, Y, bandwidth=bandwidth, sigma=SIGMA)
    np.testing.assert_allclose(actual, _by_hand(X, Y, bandwidth), rtol=1e-5)


@every
def test_a_set_is_at_no_distance_from_itself(bandwidth):
    value, gradient = _with_gradient(X, X, bandwidth)
    assert abs(float(value)) < 1e-6
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@every
def test_mmd_is_symmetric_and_its_sets_have_no_order(bandwidth):
    value = mmd(X, Y, bandwidth=bandwidth, sigma=SIGMA)
    for other in (
        mmd(Y, X, bandwidth=bandwidth, sigma=SIGMA),
        mmd(X[R.permutation(4)], Y[R.permutation(4)], bandwidth=bandwidth, sigma=SIGMA),
    ):
        np.testing.assert_allclose(other, value, rtol=1e-5)


@every
def test_leading_axes_are_batches(bandwidth):
    x, y = R.normal(size=(2, 3, 4, 6)), R.normal(size=(2, 3, 4, 6)) + 1
    values = mmd(jnp.float32(x), jnp.float32(y), bandwidth=bandwidth, sigma=SIGMA)
    assert values.shape == (2, 3)
    for at in np.ndindex(2, 3):
        np.testing.assert_allclose(values[at], _by_hand(x[at], y[at], bandwidth), rtol=1e-4)


def test_known_values_of_sets_of_four():
    """K = 4 rows of 2048 normal numbers: 1.54 for one distribution, 7.4 far apart."""
    x, y = gaussian(48, 4, 2048), gaussian(48, 4, 2048, seed=1)
    same, apart = np.asarray(mmd(x, y)), np.asarray(mmd(x, y + 50))
    assert same.mean() == pytest.approx(1.54, abs=0.01) and same.std() < 0.03
    assert apart.mean() == pytest.approx(7.4, abs=0.1)


@pytest.mark.parametrize("bandwidth", ["adaptive", "median"])
def test_the_scale_of_features_does_not_matter(bandwidth):
    value = mmd(X, Y, bandwidth=bandwidth)
    for scale in (0.1, 30.0):
        np.testing.assert_allclose(mmd(X * scale, Y * scale, bandwidth=bandwidth), value, rtol=1e-4)
    tiny = float(mmd(X * 1e-6, Y * 1e-6, bandwidth=bandwidth))  # the floor of 1e-9 takes over
    assert tiny < 0.1 * float(value)


def test_a_fixed_bandwidth_of_the_mean_squared_distance_is_the_adaptive_one():
    rows = np.concatenate([X, Y])
    b = float(((rows[:, None] - rows[None]) ** 2).sum() / (8 * 7))
    np.testing.assert_allclose(mmd(X, Y, bandwidth="fixed", sigma=b), mmd(X, Y), rtol=1e-5)
    assert abs(float(mmd(X, Y, bandwidth="fixed", sigma=b / 9) - mmd(X, Y))) > 0.05


def test_no_gradient_passes_through_the_bandwidth():
    rows = np.concatenate([X, Y])
    b = float(((rows[:, None] - rows[None]) ** 2).sum() / (8 * 7))
    adaptive = _with_gradient(X, Y, "adaptive")[1]
    constant = jax.jit(jax.grad(lambda x: mmd(x, Y, bandwidth="fixed", sigma=b)))(X)
    np.testing.assert_allclose(adaptive, constant, rtol=1e-4, atol=1e-7)
    # With it the slope along the scale would be 0, as the value does not depend on the scale.
    slope = jax.jit(jax.grad(lambda s: mmd(s * X, s * Y)))(1.0)
    assert abs(float(slope)) > 0.1


@every
@pytest.mark.parametrize("k", [1, 4])
def test_rows_that_all_coincide_are_finite(bandwidth, k):
    x = jnp.ones((3, k, 5))
    value, gradient = _with_gradient(x, x, bandwidth)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


@every
@pytest.mark.parametrize("scale", [1e-15, 1e-4, 1e15])
def test_extreme_features_are_finite(bandwidth, scale):
    value, gradient = _with_gradient(X * np.float32(scale), Y * np.float32(scale), bandwidth)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@every
def test_half_precision_is_computed_in_float32(bandwidth):
    x, y = (jnp.asarray(v, jnp.bfloat16) for v in (X, Y))
    value = mmd(x, y, bandwidth=bandwidth, sigma=SIGMA)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(
        value,
        mmd(x.astype(jnp.float32), y.astype(jnp.float32), bandwidth=bandwidth, sigma=SIGMA),
        rtol=1e-6,
    )
    np.testing.assert_allclose(value, mmd(X, Y, bandwidth=bandwidth, sigma=SIGMA), rtol=5e-2)


@every
def test_eager_as_compiled(bandwidth):
    eager = module.mmd(jnp.asarray(X), jnp.asarray(Y), bandwidth=bandwidth, sigma=SIGMA)
    np.testing.assert_allclose(eager, mmd(X, Y, bandwidth=bandwidth, sigma=SIGMA), rtol=1e-6)


@pytest.mark.parametrize(
    "x, y", [((4,), (4,)), ((4, 6), (3, 6)), ((2, 4, 6), (4, 6)), ((0, 6),) * 2]
)
def test_shapes_that_do_not_fit_are_refused(x, y):
    with pytest.raises(ValueError, match=r"expected \[\.\.\., K, D\] twice"):
        mmd(jnp.zeros(x), jnp.zeros(y))


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"'mean', expected one of \('adaptive'"):
        mmd(X, Y, bandwidth="mean")
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a squared distance > 0"):
            mmd(X, Y, bandwidth="fixed", sigma=sigma)
