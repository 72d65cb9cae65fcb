"""Pixels: a jitted, batched analytic renderer of tubes over a procedural place.

`paint` gives light as it reaches the lens; here come the illuminator's glow, blur, the
display curve and sensor noise. All on the CPU device: the images must not depend on the
accelerator, and training may already use it.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.synthetic.figure import FIELDS
from vireid_jax.synthetic.paint import (
    SEAM,
    Image,
    background,
    fields,
    hash_bits,
    over,
    paint_tube,
    scaled,
    step,
)
from vireid_jax.synthetic.scene import SCENE

CHUNK = 32  # images in one call
WINDOWS = 4  # tubes are painted in windows of 1 / WINDOWS of the rows


def _gauss(image: jax.Array, sigma: jax.Array, axis: int, reach: int) -> jax.Array:
    """Blurs [3, H, W] along an axis with edge padding."""
    pad = [(0, 0)] * 3
    pad[axis] = (reach, reach)
    padded = jnp.pad(image, pad, mode="edge")
    offsets = range(-reach, reach + 1)
    weights = [jnp.exp(-0.5 * (k / sigma) ** 2) for k in offsets]
    size = image.shape[axis]
    total = functools.reduce(jnp.add, weights)
    parts = [
        w * jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k, w in enumerate(weights)
    ]
    return functools.reduce(jnp.add, parts) / total


def _window_rows(height: int) -> int:
    return -(-height // WINDOWS)


def work_list(tubes: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Which windows of rows to paint for which tube, in painting order.

    Most tubes are short or switched off, so this is a third of painting each everywhere.

    Args:
      tubes: float32 [N, T, figure.WIDTH].
      height: of the images, in pixels.

    Returns:
      items: int32 [N, T * (WINDOWS + 1), 2], tube and first row; the used ones come first.
      count: int32 [N], how many are used.
    """
    at = dict(
        zip([name for name, _ in FIELDS], np.cumsum([0] + [s for _, s in FIELDS]), strict=False)
    )
    y0 = tubes[..., at["start"] + 1]
    y1 = y0 + tubes[..., at["axis"] + 1] * tubes[..., at["length"]]
    # A Bezier profile stays within its knots, and a cap within its length.
    reach = np.maximum(tubes[..., at["radius"] : at["radius"] + 4].max(-1),
                       tubes[..., at["cap"] : at["cap"] + 2].max(-1)) + SEAM  # fmt: skip
    low = np.floor((np.minimum(y0, y1) - reach) * height - 1).clip(0, height).astype(np.int32)
    high = np.ceil((np.maximum(y0, y1) + reach) * height + 1).clip(0, height).astype(np.int32)
    rows = _window_rows(height)
    first = low[..., None] + rows * np.arange(WINDOWS + 1, dtype=np.int32)
    used = (first < high[..., None]) & (tubes[..., at["alpha"]] > 0)[..., None]
    tube = np.broadcast_to(np.arange(tubes.shape[1], dtype=np.int32)[:, None], first.shape)
    items = np.stack([tube, first], -1).reshape(len(tubes), -1, 2)
    used = used.reshape(len(tubes), -1)
    order = np.argsort(~used, axis=1, kind="stable")
    return np.take_along_axis(items, order[..., None], axis=1), used.sum(1, dtype=np.int32)


