"""The triplet losses of AGW and of CAJ: every pair counts, by a softmax of its distance.

Both take features [B, M, D] and labels int [B] that the modalities share, in any order of rows,
and return a scalar, float32 or wider. A batch of one identity has no negatives, and gives 0 with a
zero gradient. Shapes that do not fit raise ValueError.
"""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import pairwise_distance
from vireid_jax.losses.mining import joint_pairs, joint_rows, valid_mean

MAX_SQUARE = 88.0  # exp of it is still a float32


def weighted_regularized_triplet(features: jax.Array, labels: jax.Array) -> jax.Array:
    """Weighted regularized triplet loss of AGW (Ye et al., arXiv 2001.04193).

    mean_a softplus( sum_p w_p d(a, p) - sum_n w_n d(a, n) ), with w_p = softmax of d over a's
    positives and w_n = softmax of -d over its negatives, over all M * B rows as anchors. The
    weights pass gradients. As in the authors' code (mangye16/Cross-Modal-Re-ID-baseline,
    `TripletLoss_WRT`) an anchor is one of its own positives, at distance 0.

    Differs from the authors' code: theirs divides exp(-d) by sum exp(-d) + 1e-6 without
    shifting d first, so that beyond distances of 14 to 18, where sum exp(-d) falls below
    1e-6, the negatives' weights vanish and nothing pushes any more. Here the weights always
    sum to 1, as in the paper.
    """
    gap, valid = _weighted_gap(features, labels)
    return valid_mean(jax.nn.softplus(gap), valid)


def squared_difference(features: jax.Array, labels: jax.Array) -> jax.Array:
    """Enhanced squared difference loss of CAJ (Ye et al., ICCV 2021).

    mean_a softplus( sign(g_a) min(g_a^2, 88) ), g_a the gap sum_p w_p d(a, p) - sum_n w_n d(a, n)
    of `weighted_regularized_triplet`: the same order, with a gradient that grows with the gap, and
    that vanishes where there is none. As in the authors' code (ICCV21_CAJ/loss.py,
    `TripletLoss_ADP` with alpha, gamma and square of 1, the values of its command line), but for
    the same difference.
    """
    gap, valid = _weighted_gap(features, labels)
    square = jnp.minimum(gap * gap, MAX_SQUARE)
    return valid_mean(jax.nn.softplus(jnp.where(gap > 0, square, -square)), valid)


def _weighted_gap(features: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each of M * B rows the positives' weighted distance less the negatives'; has it any?"""
    rows, labels = joint_rows(features, labels)
    distance = pairwise_distance(rows, rows)
    positive, negative = joint_pairs(labels)
    positive = positive | jnp.eye(len(labels), dtype=bool)
    pull = _softmax_mean(distance, distance, positive)
    push = _softmax_mean(distance, -distance, negative)
    return pull - push, negative.any(1)


def _softmax_mean(values: jax.Array, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """sum_l softmax_l(logits) values over the true entries of mask [N, L]; 0 without any."""
    top = jax.lax.stop_gradient(jnp.where(mask, logits, -jnp.inf).max(1, keepdims=True))
    # The largest entry is exp(0), so a row with any entry sums to 1 or more.
    e = jnp.where(mask, jnp.exp(jnp.where(mask, logits - top, 0)), 0)
    total = jnp.where(mask.any(1), e.sum(1), 1)
    return (e * values).sum(1) / total
