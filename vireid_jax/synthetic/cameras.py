"""The six cameras in SYSU-MM01's roles, their places, and how a crop is taken.

Cameras 1, 2 (visible) and 3 (infrared) are indoors, 2 and 3 at the same place; 4, 5
(visible) and 6 (infrared) are outdoors.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from vireid_jax.synthetic.figure import FIELDS
from vireid_jax.synthetic.pose import Gait
from vireid_jax.types import INFRARED, VISIBLE

_IMAGE = 2  # stream tags of the random draws, see identity._PERSON
_PLACE = 3
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


@dataclasses.dataclass(frozen=True)
class Shot:
    """The drawn circumstances of N images, each field [N] or [N, k]."""

    seed: int
    camera: np.ndarray  # row of CAMERAS
    uniform: np.ndarray  # [N, DRAWS], all randomness of an image
    key: np.ndarray  # uint32, seeds the sensor noise

    def value(self, column: int, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """Uniform draw number `column` on [low, high]."""
        return low + (high - low) * self.uniform[:, column]

    def of(self, field: str) -> np.ndarray:
        """A field of each image's camera, [N] or [N, k]."""
        return np.array([getattr(c, field) for c in CAMERAS], np.float64)[self.camera]

    def between(self, column: int, field: str) -> np.ndarray:
        """A draw within each image's camera's range `field`."""
        low, high = self.of(field).T
        return self.value(column, low, high)


def shots(seed: int, person: np.ndarray, camera: np.ndarray, index: np.ndarray) -> Shot:
    """Draws the circumstances of each image from (seed, person, camera, index) alone."""
    uniform = np.empty((len(person), DRAWS))
    for n, image in enumerate(zip(person, camera, index, strict=True)):
        rng = np.random.default_rng([seed, _IMAGE, *map(int, image)])
        uniform[n] = rng.random(DRAWS)
    key = (uniform[:, 0] * 2**32).astype(np.uint32)
    return Shot(seed, np.asarray(camera) - 1, uniform, key)


def gaits(shot: Shot, who: dict[str, np.ndarray]) -> Gait:
    """The pose of each image: anyone may walk in any direction."""
    yaw = shot.value(1, -np.pi, np.pi)
    # People mostly walk along a way: pull most of them towards the camera's axis.
    along = shot.value(2, 0, 1) < 0.7
    axis = np.where(np.abs(yaw) < np.pi / 2, 0.0, np.pi * np.sign(yaw))
    yaw = np.where(along, axis + 0.45 * (yaw - axis), yaw)
    still = shot.value(3, 0, 1) < 0.2
    return Gait(
        yaw=yaw,
        phase=shot.value(4, 0, 2 * np.pi),
        effort=np.where(still, shot.value(5, 0, 0.25), shot.value(5, 0.6, 1.05)),
        lean=shot.value(6, -0.02, 0.09),
        head_yaw=shot.value(7, -1, 1) ** 3 * 0.9,
        lift=(shot.value(8, 0, 1) < 0.08) * shot.value(9, 0.6, 1.0),
        spread=shot.value(10, 0.05, 0.2) + 0.03 * np.maximum(who["limb"] - 1, 0) * 5,
    )


def project(
    tubes: dict[str, np.ndarray], shot: Shot, infrared: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Projects tubes into their crops and sorts them from far to near.

    Crop coordinates: x to the right and y down, both in parts of the crop's height.

    Args:
      tubes: world tubes of `figure.build`, [N, T, ...].
      shot: circumstances of the N images, all of one modality.
      infrared: colors are the fourth number of each color instead of the first three.

    Returns:
      rows: float32 [N, T, figure.WIDTH], fields in the order of `figure.FIELDS`.
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
        return np.stack([x * np.cos(roll) - y * np.sin(roll),
                         x * np.sin(roll) + y * np.cos(roll)], -1), z, near  # fmt: skip

    start, z0, near0 = view(tubes["start"])
    end, z1, near1 = view(tubes["end"])
    facing = np.cos(tubes["yaw"])[..., None], np.sin(tubes["yaw"])[..., None]
    near = 0.5 * (near0 + near1)
    radius = np.hypot(tubes["lateral"] * facing[0], tubes["depth"] * facing[1]) * near[..., None]
    cap = tubes["cap"] * near[..., None]
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

    color = tubes["color"]
    color = np.repeat(color[..., 3:4], 3, -1) if infrared else color[..., :3]
    color = np.concatenate([color, np.zeros_like(color[..., :1])], -1)
    values = {
        "start": a, "axis": axis, "length": np.maximum(length, 1e-4), "radius": radius,
        "cap": cap, "azimuth": -tubes["yaw"], "v": tubes["v"], "alpha": tubes["alpha"],
        "seam": tubes["seam"],
        "fold": np.stack(
            [tubes["fold"], np.broadcast_to(shot.value(19, 0, 9)[:, None], length.shape)], -1
        ),
        "along": tubes["along"], "around": tubes["around"], "patch": tubes["patch"],
        "color": color,
    }  # fmt: skip
    rows = np.concatenate(
        [values[name].reshape(n, length.shape[1], size) for name, size in FIELDS], axis=-1
    )
    order = np.argsort(0.5 * (z0 + z1) + tubes["bias"], axis=1, kind="stable")
    rows = np.take_along_axis(rows, order[..., None], axis=1).astype(np.float32)
    feet = top + part
    return rows, {"scale": scale, "feet": feet, "aspect": aspect, "center": center}
