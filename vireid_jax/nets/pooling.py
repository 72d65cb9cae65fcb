"""Global pooling of feature maps, in float32 or wider."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init


def gap(x: jax.Array) -> jax.Array:
    """Global average pooling: [N, h, w, F] -> [N, F], float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))


def gem(x: jax.Array, p: float = 3.0) -> jax.Array:
    """Generalized-mean pooling with a fixed p, as in AGW's code: (mean(x^p) + 1e-12)^(1/p).

    Args:
      x: [N, h, w, F], not negative (after a ReLU), or p is an even number.
      p: 1 is the mean.

    Returns:
      [N, F], float32 or wider.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return ((x**p).mean((1, 2)) + 1e-12) ** (1 / p)


class GeM(nn.Module):
    """Generalized-mean pooling: (mean of max(x, eps)^p)^(1/p), p learned.

    Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation", eq. 3;
    p_init 3 and eps 1e-6 are the values of the AGW baseline.
    """

    p_init: float = 3.0
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, F] -> [N, F], float32 or wider."""
        p = self.param("p", init.constant(self.p_init), (1,))[0]
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (jnp.maximum(x, self.epsilon) ** p).mean((1, 2)) ** (1 / p)
