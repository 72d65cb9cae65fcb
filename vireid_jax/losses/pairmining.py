"""Losses of DEEN (CVPR 2023) and PDM (ICASSP 2025) on what branches generate from a feature."""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import pairwise_distance, safe_norm, wide
from vireid_jax.losses.mining import valid_mean

CPM_FORMS = ("three", "single")


def by_identity(features: jax.Array, num_ids: int) -> jax.Array:
    """Rows [P * K, ...], identity-major, as [P, K, ...], float32 or wider.

    Raises:
      ValueError: if the rows do not divide.
    """
    if features.shape[0] % num_ids:
        raise ValueError(f"features {features.shape}, expected P * K rows with P = {num_ids}")
    return wide(features).reshape(num_ids, -1, *features.shape[1:])


def center_pair_mining(
    original: jax.Array,
    generated: jax.Array,
    *,
    margin: float = 0.2,
    form: str = "three",
) -> jax.Array:
    """Center-guided pair mining loss L_cpm, for one branch.

    With c_m^j the center of identity j in modality m, g_m^j that of the features generated from
    it, m' the other modality, and D the Euclidean distance, for each m a mean over j of

      form "three" (DEEN's code and PDM's, `CPMLoss`)
        [D(c_m'^j, g_m^j) - sg D(c_m^j, g_m^j) + a]_+
        + 1/2 [D(c_m'^j, g_m^j) - min_k D(g_m^j, g_m^k) + a]_+
        + 1/2 [D(c_m'^j, g_m^j) - min_k D(c_m^j, c_m^k) + a]_+            halved
      form "single" (PDM, eqs. 3 and 4)
        [D(c_m'^j, g_m^j) - D(c_m^j, g_m^j) - min_k D(c_m^j, c_m^k) + a]_+      not halved

    summed over the two m (eq. 5). sg passes no gradient. k runs over the other identities of the
    batch; the paper does not say which one is meant, the nearest is ours. Eq. 4's last distance is
    misprinted: it is read as the one of eq. 3 with the modalities exchanged.

    Args:
      original, generated: centers c and g [P, 2, D], visible and infrared.
      margin: a, in units of the distance; PDM prints none, both codes have 0.2.
      form: of `CPM_FORMS`.

    Returns:
      Scalar, float32 or wider. With one identity the parts with a k are left out.

    Raises:
      ValueError: for shapes that do not fit or an unknown choice.
    """
    if original.ndim != 3 or original.shape[1] != 2 or original.shape != generated.shape:
        raise ValueError(
            f"centers {original.shape} and {generated.shape}, expected two of one shape [P, 2, D]"
        )
    if form not in CPM_FORMS:
        raise ValueError(f"form is {form!r}, expected one of {CPM_FORMS}")
    c, g = wide(original), wide(generated)
    other = ~jnp.eye(len(c), dtype=bool)
    known = other.any(1)
    total = jnp.zeros((), c.dtype)
    for m in range(2):
        pull = safe_norm(c[:, 1 - m] - g[:, m])
        own = safe_norm(c[:, m] - g[:, m])
        apart = pairwise_distance(c[:, m], c[:, m])
        if form == "three":
            first = jax.nn.relu(pull - jax.lax.stop_gradient(own) + margin).mean()
            made = pairwise_distance(g[:, m], g[:, m])
            rest = [
                valid_mean(jax.nn.relu(pull - _nearest(far, other) + margin), known)
                for far in (made, apart)
            ]
            total += (first + sum(rest) / 2) / 2
        else:
            hinge = jax.nn.relu(pull - own - _nearest(apart, other) + margin)
            total += valid_mean(hinge, known)
    return total


def by_branch(
    features: jax.Array, num_ids: int, *, margin: float = 0.2, form: str = "three"
) -> list[jax.Array]:
    """`center_pair_mining` of each branch, of features [P * K, 2, 1 + G, D], the images' first."""
    centers = by_identity(features, num_ids).mean(1)  # [P, 2, 1 + G, D]
    original, *made = (centers[:, :, i] for i in range(centers.shape[2]))
    return [center_pair_mining(original, x, margin=margin, form=form) for x in made]


def orthogonality(generated: jax.Array) -> jax.Array:
    """L_ort of DEEN's code: inner products of what the branches made of one image.

    sum_n sum_{i<j} <f_n^i, f_n^j> / (N (1 + G)) of features [N, G, D]: the code divides by all its
    rows, the images' own among them. Not bounded below, hence its weight of 0.01; float32 or wider.

    Raises:
      ValueError: for another rank.
    """
    if generated.ndim != 3:
        raise ValueError(f"features {generated.shape}, expected [N, G, D]")
    f = wide(generated)
    images, branches, _ = f.shape
    total = f.sum(1)  # sum_{i<j} <f_i, f_j> = (|sum f|^2 - sum |f|^2) / 2
    pairs = ((total * total).sum() - (f * f).sum()) / 2
    return pairs / (images * (1 + branches))


def _nearest(distance: jax.Array, other: jax.Array) -> jax.Array:
    """Smallest distance [P] to another identity; 0 without any, which `valid_mean` leaves out."""
    least = jnp.where(other, distance, jnp.inf).min(1)
    return jnp.where(other.any(1), least, 0)
