"""Global pooling of feature maps, in float32 or wider."""

import jax
import jax.numpy as jnp


def gap(x: jax.Array) -> jax.Array:
    """Global average pooling: [N, h, w, F] -> [N, F], float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))


def gem(x: jax.Array, p: float = 3.0) -> jax.Array:
    """Generalized-mean pooling with a fixed p, as in AGW's code: (mean(x^p) + 1e-12)^(1/p).

    [N, h, w, F] -> [N, F], float32 or wider. x is not negative, or p is an even number.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return ((x**p).mean((1, 2)) + 1e-12) ** (1 / p)


def gem_above(x: jax.Array, p: jax.Array | float = 3.0, *, epsilon: float = 1e-6) -> jax.Array:
    """Generalized-mean pooling of what is above a floor: (mean of max(x, eps)^p)^(1/p).

    Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation", eq. 3.
    [N, h, w, F] -> [N, F], float32 or wider; epsilon 1e-6 is AGW's and IDKL's.
    """
    x = jnp.maximum(x.astype(jnp.promote_types(x.dtype, jnp.float32)), epsilon)
    whole = isinstance(p, float | int) and p == int(p)
    power = x ** int(p) if whole else x**p  # multiplications, not exp and log, where they do
    return power.mean((1, 2)) ** (1 / p)
