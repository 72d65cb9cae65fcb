"""What the PyTorch references give for a case: values, gradients, new statistics, in float64."""

from . import (
    expected_auxiliary,
    expected_core,
    expected_idkl,
    expected_metric,
    expected_mun,
    expected_pdm,
    expected_pdm_model,
)
from .case import Arrays
from .inputs import CASES

COMPUTE = {
    **expected_core.COMPUTE,
    **expected_metric.COMPUTE,
    **expected_auxiliary.COMPUTE,
    **expected_mun.COMPUTE,
    **expected_idkl.COMPUTE,
    **expected_pdm.COMPUTE,
    **expected_pdm_model.COMPUTE,
}


def compute(name: str) -> Arrays:
    """Runs the reference of one case.

    Returns:
      float64 arrays: "value" or "total" and "terms/...", "grad/..." by input or parameter
      path, "batch_stats/..." after the step, "embed/..."; trajectories have "history/..."
      [steps] and final "params/...".
    """
    return COMPUTE[CASES[name].kind](CASES[name])
