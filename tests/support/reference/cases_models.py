"""The cases of whole models: a step under every option, and short trainings. NumPy only."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .case import Arrays, Case, normal, rng

NOISE = 1e-11


def batches(case: Case) -> Arrays:
    """Images [steps, B, H, W, 3], labels [steps, B]; and what else a method takes.

    CAJ has a second view of visible images, MUN prototypes as earlier steps may have left them.
    """
    s, o, n = case.shape, case.options, case.name
    ids, k, steps = s["ids"], s["instances"], s.get("steps", 1)
    shape = (steps, ids * k, *s["size"], 3)
    persons = [rng(n, "ids", str(t)).permutation(s["classes"])[:ids] for t in range(steps)]
    result = {
        "visible": normal(n, "visible", shape),
        "infrared": normal(n, "infrared", shape),
        "label": np.stack([np.repeat(p, k) for p in persons]).astype(np.int32),
    }
    if o.get("second_view"):
        result["visible_second"] = normal(n, "second", shape)
    if case.kind == "mun" and o.get("prototypes", True):
        features = 8 * o["width"] * (4 if o["depth"] == 14 else 1)
        result["prototype"] = normal(n, "prototype", (ids * k, 3, features))
    return result


def settled(gradients: Arrays) -> Arrays:
    """Gradients that are zero but for rounding, as exact zeros.

    A shift in front of a batch normalization has none; what rounding leaves of the sum is
    another number in every program.
    """
    return {
        k: v if np.abs(v).max(initial=0) > NOISE else np.zeros(v.shape)
        for k, v in gradients.items()
    }


def steady(results: Arrays) -> Arrays:
    """The results of a training without the weights that rounding moves.

    The shift in front of a batch normalization again: Adam divides its gradient, which is nothing
    but rounding, by its own size.
    """
    return {k: v for k, v in results.items() if not k.endswith("depthwise3/bias")}


def start(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights a training starts from: layer scales just below 1, so that it projects them."""
    return {k: 1 - v / 64 if k.endswith("layer_scale") else v for k, v in weights.items()}


