"""Forms of a ResNet's operations that XLA's CPU backend computes faster; the numbers are the same.

`kernels="cpu"` chooses them. Accelerators have the plain operations, and libraries made for them.
`docs/speed.md` says what each form saves.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDE = 64  # channels from which on XLA computes a convolution of few channels well
CACHED = 2**20  # bytes of a map, of about the size of a second-level cache
MOST_CHUNKS = 16  # each is a convolution more to compile
MANY = 512  # channels from which on the gradient of a kernel is better made of matrix products
FEW, SOME = 4, 16  # channels of images, and of a generator that makes them


def convolution(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated` of maps [N, H, W, C] and a kernel [k, k, C, F], without groups.

    A 1x1 kernel is a matrix product. A large kernel on images, from few channels to few, works on
    cells of 2 x 2 pixels as channels. The gradient of the others' kernels is made of parts.
    """
    side, _, inputs, outputs = rhs.shape
    if side == 1:
        lhs = lhs[:, :: window_strides[0], :: window_strides[1]]
        return product(lhs, rhs[0, 0], precision=options.get("precision"))
    image = side == 7 and inputs <= 4 and tuple(window_strides) == (2, 2)
    if image and outputs < WIDE and not any(n % 2 for n in lhs.shape[1:3]):
        return _cells(lhs, rhs, **options)
    return _by_parts(lhs, rhs, window_strides=window_strides, padding=padding, **options)


def _by_parts(lhs: jax.Array, rhs: jax.Array, **options: Any) -> jax.Array:
    """A convolution whose kernel's gradient is a sum over chunks of images, or made by places.

    For each place of the kernel XLA goes through both maps from beginning to end. It is twice as
    fast where they stay in a core's cache. Chunk c has the images n with n % chunks == c, so a
    sharded batch stays where it is. With many channels a matrix product a place is faster still.
    """

    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(lhs, rhs, **options)

    def backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> Any:
        lhs, rhs = saved
        of_lhs = jax.linear_transpose(lambda x: plain(x, rhs), lhs)
        if min(rhs.shape[2:]) >= MANY and tuple(options["window_strides"]) == (1, 1):
            return *of_lhs(gradient), _by_places(lhs, gradient, rhs.shape, **options)
        chunks = _chunks(len(lhs), max(lhs.nbytes, gradient.nbytes))
        maps, along = (x.reshape(-1, chunks, *x.shape[1:]) for x in (lhs, gradient))
        parts = (
            jax.linear_transpose(partial(plain, maps[:, c]), rhs)(along[:, c])[0]
            for c in range(chunks)
        )
        return *of_lhs(gradient), reduce(jnp.add, parts)

    found = jax.custom_vjp(plain)
    found.defvjp(lambda *inputs: (plain(*inputs), inputs), backward)
    return found(lhs, rhs)


def _by_places(
    lhs: jax.Array, gradient: jax.Array, shape: tuple[int, ...], **options: Any
) -> jax.Array:
    """The gradient of a kernel of stride 1: for each of its places the product of two maps."""
    down, across = options.get("rhs_dilation") or (1, 1)
    _, height, width, outputs = gradient.shape
    padded = jnp.pad(lhs, ((0, 0), *options["padding"], (0, 0)))
    along = gradient.reshape(-1, outputs)

    def product_at(row: int, column: int) -> jax.Array:
        seen = padded[:, row * down :, column * across :][:, :height, :width]
        rows = seen.reshape(-1, shape[2])
        return jax.lax.dot(rows.T, along, precision=options.get("precision"))

    places = [product_at(*place) for place in np.ndindex(*shape[:2])]
    return jnp.stack(places).reshape(shape)


def _chunks(images: int, size: int) -> int:
    """The least number of equal chunks of a map of `size` bytes that are cached; 16 at most."""
    divisors = [n for n in range(1, min(images, MOST_CHUNKS) + 1) if images % n == 0]
    return next((n for n in divisors if size <= n * CACHED), divisors[-1])


