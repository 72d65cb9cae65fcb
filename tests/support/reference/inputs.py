"""Every case that is compared, by name, and its inputs. NumPy only."""

import functools

from . import cases_models, cases_parts
from .case import Arrays, Case

_ALL: list[Case] = [*cases_parts.CASES, *cases_models.CASES]
CASES = {c.name: c for c in _ALL}
INPUTS = {**cases_parts.INPUTS, **cases_models.INPUTS}


def cases(*kinds: str) -> list[str]:
    """The names of the cases of these kinds."""
    return [c.name for c in _ALL if c.kind in kinds]


@functools.cache
def case_inputs(name: str) -> Arrays:
    """The inputs of a case by name; treat them as constants."""
    return INPUTS[CASES[name].kind](CASES[name])
