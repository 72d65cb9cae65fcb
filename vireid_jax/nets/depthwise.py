"""Depthwise convolution with torch's padding, in the form that the hardware computes fastest."""

import jax
import jax.numpy as jnp


def depthwise(x: jax.Array, kernel: jax.Array, *, kernels: str = "xla") -> jax.Array:
    """Convolves every channel with its own k x k kernel, stride 1, padding k // 2.

    XLA's CPU backend computes grouped convolutions 30 to 70 times slower than sums of shifted
    products, in both passes.

    Args:
      x: [B, h, w, C].
      kernel: [k, k, 1, C], k odd.
      kernels: "xla" for `lax.conv_general_dilated`, "cpu" for sums of shifted products.

    Returns:
      [B, h, w, C] in the dtype of x.
    """
    kernel = kernel.astype(x.dtype)
    if kernels == "cpu":
        return _shifted(x, kernel)
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _padded(x: jax.Array, size: int) -> jax.Array:
    pad = size // 2
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _sum_of_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    padded, taps = _padded(_wide(x), size), _wide(kernel)
    total = jnp.zeros((), padded.dtype)
    for i in range(size):
        for j in range(size):
            shifted = padded[:, i : i + height, j : j + width]
            total = total + shifted * taps[i, j].reshape(1, 1, 1, -1)
    return total.astype(x.dtype)


@jax.custom_vjp
def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _sum_of_shifts(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _sum_of_shifts(x, kernel), (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradient of the map is a convolution by the turned kernel.

    That of the kernel is a sum over all places for each of the k * k taps. One reduction
    over all taps at a time, row of the map by row, reads the map from cache: k * k separate
    reductions take up to eight times as long. The loop runs over rows of the map and not over
    the batch, so that a sharded batch axis stays where it is.
    """
    x, kernel = saved
    size, (_, height, width, channels) = kernel.shape[0], x.shape
    padded, along = _padded(_wide(x), size), _wide(gradient)

    def row(at: jax.Array, total: jax.Array) -> jax.Array:
        line = jax.lax.dynamic_slice_in_dim(along, at, 1, 1)[:, 0]
        rows = jax.lax.dynamic_slice_in_dim(padded, at, size, 1)
        products = [rows[:, i, j : j + width] * line for i in range(size) for j in range(size)]
        return total + jnp.stack(_sums(products))

    by_tap = jax.lax.fori_loop(0, height, row, jnp.zeros((size * size, channels), padded.dtype))
    by_kernel = by_tap.reshape(size, size, 1, channels).astype(kernel.dtype)
    return _sum_of_shifts(gradient, kernel[::-1, ::-1]), by_kernel


def _sums(maps: list[jax.Array]) -> list[jax.Array]:
    """The sums of maps [B, w, C] over all but channels, in one pass."""
    zero = jnp.zeros((), maps[0].dtype)
    return jax.lax.reduce(
        maps,
        [zero] * len(maps),
        lambda a, b: [p + q for p, q in zip(a, b, strict=True)],
        (0, 1),
    )


_shifted.defvjp(_forward, _backward)
