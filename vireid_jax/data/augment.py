"""Augmentation of a batch, in JAX and inside the training step.

The operators and their order are those of AGW (arXiv 2001.04193), CAJ (Ye et al.,
"Channel Augmented Joint Learning for Visible-Infrared Recognition", ICCV 2021) and DEEN:

  uint8 -> [gray] -> pad, crop, flip -> standardize -> [erase] -> [channel operator]

  option                     operator in the authors' code
  -------------------------  ------------------------------------------------------------
  pad, pad_value             Pad + RandomCrop to the size before (positions inclusive)
  flip                       RandomHorizontalFlip
  grayscale                  RandomGrayscale, on pixels
  erase, erase_*             RandomErasing (Zhong et al., arXiv 1708.04896), ChannelRandomErasing
  "exchange"                 ChannelExchange(gray=2): R, G or B into all three channels
  "exchange_luma"            ChannelExchange(gray=3): R, G, B or luma
  "adapt"                    ChannelAdap: R, G, B or unchanged, 1/4 each
  "adapt_gray"               ChannelAdapGray(p): R, G, B 1/4 each, luma p/4, unchanged (1-p)/4

Erasing and the channel operators act on standardized values, so an erased patch of
value 0 is the ImageNet mean color and "luma" weighs standardized channels, as in CAJ.

Every draw is a function of (key, row of the global batch, modality, operator): it does not
change with the number of devices, nor when another operator is switched on or off.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.types import INFRARED, MODALITIES, VISIBLE, Batch

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
ATTEMPTS = 100  # random erasing gives up after as many, as in the authors' code

# Outcomes of a channel operator: 0, 1, 2 copy R, G, B; 3 is luma; 4 leaves the image.
CHANNEL = ("none", "exchange", "exchange_luma", "adapt", "adapt_gray")
_COPY = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2989, 0.5870, 0.1140]], np.float32)

# One random stream for each operator.
_CROP_FLIP, _GRAYSCALE, _ERASE, _CHANNEL = range(4)


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
    mean, std = (np.array(c, np.float32).reshape(*lead, 3) for c in (MEAN, STD))
    return (images.astype(jnp.float32) / np.float32(255) - mean) / std


def unstandardize(images: Any) -> jax.Array:
    """Undoes `standardize`: float [..., H, W, 3] -> uint8, rounded and clipped."""
    images = jnp.asarray(images)
    lead = (1,) * (images.ndim - 1)
    mean, std = (np.array(c, np.float32).reshape(*lead, 3) for c in (MEAN, STD))
    pixels = (images.astype(jnp.float32) * std + mean) * np.float32(255)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


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
    erase_aspect: float = 0.3,
    erase_value: Sequence[float] = (0.0, 0.0, 0.0),
    visible_channel: str = "none",
    infrared_channel: str = "none",
    luma: float = 0.5,
    paired: bool = False,
) -> Batch:
    """Augments and standardizes both modalities of a batch, drawn independently.

    For a second view of the same images call it again with another key. `grayscale` and
    `erase` are one probability, or a pair (visible, infrared).

    Args:
      key: a `jax.random.key`, e.g. folded with the step.
      batch: uint8 images, see `types.Batch`.
      flip: probability of a left-right flip.
      pad: pixels added on every side before a crop back to the size, 0 for no crop.
      pad_value: gray level of the padding, 0 .. 255.
      grayscale: probability of the gray (luma) image in three channels.
      erase: probability of random erasing.
      erase_area: smallest and largest part of the image to erase, within (0, 1].
      erase_aspect: smallest height / width of the patch; uniform up to its inverse.
      erase_value: the patch's color (R, G, B) in standardized units.
      visible_channel: the channel operator of visible images, one of `CHANNEL`.
      infrared_channel: the channel operator of infrared images, one of `CHANNEL`.
      luma: in "adapt_gray", the probability that the fourth outcome is luma.
      paired: use the visible image's flip and crop for the infrared image of the same row
        (for aligned data such as RegDB when images are drawn in pairs).

    Returns:
      The batch with float32 images, standardized; label and camera as they came.

    Raises:
      ValueError: naming the option that is out of range, or the image that is not uint8.
    """
    _check_probability("flip", flip)
    _check_probability("luma", luma)
    _check_pad(pad, pad_value)
    _check_erase(erase_area, erase_aspect, erase_value)
    grayscale, erase = _pair("grayscale", grayscale), _pair("erase", erase)
    for m, (name, operator) in enumerate(
        (("visible_channel", visible_channel), ("infrared_channel", infrared_channel))
    ):
        if operator not in CHANNEL:
            raise ValueError(f"{name} is {operator!r}, expected one of {', '.join(CHANNEL)}")
        _check_images(MODALITIES[m], batch[MODALITIES[m]])  # type: ignore[literal-required]

    views = []
    for m, operator in ((VISIBLE, visible_channel), (INFRARED, infrared_channel)):
        x = batch[MODALITIES[m]]  # type: ignore[literal-required]
        rows = x.shape[0]
        # Padding is gray, so the gray image of a crop is the crop of a gray image.
        if grayscale[m] > 0:
            x = _random_gray(_row_keys(key, _GRAYSCALE, m, rows), x, grayscale[m])
        place = _row_keys(key, _CROP_FLIP, VISIBLE if paired else m, rows)
        if pad > 0:
            x = _random_crop(place, x, pad, pad_value)
        if flip > 0:
            x = _random_flip(place, x, flip)
        x = standardize(x)
        if erase[m] > 0:
            x = _random_erase(
                _row_keys(key, _ERASE, m, rows), x, erase[m], erase_area, erase_aspect, erase_value
            )
        if operator != "none":
            x = _channel(_row_keys(key, _CHANNEL, m, rows), x, operator, luma)
        views.append(x)
    return Batch(visible=views[0], infrared=views[1], label=batch["label"], camera=batch["camera"])


def _row_keys(key: jax.Array, operator: int, modality: int, rows: int) -> jax.Array:
    """One key for each row of the batch: [B] keys."""
    key = jax.random.fold_in(key, operator * len(MODALITIES) + modality)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def _select(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Row by row: a [B, ...] where condition [B], else b."""
    return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def _random_gray(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Pillow's luma, in its integers: (19595 R + 38470 G + 7471 B + 2^15) >> 16."""
    r, g, b = (images[..., c].astype(jnp.int32) for c in range(3))
    gray = ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(jnp.uint8)
    chosen = jax.vmap(lambda k: jax.random.bernoulli(k, probability))(keys)
    return _select(chosen, jnp.broadcast_to(gray[..., None], images.shape), images)


def _random_crop(keys: jax.Array, images: jax.Array, pad: int, pad_value: int) -> jax.Array:
    """Pads every side and crops back to the size, corner uniform in 0 .. 2 pad inclusive."""
    height, width = images.shape[1:3]
    corner = jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(k, 0), (2,), 0, 2 * pad + 1))
    yx = corner(keys)  # [B, 2]
    x = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=pad_value)

    def crop(image: jax.Array, yx: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (yx[0], yx[1], 0), (height, width, 3))

    return jax.vmap(crop)(x, yx)


