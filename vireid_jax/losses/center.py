"""Identity centers, one per modality."""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import unit, wide
from vireid_jax.losses.mining import check_batch


def row_centers(
    features: jax.Array, labels: jax.Array, *, normalize: bool = False
) -> tuple[jax.Array, jax.Array]:
    """For each row the centers of its identity, in every modality.

    c_m^p = mean of the features of identity p in modality m, repeated for each row of p, in any
    order of rows. A sum over identities is the sum over rows of `weight` times the row's value.

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
