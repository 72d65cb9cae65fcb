"""Which pairs of rows a triplet loss may choose from, and how it chooses and averages.

All of it works from labels: no order of rows is assumed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import wide


class Pairs(NamedTuple):
    """Masks [N, L] of pairs of N anchors with L others."""

    positive: jax.Array  # of one identity
    negative: jax.Array  # of two


def check_batch(features: jax.Array, labels: jax.Array, modalities: int | None = None) -> None:
    """Checks shapes [B, M, D] and [B], and that M is `modalities` where that is given.

    Raises:
      ValueError: for shapes that do not fit.
    """
    if features.ndim != 3 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features {features.shape} and labels {labels.shape}, expected [B, M, D] and [B]"
        )
    if modalities is not None and features.shape[1] != modalities:
        raise ValueError(
            f"features {features.shape}, expected [B, {modalities}, D]: this loss compares "
            f"{modalities} modalities; choose them with features[:, m]"
        )


def joint_rows(features: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All rows of all modalities, [B * M, D], float32 or wider, and their labels [B * M]."""
    check_batch(features, labels)
    rows, modalities, width = features.shape
    # Widened once here: where a set meets itself, gradients then add up in full precision.
    return wide(features).reshape(rows * modalities, width), jnp.repeat(labels, modalities)


def joint_pairs(labels: jax.Array) -> Pairs:
    """Pairs of a set with itself, blind to modality; a row is no positive of itself."""
    same, other = cross_pairs(labels)
    return Pairs(same & ~jnp.eye(len(labels), dtype=bool), other)


def cross_pairs(labels: jax.Array) -> Pairs:
    """Pairs of rows in one modality with rows (or centers) of another."""
    same = labels[:, None] == labels[None, :]
    return Pairs(same, ~same)


def center_pairs(labels: jax.Array, modalities: int) -> Pairs:
    """Pairs among the centers [B * M] of all modalities, in the order of `joint_rows`.

    Positives are of another modality, as one identity has one center in each.
    """
    modality = jnp.tile(jnp.arange(modalities), len(labels))
    same, other = cross_pairs(jnp.repeat(labels, modalities))
    return Pairs(same & (modality[:, None] != modality[None, :]), other)


def farthest(distance: jax.Array, positive: jax.Array) -> jax.Array:
    """Largest distance [N] over each anchor's positives, -inf without any."""
    return jnp.where(positive, distance, -jnp.inf).max(1)


def nearest(distance: jax.Array, negative: jax.Array) -> jax.Array:
    """Smallest distance [N] over each anchor's negatives, inf without any."""
    return jnp.where(negative, distance, jnp.inf).min(1)


def valid_mean(values: jax.Array, valid: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean of values [N] over valid anchors, optionally weighted; 0 when none is valid.

    A value that is not finite counts, so that a diverged run shows, unless it is invalid.
    """
    weight = jnp.where(valid, 1 if weight is None else weight, 0).astype(values.dtype)
    total = weight.sum()
    return (weight * jnp.where(valid, values, 0)).sum() / jnp.where(total > 0, total, 1)


def hard_triplet(
    distance: jax.Array, pairs: Pairs, margin: float, weight: jax.Array | None = None
) -> jax.Array:
    """mean_a [margin + max over a's positives - min over a's negatives]_+.

    Anchors that lack positives or negatives are left out; the value is 0 without any anchor.
    Among equally far positives (or equally near negatives) the gradient is divided evenly.
    distance [N, L], in its units margin, weight [N] of the anchors in the mean; equal by default.
    """
    pull, push = farthest(distance, pairs.positive), nearest(distance, pairs.negative)
    valid = pairs.positive.any(1) & pairs.negative.any(1)
    return valid_mean(jax.nn.relu(margin + pull - push), valid, weight)
