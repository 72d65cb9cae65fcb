"""Cameras, their places, light, sensor and things in the way: how a crop is taken.

The six cameras have SYSU-MM01's roles: 1, 2 (visible) and 3 (infrared) are indoors, 2 and 3 at the
same place; 4, 5 (visible) and 6 (infrared) are outdoors. An image has one row of scene parameters.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from vireid_jax.synthetic.figure import FIELDS, Gait
from vireid_jax.synthetic.identity import NO_PATCH, OFF, draw_people, linear
from vireid_jax.types import INFRARED, VISIBLE

Named = dict[str, np.ndarray]

# --- Cameras --------------------------------------------------------------------------------

_IMAGE = 2  # stream tags of the random draws, see identity._PERSON
_PLACE = 3
_WORLD = 4
DRAWS = 72
HEADLIGHT = (0.0, 0.1, 1.0)  # an illuminator beside the lens


class Camera(NamedTuple):
    """What a camera does to every image; pairs are the ends of a uniform range."""

    number: int
    modality: int
    place: str
    pitch: tuple[float, float]  # degrees, looking down
    distance: tuple[float, float]  # in statures
    light: tuple[float, float, float]  # direction towards the main light
    ambient: float
    tint: tuple[float, float, float]
    exposure: tuple[float, float]
    noise: float
    blur: float  # mean blur, in parts of the crop's height


CAMERAS = (
    Camera(1, VISIBLE, "corridor", (8, 16), (4, 7), light=(0.2, 0.85, 0.5), ambient=0.62,
           tint=(1.0, 0.95, 0.86), exposure=(0.85, 1.25), noise=0.016, blur=0.0040),
    Camera(2, VISIBLE, "hall", (4, 11), (4, 8), light=(-0.5, 0.6, 0.62), ambient=0.58,
           tint=(0.95, 1.0, 0.99), exposure=(0.65, 1.0), noise=0.020, blur=0.0045),
    Camera(3, INFRARED, "hall", (4, 11), (4, 8), light=HEADLIGHT, ambient=0.22,
           tint=(1.0, 1.0, 1.0), exposure=(0.75, 1.2), noise=0.015, blur=0.0038),
    Camera(4, VISIBLE, "plaza", (7, 14), (6, 11), light=(0.65, 0.68, 0.34), ambient=0.42,
           tint=(1.0, 0.99, 0.96), exposure=(0.9, 1.35), noise=0.012, blur=0.0040),
    Camera(5, VISIBLE, "garden", (3, 9), (6, 11), light=(-0.2, 0.9, 0.38), ambient=0.66,
           tint=(0.88, 0.97, 1.08), exposure=(0.55, 0.95), noise=0.022, blur=0.0050),
    Camera(6, INFRARED, "path", (5, 13), (6, 11), light=HEADLIGHT, ambient=0.15,
           tint=(1.0, 1.0, 1.0), exposure=(0.8, 1.2), noise=0.019, blur=0.0042),
)  # fmt: skip


@functools.cache
def cameras(world: int) -> tuple[Camera, ...]:
    """The cameras of a world: 0 has `CAMERAS`, another their numbers and places, with drawn optics.

    A model that learned one world's cameras meets others in the next, as at another site.
    """
    if not world:
        return CAMERAS
    rng = np.random.default_rng([_WORLD, world])

    def drawn(camera: Camera) -> Camera:
        dark = camera.modality == INFRARED
        angle, turn = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 0.75)
        low, near, lit = rng.uniform(3, 8), rng.uniform(4, 7), rng.uniform(0.5, 0.95)
        warm, green = rng.uniform(-0.12, 0.12), rng.uniform(-0.03, 0.03)
        return camera._replace(
            pitch=(low, low + rng.uniform(6, 9)),
            distance=(near, near + rng.uniform(3, 5)),
            light=HEADLIGHT if dark else (turn * np.sin(angle), rng.uniform(0.6, 0.9), 0.45),
            ambient=rng.uniform(0.15, 0.22) if dark else rng.uniform(0.42, 0.66),
            tint=(1.0, 1.0, 1.0) if dark else (1 + warm, 1 + green, 1 - warm),
            exposure=(lit, lit * rng.uniform(1.4, 1.6)),
            noise=rng.uniform(0.012, 0.022),
            blur=rng.uniform(0.0038, 0.0050),
        )

    return tuple(map(drawn, CAMERAS))


@dataclasses.dataclass(frozen=True)
class Shot:
    """The drawn circumstances of N images, each field [N] or [N, k]."""

    seed: int
    world: int
    camera: np.ndarray  # row of CAMERAS
    uniform: np.ndarray  # [N, DRAWS], all randomness of an image
    key: np.ndarray  # uint32, seeds the sensor noise

    def value(self, column: int, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """Uniform draw number `column` on [low, high]."""
        return low + (high - low) * self.uniform[:, column]

    def of(self, field: str) -> np.ndarray:
        """A field of each image's camera, [N] or [N, k]."""
        return np.array([getattr(c, field) for c in cameras(self.world)], np.float64)[self.camera]

    def between(self, column: int, field: str) -> np.ndarray:
        """A draw within each image's camera's range `field`."""
        low, high = self.of(field).T
        return self.value(column, low, high)


