"""Alignment of modalities through an auxiliary one: MUN (Yu et al., ICCV 2023), eqs. 12-16.

Features and prototypes are [B, 3, D] in the order visible (v), infrared (r), auxiliary (a).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance, safe_norm, unit
from vireid_jax.methods.mun.mmd import mmd
from vireid_jax.types import INFRARED, VISIBLE

FIRST_BETA = 1e-8  # sec. 3.4; the last one is 1
FORMS = ("hinge", "literal", "softplus")


def alignment_loss(
    features: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 0.55,
    form: str = "hinge",
    normalize: bool = False,
) -> jax.Array:
    """Identity alignment loss L_ia, eq. 12: auxiliary centers against those of v and r.

    sum_p [alpha + max_m d(C_a^p, C_m^p) - min_{m, q != p} d(C_a^p, C_m^q)], m in {v, r}. No
    hinge is printed; without one the loss has no lower bound and alpha no gradient,
    although the paper searched for its best value: hence "hinge", [.]_+, by default.

    Args:
      features: [B, 3, D] in the order visible, infrared, auxiliary.
      labels: int [B], shared by the modalities.
      margin: alpha.
      form: "hinge", "literal" (as printed) or "softplus" (log(1 + exp(.))).
      normalize: scale features to unit length first (the paper states none).

    Returns:
      Scalar, float32 or wider; 0 when the batch has one identity.

    Raises:
      ValueError: for shapes that do not fit or an unknown form.
    """
    if features.ndim != 3 or features.shape[1] != 3:
        raise ValueError(f"features {features.shape}, expected [B, 3, D]: v, r, auxiliary")
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, expected one of {FORMS}")
    if normalize:
        features = unit(features)
    centers, weight = row_centers(features, labels)
    anchor = centers[:, 2]
    farthest = jnp.maximum(*(safe_norm(anchor - centers[:, m]) for m in (VISIBLE, INFRARED)))
    same = labels[:, None] == labels[None, :]
    others = [pairwise_distance(anchor, centers[:, m]) for m in (VISIBLE, INFRARED)]
    nearest = jnp.where(same, jnp.inf, jnp.minimum(*others)).min(1)
    value = margin + farthest - nearest
    value = {"hinge": jax.nn.relu, "literal": lambda x: x, "softplus": jax.nn.softplus}[form](value)
    return jnp.where(same.all(), 0.0, (weight * value).sum())


def new_weight(
    step: Any, num_steps: int, *, schedule: str = "linear", role: str = "new"
) -> jax.Array:
    """The weight of this step's features in the prototypes, eq. 14: beta, or 1 at step 0.

    beta goes from 1e-8 at the first step to 1 at the last, "as training goes on"; in equal
    steps ("linear") or by equal factors ("geometric"). Eq. 14 multiplies the new features
    with it; role "memory" multiplies the old prototypes instead.
    """
    progress = jnp.clip(jnp.asarray(step) / max(num_steps - 1, 1), 0, 1)
    if schedule == "linear":
        beta = FIRST_BETA + (1 - FIRST_BETA) * progress
    else:
        beta = FIRST_BETA ** (1 - progress)
    return jnp.where(jnp.asarray(step) == 0, 1.0, beta if role == "new" else 1 - beta)


def by_slot(
    memory: Mapping[str, jax.Array], mapped: jax.Array, labels: jax.Array, weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Eqs. 13-14 as printed: T_i = beta W Z_i + (1 - beta) T_{i-1}, row by row of the batch.

    Row b of T_{i-1} belongs to whomever row b of the last batch showed; the modalities mix
    identities in the same way, which is what keeps their comparison sound.

    Args:
      memory: {"prototype": [B, 3, D]}, of the step before.
      mapped: W Z [B, 3, D].
      labels: int [B]; not used.
      weight: see `new_weight`.

    Returns:
      T [B, 3, D], with a gradient through `mapped` alone, and the new memory.
    """
    old = jax.lax.stop_gradient(memory["prototype"])
    new = weight * mapped + (1 - weight) * old
    return new, {"prototype": jax.lax.stop_gradient(new).astype(old.dtype)}


def by_identity(
    memory: Mapping[str, jax.Array], mapped: jax.Array, labels: jax.Array, weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Eq. 14 with a memory for each identity, a deliberate deviation from the paper.

    Args:
      memory: {"prototype": [C, K, 3, D], "seen": bool [C]}; an identity that was not seen
        takes this step's features whole.
      mapped: W Z [B, 3, D], identity-major.
      labels: int [B].
      weight: see `new_weight`.

    Returns:
      T [B, 3, D], with a gradient through `mapped` alone, and the new memory.
    """
    stored = memory["prototype"]
    person = labels.reshape(-1, stored.shape[1])[:, 0]  # [P]
    own = jnp.where(memory["seen"][person], weight, 1.0).reshape(-1, 1, 1, 1)
    blocks = mapped.reshape(-1, *stored.shape[1:])
    new = own * blocks + (1 - own) * jax.lax.stop_gradient(stored[person])
    kept = jax.lax.stop_gradient(new).astype(stored.dtype)
    updated = {
        "prototype": stored.at[person].set(kept),
        "seen": memory["seen"].at[person].set(True),
    }
    return new.reshape(mapped.shape), updated


def prototype_loss(
    prototypes: jax.Array,
    *,
    num_instances: int,
    bridge: bool = True,
    bandwidth: str = "adaptive",
    sigma: float = 1.0,
) -> jax.Array:
    """Modality alignment loss L_ma, eqs. 15-16: MMD of each identity's prototypes.

    (1 / P) sum_p [mmd(T_v^p, T_a^p) + mmd(T_a^p, T_r^p)]; without `bridge` (table 3)
    mmd(T_v^p, T_r^p) alone.

    Args:
      prototypes: [B, 3, D], identity-major.
      num_instances: K.
      bridge: compare v and r with the auxiliary modality rather than with each other.
      bandwidth, sigma: see `losses.mmd.mmd`.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: if the rows do not divide by K.
    """
    if prototypes.ndim != 3 or prototypes.shape[0] % num_instances:
        raise ValueError(
            f"prototypes {prototypes.shape}, expected [P * {num_instances}, 3, D]: "
            f"{num_instances} rows of each identity"
        )
    sets = prototypes.reshape(-1, num_instances, *prototypes.shape[1:])
    visible, infrared, auxiliary = (sets[:, :, m] for m in range(3))
    distance = partial(mmd, bandwidth=bandwidth, sigma=sigma)
    if not bridge:
        return distance(visible, infrared).mean()
    return (distance(visible, auxiliary) + distance(auxiliary, infrared)).mean()
