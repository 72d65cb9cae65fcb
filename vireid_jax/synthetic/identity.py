"""Who a person is: body, hair, clothes and belongings, drawn from (seed, person) alone.

Every colored thing is a vector [4]: linear red, green, blue and near-infrared reflectance.
The fourth number is drawn by material, independently of the dye, as dyes are nearly
transparent in the near infrared: black cotton is bright there, many dark synthetics are not.
Lengths are in meters for a person 1 m tall ("per stature") unless a name says otherwise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

_PERSON = 1  # stream tag: keeps these draws apart from those of images and places

# sRGB clothes colors with their frequency: streets are mostly dark and grey.
_DYES: tuple[tuple[tuple[int, int, int], float], ...] = (
    ((26, 26, 29), 3.0), ((62, 64, 70), 2.0), ((128, 130, 134), 2.0), ((232, 231, 226), 3.0),
    ((28, 38, 76), 2.2), ((52, 88, 152), 1.6), ((110, 160, 214), 1.2), ((152, 28, 36), 1.6),
    ((214, 66, 54), 1.2), ((232, 140, 44), 0.9), ((238, 206, 74), 0.9), ((46, 92, 58), 1.2),
    ((118, 164, 74), 0.8), ((92, 66, 48), 1.2), ((190, 164, 122), 1.5), ((98, 50, 118), 0.8),
    ((222, 130, 164), 1.0), ((50, 140, 146), 0.9), ((112, 34, 62), 0.8), ((150, 158, 112), 0.7),
)  # fmt: skip
_DYE_WEIGHTS = np.array([weight for _, weight in _DYES])
_DYE_CHROMA = np.array([(max(color) - min(color)) / 255 for color, _ in _DYES])
_SKINS = ((244, 208, 186), (228, 184, 152), (202, 154, 116), (154, 106, 74), (98, 66, 48))
_HAIRS = ((24, 20, 18), (44, 32, 26), (84, 58, 40), (140, 96, 56), (196, 162, 104), (150, 148, 146))

TOPS = ("tank", "tshirt", "shirt", "hoodie", "jacket", "coat")
BOTTOMS = ("trousers", "wide", "shorts", "skirt", "long skirt", "dress")
HAIRS = ("bald", "short", "bob", "long", "ponytail", "bun")
HATS = ("none", "cap", "beanie", "brim", "hood")
BAGS = ("none", "backpack", "crossbody", "handbag")
PRINTS = ("plain", "stripes", "upright", "checks", "block", "yoke", "band", "print", "sides")
# Texture layers that show nothing: bands, and a patch.
OFF = (0.0, 1.0, 99.0, 0.0)
NO_PATCH = (0.0, 1.0, 0.0, 1.0, 0.0)


def linear(srgb: Sequence[float] | np.ndarray) -> np.ndarray:
    """Linear reflectance of an sRGB color 0..255."""
    value = np.asarray(srgb, np.float64) / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _choice(rng: np.random.Generator, weights: Sequence[float] | np.ndarray) -> int:
    # Generator.choice would do, at ten times the cost.
    total = np.cumsum(np.asarray(weights, np.float64))
    return min(int(np.searchsorted(total, rng.random() * total[-1], "right")), len(weights) - 1)


def _dye(rng: np.random.Generator, dull: float = 0.0) -> np.ndarray:
    """A dye's linear color; `dull` above 0 makes vivid ones rarer."""
    row = _choice(rng, _DYE_WEIGHTS * np.exp(-dull * _DYE_CHROMA))
    return linear(np.clip(np.asarray(_DYES[row][0]) + rng.normal(0, 9, 3), 8, 248))


def _cloth(rng: np.random.Generator, dull: float = 0.0) -> np.ndarray:
    """A dyed fabric: most are bright in the near infrared, whatever their dye."""
    color = _dye(rng, dull)
    ranges = ((0.70, 0.92), (0.24, 0.42), (0.05, 0.14))
    return np.append(color, rng.uniform(*ranges[_choice(rng, (0.42, 0.26, 0.32))]))


