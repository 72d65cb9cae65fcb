"""Losses of PDM alone: of prototypes (eq. 9) and of identity centers (eq. 10)."""

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.losses.distance import pairwise_distance, safe_norm, unit, wide
from vireid_jax.losses.mining import valid_mean

CH_FORMS = ("code_rms", "cos_min")


def heterogeneity(similarity: jax.Array, logits: jax.Array, *, form: str = "code_rms") -> jax.Array:
    """L_ch of PDM: prototypes are to look at different places.

    Over all maps n and pairs of prototypes i < j, a mean of
      "code_rms"  - sqrt(mean_p (S_nip - S_njp)^2), the authors' code, which has no cosine: it
                  is between -1 and 0, and nearly 0 while features are short
      "cos_min"   cos(L_ni, L_nj), L = P (I + E)^T: eq. 9 with the sign that its text asks for; as
                  printed, 1 - cos, its minimum makes all prototypes one
    The root has a gradient of 0 where two maps are the same; the code's is NaN.

    Args:
      similarity, logits: S = sigmoid(L) and L, [N, m, n].
      form: of `CH_FORMS`.

    Returns:
      Scalar, float32 or wider; 0 with one prototype.

    Raises:
      ValueError: for shapes that do not fit or an unknown form.
    """
    if similarity.ndim != 3 or similarity.shape != logits.shape:
        raise ValueError(
            f"similarity {similarity.shape} and logits {logits.shape}, expected two of one shape "
            "[N, m, n]"
        )
    if form not in CH_FORMS:
        raise ValueError(f"form is {form!r}, expected one of {CH_FORMS}")
    count = similarity.shape[1]
    first, second = np.triu_indices(count, 1)
    if count == 1:
        return jnp.zeros((), wide(similarity).dtype)
    if form == "code_rms":
        s = wide(similarity)
        places = s.shape[-1] ** 0.5
        return -(safe_norm(s[:, first] - s[:, second]) / places).mean()
    x = unit(logits)
    cosine = jnp.einsum("nip,njp->nij", x, x, precision=jax.lax.Precision.HIGHEST)
    return cosine[:, first, second].mean()


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
