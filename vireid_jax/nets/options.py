"""Checks and look-ups that the `build` functions of the methods share."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def check(
    *,
    choices: Mapping[str, tuple[str, Sequence[str]]],
    not_negative: Mapping[str, float],
    num_classes: int,
) -> None:
    """Refuses impossible options before anything is traced.

    Args:
      choices: option -> (value, allowed values).
      not_negative: option -> number.
      num_classes: identities in training.

    Raises:
      ValueError: naming the option, what it is and what it may be.
    """
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"method.{name} is {value!r}, expected one of {list(allowed)}")
    for name, number in not_negative.items():
        if not number >= 0:  # NaN too
            raise ValueError(f"method.{name} is {number}, expected 0 or more")
    if num_classes < 2:
        raise ValueError(f"{num_classes} training identities, expected at least 2")


DTYPES = ("float32", "bfloat16")
KERNELS = ("auto", "xla", "cpu")


def compute_dtype(dtype: str) -> Any:
    """The compute type of modules; None (for "float32") lets them follow their input.

    A float64 input then stays float64, which is how whole networks are compared.
    """
    return jnp.bfloat16 if dtype == "bfloat16" else None


def resolve_kernels(kernels: str) -> str:
    """Turns "auto" into "cpu" on CPU, where those are faster, and "xla" on accelerators."""
    if kernels == "auto":
        return "cpu" if jax.default_backend() == "cpu" else "xla"
    return kernels
