"""What IDKL's information purifier is taught: eqs. 10 and 11 (Ren and Zhang, CVPR 2024)."""

import jax
import jax.numpy as jnp

from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import safe_norm, wide

ENHANCING_FORMS = ("softplus", "exponential")
REDUCING_FORMS = ("softplus", "relu")
SHIFT = 1e-6  # of every coordinate of the difference of two centers, as in PyTorch's distance


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy [N], in nats, of the softmax of logits [N, C]; float32 or wider."""
    log_p = jax.nn.log_softmax(wide(logits))
    return -(jnp.exp(log_p) * log_p).sum(1)


def enhancing_loss(enhanced: jax.Array, plain: jax.Array, *, form: str = "softplus") -> jax.Array:
    """Discrimination enhancing loss L_e, eq. 10: masked features are to be classified surer.

    With h the entropy: "softplus" is mean_n softplus(h(enhanced_n) - h(plain_n)), eq. 10 with
    the mean over samples that it does not state; "exponential" is the released code's
    mean_n exp([h(enhanced_n) - h(plain_n)]_+) - 1.

    Args:
      enhanced: logits of f^d+, [N, C].
      plain: logits of f, [N, C].
      form: of `ENHANCING_FORMS`.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit or an unknown form.
    """
    if enhanced.ndim != 2 or enhanced.shape != plain.shape:
        raise ValueError(f"got {enhanced.shape} and {plain.shape}, expected two of [N, C]")
    if form not in ENHANCING_FORMS:
        raise ValueError(f"form is {form!r}, expected one of {ENHANCING_FORMS}")
    more = entropy(enhanced) - entropy(plain)
    if form == "softplus":
        return jax.nn.softplus(more).mean()
    return jnp.expm1(jax.nn.relu(more)).mean()


def reducing_loss(
    reduced: jax.Array,
    plain: jax.Array,
    labels: jax.Array,
    *,
    form: str = "softplus",
    relative: bool = False,
) -> jax.Array:
    """Discrepancy reducing loss L_r, eq. 11: masked features are to differ less by modality.

    mean_p softplus(d(reduced_p) - d(plain_p)), d the Euclidean distance between the visible
    and the infrared center of identity p; the paper leaves d open, centers are the released
    code's, which has [.]_+ ("relu") for softplus.

    Args:
      reduced: pooled masked features, [B, 2, D], visible and infrared.
      plain: pooled features without the mask, [B, 2, D].
      labels: int [B], shared by the two.
      form: of `REDUCING_FORMS`. A mask in (0, 1) that is the same for all images lowers d
        whatever it is, and "relu" is 0 then, with a gradient of 0.
      relative: divide d by the sum of the two centers' lengths, so that shrinking all features
        gains nothing. Ours; neither in the paper nor in its code.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit or an unknown form.
    """
    if reduced.ndim != 3 or reduced.shape[1] != 2 or reduced.shape != plain.shape:
        raise ValueError(f"got {reduced.shape} and {plain.shape}, expected two of [B, 2, D]")
    if form not in REDUCING_FORMS:
        raise ValueError(f"form is {form!r}, expected one of {REDUCING_FORMS}")

    def gap(features: jax.Array) -> tuple[jax.Array, jax.Array]:
        centers, weight = row_centers(features, labels)
        distance = safe_norm(centers[:, 0] - centers[:, 1] + SHIFT)
        if relative:
            distance = distance / safe_norm(centers).sum(1)
        return distance, weight

    (masked, weight), (unmasked, _) = gap(reduced), gap(plain)
    rise = {"softplus": jax.nn.softplus, "relu": jax.nn.relu}[form](masked - unmasked)
    return (weight * rise).sum() / weight.sum()
