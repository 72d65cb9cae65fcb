"""What a camera does: noise, blur and the digital corruptions.

Constants are those of the common-corruptions benchmark (Hendrycks and Dietterich, ICLR 2019,
arXiv 1903.12261), which SYSU-MM01-C and RegDB-C take over (arXiv 2111.00880). Radii are in pixels
of the image as it is given; the cross-modality benchmark corrupts after the resize to 288 x 144.
Beyond the border the nearest pixel is repeated; in defocus_blur the image is mirrored, as in the
benchmark.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from vireid_jax.data.corrupt import ops
from vireid_jax.data.corrupt.ops import Rng, severities

# --- Noise ----------------------------------------------------------------------------------


@severities(0.08, 0.12, 0.18, 0.26, 0.38)
def gaussian_noise(image: np.ndarray, rng: Rng, sigma: float) -> np.ndarray:
    """Sensor noise in low light: x + n, n ~ N(0, sigma), for every channel by itself."""
    return image + np.float32(sigma) * rng.standard_normal(image.shape, np.float32)


@severities(60.0, 25.0, 12.0, 5.0, 3.0)
def shot_noise(image: np.ndarray, rng: Rng, photons: float) -> np.ndarray:
    """Counted photons: Poisson(x c) / c, whose variance is its mean over c."""
    counts = rng.poisson(image * np.float32(photons))
    return counts.astype(np.float32) / np.float32(photons)


@severities(0.03, 0.06, 0.09, 0.17, 0.27)
def impulse_noise(image: np.ndarray, rng: Rng, share: float) -> np.ndarray:
    """Salt and pepper: a share of all values, each channel by itself, becomes 0 or 1."""
    chance = rng.random(image.shape, dtype=np.float32)
    image[chance < np.float32(share)] = 1.0
    image[chance < np.float32(share / 2)] = 0.0  # one half of those
    return image


@severities(0.15, 0.2, 0.35, 0.45, 0.6)
def speckle_noise(image: np.ndarray, rng: Rng, sigma: float) -> np.ndarray:
    """Multiplied noise: x + x n, n ~ N(0, sigma)."""
    return image * (1 + np.float32(sigma) * rng.standard_normal(image.shape, np.float32))


# --- Blur -----------------------------------------------------------------------------------


@severities(1.0, 2.0, 3.0, 4.0, 6.0)
def gaussian_blur(image: np.ndarray, rng: Rng, sigma: float) -> np.ndarray:
    """Gaussian blur, the kernel cut at four sigmas."""
    return ops.gaussian(image, sigma)


@severities((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
def defocus_blur(image: np.ndarray, rng: Rng, radius: int, sigma: float) -> np.ndarray:
    """A lens out of focus: every point becomes a disk, whose rim is blurred by sigma."""
    return ops.convolve(image, ops.disk(radius, sigma))


@severities((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
def glass_blur(image: np.ndarray, rng: Rng, sigma: float, reach: int, times: int) -> np.ndarray:
    """Frosted glass: blur, displace every pixel a little at random `times` times, blur again."""
    out = ops.gaussian(image, sigma)
    height, width = out.shape[:2]
    for _ in range(times):
        inner = height - 2 * reach, width - 2 * reach
        source = shuffle_source(rng.integers(-reach, reach, (2, *inner)), reach)
        out = np.take(out.reshape(-1, 3), source.reshape(height, width), axis=0)
    return ops.gaussian(out, sigma)


def shuffle_source(shift: np.ndarray, reach: int) -> np.ndarray:
    """Where each pixel's color comes from in one pass of glass_blur.

    The benchmark's loop visits the inner pixels from the last row and column to the first, and
    each takes on the color that a neighbor within `reach` has at that moment (it means to swap
    the two, but the swap of array views copies). A neighbor further on in raster order has been
    overwritten by then, so its color came from that pixel's own neighbor, and so on. Here those
    chains are followed for all pixels at once.

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


@severities((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))
def motion_blur(image: np.ndarray, rng: Rng, radius: int, sigma: float) -> np.ndarray:
    """A moving camera: a one-sided Gaussian streak at an angle from U(-45, 45) degrees."""
    return ops.smear(image, ops.streak(radius, sigma, rng.uniform(-45, 45)))


