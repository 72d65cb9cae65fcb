"""Pixels: a jitted, batched analytic renderer of tubes over a procedural place.

Pure functions of pixels give light as it reaches the lens: the background, then tubes from far to
near, each painted over the last with a coverage that falls from one to zero over one pixel, so
edges are anti-aliased without supersampling. Then come the illuminator's glow, blur, the display
curve and sensor noise. All on the CPU device: the images must not depend on the accelerator, and
training may already use it.
"""

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.synthetic.figure import FIELDS
from vireid_jax.synthetic.scene import PERIOD, SCENE

# --- Light ----------------------------------------------------------------------------------

SEAM = 0.014  # width of the dark seam around a tube, in crop heights


def fields(row: jax.Array, layout: tuple[tuple[str, int], ...]) -> dict[str, list[jax.Array]]:
    """Splits a row [F] of parameters into named lists of scalars."""
    out, at = {}, 0
    for name, size in layout:
        out[name] = [row[at + k] for k in range(size)]
        at += size
    return out


def _asin(u: jax.Array) -> jax.Array:
    """Abramowitz and Stegun 4.4.45: off by at most 7e-5, and cheap."""
    a = jnp.abs(u)
    value = math.pi / 2 - jnp.sqrt(jnp.maximum(1 - a, 0)) * (
        1.5707288 + a * (-0.2121144 + a * (0.0742610 - 0.0187293 * a))
    )
    return jnp.where(u < 0, -value, value)


def step(x: jax.Array) -> jax.Array:
    """Coverage of a pixel whose center lies x pixels inside an edge, 0 to 1."""
    return jnp.clip(x + 0.5, 0.0, 1.0)


def _band(x: jax.Array, band: list[jax.Array], slope: jax.Array) -> jax.Array:
    """Coverage of periodic bands (center, half width, period, weight); slope is 1 / pixel."""
    center, half, period, weight = band
    x = x - center
    x = x - period * jnp.round(x / period)
    return weight * step((half - jnp.abs(x)) * slope)


def _wave(x: jax.Array) -> jax.Array:
    """A parabola wave of period 2 in -1 .. 1: a cheap sine."""
    x = x - 2.0 * jnp.round(x * 0.5)
    return 4.0 * x * (1.0 - jnp.abs(x))


