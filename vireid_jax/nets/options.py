"""Checks and look-ups that the `build` functions of the methods share."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.nets.resnet import feature_width, map_size


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


def check_expanded(
    *,
    depth: int,
    width: int,
    last_stride: int,
    image_size: tuple[int, int],
    stages: int,
    mfa: bool,
    branches: int,
    dropout: float,
    num_ids: int,
) -> None:
    """Refuses what a `MultiFeatureNet` cannot be built of, before anything is traced.

    Raises:
      ValueError: naming the option, what it is and what it may be.
    """
    feature_width(depth, width)  # refuses an unknown depth
    if stages not in (3, 4):
        raise ValueError(f"method.stages is {stages}, expected 4, or 3 to end with layer3")
    if branches < 0:
        raise ValueError(f"method.branches is {branches}, expected 0 or more")
    if not 0 <= dropout < 1:
        raise ValueError(f"method.dropout is {dropout}, expected 0 to below 1")
    if num_ids < 2:
        raise ValueError(f"sampler.num_ids is {num_ids}, expected at least 2: negatives are needed")
    for stage in range(stages if mfa else 0):
        height, wide = map_size(image_size, stage, last_stride)
        if height * wide % 2:
            raise ValueError(
                f"data.image_size is {tuple(image_size)}, whose map of {height} x {wide} places "
                "the position attention of method.mfa cannot halve; choose a height or width that "
                "is a multiple of 32, or method.mfa=False"
            )


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