def _random_flip(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    chosen = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 1), probability))(keys)
    return _select(chosen, images[:, :, ::-1], images)


def _random_erase(
    keys: jax.Array,
    images: jax.Array,
    probability: float,
    area: Sequence[float],
    aspect: float,
    value: Sequence[float],
) -> jax.Array:
    """Fills a random rectangle; Algorithm 1 of arXiv 1708.04896 as CAJ's code has it.

    Area fraction and aspect are uniform (not log-uniform); height and width are rounded
    half to even; a patch must be strictly smaller than the image in both directions. The
    authors' loop of up to 100 attempts draws anew each time, so drawing all of them at once
    and taking the first that fits has the same distribution.
    """
    height, width = images.shape[1:3]

    def patch(key: jax.Array) -> tuple[jax.Array, ...]:
        apply_key, shape_key, y_key, x_key = jax.random.split(key, 4)
        u = jax.random.uniform(shape_key, (2, ATTEMPTS))
        pixels = (area[0] + u[0] * (area[1] - area[0])) * (height * width)
        ratio = aspect + u[1] * (1 / aspect - aspect)
        h = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
        fits = (h < height) & (w < width)
        first = jnp.argmax(fits)
        h, w = h[first], w[first]
        apply = jax.random.bernoulli(apply_key, probability) & fits.any()
        top = jax.random.randint(y_key, (), 0, jnp.maximum(height - h, 0) + 1)
        left = jax.random.randint(x_key, (), 0, jnp.maximum(width - w, 0) + 1)
        return apply, top, top + h, left, left + w

    apply, top, bottom, left, right = (p[:, None] for p in jax.vmap(patch)(keys))  # [B, 1]
    y, x = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
    in_y = apply & (y >= top) & (y < bottom)  # [B, H]
    in_x = (x >= left) & (x < right)  # [B, W]
    erased = in_y[:, :, None, None] & in_x[:, None, :, None]
    return jnp.where(erased, np.array(value, np.float32).reshape(1, 1, 1, 3), images)


def _channel(keys: jax.Array, images: jax.Array, operator: str, luma: float) -> jax.Array:
    """Copies one channel, or the luma, to all three; see the table at the top."""

    def draw(key: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        outcome = jax.random.randint(first, (), 0, 3 if operator == "exchange" else 4)
        if operator == "adapt":
            return jnp.where(outcome == 3, 4, outcome)
        if operator == "adapt_gray":
            fourth = jnp.where(jax.random.bernoulli(second, luma), 3, 4)
            return jnp.where(outcome == 3, fourth, outcome)
        return outcome

    outcome = jax.vmap(draw)(keys)  # [B]
    weight = jnp.asarray(_COPY)[jnp.minimum(outcome, 3)].reshape(-1, 3, 1, 1)
    # Sums of products with 0 and 1 are exact, so a copied channel is the channel.
    r, g, b = (images[..., c] * weight[:, c] for c in range(3))
    copied = r + g + b
    copied = jnp.broadcast_to(copied[..., None], images.shape)
    return _select(outcome == 4, images, copied)


def _pair(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    pair = (value, value) if isinstance(value, (int, float)) else tuple(value)
    if len(pair) != 2:
        raise ValueError(
            f"{name} is {value}, expected one probability or a pair (visible, infrared)"
        )
    for probability in pair:
        _check_probability(name, probability)
    return pair


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected a probability in [0, 1]")


def _check_pad(pad: int, pad_value: int) -> None:
    if pad != int(pad) or pad < 0:
        raise ValueError(f"pad is {pad}, expected a number of pixels, 0 or more")
    if pad_value != int(pad_value) or not 0 <= pad_value <= 255:
        raise ValueError(f"pad_value is {pad_value}, expected a gray level 0 .. 255")


def _check_erase(area: Sequence[float], aspect: float, value: Sequence[float]) -> None:
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"erase_area is {area}, expected 0 < smallest <= largest <= 1")
    if not 0 < aspect <= 1:
        raise ValueError(f"erase_aspect is {aspect}, expected a height / width in (0, 1]")
    if len(value) != 3:
        raise ValueError(f"erase_value is {value}, expected a value for R, G and B")


def _check_images(name: str, images: Any) -> None:
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"batch['{name}'] is {images.dtype} {list(images.shape)}, expected uint8 "
            "[B, H, W, 3]: augment takes a host batch and standardizes it"
        )
