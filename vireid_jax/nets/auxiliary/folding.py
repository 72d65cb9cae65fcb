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

So one matrix product from C to C for each window, ratio and modality replaces two of C to F and
F to C over every place, and the largest array has C channels. The products of weights cost the
same for any batch. In exact arithmetic the results are equal.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init
from vireid_jax.nets.auxiliary.pyramid import depth_to_space

HIGHEST = jax.lax.Precision.HIGHEST  # statistics never in reduced precision


def moments(cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E[s] [C] and Cov(s) [C, C] of cells [B, p, q, C] that are float32 or wider."""
    rows = cells.reshape(-1, cells.shape[-1])
    mean = rows.mean(0)
    centered = rows - mean[None]
    covariance = jnp.einsum("nc,nd->cd", centered, centered, precision=HIGHEST)
    return mean, covariance / rows.shape[0]


def expanded_moments(
    mean: jax.Array, covariance: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [F] of the transposed convolution of cells.

    Args:
      mean, covariance: of cells, [C] and [C, C].
      kernel: [a, b, C, F], or [a, b, 1, C] for a depthwise one.
    """
    kernel = kernel.astype(mean.dtype)
    a, b, inputs, features = kernel.shape
    if inputs == 1 and mean.shape[0] != 1:
        places = kernel.reshape(a * b, features)
        by_place = places * mean[None]
        spread = jnp.diagonal(covariance) * (places * places).mean(0)
    else:
        places = kernel.reshape(a * b, inputs, features)
        by_place = jnp.einsum("c,kcf->kf", mean, places, precision=HIGHEST)
        turned = jnp.einsum("cd,kdf->kcf", covariance, places, precision=HIGHEST)
        spread = (places * turned).sum(1).mean(0)
    total = by_place.mean(0)
    between = jnp.square(by_place - total[None]).mean(0)
    return total, jnp.maximum(spread, 0) + between


def unified(
    cells: Sequence[Sequence[jax.Array]],
    kernels: Sequence[jax.Array],
    factor: jax.Array,
    constant: jax.Array,
    projection: jax.Array,
    centers: Sequence[Sequence[jax.Array]],
    dtype: Any,
) -> jax.Array:
    """The sum over windows and modalities of s (W[a, b] diag(factor) P), plus the constant.

    Args:
      cells: by modality, then by window: [B, p, q, C].
      kernels: by window: [a, b, C, F] or [a, b, 1, C].
      factor, constant: of the normalization and the projection: [2nF] and [C'].
      projection: P, [2nF, C'].
      centers: [C] subtracted from cells and added after the product, where it loses no digits
        of what differs between places; any value gives the same result.
      dtype: of the product.

    Returns:
      [B, h, w, C'], float32 or wider.
    """
    weights = jnp.split(factor[:, None] * projection, 2 * len(kernels))
    total = constant.reshape(1, 1, 1, -1)
    for n, kernel in enumerate(kernels):
        for m, (of_modality, middles) in enumerate(zip(cells, centers, strict=True)):
            folded = _fold(kernel.astype(factor.dtype), weights[m * len(kernels) + n])
            middle = middles[n]
            rows = (of_modality[n] - middle.reshape(1, 1, 1, -1)).astype(dtype)
            places = jnp.einsum(
                "npqc,abcd->npqabd",
                rows,
                folded.astype(dtype),
                preferred_element_type=factor.dtype,
            )
            offset = jnp.einsum("c,abcd->abd", middle, folded, precision=HIGHEST)
            total = total + depth_to_space(places + offset[None, None, None])
    return total


def _fold(kernel: jax.Array, projection: jax.Array) -> jax.Array:
    """W[a, b] P for all places: [a, b, C, F] (or [a, b, 1, C]), [F, C'] -> [a, b, C, C']."""
    if kernel.shape[2] == 1:
        return kernel.swapaxes(2, 3) * projection[None, None]
    return jnp.einsum("abcf,fd->abcd", kernel, projection)


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
