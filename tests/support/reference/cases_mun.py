"""The cases of MUN: its losses, the whole model under every option, and a training."""

from collections.abc import Callable

import numpy as np

from .case import Arrays, Case, normal, rng
from .cases_core import batches, feature_batch


def _remembered(case: Case) -> Arrays:
    """Images and labels, and a memory of prototypes as earlier steps may have left it."""
    s, o = case.shape, case.options
    kind = o.get("prototypes", "slot")
    features = 8 * o["width"] * (4 if o["depth"] == 14 else 1)
    result = batches(case)
    if o.get("second_view"):
        result["visible_second"] = normal(case.name, "second", result["visible"].shape)
    if kind == "slot":
        shape = (s["ids"] * s["instances"], 3, features)
        result["prototype"] = normal(case.name, "prototype", shape)
    elif kind == "identity":
        shape = (s["classes"], s["instances"], 3, features)
        result["prototype"] = normal(case.name, "prototype", shape)
        # One identity of the batch has a past, another has none.
        seen = rng(case.name, "seen").integers(2, size=s["classes"])
        seen[result["label"][0, 0]], seen[result["label"][0, -1]] = 1, 0
        result["seen"] = seen.astype(np.float32)
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
    Case("mun_ia_literal", "mun_alignment", {"form": "literal"}, _FEATURES),
    Case("mun_ia_softplus", "mun_alignment", {"form": "softplus", "margin": 1.5}, _FEATURES),
    Case("mun_ia_unit", "mun_alignment", {"normalize": True, "form": "literal"}, {**_FEATURES}),
    Case("mun", "mun", {**_SMALL, "ma_weight": 0.7}, _MODEL),
    # The first step of the same training, where the prototypes have no past.
    Case("mun_first", "mun", {**_SMALL, "ma_weight": 0.7, "step": 0}, _MODEL),
    Case(
        "mun_refined",
        "mun",
        {
            **_SMALL,
            "shared_input": "refined",
            "generator": {
                "ratios": (2, 3),
                "transposed": "reduce",
                "scale_form": "sigmoid",
                "residual": True,
                "remat": True,
            },
            "tri": "vra",
            "tri_margin": 0.6,
            "ia_form": "literal",
            "beta_role": "memory",
            "prototype_map": "slot",
            "ma_weight": 0.4,
            "bn_running": "vi",
        },
        {**_MODEL, "size": (48, 24)},
    ),
    Case(
        "mun_stem",
        "mun",
        {
            **_SMALL,
            "specific": 1,
            "last_stride": 2,
            "kernels": "xla",
            "gem_learned": True,
            "generator": {
                "ratios": (3, 6),
                "ratio_form": "bins",
                "scale_form": "clip",
                "relu": True,
            },
            "tri_form": "weighted",
            "tri_normalize": True,
            "ia_normalize": True,
            "ia_margin": 1.1,
            "ia_weight": 0.9,
            "prototypes": "identity",
            "beta_schedule": "geometric",
            "step": 10,
            "num_steps": 12,
            "ma_weight": 0.3,
        },
        {**_MODEL, "size": (48, 24)},
    ),
    Case(
        "mun_bottleneck",
        "mun",
        {
            **_SMALL,
            "depth": 14,
            "width": 2,
            "second_view": True,
            "gem_p": 2.0,
            "generator": {
                "ratios": (2,),
                "transposed": "depthwise",
                "scale_shape": "scalar",
                "residual": True,
            },
            "prototype_map": "frozen",
            "mmd_bandwidth": "fixed",
            "mmd_sigma": 1.5,
            "ma_weight": 0.6,
            "ida_weight": 0.8,
            "idc_weight": 0.0,
            "bn_running": "vi",
        },
        {**_MODEL, "ids": 2},
    ),
    Case(
        "mun_syncretic",
        "mun",
        {
            **_IMAGES,
            "auxiliary": "syncretic",
            "smgm_width": 4,
            "smgm_shared": False,
            "smgm_input": "unit",
            "neck": "none",
            "step": 0,
            "beta_first": "stop",
            "beta_role": "memory",
            "prototype_map": "shared",
            "ia_form": "softplus",
        },
        _PICTURES,
    ),
    Case(
        "mun_x",
        "mun",
        {
            **_IMAGES,
            "auxiliary": "x",
            "x_width": 2,
            "x_input": "standardized",
            "aux_stem": "visible",
            "bn_running": "vi",
            "prototypes": "none",
            "mmd_bandwidth": "median",
            "ida_weight": 0.3,
            "idc_weight": 0.4,
        },
        _PICTURES,
    ),
    Case(
        "mun_gray",
        "mun",
        {
            **_IMAGES,
            "auxiliary": "gray",
            "specific": 1,
            "bridge": False,
            "beta_schedule": "geometric",
            "beta_role": "memory",
            "step": 9,
        },
        _PICTURES,
    ),
    Case(
        "mun_mixed",
        "mun",
        {
            **_IMAGES,
            "auxiliary": "mixed",
            "second_view": True,
            "tri": "vra",
            "tri_form": "weighted",
            "ma_weight": 0.0,
        },
        _PICTURES,
    ),
    Case("mun_none", "mun", {**_SMALL, "auxiliary": "none", "tri": "vra"}, _PICTURES),
    Case(
        "mun_trajectory",
        "mun_trajectory",
        {
            **_SMALL,
            "num_steps": 10,
            "generator": {"ratios": (2, 3)},
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
    Case(
        "mun_trajectory_identity",
        "mun_trajectory",
        {
            **_IMAGES,
            "num_steps": 4,
            "auxiliary": "mixed",
            "prototypes": "identity",
            "optimizer": {"lr": 2**-8, "weight_decay": 0.01, "backbone": 0.1},
        },
        {**_PICTURES, "steps": 4, "ids": 2},
    ),
]

INPUTS: dict[str, Callable[[Case], Arrays]] = {
    "mun_alignment": feature_batch,
    "mun": _remembered,
    "mun_trajectory": batches,
}
