"""Arrays of a step that do not grow with its batch: of weights and statistics, not of rows.

Devices may sum the gradient of a product of weights before the parameters' gradients are made of
it. It is as large as no parameter is, and unlike a map it stays as it is when the batch grows:
a kernel as a matrix of places (nets/multifeature.py), kernels folded (nets/auxiliary/folding.py).
"""

import math
from typing import Any

from jax.extend import core


def sizes(one: Any, other: Any) -> set[int]:
    """How many numbers the arrays have that are in a step for one batch and for another.

    Args:
      one, other: `jax.jit(...).trace(...)` of the step, with numbers of rows that are near each
        other: a map of one is then hardly as large as another map of the other.

    Returns:
      The sizes, also within the functions that are called, but not within loops, whose arrays may
      be of single rows.
    """
    return _all(one.jaxpr.jaxpr) & _all(other.jaxpr.jaxpr)


def _all(jaxpr: core.Jaxpr) -> set[int]:
    found: set[int] = set()
    for equation in jaxpr.eqns:
        shapes = [getattr(v.aval, "shape", ()) for v in equation.outvars]
        found |= {math.prod(shape) for shape in shapes}
        if equation.primitive.name not in ("scan", "while"):
            for value in equation.params.values():
                found |= _of(value)
    return found


def _of(value: Any) -> set[int]:
    if isinstance(value, core.ClosedJaxpr):
        return _all(value.jaxpr)
    if isinstance(value, core.Jaxpr):
        return _all(value)
    if isinstance(value, tuple | list):  # the branches of a condition
        return set().union(*map(_of, value))
    return set()
