"""Initializers that fill on the host, so that a start compiles nothing.

linen's initializers compile every random draw of a ResNet: 7-14 s on two CPU cores. Here NumPy
draws from the parameter's own key, and `start` leaves the forward pass out: about a second. A
jitted start calls NumPy back and has the same bits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

Initializer = Callable[..., jax.Array]


def start(initialize: Callable[..., Any], key: jax.Array, *images: Any) -> Any:
    """The variables that a network starts from; nothing but them is computed.

    Args:
      initialize: `init` of a linen module.
      key: random key.
      images: shapes of what it is called with, [N, H, W, 3].
    """
    with jax.disable_jit():  # or each of jnp's functions would be compiled for each shape
        traced, shapes = jax.make_jaxpr(initialize, return_shape=True)(key, *images)
        needed, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals))
        if any(used[1:]):
            raise ValueError("a variable starts from the images, expected their shapes alone")
        fill = core.jaxpr_as_fun(core.ClosedJaxpr(needed, traced.consts))
        leaves = fill(*[key][: sum(used)])
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.device_put(leaves))


def _draw(key: Any, *, kind: str, shape: tuple[int, ...], dtype: Any, size: float) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.asarray(key, np.uint32).tolist()))
    if kind == "normal":
        drawn = size * generator.standard_normal(shape)
    else:
        drawn = generator.uniform(-size, size, shape)
    return drawn.astype(dtype)


def _drawn(key: jax.Array, kind: str, shape: Any, dtype: Any, size: float) -> jax.Array:
    """N(0, size^2) for kind "normal", U(-size, size) for "uniform"."""
    # Hard-typed keys and raw uint32 keys both occur: linen folds whichever it was given.
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    draw = partial(_draw, kind=kind, shape=tuple(shape), dtype=dtype, size=size)
    # A callback, so that a trace notes the draw: `start` evaluates it, eval_shape sees its shape.
    found: jax.Array = jax.pure_callback(
        draw, jax.ShapeDtypeStruct(shape, dtype), key, vmap_method="sequential"
    )
    return found


def normal(std: float, mean: float = 0.0) -> Initializer:
    """N(mean, std^2)."""
    return lambda key, shape, dtype=jnp.float32: mean + _drawn(key, "normal", shape, dtype, std)


def kaiming_normal(mode: str = "fan_out") -> Initializer:
    """He normal for ReLU networks: std = sqrt(2 / fan), kernels laid out [..., in, out].

    `fan_out` is what torchvision's ResNets use, `fan_in` what re-ID heads use.
    """
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is {mode!r}, expected 'fan_in' or 'fan_out'")

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        fan = math.prod(shape[:-2]) * (shape[-2] if mode == "fan_in" else shape[-1])
        return _drawn(key, "normal", shape, dtype, math.sqrt(2.0 / fan))

    return init


def torch_uniform() -> Initializer:
    """U(-b, b), b = 1 / sqrt(inputs): the start of PyTorch's linear and convolution kernels.

    Kernels are laid out [..., in, out].
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return _drawn(key, "uniform", shape, dtype, 1 / math.sqrt(math.prod(shape[:-1])))

    return init


def torch_uniform_bias(inputs: int) -> Initializer:
    """U(-b, b), b = 1 / sqrt(inputs), for the bias of such a layer."""
    return lambda key, shape, dtype=jnp.float32: _drawn(key, "uniform", shape, dtype, inputs**-0.5)


def constant(value: float) -> Initializer:
    """Every entry `value`."""
    return lambda key, shape, dtype=jnp.float32: jnp.asarray(np.full(shape, value, dtype))