def shots(
    seed: int, person: np.ndarray, camera: np.ndarray, index: np.ndarray, world: int = 0
) -> Shot:
    """Draws the circumstances of each image from (seed, person, camera, index) alone."""
    uniform = np.empty((len(person), DRAWS))
    for n, image in enumerate(zip(person, camera, index, strict=True)):
        rng = np.random.default_rng([seed, _IMAGE, *map(int, image)])
        uniform[n] = rng.random(DRAWS)
    key = (uniform[:, 0] * 2**32).astype(np.uint32)
    return Shot(seed, world, np.asarray(camera) - 1, uniform, key)


def gaits(shot: Shot, who: Named) -> Gait:
    """The pose of each image: anyone may walk in any direction."""
    yaw = shot.value(1, -np.pi, np.pi)
    # People mostly walk along a way: pull most of them towards the camera's axis.
    along = shot.value(2, 0, 1) < 0.7
    axis = np.where(np.abs(yaw) < np.pi / 2, 0.0, np.pi * np.sign(yaw))
    still = shot.value(3, 0, 1) < 0.2
    return Gait(
        yaw=np.where(along, axis + 0.45 * (yaw - axis), yaw),
        phase=shot.value(4, 0, 2 * np.pi),
        effort=np.where(still, shot.value(5, 0, 0.25), shot.value(5, 0.6, 1.05)),
        lean=shot.value(6, -0.02, 0.09),
        head_yaw=shot.value(7, -1, 1) ** 3 * 0.9,
        lift=(shot.value(8, 0, 1) < 0.08) * shot.value(9, 0.6, 1.0),
        spread=shot.value(10, 0.05, 0.2) + 0.03 * np.maximum(who["limb"] - 1, 0) * 5,
    )


