"""What is painted: the place's background and the tubes, as pure functions of pixels.

Each tube is painted over the last (they come sorted) with a coverage that falls from one
to zero over one pixel, so edges are anti-aliased without supersampling.
"""

import math

import jax
import jax.numpy as jnp

from vireid_jax.synthetic.figure import FIELDS
from vireid_jax.synthetic.scene import PERIOD

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
        key = (xi + jnp.uint32(dx)) * jnp.uint32(0x9E3779B1) + (yi + jnp.uint32(dy)) * jnp.uint32(
            0x85EBCA77
        )
        return (hash_bits(key) >> 8).astype(jnp.float32) * (2.0 / (1 << 24)) - 1.0

    low = corner(0, 0) * (1 - fx) + corner(1, 0) * fx
    high = corner(0, 1) * (1 - fx) + corner(1, 1) * fx
    return low * (1 - fy) + high * fy


Image = tuple[jax.Array, jax.Array, jax.Array]


def over(image: Image, color: list[jax.Array], weight: jax.Array) -> Image:
    """The image with a color painted over it at this opacity."""
    a, b, c = (old + weight * (new - old) for old, new in zip(image, color, strict=True))
    return a, b, c


def scaled(image: Image, factor: jax.Array) -> Image:
    """The image times a factor."""
    a, b, c = (channel * factor for channel in image)
    return a, b, c


def background(x: jax.Array, y: jax.Array, s: dict[str, list], rects: jax.Array) -> Image:
    """Wall with its fittings, greenery and floor; x, y in crop heights [H, W]."""
    height = x.shape[0]
    start, inverse, center = s["place"]
    px = inverse / height  # statures per pixel
    along = start + (x - center) * inverse
    edge = s["edge"][0] + s["edge"][1] * (x - center)
    up = (edge - y) * inverse
    rise = 1.0 + 0.12 * jnp.clip(up, -0.5, 1.5)
    r, g, b = s["wall"]
    image: Image = (r * rise, g * rise, b * rise)

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
    width = g * g * (g * r0 + 3 * f * r1) + f * f * (3 * g * r2 + f * r3)
    cap0, cap1 = t["cap"]
    beyond = jnp.maximum(-along / cap0, (along - length) / cap1)
    beyond = jnp.clip(beyond, 0.0, 1.0)
    round_ = jnp.sqrt(1.0 - beyond * beyond)
    width = width * round_
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
    paint: Image = (color[0], color[1], color[2])
    for layer, mask in enumerate((a, b, c), start=1):
        paint = over(paint, color[4 * layer : 4 * layer + 3], mask)
    # A soft dark seam on what lies behind keeps an arm apart from a trunk of its color.
    seam = t["seam"][0] * alpha * ends * jnp.clip(1.0 - (off - width) / SEAM, 0.0, 1.0)
    return over(scaled(image, 1 - seam), [p * shade for p in paint], coverage)
