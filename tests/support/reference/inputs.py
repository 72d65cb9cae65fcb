"""Every case that is compared, by name, and its inputs. NumPy only."""

import functools

from . import (
    cases_auxiliary,
    cases_core,
    cases_idkl,
    cases_metric,
    cases_mun,
    cases_pdm,
    cases_pdm_model,
)
from .case import Arrays, Case

_MODULES = (
    cases_core,
    cases_metric,
    cases_auxiliary,
    cases_mun,
    cases_idkl,
    cases_pdm,
    cases_pdm_model,
)
_ALL: list[Case] = [case for module in _MODULES for case in module.CASES]
CASES = {c.name: c for c in _ALL}
INPUTS = {kind: make for module in _MODULES for kind, make in module.INPUTS.items()}


def cases(*kinds: str) -> list[str]:
    """The names of the cases of these kinds."""
    return [c.name for c in _ALL if c.kind in kinds]


@functools.cache
def case_inputs(name: str) -> Arrays:
    """The inputs of a case by name; treat them as constants."""
    return INPUTS[CASES[name].kind](CASES[name])
