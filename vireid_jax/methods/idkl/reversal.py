"""Gradient reversal (Ganin and Lempitsky, ICML 2015, arXiv 1409.7495).

What lies before it is trained against the loss that what lies behind it is trained for.
"""

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def reverse_gradient(x: jax.Array, strength: Any) -> jax.Array:
    """The same x; its gradient is multiplied by -strength, a number or a scalar array."""
    return x


def _forward(x: jax.Array, strength: Any) -> tuple[jax.Array, Any]:
    return x, strength


def _backward(strength: Any, gradient: jax.Array) -> tuple[jax.Array, Any]:
    reversed_ = -jnp.asarray(strength, gradient.dtype) * gradient
    return reversed_, jnp.zeros_like(jnp.asarray(strength))


reverse_gradient.defvjp(_forward, _backward)


def ramp(step: Any, num_steps: int) -> jax.Array:
    """The strength that rises from 0 toward 1 over a training of so many steps.

    2 / (1 + exp(-10 q)) - 1 with q from 0 at the first step to 1 at the last; Ganin et al.,
    "Domain-adversarial training of neural networks", JMLR 2016, arXiv 1505.07818, sec. 5.2.2.
    """
    progress = jnp.clip(jnp.asarray(step) / max(num_steps - 1, 1), 0, 1)
    return 2 / (1 + jnp.exp(-10 * progress)) - 1
