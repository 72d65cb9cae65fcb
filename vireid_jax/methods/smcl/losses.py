"""The metric losses of SMCL (Wei et al., ICCV 2021): ADSL, and what its table 4 compares it with.

ADSL is eq. 8, the sum of eqs. 6 and 7. These are sums over identities, not means, so a batch's P
scales them; the others are means over anchors. Distances are not squared. All take features
[B, M, D] and labels int [B] that the modalities share, in any order of rows; they return a scalar,
float32 or wider, which is 0 where a batch of one identity has no negatives. Shapes that do not fit
raise ValueError. Batch-hard triplets, the fourth of table 4, are in `losses.triplet`.
"""

import jax
import jax.numpy as jnp

from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance, safe_norm, unit, wide
from vireid_jax.losses.mining import (
    center_pairs,
    check_batch,
    cross_pairs,
    farthest,
    hard_triplet,
    nearest,
    valid_mean,
)


def tri_center_loss(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.3, normalize: bool = False
) -> jax.Array:
    """Tri-directional center loss, eq. 6, of visible, infrared and syncretic features.

    sum_p [rho + d(c_s^p, c_v^p) - h_p]_+ + sum_p [rho + d(c_s^p, c_i^p) - h_p]_+,
    h_p = min_{j != p} d(c_s^p, c_s^j): the negatives are syncretic centers alone. Another
    auxiliary modality may take the place of the syncretic one. `margin` is rho; `normalize`
    scales centers to unit length first (the paper states none).
    """
    check_batch(features, labels, modalities=3)
    centers, weight = row_centers(features, labels, normalize=normalize)
    visible, infrared, syncretic = centers[:, 0], centers[:, 1], centers[:, 2]
    apart = pairwise_distance(syncretic, syncretic)
    push = nearest(apart, cross_pairs(labels).negative)  # h_p, [B]
    pulls = (safe_norm(syncretic - visible), safe_norm(syncretic - infrared))
    return sum((weight * jax.nn.relu(margin + pull - push)).sum() for pull in pulls)  # type: ignore[return-value]


def global_center_loss(
    features: jax.Array, labels: jax.Array, *, normalize: bool = False
) -> jax.Array:
    """Global center loss, eq. 7, of visible and infrared features; a third modality is ignored.

    sum_p ||c_v^p - c_i^p||, plain norms; `normalize` scales centers to unit length first.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(
            f"features {features.shape}, expected [B, M, D] with visible, infrared first"
        )
    centers, weight = row_centers(features, labels, normalize=normalize)
    return (weight * safe_norm(centers[:, 0] - centers[:, 1])).sum()


# --- What table 4 compares ADSL with, of visible and infrared features [B, 2, D] --------


def bdtr(
    features: jax.Array,
    labels: jax.Array,
    *,
    cross_margin: float = 0.5,
    intra_margin: float = 0.1,
    intra_weight: float = 0.1,
) -> jax.Array:
    """Bi-directional dual-constrained top-ranking loss (Ye et al., IJCAI 2018).

    For both directions, anchors in one modality and the others in the other one, of features
    scaled to unit length:
      cross = mean_a [cross_margin + d(a, p) - d(a, n)]_+, p the farthest positive and n the
      nearest negative of the other modality;
      intra = mean_a [intra_margin - d(p, n)]_+ between those two, which are of one modality.
    total = sum over the two directions of cross + intra_weight * intra. As the author's code,
    whose batches hold one image of an identity and modality; the farthest of K is the extension to
    more. Among negatives (or positives) at exactly one distance the first row is chosen.
    """
    check_batch(features, labels, modalities=2)
    features = unit(features)
    modalities = features[:, 0], features[:, 1]
    across = pairwise_distance(*modalities)
    within = [pairwise_distance(x, x) for x in modalities]
    pairs = cross_pairs(labels)
    total = jnp.zeros((), features.dtype)
    for other, distance in ((1, across), (0, across.T)):
        total += hard_triplet(distance, pairs, cross_margin)
        p = jnp.where(pairs.positive, distance, -jnp.inf).argmax(1)
        n = jnp.where(pairs.negative, distance, jnp.inf).argmin(1)
        gap = jax.nn.relu(intra_margin - within[other][p, n])
        total += intra_weight * valid_mean(gap, pairs.negative.any(1))
    return total


def bi_center(features: jax.Array, labels: jax.Array, *, margin: float = 0.5) -> jax.Array:
    """Bi-directional center-constrained top-ranking loss (eBDTR, Ye et al., TIFS 2020).

    For each direction, anchors a in one modality and m' the other one,
    mean_a [margin + d(x_a, c_m'^{y_a}) - min_{q != y_a} d(x_a, c_m'^q)]_+, summed over the
    two directions; features and centers as they come. This is a reading of the paper's abstract
    (docs/fidelity.md); it uses as many distances as SMCL counts for this loss in its table 3.
    """
    check_batch(features, labels, modalities=2)
    features = wide(features)
    centers, _ = row_centers(features, labels)
    pairs = cross_pairs(labels)
    total = jnp.zeros((), features.dtype)
    for m, other in ((0, 1), (1, 0)):
        distance = pairwise_distance(features[:, m], centers[:, other])
        pull = farthest(distance, pairs.positive)  # the same center, once per row of it
        push = nearest(distance, pairs.negative)
        total += valid_mean(jax.nn.relu(margin + pull - push), pairs.negative.any(1))
    return total


def hetero_center_triplet(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.3
) -> jax.Array:
    """Hetero-center triplet loss (Liu et al., arXiv 2008.06223), of two or more modalities.

    mean_c [margin + d(c, c') - min d(c, n)]_+ over the M * P centers c, with c' the center of
    the same identity in the other modality (the farthest, when M > 2) and n over the centers
    of other identities in all modalities. As in the authors' code
    (hijune6/Hetero-center-triplet-loss-for-VT-Re-ID, `CenterTripletLoss`).
    """
    centers, weight = row_centers(features, labels)
    rows, modalities, width = centers.shape
    if modalities < 2:
        raise ValueError(f"features {features.shape}, expected [B, M, D] with M >= 2 modalities")
    flat = centers.reshape(rows * modalities, width)
    distance, pairs = pairwise_distance(flat, flat), center_pairs(labels, modalities)
    return hard_triplet(distance, pairs, margin, jnp.repeat(weight, modalities))
