"""What the PyTorch references give for a case: values, gradients, new statistics, in float64."""

from . import expected_models, expected_parts
from .case import Arrays
from .inputs import CASES

COMPUTE = {**expected_parts.COMPUTE, **expected_models.COMPUTE}


def compute(name: str) -> Arrays:
    """Runs the reference of one case.

    Returns:
      float64 arrays: "value" or "total" and "terms/...", "grad/..." by input or parameter
      path, "batch_stats/..." after the step, "embed/..."; trajectories have "history/..."
      [steps] and final "params/...".
    """
    return COMPUTE[CASES[name].kind](CASES[name])