def calm(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights, by torch's names or ours, whose attention is as large as the map it is added to.

    It is of the third degree in the map, up to six times in a row, and statistics that were drawn
    do not normalize what it makes. With one inner channel it is small as it is.
    """
    return {
        k: v / 512 if "theta" in re.split(r"[./]", k) and 1 not in np.shape(v) else v
        for k, v in weights.items()
    }


_SMALL: dict[str, Any] = dict(num_classes=6, depth=10, width=8)
_SHAPE: dict[str, Any] = dict(ids=3, instances=2, classes=6)
_TINY = {**_SHAPE, "size": (32, 16)}

# --- SMCL ------------------------------------------------------------------------------------

_SMCL = {**_SMALL, "smgm_width": 4}
_FOUR = {**_TINY, "ids": 4}
_UNIT = dict(smgm_input="unit", normalize_centers=True, center_margin=0.5, metric_weight=0.7)
_BICENTER = dict(auxiliary="x", metric="bicenter", bicenter_margin=0.7, normalize_centers=True)
_HC_TRI = dict(auxiliary="gray", metric="hc_tri", triplet_margin=0.5)
_BH_TRI = dict(auxiliary="mixed", metric="bh_tri", triplet_margin=0.5)
# gamma is exact in float32, which learning rates are kept in.
_ADAM = dict(lr=2**-10, weight_decay=5e-4, milestones=[8], gamma=0.25)

# --- MUN -------------------------------------------------------------------------------------

# 48 x 48 pixels give 12 x 12 maps, which every pooling ratio of the paper divides.
_SQUARE = {**_SHAPE, "size": (48, 48)}
_HALF = {**_SHAPE, "size": (48, 24)}
# A step on the way, at which beta is neither 0 nor 1 and both parts of eq. (14) count.
_MUN = {**_SMALL, "num_steps": 11, "step": 4}
_IMAGES = {**_MUN, "ma_weight": 0.5}
_STEM = dict(specific=1, last_stride=2, kernels="xla", generator_ratios=(3, 6), num_steps=12)
_STEM |= dict(generator_form="folded", normalize=True, tri_margin=0.6, ia_margin=1.1)
_STEM |= dict(ia_weight=0.9, step=10, ma_weight=0.3)
_DEPTH14 = dict(depth=14, width=2, generator_ratios=(2,), generator_remat=True)
_DEPTH14 |= dict(ma_weight=0.6, ida_weight=0.8, idc_weight=0.0)
_SYNCRETIC = dict(auxiliary="syncretic", smgm_width=4, smgm_input="unit", step=0, bridge=False)
_FEATURES = dict(auxiliary="x", prototypes=False, ida_weight=0.3, idc_weight=0.4)
_NEITHER = dict(auxiliary="gray", specific=1, bridge=False, prototypes=False)
_TRAINED = dict(num_steps=10, generator_ratios=(2, 3), ma_weight=0.5)
_ADAMW = dict(lr=2**-8, weight_decay=0.01, backbone=0.1, milestones=[8], gamma=0.25)

# --- IDKL ------------------------------------------------------------------------------------

# 48 x 32 pixels give 3 x 2 maps: normalized over fewer places they would be 1 and -1. An odd
# number of images and an even number of identities, as in the paper.
_PICTURES = {**_SHAPE, "size": (48, 32)}
_ODD = {**_PICTURES, "ids": 4, "instances": 3}
_SIZES = dict(last_stride=2, kernels="xla", reversal_strength=0.7, purified_weight=0.1)
_SIZES |= dict(tgsa_scale="mean", mdr_csa_weight=0.5)
_MIXED = dict(mask="map", confuser="half_flip", discriminator_input="purified")
_MIXED |= dict(enhance_form="exponential", enhance_head="own", reduce_form="relu")
_MIXED |= dict(tgsa_cross="mix", tri_margin=0.8, specific_weight=0.7, ip_weight=0.3)
_MIXED |= dict(block_weight=0.5, csa_weight=0.3)
_NONE = dict(purifier=False, tgsa_pairs="self", mdr_tgsa_weight=0.0)
_COUPLED = dict(lr=2**-9, weight_decay=5e-3)

# --- AGW, DEEN, PDM --------------------------------------------------------------------------

# 64 x 32 pixels give 16 x 8, 8 x 4 and 4 x 2 maps, which DEEN's position attention can halve.
_MAPS = {**_SHAPE, "size": (64, 32)}
_CAJ = {**_SMALL, "depth": 14, "width": 2, "second_view": True, "tri_form": "squared"}
_AGW = dict(last_stride=2, kernels="xla", second_view=True, tri_weight=0.5, normalize=True)
_AGW |= dict(non_local="half", tri_weights="softmax")
_DEEN = {**_SMALL, "preset": "deen"}
_STAGES = dict(kernels="xla", stages=3, branches=3, tri_margin=0.7, cpm_margin=0.5)
_STAGES |= dict(cpm_weight=0.3, normalize=True, ort_weight=0.4)
_PDM = {**_SMALL, "preset": "code"}
# A margin at which the single hinge of eq. (3) is not idle.
_PAPER = {**_SMALL, "preset": "paper", "cpm_margin": 4.0}
_REGDB = dict(depth=14, width=4, stages=3, num_prototypes=4)
_OPTIONS = dict(kernels="xla", last_stride=2, mfa=False, branches=3, num_prototypes=3)
_OPTIONS |= dict(id_global_weight=0.6, cpm_form="single", cpm_margin=1.5, ch_form="cos_min")
_OPTIONS |= dict(ch_weight=0.7, dcs_pull_margin=0.1, dcs_push_margin=1.2, dcs_weight=0.8)
_OPTIONS |= dict(normalize=True)
# Neither features generated nor parts: PDM's baseline with L_dcs.
_PLAIN = dict(branches=0, num_prototypes=0, mfa=False)
# Epochs of two steps: a staircase of two of them, the second at the whole rate, then an eighth of
# it. In powers of 2, which are exact in float32.
_SGD = dict(lr=2**-10, weight_decay=5e-3)


def _training(name: str, kind: str, own: Any, optimizer: Any, shape: Any, steps: int) -> Case:
    options, shape = {**own, "optimizer": optimizer}, {**shape, "steps": steps}
    return Case(name, f"{kind}_trajectory", options, shape)


CASES = [
    # The first step of the metric terms.
    Case("smcl", "smcl", {**_SMCL, "switch": 5, "step": 5}, _FOUR),
    Case("smcl_unit", "smcl", {**_SMCL, **_UNIT, "kernels": "xla"}, _FOUR),
    Case("smcl_none", "smcl", {**_SMCL, "auxiliary": "none", "id_margin": 1.0}, _FOUR),
    Case("smcl_x_bicenter", "smcl", {**_SMCL, **_BICENTER}, _FOUR),
    Case("smcl_gray", "smcl", {**_SMCL, **_HC_TRI}, _FOUR),
    Case("smcl_mixed_hard", "smcl", {**_SMCL, **_BH_TRI}, _FOUR),
    Case("smcl_bdtr", "smcl", {**_SMCL, "metric": "bdtr", "auxiliary": "none"}, _FOUR),
    _training("trajectory", "smcl", {**_SMCL, "switch": 5}, _ADAM, _FOUR, 10),
    Case("mun", "mun", {**_MUN, "ma_weight": 0.7}, _SQUARE),
    # The first step of the same training, where the prototypes have no past.
    Case("mun_first", "mun", {**_MUN, "ma_weight": 0.7, "step": 0}, _SQUARE),
    Case("mun_stem_unit", "mun", {**_MUN, **_STEM}, _HALF),
    Case("mun_depth14", "mun", {**_MUN, **_DEPTH14}, {**_SQUARE, "ids": 2}),
    Case("mun_syncretic_unit", "mun", {**_IMAGES, **_SYNCRETIC}, _TINY),
    Case("mun_x_features", "mun", {**_IMAGES, **_FEATURES}, _TINY),
    Case("mun_gray_neither", "mun", {**_IMAGES, **_NEITHER}, _TINY),
    Case("mun_mixed_ia", "mun", {**_IMAGES, "auxiliary": "mixed", "ma_weight": 0.0}, _TINY),
    Case("mun_none", "mun", {**_MUN, "auxiliary": "none"}, _TINY),
    _training("mun_trajectory", "mun", {**_MUN, **_TRAINED}, _ADAMW, _HALF, 10),
    Case("idkl", "idkl", {**_SMALL, "preset": "paper"}, _ODD),
    Case("idkl_official", "idkl", {**_SMALL, "preset": "official"}, _ODD),
    Case("idkl_sizes", "idkl", {**_SMALL, **_SIZES}, {**_SHAPE, "size": (96, 48)}),
    Case("idkl_mixed", "idkl", {**_SMALL, **_MIXED}, _PICTURES),
    Case("idkl_none", "idkl", {**_SMALL, **_NONE}, _TINY),
    Case("idkl_bottleneck", "idkl", {**_SMALL, "depth": 14, "width": 2}, _PICTURES),
    _training("idkl_trajectory", "idkl", {**_SMALL, "preset": "paper"}, _COUPLED, _PICTURES, 10),
    _training(
        "idkl_trajectory_official",
        "idkl",
        {**_SMALL, "preset": "official"},
        _COUPLED,
        _PICTURES,
        10,
    ),
    Case("agw", "agw", {**_SMALL, "depth": 18, "width": 4}, _PICTURES),
    Case("agw_caj", "agw", _CAJ, _PICTURES),
    Case("agw_options", "agw", {**_SMALL, **_AGW}, _PICTURES),
    Case("deen", "multi_feature", _DEEN, _MAPS),
    Case("deen_regdb", "multi_feature", {**_DEEN, **_STAGES}, _MAPS),
    Case("pdm", "multi_feature", _PDM, _MAPS),
    Case("pdm_paper", "multi_feature", _PAPER, _PICTURES),
    Case("pdm_regdb", "multi_feature", {**_PDM, **_REGDB}, _MAPS),
    Case("pdm_options", "multi_feature", {**_PDM, **_OPTIONS}, _PICTURES),
    Case("pdm_plain", "multi_feature", {**_PDM, **_PLAIN}, _PICTURES),
    _training("agw_trajectory", "agw", _CAJ, _SGD, _PICTURES, 6),
    _training("pdm_trajectory", "multi_feature", _PDM, _SGD, _MAPS, 6),
]
INPUTS: dict[str, Callable[[Case], Arrays]] = dict.fromkeys({c.kind for c in CASES}, batches)
