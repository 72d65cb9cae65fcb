"""Every case that is compared, by name, and its inputs. NumPy only."""

import functools
import importlib
import importlib.util

from .case import Arrays, Case

PARTS = ("core", "metric", "auxiliary", "mun")
_MODULES = [
    importlib.import_module(f".cases_{part}", __package__)
    for part in PARTS
    if importlib.util.find_spec(f".cases_{part}", __package__)
]
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
