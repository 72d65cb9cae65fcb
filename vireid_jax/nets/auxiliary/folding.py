"""Eqs. 7 to 9 of MUN without the map of all transposed convolutions.

In eqs. 7 to 9 a map of 2nF channels at full resolution is made, normalized and projected to C
channels: 2048 channels for 256 in the paper. All three steps are affine in the pooled cells s:

  place (a, b) of a cell:   z = s W[a, b]                      W[a, b]: [C, F]
  normalized:               (z - mean) * factor + bias         per channel of z
  projected:                ... P                              P: [F, C]
  together:                 s (W[a, b] diag(factor) P) + constant

The statistics of z over all places follow from those of s, cells being as many for each (a, b):

  mean     = average over (a, b) of  E[s] W[a, b]
  variance = average over (a, b) of  w' Cov(s) w + (E[s] w - mean)^2,  w a column of W[a, b]

So one matrix product from C to C for each window, ratio and modality replaces two, from C to F
and from F to C, at every place, and the largest array has C channels instead of 2nF. The
products of weights cost the same for any batch. In exact arithmetic the results are equal.

Both modalities m go through the same W and different P; they stay apart as an axis of weights
and statistics and lie side by side in the channels of cells [B, p, q, M * C].
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init
from vireid_jax.nets.auxiliary.pyramid import Window, depth_to_space

HIGHEST = jax.lax.Precision.HIGHEST  # statistics never in reduced precision
# Fitted to times on CPU of the paper's maps (256 channels, 72 x 36) for 8, 16 and 32 pairs, in
# multiply-adds: what reading and writing a value of a map costs, forward and backward, for eqs. 7
# to 9 one after the other and folded; and how often the products of weights are to be counted.
# Accelerators compute faster still beside their memory, but were not measured.
TRAFFIC, FOLDED_TRAFFIC = 200, 250
WEIGHTS = 2.7
# Where both cost about the same, folding is taken: it keeps a quarter of the memory.
TOLERANCE = 1.1
# Multiply-adds of a step below which nothing is worth 5 s more of compilation.
WORTH_COMPILING = 10**10


def is_cheaper(
    places: int, windows: Sequence[Window], channels: int, features: int, inputs: int
) -> bool:
    """Whether folding is expected to take no longer than eqs. 7 to 9 one after the other.

    Args:
      places: B * h * w.
      windows: of the pyramid.
      channels, features, inputs: C, F, and the inputs of a kernel (C, or 1 for depthwise).
    """
    maps = 2 * len(windows) * places
    taps = sum(a * b for a, b in windows)
    direct = maps * features * (inputs + channels + TRAFFIC)
    weights = 2 * taps * features * (2 * channels if inputs > 1 else 1) * channels
    folded = maps * channels * (channels + FOLDED_TRAFFIC) + WEIGHTS * weights
    return direct > WORTH_COMPILING and folded < TOLERANCE * direct


def moments(cells: jax.Array, modalities: int) -> tuple[jax.Array, jax.Array]:
    """E[s] [M, C] and Cov(s) [M, C, C] of cells [B, p, q, M * C], float32 or wider."""
    rows = cells.reshape(-1, modalities, cells.shape[-1] // modalities)
    mean = rows.mean(0)
    centered = rows - mean[None]
    covariance = jnp.einsum("nmc,nmd->mcd", centered, centered, precision=HIGHEST)
    return mean, covariance / rows.shape[0]


def expanded_moments(
    mean: jax.Array, covariance: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [M, F] of the transposed convolution of cells.

    Args:
      mean, covariance: of cells, [M, C] and [M, C, C].
      kernel: [a, b, C, F], or [a, b, 1, C] for a depthwise one.
    """
    a, b, inputs, features = kernel.shape
    taps = kernel.astype(mean.dtype).reshape(a * b, inputs, features)
    if inputs == 1:
        by_tap = mean[:, None] * taps[None, :, 0]
        variances = jnp.diagonal(covariance, axis1=1, axis2=2)
        within = variances * (taps * taps).mean((0, 1))[None]
    else:
        by_tap = jnp.einsum("mc,kcf->mkf", mean, taps, precision=HIGHEST)
        turned = jnp.einsum("mcd,kdf->mkcf", covariance, taps, precision=HIGHEST)
        within = (taps[None] * turned).sum(2).mean(1)
    total = by_tap.mean(1)
    between = jnp.square(by_tap - total[:, None]).mean(1)
    return total, jnp.maximum(within, 0) + between


def project(
    cells: jax.Array, center: jax.Array, kernel: jax.Array, weights: jax.Array, dtype: Any
) -> jax.Array:
    """The product s (W[a, b] P) at every place, summed over modalities.

    Args:
      cells: [B, p, q, M * C].
      center: [M, C] subtracted from cells and added after the product, which then loses no
        digits of what differs between places; any value gives the same result.
      kernel: W, [a, b, C, F] or [a, b, 1, C].
      weights: P of each modality, [M, F, C'].
      dtype: of the product's operands.

    Returns:
      [B, p * a, q * b, C'], float32 or wider.
    """
    kernel = kernel.astype(weights.dtype)
    if kernel.shape[2] == 1:
        folded = kernel.swapaxes(2, 3)[:, :, None] * weights[None, None]
    else:
        folded = jnp.einsum("abcf,mfd->abmcd", kernel, weights)
    folded = folded.reshape(*kernel.shape[:2], -1, weights.shape[-1])
    center = jax.lax.stop_gradient(center)  # any value gives the same result
    flat = center.reshape(-1)
    places = jnp.einsum(
        "npqc,abcd->npqabd",
        (cells - flat.reshape(1, 1, 1, -1)).astype(dtype),
        folded.astype(dtype),
        preferred_element_type=weights.dtype,
    )
    # In full precision from the factors on, as the shift of the normalization that it makes up for.
    if kernel.shape[2] == 1:
        moved = center[:, None, None] * kernel[None, :, :, 0]
    else:
        moved = jnp.einsum("mc,abcf->mabf", center, kernel, precision=HIGHEST)
    offset = jnp.einsum("mabf,mfd->abd", moved, weights, precision=HIGHEST)
    return depth_to_space(places + offset[None, None, None])


class BatchNormOfMoments(nn.Module):
    """`BatchNorm` for who knows the moments of a map without having it: y = x factor + shift.

    The same parameters, statistics and arithmetic.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, mean: jax.Array, var: jax.Array, *, count: int, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Factor and shift [F], given mean and biased variance [F] of count values each."""
        shape = mean.shape
        running_mean = self.variable("batch_stats", "mean", init.constant(0.0), None, shape)
        running_var = self.variable("batch_stats", "var", init.constant(1.0), None, shape)
        scale = self.param("scale", init.constant(1.0), shape)
        bias = self.param("bias", init.constant(0.0), shape)
        if not train:
            mean, var = running_mean.value, running_var.value
        elif not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            for stat, new in ((running_mean, mean), (running_var, unbiased)):
                value = (1 - self.momentum) * stat.value + self.momentum * new
                stat.value = jax.lax.stop_gradient(value).astype(stat.value.dtype)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return factor, bias - mean * factor
