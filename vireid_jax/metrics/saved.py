"""Results as a run saved them, read with care: anything may have happened to a file."""

import pathlib
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vireid_jax.metrics.results import METRICS, Chance
from vireid_jax.runtime import files


class _Form(NamedTuple):
    """What a value has to be."""

    expected: str
    fits: Callable[[Any], bool]


def _one_of(*values: str) -> _Form:
    return _Form(f"one of {', '.join(values)}", lambda v: isinstance(v, str) and v in values)


def is_share(value: Any) -> bool:
    """Whether a value of a file can be an mAP: a number from 0 to 1."""
    return type(value) in (int, float) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and len(value.splitlines()) == 1


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_share, value))


def _are_trials(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(trial, dict) and all(is_share(trial.get(name)) for name in METRICS)
        for trial in value or [None]
    )


_TEXT = _Form("a text of one line", _is_text)
_SHARE = _Form("a number from 0 to 1", is_share)
_COUNT = _Form("a count", lambda v: type(v) is int and 0 <= v < 1 << 53)
_CURVE = _Form("a list of numbers from 0 to 1", _is_curve)
_OBJECT = _Form("an object", lambda v: isinstance(v, dict))
_COUNTS = ("queries", "valid_queries", "gallery_images", "gallery_ids", "tied_true_images")
_NEEDED = {
    "protocol": _TEXT,
    "feature": _TEXT,
    "direction": _Form("as 'a to b'", lambda v: _is_text(v) and v.count(" to ") == 1),
    "gallery": _one_of("agw", "official", "all"),
    "cmc": _one_of("id", "image"),
    "trials": _Form("a list with numbers from 0 to 1 of each draw", _are_trials),
    **{f"{group}.{name}": _SHARE for group in ("metrics", "std") for name in METRICS},
    **{f"chance.{name}": _SHARE for name in Chance._fields},
    **{f"counts.{name}": _COUNT for name in _COUNTS},
    **{f"curves.{name}": _CURVE for name in ("cmc_id", "cmc_image")},
}
_OPTIONAL = {
    **dict.fromkeys(("ties", "rerank", "corrupt", "dataset", "test_set", "over"), _TEXT),
    **dict.fromkeys(("step", "results", "draws"), _COUNT),
    **dict.fromkeys(
        ("seed", "trial", "corrupt_seed"), _Form("an integer", lambda v: type(v) is int)
    ),
    **dict.fromkeys(("data", "recipe"), _OBJECT),
    "flip": _Form("true or false", lambda v: isinstance(v, bool)),
    "checkpoint": _Form("a text or a count", lambda v: _is_text(v) or _COUNT.fits(v)),
}


def read_results(run: pathlib.Path, step: str | None = None) -> list[dict[str, Any]]:
    """The results that a run saved at a step (None: the last that was scored).

    Args:
      run: its folder, or the folder of a step in it, RUN/eval/STEP.
      step: which; of no effect where `run` says it.

    Raises:
      FileNotFoundError: the run has none; the message says what there is.
      ValueError: a file is damaged; the message names it, and what is wrong.
    """
    if folder_of(run) != run:
        run, step = folder_of(run), run.name
    folder = run / "eval"
    steps = sorted((p.name for p in folder.glob("*") if folder_of(p) == run), key=int)
    if not steps or step not in (None, *steps):
        raise FileNotFoundError(
            f"{folder} holds results of {', '.join(steps) or 'no step'}, expected "
            f"{'some' if step is None else 'step ' + step}; score the run with "
            f"--mode=eval --workdir {run}"
        )
    results = []
    for file in sorted((folder / (step or steps[-1])).glob("*.json")):
        result = files.read_object(file)
        if fault := find_fault(result):
            raise ValueError(
                f"{file} is damaged: {fault}; delete it, and score the run again with "
                f"--mode=eval --workdir {run}"
            )
        results.append(result)
    return results


def folder_of(run: pathlib.Path) -> pathlib.Path:
    """The folder of a run, whether it or a step in it, RUN/eval/STEP, is named."""
    step = run.name
    is_step = run.parent.name == "eval" and step.isascii() and step.isdigit() and len(step) < 20
    return run.parent.parent if is_step else run


def find_fault(result: Mapping[str, Any]) -> str | None:
    """What is wrong with a result: a key that is missing, a type, a number out of range.

    Results per query are not looked at. None: nothing is wrong.
    """
    optional = {key: form for key, form in _OPTIONAL.items() if result.get(key) is not None}
    for key, form in {**_NEEDED, **optional}.items():
        group, _, name = key.partition(".")
        value = result.get(group)
        if name:
            value = value.get(name) if isinstance(value, dict) else None
        if not form.fits(value):
            text = "absent" if value is None else reprlib.repr(value)
            return f"{key} is {text}, expected {form.expected}"
    if len({len(curve) for curve in result["curves"].values()}) > 1:
        return "its curves have different lengths"
    return None
