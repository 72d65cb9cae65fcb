"""The cases of MUN: its losses, the whole model under every option, and a training."""

from collections.abc import Callable

import numpy as np

from .case import Arrays, Case, normal
from .cases_core import batches, feature_batch


def _remembered(case: Case) -> Arrays:
    """Images and labels, and prototypes as earlier steps may have left them."""
    s, o = case.shape, case.options
    result = batches(case)
    if o.get("prototypes", True):
        features = 8 * o["width"] * (4 if o["depth"] == 14 else 1)
        shape = (s["ids"] * s["instances"], 3, features)
        result["prototype"] = normal(case.name, "prototype", shape)
    return result


NOISE = 1e-11


def settled(gradients: Arrays) -> Arrays:
    """Gradients that are zero but for rounding, as exact zeros.

    A shift in front of a batch normalization has none; what rounding leaves of the sum is
    another number in every program.
    """
    return {
        k: v if np.abs(v).max(initial=0) > NOISE else np.zeros(v.shape)
        for k, v in gradients.items()
    }


# The shift in front of a batch normalization again: Adam divides its gradient, which is nothing
# but rounding, by its own size.
WANDERS = "depthwise3/bias"


def steady(results: Arrays) -> Arrays:
    """The results of a training without the weights that rounding moves."""
    return {k: v for k, v in results.items() if not k.endswith(WANDERS)}


def start(weights: Arrays) -> Arrays:
    """The weights a training starts from: layer scales just below 1, so that it projects them."""
    return {k: 1 - v / 64 if k.endswith("layer_scale") else v for k, v in weights.items()}


_FEATURES = {"ids": 4, "instances": 3, "modalities": 3, "width": 16}
# 48 x 48 pixels give 12 x 12 maps, which every pooling ratio of the paper divides.
_MODEL = {"ids": 3, "instances": 2, "size": (48, 48), "classes": 6}
# A step on the way, at which beta is neither 0 nor 1 and both parts of eq. (14) count.
_SMALL = {"num_classes": 6, "depth": 10, "width": 8, "num_steps": 11, "step": 4}
_IMAGES = {**_SMALL, "ma_weight": 0.5}
_PICTURES = {**_MODEL, "size": (32, 16)}

CASES = [
    Case("mun_ia", "mun_alignment", {"margin": 1.0}, _FEATURES),
    Case("mun", "mun", {**_SMALL, "ma_weight": 0.7}, _MODEL),
    # The first step of the same training, where the prototypes have no past.
    Case("mun_first", "mun", {**_SMALL, "ma_weight": 0.7, "step": 0}, _MODEL),
    Case(
        "mun_stem_unit",
        "mun",
        {
            **_SMALL,
            "specific": 1,
            "last_stride": 2,
            "kernels": "xla",
            "generator_ratios": (3, 6),
            "generator_form": "folded",
            "normalize": True,
            "tri_margin": 0.6,
            "ia_margin": 1.1,
            "ia_weight": 0.9,
            "step": 10,
            "num_steps": 12,
            "ma_weight": 0.3,
        },
        {**_MODEL, "size": (48, 24)},
    ),
    Case(
        "mun_depth14",
        "mun",
        {
            **_SMALL,
            "depth": 14,
            "width": 2,
            "generator_ratios": (2,),
            "generator_remat": True,
            "ma_weight": 0.6,
            "ida_weight": 0.8,
            "idc_weight": 0.0,
        },
        {**_MODEL, "ids": 2},
    ),
    Case(
        "mun_syncretic_unit",
        "mun",
        {
            **_IMAGES,
            "auxiliary": "syncretic",
            "smgm_width": 4,
            "smgm_input": "unit",
            "step": 0,
            "bridge": False,
        },
        _PICTURES,
    ),
    Case(
        "mun_x_features",
        "mun",
        {
            **_IMAGES,
            "auxiliary": "x",
            "prototypes": False,
            "ida_weight": 0.3,
            "idc_weight": 0.4,
        },
        _PICTURES,
    ),
    Case(
        "mun_gray_neither",
        "mun",
        {**_IMAGES, "auxiliary": "gray", "specific": 1, "bridge": False, "prototypes": False},
        _PICTURES,
    ),
    Case("mun_mixed_ia", "mun", {**_IMAGES, "auxiliary": "mixed", "ma_weight": 0.0}, _PICTURES),
    Case("mun_none", "mun", {**_SMALL, "auxiliary": "none"}, _PICTURES),
    Case(
        "mun_trajectory",
        "mun_trajectory",
        {
            **_SMALL,
            "num_steps": 10,
            "generator_ratios": (2, 3),
            "ma_weight": 0.5,
            "optimizer": {
                "lr": 2**-8,  # with gamma exact in float32, which learning rates are kept in
                "weight_decay": 0.01,
                "backbone": 0.1,
                "milestones": [8],
                "gamma": 0.25,
            },
        },
        {**_MODEL, "size": (48, 24), "steps": 10},
    ),
]

INPUTS: dict[str, Callable[[Case], Arrays]] = {
    "mun_alignment": feature_batch,
    "mun": _remembered,
    "mun_trajectory": batches,
}
