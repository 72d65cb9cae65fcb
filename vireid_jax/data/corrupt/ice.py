"""Procedural ice for the corruption `frost`: feathers of crystals over a cloudy film."""

import functools

import numpy as np
from PIL import Image, ImageDraw

from vireid_jax.data.corrupt import ops

TEXTURES = 5
_TINT = np.array([0.8, 0.95, 1.05], np.float32)  # the blue of ice in daylight
_REFERENCE = 288  # pixels of height that lengths below are given for


def _feathers(rng: np.random.Generator, size: tuple[int, int], scale: float) -> np.ndarray:
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
        end = origin + along * length[:, None]
        found.append(np.column_stack([origin, end, light]))
        if not twigs:
            break
        # Twigs sit at even places along the parent, on both sides, shorter towards its tip.
        place = (np.arange(twigs) + 0.5) / twigs
        place = np.tile(place, (len(turn), 2)) + rng.normal(0, 0.015, (len(turn), 2 * twigs))
        side = np.repeat([1.0, -1.0], twigs)
        wobble = rng.normal(0, 0.08, place.shape)
        origin = (origin[:, None] + along[:, None] * (place * length[:, None])[..., None]).reshape(
            -1, 2
        )
        turn = (turn[:, None] + side * np.pi / 3 + wobble).ravel()
        shrink = rng.uniform(0.25, 0.5, place.shape) * (1.05 - place)
        length = (length[:, None] * shrink).ravel()
        light = (light[:, None] * rng.uniform(0.5, 0.95, place.shape)).ravel()
    return np.concatenate(found)


@functools.lru_cache(maxsize=2 * TEXTURES)
def ice(index: int, height: int, width: int) -> np.ndarray:
    """One of the textures for images of a size; lengths grow with the image's height.

    Args:
      index: 0 to TEXTURES - 1; a texture is a function of (index, height, width) alone.
      height: of the image in pixels.
      width: of the image in pixels.

    Returns:
      uint8 [2 * height, 2 * width, 3]; shared, so read-only.
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
    film = ops.plasma(ops.power_of_two(max(size)), 1.45, rng)[: size[0], : size[1]]
    near, far = ops.gaussian(sharp, 1.2 * scale + 0.3), ops.gaussian(sharp, 8 * scale + 0.3)
    amount = 0.06 + 0.6 * film + 0.9 * sharp + 0.8 * near + 0.5 * far
    # Light is absorbed and scattered along its way, so ice upon ice adds ever less.
    out = ops.to_bytes(1 - np.exp(-amount[..., None] * _TINT))
    out.flags.writeable = False
    return out
