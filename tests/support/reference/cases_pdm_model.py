"""The cases of AGW with CAJ, DEEN and PDM as whole models, and of trainings of them."""

import re
from collections.abc import Callable
from typing import Any

from .case import Arrays, Case, normal
from .cases_core import batches


def _views(case: Case) -> Arrays:
    """Images and labels, and CAJ's second view if the method has one."""
    result = batches(case)
    if case.options.get("second_view"):
        result["visible_second"] = normal(case.name, "second", result["visible"].shape)
    return result


def calm(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights, by torch's names or ours, whose attention is as large as the map it is added to.

    It is of the third degree in the map, up to six times in a row, and statistics that were drawn
    do not normalize what it makes.
    """
    return {k: v / 512 if "theta" in re.split(r"[./]", k) else v for k, v in weights.items()}


# 64 x 32 pixels give 16 x 8, 8 x 4 and 4 x 2 maps, which DEEN's position attention can halve.
_MODEL = {"ids": 3, "instances": 2, "size": (64, 32), "classes": 6}
_PICTURES = {**_MODEL, "size": (48, 32)}
_SMALL = {"num_classes": 6, "depth": 10, "width": 8}
_CAJ = {**_SMALL, "depth": 14, "width": 2, "second_view": True, "tri_form": "squared"}
# Epochs of two steps: a staircase of two of them, the second at the whole rate, then an eighth of
# it. In powers of 2, which are exact in float32.
_SGD = {"lr": 2**-10, "weight_decay": 5e-3}
_STEPS = {"steps": 6}

CASES = [
    Case("agw", "agw", {**_SMALL, "depth": 18, "width": 4}, _PICTURES),
    Case("agw_caj", "agw", _CAJ, _PICTURES),
    Case(
        "agw_options",
        "agw",
        {
            **_SMALL,
            "last_stride": 2,
            "kernels": "xla",
            "second_view": True,
            "tri_weight": 0.5,
            "normalize": True,
        },
        _PICTURES,
    ),
    Case("deen", "multi_feature", {**_SMALL, "preset": "deen"}, _MODEL),
    Case(
        "deen_regdb",
        "multi_feature",
        {
            **_SMALL,
            "preset": "deen",
            "kernels": "xla",
            "stages": 3,
            "branches": 3,
            "tri_margin": 0.7,
            "cpm_margin": 0.5,
            "cpm_weight": 0.3,
            "normalize": True,
            "ort_weight": 0.4,
        },
        _MODEL,
    ),
    Case("pdm", "multi_feature", {**_SMALL, "preset": "code"}, _MODEL),
    # A margin at which the single hinge of eq. (3) is not idle.
    Case(
        "pdm_paper",
        "multi_feature",
        {**_SMALL, "preset": "paper", "cpm_margin": 4.0},
        _PICTURES,
    ),
    Case(
        "pdm_regdb",
        "multi_feature",
        {**_SMALL, "preset": "code", "depth": 14, "width": 4, "stages": 3, "num_prototypes": 4},
        _MODEL,
    ),
    Case(
        "pdm_options",
        "multi_feature",
        {
            **_SMALL,
            "preset": "code",
            "kernels": "xla",
            "last_stride": 2,
            "mfa": False,
            "branches": 3,
            "num_prototypes": 3,
            "id_global_weight": 0.6,
            "cpm_form": "single",
            "cpm_margin": 1.5,
            "ch_form": "cos_min",
            "ch_weight": 0.7,
            "dcs_pull_margin": 0.1,
            "dcs_push_margin": 1.2,
            "dcs_weight": 0.8,
            "normalize": True,
        },
        _PICTURES,
    ),
    # Neither features generated nor parts: PDM's baseline with L_dcs.
    Case(
        "pdm_plain",
        "multi_feature",
        {**_SMALL, "preset": "code", "branches": 0, "num_prototypes": 0, "mfa": False},
        _PICTURES,
    ),
    Case("agw_trajectory", "agw_trajectory", {**_CAJ, "optimizer": _SGD}, {**_PICTURES, **_STEPS}),
    Case(
        "pdm_trajectory",
        "multi_feature_trajectory",
        {**_SMALL, "preset": "code", "optimizer": _SGD},
        {**_MODEL, **_STEPS},
    ),
]

INPUTS: dict[str, Callable[[Case], Arrays]] = {
    **dict.fromkeys(("agw", "agw_trajectory"), _views),
    **dict.fromkeys(("multi_feature", "multi_feature_trajectory"), batches),
}
