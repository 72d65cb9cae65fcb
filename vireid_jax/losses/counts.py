"""How many distances each metric loss compares in a batch: table 3 of SMCL.

Wei et al. (ICCV 2021) argue for center losses by the numbers of distances that a loss over P
identities with K visible and K infrared images takes into account. They are summed here from
the masks that the losses use.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.losses.mining import Pairs, center_pairs, cross_pairs, joint_pairs

# Masks of one loss: pairs, what an anchor counts for, what another row counts for. Where rows
# stand for the center of their identity, each counts for 1/K.
Weighted = tuple[Pairs, float, float]


def _batch_hard(labels: jax.Array, center: float) -> list[Weighted]:
    return [(joint_pairs(jnp.repeat(labels, 2)), 1, 1)]


def _bdtr_counted(labels: jax.Array, center: float) -> list[Weighted]:
    return [(cross_pairs(labels), 1, 1), (joint_pairs(labels), 1, 1)] * 2


def _bdtr_orig(labels: jax.Array, center: float) -> list[Weighted]:
    # Within a modality the chosen positive and the chosen negative are kept apart.
    apart = Pairs(jnp.zeros((len(labels),) * 2, bool), joint_pairs(labels).negative)
    return [(cross_pairs(labels), 1, 1), (apart, 1, 1)] * 2


def _bi_center(labels: jax.Array, center: float) -> list[Weighted]:
    return [(cross_pairs(labels), 1, center)] * 2


def _hetero_center_triplet(labels: jax.Array, center: float) -> list[Weighted]:
    return [(center_pairs(labels, 2), center, center)]


def _adsl(labels: jax.Array, center: float) -> list[Weighted]:
    pairs = cross_pairs(labels)
    none = jnp.zeros_like(pairs.positive)
    # Eqs 6 and 7: the distances s-v, s-i and v-i pull, s-s alone pushes.
    pulls = [(Pairs(pairs.positive, none), center, center)] * 3
    return [*pulls, (Pairs(none, pairs.negative), center, center)]


PAIRS: dict[str, Callable[[jax.Array, float], list[Weighted]]] = {
    "bh_tri": _batch_hard,
    "bdtr": _bdtr_counted,
    "bdtr_orig": _bdtr_orig,
    "bicenter": _bi_center,
    "hc_tri": _hetero_center_triplet,
    "adsl": _adsl,
}


def distance_counts(name: str, *, num_ids: int, num_instances: int) -> tuple[int, int]:
    """Distances that may enter a loss as positives and as negatives, with ordered pairs.

      bh_tri     2PK (2K - 1)         2PK 2(P - 1)K
      bdtr       2PK K + 2PK (K - 1)  2PK 2(P - 1)K    form "counted"
      bdtr_orig  2PK K                2PK 2(P - 1)K    form "orig"
      bicenter   2PK                  2PK (P - 1)
      hc_tri     2P                   2P 2(P - 1)
      adsl       2P + P               P (P - 1)

    Args:
      name: one of `PAIRS`, the names of the option `metric` of SMCL; "bdtr" is the form
        "counted", which is the one that agrees with the paper's table.
      num_ids: P.
      num_instances: K, images of each identity in each modality.

    Returns:
      (positives, negatives).

    Raises:
      ValueError: for an unknown name, or P or K < 1.
    """
    if name not in PAIRS:
        raise ValueError(f"no metric loss {name!r}, expected one of {sorted(PAIRS)}")
    if num_ids < 1 or num_instances < 1:
        raise ValueError(f"got P = {num_ids} and K = {num_instances}, expected 1 or more of each")
    labels = jnp.repeat(jnp.arange(num_ids), num_instances)
    sums = np.zeros(2)
    for pairs, anchor, other in PAIRS[name](labels, 1 / num_instances):
        sums += [float(np.sum(mask)) * anchor * other for mask in pairs]
    return round(sums[0]), round(sums[1])
