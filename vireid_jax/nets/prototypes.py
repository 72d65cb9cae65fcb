"""PDM's prototype learning module: parts of a map, chosen by learned prototypes (eqs. 6 to 8)."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init

POOLED = ("plain", "positioned")


class Parts(NamedTuple):
    """What the prototypes find in N maps of n places."""

    features: jax.Array  # [N, m, F]
    similarity: jax.Array  # S [N, m, n], in (0, 1)
    logits: jax.Array  # P (I + E)^T [N, m, n], before the sigmoid


class Prototypes(nn.Module):
    """S = sigmoid(P (I + E)^T), p_i = mean over places j of S_ij I_j.

    P [m, F] are the prototypes, one set for both modalities and all branches; E [n, F] is a learned
    table of positions, which the paper mentions and its code adds for S alone. Both start as He
    normal, std sqrt(2 / F) (mmunhappy/ICASSP2025-PDM, plm.py). There is no softmax and no scale.

    Attributes:
      count: m.
      pooled: "plain" as in the code, or "positioned": I + E are pooled too.
    """

    count: int = 10
    pooled: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> Parts:
        """[N, h, w, F] -> `Parts`, float32 or wider."""
        batch, height, width, channels = x.shape
        start = init.normal(math.sqrt(2 / channels))
        prototypes = self.param("prototypes", start, (self.count, channels))
        positions = self.param("positions", start, (height * width, channels))
        rows = x.reshape(batch, height * width, channels)
        rows = rows.astype(jnp.promote_types(x.dtype, jnp.float32))
        # P I^T + P E^T: I + E is as large as the map, and needed for "positioned" alone.
        offset = prototypes @ positions.T
        logits = jnp.einsum("mc,npc->nmp", prototypes, rows) + offset[None]
        similarity = nn.sigmoid(logits)
        values = rows + positions[None] if self.pooled == "positioned" else rows
        parts = jnp.einsum("nmp,npc->nmc", similarity, values) / (height * width)
        return Parts(parts, similarity, logits)
