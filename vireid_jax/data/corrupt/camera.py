"""What a camera does: noise, blur and the digital corruptions.

Constants are those of the common-corruptions benchmark (Hendrycks and Dietterich, ICLR 2019,
arXiv 1903.12261), which SYSU-MM01-C and RegDB-C take over (Chen et al., "Benchmarks for
corruption invariant person re-identification", NeurIPS 2021 D&B, arXiv 2111.00880). Every
function maps an image uint8, or float in [0, 1], [H, W, 3] to float32 in [0, 1].

Radii are in pixels of the image as it is given, and the cross-modality benchmark corrupts after
the resize to 288 x 144. Beyond the border the nearest pixel is repeated; in defocus_blur the
image is mirrored, as in the benchmark.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from vireid_jax.data.corrupt import ops

# --- Noise ----------------------------------------------------------------------------------

_GAUSSIAN_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_SHOT = (60.0, 25.0, 12.0, 5.0, 3.0)
_IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)
_SPECKLE = (0.15, 0.2, 0.35, 0.45, 0.6)


def gaussian_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Sensor noise in low light: x + n, n ~ N(0, sigma), for every channel by itself."""
    sigma = np.float32(ops.at(_GAUSSIAN_NOISE, severity))
    return ops.clip(ops.unit(image) + sigma * rng.standard_normal(image.shape, np.float32))


def shot_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Counted photons: Poisson(x c) / c, whose variance is its mean over c."""
    photons = ops.at(_SHOT, severity)
    counts = rng.poisson(ops.unit(image) * np.float32(photons))
    return ops.clip(counts.astype(np.float32) / np.float32(photons))


def impulse_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: a share of all values, each channel by itself, becomes 0 or 1."""
    share = ops.at(_IMPULSE, severity)
    chance = rng.random(image.shape, dtype=np.float32)
    out = ops.unit(image)
    out[chance < np.float32(share)] = 1.0
    out[chance < np.float32(share / 2)] = 0.0  # one half of those
    return out


def speckle_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Multiplied noise: x + x n, n ~ N(0, sigma)."""
    sigma = np.float32(ops.at(_SPECKLE, severity))
    noise = rng.standard_normal(image.shape, np.float32)
    return ops.clip(ops.unit(image) * (1 + sigma * noise))


# --- Blur -----------------------------------------------------------------------------------

_GAUSSIAN_BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)  # sigma
_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # disk radius, sigma of its rim
# sigma, reach of the shuffle, how often
_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
_MOTION = ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))  # radius, sigma
_ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))  # stop, step


def gaussian_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur, the kernel cut at four sigmas."""
    return ops.clip(ops.gaussian(ops.unit(image), ops.at(_GAUSSIAN_BLUR, severity)))


def defocus_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A lens out of focus: every point becomes a disk."""
    radius, sigma = ops.at(_DEFOCUS, severity)
    return ops.clip(ops.convolve(ops.unit(image), ops.disk(radius, sigma)))


def glass_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Frosted glass: blur, displace every pixel a little at random `times` times, blur again."""
    sigma, reach, times = ops.at(_GLASS, severity)
    out = ops.gaussian(ops.unit(image), sigma)
    height, width = out.shape[:2]
    for _ in range(times):
        inner = height - 2 * reach, width - 2 * reach
        source = shuffle_source(rng.integers(-reach, reach, (2, *inner)), reach)
        out = np.take(out.reshape(-1, 3), source.reshape(height, width), axis=0)
    return ops.clip(ops.gaussian(out, sigma))


def shuffle_source(shift: np.ndarray, reach: int) -> np.ndarray:
    """Where each pixel's color comes from in one pass of glass_blur.

    The benchmark's loop visits the inner pixels from the last row and column to the first, and
    each takes on the color that a neighbor within `reach` has at that moment (it means to swap
    the two, but the swap of array views copies). A neighbor further on in raster order has been
    overwritten by then, so its color came from that pixel's own neighbor, and so on. Those chains
    are followed here for all pixels at once: the same result without the loop. Each link goes on
    with a probability below one half, so few are long.

    Args:
      shift: int [2, H - 2 * reach, W - 2 * reach] in [-reach, reach), rows and columns; entry
        [0, 0] belongs to the pixel (reach + 1, reach + 1).
      reach: largest shift in pixels.

    Returns:
      int [H * W], flat indices.
    """
    height, width = (n + 2 * reach for n in shift.shape[1:])
    rows = np.arange(reach + 1, height - reach + 1)[:, None]
    columns = np.arange(reach + 1, width - reach + 1)
    taken = np.arange(height * width)
    taken[rows * width + columns] = (rows + shift[0]) * width + columns + shift[1]
    source = taken.copy()
    chained = np.flatnonzero(source > np.arange(height * width))
    while len(chained):
        before = source[chained]
        source[chained] = taken[before]
        chained = chained[source[chained] > before]
    return source


def motion_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A moving camera: a one-sided Gaussian streak at an angle from U(-45, 45) degrees."""
    radius, sigma = ops.at(_MOTION, severity)
    kernel = ops.streak(radius, sigma, rng.uniform(-45, 45))
    return ops.clip(ops.smear(ops.unit(image), kernel))


def zoom_factors(severity: int) -> np.ndarray:
    """The magnifications that zoom_blur averages; rounding lets the first list reach its stop."""
    stop, step = ops.at(_ZOOM, severity)
    return np.arange(1, stop, step)


def zoom_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A camera that zooms in: the mean of the image and of its magnified versions."""
    clean = ops.unit(image)
    total, factors = clean.copy(), zoom_factors(severity)
    for factor in factors.tolist():
        total += ops.zoom(clean, factor)
    return ops.clip(total / np.float32(len(factors) + 1))


# --- Digital --------------------------------------------------------------------------------

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
