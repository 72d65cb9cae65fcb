"""Digital: brightness, contrast, saturate, jpeg_compression, pixelate, elastic_transform.

Sources and ranges as in `noise`.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from vireid_jax.data.corrupt import ops

_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_SATURATE = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))
_JPEG = (25, 18, 15, 10, 7)
_PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)
_ELASTIC = (12.5, 16.25, 21.25, 25.0, 30.0)


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A bright day: the V of HSV rises by c, hue and saturation stay."""
    clean = ops.unit(image)
    wanted = np.minimum(ops.value(clean) + np.float32(ops.at(_BRIGHTNESS, severity)), 1)
    return ops.clip(ops.with_value(clean, wanted))


def contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Flat light: (x - mean) c + mean, with the mean of each channel."""
    clean = ops.unit(image)
    mean = clean.mean((0, 1), keepdims=True, dtype=np.float64).astype(np.float32)
    return ops.clip((clean - mean) * np.float32(ops.at(_CONTRAST, severity)) + mean)


def saturate(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The S of HSV becomes S a + b: paler at severities 1 and 2, more vivid from 3 on.

    A gray pixel has no hue; by the usual convention its hue is red, so where b > 0 (severities 4
    and 5) gray turns reddish, as in the benchmark.
    """
    factor, offset = (np.float32(c) for c in ops.at(_SATURATE, severity))
    clean = ops.unit(image)
    high = ops.value(clean)
    low = np.minimum(np.minimum(clean[..., 0], clean[..., 1]), clean[..., 2])
    chroma = high - low
    colored = chroma > 0
    now = chroma / np.where(high > 0, high, np.float32(1))
    wanted = np.clip(now * factor + offset, 0, 1)
    # At constant hue and value a channel's distance from V is in proportion to S.
    gap = (high[..., None] - clean) / np.where(colored, chroma, np.float32(1))[..., None]
    gap[~colored] = (0, 1, 1)  # red
    return ops.clip(high[..., None] - gap * (high * wanted)[..., None])


def jpeg_compression(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Stored as JPEG of low quality, colors at half resolution, and read again."""
    quality = ops.at(_JPEG, severity)
    buffer = io.BytesIO()
    Image.fromarray(ops.to_bytes(ops.unit(image))).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as stored:
        return ops.unit(np.asarray(stored.convert("RGB")))


def pixelate(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A camera of few pixels: box average down to a fraction, nearest neighbor up again."""
    fraction = ops.at(_PIXELATE, severity)
    height, width = image.shape[:2]
    small = max(int(width * fraction), 1), max(int(height * fraction), 1)
    picture = Image.fromarray(ops.to_bytes(ops.unit(image)))
    picture = picture.resize(small, Image.Resampling.BOX)
    return ops.unit(np.asarray(picture.resize((width, height), Image.Resampling.NEAREST)))


def elastic_transform(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Stretched locally: each pixel reads a place that a smooth random field moves.

    The field is alpha times a blurred U(-m, m), with sigma of 1 % of height and width and m of
    0.5 % of the *height* in both directions; bilinear, mirrored at the border.
    """
    alpha = ops.at(_ELASTIC, severity)
    clean = ops.unit(image)
    height, width = clean.shape[:2]
    reach = np.float32(0.005 * height)
    where = np.indices((height, width), np.float32)
    for axis in range(2):
        field = (rng.random((height, width), dtype=np.float32) * 2 - 1) * reach
        sigma = (0.01 * height, 0.01 * width)
        where[axis] += np.float32(alpha) * ops.gaussian(field, sigma, mode="reflect", truncate=3)
    out = np.empty_like(clean)
    for channel in range(3):
        ndimage.map_coordinates(
            clean[..., channel], where, out[..., channel], order=1, mode="reflect"
        )
    return ops.clip(out)
