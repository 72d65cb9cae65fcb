"""The dressed figure: its skeleton in a moment of its walk, and tubes with texture layers.

Joints [N, 3] come from body lengths and gait angles. Axes of the body: x to the person's left, y
up, z forward; 1 is the person's stature and y = 0 the ground. `turn` takes body points to the
world, where the camera looks along -z.

A tube runs along a segment; its half width follows a cubic Bezier profile, its section is
an ellipse (lateral and depth radius), its ends are capped by half ellipsoids. A texture
coordinate v runs along it and the azimuth runs around it. Layers, each over the last:
base, A (bands along v), B (bands around), C (a patch in both).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vireid_jax.synthetic.identity import BAGS, BOTTOMS, HAIRS, HATS, NO_PATCH, OFF

People = dict[str, np.ndarray]  # rows of `identity.draw_people`, [N] or [N, k]
Joints = dict[str, np.ndarray]  # [N, 3]
Value = np.ndarray | float  # broadcast to [N]

# --- Skeleton -------------------------------------------------------------------------------

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


def _point(*columns: Value) -> np.ndarray:
    """[N, 3], or as many columns as there are."""
    return np.stack(np.broadcast_arrays(*columns), axis=1)


def _limb(start: np.ndarray, length: np.ndarray, swing: np.ndarray, side: Value) -> np.ndarray:
    """End of a limb [N, 3] hanging from `start`, swung forward and out to the side."""
    down = -np.cos(swing) * np.cos(side)
    return start + length[:, None] * _point(np.sin(side), down, np.sin(swing) * np.cos(side))


def joints(who: People, gait: Gait) -> Joints:
    """Joint positions in body axes; names with suffix _l and _r but for head, chest, pelvis."""
    leg = who["leg"] - ANKLE
    stride = who["stride"] * gait.effort
    out: Joints = {}
    ankles = []
    for side, suffix, shift in ((1.0, "_l", 0.0), (-1.0, "_r", np.pi)):
        phase = gait.phase + shift
        swing = stride * np.sin(phase) + 0.05
        # The knee bends while the leg swings forward (cos > 0) and is nearly straight else.
        bend = 0.06 + gait.effort * 0.85 * np.maximum(np.cos(phase - 0.3), 0.0) ** 2
        hip = _point(side * who["hip"] * 0.5, 0, 0)
        knee = _limb(hip, leg * 0.5, swing, side * 0.02)
        ankle = _limb(knee, leg * 0.5, swing - bend, side * 0.01)
        tilt = 0.35 * (swing - bend)
        toe = ankle + 0.1 * _point(0.18 * side, -0.22 + tilt, 1.0)
        limb = {"hip": hip, "knee": knee, "ankle": ankle, "toe": toe}
        out |= {name + suffix: place for name, place in limb.items()}
        ankles.append(ankle[:, 1])
    # The lower foot stands on the ground.
    rise = ANKLE - np.minimum(*ankles)
    for name in out:
        out[name] = out[name] + _point(0, rise, 0)

    lean = gait.lean + who["stoop"]
    spine = 1.0 - who["leg"] - who["head"] - 0.035
    out["pelvis"] = _point(0, rise, 0)
    up = _point(0, np.cos(lean), np.sin(lean))
    out["chest"] = out["pelvis"] + (0.94 * spine)[:, None] * up
    nod = _point(0, 1, 0.25 + np.sin(lean))
    out["head"] = out["chest"] + (0.035 + 0.06 * spine + 0.5 * who["head"])[:, None] * nod * 0.97

    arm = 0.165 + 0.06 * (1.0 - who["leg"])
    for side, suffix, shift in ((1.0, "_l", np.pi), (-1.0, "_r", 0.0)):
        phase = gait.phase + shift
        swing = gait.effort * who["swing"] * np.sin(phase) - 0.04 + 0.3 * lean
        flex = 0.18 + gait.effort * 0.3 * (1 + np.sin(phase)) / 2
        if side > 0:
            swing, flex = swing + 0.3 * gait.lift, flex + 1.9 * gait.lift
        shoulder = out["chest"] + _point(side * (who["shoulder"] - 0.014), -0.026, 0)
        elbow = _limb(shoulder, arm, swing, side * gait.spread)
        wrist = _limb(elbow, arm * 0.86, swing + flex, side * gait.spread * 0.3)
        hand = wrist + 0.22 * (wrist - elbow)
        limb = {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hand": hand}
        out |= {name + suffix: place for name, place in limb.items()}
    return out


# --- Clothes --------------------------------------------------------------------------------

# Rows of a projected tube, in the order in which `render` reads them.
FIELDS = (
    ("start", 2), ("axis", 2), ("length", 1), ("radius", 4), ("cap", 2), ("azimuth", 1),
    ("v", 2), ("alpha", 1), ("seam", 1), ("fold", 2), ("along", 4), ("around", 4), ("patch", 5),
    ("color", 16),
)  # fmt: skip
WIDTH = sum(n for _, n in FIELDS)
TUBES = 21


class Builder:
    """Collects the tubes of N figures; every quantity is broadcast to [N, ...]."""

    def __init__(self, yaw: np.ndarray) -> None:
        self.yaw = yaw
        self.rows: dict[str, list[np.ndarray]] = {}

    def add(
        self, start: np.ndarray, end: np.ndarray, lateral: Sequence[Value], depth: Sequence[Value],
        color: np.ndarray, *, cap: Sequence[Value] = (0.01, 0.01), v: Sequence[Value] = (0.0, 1.0),
        along: Any = OFF, along_color: np.ndarray | None = None,
        around: Any = OFF, around_color: np.ndarray | None = None,
        patch: Any = NO_PATCH, patch_color: np.ndarray | None = None,
        alpha: Value = 1.0, bias: Value = 0.0, yaw: Value = 0.0, fold: Value = 0.0,
        seam: Value = 0.3,
    ) -> None:  # fmt: skip
        """Adds a tube from start to end [N, 3] (body axes) with 4-knot radii.

        `color` and its layers are [4] or [N, 4], those that are None as the layer below; `bias`
        moves it in the drawing order (positive: nearer to the camera); `yaw` turns its section
        against the body's.
        """
        n = len(self.yaw)
        colors = [color]
        for layer in (along_color, around_color, patch_color):
            colors.append(colors[-1] if layer is None else layer)
        values: dict[str, Any] = {"start": start, "end": end}
        scalars = {"alpha": alpha, "bias": bias, "yaw": self.yaw + yaw, "fold": fold, "seam": seam}
        for key, scalar in scalars.items():
            values[key] = np.broadcast_to(scalar, (n,))
        for key, row in (("along", along), ("around", around), ("patch", patch)):
            values[key] = np.broadcast_to(row, (n, np.shape(row)[-1]))
        for key, knots in (("lateral", lateral), ("depth", depth), ("cap", cap), ("v", v)):
            values[key] = np.stack([np.broadcast_to(x, (n,)) for x in knots], 1)
        values["color"] = np.stack([np.broadcast_to(c, (n, 4)) for c in colors], 1)
        for key, value in values.items():
            self.rows.setdefault(key, []).append(np.asarray(value, np.float64))


def _pick(mask: np.ndarray, yes: Any, no: Any) -> np.ndarray:
    return np.where(mask[:, None], yes, no)


def _head(b: Builder, who: People, at: Joints, gait: Gait) -> None:
    head, volume = who["head"], who["hair_volume"]
    hair, hat = who["hair"], who["hat"]
    bald = hair == HAIRS.index("bald")
    hood, cap_, beanie, brim = (hat == HATS.index(x) for x in ("hood", "cap", "beanie", "brim"))
    hatted = cap_ | beanie | brim
    hair_color = _pick(bald, who["skin"], who["hair_color"])
    shell = _pick(hood, who["top_color"], hair_color)
    size = head * np.where(hood, 1.18, np.where(hatted, 1.04, volume))
    bottom = at["head"] - 0.16 * _point(0, head, -0.3 * head)
    top = at["head"] + 0.14 * _point(0, head, 0)
    width = [0.31 * size, 0.37 * size, 0.39 * size, 0.37 * size]
    deep = [0.36 * size, 0.44 * size, 0.46 * size, 0.43 * size]
    # v: 0 chin, 1 crown. The face is a patch in front, from the chin up to the hairline.
    line = np.where(hatted, 0.56, np.where(hood, 0.7, 0.74))
    wide = np.where(hood, 0.8, np.where(hair >= HAIRS.index("bob"), 1.0, 1.25))
    long_hair = (hair == HAIRS.index("bob")) | (hair == HAIRS.index("long"))
    wide = np.where(long_hair & ~hood, 0.85, wide)
    half = (line + 0.4) / 2
    face = _point(line - half, half, 0.0, wide, ~bald | hatted | hood)
    b.add(
        bottom, top, width, deep, shell,
        cap=(0.34 * size, 0.36 * size), v=(0.34, 0.64),
        along=_point(1.6, 1.6 - line, 99.0, hatted), along_color=who["hat_color"],
        patch=face, patch_color=who["skin"], bias=0.05, yaw=gait.head_yaw,
    )  # fmt: skip
    # Loose hair, a tail or a bun behind the head: over the back, never over the chest.
    tail, bun = hair == HAIRS.index("ponytail"), hair == HAIRS.index("bun")
    length = np.where(hair == HAIRS.index("long"), who["hair_length"], np.where(tail, 0.15, 0.06))
    thick = np.where(long_hair, 0.40, np.where(tail, 0.14, 0.22)) * head * volume
    back = np.where(long_hair, 0.12, np.where(tail, 0.5, 0.45)) * head
    up = np.where(bun, 0.35, np.where(tail, 0.15, 0.1)) * head
    root = at["head"] + _point(0, up, -back)
    end = root - _point(0, np.where(bun, 0.01, length + up), 0.25 * back)
    b.add(
        root, end, [thick, thick, thick * 1.05, thick * 0.8], [thick * 0.8] * 4,
        who["hair_color"], seam=0.1, cap=(thick * 0.6, thick * 0.35),
        bias=0.02 - 0.08 * np.cos(b.yaw),
        alpha=(long_hair | tail | bun) & ~hood,
    )  # fmt: skip
    # A cap's peak points forward; a brimmed hat has it all around.
    rim = at["head"] + _point(0, 0.12 * head, 0)
    look = turn(_point(0, 0, head), gait.head_yaw)
    reach = np.where(brim, 0.02, 0.72)[:, None]
    b.add(
        rim, rim + reach * look, [np.where(brim, 0.72, 0.34) * head] * 4,
        [np.where(brim, 0.72, 0.06) * head] * 4, who["hat_color"],
        cap=(0.06 * head, 0.06 * head), alpha=cap_ | brim, bias=0.1,
    )  # fmt: skip
    neck = 0.034 * who["limb"]
    b.add(
        at["chest"], at["head"], [neck * 1.3, neck, neck, neck], [neck * 1.2, neck, neck, neck],
        _pick(hood | (who["bulk"] > 0.02), who["top_color"], who["skin"]), bias=-0.02,
    )  # fmt: skip


def _trunk(b: Builder, who: People, at: Joints) -> None:
    bulk = who["bulk"]
    shoulder, chest, waist, hip = (who[k] + bulk for k in ("shoulder", "chest", "waist", "hip"))
    belly = who["belly"] + bulk
    opened = who["open"][:, None] > 0
    patch = np.where(opened, _point(0.5, 2.0, 0.0, who["open_half"], 1.0), who["top_patch"])
    top: dict[str, Any] = {
        "along": who["top_along"], "along_color": who["top_second"],
        "around": who["top_around"], "around_color": who["top_second"],
        "patch": patch, "patch_color": np.where(opened, who["inner"], who["top_second"]),
        "fold": 0.13,
    }  # fmt: skip
    down = at["pelvis"] - np.array([0.0, 0.035, 0.0])
    # The Bezier knots overshoot the profile they draw: the waist sits at the second knot.
    b.add(
        down, at["chest"] - np.array([0.0, 0.02, 0.0]),
        [hip, 1.3 * waist - 0.3 * hip, chest * 1.12, shoulder * 0.84],
        [belly * 1.1, belly * 1.15, 0.066 + bulk, 0.055 + bulk],
        who["top_color"], cap=(0.012, 0.052), bias=0.03, **top,
    )  # fmt: skip
    # The lower garment or the skirts of a coat, from the waist to the hem.
    coat = who["coat_hem"] > 0
    skirt = who["skirt_hem"] > 0
    hem = np.maximum(who["coat_hem"], who["skirt_hem"])
    drop = np.where(hem > 0, hem, 0.1) * (who["leg"] - 0.045)
    knees = 0.5 * (at["knee_l"] + at["knee_r"]) - at["pelvis"]
    end = at["pelvis"] - _point(0, drop, -0.25 * knees[:, 2])
    stretch = 0.35 * hem * np.abs(at["ankle_l"][:, 2] - at["ankle_r"][:, 2])
    flare = np.where(hem > 0, np.where(coat, 1.05 + 0.25 * (who["flare"] - 1), who["flare"]), 0.96)
    wide = [hip * 0.98, hip * 1.06, hip * (1 + flare) / 2, hip * flare]
    deep = [belly, belly * 1.25, belly * (1 + flare) / 2 + stretch, belly * flare + stretch]
    v = np.where(coat, 0.0, 0.02), np.where(coat, -0.6 * hem, hem)
    tunic = coat | (who["bottom"] == BOTTOMS.index("dress"))
    b.add(
        at["pelvis"] + np.array([0.0, 0.03, 0.0]), end, wide, deep,
        _pick(coat, who["top_color"], who["bottom_color"]), cap=(0.01, 0.006), v=v,
        along=_pick(tunic, who["top_along"], _pick(skirt, OFF, who["leg_along"])),
        along_color=_pick(tunic, who["top_second"], who["bottom_second"]),
        around=_pick(tunic, who["top_around"], _pick(skirt, OFF, who["leg_around"])),
        around_color=_pick(tunic, who["top_second"], who["bottom_second"]),
        patch=_pick(coat & opened[:, 0], patch, NO_PATCH),
        patch_color=who["inner"], bias=0.02, fold=0.15,
    )  # fmt: skip


def _limbs(b: Builder, who: People, at: Joints) -> None:
    limb, bulk = who["limb"], who["bulk"]
    sleeve = np.where(who["sleeve_second"][:, None] > 0, who["top_second"], who["top_color"])
    arm: dict[str, Any] = {
        "along": who["top_along"] * _point(1.0, 1.0, 1.0, 1 - who["sleeve_plain"]),
        "along_color": who["top_second"], "fold": 0.08,
        "patch": _point(who["sleeve"] + 9.0, 9.0, 0.0, 9.0, 1.0),
    }  # fmt: skip
    covered = np.clip(who["sleeve"] * 4, 0, 1) * bulk
    forearm = np.clip(who["sleeve"] * 2 - 1, 0, 1) * bulk * 0.8
    hem, wide = who["leg_hem"], who["wide"]
    skirted = (who["skirt_hem"] > 0)[:, None]
    stocking = np.where(who["bare_leg"][:, None] > 0, who["skin"], who["tights"])
    trouser = np.where(skirted, stocking, who["bottom_color"])
    cut = _point(hem + 9.0, 9.0, 0.0, 9.0, (hem < 0.9) & ~skirted[:, 0])
    boot = _point(who["boot"] + 9.0, 9.0, 0.0, 9.0, 1.0)
    leg: dict[str, Any] = {
        "along": np.where(skirted, OFF, who["leg_along"]), "along_color": who["bottom_second"],
        "around": np.where(skirted, OFF, who["leg_around"]), "around_color": who["bottom_second"],
    }  # fmt: skip
    cloth = np.where(skirted[:, 0], 0.88, wide)
    long_ = np.where((hem < 0.9) | skirted[:, 0], 0.95, wide)
    # Legs go behind a long hem, which their forward swing must not pierce.
    behind = np.where(np.maximum(who["coat_hem"], who["skirt_hem"]) > 0, -0.45, -0.12)
    for side in ("_l", "_r"):
        thigh, calf, ankle = 0.052 * limb, 0.034 * limb, 0.022 * limb
        b.add(
            at["hip" + side], at["knee" + side],
            [thigh * 1.1 * cloth, thigh * 1.1 * cloth, thigh * 0.8 * cloth, calf * 1.1 * cloth],
            [thigh * 1.2 * cloth, thigh * 1.2 * cloth, thigh * 0.85 * cloth, calf * 1.15 * cloth],
            trouser, cap=(0.02, 0.02), v=(0.0, 0.5), patch=cut, patch_color=who["skin"],
            bias=behind, fold=0.13, **leg,
        )  # fmt: skip
        shin = [calf * 1.1 * cloth, calf * 1.3 * long_, calf * 0.95 * long_]
        b.add(
            at["knee" + side], at["ankle" + side],
            [*shin, ankle * 1.2 * long_], [*shin, ankle * 1.3 * long_],
            trouser, cap=(0.02, 0.006), v=(0.5, 1.0),
            patch=np.where((who["boot"] < 1)[:, None] & (hem > 0.9)[:, None], boot, cut),
            patch_color=_pick((who["boot"] < 1) & (hem > 0.9), who["shoe_color"], who["skin"]),
            bias=behind + 0.01, fold=0.12, seam=0.06, **leg,
        )  # fmt: skip
        heel = at["ankle" + side] - np.array([0.0, 0.02, 0.012])
        b.add(
            heel, at["toe" + side] - np.array([0.0, 0.004, 0.0]),
            [0.025, 0.027, 0.026, 0.021], [0.022] * 4, who["shoe_color"],
            cap=(0.015, 0.018), bias=behind + 0.005,
        )  # fmt: skip
    for side in ("_l", "_r"):
        upper, fore = 0.031 * limb + covered, 0.024 * limb + forearm
        b.add(
            at["shoulder" + side], at["elbow" + side],
            [upper * 1.1, upper * 1.12, upper * 0.9, upper * 0.86], [upper] * 4,
            sleeve, cap=(0.03, 0.015), v=(0.0, 0.5), patch_color=who["skin"],
            bias=0.02, **arm,
        )  # fmt: skip
        b.add(
            at["elbow" + side], at["wrist" + side],
            [upper * 0.86, fore * 1.1, fore, 0.019 + forearm], [upper * 0.86, fore, fore, fore],
            sleeve, cap=(0.015, 0.008), v=(0.5, 1.0), patch_color=who["skin"],
            bias=0.03, seam=0.06, **arm,
        )  # fmt: skip
        b.add(
            at["wrist" + side], at["hand" + side], [0.018, 0.021, 0.02, 0.014], [0.018] * 4,
            who["skin"], cap=(0.008, 0.012), bias=0.028,
        )  # fmt: skip


def _bags(b: Builder, who: People, at: Joints) -> None:
    side, size = who["bag_side"], who["bag_size"]
    pack, cross, hand = (who["bag"] == BAGS.index(x) for x in ("backpack", "crossbody", "handbag"))
    bulk = who["bulk"]
    behind = who["belly"] + bulk + 0.045
    grip = _pick(side > 0, at["hand_l"], at["hand_r"])
    hip = at["pelvis"] + _point(side * (who["hip"] + bulk + 0.02), 0.02, 0)
    center = _pick(cross, hip, at["chest"] + _point(0, -0.13, -behind))
    center = _pick(hand, grip - np.array([0, 0.055, 0]), center)
    tall = np.where(pack, 0.105, np.where(cross, 0.055, 0.05)) * size
    wide = np.where(pack, 0.082, np.where(cross, 0.035, 0.03)) * size
    deep = np.where(pack, 0.05, 0.075) * size
    half = _point(0, tall, 0)
    b.add(
        center - half, center + half, [wide, wide * 1.03, wide * 1.03, wide * 0.9], [deep] * 4,
        who["bag_color"], cap=(0.01, np.where(pack, 0.025, 0.01)), along=who["bag_band"],
        along_color=who["bag_second"], alpha=pack | cross | hand, bias=0.04, fold=0.06,
    )  # fmt: skip
    # Straps: two in front for a backpack, front and back diagonals for a cross-body bag.
    front = 0.075 + bulk
    reach = who["shoulder"] * 0.62
    for sign in (1.0, -1.0):
        over = np.where(pack, sign * reach, -side * reach)
        under = np.where(pack, sign * reach * 1.15, side * (who["hip"] + bulk))
        z = np.where(pack, front, sign * front)
        low = np.where(pack, -0.17, -0.27)
        start = at["chest"] + _point(over, 0.01, z * 0.75)
        end = at["chest"] + _point(under, low, z)
        start = _pick(hand, grip - np.array([0, 0.01, 0]), start)
        end = _pick(hand, center, end)
        thin = np.where(hand, 0.012, np.where(pack, 0.014, 0.01))
        b.add(
            start, end, [thin] * 4, [thin] * 4, who["strap_color"],
            alpha=pack | cross | hand, bias=np.where(hand, 0.03, 0.02),
        )  # fmt: skip


def build(who: People, gait: Gait) -> dict[str, np.ndarray]:
    """The tubes of N dressed figures in world axes, name -> [N, tubes, ...], not yet projected."""
    at = joints(who, gait)
    b = Builder(gait.yaw)
    _head(b, who, at, gait)
    _trunk(b, who, at)
    _limbs(b, who, at)
    _bags(b, who, at)
    rows = {key: np.stack(tubes, axis=1) for key, tubes in b.rows.items()}
    n, tubes = rows["alpha"].shape
    spin = np.repeat(gait.yaw, tubes)
    for key in ("start", "end"):
        rows[key] = turn(rows[key].reshape(-1, 3), spin).reshape(n, tubes, 3)
    return rows
