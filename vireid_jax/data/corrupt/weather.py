"""Weather: snow, frost, fog, rain, spatter.

Sources as in `camera`. Three differ from the benchmark beyond its random numbers: frost lays
procedural ice over the image where the benchmark has photographs, rain follows the description
of its drops rather than the library that draws them, and the shading of spatter's water is our
own. Numbers measured with them are therefore named "-C (vireid)".
"""

import functools

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from vireid_jax.data.corrupt import ops
from vireid_jax.data.corrupt.ops import Rng, severities

_SLANT = 10  # pixels to the side over the length of a drop of rain, at most
_DROP = np.float32(200 / 255)
_WATER = np.array([175, 238, 238], np.float32) / 255
_MUD = np.array([63, 42, 20], np.float32) / 255
_BODY = np.float32(0.55)  # light from a flat piece of water; a rim that faces it gives 1


@severities(
    (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
)
def snow(
    image: np.ndarray, rng: Rng,
    mean: float, std: float, zoom: float, threshold: float, radius: int, sigma: float, share: float,
) -> np.ndarray:  # fmt: skip
    """Falling flakes over a whitened scene.

    Flakes are the peaks of magnified normal noise, streaked at U(-135, -45) degrees. The scene is
    mixed with max(x, 1.5 gray + 0.5); flakes and the same turned by 180 degrees are added.
    """
    height, width = image.shape[:2]
    # Only the middle survives the magnification, so only the middle is drawn.
    few = tuple(int(np.ceil(n / zoom)) for n in (height, width))
    noise = np.float32(mean) + np.float32(std) * rng.standard_normal(few, np.float32)
    flakes = ops.stretch(noise, (height, width))
    flakes[flakes < threshold] = 0
    flakes = ops.smear(ops.clip(flakes), ops.streak(radius, sigma, rng.uniform(-135, -45)))
    white = np.maximum(image, (ops.gray(image) * np.float32(1.5) + np.float32(0.5))[..., None])
    mixed = image * np.float32(share) + white * np.float32(1 - share)
    return mixed + (flakes + flakes[::-1, ::-1])[..., None]


@severities((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
def frost(image: np.ndarray, rng: Rng, a: float, b: float) -> np.ndarray:
    """Ice on the lens: a x + b ice, a random crop of one of five textures (see `ice`)."""
    height, width = image.shape[:2]
    texture = ice(int(rng.integers(TEXTURES)), height, width)
    top, left = rng.integers(texture.shape[0] - height), rng.integers(texture.shape[1] - width)
    crop = ops.unit(texture[top : top + height, left : left + width])
    return image * np.float32(a) + crop * np.float32(b)


@severities((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
def fog(image: np.ndarray, rng: Rng, a: float, decay: float) -> np.ndarray:
    """Drifting fog: (x + a plasma) max(x) / (max(x) + a); the decay is the plasma's."""
    cloud = ops.plasma(image.shape[:2], decay, rng)
    brightest = float(image.max())
    scale = np.float32(brightest / (brightest + a))
    return (image + np.float32(a) * cloud[..., None]) * scale


@severities((770, 10, 1), (600, 30, 2), (600, 30, 3), (500, 60, 4), (500, 60, 5))
def rain(image: np.ndarray, rng: Rng, area: int, length: int, strength: int) -> np.ndarray:
    """Rain: slanted gray drops, then a box blur of 2 + s pixels, then a darker image.

    Drizzle (severity 1), heavy (2, 3) and torrential rain (4, 5) have one drop, a line one pixel
    wide, for each 770, 600 or 500 pixels of the image, 10, 30 or 60 pixels long; all drops of an
    image slant alike, U(-10, 10) pixels over their length. V of HSV then falls by 0.05 + 0.05 s.

    The benchmark enlarges images of 60 rows or less first so that a drop fits. Here drops may
    begin above the image, and more of them do, so that any size has the same density.
    """
    height, width = image.shape[:2]
    slant = int(rng.integers(-_SLANT, _SLANT + 1))
    drops = max(round((height + length) * (width + abs(slant)) / area), 1)
    top = rng.integers(-length, height, drops)
    # Drops that begin beside the image and slant into it count as well.
    left = rng.integers(min(-slant, 0), width + max(-slant, 0), drops)
    step = np.arange(length)
    rows = (top[:, None] + step).ravel()
    columns = (left[:, None] + np.rint(slant * step / length).astype(np.int64)).ravel()
    seen = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    image[rows[seen], columns[seen]] = _DROP
    for axis in range(2):
        image = ndimage.uniform_filter1d(image, 2 + strength, axis=axis, mode="mirror")
    return image - np.float32(0.05 + 0.05 * strength)


@severities(
    (0.65, 0.3, 4.0, 0.69, 0.6, False),
    (0.65, 0.3, 3.0, 0.68, 0.6, False),
    (0.65, 0.3, 2.0, 0.68, 0.5, False),
    (0.65, 0.3, 1.0, 0.65, 1.5, True),
    (0.67, 0.4, 1.0, 0.65, 1.5, True),
)
def spatter(
    image: np.ndarray, rng: Rng,
    mean: float, std: float, sigma: float, threshold: float, strength: float, mud: bool,
) -> np.ndarray:  # fmt: skip
    """Water (severities 1 to 3) or mud (4, 5) on the lens, where blurred normal noise is high.

    Mud covers: x (1 - m) + m color, m being the blurred mask where it exceeds 0.8. Water adds
    light: x + m color.

    A drop is a dome (the distance to its rim, at most 20 pixels, smoothed) lit from the upper
    left; the benchmark shades it by edges, an equalized histogram and an emboss filter.
    """
    noise = rng.standard_normal(image.shape[:2], np.float32)
    liquid = ops.gaussian(np.float32(mean) + np.float32(std) * noise, sigma)
    wet = liquid > threshold
    if mud:
        cover = ops.gaussian(wet.astype(np.float32), strength)
        cover[cover < 0.8] = 0
        return image * (1 - cover)[..., None] + cover[..., None] * _MUD
    depth = np.minimum(ndimage.distance_transform_edt(wet), 20).astype(np.float32)
    down, right = np.gradient(ops.gaussian(depth, 1.0))
    slope = np.clip((down + right) / np.float32(np.sqrt(2)), -1, 1)
    shade = np.where(wet, liquid * (_BODY + (1 - _BODY) * slope), 0)
    shade *= np.float32(strength / max(float(shade.max()), 1e-6))
    return image + shade[..., None] * _WATER


# --- Procedural ice for frost: feathers of crystals over a cloudy film -----------------------

TEXTURES = 5
_TINT = np.array([0.8, 0.95, 1.05], np.float32)  # the blue of ice in daylight
_REFERENCE = 288  # pixels of height that lengths below are given for


def _feathers(rng: Rng, size: tuple[int, int], scale: float) -> np.ndarray:
    """Line segments of branching crystals, float [n, 5]: x0, y0, x1, y1 and brightness.

    Crystals start near the points of a grid, so that no crop is bare. A crystal has 1 to 3 stems
    that fan out from a point; stems carry twigs on both sides at 60 degrees, as ice grows, and
    twigs carry twigs of their own, each generation about a third as long as the one before.
    """
    across, down = 5, 10
    count = across * down
    grid = np.stack(np.meshgrid(np.arange(across), np.arange(down)), -1).reshape(-1, 2)
    start = (grid + rng.random((count, 2))) / [across, down] * [size[1], size[0]]
    stems = rng.integers(1, 4, count)
    origin = np.repeat(start, stems, axis=0)
    turn = np.repeat(rng.uniform(0, 2 * np.pi, count), stems) + rng.uniform(-0.9, 0.9, stems.sum())
    length = rng.uniform(25, 120, len(turn)) * scale
    light = rng.uniform(0.35, 1.0, len(turn))
    found = []
    for twigs in (14, 5, 0):
        along = np.stack([np.cos(turn), np.sin(turn)], 1)
        found.append(np.column_stack([origin, origin + along * length[:, None], light]))
        if not twigs:
            break
        # Twigs sit at even places along the parent, on both sides, shorter towards its tip.
        place = (np.arange(twigs) + 0.5) / twigs
        place = np.tile(place, (len(turn), 2)) + rng.normal(0, 0.015, (len(turn), 2 * twigs))
        side = np.repeat([1.0, -1.0], twigs)
        wobble = rng.normal(0, 0.08, place.shape)
        origin = origin[:, None] + along[:, None] * (place * length[:, None])[..., None]
        origin = origin.reshape(-1, 2)
        turn = (turn[:, None] + side * np.pi / 3 + wobble).ravel()
        shrink = rng.uniform(0.25, 0.5, place.shape) * (1.05 - place)
        length = (length[:, None] * shrink).ravel()
        light = (light[:, None] * rng.uniform(0.5, 0.95, place.shape)).ravel()
    return np.concatenate(found)


@functools.lru_cache(maxsize=2 * TEXTURES)
def ice(index: int, height: int, width: int) -> np.ndarray:
    """Texture 0 <= index < TEXTURES for images of a size; lengths grow with the image's height.

    Returns:
      uint8 [2 * height, 2 * width, 3], a function of the arguments alone; shared, so read-only.
    """
    rng = np.random.default_rng([6, index])
    size = 2 * height, 2 * width
    scale = height / _REFERENCE
    picture = Image.new("L", (size[1], size[0]))
    pen = ImageDraw.Draw(picture)
    lines = _feathers(rng, size, scale)
    for x0, y0, x1, y1, light in lines[np.argsort(lines[:, 4])].tolist():
        pen.line((x0, y0, x1, y1), fill=round(255 * light))
    sharp = ops.unit(np.asarray(picture))
    film = ops.plasma(size, 1.45, rng)
    near, far = ops.gaussian(sharp, 1.2 * scale + 0.3), ops.gaussian(sharp, 8 * scale + 0.3)
    amount = 0.06 + 0.6 * film + 0.9 * sharp + 0.8 * near + 0.5 * far
    # Light is absorbed and scattered along its way, so ice upon ice adds ever less.
    out = ops.to_bytes(1 - np.exp(-amount[..., None] * _TINT))
    out.flags.writeable = False
    return out
