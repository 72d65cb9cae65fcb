"""The triplet losses of AGW and of CAJ: every pair counts, by a softmax of its distance.

Both take features [B, M, D] and labels int [B] that the modalities share, in any order of rows,
and return a scalar, float32 or wider. A batch of one identity has no negatives, and gives 0 with a
zero gradient. Shapes that do not fit raise ValueError.
"""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import pairwise_distance
from vireid_jax.losses.mining import joint_pairs, joint_rows, valid_mean

WEIGHTS = ("released", "softmax")
EPSILON = 1e-6  # what the authors' code adds to a sum of weights
MAX_SQUARE = 88.0  # exp of it is still a float32


def weighted_regularized_triplet(
    features: jax.Array, labels: jax.Array, *, weights: str = "released"
) -> jax.Array:
    """Weighted regularized triplet loss of AGW (Ye et al., arXiv 2001.04193).

    mean_a softplus( sum_p w_p d(a, p) - sum_n w_n d(a, n) ) over all M * B rows as anchors. The
    weights pass gradients. As in the authors' code (mangye16/Cross-Modal-Re-ID-baseline,
    `TripletLoss_WRT`) an anchor is one of its own positives, at distance 0.

    Args:
      features: [B, M, D].
      labels: int [B].
      weights: "softmax": w_p is the softmax of d over a's positives and w_n the softmax of -d over
        its negatives, as in the paper. "released": as in the code, with t = max_p d,
        w_p = exp(d - t) / (1e-6 + sum exp(d - t)) and w_n = exp(-d) / (1e-6 + sum exp(-d)). The
        two are the same at small distances. Beyond about 14, sum exp(-d) falls below 1e-6: the
        negatives' weights vanish, and nothing pushes any more.
    """
    gap, valid = _weighted_gap(features, labels, weights)
    return valid_mean(jax.nn.softplus(gap), valid)


def squared_difference(
    features: jax.Array, labels: jax.Array, *, weights: str = "released"
) -> jax.Array:
    """Enhanced squared difference loss of CAJ (Ye et al., ICCV 2021).

    mean_a softplus( sign(g_a) min(g_a^2, 88) ), g_a the gap sum_p w_p d(a, p) - sum_n w_n d(a, n)
    of `weighted_regularized_triplet`: the same order, with a gradient that grows with the gap, and
    that vanishes where there is none. As in the authors' code (ICCV21_CAJ/loss.py,
    `TripletLoss_ADP` with alpha, gamma and square of 1, the values of its command line).
    Arguments as of `weighted_regularized_triplet`.
    """
    gap, valid = _weighted_gap(features, labels, weights)
    square = jnp.minimum(gap * gap, MAX_SQUARE)
    return valid_mean(jax.nn.softplus(jnp.where(gap > 0, square, -square)), valid)


def _weighted_gap(
    features: jax.Array, labels: jax.Array, weights: str
) -> tuple[jax.Array, jax.Array]:
    """Of each of M * B rows the positives' weighted distance less the negatives'; has it any?"""
    rows, labels = joint_rows(features, labels)
    distance = pairwise_distance(rows, rows)
    positive, negative = joint_pairs(labels)
    positive = positive | jnp.eye(len(labels), dtype=bool)
    pull = _weighted_mean(distance, distance, positive, weights)
    push = _weighted_mean(distance, -distance, negative, weights)
    return pull - push, negative.any(1)


def _weighted_mean(
    values: jax.Array, logits: jax.Array, mask: jax.Array, weights: str
) -> jax.Array:
    """sum_l w_l values over the true entries of mask [N, L], w from logits; 0 without any."""
    # The code takes the largest of masked logits, in which entries outside the mask are 0.
    lowest, epsilon = (0.0, EPSILON) if weights == "released" else (-jnp.inf, 0.0)
    top = jnp.where(mask, logits, lowest).max(1, keepdims=True)
    e = jnp.where(mask, jnp.exp(jnp.where(mask, logits - top, 0)), 0)
    total = jnp.where(mask.any(1), e.sum(1) + epsilon, 1)
    return (e * values).sum(1) / total