@severities((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
def zoom_blur(image: np.ndarray, rng: Rng, stop: float, step: float) -> np.ndarray:
    """A camera that zooms in: the mean of the image and of its magnified versions."""
    factors = np.arange(1, stop, step).tolist()  # rounding lets the first list reach its stop
    total = image.copy()
    for factor in factors:
        total += ops.zoom(image, factor)
    return total / np.float32(len(factors) + 1)


# --- Digital --------------------------------------------------------------------------------


@severities(0.1, 0.2, 0.3, 0.4, 0.5)
def brightness(image: np.ndarray, rng: Rng, more: float) -> np.ndarray:
    """A bright day: the V of HSV rises, hue and saturation stay; black becomes gray."""
    now = ops.value(image)
    wanted = np.minimum(now + np.float32(more), 1)
    # Hue and saturation do not change when the three channels are scaled together.
    black = now <= 0
    scale = wanted / np.where(black, np.float32(1), now)
    return np.where(black[..., None], wanted[..., None], image * scale[..., None])


@severities(0.4, 0.3, 0.2, 0.1, 0.05)
def contrast(image: np.ndarray, rng: Rng, factor: float) -> np.ndarray:
    """Flat light: (x - mean) c + mean, with the mean of each channel."""
    mean = image.mean((0, 1), keepdims=True, dtype=np.float64).astype(np.float32)
    return (image - mean) * np.float32(factor) + mean


@severities((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))
def saturate(image: np.ndarray, rng: Rng, a: float, b: float) -> np.ndarray:
    """The S of HSV becomes S a + b: paler at severities 1 and 2, more vivid from 3 on.

    A gray pixel has no hue; by the usual convention its hue is red, so where b > 0 (severities 4
    and 5) gray turns reddish, as in the benchmark.
    """
    high, low = ops.value(image), -ops.value(-image)
    chroma = high - low
    colored = chroma > 0
    now = chroma / np.where(high > 0, high, np.float32(1))
    wanted = np.clip(now * np.float32(a) + np.float32(b), 0, 1)
    # At constant hue and value a channel's distance from V is in proportion to S.
    gap = (high[..., None] - image) / np.where(colored, chroma, np.float32(1))[..., None]
    gap[~colored] = (0, 1, 1)  # red
    return high[..., None] - gap * (high * wanted)[..., None]


@severities(25, 18, 15, 10, 7)
def jpeg_compression(image: np.ndarray, rng: Rng, quality: int) -> np.ndarray:
    """Stored as JPEG of low quality, colors at half resolution, and read again."""
    buffer = io.BytesIO()
    Image.fromarray(ops.to_bytes(image)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as stored:
        return ops.unit(np.asarray(stored.convert("RGB")))


@severities(0.6, 0.5, 0.4, 0.3, 0.25)
def pixelate(image: np.ndarray, rng: Rng, fraction: float) -> np.ndarray:
    """A camera of few pixels: box average down to a fraction, nearest neighbor up again."""
    height, width = image.shape[:2]
    few = max(int(width * fraction), 1), max(int(height * fraction), 1)
    small = Image.fromarray(ops.to_bytes(image)).resize(few, Image.Resampling.BOX)
    return ops.unit(np.asarray(small.resize((width, height), Image.Resampling.NEAREST)))


@severities(12.5, 16.25, 21.25, 25.0, 30.0)
def elastic_transform(image: np.ndarray, rng: Rng, alpha: float) -> np.ndarray:
    """Stretched locally: each pixel reads a place that a smooth random field moves.

    The field is alpha times a blurred U(-m, m), with sigma of 1 % of height and width and m of
    0.5 % of the *height* in both directions; bilinear, mirrored at the border.
    """
    height, width = image.shape[:2]
    sigma = (0.01 * height, 0.01 * width)
    where = np.indices((height, width), np.float32)
    for axis in range(2):
        field = (rng.random((height, width), dtype=np.float32) * 2 - 1) * np.float32(0.005 * height)
        where[axis] += np.float32(alpha) * ops.gaussian(field, sigma, mode="reflect", truncate=3)
    channels = [
        ndimage.map_coordinates(image[..., c], where, order=1, mode="reflect") for c in range(3)
    ]
    return np.stack(channels, axis=2)