def hash_bits(x: jax.Array) -> jax.Array:
    """Mixes uint32 counters: far cheaper than a random generator, and good enough for noise."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def lattice(x: jax.Array, y: jax.Array) -> jax.Array:
    """Value noise in -1 .. 1 on a unit lattice."""
    xi, yi = jnp.floor(x), jnp.floor(y)
    fx, fy = x - xi, y - yi
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    xi, yi = xi.astype(jnp.int32).astype(jnp.uint32), yi.astype(jnp.int32).astype(jnp.uint32)

    def corner(dx: int, dy: int) -> jax.Array:
        key = (xi + jnp.uint32(dx)) * jnp.uint32(0x9E3779B1)
        key = key + (yi + jnp.uint32(dy)) * jnp.uint32(0x85EBCA77)
        return (hash_bits(key) >> 8).astype(jnp.float32) * (2.0 / (1 << 24)) - 1.0

    low = corner(0, 0) * (1 - fx) + corner(1, 0) * fx
    high = corner(0, 1) * (1 - fx) + corner(1, 1) * fx
    return low * (1 - fy) + high * fy


Image = tuple[jax.Array, ...]  # three channels


def over(image: Image, color: Sequence[jax.Array], weight: jax.Array) -> Image:
    """The image with a color painted over it at this opacity."""
    return tuple(old + weight * (new - old) for old, new in zip(image, color, strict=True))


def scaled(image: Image, factor: jax.Array) -> Image:
    """The image times a factor."""
    return tuple(channel * factor for channel in image)


def background(x: jax.Array, y: jax.Array, s: dict[str, list], rects: jax.Array) -> Image:
    """Wall with its fittings, greenery and floor; x, y in crop heights [H, W]."""
    height = x.shape[0]
    start, inverse, center = s["place"]
    px = inverse / height  # statures per pixel
    along = start + (x - center) * inverse
    edge = s["edge"][0] + s["edge"][1] * (x - center)
    up = (edge - y) * inverse
    rise = 1.0 + 0.12 * jnp.clip(up, -0.5, 1.5)
    image = scaled(tuple(s["wall"]), rise)

    def fitting(state: Image, rect: jax.Array) -> tuple[Image, None]:
        mid, half, low, high, *color, weight = (rect[k] for k in range(8))
        off = along - mid
        off = off - PERIOD * jnp.round(off / PERIOD)
        inside = step((half - jnp.abs(off)) / px)
        inside = inside * step((up - low) / px) * step((high - up) / px)
        shade = 1.0 - 0.25 * step((jnp.abs(off) - half + 0.02) / px)
        return over(state, [c * shade for c in color], inside * weight), None

    image, _ = jax.lax.scan(fitting, image, rects)
    skirting = step((s["skirting_height"][0] - up) / px)
    image = over(image, s["skirting"], skirting)
    ox, oy = s["offset"]
    fine = s["grain"][2]
    coarse = lattice(along * fine * 0.45 + ox, up * fine * 0.45 + oy)
    detail = lattice(along * fine * 2.3 + oy, up * fine * 2.3 + ox)
    noise = 0.6 * coarse + 0.4 * detail
    green = s["leaf_amount"][0] * 1.6 - 0.8 + 0.35 * (0.5 - up)
    leaf = step((noise + green) * 5.0) * (s["leaf_amount"][0] > 0)
    image = scaled(image, 1 + s["grain"][0] * detail)
    shade = 0.75 + 0.75 * detail
    image = over(image, [c * shade for c in s["leaf"]], leaf)
    image = scaled(image, s["far"][0])
    # The floor: tiles that shrink with distance.
    floor = step(-up / px)
    deep = 1.0 / (jnp.maximum(-up, 0.0) + 0.25)
    tx = (x - center) * inverse * deep
    lines = jnp.maximum(
        step((0.012 - jnp.abs(tx - jnp.round(tx / s["tile"][0]) * s["tile"][0])) / px),
        step((0.02 - jnp.abs(deep - jnp.round(deep / 0.7) * 0.7)) * 20),
    )
    tone = (1 - s["tile"][2] * lines) * (1 + s["grain"][1] * noise)
    near = s["far"][0] + (1 - s["far"][0]) * jnp.clip(-up * 3.0, 0, 1)
    return over(image, [c * tone * near * s["far"][1] for c in s["floor"]], floor)


def paint_tube(
    image: Image, row: jax.Array, x: jax.Array, y: jax.Array, s: dict[str, list], pixel: float
) -> Image:
    """Paints one tube (a row of `figure.FIELDS`) over a window of the image."""
    t = fields(row, FIELDS)
    (ax, ay), (length,), (alpha,) = t["axis"], t["length"], t["alpha"]
    dx, dy = x - t["start"][0], y - t["start"][1]
    along = dx * ax + dy * ay
    # The lateral direction points to the image's right for an upright tube (axis up: ay < 0).
    lx, ly = jnp.where(ay > 0, ay, -ay), jnp.where(ay > 0, -ax, ax)
    across = dx * lx + dy * ly
    f = jnp.clip(along / length, 0.0, 1.0)
    g = 1.0 - f
    r0, r1, r2, r3 = t["radius"]
    cap0, cap1 = t["cap"]
    beyond = jnp.clip(jnp.maximum(-along / cap0, (along - length) / cap1), 0.0, 1.0)
    round_ = jnp.sqrt(1.0 - beyond * beyond)
    width = (g * g * (g * r0 + 3 * f * r1) + f * f * (3 * g * r2 + f * r3)) * round_
    off = jnp.abs(across)
    ends = step((along + cap0) / pixel) * step((length + cap1 - along) / pixel)
    coverage = alpha * ends * step((width - off) / pixel)
    u = jnp.clip(across / jnp.maximum(width, 0.5 * pixel), -1.0, 1.0)
    nz = jnp.sqrt(1.0 - u * u)
    # Light: the normal is (lateral, axial, towards the camera); y is down in the crop.
    sx, sy, sz = s["light"]
    axial = jnp.where(along < 0, -beyond, beyond)
    dot = u * round_ * (lx * sx - ly * sy) + nz * round_ * sz + axial * (ax * sx - ay * sy)
    v = t["v"][0] + (t["v"][1] - t["v"][0]) * (along / length)
    azimuth = t["azimuth"][0] + _asin(u)
    amount, phase = t["fold"]
    fold = amount * _wave(7.0 * v + 1.3 * azimuth + phase) * _wave(3.1 * v - 0.7 * azimuth)
    ambient = s["ambient"][0]
    shade = ambient + (1.0 - ambient) * jnp.maximum(dot, 0.0) + 0.25 * ambient * (nz - 0.7) + fold
    slope_v = length / (jnp.abs(t["v"][1] - t["v"][0]) + 1e-6) / pixel
    slope_a = jnp.maximum(width, pixel) / pixel
    a = _band(v, t["along"], slope_v)
    b = _band(azimuth, t["around"], slope_a)
    pv, pv_half, pa, pa_half, weight = t["patch"]
    turn = azimuth - pa
    turn = turn - 2 * math.pi * jnp.round(turn / (2 * math.pi))
    c = weight * step((pv_half - jnp.abs(v - pv)) * slope_v)
    c = c * step((pa_half - jnp.abs(turn)) * slope_a)
    color = t["color"]
    paint: Image = tuple(color[:3])
    for layer, mask in enumerate((a, b, c), start=1):
        paint = over(paint, color[4 * layer : 4 * layer + 3], mask)
    # A soft dark seam on what lies behind keeps an arm apart from a trunk of its color.
    seam = t["seam"][0] * alpha * ends * jnp.clip(1.0 - (off - width) / SEAM, 0.0, 1.0)
    return over(scaled(image, 1 - seam), [p * shade for p in paint], coverage)


# --- The image ------------------------------------------------------------------------------

CHUNK = 4  # images in one call: small, since a last chunk is filled up
WINDOWS = 4  # tubes are painted in windows of 1 / WINDOWS of the rows


def _gauss(image: jax.Array, sigma: jax.Array, axis: int, reach: int) -> jax.Array:
    """Blurs [3, H, W] along an axis with edge padding."""
    pad = [(0, 0)] * 3
    pad[axis] = (reach, reach)
    padded = jnp.pad(image, pad, mode="edge")
    offsets = range(-reach, reach + 1)
    weights = [jnp.exp(-0.5 * (k / sigma) ** 2) for k in offsets]
    size = image.shape[axis]
    parts = [
        w * jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k, w in enumerate(weights)
    ]
    return functools.reduce(jnp.add, parts) / functools.reduce(jnp.add, weights)


def work_list(tubes: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Which windows of rows to paint for which tube [N, T, F], in painting order.

    Most tubes are short or switched off, so this is a third of painting each everywhere.

    Returns:
      items: int32 [N, T * (WINDOWS + 1), 2], tube and first row; the used ones come first.
      count: int32 [N], how many are used.
    """
    names, sizes = zip(*FIELDS, strict=True)
    at = dict(zip(names, np.cumsum((0, *sizes)), strict=False))
    y0 = tubes[..., at["start"] + 1]
    y1 = y0 + tubes[..., at["axis"] + 1] * tubes[..., at["length"]]
    # A Bezier profile stays within its knots, and a cap within its length.
    reach = SEAM + tubes[..., at["radius"] : at["cap"] + 2].max(-1)
    low = np.floor((np.minimum(y0, y1) - reach) * height - 1).clip(0, height).astype(np.int32)
    high = np.ceil((np.maximum(y0, y1) + reach) * height + 1).clip(0, height).astype(np.int32)
    rows = -(-height // WINDOWS)
    first = low[..., None] + rows * np.arange(WINDOWS + 1, dtype=np.int32)
    used = (first < high[..., None]) & (tubes[..., at["alpha"]] > 0)[..., None]
    tube = np.broadcast_to(np.arange(tubes.shape[1], dtype=np.int32)[:, None], first.shape)
    items = np.stack([tube, first], -1).reshape(len(tubes), -1, 2)
    used = used.reshape(len(tubes), -1)
    order = np.argsort(~used, axis=1, kind="stable")
    return np.take_along_axis(items, order[..., None], axis=1), used.sum(1, dtype=np.int32)


def _pixels(inputs: tuple[jax.Array, ...], height: int, width: int) -> jax.Array:
    """One image, uint8 [H, W, 3], of tubes [T, F], items [I, 2], count, scene, rects and key."""
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
    rows = -(-height // WINDOWS)

    def paint(k: jax.Array, canvas: Image) -> Image:
        tube, first = items[k, 0], items[k, 1]
        part = [jax.lax.dynamic_slice_in_dim(c, first, rows) for c in canvas]
        y = jax.lax.broadcasted_iota(jnp.float32, (rows, width), 0)
        y = (y + first.astype(jnp.float32) + 0.5) / height
        painted = paint_tube(tuple(part), tubes[tube], x[:rows], y, s, 1 / height)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new, first, 0)
            for old, new in zip(canvas, painted, strict=True)
        )

    # A window may reach below the image: spare rows keep it from being moved up.
    canvas = tuple(jnp.pad(c, ((0, rows), (0, 0))) for c in image)
    image = tuple(c[:height] for c in jax.lax.fori_loop(0, count, paint, canvas))
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


