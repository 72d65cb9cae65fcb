"""Classification of identities."""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import wide


def cross_entropy(logits: jax.Array, labels: jax.Array, *, margin: float = 0.0) -> jax.Array:
    """Softmax cross-entropy, optionally with a margin on the true logit.

    mean_n [ -(z_y - m) + log( exp(z_y - m) + sum_{u != y} exp(z_u) ) ]

    With m > 0 this is the challenge-enhanced loss of SMCL (Wei et al., ICCV 2021, eq. 3).
    As typeset there, m is subtracted in the numerator alone, which adds the constant m to the loss
    and changes no gradient. Here it is subtracted in numerator and denominator, which makes the
    task harder, as the paper's text and Fig. 4 describe.

    Args:
      logits: [N, C].
      labels: int [N], in 0 .. C-1.
      margin: m >= 0, in units of the logits.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {logits.shape} and labels {labels.shape}, expected [N, C] and [N]"
        )
    logits = wide(logits)
    true = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    numerator = (logits * true).sum(1) - margin
    denominator = logits - margin * true
    return (jax.nn.logsumexp(denominator, axis=1) - numerator).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows whose largest logit (without any margin) is the true one, float32 []."""
    return (logits.argmax(1) == labels).astype(jnp.float32).mean()
