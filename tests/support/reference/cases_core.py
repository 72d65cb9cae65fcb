"""The cases of what every method stands on, and of SMCL."""

from collections.abc import Callable

import numpy as np

from .case import Arrays, Case, features, labels, normal, rng


def _distance(case: Case) -> Arrays:
    s = case.shape
    return {k: normal(case.name, k, (s[k], s["width"])) for k in ("a", "b")}


def _logits(case: Case) -> Arrays:
    s, r = case.shape, rng(case.name, "labels")
    return {
        "logits": normal(case.name, "logits", (s["rows"], s["classes"]), 3.0),
        "labels": r.integers(s["classes"], size=s["rows"]).astype(np.int32),
    }


def feature_batch(case: Case) -> Arrays:
    """Features [B, M, D] and their labels, from ids, instances, modalities and width."""
    s = case.shape
    ids, k = s["ids"], s["instances"]
    return {
        "features": features(case.name, ids, k, s["modalities"], s["width"]),
        "labels": labels(ids, k),
    }


def image_pair(case: Case) -> Arrays:
    """Two modalities [rows, H, W, 3]."""
    shape = (case.shape["rows"], *case.shape["size"], 3)
    return {k: normal(case.name, k, shape) for k in ("visible", "infrared")}


def _maps(case: Case) -> Arrays:
    # After a ReLU half of a map is exactly zero.
    return {"maps": np.maximum(normal(case.name, "maps", case.shape["map"]), 0)}


def _batch_norm(case: Case) -> Arrays:
    return {"x": normal(case.name, "x", case.shape["x"], 1.5) + 0.5}


def _resnet(case: Case) -> Arrays:
    s = case.shape
    shape = (s["rows"], *s["size"], 3)
    return {f"image{k}": normal(case.name, f"image{k}", shape) for k in range(s["modalities"])}


def batches(case: Case) -> Arrays:
    """Image batches of `steps` steps (1 unless told) [steps, B, H, W, 3] and labels [steps, B]."""
    s, n = case.shape, case.name
    ids, k, steps = s["ids"], s["instances"], s.get("steps", 1)
    shape = (steps, ids * k, *s["size"], 3)
    persons = [rng(n, "ids", str(t)).permutation(s["classes"])[:ids] for t in range(steps)]
    return {
        "visible": normal(n, "visible", shape),
        "infrared": normal(n, "infrared", shape),
        "label": np.stack([np.repeat(p, k) for p in persons]).astype(np.int32),
    }


INPUTS: dict[str, Callable[[Case], Arrays]] = {
    "pairwise_distance": _distance,
    "cross_entropy": _logits,
    "row_centers": feature_batch,
    "tri_center": feature_batch,
    "global_center": feature_batch,
    "smgm": image_pair,
    "gap": _maps,
    "gem_fixed": _maps,
    "batch_norm": _batch_norm,
    "resnet": _resnet,
    "smcl": batches,
    "trajectory": batches,
}

_FEATURES = {"ids": 4, "instances": 3, "modalities": 3, "width": 16}
_TWO = {**_FEATURES, "modalities": 2}
_NET = {"rows": 4, "modalities": 2, "size": (32, 16)}
_MODEL = {"ids": 4, "instances": 2, "size": (32, 16), "classes": 6}
_SMALL = {"num_classes": 6, "depth": 10, "width": 8, "smgm_width": 4}