def _pixels(inputs: tuple[jax.Array, ...], height: int, width: int) -> jax.Array:
    """One image, uint8 [H, W, 3].

    Args:
      inputs: tubes [T, F], items [I, 2], count [], scene [S], rects [R, 8] and key [].
      height: in pixels.
      width: in pixels.
    """
    tubes, items, count, scene, rects, key = inputs
    s = fields(scene, SCENE)
    y = (jax.lax.broadcasted_iota(jnp.float32, (height, width), 0) + 0.5) / height
    x = (jax.lax.broadcasted_iota(jnp.float32, (height, width), 1) + 0.5) / width
    unit = x
    x = x * s["aspect"][0]
    image = background(x, y, s, rects)
    cx, cy, rx, ry, strength = s["shadow"]
    round_ = ((x - cx) * rx) ** 2 + ((y - cy) * ry) ** 2
    image = scaled(image, 1 - strength / (1.0 + round_ * round_))
    rows = _window_rows(height)

    def paint(k: jax.Array, canvas: Image) -> Image:
        tube, first = items[k, 0], items[k, 1]
        part = [jax.lax.dynamic_slice_in_dim(c, first, rows) for c in canvas]
        y = jax.lax.broadcasted_iota(jnp.float32, (rows, width), 0)
        y = (y + first.astype(jnp.float32) + 0.5) / height
        painted = paint_tube((part[0], part[1], part[2]), tubes[tube], x[:rows], y, s, 1 / height)
        a, b, c = (
            jax.lax.dynamic_update_slice_in_dim(old, new, first, 0)
            for old, new in zip(canvas, painted, strict=True)
        )
        return a, b, c

    # A window may reach below the image: spare rows keep it from being moved up.
    image = jax.lax.fori_loop(
        0, count, paint, jax.tree.map(lambda c: jnp.pad(c, ((0, rows), (0, 0))), image)
    )
    image = jax.tree.map(lambda c: c[:height], image)
    x0, x1, y0, y1, *color, weight = s["block"]
    inside = step((x - x0) * height) * step((x1 - x) * height)
    inside = inside * step((y - y0) * height) * step((y1 - y) * height)
    image = over(image, [c * (0.85 + 0.15 * jnp.cos(x * 90.0)) for c in color], inside * weight)
    # The illuminator's cone, and the lens's vignette.
    gx, gy, narrow, amount = s["glow"]
    cone = jnp.exp(-(((x - gx) * narrow * 1.4) ** 2 + ((y - gy) * narrow) ** 2) * 2.0)
    lit = (1.0 - amount) + amount * cone * 1.35
    corner = (unit - 0.5) ** 2 + (y - 0.5) ** 2
    lit = lit * (1.0 - s["vignette"][0] * 2.0 * corner)
    stack = jnp.stack([c * lit * g + s["haze"][0] for c, g in zip(image, s["gain"], strict=True)])
    reach = max(1, math.ceil(0.018 * height))
    stack = _gauss(stack, s["blur"][0] * height + 0.05, 2, reach)
    stack = _gauss(stack, s["blur"][1] * height + 0.05, 1, reach)
    # The display curve, then noise that is the same in the three channels of infrared.
    stack = jnp.sqrt(jnp.clip(stack, 0.0, 4.0))
    stack = stack * 1.04 / (1.0 + 0.04 * stack * stack)
    row = jax.lax.broadcasted_iota(jnp.uint32, (height, width), 0)
    column = jax.lax.broadcasted_iota(jnp.uint32, (height, width), 1)
    count = row * jnp.uint32(width) + column
    grey = s["glow"][3] > 0
    lanes = []
    for channel in range(3):
        lane = jnp.where(grey, 0, channel).astype(jnp.uint32)
        bits = hash_bits(hash_bits(count + lane * jnp.uint32(0x01000193)) + key)
        # The sum of four bytes is nearly normal: mean 510, deviation 147.8.
        total = sum(
            ((bits >> shift) & jnp.uint32(255)).astype(jnp.float32) for shift in (0, 8, 16, 24)
        )
        lanes.append((total - 510.0) * (1.0 / 147.8))
    read, photon = s["noise"]
    stack = stack + jnp.stack(lanes) * (read + photon * stack)
    return jnp.round(jnp.clip(stack, 0.0, 1.0) * 255.0).astype(jnp.uint8).transpose(1, 2, 0)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _batch(images: tuple[jax.Array, ...], *, height: int, width: int) -> jax.Array:
    # One image after the other, not vmap: windows stay plain slices, and an image is the
    # same whatever else is in its batch.
    return jax.lax.map(lambda one: _pixels(one, height, width), images)


def _device() -> jax.Device:
    """The host's CPU, or the default device where the CPU platform is switched off."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def render(
    tubes: np.ndarray,
    scene: np.ndarray,
    rects: np.ndarray,
    key: np.ndarray,
    *,
    image_size: tuple[int, int],
    threads: int = 2,
) -> np.ndarray:
    """Renders N images.

    Args:
      tubes: float32 [N, T, figure.WIDTH], each image's from far to near.
      scene: float32 [N, scene.WIDTH].
      rects: float32 [N, scene.RECTS, 8].
      key: uint32 [N], seeds the noise.
      image_size: (height, width) in pixels.
      threads: calls in flight at once.

    Returns:
      uint8 [N, H, W, 3].
    """
    count = len(key)
    height, width = image_size
    out = np.empty((count, height, width, 3), np.uint8)
    device = _device()
    items, used = work_list(tubes, height)
    inputs = (tubes, items, used, scene, rects, key)

    def work(first: int) -> None:
        # The last chunk is filled up with copies, so that one compiled program serves all.
        rows = np.minimum(np.arange(first, first + CHUNK), count - 1)
        with jax.default_device(device):
            images = _batch(tuple(x[rows] for x in inputs), height=height, width=width)
        last = min(first + CHUNK, count)
        out[first:last] = np.asarray(images)[: last - first]

    starts = range(0, count, CHUNK)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, starts))
    return out
