"""What the references give for the cases of `cases_auxiliary`."""

from collections.abc import Callable
from typing import Any

import torch

from . import auxiliary
from .case import Arrays, Case
from .inputs import case_inputs
from .running import images, module


def _options(case: Case) -> dict[str, Any]:
    return {k: v for k, v in case.options.items() if k != "train"}


def _run(case: Case, model: torch.nn.Module) -> Arrays:
    return module(case, model, {k: images(v) for k, v in case_inputs(case.name).items()})


def _x(case: Case) -> Arrays:
    o = case.options
    return _run(case, auxiliary.X(o["width"], o.get("input", "unit")))


def _intra(case: Case) -> Arrays:
    return _run(case, auxiliary.IML(case.shape["map"][-1], **_options(case)))


def _cross(case: Case) -> Arrays:
    _, height, width, channels = case.shape["map"]
    return _run(case, auxiliary.CML(channels, (height, width), **_options(case)))


class _Joined(auxiliary.Unifying):
    """The three maps of the generator, one after the other along channels."""

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> Any:
        return torch.cat(super().forward(visible, infrared), 1)


def _generator(case: Case) -> Arrays:
    _, height, width, channels = case.shape["map"]
    return _run(case, _Joined(channels, (height, width), **_options(case)))


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    "aux_x": _x,
    "aux_gray": lambda case: _run(case, auxiliary.Gray()),
    "aux_mixed": lambda case: _run(case, auxiliary.Mixed()),
    "aux_intra": _intra,
    "aux_cross": _cross,
    "aux_generator": _generator,
}
