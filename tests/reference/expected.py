"""What the PyTorch references give for a case: values, gradients, new statistics, in float64."""

import importlib
import importlib.util

from .case import Arrays
from .inputs import CASES, PARTS

COMPUTE = {
    kind: run
    for part in PARTS
    if importlib.util.find_spec(f".expected_{part}", __package__)
    for kind, run in importlib.import_module(f".expected_{part}", __package__).COMPUTE.items()
}


def compute(name: str) -> Arrays:
    """Runs the reference of one case.

    Returns:
      float64 arrays: "value" or "total" and "terms/...", "grad/..." by input or parameter
      path, "batch_stats/..." after the step, "embed/..."; trajectories have "history/..."
      [steps] and final "params/...".
    """
    return COMPUTE[CASES[name].kind](CASES[name])
