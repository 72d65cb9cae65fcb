"""What the corruptions share: constants by severity, ranges, blurs and zooms of float images.

Images are float32 [H, W, 3] with values in [0, 1]; layers are float32 [H, W]. Nothing here goes
through BLAS, whose last bits may depend on its threads: a last bit can change a truncated pixel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import fft, ndimage, sparse

T = TypeVar("T")
Rng = np.random.Generator
Corruption = Callable[[np.ndarray, int, Rng], np.ndarray]

SEVERITIES = (1, 2, 3, 4, 5)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what "gray" means to the benchmark's image library
# Of one gray level. Truncation would turn 17 / 255 * 255 = 16.999998 into 16.
_ROUNDING = 0.005


def at(table: Sequence[T], severity: int) -> T:
    """The constants of a severity; ValueError unless it is an integer from 1 to 5."""
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer):
        raise ValueError(f"severity is {severity!r}, expected an integer from 1 to 5")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}, expected 1, 2, 3, 4 or 5")
    return table[int(severity) - 1]


def severities(*table: Any) -> Callable[[Callable[..., np.ndarray]], Corruption]:
    """Decorates a corruption with its constants, a number or a tuple for each severity.

    The decorated function takes (image, rng, *constants), where the image is its own copy. The
    corruption takes (image, severity, rng), an image uint8 or float in [0, 1], [H, W, 3], and
    returns float32 cut to [0, 1].
    """

    def decorate(function: Callable[..., np.ndarray]) -> Corruption:
        @functools.wraps(function)
        def corruption(image: np.ndarray, severity: int, rng: Rng) -> np.ndarray:
            constants = at(table, severity)
            constants = constants if isinstance(constants, tuple) else (constants,)
            return clip(function(unit(image), rng, *constants))

        del corruption.__dict__["__wrapped__"]  # whose signature is not this one
        return corruption

    return decorate


def unit(image: np.ndarray) -> np.ndarray:
    """uint8, or float in [0, 1], [H, W, 3] -> float32 in [0, 1], always a new array."""
    if image.dtype == np.uint8:
        return image * np.float32(1 / 255)
    return np.clip(image, 0, 1).astype(np.float32)


def clip(image: np.ndarray) -> np.ndarray:
    """Cuts values to [0, 1], float32."""
    return np.clip(image, 0, 1).astype(np.float32, copy=False)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Float [0, 1] -> uint8, cut to the range and truncated, as the benchmark stores them."""
    return (np.clip(image, 0, 1) * np.float32(255) + np.float32(_ROUNDING)).astype(np.uint8)


def gray(image: np.ndarray) -> np.ndarray:
    """Luma [H, W] of an image [H, W, 3]."""
    red, green, blue = (np.float32(weight) * image[..., c] for c, weight in enumerate(LUMA))
    return red + green + blue


def value(image: np.ndarray) -> np.ndarray:
    """The V of HSV, [H, W]: the largest of the three channels."""
    # A reduction over the last axis of three is thirty times slower.
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def gaussian(image: np.ndarray, sigma: float | tuple[float, float], **options: Any) -> np.ndarray:
    """Gaussian blur over height and width of [H, W] or [H, W, C].

    `sigma` is in pixels, one or (height, width); the options are those of scipy's filter. Unless
    they say otherwise the kernel reaches four sigmas, and edge pixels are repeated.
    """
    options = {"mode": "nearest", **options}
    for axis, width in enumerate(sigma if isinstance(sigma, tuple) else (sigma, sigma)):
        image = ndimage.gaussian_filter1d(image, width, axis=axis, **options)
    return image


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves an image with one kernel [2r+1, 2r+1], mirrored about its outermost pixels."""
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    shape = tuple(fft.next_fast_len(n, real=True) for n in padded.shape[:2])
    spectrum = fft.rfft2(padded, s=shape, axes=(0, 1), workers=1)
    spectrum *= fft.rfft2(kernel, s=shape, workers=1)[..., None]
    full = fft.irfft2(spectrum, s=shape, axes=(0, 1), workers=1)
    # The kernel starts at index 0: the result lags by `reach`, and the padding by as much again.
    # Both transforms are cyclic, but what wraps around stays within the padding.
    return full[2 * reach : 2 * reach + image.shape[0], 2 * reach : 2 * reach + image.shape[1]]


def streak(radius: int, sigma: float, angle: float) -> dict[tuple[int, int], float]:
    """The kernel of a motion blur: {(rows, columns) of the pixel to read: weight}.

    One half of a Gaussian over 2 * radius + 1 steps from the pixel itself, laid along a line
    (angle in degrees; 0 runs to the right, 90 down) and rounded to whole pixels, halves towards
    zero steps. Weights sum to 1.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = np.deg2rad(angle)
    rows = np.ceil(steps * np.sin(turn) - 0.5).astype(int).tolist()
    columns = np.ceil(steps * np.cos(turn) - 0.5).astype(int).tolist()
    kernel: dict[tuple[int, int], float] = {}
    for row, column, weight in zip(rows, columns, weights.tolist(), strict=True):
        kernel[row, column] = kernel.get((row, column), 0.0) + weight
    return kernel


