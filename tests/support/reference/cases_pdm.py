"""The cases of what AGW with CAJ, DEEN and PDM are made of: losses and modules."""

from collections.abc import Callable

import numpy as np

from .case import Arrays, Case, features, labels, normal
from .cases_core import feature_batch


def _center_pairs(case: Case) -> Arrays:
    """Centers [P, 2, D] of images, and of what was generated from them."""
    s, n = case.shape, case.name
    original = features(n, s["ids"], 1, 2, s["width"])
    return {"original": original, "generated": original + normal(n, "made", original.shape, 0.7)}


def _branches(case: Case) -> Arrays:
    """Features [N, rows, D]."""
    s = case.shape
    shape = (s["images"], s["rows"], s["width"])
    return {"features": normal(case.name, "features", shape)}


def _close_persons(case: Case) -> Arrays:
    """Features [P, S, D]; some centers are within 0.7, some rows within 0.01 of theirs."""
    s, n = case.shape, case.name
    person = normal(n, "person", (s["ids"], 1, s["width"]), 0.3)
    row = normal(n, "row", (s["ids"], s["rows"], s["width"]), 0.2)
    row[1] *= 0.01
    return {"features": person + row}


def _logits(case: Case) -> Arrays:
    """Logits [N, m, n] of prototypes."""
    return {"logits": normal(case.name, "logits", tuple(case.shape["logits"]), 1.5)}


def _generated_rows(case: Case) -> Arrays:
    """Features [P * K, 2, R, D] of images and of what was generated from them, and labels."""
    s, n = case.shape, case.name
    base = 0.3 * features(n, s["ids"], s["instances"], 2, s["width"])[:, :, None]
    shape = (len(base), 2, s["rows"], s["width"])
    return {
        "features": (base + normal(n, "rows", shape, 0.2)).astype(np.float32),
        "labels": labels(s["ids"], s["instances"]),
    }


def _maps(case: Case) -> Arrays:
    return {k: normal(case.name, k, tuple(shape)) for k, shape in case.shape.items()}


_CENTERS = {"ids": 5, "width": 6}
_ROWS = {"ids": 4, "instances": 3, "rows": 2, "width": 6}
_BATCH = {"ids": 4, "instances": 3, "modalities": 2, "width": 8}
_SMALL = {"maps": (2, 4, 3, 8)}
_EQUAL = {"high": (3, 4, 3, 8), "low": (3, 4, 3, 4)}
_TWICE = {"high": (3, 2, 3, 8), "low": (3, 4, 6, 4)}
_ODD = {"high": (3, 3, 2, 8), "low": (3, 6, 4, 4)}
_CBAM = {"attention": "sequential", "kernel": 9, "reduction": 2}

CASES = [
    Case("cpm", "cpm", {}, _CENTERS),
    Case("cpm_wide", "cpm", {"margin": 2.0}, _CENTERS),
    Case("cpm_single", "cpm", {"form": "single", "margin": 2.0}, _CENTERS),
    Case("cpm_released", "cpm_released", {}, _ROWS),
    Case("ort", "ort", {}, {"images": 6, "rows": 2, "width": 5}),
    Case("ort_four", "ort", {}, {"images": 4, "rows": 4, "width": 5}),
    Case("ort_released", "ort_released", {}, {"images": 5, "rows": 3, "width": 4}),
    Case("dcs", "dcs", {}, {"ids": 4, "rows": 6, "width": 5}),
    Case(
        "dcs_margins",
        "dcs",
        {"pull_margin": 0.4, "push_margin": 1.1},
        {"ids": 4, "rows": 6, "width": 5},
    ),
    Case("dcs_released", "dcs_released", {}, {**_ROWS, "rows": 3}),
    Case("ch", "ch", {}, {"logits": (3, 4, 6)}),
    Case("ch_cos", "ch", {"form": "cos_min"}, {"logits": (3, 4, 6)}),
    Case("caj", "caj", {}, _BATCH),
    Case("caj_far", "caj_far", {}, _BATCH),
    Case("nonlocal", "nonlocal", {}, _SMALL),
    Case("nonlocal_eval", "nonlocal", {"train": False}, {"maps": (2, 2, 1, 12)}),
    Case("cnl", "cnl", {"stride": 1}, _EQUAL),
    Case("cnl_stride", "cnl", {"stride": 2}, _TWICE),
    Case("cnl_odd_eval", "cnl", {"stride": 2, "train": False}, _ODD),
    Case("pnl", "pnl", {}, _EQUAL),
    Case("pnl_stride", "pnl", {}, _TWICE),
    Case("pnl_odd_eval", "pnl", {"train": False}, _ODD),
    Case("mfa", "mfa", {"stride": 1}, _EQUAL),
    Case("mfa_stride", "mfa", {"stride": 2}, _TWICE),
    Case("mfa_eval", "mfa", {"stride": 2, "train": False}, _TWICE),
    Case("expansion", "expansion", {}, {"maps": (2, 4, 3, 16)}),
    Case("expansion_sum", "expansion", {"fuse": "sum", "branches": 3}, {"maps": (2, 4, 3, 8)}),
    Case("expansion_cbam", "expansion", _CBAM, {"maps": (2, 4, 3, 16)}),
    Case("expansion_wide", "expansion", {**_CBAM, "kernel": 3}, {"maps": (2, 4, 3, 16)}),
    Case(
        "expansion_concat",
        "expansion",
        {**_CBAM, "attention": "concat", "fuse": "sum", "branches": 1},
        {"maps": (2, 4, 3, 16)},
    ),
    Case("plm", "plm", {"count": 3}, {"maps": (2, 4, 3, 5)}),
    Case("simam", "simam", {}, {"maps": (2, 4, 3, 5)}),
]

INPUTS: dict[str, Callable[[Case], Arrays]] = {
    "cpm": _center_pairs,
    **dict.fromkeys(("cpm_released", "dcs_released"), _generated_rows),
    **dict.fromkeys(("ort", "ort_released"), _branches),
    "dcs": _close_persons,
    "ch": _logits,
    "caj": feature_batch,
    "caj_far": lambda case: {
        k: 8 * v if k == "features" else v for k, v in feature_batch(case).items()
    },
    **dict.fromkeys(("nonlocal", "cnl", "pnl", "mfa", "expansion"), _maps),
    **dict.fromkeys(("plm", "simam"), _maps),
}
