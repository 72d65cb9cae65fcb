"""The spatial pyramid of MUN's cross-modality learner: pooling and its learned inverse.

Yu et al., "Modality Unifying Network for Visible-Infrared Person Re-Identification" (ICCV
2023), eqs. 6 and 7. A window is (height, width) in places of the map; pooling and transposed
convolution both have kernel = stride = window, so windows tile the map and never overlap.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

RATIO_FORMS = ("factor", "bins")
Window = tuple[int, int]


def windows(height: int, width: int, ratios: Sequence[int], form: str) -> list[Window]:
    """The window of each ratio on a map of height x width.

    Args:
      height, width: of the map.
      ratios: "factor": r is the factor of reduction, the window is r x r. "bins": the map is
        pooled to r x r cells.
      form: one of `RATIO_FORMS`.

    Raises:
      ValueError: windows do not tile the map, or ratios are not distinct positive integers.
    """
    check_ratios(ratios)
    if any(height % r or width % r for r in ratios):
        need = math.lcm(*ratios)
        raise ValueError(
            f"a map of {height} x {width} does not divide by the ratios {tuple(ratios)}; expected "
            f"a height and a width that are multiples of {need}, from images whose sides are "
            f"multiples of {4 * need} such as {_fitting(height, need)} x {_fitting(width, need)}; "
            "choose such a data.image_size, or other method.generator.ratios"
        )
    if form == "bins":
        return [(height // r, width // r) for r in ratios]
    return [(r, r) for r in ratios]


def check_ratios(ratios: Sequence[int]) -> None:
    """Raises ValueError unless ratios are distinct positive integers, at least one."""
    given = list(ratios)
    if not given or len(set(given)) < len(given) or any(type(r) is not int or r < 1 for r in given):
        raise ValueError(
            f"method.generator.ratios is {tuple(given)}, expected distinct whole numbers from 1 "
            "on, such as (2, 4, 6, 12)"
        )


def _fitting(side: int, multiple: int) -> int:
    """Pixels of an image side whose map, a quarter of it, is the next multiple."""
    return 4 * multiple * max(1, math.ceil(side / multiple))


def pool(x: jax.Array, window: Window) -> jax.Array:
    """Means over windows: [B, h, w, C] -> float32 or wider [B, h / a, w / b, C]."""
    batch, height, width, channels = x.shape
    a, b = window
    cells = x.reshape(batch, height // a, a, width // b, b, channels)
    return cells.mean((2, 4), dtype=jnp.promote_types(x.dtype, jnp.float32))


def expand(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with kernel = stride: one matrix product, then depth to space.

    Place (a, b) of cell (p, q) is x[p, q] @ kernel[a, b].

    Args:
      x: cells [B, p, q, C].
      kernel: [a, b, C, F], or [a, b, 1, C] for a depthwise one.

    Returns:
      [B, p * a, q * b, F] in the dtype of x.
    """
    a, b, inputs, features = kernel.shape
    kernel = kernel.astype(x.dtype)
    if inputs == 1 and x.shape[-1] != 1:
        places = x[:, :, :, None, None] * kernel.reshape(1, 1, 1, a, b, features)
    else:
        matrix = kernel.transpose(2, 0, 1, 3).reshape(inputs, a * b * features)
        product = jax.lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))
        places = product.reshape(*x.shape[:3], a, b, features)
    return depth_to_space(places)


def depth_to_space(x: jax.Array) -> jax.Array:
    """[B, p, q, a, b, F] -> [B, p * a, q * b, F]."""
    batch, p, q, a, b, features = x.shape
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, p * a, q * b, features)
