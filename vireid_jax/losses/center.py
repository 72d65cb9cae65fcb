"""Identity centers, one per modality, for the center losses of several papers."""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import wide


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
    if features.ndim != 3 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features {features.shape} and labels {labels.shape}, expected [B, M, D] and [B]"
        )
    features = wide(features)
    same = (labels[:, None] == labels[None, :]).astype(features.dtype)  # [B, B]
    weight = 1 / same.sum(1)
    # Full precision: a TPU would otherwise average in bfloat16.
    highest = jax.lax.Precision.HIGHEST
    centers = jnp.einsum("bc,cmd->bmd", same * weight[:, None], features, precision=highest)
    if normalize:
        square = (centers * centers).sum(-1, keepdims=True)
        centers = centers * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    return centers, weight
