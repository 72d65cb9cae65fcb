"""What the references give for the cases of `cases_pdm`."""

from collections.abc import Callable
from typing import Any

import torch

from . import attention, expansion, pairmining
from .case import Arrays, Case
from .inputs import case_inputs
from .running import images, loss, module


def _released_cpm(case: Case) -> Arrays:
    def function(features: torch.Tensor) -> torch.Tensor:
        return pairmining.released_cpm(features, case.shape["ids"])

    return loss(case, function, "features")


def _module(case: Case, make: Callable[..., torch.nn.Module], *sizes: int) -> Arrays:
    options: dict[str, Any] = {k: v for k, v in case.options.items() if k != "train"}
    inputs = {k: images(v) for k, v in case_inputs(case.name).items()}
    return module(case, make(*sizes, **options), inputs)


def _of_width(make: Callable[..., torch.nn.Module]) -> Callable[[Case], Arrays]:
    return lambda case: _module(case, make, case.shape["maps"][-1])


def _of_two(make: Callable[..., torch.nn.Module]) -> Callable[[Case], Arrays]:
    return lambda case: _module(case, make, case.shape["high"][-1], case.shape["low"][-1])


def _prototypes(case: Case) -> Arrays:
    _, height, width, channels = case.shape["maps"]
    return _module(case, expansion.Prototypes, channels, height * width)


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    "cpm": lambda case: loss(case, pairmining.center_pair_mining, "original", "generated"),
    "cpm_released": _released_cpm,
    "ort": lambda case: loss(case, pairmining.orthogonality, "features"),
    "ort_released": lambda case: loss(case, pairmining.released_ort, "features"),
    "dcs": lambda case: loss(case, pairmining.dual_center_separation, "features"),
    "dcs_released": lambda case: loss(case, pairmining.released_dcs, "features", "labels"),
    "ch": lambda case: loss(case, pairmining.heterogeneity, "logits"),
    "caj": lambda case: loss(case, pairmining.squared_difference, "features", "labels"),
    "caj_far": lambda case: loss(case, pairmining.squared_difference, "features", "labels"),
    "nonlocal": _of_width(attention.NonLocal),
    "cnl": _of_two(attention.ChannelAttention),
    "pnl": _of_two(attention.PositionAttention),
    "mfa": _of_two(attention.Aggregation),
    "expansion": _of_width(expansion.Expansion),
    "plm": _prototypes,
    "simam": lambda case: _module(case, expansion.SimAM),
}
