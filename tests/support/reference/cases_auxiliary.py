"""Cases of the auxiliary modalities, and their inputs. NumPy only."""

from collections.abc import Callable, Mapping

import numpy as np

from .case import Arrays, Case, normal


def _images(case: Case) -> Arrays:
    shape = (case.shape["rows"], *case.shape["size"], 3)
    return {k: normal(case.name, k, shape) for k in ("visible", "infrared")}


def _maps(case: Case) -> Arrays:
    """As after a ReLU: half of a map is exactly zero; the modalities differ in scale."""
    scales = {"visible": 1.0, "infrared": 1.5}
    return {k: np.maximum(normal(case.name, k, case.shape["map"], s), 0) for k, s in scales.items()}


def _map(case: Case) -> Arrays:
    return {"maps": _maps(case)["visible"]}


_IMAGES = {"rows": 3, "size": (5, 4)}
_MAP = {"map": (2, 12, 6, 8)}
_SMALL = {"ratios": (2, 3, 6)}

CASES: list[Case] = [
    Case("aux_x", "aux_x", {}, _IMAGES),
    Case("aux_gray", "aux_gray", {}, _IMAGES),
    Case("aux_mixed", "aux_mixed", {}, _IMAGES),
    Case("aux_intra", "aux_intra", {}, {"map": (3, 9, 6, 6)}),
    Case("aux_intra_test", "aux_intra", {"train": False}, _MAP),
    Case("aux_cross", "aux_cross", _SMALL, _MAP),
    Case("aux_cross_eval", "aux_cross", {**_SMALL, "train": False}, _MAP),
    Case("aux_generator", "aux_generator", {"ratios": (2, 3)}, _MAP),
]
INPUTS: Mapping[str, Callable[[Case], Arrays]] = {
    "aux_x": _images,
    "aux_gray": _images,
    "aux_mixed": _images,
    "aux_intra": _map,
    "aux_cross": _maps,
    "aux_generator": _maps,
}
