"""Augmentation of a batch, in JAX and inside the training step.

The operators and their order are those of AGW (arXiv 2001.04193), CAJ (Ye et al.,
"Channel Augmented Joint Learning for Visible-Infrared Recognition", ICCV 2021), DEEN, PDM,
MPANet and IDKL:

  uint8 -> [gray] -> pad, crop, flip -> standardize -> [erase] -> [channel operator]

  option                     operator in the authors' code
  -------------------------  ------------------------------------------------------------
  pad, pad_value             Pad + RandomCrop to the size before (positions inclusive)
  flip                       RandomHorizontalFlip
  grayscale                  RandomGrayscale, on pixels
  erase, erase_*             RandomErasing of Zhong et al. and of torchvision,
                             ChannelRandomErasing; see `_erase`
  "exchange"                 ChannelExchange(gray=2): R, G or B into all three channels
  "exchange_luma"            ChannelExchange(gray=3): R, G, B or luma
  "adapt"                    ChannelAdap: R, G, B or unchanged, 1/4 each
  "adapt_gray"               ChannelAdapGray(p): R, G, B 1/4 each, luma p/4, unchanged (1-p)/4

The papers' chains, as options beside flip=0.5 and pad=10 (both modalities unless said):

  chain             options
  ----------------  ---------------------------------------------------------------------
  AGW               none
  AGW, LLCM's code  erase=0.5
  DEEN, PDM         grayscale=0.5, erase=0.5, erase_value=(0.485, 0.456, 0.406); on
                    SYSU-MM01 erase_area=(0.2, 0.8)
  CAJ               erase=0.5, erase_value=(0.4914, 0.4822, 0.4465), luma=0.5,
                    infrared_channel="adapt_gray", second_view="exchange"
  CAJ+, SYSU-MM01   as CAJ with erase=(0.6, 0.5), luma=0.6, grayscale=(0.1, 0.0)
  MPANet, IDKL      pad_value=127, erase=0.5, erase_form="log_uniform", erase_attempts=10,
                    erase_area=(0.02, 0.33), erase_aspect=(0.3, 3.3)

Some of them flip before they pad and crop, or crop a gray image where others gray a crop: with
gray padding of equal width on all sides these are the same distribution of images.

Every draw is a function of (key, row of the global batch, modality, view, operator): it does not
change with the number of devices, nor when another operator or the second view is switched on
or off.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax import options
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE, Batch

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)

FORMS = ("uniform", "log_uniform")  # of erasing
CHANNEL = ("none", "exchange", "exchange_luma", "adapt", "adapt_gray")
_COPY = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2989, 0.5870, 0.1140]], np.float32)

# What the uniform numbers of a row are for: fixed places, so that an operator's draws stay
# the same when another is switched on. Erasing draws from a stream of its own.
_TOP, _LEFT, _FLIP, _GRAY, _CHANNEL, _LUMA = range(6)

# x / 255 - mean is computed as (x - _CENTER) / 255. With 16 fractional bits the difference is
# exact for a pixel value, one rounding remains, and an image is the same to the last bit in
# every program, however the compiler fuses it. The center is off by less than 1e-5 gray levels.
_CENTER = (np.round(np.array(MEAN) * 255 * 2**16) / 2**16).astype(np.float32)
_SCALE = (1 / (255 * np.array(STD))).astype(np.float32)


def standardize(images: Any) -> jax.Array:
    """(x / 255 - mean) / std for each channel, the input of every network here.

    Args:
      images: uint8 or float [..., H, W, 3], pixel values 0 .. 255.

    Returns:
      float32 [..., H, W, 3].
    """
    images = jnp.asarray(images)
    if images.ndim < 1 or images.shape[-1] != 3:
        raise ValueError(f"images has shape {images.shape}, expected [..., H, W, 3]")
    lead = (1,) * (images.ndim - 1)
    center, scale = (c.reshape(*lead, 3) for c in (_CENTER, _SCALE))
    return (images.astype(jnp.float32) - center) * scale


def augment(
    key: jax.Array,
    batch: Batch,
    *,
    flip: float = 0.5,
    pad: int = 10,
    pad_value: int = 0,
    grayscale: float | Sequence[float] = 0.0,
    erase: float | Sequence[float] = 0.0,
    erase_area: Sequence[float] = (0.02, 0.4),
    erase_aspect: float | Sequence[float] = 0.3,
    erase_value: Sequence[float] = (0.0, 0.0, 0.0),
    erase_form: str = "uniform",
    erase_attempts: int = 100,
    visible_channel: str = "none",
    infrared_channel: str = "none",
    second_view: str = "none",
    luma: float = 0.5,
    paired: bool = False,
) -> Batch:
    """Augments and standardizes both modalities of a batch, drawn independently.

    `grayscale` and `erase` are one probability, or a pair (visible, infrared). Erasing and the
    channel operators act on standardized values: an erased patch of value 0 is the ImageNet mean
    color, and "luma" weighs standardized channels, as in CAJ.

    Args:
      key: a `jax.random.key`, e.g. folded with the step.
      batch: uint8 images, see `types.Batch`.
      flip: probability of a left-right flip.
      pad: pixels added on every side before a crop back to the size, 0 for no crop.
      pad_value: gray level of the padding, 0 .. 255.
      grayscale: probability of the gray (luma) image in three channels.
      erase: probability of random erasing.
      erase_area: smallest and largest part of the image to erase, within (0, 1].
      erase_aspect: smallest height / width of the patch, which goes up to its inverse; or the
        smallest and the largest.
      erase_value: the patch's color (R, G, B) in standardized units.
      erase_form: how the aspect is drawn, "uniform" or "log_uniform" (torchvision).
      erase_attempts: patches tried until one fits into the image.
      visible_channel: the channel operator of visible images, one of `CHANNEL`.
      infrared_channel: the channel operator of infrared images, one of `CHANNEL`.
      second_view: "none", or the channel operator of a second view of the visible images: another
        run of the chain on the same pixels with draws of its own, also with `paired`, and never
        grayed (CAJ, CAJ+).
      luma: in "adapt_gray", the probability that the fourth outcome is luma.
      paired: use the visible image's flip and crop for the infrared image of the same row
        (for aligned data such as RegDB when images are drawn in pairs).

    Returns:
      The batch with float32 images, standardized; label and camera as they came. With a second
      view it has the key "visible_second", float32 [B, H, W, 3]: row i shows the image of row i
      of "visible".

    Raises:
      ValueError: naming the option that is out of range, or the image that is not uint8.
    """
    given = {k: v for k, v in locals().items() if k not in ("key", "batch")}
    options.check("augment", augment, given)
    grayscale, erase = _pair("grayscale", grayscale), _pair("erase", erase)
    patch: dict[str, Any] = dict(
        area=erase_area, value=erase_value, form=erase_form, attempts=erase_attempts
    )
    _check_erasing(erase_area, erase_value, erase_form)
    erased: Callable[..., jax.Array] = partial(
        _erase, aspect=_checked_aspect(erase_aspect), **patch
    )
    operators = dict(
        visible_channel=visible_channel, infrared_channel=infrared_channel, second_view=second_view
    )
    for name, operator in operators.items():
        if operator not in CHANNEL:
            raise ValueError(
                f"augment.{name} is {operator!r}, expected one of {', '.join(CHANNEL)}"
            )
    for name in MODALITIES:
        images = batch[name]  # type: ignore[literal-required]
        if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"batch['{name}'] is {images.dtype} {list(images.shape)}, expected uint8 "
                "[B, H, W, 3]: augment takes a host batch and standardizes it"
            )

    keys = _row_keys(key, batch["label"].shape[0])  # [2, B]
    # name of the view: (modality, keys of its rows, probability of gray, channel operator)
    views = {
        "visible": (VISIBLE, keys[VISIBLE], grayscale[VISIBLE], visible_channel),
        "infrared": (INFRARED, keys[INFRARED], grayscale[INFRARED], infrared_channel),
    }
    if second_view != "none":
        # Erasing folds 1 into a key of a row, so 2 is a stream that nothing else has.
        second = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys[VISIBLE], 2)
        views["visible_second"] = (VISIBLE, second, 0.0, second_view)
    out: dict[str, Any] = {"label": batch["label"], "camera": batch["camera"]}
    for name, (m, own_keys, gray, operator) in views.items():
        x = batch[MODALITIES[m]]  # type: ignore[literal-required]
        own = _uniform(own_keys)
        place = _uniform(keys[VISIBLE]) if paired and name == "infrared" else own
        # Padding is gray, so the gray image of a crop is the crop of a gray image.
        if gray > 0:
            x = _select(own[:, _GRAY] < gray, _gray(x), x)
        if pad > 0:
            x = _crop(x, pad, pad_value, _below(place[:, _TOP : _LEFT + 1], 2 * pad + 1))
        if flip > 0:
            x = _select(place[:, _FLIP] < flip, x[:, :, ::-1], x)
        x = standardize(x)
        if erase[m] > 0:
            x = erased(own_keys, x, erase[m])
        if operator != "none":
            x = _copy_channel(x, _outcome(own[:, _CHANNEL], own[:, _LUMA], operator, luma))
        out[name] = x
    return cast(Batch, out)


def _row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key for each modality and row of the batch: [2, B] keys."""
    numbers = jnp.arange(len(MODALITIES))[:, None] + len(MODALITIES) * jnp.arange(rows)[None, :]
    return jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(None, 0))(
        key, numbers
    )


