"""The cases of losses and modules, and their inputs. NumPy only."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Arrays, Case, features, labels, normal, rng

Make = Callable[[Case], Arrays]

# --- Inputs ----------------------------------------------------------------------------------


def arrays(*fields: str, scale: float = 1.0) -> Make:
    """Normal arrays of these names, or of those of the shape, whose shapes the case gives."""

    def make(case: Case) -> Arrays:
        shape = case.shape
        return {k: normal(case.name, k, tuple(shape[k]), scale) for k in fields or shape}

    return make


def feature_batch(case: Case) -> Arrays:
    """Rows [B, M, D] and labels; with `uneven` the persons have 3, 2, 4, ... rows, not adjacent."""
    s = case.shape
    x = features(case.name, s["ids"], s["instances"], s["modalities"], s["width"])
    x = x * np.float32(s.get("scale", 1))
    y = labels(s["ids"], s["instances"])
    if s.get("uneven"):
        order = normal(case.name, "order", (len(y),)).argsort()[: len(y) - 3]
        x, y = x[order], y[order]
    return {"features": x, "labels": y}


def _rows(case: Case) -> Arrays:
    """Features or logits of two kinds [N, 2, width]."""
    return {"features": feature_batch(case)["features"]}


def _two_features(case: Case) -> Arrays:
    """Features [N, 2, D] twice, and labels; the first have modalities that differ more or less."""
    plain = feature_batch(case)
    x, y = plain["features"], plain["labels"]
    other = normal(case.name, "reduced", x.shape, 0.6)
    return {"reduced": 0.9 * x + other, "plain": x, "labels": y}


def _two_logits(case: Case) -> Arrays:
    """Logits [N, C] of the same images twice, more and less sure."""
    n, shape = case.name, case.shape["logits"]
    plain = normal(n, "plain", shape, 1.5)
    return {"enhanced": plain + normal(n, "enhanced", shape, 0.8), "plain": plain}


def _logits(case: Case) -> Arrays:
    rows, classes = case.shape["logits"]
    y = rng(case.name, "labels").integers(classes, size=rows).astype(np.int32)
    return {"logits": normal(case.name, "logits", (rows, classes), 3.0), "labels": y}


def _sets(case: Case) -> Arrays:
    """Two stacks of sets of rows, of unequal means and spreads."""
    n, shape = case.name, case.shape["rows"]
    y = normal(n, "y", shape, 1.5) + normal(n, "mean", shape[-1:])
    return {"x": normal(n, "x", shape), "y": y}


def _center_pairs(case: Case) -> Arrays:
    """Centers [P, 2, D] of images, and of what was generated from them."""
    s, n = case.shape, case.name
    original = features(n, s["ids"], 1, 2, s["width"])
    return {"original": original, "generated": original + normal(n, "made", original.shape, 0.7)}


def _close_persons(case: Case) -> Arrays:
    """Features [P, S, D]; some centers are within 0.7, some rows within 0.01 of theirs."""
    (ids, rows, width), n = case.shape["features"], case.name
    row = normal(n, "row", (ids, rows, width), 0.2)
    row[1] *= 0.01
    return {"features": normal(n, "person", (ids, 1, width), 0.3) + row}


def _generated_rows(case: Case) -> Arrays:
    """Features [P * K, 2, R, D] of images and of what was generated from them, and labels."""
    s, n = case.shape, case.name
    base = 0.3 * features(n, s["ids"], s["instances"], 2, s["width"])[:, :, None]
    shape = (len(base), 2, s["rows"], s["width"])
    return {
        "features": (base + normal(n, "rows", shape, 0.2)).astype(np.float32),
        "labels": labels(s["ids"], s["instances"]),
    }


def _images(case: Case) -> Arrays:
    """Images [rows, H, W, 3] of both modalities."""
    return {k: normal(case.name, k, case.shape["images"]) for k in ("visible", "infrared")}


def _trunk(case: Case) -> Arrays:
    """Images [rows, H, W, 3] of each of M modalities."""
    s = case.shape
    fields = [f"image{m}" for m in range(s["modalities"])]
    return {k: normal(case.name, k, s["images"]) for k in fields}


def _rectified(case: Case) -> Arrays:
    """After a ReLU half of a map is exactly zero."""
    return {"maps": np.maximum(normal(case.name, "maps", case.shape["map"]), 0)}


def _two_maps(case: Case) -> Arrays:
    """As after a ReLU; the modalities differ in scale."""
    scales = {"visible": 1.0, "infrared": 1.5}
    return {k: np.maximum(normal(case.name, k, case.shape["map"], s), 0) for k, s in scales.items()}


def _one_map(case: Case) -> Arrays:
    return {"maps": _two_maps(case)["visible"]}


def _clipped(case: Case) -> Arrays:
    """A map [N, h, w, F] as it leaves a ReLU or, in a sixth of it, a little below 0."""
    return {"maps": normal(case.name, "maps", case.shape["maps"]).clip(-0.1)}


INPUTS: dict[str, Make] = {
    "pairwise_distance": arrays("a", "b"),
    "cross_entropy": _logits,
    **dict.fromkeys(("row_centers", "tri_center", "global_center"), feature_batch),
    **dict.fromkeys(("batch_hard_triplet", "weighted_regularized_triplet"), feature_batch),
    **dict.fromkeys(("bdtr", "bi_center", "hetero_center_triplet", "caj"), feature_batch),
    **dict.fromkeys(("mun_alignment", "idkl_released_tri"), feature_batch),
    "mmd": _sets,
    **dict.fromkeys(("idkl_tgsa", "idkl_csa", "idkl_released_mix", "idkl_released_self"), _rows),
    **dict.fromkeys(("idkl_released_csa", "idkl_released_block"), _rows),
    **dict.fromkeys(("idkl_e", "idkl_released_e"), _two_logits),
    **dict.fromkeys(("idkl_r", "idkl_released_r"), _two_features),
    "idkl_released_confuser": arrays(),
    "cpm": _center_pairs,
    **dict.fromkeys(("cpm_released", "dcs_released"), _generated_rows),
    **dict.fromkeys(("ort", "ort_released"), arrays()),
    "dcs": _close_persons,
    "ch": arrays(scale=1.5),
    **dict.fromkeys(("smgm", "aux_x", "aux_gray", "aux_mixed"), _images),
    "aux_intra": _one_map,
    **dict.fromkeys(("aux_cross", "aux_generator"), _two_maps),
    **dict.fromkeys(("gap", "gem_fixed"), _rectified),
    "batch_norm": lambda case: {"x": normal(case.name, "x", case.shape["x"], 1.5) + 0.5},
    "resnet": _trunk,
    **dict.fromkeys(("idkl_gem", "idkl_purifier"), _clipped),
    **dict.fromkeys(("idkl_modality", "idkl_reverse"), arrays()),
    **dict.fromkeys(("nonlocal", "cnl", "pnl", "mfa", "expansion", "plm", "simam"), arrays()),
}

# --- Losses ----------------------------------------------------------------------------------

_TWO: dict[str, Any] = dict(ids=4, instances=3, modalities=2, width=16)
_THREE = {**_TWO, "modalities": 3}
_UNEVEN = {**_TWO, "uneven": True}
_SINGLE = {**_TWO, "instances": 1}
_CLASSES = {**_TWO, "width": 7}
_SURE = {"logits": (10, 7)}
_CENTERS = dict(ids=5, width=6)
_MADE = dict(ids=4, instances=3, rows=2, width=6)
_PERSONS = {"features": (4, 6, 5)}
_BATCH = {**_TWO, "width": 8}
_SOFTMAX = {"weights": "softmax"}
# Distances of about 10 and beyond 14, where the released weights of negatives fade and vanish.
_MIDDLE, _FAR = {**_TWO, "scale": 2}, {**_TWO, "scale": 8}

LOSSES = [
    Case("distance", "pairwise_distance", shape={"a": (7, 16), "b": (5, 16)}),
    # A distance far smaller than the norms, where the expanded square would cancel.
    Case("distance_wide", "pairwise_distance", shape={"a": (3, 512), "b": (4, 512)}),
    Case("softmax", "cross_entropy", shape={"logits": (12, 9)}),
    Case("cehl", "cross_entropy", {"margin": 4.0}, {"logits": (12, 9)}),
    Case("cehl_small", "cross_entropy", {"margin": 1.0}, {"logits": (5, 2)}),
    Case("centers", "row_centers", shape=_THREE),
    Case("centers_unit", "row_centers", {"normalize": True}, _THREE),
    Case("tri", "tri_center", shape=_THREE),
    Case("tri_wide", "tri_center", {"margin": 3.0}, {**_THREE, "ids": 6}),
    Case("tri_pair", "tri_center", {"margin": 2.0}, {**_THREE, "instances": 1}),
    Case("tri_unit", "tri_center", {"normalize": True}, _THREE),
    Case("global", "global_center", shape=_THREE),
    Case("global_two", "global_center", shape=_TWO),
    Case("global_unit", "global_center", {"normalize": True}, _TWO),
    Case("metric_hard", "batch_hard_triplet", shape=_TWO),
    Case("metric_hard_three", "batch_hard_triplet", {"margin": 2.0}, _THREE),
    Case("metric_hard_uneven", "batch_hard_triplet", shape=_UNEVEN),
    Case("metric_weighted", "weighted_regularized_triplet", _SOFTMAX, _TWO),
    Case("metric_weighted_three", "weighted_regularized_triplet", _SOFTMAX, _THREE),
    Case("metric_weighted_uneven", "weighted_regularized_triplet", _SOFTMAX, _UNEVEN),
    Case("metric_weighted_far", "weighted_regularized_triplet", _SOFTMAX, _FAR),
    Case("metric_released", "weighted_regularized_triplet", {}, _TWO),
    Case("metric_released_middle", "weighted_regularized_triplet", {}, _MIDDLE),
    Case("metric_released_far", "weighted_regularized_triplet", {}, _FAR),
    Case("metric_bdtr", "bdtr", shape=_TWO),
    Case("metric_bdtr_active", "bdtr", {"intra_margin": 1.5, "intra_weight": 0.7}, _UNEVEN),
    Case("metric_bdtr_single", "bdtr", {"intra_margin": 1.3}, _SINGLE),
    Case("metric_bicenter", "bi_center", shape=_TWO),
    Case("metric_bicenter_uneven", "bi_center", {"margin": 2.0}, _UNEVEN),
    Case("metric_hc_tri", "hetero_center_triplet", shape=_TWO),
    Case("metric_hc_tri_three", "hetero_center_triplet", {"margin": 1.0}, _THREE),
    Case("metric_hc_tri_uneven", "hetero_center_triplet", {"margin": 2.0}, _UNEVEN),
    Case("metric_mmd", "mmd", shape={"rows": (3, 4, 16)}),
    Case("metric_mmd_one", "mmd", shape={"rows": (1, 16)}),
    Case("mun_ia", "mun_alignment", {"margin": 1.0}, _THREE),
    Case("idkl_tgsa", "idkl_tgsa", {}, _TWO),
    Case("idkl_tgsa_self", "idkl_tgsa", {"pairs": "self"}, _TWO),
    Case("idkl_tgsa_scale", "idkl_tgsa", {"scale": "mean"}, _TWO),
    Case("idkl_tgsa_mix", "idkl_tgsa", {"cross": "mix"}, _TWO),
    Case("idkl_released_mix", "idkl_released_mix", {}, _TWO),
    Case("idkl_released_self", "idkl_released_self", {}, _TWO),
    Case("idkl_csa", "idkl_csa", {}, _CLASSES),
    Case("idkl_csa_block", "idkl_csa", {"num_instances": 3}, _CLASSES),
    Case("idkl_released_csa", "idkl_released_csa", {}, _CLASSES),
    Case("idkl_released_block", "idkl_released_block", {}, _CLASSES),
    Case("idkl_e", "idkl_e", {}, _SURE),
    Case("idkl_e_exponential", "idkl_e", {"form": "exponential"}, _SURE),
    Case("idkl_released_e", "idkl_released_e", {}, _SURE),
    Case("idkl_r", "idkl_r", {}, _TWO),
    Case("idkl_r_relu", "idkl_r", {"form": "relu"}, _TWO),
    Case("idkl_released_r", "idkl_released_r", {}, _TWO),
    Case("idkl_released_tri", "idkl_released_tri", {}, _TWO),
    Case("idkl_released_confuser", "idkl_released_confuser", {}, {"logits": (12, 2, 2)}),
    Case("cpm", "cpm", {}, _CENTERS),
    Case("cpm_wide", "cpm", {"margin": 2.0}, _CENTERS),
    Case("cpm_single", "cpm", {"form": "single", "margin": 2.0}, _CENTERS),
    Case("cpm_released", "cpm_released", {}, _MADE),
    Case("ort", "ort", {}, {"features": (6, 2, 5)}),
    Case("ort_four", "ort", {}, {"features": (4, 4, 5)}),
    Case("ort_released", "ort_released", {}, {"features": (5, 3, 4)}),
    Case("dcs", "dcs", {}, _PERSONS),
    Case("dcs_margins", "dcs", {"pull_margin": 0.4, "push_margin": 1.1}, _PERSONS),
    Case("dcs_released", "dcs_released", {}, {**_MADE, "rows": 3}),
    Case("ch", "ch", {}, {"logits": (3, 4, 6)}),
    Case("ch_cos", "ch", {"form": "cos_min"}, {"logits": (3, 4, 6)}),
    Case("caj", "caj", _SOFTMAX, _BATCH),
    Case("caj_far", "caj", _SOFTMAX, {**_BATCH, "scale": 8}),
    Case("caj_released", "caj", {}, _BATCH),
    Case("caj_released_middle", "caj", {}, _MIDDLE),
]

# --- Modules ---------------------------------------------------------------------------------

_PIXELS = {"images": (2, 5, 3, 3)}
_IMAGES = {"images": (3, 5, 4, 3)}
_MAP = {"map": (2, 12, 6, 8)}
_RATIOS = {"ratios": (2, 3, 6)}
_NET: dict[str, Any] = dict(images=(4, 32, 16, 3), modalities=2)
_SMALL: dict[str, Any] = dict(depth=10, width=8)
_STEMS = dict(specific=1, stems=(0, 1))
_F32 = {"maps": (4, 3, 2, 32)}
_F16 = {"maps": (2, 4, 3, 16)}
_F8 = {"maps": (2, 4, 3, 8)}
_F5 = {"maps": (2, 4, 3, 5)}
_EQUAL = {"high": (3, 4, 3, 8), "low": (3, 4, 3, 4)}
_TWICE = {"high": (3, 2, 3, 8), "low": (3, 4, 6, 4)}
_ODD = {"high": (3, 3, 2, 8), "low": (3, 6, 4, 4)}
_CBAM: dict[str, Any] = dict(attention="sequential", kernel=9, reduction=2)
_CONCAT = {**_CBAM, "attention": "concat", "fuse": "sum", "branches": 1}

MODULES = [
    Case("smgm", "smgm", {"width": 16}, _PIXELS),
    Case("smgm_unit", "smgm", {"width": 4, "input": "unit"}, _PIXELS),
    Case("gap", "gap", shape={"map": (3, 5, 3, 8)}),
    Case("gem_fixed", "gem_fixed", shape={"map": (3, 5, 3, 8)}),
    Case("bn_map", "batch_norm", shape={"x": (6, 5, 3, 8)}),
    Case("bn_rows", "batch_norm", {"use_bias": False}, {"x": (12, 8)}),
    Case("bn_eval", "batch_norm", {"train": False}, {"x": (6, 5, 3, 8)}),
    Case("r10", "resnet", _SMALL, _NET),
    Case(
        "r10_odd_stride2",
        "resnet",
        {**_SMALL, "last_stride": 2, "kernels": "cpu"},
        {**_NET, "images": (4, 45, 23, 3)},
    ),
    Case("r10_eval", "resnet", {**_SMALL, **_STEMS, "specific": 2, "train": False}, _NET),
    Case(
        "r18_stems",
        "resnet",
        dict(depth=18, width=4, **_STEMS),
        {**_NET, "images": (4, 33, 17, 3)},
    ),
    Case("r14_three", "resnet", dict(depth=14, width=4, kernels="cpu"), {**_NET, "modalities": 3}),
    Case("r50", "resnet", dict(depth=50, width=8), dict(images=(3, 48, 24, 3), modalities=1)),
    Case("aux_x", "aux_x", {}, _IMAGES),
    Case("aux_gray", "aux_gray", {}, _IMAGES),
    Case("aux_mixed", "aux_mixed", {}, _IMAGES),
    Case("aux_intra", "aux_intra", {}, {"map": (3, 9, 6, 6)}),
    Case("aux_intra_test", "aux_intra", {"train": False}, _MAP),
    Case("aux_cross", "aux_cross", _RATIOS, _MAP),
    Case("aux_cross_eval", "aux_cross", {**_RATIOS, "train": False}, _MAP),
    Case("aux_generator", "aux_generator", {"ratios": (2, 3)}, _MAP),
    Case("idkl_gem", "idkl_gem", {}, _F32),
    Case("idkl_purifier", "idkl_purifier", {}, _F32),
    Case("idkl_purifier_map", "idkl_purifier", {"mask": "map"}, _F32),
    Case("idkl_modality", "idkl_modality", {}, {"x": (9, 12)}),
    Case("idkl_reverse", "idkl_reverse", {"strength": 0.7}, {"x": (3, 5)}),
    Case("nonlocal", "nonlocal", {}, _F8),
    Case("nonlocal_eval", "nonlocal", {"train": False}, {"maps": (2, 2, 1, 12)}),
    Case("nonlocal_half", "nonlocal", {"inner": "half"}, _F8),
    Case("nonlocal_half_eval", "nonlocal", {"inner": "half", "train": False}, _F5),
    Case("cnl", "cnl", {"stride": 1}, _EQUAL),
    Case("cnl_stride", "cnl", {"stride": 2}, _TWICE),
    Case("cnl_odd_eval", "cnl", {"stride": 2, "train": False}, _ODD),
    Case("pnl", "pnl", {}, _EQUAL),
    Case("pnl_stride", "pnl", {}, _TWICE),
    Case("pnl_odd_eval", "pnl", {"train": False}, _ODD),
    Case("mfa", "mfa", {"stride": 1}, _EQUAL),
    Case("mfa_stride", "mfa", {"stride": 2}, _TWICE),
    Case("mfa_eval", "mfa", {"stride": 2, "train": False}, _TWICE),
    Case("expansion", "expansion", {}, _F16),
    Case("expansion_sum", "expansion", {"fuse": "sum", "branches": 3}, _F8),
    Case("expansion_cbam", "expansion", _CBAM, _F16),
    Case("expansion_wide", "expansion", {**_CBAM, "kernel": 3}, _F16),
    Case("expansion_concat", "expansion", _CONCAT, _F16),
    Case("plm", "plm", {"count": 3}, _F5),
    Case("simam", "simam", {}, _F5),
]

CASES = [*LOSSES, *MODULES]
