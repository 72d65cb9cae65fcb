"""Identity centers, one per modality, and the center losses of several papers."""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import pairwise_distance, unit, wide
from vireid_jax.losses.mining import (
    center_pairs,
    check_batch,
    cross_pairs,
    farthest,
    hard_triplet,
    nearest,
    valid_mean,
)


def row_centers(
    features: jax.Array, labels: jax.Array, *, normalize: bool = False
) -> tuple[jax.Array, jax.Array]:
    """For each row the centers of its identity, in every modality.

    c_m^p = mean of the features of identity p in modality m, repeated for each row of p.
    Made from label masks, so no order of rows is assumed and any shard of rows will do; a
    sum over identities is the sum over rows of `weight` times the row's value.

    Args:
      features: [B, M, D].
      labels: int [B], shared by the M modalities.
      normalize: scale centers to unit length.

    Returns:
      centers [B, M, D], float32 or wider; weight [B], 1 / (rows of the identity).

    Raises:
      ValueError: for shapes that do not fit.
    """
    check_batch(features, labels)
    features = wide(features)
    same = (labels[:, None] == labels[None, :]).astype(features.dtype)  # [B, B]
    weight = 1 / same.sum(1)
    # Full precision: a TPU would otherwise average in bfloat16.
    highest = jax.lax.Precision.HIGHEST
    centers = jnp.einsum("bc,cmd->bmd", same * weight[:, None], features, precision=highest)
    return unit(centers) if normalize else centers, weight


def bi_center(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.5, joint: bool = False
) -> jax.Array:
    """Bi-directional center-constrained top-ranking loss (eBDTR, Ye et al., TIFS 2020).

    For each direction, anchors a in one modality and m' the other one,
    mean_a [margin + d(x_a, c_m'^{y_a}) - min_{q != y_a} d(x_a, c_m'^q)]_+, summed over the
    two directions; features and centers as they come, unsquared distances. With `joint` the
    centers that push are the means over both modalities. Both are readings of the paper's
    abstract, which has one formula take in the cross- and the intra-modality constraint;
    both use as many distances as SMCL counts for this loss in its table 3. The margin is
    the cross-modality one of the same authors' BDTR.

    Args:
      features: [B, 2, D], visible and infrared.
      labels: int [B], shared by the two.
      margin: in units of the distance.
      joint: push from the centers of both modalities together.

    Returns:
      Scalar, float32 or wider; 0 when the batch has one identity.

    Raises:
      ValueError: for shapes that do not fit.
    """
    check_batch(features, labels, modalities=2)
    features = wide(features)
    centers, _ = row_centers(features, labels)
    pairs = cross_pairs(labels)
    total = jnp.zeros((), features.dtype)
    for m, other in ((0, 1), (1, 0)):
        to_other = pairwise_distance(features[:, m], centers[:, other])
        to_negative = pairwise_distance(features[:, m], centers.mean(1)) if joint else to_other
        pull = farthest(to_other, pairs.positive)  # the same center, once per row of it
        push = nearest(to_negative, pairs.negative)
        total += valid_mean(jax.nn.relu(margin + pull - push), pairs.negative.any(1))
    return total


def hetero_center_triplet(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.3
) -> jax.Array:
    """Hetero-center triplet loss (Liu et al., arXiv 2008.06223).

    mean_c [margin + d(c, c') - min d(c, n)]_+ over the M * P centers c, with c' the center of
    the same identity in the other modality (the farthest, when M > 2) and n over the centers
    of other identities in all modalities. As in the authors' code
    (hijune6/Hetero-center-triplet-loss-for-VT-Re-ID, `CenterTripletLoss`).

    Args:
      features: [B, M, D], M >= 2.
      labels: int [B], shared by the M modalities.
      margin: in units of the distance.

    Returns:
      Scalar, float32 or wider; 0 when the batch has one identity.

    Raises:
      ValueError: for shapes that do not fit.
    """
    centers, weight = row_centers(features, labels)
    rows, modalities, width = centers.shape
    if modalities < 2:
        raise ValueError(f"features {features.shape}, expected [B, M, D] with M >= 2 modalities")
    flat = centers.reshape(rows * modalities, width)
    pairs = center_pairs(labels, modalities)
    return hard_triplet(
        pairwise_distance(flat, flat), pairs, margin, jnp.repeat(weight, modalities)
    )


def hetero_center(features: jax.Array, labels: jax.Array, *, margin: float = 0.0) -> jax.Array:
    """Hetero-center loss (Zhu et al., arXiv 1910.09830).

    sum_p [ ||c_v^p - c_i^p||^2 - margin ]_+, squared distances, a sum over identities: the
    batch's P scales it. The paper has no margin; the authors' code
    (98zyx/Hetero-center-loss-for-cross-modality-person-re-id, heterogeneity_loss.py) subtracts
    0.1 by default.

    Args:
      features: [B, 2, D], visible and infrared.
      labels: int [B], shared by the two.
      margin: in units of the squared distance.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit.
    """
    check_batch(features, labels, modalities=2)
    centers, weight = row_centers(features, labels)
    gap = centers[:, 0] - centers[:, 1]
    return (weight * jax.nn.relu((gap * gap).sum(1) - margin)).sum()
