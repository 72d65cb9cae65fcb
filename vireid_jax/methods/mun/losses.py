"""Alignment of modalities through an auxiliary one: MUN (Yu et al., ICCV 2023), eqs. 12-16.

Features and prototypes are [B, 3, D] in the order visible (v), infrared (r), auxiliary (a).
Losses are float32 or wider. Shapes that do not fit raise ValueError.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance, safe_norm, wide
from vireid_jax.types import AUXILIARY, INFRARED, VISIBLE

FIRST_BETA = 1e-8  # sec. 3.4; the last one is 1
SCALES = 5  # kernels of the MMD, each twice as wide as the one before
FLOOR = 1e-9  # keeps the exponent finite when all rows coincide


def alignment_loss(features: jax.Array, labels: jax.Array, *, margin: float = 0.55) -> jax.Array:
    """Identity alignment loss L_ia, eq. 12: auxiliary centers against those of v and r.

    sum_p [alpha + max_m d(C_a^p, C_m^p) - min_{m, q != p} d(C_a^p, C_m^q)]_+, m in {v, r}; the
    paper prints no hinge. 0 when the batch, with labels int [B], has one identity.
    """
    if features.ndim != 3 or features.shape[1] != 3:
        raise ValueError(f"features {features.shape}, expected [B, 3, D]: v, r, auxiliary")
    centers, weight = row_centers(features, labels)
    c_a = centers[:, AUXILIARY]
    farthest = jnp.maximum(*(safe_norm(c_a - centers[:, m]) for m in (VISIBLE, INFRARED)))
    same = labels[:, None] == labels[None, :]
    others = [pairwise_distance(c_a, centers[:, m]) for m in (VISIBLE, INFRARED)]
    nearest = jnp.where(same, jnp.inf, jnp.minimum(*others)).min(1)
    value = jax.nn.relu(margin + farthest - nearest)
    return jnp.where(same.all(), 0.0, (weight * value).sum())


def beta_of(step: Any, num_steps: int) -> jax.Array:
    """Beta of eq. 14, the weight of this step's features in the prototypes.

    It goes from 1e-8 at the first step to 1 at the last one, in equal steps. Step 0 has no
    prototypes before it, so beta is 1 there (eq. 13).
    """
    progress = jnp.clip(jnp.asarray(step) / max(num_steps - 1, 1), 0, 1)
    beta = FIRST_BETA + (1 - FIRST_BETA) * progress
    return jnp.where(jnp.asarray(step) == 0, 1.0, beta)


def accumulated(
    before: jax.Array, mapped: jax.Array, beta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Eqs. 13-14 as printed: T_i = beta W Z_i + (1 - beta) T_{i-1}, row by row of the batch.

    Row b of T_{i-1} belongs to whomever row b of the last batch showed; the modalities mix
    identities in the same way, which is what keeps their comparison sound. `before` is T_{i-1} and
    `mapped` W Z. Returns T_i with a gradient through `mapped` alone, and T_i for the next step.
    """
    before = jax.lax.stop_gradient(before)
    t = beta * mapped + (1 - beta) * before
    return t, jax.lax.stop_gradient(t).astype(before.dtype)


def prototype_loss(prototypes: jax.Array, *, num_instances: int, bridge: bool = True) -> jax.Array:
    """Modality alignment loss L_ma, eqs. 15-16: MMD of each identity's prototypes.

    (1 / P) sum_p [mmd(T_v^p, T_a^p) + mmd(T_a^p, T_r^p)]; without `bridge` (table 3)
    mmd(T_v^p, T_r^p) alone. Rows are identity-major, K of each identity.
    """
    if prototypes.ndim != 3 or prototypes.shape[0] % num_instances:
        raise ValueError(
            f"prototypes {prototypes.shape}, expected [P * {num_instances}, 3, D]: "
            f"{num_instances} rows of each identity"
        )
    sets = prototypes.reshape(-1, num_instances, *prototypes.shape[1:])  # [P, K, 3, D]
    t_v, t_r, t_a = (sets[:, :, m] for m in (VISIBLE, INFRARED, AUXILIARY))
    if not bridge:
        return mmd(t_v, t_r).mean()
    return (mmd(t_v, t_a) + mmd(t_a, t_r)).mean()


def mmd(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared maximum mean discrepancy of two sets of K rows, with Gaussian kernels.

    mean_jk ( k(x_j, x_k) + k(y_j, y_k) - k(x_j, y_k) - k(y_j, x_k) ), the diagonals included
    (a biased V-statistic), so that two sets of one distribution give more than 0: 1.54 for
    K = 4 and 2048 normal numbers; sets far apart give 7.4. As in MMD-ReID, which MUN cites for its
    eqs. 15-16, the kernel is sum_{j=0..4} exp(-D / (2^j b / 4 + 1e-9)) with D the *squared*
    distance of two of the n = 2K stacked rows, and b = sum D / (n^2 - n) the mean over pairs of
    different rows. No gradient passes through b. The value does not change when all features are
    multiplied by a number; its gradient still has a part that shrinks them.

    x and y are [..., K, D]; the value is [...], 0 with a zero gradient where all rows coincide.
    """
    if x.ndim < 2 or x.shape != y.shape or x.shape[-2] < 1:
        raise ValueError(f"got {x.shape} and {y.shape}, expected [..., K, D] twice, K >= 1")
    k, n = x.shape[-2], 2 * x.shape[-2]
    rows = jnp.concatenate([wide(x), wide(y)], axis=-2)
    # Differences, not products: few rows, and no digits are lost. Squares are smooth at 0.
    difference = rows[..., :, None, :] - rows[..., None, :, :]
    squared = (difference * difference).sum(-1)  # [..., n, n]
    width = jax.lax.stop_gradient(squared.sum((-2, -1)) / (n * n - n))[..., None, None]
    scales = [width / 4 * 2**j + FLOOR for j in range(SCALES)]
    kernel = sum((jnp.exp(-squared / s) for s in scales), jnp.zeros_like(squared))
    within = kernel[..., :k, :k] + kernel[..., k:, k:]
    across = kernel[..., :k, k:] + kernel[..., k:, :k]
    return (within - across).mean((-2, -1))