def product(x: jax.Array, matrix: jax.Array, *, precision: Any = None) -> jax.Array:
    """Maps [..., C] times a matrix [C, F], as a product of two axes.

    With more, XLA transposes the map for the matrix's gradient. Images of three colors are no
    work for a matrix product: it takes longer than to add up scaled colors.
    """
    rows = x.reshape(-1, x.shape[-1])
    if min(matrix.shape) <= FEW and max(matrix.shape) <= SOME:
        found = _scaled_sum(rows, matrix)
    else:
        found = jax.lax.dot(rows, matrix, precision=precision)
    return found.reshape(*x.shape[:-1], -1)


def dense(x: jax.Array, matrix: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """`product` as `nn.Dense` calls its `dot_general`."""
    del dimensions  # the last axis of the map, always
    return product(x, matrix, precision=precision)


@jax.custom_vjp
def _scaled_sum(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """[N, C] times [C, F], both few."""
    scaled = (rows[:, c : c + 1] * matrix[c : c + 1] for c in range(len(matrix)))
    return reduce(jnp.add, scaled)


def _scaled_sum_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> Any:
    rows, matrix = saved
    return _scaled_sum(gradient, matrix.T), rows.T @ gradient


_scaled_sum.defvjp(lambda *inputs: (_scaled_sum(*inputs), inputs), _scaled_sum_backward)


def _cells(images: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    """A 7x7 convolution of stride 2 and padding 3 as one of 4x4 and stride 1 on cells of 2 x 2."""
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, -1)
    # Pixel 2j - 3 is the second one of cell j - 2: a row and a column of zeros come before.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1)
    return _by_parts(cells, kernel, window_strides=(1, 1), padding=((2, 1), (2, 1)), **options)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max-pool of stride 2 and padding 1; of equal maxima the first takes the gradient.

    Both are as in torch: the first by rows, then by columns. Maps [N, H, W, C] of any size give
    [N, ceil(H / 2), ceil(W / 2), C].
    """
    return _pool(_pool(x, 2), 1)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x: jax.Array, axis: int) -> jax.Array:
    """The same along one axis: maxima of an odd place, the even one after it, the next odd one.

    XLA fuses the gradient of nine shifted maps with what comes before them, and computes that
    nine times.
    """
    even, odd = _halves(x, axis)
    return jnp.maximum(jnp.maximum(_shifted(odd, axis, 1, -jnp.inf), even), odd)


def _pool_forward(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    return _pool(x, axis), x


def _pool_backward(axis: int, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    even, odd = _halves(x, axis)
    first = _shifted(odd, axis, 1, -jnp.inf) >= jnp.maximum(even, odd)
    second = even >= odd
    zero = jnp.zeros((), gradient.dtype)
    to_even = jnp.where(~first & second, gradient, zero)
    to_odd = jnp.where(first | second, zero, gradient)
    to_odd += _shifted(jnp.where(first, gradient, zero), axis, -1, 0)
    # A choice by parity; a stack is slower.
    shape = (*gradient.shape[: axis + 1], 2, *gradient.shape[axis + 1 :])
    is_even = jax.lax.broadcasted_iota(jnp.int32, shape, axis + 1) == 0
    to_even, to_odd = (jnp.expand_dims(to, axis + 1) for to in (to_even, to_odd))
    both = jnp.where(is_even, to_even, to_odd)
    both = both.reshape(*gradient.shape[:axis], -1, *gradient.shape[axis + 1 :])
    return (jax.lax.slice_in_dim(both, 0, x.shape[axis], axis=axis),)


_pool.defvjp(_pool_forward, _pool_backward)


def _halves(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The even and the odd places along an axis; reshapes, where strided slices would be slow."""
    pad = [(0, 0, 0)] * x.ndim
    pad[axis] = (0, x.shape[axis] % 2, 0)
    x = jax.lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pad)
    x = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(x, n, axis + 1, keepdims=False) for n in range(2))
    return even, odd


def _shifted(x: jax.Array, axis: int, by: int, fill: float) -> jax.Array:
    """Place n of x at n + by, the rest filled."""
    pad = [(0, 0, 0)] * x.ndim
    pad[axis] = (by, -by, 0)
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), pad)
