"""Initializers that fill on the host, so that starting a model compiles nothing.

`jax.jit(model.init)` compiles every random draw of a ResNet: 7-14 s on two CPU cores.
These initializers draw with NumPy from the parameter's own key; together with linen's
`lazy_init`, which evaluates parameters but not the forward pass, a ResNet-50 starts in
about a second. Under a trace (`jax.eval_shape`) they return abstract values.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]


def start(net: nn.Module, key: jax.Array, *images: jax.ShapeDtypeStruct) -> Any:
    """The variables that a network starts from; nothing but them is computed.

    Args:
      net: a linen module.
      key: random key.
      images: what it is called with, [N, H, W, 3].
    """
    # jnp's functions are jitted, and lazy_init compiles a program for each of their shapes, though
    # nothing is left in it to compute: half of the time.
    with jax.disable_jit():
        return net.lazy_init(key, *images)


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, std: float) -> jax.Array:
    """N(0, std^2) of `shape`, drawn by NumPy where the key is concrete."""
    if isinstance(key, jax.core.Tracer):
        return std * jax.random.normal(key, shape, dtype)
    return jnp.asarray((std * _generator(key).standard_normal(shape)).astype(dtype))


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, bound: float) -> jax.Array:
    """U(-bound, bound) of `shape`, the same way."""
    if isinstance(key, jax.core.Tracer):
        return jax.random.uniform(key, shape, dtype, -bound, bound)
    return jnp.asarray(_generator(key).uniform(-bound, bound, shape).astype(dtype))


def _generator(key: jax.Array) -> np.random.Generator:
    # Hard-typed keys and raw uint32 keys both occur: linen folds whichever it was given.
    raw = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return np.random.Generator(np.random.Philox(np.asarray(raw, np.uint32).tolist()))


def normal(std: float, mean: float = 0.0) -> Initializer:
    """N(mean, std^2)."""
    return lambda key, shape, dtype=jnp.float32: mean + _normal(key, shape, dtype, std)


def kaiming_normal(mode: str = "fan_out") -> Initializer:
    """He normal for ReLU networks: std = sqrt(2 / fan), kernels laid out [..., in, out].

    `fan_out` is what torchvision's ResNets use, `fan_in` what re-ID heads use.
    """
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is {mode!r}, expected 'fan_in' or 'fan_out'")

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        fan = math.prod(shape[:-2]) * (shape[-2] if mode == "fan_in" else shape[-1])
        return _normal(key, shape, dtype, math.sqrt(2.0 / fan))

    return init


def torch_uniform() -> Initializer:
    """U(-b, b), b = 1 / sqrt(inputs): what PyTorch's linear and convolution layers start from.

    For kernels laid out [..., in, out]. PyTorch draws biases from the same interval; a layer's
    bias has no inputs of its own, so `torch_uniform_bias` is told them.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return _uniform(key, shape, dtype, 1 / math.sqrt(math.prod(shape[:-1])))

    return init


def torch_uniform_bias(inputs: int) -> Initializer:
    """U(-b, b), b = 1 / sqrt(inputs), for the bias of such a layer."""
    return lambda key, shape, dtype=jnp.float32: _uniform(key, shape, dtype, inputs**-0.5)


def constant(value: float) -> Initializer:
    """Every entry `value`."""
    return lambda key, shape, dtype=jnp.float32: jnp.asarray(np.full(shape, value, dtype))