def _contrast(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """A second color that stands out from `base`; in infrared it does so by a drawn factor."""
    light = base[:3].mean()
    for _ in range(24):
        color = _dye(rng)
        if abs(np.sqrt(color.mean()) - np.sqrt(light)) > 0.35:
            break
    sign = np.sign(color.mean() - light) * (1.0 if rng.random() < 0.92 else -1.0)
    factor = 0.0 if rng.random() < 0.06 else rng.uniform(0.7, 1.0)
    # In the infrared a print brightens or darkens its own fabric, as far as there is room.
    room = (0.88 - base[3]) if sign > 0 else (base[3] - 0.05)
    if room < 0.35:
        sign, room = -sign, (base[3] - 0.05) if sign > 0 else (0.88 - base[3])
    return np.append(color, base[3] + sign * factor * min(room, 0.6))


def _pattern(rng: np.random.Generator, kind: str) -> dict[str, tuple[float, ...]]:
    """Texture layers of a top. v is 0 at the hip and 1 at the shoulder, azimuth 0 is the front.

    A band layer is (center, half width, period, weight).
    """
    along, around, patch = OFF, OFF, NO_PATCH
    if kind == "stripes":
        period = rng.uniform(0.2, 0.5)
        along = (rng.random(), period * rng.uniform(0.2, 0.32), period, 1.0)
    elif kind == "upright":
        period = rng.uniform(0.5, 0.8)
        around = (rng.random(), period * 0.26, period, 1.0)
    elif kind == "checks":
        period = rng.uniform(0.3, 0.5)
        along = (rng.random(), period * 0.22, period, 0.65)
        around = (rng.random(), period * 0.42, period * 1.8, 0.65)
    elif kind == "block":
        along = (0.0, rng.uniform(0.3, 0.55), 99.0, 1.0)
    elif kind == "yoke":
        along = (1.2, rng.uniform(0.42, 0.62), 99.0, 1.0)
    elif kind == "band":
        along = (rng.uniform(0.35, 0.72), rng.uniform(0.08, 0.15), 99.0, 1.0)
    elif kind == "print":
        rng.random()  # drawn and not used: the draws after it must not move
        patch = (rng.uniform(0.5, 0.68), rng.uniform(0.14, 0.24), 0.0, rng.uniform(0.4, 0.75), 1.0)
    elif kind == "sides":
        around = (np.pi / 2, rng.uniform(0.4, 0.7), np.pi, 1.0)
    return {"top_along": along, "top_around": around, "top_patch": patch}


def draw_person(seed: int, person: int) -> dict[str, Any]:
    """All that stays the same between two images of `person`, by name.

    Values are floats, [k] of floats, and codes (rows of TOPS, HAIRS, ...).
    """
    rng = np.random.default_rng([seed, _PERSON, person])
    who: dict[str, Any] = {}
    # Body: lean to heavy, and narrow hips to narrow shoulders, both continuous.
    build, frame = rng.uniform(-1.6, 2.0), rng.uniform(-1.3, 1.3)
    who["shoulder"] = 0.112 + 0.012 * frame + 0.005 * build + rng.normal(0, 0.003)
    who["chest"] = 0.094 + 0.006 * frame + 0.010 * build
    who["waist"] = 0.080 + 0.004 * frame + 0.014 * build
    who["hip"] = 0.098 - 0.007 * frame + 0.010 * build
    who["belly"] = 0.066 + 0.014 * build
    who["limb"] = 1.0 + 0.14 * build
    who["leg"] = rng.uniform(0.455, 0.52)
    who["head"] = rng.uniform(0.125, 0.145)
    who["stoop"] = abs(rng.normal(0, 0.05))
    who["stride"] = rng.uniform(0.3, 0.52)
    who["swing"] = rng.uniform(0.15, 0.5)

    who["skin"] = np.append(linear(_SKINS[rng.integers(5)]), rng.uniform(0.5, 0.62))
    who["hair_color"] = np.append(linear(_HAIRS[rng.integers(6)]), rng.uniform(0.12, 0.55))
    hair = HAIRS[_choice(rng, (0.1, 0.3, 0.16, 0.22, 0.11, 0.11))]
    who["hair"] = HAIRS.index(hair)
    who["hair_volume"] = rng.uniform(1.0, 1.3) if hair != "bald" else 1.0
    who["hair_length"] = rng.uniform(0.10, 0.28)
    who["hat"] = _choice(rng, (0.52, 0.14, 0.12, 0.12, 0.1))
    who["hat_color"] = _cloth(rng)

    top = TOPS[_choice(rng, (0.08, 0.24, 0.25, 0.13, 0.16, 0.14))]
    who["top_color"] = _cloth(rng)
    who["top_second"] = _contrast(rng, who["top_color"])
    kind = PRINTS[_choice(rng, (0.12, 0.18, 0.07, 0.09, 0.13, 0.13, 0.1, 0.11, 0.07))]
    who.update(_pattern(rng, kind))
    who["sleeve_plain"] = float(rng.random() < 0.6 or kind in ("block", "print", "sides"))
    who["sleeve_second"] = float(rng.random() < 0.28)  # raglan: sleeves in the other color
    # Sleeve ends at this part of the arm: 0 shoulder, 0.5 elbow, 1 wrist.
    sleeves = {"tank": (-0.2, 0.05), "tshirt": (0.28, 0.48), "shirt": (0.6, 1.1)}
    who["sleeve"] = rng.uniform(*sleeves.get(top, (1.1, 1.1)))
    bulk = {"tank": 0.0, "tshirt": 0.004, "shirt": 0.006, "hoodie": 0.014}.get(top, 0.018)
    who["bulk"] = bulk + rng.uniform(0, 0.006)
    who["open"] = float(top in ("jacket", "coat") and rng.random() < 0.5)
    who["open_half"] = rng.uniform(0.3, 0.55)
    who["inner"] = _contrast(rng, who["top_color"])

    bottom = BOTTOMS[_choice(rng, (0.34, 0.13, 0.17, 0.14, 0.12, 0.1))]
    who["bottom"] = BOTTOMS.index(bottom)
    who["bottom_color"] = who["top_color"] if bottom == "dress" else _cloth(rng, 2.5)
    who["bottom_second"] = _contrast(rng, who["bottom_color"])
    who["wide"] = rng.uniform(1.4, 1.8) if bottom == "wide" else rng.uniform(1.0, 1.18)
    # Hems as a part of the leg: 0 hip, 0.5 knee, 1 ankle.
    who["leg_hem"] = rng.uniform(0.32, 0.6) if bottom == "shorts" else rng.uniform(0.95, 1.1)
    skirt = {"skirt": (0.3, 0.48), "long skirt": (0.62, 0.9), "dress": (0.36, 0.75)}
    who["skirt_hem"] = rng.uniform(*skirt[bottom]) if bottom in skirt else 0.0
    who["flare"] = rng.uniform(1.0, 1.5 if bottom != "long skirt" else 1.25)
    who["coat_hem"] = rng.uniform(0.3, 0.8) if top == "coat" else 0.0
    who["bare_leg"] = float(bottom in ("skirt", "dress") and rng.random() < 0.6)
    who["tights"] = _cloth(rng, 3.0)
    legs = _choice(rng, (0.36, 0.2, 0.17, 0.17, 0.1))
    along, around = OFF, OFF
    if legs == 1:  # side stripe
        around = (np.pi / 2, rng.uniform(0.35, 0.6), np.pi, 1.0)
    elif legs == 2:  # lower part in the other color
        along = (1.3, 1.3 - rng.uniform(0.45, 0.7), 99.0, 1.0)
    elif legs == 3:  # knee band or patch
        along = (rng.uniform(0.4, 0.7), rng.uniform(0.05, 0.1), 99.0, 1.0)
    elif legs == 4:  # reflective strip
        along = (rng.uniform(0.72, 0.88), 0.035, 99.0, 1.0)
        who["bottom_second"] = np.array([0.6, 0.6, 0.58, 1.6])
    who["leg_along"], who["leg_around"] = along, around

    who["shoe_color"] = _cloth(rng, 2.0)
    who["boot"] = rng.uniform(0.6, 0.85) if rng.random() < 0.2 else 2.0
    bag = BAGS[_choice(rng, (0.28, 0.3, 0.2, 0.22))]
    who["bag"] = BAGS.index(bag)
    who["bag_color"] = _cloth(rng)
    who["bag_second"] = _contrast(rng, who["bag_color"])
    who["bag_side"] = float(rng.choice([-1.0, 1.0]))
    who["bag_size"] = rng.uniform(0.85, 1.45)
    who["bag_band"] = (0.5, rng.uniform(0.1, 0.25), 99.0, float(rng.random() < 0.5))
    who["strap_color"] = _cloth(rng)
    return who


def draw_people(seed: int, persons: np.ndarray) -> dict[str, np.ndarray]:
    """`draw_person` for each of `persons` (int [n]), stacked: name -> float [n] or [n, k]."""
    drawn = [draw_person(seed, int(p)) for p in persons]
    return {key: np.array([who[key] for who in drawn], np.float64) for key in drawn[0]}
