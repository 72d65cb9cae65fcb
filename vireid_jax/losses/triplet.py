"""A triplet loss over the images of a batch: a positive pulls, a negative pushes."""

import jax

from vireid_jax.losses.distance import pairwise_distance
from vireid_jax.losses.mining import hard_triplet, joint_pairs, joint_rows


def batch_hard_triplet(features: jax.Array, labels: jax.Array, *, margin: float = 0.3) -> jax.Array:
    """Batch-hard triplet loss, blind to modality and to the order of rows.

    mean_a [margin + max_{p: same identity, p != a} d(a, p) - min_{n: other} d(a, n)]_+ over
    all M * B rows as anchors; unsquared Euclidean distances of features as they come.
    Hermans et al., arXiv 1703.07737, eq. 5, as a mean.

    Args:
      features: [B, M, D].
      labels: int [B], shared by the M modalities.
      margin: in units of the distance.

    Returns:
      Scalar, float32 or wider; 0, with a zero gradient, when the batch has one identity.

    Raises:
      ValueError: for shapes that do not fit.
    """
    rows, labels = joint_rows(features, labels)
    return hard_triplet(pairwise_distance(rows, rows), joint_pairs(labels), margin)