def render(
    tubes: np.ndarray,
    scene: np.ndarray,
    rects: np.ndarray,
    key: np.ndarray,
    *,
    image_size: tuple[int, int],
) -> np.ndarray:
    """Renders N images, uint8 [N, H, W, 3].

    Args:
      tubes: float32 [N, T, figure.WIDTH], each image's from far to near.
      scene: float32 [N, scene.WIDTH].
      rects: float32 [N, scene.RECTS, 8].
      key: uint32 [N], seeds the noise.
      image_size: (height, width) in pixels.
    """
    count = len(key)
    height, width = image_size
    out = np.empty((count, height, width, 3), np.uint8)
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the CPU platform is switched off
        device = jax.local_devices()[0]
    inputs = (tubes, *work_list(tubes, height), scene, rects, key)

    def work(first: int) -> None:
        # The last chunk is filled up with copies, so that one compiled program serves all.
        rows = np.minimum(np.arange(first, first + CHUNK), count - 1)
        with jax.default_device(device):
            images = _batch(tuple(x[rows] for x in inputs), height=height, width=width)
        last = min(first + CHUNK, count)
        out[first:last] = np.asarray(images)[: last - first]

    with ThreadPoolExecutor(2) as pool:  # calls in flight at once
        list(pool.map(work, range(0, count, CHUNK)))
    return out