def project(tubes: Named, shot: Shot, infrared: bool) -> tuple[np.ndarray, Named]:
    """Sees `figure.build`'s figures through each image's camera, and crops as a detector would.

    Returns:
      rows: float32 [N, TUBES, figure.WIDTH], fields in the order of `figure.FIELDS`.
      frame: name -> [N]: `scale` (parts of the crop per stature), `feet` (y), `aspect`
        (width over height) and `center` (x of the person).
    """
    n = len(shot.key)
    pitch = np.radians(shot.between(11, "pitch"))[:, None]
    distance = shot.between(12, "distance")[:, None]
    roll = shot.value(13, -1, 1)[:, None] * 0.05

    def view(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y, z = points[..., 0], points[..., 1] - 0.55, points[..., 2]
        y, z = y * np.cos(pitch) - z * np.sin(pitch), y * np.sin(pitch) + z * np.cos(pitch)
        near = distance / (distance - z)
        x, y = x * near, y * near
        turned = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
        return np.stack(turned, -1), z, near

    start, z0, near0 = view(tubes["start"])
    end, z1, near1 = view(tubes["end"])
    yaw, near = tubes["yaw"][..., None], 0.5 * (near0 + near1)[..., None]
    radius = np.hypot(tubes["lateral"] * np.cos(yaw), tubes["depth"] * np.sin(yaw)) * near
    cap = tubes["cap"] * near
    shown = tubes["alpha"] > 0
    reach = np.maximum(cap.max(-1), 0.012)
    high = np.where(shown, np.maximum(start[..., 1], end[..., 1]) + reach, -9).max(1)
    low = np.where(shown, np.minimum(start[..., 1], end[..., 1]) - reach, 9).min(1)

    # The detector's box is a little wrong: scale, offset and aspect are drawn.
    part = shot.value(14, 0.87, 1.01)
    scale = part / (high - low)
    slack = 1.0 - part
    top = slack * shot.value(15, 0.1, 0.9) + shot.value(16, -0.03, 0.03)
    aspect = shot.value(17, 0.42, 0.52)
    center = aspect * (0.5 + shot.value(18, -0.15, 0.15))
    middle = 0.5 * (start[:, 4, 0] + end[:, 4, 0])

    def crop(points: np.ndarray) -> np.ndarray:
        x = (points[..., 0] - middle[:, None]) * scale[:, None] + center[:, None]
        y = (high[:, None] - points[..., 1]) * scale[:, None] + top[:, None]
        return np.stack([x, y], -1)

    a, b = crop(start), crop(end)
    axis = b - a
    length = np.linalg.norm(axis, axis=-1)
    axis = axis / np.maximum(length, 1e-6)[..., None]
    axis = np.where(length[..., None] > 1e-6, axis, np.array([0.0, 1.0]))
    radius = radius * scale[:, None, None]
    cap = cap * scale[:, None, None]
    # A limb that points at the camera is short in the image but keeps its round section.
    short = np.maximum(1 - length / np.maximum(radius.max(-1), 1e-6), 0)
    cap = np.maximum(cap, (short * radius.max(-1))[..., None] * 0.9)

    phase = np.broadcast_to(shot.value(19, 0, 9)[:, None], length.shape)
    values = {
        **tubes, "start": a, "axis": axis, "length": np.maximum(length, 1e-4), "radius": radius,
        "cap": cap, "azimuth": -tubes["yaw"], "fold": np.stack([tubes["fold"], phase], -1),
        "color": _tone(tubes["color"], infrared, spare=1),
    }  # fmt: skip
    rows = np.concatenate([values[k].reshape(n, length.shape[1], size) for k, size in FIELDS], -1)
    order = np.argsort(0.5 * (z0 + z1) + tubes["bias"], axis=1, kind="stable")
    rows = np.take_along_axis(rows, order[..., None], axis=1).astype(np.float32)
    feet = top + part
    return rows, {"scale": scale, "feet": feet, "aspect": aspect, "center": center}


def _tone(color: np.ndarray, infrared: bool, spare: int = 0) -> np.ndarray:
    """What a camera sees of colors [..., 4]: [..., 3], and `spare` columns of zeros."""
    seen = np.repeat(color[..., 3:4], 3, -1) if infrared else color[..., :3]
    return np.concatenate([seen, np.zeros((*seen.shape[:-1], spare))], -1)


# --- Places ---------------------------------------------------------------------------------

# Scene parameters in the order in which `render` reads them.
SCENE = (
    ("wall", 3), ("floor", 3), ("skirting", 3), ("leaf", 3), ("edge", 2), ("skirting_height", 1),
    ("leaf_amount", 1), ("grain", 3), ("offset", 2), ("tile", 3), ("place", 3), ("far", 2),
    ("light", 3), ("ambient", 1), ("gain", 3), ("glow", 4), ("vignette", 1), ("shadow", 5),
    ("block", 8), ("blur", 2), ("noise", 2), ("aspect", 1), ("haze", 1),
)  # fmt: skip
WIDTH = sum(n for _, n in SCENE)
RECTS = 8
PERIOD = 3.2  # a place repeats after this many statures

PLACES = ("corridor", "hall", "plaza", "garden", "path")
_OUTDOORS = {"plaza", "garden", "path"}
_STRANGERS = 61
_PASSERBY = 1 << 30  # identities of people who walk through: never those of the data


def _grey(rng: np.random.Generator, low: float, high: float, spread: float) -> np.ndarray:
    return linear(np.clip(rng.uniform(low, high) + rng.normal(0, spread, 3), 5, 250))


def place(seed: int, row: int) -> Named:
    """The fixed layout of place `row`: rectangles on the wall, colors with infrared as the fourth.

    Rectangles are [RECTS, 9]: center, half width, bottom and top (statures, y up from the
    floor's far edge), color [4], weight.
    """
    rng = np.random.default_rng([seed, _PLACE, row])
    name = PLACES[row]
    outdoors = name in _OUTDOORS
    rects = np.zeros((RECTS, 9))
    centers = (np.arange(RECTS) + rng.uniform(0.1, 0.9, RECTS)) * PERIOD / RECTS
    for r in range(RECTS):
        kind = rng.integers(4)
        if outdoors:
            low, high, half = (
                (0.0, 3.0, rng.uniform(0.03, 0.07)),  # a trunk or a post
                (rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.0), rng.uniform(0.08, 0.16)),
                (0.0, rng.uniform(0.2, 0.4), rng.uniform(0.12, 0.3)),  # a bench, a low wall
                (0.0, rng.uniform(0.9, 1.2), rng.uniform(0.1, 0.14)),  # an entrance
            )[kind]
            color = np.append(_grey(rng, 40, 170, 9), rng.uniform(0.1, 0.5))
        else:
            low, high, half = (
                (0.0, rng.uniform(1.1, 1.25), rng.uniform(0.16, 0.22)),  # a door
                (rng.uniform(0.5, 0.65), rng.uniform(0.85, 1.0), rng.uniform(0.08, 0.16)),
                (0.0, 3.0, rng.uniform(0.04, 0.1)),  # a pillar
                (0.0, rng.uniform(0.3, 0.55), rng.uniform(0.1, 0.2)),  # a cabinet
            )[kind]
            color = np.append(_grey(rng, 50, 220, 11), rng.uniform(0.1, 0.75))
        rects[r] = [centers[r], half, low, high, *color, 1.0]
    base = {
        "corridor": ((196, 190, 172), (120, 116, 110)), "hall": ((176, 184, 188), (146, 140, 128)),
        "plaza": ((150, 140, 128), (164, 160, 152)), "garden": ((88, 96, 70), (104, 102, 96)),
        "path": ((110, 104, 96), (92, 92, 94)),
    }[name]  # fmt: skip
    jitter = rng.normal(0, 10, (2, 1)) + rng.normal(0, 3, (2, 3))
    leaf = {"plaza": 0.12, "garden": 0.62, "path": 0.45}.get(name, 0.0)
    return {
        "rects": rects,
        "wall": np.append(linear(np.clip(base[0] + jitter[0], 10, 245)), rng.uniform(0.3, 0.6)),
        "floor": np.append(linear(np.clip(base[1] + jitter[1], 10, 245)), rng.uniform(0.25, 0.5)),
        "skirting": np.append(_grey(rng, 40, 130, 8), rng.uniform(0.1, 0.5)),
        "leaf": np.append(linear((58, 82, 34)), 0.85),
        "leaf_amount": np.array(leaf),
        "skirting_height": np.array(0.0 if outdoors else rng.uniform(0.04, 0.07)),
        "grain": np.array([0.25 if outdoors else 0.05, 0.22 if outdoors else 0.07, 9.0]),
        "tile": np.array([rng.uniform(0.3, 0.5), rng.uniform(0.05, 0.12), rng.uniform(0.0, 0.35)]),
    }