def smear(image: np.ndarray, kernel: dict[tuple[int, int], float]) -> np.ndarray:
    """Applies a sparse kernel to an image [H, W, C] or layer [H, W]; edge pixels are repeated."""
    height, width = image.shape[:2]
    reach = max(max(abs(r), abs(c)) for r, c in kernel)
    pad = [(reach, reach), (reach, reach), (0, 0)][: image.ndim]
    padded = np.pad(image, pad, mode="edge")
    out = np.zeros_like(image)
    for (r, c), weight in kernel.items():
        window = padded[reach + r : reach + r + height, reach + c : reach + c + width]
        out += window * np.float32(weight)
    return out


@functools.lru_cache(maxsize=512)
def _magnifier(n: int, factor: float, size: int) -> sparse.csr_array:
    """The matrix [size, n] that magnifies a line of n pixels about its middle, bilinear."""
    where = (n - 1) / 2 + (np.arange(size) - (size - 1) / 2) / factor
    low = np.clip(np.floor(where), 0, n - 2).astype(np.int64)
    share = np.clip(where - low, 0, 1).astype(np.float32)
    columns = np.stack([low, low + 1], 1).ravel()
    weights = np.stack([1 - share, share], 1).ravel()
    return sparse.csr_array((weights, columns, np.arange(0, 2 * size + 1, 2)), shape=(size, n))


def _resize(image: np.ndarray, factors: Sequence[float], size: Sequence[int]) -> np.ndarray:
    for factor, length in zip(factors, size, strict=True):
        matrix = _magnifier(image.shape[0], factor, length)
        lines = np.ascontiguousarray(image).reshape(image.shape[0], -1)
        image = (matrix @ lines).reshape(length, *image.shape[1:]).swapaxes(0, 1)
    return image


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of an image or layer, magnified `factor` times to its own size, bilinear.

    The benchmark cuts a whole number of pixels out first, so its steps of 1 % in zoom_blur are
    jerky on small images; this zooms about the exact center.
    """
    return _resize(image, (factor, factor), image.shape[:2])


def stretch(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A layer enlarged to (height, width), bilinear; corners fall on corners.

    Pixels then lie at all distances from the nodes. If no pixel came near a node, as happens
    with a whole factor about the center, enlarged noise would lose its peaks.
    """
    return _resize(layer, [(n - 1) / (m - 1) for n, m in zip(size, layer.shape, strict=True)], size)


def plasma(size: tuple[int, int], decay: float, rng: Rng) -> np.ndarray:
    """A cloud by the diamond-square method on a torus, of which a corner of this size is cut.

    Every level halves the spacing: the center of each square is the mean of its corners, the
    middle of each edge the mean of its four neighbors, both plus uniform noise. The benchmark
    multiplies the noise's width by itself, so it shrinks by decay ** 2 from level to level.

    Returns:
      float32 (height, width); the whole cloud has values from 0 to 1.
    """
    grid, noise = np.zeros((1, 1), np.float32), 1.0
    while len(grid) < max(size):
        n = len(grid)
        shake = (rng.random((3, n, n), dtype=np.float32) * 2 - 1) * np.float32(noise)
        right, down = np.roll(grid, -1, 1), np.roll(grid, -1, 0)
        center = (grid + right + down + np.roll(right, -1, 0)) / 4 + shake[0]
        finer = np.empty((2 * n, 2 * n), np.float32)
        finer[::2, ::2], finer[1::2, 1::2] = grid, center
        finer[::2, 1::2] = (grid + right + center + np.roll(center, 1, 0)) / 4 + shake[1]
        finer[1::2, ::2] = (grid + down + center + np.roll(center, 1, 1)) / 4 + shake[2]
        grid, noise = finer, noise / decay**2
    grid -= grid.min()
    return grid[: size[0], : size[1]] / max(float(grid.max()), 1e-6)


@functools.lru_cache(maxsize=16)
def disk(radius: int, sigma: float) -> np.ndarray:
    """A disk whose rim is blurred by sigma, float32 with sum 1; shared, so read-only."""
    reach = radius + 2  # room for the softened rim
    line = np.arange(-reach, reach + 1)
    inside = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float32)
    kernel = gaussian(inside / inside.sum(), sigma, mode="constant", truncate=2 / sigma)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    kernel.flags.writeable = False
    return kernel