def _uniform(keys: jax.Array) -> jax.Array:
    """The uniform numbers of rows with these keys [B]: float32 [B, 6]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (6,)))(keys)


def _below(uniform: jax.Array, n: int | jax.Array) -> jax.Array:
    """Integers 0 .. n-1 from uniform numbers; those have 23 bits, so u * n never rounds to n."""
    return (uniform * n).astype(jnp.int32)


def _select(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Row by row: a [B, ...] where condition [B], else b."""
    return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def _gray(images: jax.Array) -> jax.Array:
    """Pillow's luma, in its integers: (19595 R + 38470 G + 7471 B + 2^15) >> 16."""
    r, g, b = (images[..., c].astype(jnp.int32) for c in range(3))
    gray = ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(jnp.uint8)
    return jnp.broadcast_to(gray[..., None], images.shape)


def _crop(images: jax.Array, pad: int, pad_value: int, corner: jax.Array) -> jax.Array:
    """Pads every side and crops back to the size at corner (top, left), int32 [B, 2]."""
    _, height, width, channels = images.shape
    x = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=pad_value)

    def crop(image: jax.Array, yx: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (yx[0], yx[1], 0), (height, width, channels))

    return jax.vmap(crop)(x, corner)


def _outcome(choice: jax.Array, second: jax.Array, operator: str, luma: float) -> jax.Array:
    """int32 [B] from two uniform numbers [B]: 0, 1, 2 copy R, G, B; 3 is luma; 4 no change."""
    outcome = _below(choice, 3 if operator == "exchange" else 4)
    if operator == "adapt":
        return jnp.where(outcome == 3, 4, outcome)
    if operator == "adapt_gray":
        return jnp.where((outcome == 3) & (second >= luma), 4, outcome)
    return outcome


