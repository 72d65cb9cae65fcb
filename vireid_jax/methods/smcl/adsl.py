"""ADSL, the metric loss of SMCL (Wei et al., ICCV 2021): eq. 8, the sum of eqs. 6 and 7.

Sums over identities, not means, so a batch's P scales them. Distances are not squared.
"""

import jax

from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance, safe_norm
from vireid_jax.losses.mining import check_batch, cross_pairs, nearest


def tri_center_loss(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.3, normalize: bool = False
) -> jax.Array:
    """Tri-directional center loss, eq. 6.

    sum_p [rho + d(c_s^p, c_v^p) - h_p]_+ + sum_p [rho + d(c_s^p, c_i^p) - h_p]_+,
    h_p = min_{j != p} d(c_s^p, c_s^j): the negatives are syncretic centers alone. Another
    auxiliary modality may take the place of the syncretic one.

    Args:
      features: [B, 3, D] in the order visible, infrared, syncretic.
      labels: int [B], shared by the modalities.
      margin: rho.
      normalize: scale centers to unit length first (the paper states none).

    Returns:
      Scalar, float32 or wider; 0 when the batch has one identity.

    Raises:
      ValueError: for shapes that do not fit.
    """
    check_batch(features, labels, modalities=3)
    centers, weight = row_centers(features, labels, normalize=normalize)
    visible, infrared, syncretic = centers[:, 0], centers[:, 1], centers[:, 2]
    push = _nearest_other(syncretic, labels)  # h_p, [B]
    pulls = (safe_norm(syncretic - visible), safe_norm(syncretic - infrared))
    return sum((weight * jax.nn.relu(margin + pull - push)).sum() for pull in pulls)  # type: ignore[return-value]


def global_center_loss(
    features: jax.Array, labels: jax.Array, *, normalize: bool = False
) -> jax.Array:
    """Global center loss, eq. 7: sum_p ||c_v^p - c_i^p||, plain norms, not squared.

    Args:
      features: [B, M, D] with visible first and infrared second, M >= 2.
      labels: int [B].
      normalize: scale centers to unit length first.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(
            f"features {features.shape}, expected [B, M, D] with visible, infrared first"
        )
    centers, weight = row_centers(features, labels, normalize=normalize)
    return (weight * safe_norm(centers[:, 0] - centers[:, 1])).sum()


def symmetric_center_loss(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.3, normalize: bool = False
) -> jax.Array:
    """Eq. 6 without an auxiliary modality: each modality's centers anchor the other's.

    sum_p [rho + d(c_v^p, c_i^p) - min_{j != p} d(c_v^p, c_v^j)]_+ + the same with v, i
    exchanged. The paper does not say what its row "nothing" of table 2 trains; this is
    one reading, the global center loss alone the other.

    Args:
      features: [B, 2, D] in the order visible, infrared.
      labels: int [B], shared by the modalities.
      margin: rho.
      normalize: scale centers to unit length first.

    Returns:
      Scalar, float32 or wider; 0 when the batch has one identity.

    Raises:
      ValueError: for shapes that do not fit.
    """
    check_batch(features, labels, modalities=2)
    centers, weight = row_centers(features, labels, normalize=normalize)
    visible, infrared = centers[:, 0], centers[:, 1]
    pull = safe_norm(visible - infrared)
    pushes = (_nearest_other(visible, labels), _nearest_other(infrared, labels))
    return sum((weight * jax.nn.relu(margin + pull - push)).sum() for push in pushes)  # type: ignore[return-value]


def _nearest_other(centers: jax.Array, labels: jax.Array) -> jax.Array:
    """Distance [B] from each center [B, D] to the nearest one of another identity."""
    return nearest(pairwise_distance(centers, centers), cross_pairs(labels).negative)
