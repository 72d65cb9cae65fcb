"""What PDM's code does to images and shallow maps, without parameters; its paper has neither."""

import jax
import jax.numpy as jnp
import numpy as np

LAMBDA = 1e-4


def simam(x: jax.Array) -> jax.Array:
    """SimAM (Yang et al., ICML 2021): x times a gate that is larger where x is unusual.

    gate = sigmoid(d / (4 (sum d / (n - 1) + 1e-4)) + 0.5), d = (x - mean)^2 over the n places of
    each channel of each map; it is at least sigmoid(0.5) = 0.622. mmunhappy/ICASSP2025-PDM, SNA.py.

    Args:
      x: [N, h, w, F].

    Returns:
      The same shape and dtype; statistics in float32 or wider.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    places = x.shape[1] * x.shape[2]
    square = (wide - wide.mean((1, 2), keepdims=True)) ** 2
    variance = square.sum((1, 2), keepdims=True) / max(places - 1, 1)
    return (wide * jax.nn.sigmoid(square / (4 * (variance + LAMBDA)) + 0.5)).astype(x.dtype)


def phase_only(images: jax.Array) -> jax.Array:
    """An image of the same phases whose every frequency has amplitude 1.

    Its root mean square is 1 / sqrt(H W): some thousandths of that of a standardized image. PDM's
    code (fsa_methods.py, `pha_unwrapping`) adds 0.8 of it to the images of training alone. The
    phase of a frequency without amplitude is rounding.

    Args:
      images: [N, H, W, 3].

    Returns:
      The same shape, float32 or wider.
    """
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    phase = jnp.angle(_fourier(wide, sign=-1))
    places = wide.shape[1] * wide.shape[2]
    return _fourier(jnp.exp(1j * phase), sign=1).real.astype(wide.dtype) / places


def _fourier(x: jax.Array, *, sign: int) -> jax.Array:
    """Sums over the places of [N, H, W, F] times exp(sign 2 pi i (u y / H + v x / W)).

    As matrix products: the compiler gathers the operand of an FFT on every device, and with it the
    images of a sharded batch.
    """
    wide = jnp.promote_types(x.dtype, jnp.complex64)
    factors = []
    for size in x.shape[1:3]:
        steps = np.outer(np.arange(size), np.arange(size)) % size  # exact, however large the image
        factors.append(jnp.asarray(np.exp(sign * 2j * np.pi * steps / size), wide))
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("uy,nyxc->nuxc", factors[0], x.astype(wide), precision=highest)
    return jnp.einsum("vx,nuxc->nuvc", factors[1], rows, precision=highest)
