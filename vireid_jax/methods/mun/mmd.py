"""Maximum mean discrepancy: a distance between two sets of features."""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import wide

BANDWIDTHS = ("adaptive", "fixed", "median")
SCALES = 5  # kernels, each twice as wide as the one before
FLOOR = 1e-9  # keeps the exponent finite when all rows coincide


def mmd(
    x: jax.Array, y: jax.Array, *, bandwidth: str = "adaptive", sigma: float = 1.0
) -> jax.Array:
    """Squared MMD of two sets of K rows, with Gaussian kernels.

    mean_jk ( k(x_j, x_k) + k(y_j, y_k) - k(x_j, y_k) - k(y_j, x_k) ), the diagonals included
    (a biased V-statistic), so that two sets of one distribution give more than 0: 1.54 for
    K = 4 and 2048 normal numbers; sets far apart give 7.4. The kernel, with D the *squared*
    distance of two of the n = 2K stacked rows and no factor 2:
      "adaptive": sum_{j=0..4} exp(-D / (2^j b / 4 + 1e-9)), b = sum D / (n^2 - n), the mean
        over pairs of different rows. As in MMD-ReID, which MUN cites for its eqs 15-16.
      "fixed": the same with b = sigma, a squared distance; the division by 4 and the five
        scales stay, as in the common implementation's `fix_sigma`, so that sigma equal to
        the mean squared distance is "adaptive".
      "median": one kernel exp(-D / (b + 1e-9)), b the median of D over pairs of different
        rows.
    No gradient passes through b. The value of "adaptive" and "median" does not change when
    all features are multiplied by a number; its gradient still has a part that shrinks them.

    Args:
      x: [..., K, D].
      y: [..., K, D].
      bandwidth: "adaptive", "fixed" or "median".
      sigma: b of "fixed", > 0.

    Returns:
      [...], float32 or wider. 0 with a zero gradient where all rows coincide.

    Raises:
      ValueError: for shapes that do not fit, an unknown bandwidth or sigma <= 0.
    """
    if x.ndim < 2 or x.shape != y.shape or x.shape[-2] < 1:
        raise ValueError(f"got {x.shape} and {y.shape}, expected [..., K, D] twice, K >= 1")
    if bandwidth not in BANDWIDTHS:
        raise ValueError(f"bandwidth is {bandwidth!r}, expected one of {BANDWIDTHS}")
    if bandwidth == "fixed" and not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected a squared distance > 0")
    k = x.shape[-2]
    rows = jnp.concatenate([wide(x), wide(y)], axis=-2)
    # Differences, not products: few rows, and no digits are lost. Squares are smooth at 0.
    difference = rows[..., :, None, :] - rows[..., None, :, :]
    squared = (difference * difference).sum(-1)  # [..., n, n]
    width = jax.lax.stop_gradient(_bandwidth(squared, bandwidth, sigma))[..., None, None]
    if bandwidth == "median":
        kernel = jnp.exp(-squared / (width + FLOOR))
    else:
        scales = [width / 4 * 2**j + FLOOR for j in range(SCALES)]
        kernel = sum((jnp.exp(-squared / s) for s in scales), jnp.zeros_like(squared))
    within = kernel[..., :k, :k] + kernel[..., k:, k:]
    across = kernel[..., :k, k:] + kernel[..., k:, :k]
    return (within - across).mean((-2, -1))


def _bandwidth(squared: jax.Array, bandwidth: str, sigma: float) -> jax.Array:
    """The bandwidth b [...] of squared distances [..., n, n]."""
    n = squared.shape[-1]
    if bandwidth == "fixed":
        return jnp.full(squared.shape[:-2], sigma, squared.dtype)
    if bandwidth == "median":
        return jnp.median(squared[..., *jnp.triu_indices(n, 1)], axis=-1)
    return squared.sum((-2, -1)) / (n * n - n)
