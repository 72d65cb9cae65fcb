"""Random erasing of a batch, in JAX: the rule of Zhong et al. and that of torchvision.

Both fill a rectangle of random area and aspect. They differ in how the aspect is drawn and in
when they give up:

  form           aspect (height / width)        area           attempts  used by
  -------------  -----------------------------  -------------  --------  -----------------------
  "uniform"      uniform in 0.3 .. 1 / 0.3      0.02 .. 0.4         100  AGW, CAJ, DEEN, PDM
  "log_uniform"  log-uniform in 0.3 .. 3.3      0.02 .. 0.33         10  MPANet, IDKL (torchvision)

Before those that do not fit are refused, three patches in four are taller than wide under
"uniform" (10 in 13), half of them under "log_uniform".
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

FORMS = ("uniform", "log_uniform")


def aspect_range(aspect: float | Sequence[float]) -> tuple[float, float]:
    """The smallest and largest height / width; a single number goes up to its inverse.

    Raises:
      ValueError: unless 0 < smallest <= largest.
    """
    if isinstance(aspect, (int, float)):
        if not 0 < aspect <= 1:
            raise ValueError(
                f"erase_aspect is {aspect}, expected a height / width in (0, 1], whose inverse is "
                "the largest, or a pair (smallest, largest)"
            )
        return aspect, 1 / aspect
    if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1] < math.inf:
        raise ValueError(f"erase_aspect is {aspect}, expected 0 < smallest <= largest")
    return aspect[0], aspect[1]


def check_erasing(
    area: Sequence[float],
    aspect: float | Sequence[float],
    value: Sequence[float],
    form: str,
    attempts: int,
) -> None:
    """Raises ValueError naming the option of `augment` that is out of range."""
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"erase_area is {area}, expected 0 < smallest <= largest <= 1")
    aspect_range(aspect)
    if len(value) != 3:
        raise ValueError(f"erase_value is {value}, expected a value for R, G and B")
    if form not in FORMS:
        raise ValueError(f"erase_form is {form!r}, expected one of {', '.join(FORMS)}")
    if attempts != int(attempts) or attempts < 1:
        raise ValueError(f"erase_attempts is {attempts}, expected an integer, 1 or more")


def erase_patch(
    keys: jax.Array,
    images: jax.Array,
    probability: float,
    *,
    area: Sequence[float],
    aspect: float | Sequence[float],
    value: Sequence[float],
    form: str,
    attempts: int,
) -> jax.Array:
    """Fills a random rectangle; Algorithm 1 of arXiv 1708.04896 as CAJ's and torchvision's code.

    The area fraction is uniform, the aspect is by `form`; height and width are rounded half to
    even; a patch must be strictly smaller than the image in both directions, and an image for
    which no attempt fits stays as it is. The authors' loop draws anew each time, so drawing all
    attempts at once and taking the first that fits has the same distribution.

    Args:
      keys: B `jax.random` keys, one for each image.
      images: float32 [B, H, W, 3], standardized.
      probability: of erasing an image.
      area: smallest and largest part of the image, within (0, 1].
      aspect: smallest height / width, or the smallest and the largest.
      value: the patch's color (R, G, B) in standardized units.
      form: one of `FORMS`.
      attempts: how many patches are tried.

    Returns:
      float32 [B, H, W, 3].
    """
    height, width = images.shape[1:3]
    low, high = aspect_range(aspect)

    def patch(key: jax.Array) -> tuple[jax.Array, ...]:
        # Another stream than the uniform numbers of the other operators.
        u = jax.random.uniform(jax.random.fold_in(key, 1), (3 + 2 * attempts,))
        fraction = area[0] + u[3 : 3 + attempts] * (area[1] - area[0])
        pixels = fraction * (height * width)
        ratio = u[3 + attempts :]
        if form == "uniform":
            ratio = low + ratio * (high - low)
        else:
            ratio = jnp.exp(math.log(low) + ratio * (math.log(high) - math.log(low)))
        h = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
        fits = (h < height) & (w < width)
        first = jnp.argmax(fits)
        h, w = h[first], w[first]
        top = (u[1] * (height - h + 1)).astype(jnp.int32)
        left = (u[2] * (width - w + 1)).astype(jnp.int32)
        return (u[0] < probability) & fits.any(), top, top + h, left, left + w

    apply, top, bottom, left, right = (p[:, None] for p in jax.vmap(patch)(keys))  # [B, 1]
    y, x = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
    in_y = apply & (y >= top) & (y < bottom)  # [B, H]
    in_x = (x >= left) & (x < right)  # [B, W]
    erased = in_y[:, :, None, None] & in_x[:, None, :, None]
    return jnp.where(erased, np.array(value, np.float32).reshape(1, 1, 1, 3), images)
