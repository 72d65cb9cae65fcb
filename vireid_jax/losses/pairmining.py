"""Losses of DEEN (CVPR 2023) and PDM (ICASSP 2025) on generated features and on prototypes."""

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.losses.distance import pairwise_distance, safe_norm, unit, wide
from vireid_jax.losses.mining import valid_mean

CPM_FORMS = ("three", "single")
OTHERS = ("nearest", "mean")
CH_FORMS = ("code_rms", "cos_min", "paper_literal")


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
    others: str = "nearest",
) -> jax.Array:
    """Center-guided pair mining loss L_cpm, for one branch.

    With c_m^j the center of identity j in modality m, g_m^j that of the features generated from
    it, m' the other modality, and D the Euclidean distance, for each m a mean over j of

      form "three" (DEEN's code and PDM's, `CPMLoss`)
        [D(c_m'^j, g_m^j) - sg D(c_m^j, g_m^j) + a]_+
        + 1/2 [D(c_m'^j, g_m^j) - min_k D(g_m^j, g_m^k) + a]_+
        + 1/2 [D(c_m'^j, g_m^j) - min_k D(c_m^j, c_m^k) + a]_+            halved
      form "single" (PDM, eqs. 3 and 4)
        [D(c_m'^j, g_m^j) - D(c_m^j, g_m^j) - D(c_m^j, c_m^k) + a]_+      not halved

    summed over the two m (eq. 5). sg passes no gradient. k runs over the other identities of the
    batch: the paper does not say how; eq. 4's last distance, which is misprinted, is read as that
    of eq. 3 with the modalities exchanged.

    Args:
      original: centers c [P, 2, D], visible and infrared.
      generated: centers g [P, 2, D].
      margin: a, in units of the distance; PDM prints none, both codes have 0.2.
      form: of `CPM_FORMS`.
      others: of "single": the "nearest" k, or the "mean" over all k of the hinge. "three" has the
        nearest by itself.

    Returns:
      Scalar, float32 or wider. With one identity the parts with a k are left out.

    Raises:
      ValueError: for shapes that do not fit or an unknown choice.
    """
    if original.ndim != 3 or original.shape[1] != 2 or original.shape != generated.shape:
        raise ValueError(
            f"centers {original.shape} and {generated.shape}, expected two of one shape [P, 2, D]"
        )
    _check("form", form, CPM_FORMS)
    _check("others", others, OTHERS)
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
        elif others == "nearest":
            hinge = jax.nn.relu(pull - own - _nearest(apart, other) + margin)
            total += valid_mean(hinge, known)
        else:
            hinge = jax.nn.relu((pull - own)[:, None] - apart + margin)
            total += valid_mean(hinge.reshape(-1), other.reshape(-1))
    return total


def orthogonality(generated: jax.Array) -> jax.Array:
    """L_ort of DEEN's code: inner products of what the branches made of one image.

    sum_n sum_{i<j} <f_n^i, f_n^j> / (N (1 + G)): the code divides by all its rows, the images' own
    among them. Not bounded below, hence its weight of 0.01.

    Args:
      generated: [N, G, D], features of the branches.

    Returns:
      Scalar, float32 or wider; 0 with one branch.

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


def dual_center_separation(
    features: jax.Array, *, pull_margin: float = 0.01, push_margin: float = 0.7
) -> jax.Array:
    """L_dcs of PDM, eq. 10: to the center of one's identity, and centers apart.

    mean_i [||F_i - c_{y_i}|| - rho1]_+ + mean_{j<k} [rho2 - ||c_j - c_k||]_+, where a center is the
    mean of all S rows of an identity in the batch: both modalities, all branches. The paper gives
    no rho; its code has 0.01 and 0.7 (dcs_loss.py, whose square root has a NaN gradient where a
    row is its center; here it is 0).

    Args:
      features: [P, S, D], the rows of each identity.
      pull_margin, push_margin: rho1 and rho2, in units of the distance.

    Returns:
      Scalar, float32 or wider; with one identity the first part.

    Raises:
      ValueError: for another rank.
    """
    if features.ndim != 3:
        raise ValueError(f"features {features.shape}, expected [P, S, D]")
    f = wide(features)
    centers = f.mean(1)
    pull = jax.nn.relu(safe_norm(f - centers[:, None]) - pull_margin).mean()
    push = jax.nn.relu(push_margin - pairwise_distance(centers, centers))
    other = ~jnp.eye(len(f), dtype=bool)  # a pair counts twice, above and below
    return pull + valid_mean(push.reshape(-1), other.reshape(-1))


def heterogeneity(similarity: jax.Array, logits: jax.Array, *, form: str = "code_rms") -> jax.Array:
    """L_ch of PDM: prototypes are to look at different places.

    Over all maps n and pairs of prototypes i < j, a mean of
      "code_rms"       - sqrt(mean_p (S_nip - S_njp)^2), the authors' code, which has no cosine: it
                       is between -1 and 0, and nearly 0 while features are short
      "cos_min"        cos(L_ni, L_nj), L = P (I + E)^T: eq. 9 with the sign that its text asks for
      "paper_literal"  1 - cos(L_ni, L_nj), eq. 9 as printed, whose minimum makes all prototypes
                       one
    The root has a gradient of 0 where two maps are the same; the code's is NaN.

    Args:
      similarity: S = sigmoid(L), [N, m, n].
      logits: L, [N, m, n].
      form: of `CH_FORMS`.

    Returns:
      Scalar, float32 or wider; 0 (or, as printed, 1) with one prototype.

    Raises:
      ValueError: for shapes that do not fit or an unknown form.
    """
    if similarity.ndim != 3 or similarity.shape != logits.shape:
        raise ValueError(
            f"similarity {similarity.shape} and logits {logits.shape}, expected two of one shape "
            "[N, m, n]"
        )
    _check("form", form, CH_FORMS)
    count = similarity.shape[1]
    first, second = np.triu_indices(count, 1)
    if form == "code_rms":
        s = wide(similarity)
        if count < 2:
            return jnp.zeros((), s.dtype)
        places = s.shape[-1] ** 0.5
        return -(safe_norm(s[:, first] - s[:, second]) / places).mean()
    x = unit(logits)
    cosine = jnp.einsum("nip,njp->nij", x, x, precision=jax.lax.Precision.HIGHEST)
    mean = cosine[:, first, second].mean() if count > 1 else jnp.zeros((), x.dtype)
    return mean if form == "cos_min" else 1 - mean


def _nearest(distance: jax.Array, other: jax.Array) -> jax.Array:
    """Smallest distance [P] to another identity; 0 without any, which `valid_mean` leaves out."""
    least = jnp.where(other, distance, jnp.inf).min(1)
    return jnp.where(other.any(1), least, 0)


def _check(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} is {value!r}, expected one of {allowed}")