def build(shot: Shot, frame: Named, infrared: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scene rows of N images of one modality; `frame` is from `project`.

    Returns:
      scene: float32 [N, WIDTH], fields in the order of `SCENE`.
      rects: float32 [N, RECTS, 8]: center, half width, bottom, top, color, weight.
    """
    n, value = len(shot.key), shot.value
    layouts = [place(shot.seed, row) for row in range(len(PLACES))]
    row = np.array([PLACES.index(c.place) for c in CAMERAS])[shot.camera]
    fixed = {key: np.stack([x[key] for x in layouts])[row] for key in layouts[0]}
    outdoors = np.array([c.place in _OUTDOORS for c in CAMERAS])[shot.camera]
    scale, feet, aspect, center = (frame[k] for k in ("scale", "feet", "aspect", "center"))

    edge = feet - scale * value(20, 0.06, np.where(outdoors, 0.5, 0.34))
    slope = value(21, -0.25, 0.25)
    warm = 1 + 0.06 * value(22, -1, 1)
    tint = shot.of("tint") * np.stack([warm, 1 + 0 * warm, 1 / warm], 1)
    exposure = shot.between(23, "exposure")
    side = value(24, -1, 1) * 0.35
    light = shot.of("light") + np.stack([side, 0 * side, 0 * side], 1)
    ambient = np.minimum(shot.of("ambient"), 0.22 if infrared else 1.0)
    far = value(28, 0.25, 0.7) if infrared else value(28, 0.75, 1.1)
    if infrared:  # also where a visible camera's shot is rendered in infrared
        tint = np.ones_like(tint)
        light = np.tile(HEADLIGHT, (n, 1))
        far = np.where(outdoors, 0.55 * far, far)
    light = light / np.linalg.norm(light, axis=1, keepdims=True)
    # Active illumination: bright in the middle, weaker behind the person.
    glow = np.column_stack([
        center + 0.12 * value(25, -1, 1), value(26, 0.15, 0.6), 1 / value(27, 0.55, 0.9),
        np.full(n, 0.78 if infrared else 0.0),
    ])  # fmt: skip
    cast = value(29, -0.1, 0.1)
    shadow = np.column_stack([
        center + cast * np.where(outdoors, 1.6, 0.6), feet - 0.02 * scale,
        1 / value(30, 0.10, 0.2), 1 / value(31, 0.022, 0.04),
        value(32, 0.2, 0.6) * (0.3 if infrared else 1.0),
    ])  # fmt: skip
    blur = shot.of("blur") * value(48, 0.5, 1.9)
    drift = np.where(value(49, 0, 1) < 0.07, value(50, 1.4, 2.2), 1.0)
    noise = shot.of("noise") * value(51, 0.6, 1.5)
    tones = {k: _tone(fixed[k], infrared) for k in ("wall", "floor", "skirting", "leaf")}
    values = {
        **fixed, **tones, "edge": np.stack([edge, slope], 1),
        "leaf_amount": fixed["leaf_amount"] * value(52, 0.6, 1.2),
        "offset": np.stack([value(53, 0, 50), value(54, 0, 50)], 1),
        "place": np.stack([value(55, 0, PERIOD), 1 / scale, center], 1),
        "far": np.stack([far, value(56, 0.6, 1.0) if infrared else np.ones(n)], 1),
        "light": light, "ambient": ambient, "gain": tint * exposure[:, None],
        "glow": glow, "vignette": value(57, 0.0, 0.5 if infrared else 0.2), "shadow": shadow,
        "block": _blocks(shot, aspect, feet, infrared),
        "blur": np.stack([blur * drift, blur], 1), "noise": np.stack([noise, 0.6 * noise], 1),
        "aspect": aspect, "haze": value(58, 0.0, 0.05) * (1.6 if infrared else 1.0),
    }  # fmt: skip
    scene = np.concatenate([values[k].reshape(n, size) for k, size in SCENE], 1)
    rects = fixed["rects"]
    rects = np.concatenate([rects[..., :4], _tone(rects[..., 4:8], infrared), rects[..., 8:]], -1)
    return scene.astype(np.float32), rects.astype(np.float32)


def _blocks(shot: Shot, aspect: np.ndarray, feet: np.ndarray, infrared: bool) -> np.ndarray:
    """Something in front of some people: a post at a side or a low wall at the feet."""
    value = shot.value
    kind = value(40, 0, 1)
    post, low = kind < 0.06, (kind >= 0.06) & (kind < 0.12)
    right = value(41, 0, 1) < 0.5
    width = value(42, 0.05, 0.13)
    x0 = np.where(post, np.where(right, aspect - width, -0.1), -0.1)
    x1 = np.where(post, np.where(right, aspect + 0.1, width), aspect + 0.1)
    y0 = np.where(post, -0.1, feet - value(43, 0.08, 0.22))
    shade = value(44, 0.03, 0.5)
    color = np.stack([shade, shade * value(45, 0.8, 1.1), shade * value(46, 0.7, 1.1)], 1)
    if infrared:
        color = np.repeat(value(47, 0.05, 0.6)[:, None], 3, 1)
    ones = np.full(len(shade), 1.1)
    return np.column_stack([x0, x1, y0, ones, color, post | low])


def arrange(tubes: np.ndarray, shot: Shot, frame: Named, infrared: bool) -> np.ndarray:
    """All tubes of each image from far to near: another person behind some, or in front.

    Returns:
      float32 [N, TUBES + 6, figure.WIDTH]; most of the others are switched off.
    """
    n, value = len(shot.key), shot.value
    shown = (value(60, 0, 1) < 0.1).astype(np.float64)
    front = value(65, 0, 1) < 0.4
    right = value(61, 0, 1) < 0.5
    aspect, scale, feet = frame["aspect"], frame["scale"], frame["feet"]
    size = scale * value(62, 0.82, 1.05)
    x = np.where(right, aspect + value(63, -0.03, 0.07), value(63, -0.07, 0.03))
    ground = feet + value(64, -0.08, 0.05)
    who = draw_people(shot.seed, _PASSERBY + np.arange(_STRANGERS))
    zero = np.zeros(n)
    rows: list[list[np.ndarray]] = [[], []]
    for name, low, high, radius, cap in (
        ("bottom_color", 0.02, 0.5, (0.05, 0.06, 0.08, 0.09), 0.02),
        ("top_color", 0.45, 0.8, (0.095, 0.09, 0.11, 0.11), 0.05),
        ("hair_color", 0.88, 0.96, (0.04, 0.05, 0.052, 0.05), 0.04),
    ):
        color = _tone(who[name][shot.key % _STRANGERS], infrared, spare=1)
        values = {
            "start": np.stack([x, ground - low * size], 1),
            "axis": np.stack([zero, zero - 1], 1), "length": (high - low) * size,
            "radius": np.array(radius)[None] * size[:, None],
            "cap": np.repeat(cap * size[:, None], 2, 1), "azimuth": zero,
            "v": np.stack([zero, zero + 1], 1), "seam": zero + 0.2,
            "fold": np.stack([zero + 0.1, zero], 1), "along": np.tile(OFF, (n, 1)),
            "around": np.tile(OFF, (n, 1)), "patch": np.tile(NO_PATCH, (n, 1)),
            "color": np.repeat(color[:, None], 4, 1),
        }  # fmt: skip
        for layer, here in zip(rows, (~front, front), strict=True):
            values["alpha"] = shown * here
            layer.append(np.concatenate([values[f].reshape(n, s) for f, s in FIELDS], 1))
    behind, before = (np.stack(layer, 1).astype(np.float32) for layer in rows)
    return np.concatenate([behind, tubes, before], axis=1)
