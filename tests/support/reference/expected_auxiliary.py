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


def _channels(case: Case) -> int:
    return case.shape["map"][-1]


class _Joined(auxiliary.Unifying):
    """The three maps of the generator, one after the other along channels."""

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> Any:
        return torch.cat(super().forward(visible, infrared), 1)


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    "aux_x": lambda case: _run(case, auxiliary.X()),
    "aux_gray": lambda case: _run(case, auxiliary.Gray()),
    "aux_mixed": lambda case: _run(case, auxiliary.Mixed()),
    "aux_intra": lambda case: _run(case, auxiliary.IML(_channels(case))),
    "aux_cross": lambda case: _run(case, auxiliary.CML(_channels(case), **_options(case))),
    "aux_generator": lambda case: _run(case, _Joined(_channels(case), **_options(case))),
}