CASES = [
    Case("distance", "pairwise_distance", shape={"a": 7, "b": 5, "width": 16}),
    # A distance far smaller than the norms, where the expanded square would cancel.
    Case("distance_wide", "pairwise_distance", shape={"a": 3, "b": 4, "width": 512}),
    Case("softmax", "cross_entropy", shape={"rows": 12, "classes": 9}),
    Case("cehl", "cross_entropy", {"margin": 4.0}, {"rows": 12, "classes": 9}),
    Case("cehl_small", "cross_entropy", {"margin": 1.0}, {"rows": 5, "classes": 2}),
    Case("centers", "row_centers", shape=_FEATURES),
    Case("centers_unit", "row_centers", {"normalize": True}, _FEATURES),
    Case("tri", "tri_center", shape=_FEATURES),
    Case("tri_wide", "tri_center", {"margin": 3.0}, {**_FEATURES, "ids": 6}),
    Case("tri_pair", "tri_center", {"margin": 2.0}, {**_FEATURES, "instances": 1}),
    Case("tri_unit", "tri_center", {"normalize": True}, _FEATURES),
    Case("global", "global_center", shape=_FEATURES),
    Case("global_two", "global_center", shape=_TWO),
    Case("global_unit", "global_center", {"normalize": True}, _TWO),
    Case("smgm", "smgm", {"width": 16}, {"rows": 2, "size": (5, 3)}),
    Case("smgm_unit", "smgm", {"width": 4, "input": "unit"}, {"rows": 2, "size": (5, 3)}),
    Case("gap", "gap", shape={"map": (3, 5, 3, 8)}),
    Case("gem_fixed", "gem_fixed", shape={"map": (3, 5, 3, 8)}),
    Case("bn_map", "batch_norm", shape={"x": (6, 5, 3, 8)}),
    Case("bn_rows", "batch_norm", {"use_bias": False}, {"x": (12, 8)}),
    Case("bn_eval", "batch_norm", {"train": False}, {"x": (6, 5, 3, 8)}),
    Case("r10", "resnet", {"depth": 10, "width": 8}, _NET),
    Case(
        "r10_odd_stride2",
        "resnet",
        {"depth": 10, "width": 8, "last_stride": 2, "kernels": "cpu"},
        {**_NET, "size": (45, 23)},
    ),
    Case(
        "r10_eval",
        "resnet",
        {"depth": 10, "width": 8, "specific": 2, "stems": (0, 1), "train": False},
        _NET,
    ),
    Case(
        "r18_stems",
        "resnet",
        {"depth": 18, "width": 4, "specific": 1, "stems": (0, 1)},
        {**_NET, "size": (33, 17)},
    ),
    Case(
        "r14_three",
        "resnet",
        {"depth": 14, "width": 4, "kernels": "cpu"},
        {**_NET, "modalities": 3},
    ),
    Case(
        "r50", "resnet", {"depth": 50, "width": 8}, {"rows": 3, "modalities": 1, "size": (48, 24)}
    ),
    Case("smcl", "smcl", _SMALL, _MODEL),
    Case(
        "smcl_unit",
        "smcl",
        {
            **_SMALL,
            "smgm_input": "unit",
            "normalize_centers": True,
            "center_margin": 0.5,
            "metric_weight": 0.7,
            "kernels": "xla",
        },
        _MODEL,
    ),
    Case("smcl_none", "smcl", {**_SMALL, "auxiliary": "none", "id_margin": 1.0}, _MODEL),
    Case(
        "smcl_x_bicenter",
        "smcl",
        {
            **_SMALL,
            "auxiliary": "x",
            "metric": "bicenter",
            "bicenter_margin": 0.7,
            "normalize_centers": True,
        },
        _MODEL,
    ),
    Case(
        "smcl_gray",
        "smcl",
        {**_SMALL, "auxiliary": "gray", "metric": "hc_tri", "triplet_margin": 0.5},
        _MODEL,
    ),
    Case(
        "smcl_mixed_hard",
        "smcl",
        {**_SMALL, "auxiliary": "mixed", "metric": "bh_tri", "triplet_margin": 0.5},
        _MODEL,
    ),
    Case("smcl_bdtr", "smcl", {**_SMALL, "metric": "bdtr", "auxiliary": "none"}, _MODEL),
    Case(
        "trajectory",
        "trajectory",
        {
            **_SMALL,
            "optimizer": {
                "name": "adam",
                "lr": 2**-10,  # with gamma exact in float32, which learning rates are kept in
                "weight_decay": 5e-4,
                "milestones": [8],
                "gamma": 0.25,
            },
            "switch": 5,
        },
        {**_MODEL, "steps": 10},
    ),
]