def _copy_channel(images: jax.Array, outcome: jax.Array) -> jax.Array:
    """Copies one channel, or the luma, to all three."""
    weight = jnp.asarray(_COPY)[jnp.minimum(outcome, 3)].reshape(-1, 3, 1, 1)
    # Sums of products with 0 and 1 are exact, so a copied channel is the channel.
    r, g, b = (images[..., c] * weight[:, c] for c in range(3))
    copied = jnp.broadcast_to((r + g + b)[..., None], images.shape)
    return _select(outcome == 4, images, copied)


def _erase(
    keys: jax.Array,
    images: jax.Array,
    probability: float,
    *,
    area: Sequence[float],
    aspect: tuple[float, float],
    value: Sequence[float],
    form: str,
    attempts: int,
) -> jax.Array:
    """Fills a random rectangle; Algorithm 1 of arXiv 1708.04896 as CAJ's and torchvision's code.

    The aspect is uniform in its range (AGW, CAJ, DEEN, PDM; 100 attempts), or log-uniform
    (torchvision, and with it MPANet and IDKL; 10 attempts).

    The area fraction is uniform; height and width are rounded half to even; a patch must be
    strictly smaller than the image in both directions, and an image for which no attempt fits
    stays as it is. The authors' loop draws one attempt after the other; drawing all of them at
    once and taking the first that fits has the same distribution.
    """
    height, width = images.shape[1:3]
    low, high = aspect

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


# --- The options ----------------------------------------------------------------------------


def _pair(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    numbers = (value,) if isinstance(value, (int, float)) else tuple(value)
    # A single number on the command line, where the recipe has a pair, arrives as a tuple of one.
    pair = numbers * 2 if len(numbers) == 1 else numbers
    if len(pair) != 2:
        raise ValueError(
            f"augment.{name} is {value}, expected one probability or a pair (visible, infrared)"
        )
    return pair[0], pair[1]


def _check_erasing(area: Sequence[float], value: Sequence[float], form: str) -> None:
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"augment.erase_area is {area}, expected 0 < smallest <= largest <= 1")
    if len(value) != 3:
        raise ValueError(f"augment.erase_value is {value}, expected a value for R, G and B")
    if form not in FORMS:
        raise ValueError(f"augment.erase_form is {form!r}, expected one of {', '.join(FORMS)}")


def _checked_aspect(aspect: float | Sequence[float]) -> tuple[float, float]:
    """The smallest and largest height / width; a single number goes up to its inverse."""
    if isinstance(aspect, (int, float)):
        if not 0 < aspect <= 1:
            raise ValueError(
                f"augment.erase_aspect is {aspect}, expected a height / width in (0, 1], whose "
                "inverse is the largest, or a pair (smallest, largest)"
            )
        return aspect, 1 / aspect
    if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1] < math.inf:
        raise ValueError(f"augment.erase_aspect is {aspect}, expected 0 < smallest <= largest")
    return aspect[0], aspect[1]
