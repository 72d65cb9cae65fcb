"""The cases of IDKL: its losses and modules, the whole model under every option, trainings."""

from collections.abc import Callable

from .case import Arrays, Case, normal
from .cases_core import batches, feature_batch


def _rows(case: Case) -> Arrays:
    """Features or logits of two kinds [N, 2, width]."""
    return {"features": feature_batch(case)["features"]}


def _two_logits(case: Case) -> Arrays:
    """Logits [N, C] of the same images twice, more and less sure."""
    s, n = case.shape, case.name
    shape = (s["rows"], s["classes"])
    plain = normal(n, "plain", shape, 1.5)
    return {"enhanced": plain + normal(n, "enhanced", shape, 0.8), "plain": plain}


def _two_features(case: Case) -> Arrays:
    """Features [N, 2, D] twice, and labels; the first have modalities that differ more or less."""
    plain = feature_batch(case)
    other = normal(case.name, "reduced", plain["features"].shape, 0.6)
    return {
        "reduced": 0.9 * plain["features"] + other,
        "plain": plain["features"],
        "labels": plain["labels"],
    }


def _modality_logits(case: Case) -> Arrays:
    """Logits [N, 2, 2] of a modality head."""
    s = case.shape
    return {"logits": normal(case.name, "logits", (s["ids"] * s["instances"], 2, 2))}


def _maps(case: Case) -> Arrays:
    """A map [N, h, w, F] as it leaves a ReLU or, in a sixth of it, a little below 0."""
    x = normal(case.name, "maps", tuple(case.shape["maps"]))
    return {"maps": x.clip(-0.1)}


def _vectors(case: Case) -> Arrays:
    return {"x": normal(case.name, "x", tuple(case.shape["rows"]))}


_ROWS = {"ids": 4, "instances": 3, "modalities": 2, "width": 16}
_LOGITS = {**_ROWS, "width": 7}
_SURE = {"rows": 10, "classes": 7}
_MAPS = {"maps": (4, 3, 2, 32)}
_SMALL = {"num_classes": 6, "depth": 10, "width": 8}
# 48 x 32 pixels give 3 x 2 maps: normalized over fewer places they would be 1 and -1. An odd
# number of images and an even number of identities, as in the paper.
_MODEL = {"ids": 4, "instances": 3, "size": (48, 32), "classes": 6}
_FEW = {**_MODEL, "ids": 3, "instances": 2}
_ADAM = {"lr": 2**-9, "weight_decay": 5e-3}

CASES = [
    Case("idkl_tgsa", "idkl_tgsa", {}, _ROWS),
    Case("idkl_tgsa_self", "idkl_tgsa", {"pairs": "self"}, _ROWS),
    Case("idkl_tgsa_scale", "idkl_tgsa", {"scale": "mean"}, _ROWS),
    Case("idkl_tgsa_mix", "idkl_tgsa", {"cross": "mix"}, _ROWS),
    Case("idkl_released_mix", "idkl_released_mix", {}, _ROWS),
    Case("idkl_released_self", "idkl_released_self", {}, _ROWS),
    Case("idkl_csa", "idkl_csa", {}, _LOGITS),
    Case("idkl_csa_block", "idkl_csa", {"num_instances": 3}, _LOGITS),
    Case("idkl_released_csa", "idkl_released_csa", {}, _LOGITS),
    Case("idkl_released_block", "idkl_released_block", {}, _LOGITS),
    Case("idkl_e", "idkl_e", {}, _SURE),
    Case("idkl_e_exponential", "idkl_e", {"form": "exponential"}, _SURE),
    Case("idkl_released_e", "idkl_released_e", {}, _SURE),
    Case("idkl_r", "idkl_r", {}, _ROWS),
    Case("idkl_r_relu", "idkl_r", {"form": "relu"}, _ROWS),
    Case("idkl_released_r", "idkl_released_r", {}, _ROWS),
    Case("idkl_released_tri", "idkl_released_tri", {}, _ROWS),
    Case("idkl_released_confuser", "idkl_released_confuser", {}, _ROWS),
    Case("idkl_gem", "idkl_gem", {}, _MAPS),
    Case("idkl_purifier", "idkl_purifier", {}, _MAPS),
    Case("idkl_purifier_map", "idkl_purifier", {"mask": "map"}, _MAPS),
    Case("idkl_modality", "idkl_modality", {}, {"rows": (9, 12)}),
    Case("idkl_reverse", "idkl_reverse", {"strength": 0.7}, {"rows": (3, 5)}),
    Case("idkl", "idkl", {**_SMALL, "preset": "paper"}, _MODEL),
    Case("idkl_official", "idkl", {**_SMALL, "preset": "official"}, _MODEL),
    Case(
        "idkl_sizes",
        "idkl",
        {
            **_SMALL,
            "last_stride": 2,
            "kernels": "xla",
            "reversal_strength": 0.7,
            "purified_weight": 0.1,
            "tgsa_scale": "mean",
            "mdr_csa_weight": 0.5,
        },
        {**_FEW, "size": (96, 48)},
    ),
    Case(
        "idkl_mixed",
        "idkl",
        {
            **_SMALL,
            "mask": "map",
            "confuser": "half_flip",
            "discriminator_input": "purified",
            "enhance_form": "exponential",
            "enhance_head": "own",
            "reduce_form": "relu",
            "tgsa_cross": "mix",
            "tri_margin": 0.8,
            "specific_weight": 0.7,
            "ip_weight": 0.3,
            "block_weight": 0.5,
            "csa_weight": 0.3,
        },
        _FEW,
    ),
    Case(
        "idkl_none",
        "idkl",
        {**_SMALL, "purifier": False, "tgsa_pairs": "self", "mdr_tgsa_weight": 0.0},
        {**_FEW, "size": (32, 16)},
    ),
    Case("idkl_bottleneck", "idkl", {**_SMALL, "depth": 14, "width": 2}, _FEW),
    Case(
        "idkl_trajectory",
        "idkl_trajectory",
        {**_SMALL, "preset": "paper", "optimizer": _ADAM},
        {**_FEW, "steps": 10},
    ),
    Case(
        "idkl_trajectory_official",
        "idkl_trajectory",
        {**_SMALL, "preset": "official", "optimizer": _ADAM},
        {**_FEW, "steps": 10},
    ),
]

INPUTS: dict[str, Callable[[Case], Arrays]] = {
    **dict.fromkeys(("idkl_tgsa", "idkl_csa", "idkl_released_mix", "idkl_released_self"), _rows),
    **dict.fromkeys(("idkl_released_csa", "idkl_released_block"), _rows),
    **dict.fromkeys(("idkl_e", "idkl_released_e"), _two_logits),
    **dict.fromkeys(("idkl_r", "idkl_released_r"), _two_features),
    "idkl_released_tri": feature_batch,
    "idkl_released_confuser": _modality_logits,
    **dict.fromkeys(("idkl_gem", "idkl_purifier"), _maps),
    **dict.fromkeys(("idkl_modality", "idkl_reverse"), _vectors),
    **dict.fromkeys(("idkl", "idkl_trajectory"), batches),
}
