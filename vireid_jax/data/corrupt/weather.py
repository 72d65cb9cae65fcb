"""Weather: snow, frost, fog, rain, spatter.

Sources and ranges as in `noise`. Three differ from the benchmark beyond its random numbers:
frost lays procedural ice over the image where the benchmark has photographs, rain follows the
description of its drops rather than the library that draws them, and the shading of spatter's
water is our own. Numbers measured with them are therefore named "-C (vireid)".
"""

import numpy as np
from scipy import ndimage

from vireid_jax.data.corrupt import ops
from vireid_jax.data.corrupt.ice import TEXTURES, ice

# mean, standard deviation, zoom, threshold, blur radius, blur sigma, share of the image
_SNOW = (
    (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
)
_FROST = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # image, ice
_FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # strength, plasma decay
# pixels of image for each drop, length of a drop in pixels
_DRIZZLE, _HEAVY, _TORRENTIAL = (770, 10), (600, 30), (500, 60)
_RAIN = (_DRIZZLE, _HEAVY, _HEAVY, _TORRENTIAL, _TORRENTIAL)
_SLANT = 10  # pixels to the side over the length of a drop, at most
_DROP = np.float32(200 / 255)
# mean, standard deviation, blur sigma, threshold, strength, whether it is mud
_SPATTER = (
    (0.65, 0.3, 4.0, 0.69, 0.6, False),
    (0.65, 0.3, 3.0, 0.68, 0.6, False),
    (0.65, 0.3, 2.0, 0.68, 0.5, False),
    (0.65, 0.3, 1.0, 0.65, 1.5, True),
    (0.67, 0.4, 1.0, 0.65, 1.5, True),
)
_WATER = np.array([175, 238, 238], np.float32) / 255
_MUD = np.array([63, 42, 20], np.float32) / 255
_BODY = np.float32(0.55)  # light from a flat piece of water; a rim that faces it gives 1


def snow(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Falling flakes over a whitened scene.

    Flakes are the peaks of magnified normal noise, streaked at U(-135, -45) degrees. The scene is
    mixed with max(x, 1.5 gray + 0.5); flakes and the same turned by 180 degrees are added.
    """
    mean, std, zoom, threshold, radius, sigma, mix = ops.at(_SNOW, severity)
    clean = ops.unit(image)
    height, width = clean.shape[:2]
    # Only the middle survives the magnification, so only the middle is drawn.
    few = tuple(int(np.ceil(n / zoom)) for n in (height, width))
    noise = np.float32(mean) + np.float32(std) * rng.standard_normal(few, np.float32)
    flakes = ops.stretch(noise, (height, width))
    flakes[flakes < threshold] = 0
    flakes = ops.smear(ops.clip(flakes), ops.streak(radius, sigma, rng.uniform(-135, -45)))
    white = np.maximum(clean, (ops.gray(clean) * np.float32(1.5) + np.float32(0.5))[..., None])
    mixed = clean * np.float32(mix) + white * np.float32(1 - mix)
    return ops.clip(mixed + (flakes + flakes[::-1, ::-1])[..., None])


def frost(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Ice on the lens: a x + b ice.

    Differs from the benchmark's code: a random crop of one of five procedural textures (see
    `ice`), where the benchmark crops one of five photographs.
    """
    share, weight = ops.at(_FROST, severity)
    height, width = image.shape[:2]
    texture = ice(int(rng.integers(TEXTURES)), height, width)
    top, left = rng.integers(texture.shape[0] - height), rng.integers(texture.shape[1] - width)
    crop = ops.unit(texture[top : top + height, left : left + width])
    return ops.clip(ops.unit(image) * np.float32(share) + crop * np.float32(weight))


def fog(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Drifting fog: (x + a plasma) max(x) / (max(x) + a)."""
    strength, decay = ops.at(_FOG, severity)
    clean = ops.unit(image)
    height, width = clean.shape[:2]
    cloud = ops.plasma(ops.power_of_two(max(height, width)), decay, rng)[:height, :width]
    brightest = float(clean.max())
    scale = np.float32(brightest / (brightest + strength))
    return ops.clip((clean + np.float32(strength) * cloud[..., None]) * scale)


def rain(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Rain: slanted gray drops, then a box blur of 2 + s pixels, then a darker image.

    Drizzle (severity 1), heavy (2, 3) and torrential rain (4, 5) have one drop, a line one pixel
    wide, for each 770, 600 or 500 pixels of the image, 10, 30 or 60 pixels long; all drops of an
    image slant alike, U(-10, 10) pixels over their length. V of HSV then falls by 0.05 + 0.05 s.

    Differs from the benchmark's code, which draws with another library and enlarges images of 60
    rows or less first so that a drop fits: here drops may begin above the image, and their number
    grows accordingly, so that any size has the same density.
    """
    area, length = ops.at(_RAIN, severity)
    out = ops.unit(image)
    height, width = out.shape[:2]
    slant = int(rng.integers(-_SLANT, _SLANT + 1))
    drops = max(round((height + length) * (width + abs(slant)) / area), 1)
    top = rng.integers(-length, height, drops)
    # Drops that begin beside the image and slant into it count as well.
    left = rng.integers(min(-slant, 0), width + max(-slant, 0), drops)
    step = np.arange(length)
    rows = (top[:, None] + step).ravel()
    columns = (left[:, None] + np.rint(slant * step / length).astype(np.int64)).ravel()
    seen = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    out[rows[seen], columns[seen]] = _DROP
    for axis in range(2):
        out = ndimage.uniform_filter1d(out, 2 + int(severity), axis=axis, mode="mirror")
    return ops.clip(out - np.float32(0.05 + 0.05 * severity))


def spatter(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Water (severities 1 to 3) or mud (4, 5) on the lens, where blurred normal noise is high.

    Mud covers: x (1 - m) + m color, m being the blurred mask where it exceeds 0.8. Water adds
    light: x + m color.

    Differs from the benchmark's code: there a drop's shading comes from an edge detector, a
    distance map, a histogram equalization of the whole picture and an emboss filter; here a drop
    is a dome (the distance to its rim, at most 20 pixels, smoothed) lit from the upper left.
    """
    mean, std, sigma, threshold, strength, mud = ops.at(_SPATTER, severity)
    clean = ops.unit(image)
    noise = rng.standard_normal(clean.shape[:2], np.float32)
    liquid = ops.gaussian(np.float32(mean) + np.float32(std) * noise, sigma)
    wet = liquid > threshold
    if mud:
        cover = ops.gaussian(wet.astype(np.float32), strength)
        cover[cover < 0.8] = 0
        return ops.clip(clean * (1 - cover)[..., None] + cover[..., None] * _MUD)
    depth = np.minimum(ndimage.distance_transform_edt(wet), 20).astype(np.float32)
    down, right = np.gradient(ops.gaussian(depth, 1.0))
    slope = np.clip((down + right) / np.float32(np.sqrt(2)), -1, 1)
    shade = np.where(wet, liquid * (_BODY + (1 - _BODY) * slope), 0)
    shade *= np.float32(strength / max(float(shade.max()), 1e-6))
    return ops.clip(clean + shade[..., None] * _WATER)
