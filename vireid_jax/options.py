"""What the options of a recipe may be: types by the signature of what takes them, ranges here.

A section of a recipe is splatted into one callable. Its parameters are the section's keys, and
their annotations the types. This file imports nothing of the package, so that everything may ask.
"""

import difflib
import fnmatch
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Numbers from low to high; what is infinite or NaN is in none."""

    low: float
    high: float
    open: bool = False  # low itself is out

    def __contains__(self, value: object) -> bool:
        """Whether the number is in it."""
        number: Any = value
        return bool(self.low < number <= self.high or (number == self.low and not self.open))

    def __str__(self) -> str:
        """As a message and the docs say it."""
        low, high = (f"{int(n):,}" if n == int(n) else f"{n:g}" for n in (self.low, self.high))
        return f"above {low} and up to {high}" if self.open else f"from {low} to {high}"


_COUNT, _EPOCHS, _SHARE = Range(1, 10_000), Range(0, 1e6), Range(0, 1)

# By key; the first pattern that fits counts. A range holds for every number of a tuple. The upper
# bounds are far beyond what makes sense, and stop what would take all memory or all time.
RANGES: Mapping[str, Range] = {
    "seed": Range(0, 2**32 - 1),
    "data.image_size": Range(8, 2048),
    "data.seed": Range(0, 2**63 - 1),
    "data.world": Range(0, 2**63 - 1),
    "data.test_share": Range(0, 1, open=True),
    "data.trial": Range(1, 10),
    "data.train_ids": Range(1, 4000),
    "data.test_ids": Range(1, 3999),
    "data.*_ids": Range(0, 10_000),
    "data.*": _COUNT,
    "sampler.num_ids": Range(2, 4096),
    "sampler.num_instances": Range(1, 4096),
    "sampler.steps_per_epoch": Range(1, 10**6),
    "loader.prefetch": Range(1, 1000),
    "augment.pad": Range(0, 1024),
    "augment.pad_value": Range(0, 255),
    "augment.erase_aspect": Range(0, 100, open=True),
    "augment.erase_attempts": _COUNT,
    "augment.erase_value": Range(-100, 100),
    "augment.*": _SHARE,
    "optim.lr": Range(0, 1000),
    "optim.weight_decay": Range(0, 1000),
    "optim.momentum": _SHARE,
    "optim.gamma": Range(0, 100),
    "optim.warmup_factor": Range(0, 100),
    "optim.clip_norm": Range(0, 1e9),
    "optim.multipliers": Range(0, 1e6),
    "optim.*": _EPOCHS,
    "train.epochs": Range(0, 1e6, open=True),
    "train.log_every": Range(0, 10**9),
    "train.keep": _COUNT,
    "train.*": _EPOCHS,
    "devices.*": Range(1, 65_536),
    "eval.trials": _COUNT,
    "eval.corrupt_repeats": _COUNT,
    "eval.corrupt_seed": Range(0, 2**32 - 1),
    "eval.batch_size": Range(1, 65_536),
    "eval.memory_mb": Range(1, 10**6),
    "method.width": Range(1, 1024),
    "method.last_stride": Range(1, 2),
    "method.*dropout": _SHARE,
    "method.smgm_width": Range(1, 1024),
    "method.branches": Range(0, 16),
    "method.num_prototypes": Range(0, 1024),
    "method.*": Range(0, 1e6),
}
# Where things are, which may differ between the hosts of a run.
PATHS = ("data.cache", "data.prepared", "data.root", "init.weights", "eval.rand_perm")
RENDERED = "rendered"  # init.weights: what comes with the package, which is no path
WHY = {"train.keep": "resuming needs one checkpoint", "sampler.num_ids": "negatives are needed"}


class OptionError(ValueError):
    """An option of a recipe is wrong; `key` says which, such as "optim.lr"."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def full_path(text: str, key: str = "") -> str:
    """A path from the root, with the name of the file itself as it is: its ending says the kind.

    What is no path stays as it is; `key` is the option's.
    """
    if not text or "://" in text or (key, text) == ("init.weights", RENDERED):
        return text
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(text)))
    return os.path.join(os.path.realpath(folder), name)


def full_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config whose paths no longer depend on the folder that a command runs in."""
    found = dict(config)
    for section, name in (key.split(".") for key in PATHS):
        options = found.get(section)
        if isinstance(options, Mapping) and isinstance(options.get(name), str):
            found[section] = {**options, name: full_path(options[name], f"{section}.{name}")}
    return found


def range_of(key: str) -> Range | None:
    """The range of the numbers of an option; None where there is none."""
    return next((r for pattern, r in RANGES.items() if fnmatch.fnmatchcase(key, pattern)), None)


def check(section: str, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises OptionError for a value that the parameter of a function cannot be."""
    check_types(section, values, hints_of(function))
    check_ranges(section, values)


def check_ranges(section: str, values: Mapping[str, Any]) -> None:
    """Raises OptionError for a number of a section that is out of its range."""
    for name, value in values.items():
        key = f"{section}.{name}" if section else name
        allowed = range_of(key)
        if allowed and not all(number in allowed for number in _numbers(value)):
            what = "numbers" if isinstance(value, (tuple, list)) else "a number"
            why = f"; {WHY[key]}" if key in WHY else ""
            raise OptionError(key, f"{key} is {value!r}, expected {what} {allowed}{why}")


def check_types(section: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises OptionError for a value of a section that is of another type than its hint."""
    for name, value in values.items():
        if not _fits(value, hints.get(name, Any)):
            key = f"{section}.{name}" if section else name
            raise OptionError(key, f"{key} is {value!r}, expected {kind(hints[name])}")


def check_keys(
    section: str, given: Collection[str], needed: Collection[str], known: Collection[str]
) -> None:
    """Raises OptionError for a key that is not known, or one that is needed and absent."""
    of = f"the section {section!r} of the recipe" if section else "the recipe"
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 3) or sorted(known)
            key = f"{section}.{name}" if section else name
            raise OptionError(key, f"{of} has the unknown key {name!r}; expected {_or(near)}")
    for name in needed:
        if name not in given:
            key = f"{section}.{name}" if section else name
            raise OptionError(key, f"{of} lacks the key {name!r}; add it")


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """{parameter: its type} of what takes a section; Any where no type is given."""
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    return {name: hints.get(name, Any) for name in parameters}


def kind(hint: Any) -> str:
    """A type in words."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _or(dict.fromkeys(kind(part) for part in inside))
    if origin is tuple and ... not in inside:
        return f"({', '.join(map(kind, inside))})"
    if origin is not None and issubclass(origin, Sequence):
        return f"a tuple, each {kind(inside[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    return {**names, Sequence: "a tuple", type(None): "None"}.get(hint, "a path")


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in inside)
    if origin is not None and issubclass(origin, Sequence):
        if not isinstance(value, (tuple, list)):
            return False
        if origin is tuple and ... not in inside:
            same = len(value) == len(inside)
            return same and all(map(_fits, value, inside))
        return all(_fits(part, inside[0]) for part in value)
    if hint in (int, float):
        wanted = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, numbers.Real) and not isinstance(value, bool) else []


def _or(names: Collection[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
