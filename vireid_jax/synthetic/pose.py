"""The skeleton in a moment of its walk: joints [N, 3] from body lengths and gait angles.

Axes of the body: x to the person's left, y up, z forward; 1 is the person's stature and
y = 0 the ground. `turn` takes body points to the world, where the camera looks along -z.
"""

import dataclasses

import numpy as np

ANKLE = 0.045


@dataclasses.dataclass(frozen=True)
class Gait:
    """The moment of the walk; every field is float [N], angles in radians."""

    yaw: np.ndarray  # heading; 0 walks towards the camera
    phase: np.ndarray  # of the walk, 0 .. 2 pi
    effort: np.ndarray  # 0 stands still, 1 full stride
    lean: np.ndarray
    head_yaw: np.ndarray  # relative to the body
    lift: np.ndarray  # 1 where the left forearm is raised (a phone, a strap), else 0
    spread: np.ndarray  # of the arms from the body


def turn(points: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Rotates body points [N, 3] by yaw [N] about the vertical axis."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    return np.stack([x * cos + z * sin, y, z * cos - x * sin], axis=1)


def _point(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y, z), axis=1)


def _limb(start: np.ndarray, length: np.ndarray, swing: np.ndarray, side: np.ndarray) -> np.ndarray:
    """End of a limb [N, 3] hanging from `start`, swung forward and out to the side."""
    down = -np.cos(swing) * np.cos(side)
    return start + length[:, None] * _point(np.sin(side), down, np.sin(swing) * np.cos(side))


def joints(who: dict[str, np.ndarray], gait: Gait) -> dict[str, np.ndarray]:
    """Joint positions in body axes.

    Args:
      who: rows of `identity.draw_people`, float [N] or [N, k].
      gait: float [N] each.

    Returns:
      name -> [N, 3]: crown, head, neck, chest, waist, pelvis and, with suffix _l and _r,
      shoulder, elbow, wrist, hand, hip, knee, ankle, toe.
    """
    zero = np.zeros_like(gait.yaw)
    leg = who["leg"] - ANKLE
    stride = who["stride"] * gait.effort
    out: dict[str, np.ndarray] = {}
    ankles = []
    for side, suffix, shift in ((1.0, "_l", 0.0), (-1.0, "_r", np.pi)):
        phase = gait.phase + shift
        swing = stride * np.sin(phase) + 0.05
        # The knee bends while the leg swings forward (cos > 0) and is nearly straight else.
        bend = 0.06 + gait.effort * 0.85 * np.maximum(np.cos(phase - 0.3), 0.0) ** 2
        hip = _point(side * who["hip"] * 0.5, zero, zero)
        knee = _limb(hip, leg * 0.5, swing, side * 0.02 + zero)
        ankle = _limb(knee, leg * 0.5, swing - bend, side * 0.01 + zero)
        tilt = 0.35 * (swing - bend)
        toe = ankle + 0.1 * _point(0.18 * side + zero, -0.22 + tilt, 1.0 + zero)
        out.update({"hip" + suffix: hip, "knee" + suffix: knee})
        out.update({"ankle" + suffix: ankle, "toe" + suffix: toe})
        ankles.append(ankle[:, 1])
    # The lower foot stands on the ground.
    rise = ANKLE - np.minimum(*ankles)
    for name in out:
        out[name] = out[name] + _point(zero, rise, zero)

    lean = gait.lean + who["stoop"]
    spine = 1.0 - who["leg"] - who["head"] - 0.035
    up = _point(zero, np.cos(lean), np.sin(lean))
    pelvis = _point(zero, rise, zero)
    out["pelvis"] = pelvis
    out["waist"] = pelvis + 0.36 * spine[:, None] * up
    out["chest"] = pelvis + (0.94 * spine)[:, None] * up
    out["neck"] = pelvis + (1.04 * spine)[:, None] * up
    nod = _point(zero, np.ones_like(zero), 0.25 + np.sin(lean))
    out["head"] = out["chest"] + (0.035 + 0.06 * spine + 0.5 * who["head"])[:, None] * nod * 0.97
    out["crown"] = out["head"] + _point(zero, 0.5 * who["head"], zero)

    arm = 0.165 + 0.06 * (1.0 - who["leg"])
    for side, suffix, shift in ((1.0, "_l", np.pi), (-1.0, "_r", 0.0)):
        phase = gait.phase + shift
        swing = gait.effort * who["swing"] * np.sin(phase) - 0.04 + 0.3 * lean
        flex = 0.18 + gait.effort * 0.3 * (1 + np.sin(phase)) / 2
        if side > 0:
            swing, flex = swing + 0.3 * gait.lift, flex + 1.9 * gait.lift
        shoulder = out["chest"] + _point(side * (who["shoulder"] - 0.014), -0.026 + zero, zero)
        elbow = _limb(shoulder, arm, swing, side * gait.spread)
        wrist = _limb(elbow, arm * 0.86, swing + flex, side * gait.spread * 0.3)
        out["shoulder" + suffix], out["elbow" + suffix] = shoulder, elbow
        out["wrist" + suffix] = wrist
        out["hand" + suffix] = wrist + 0.22 * (wrist - elbow)
    return out
