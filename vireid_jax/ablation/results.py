"""What a cell has saved: whether it is trained, and the scores that fit what is wanted."""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from vireid_jax.ablation.plan import Cell, Score
from vireid_jax.runtime import files

TRAINED = "trained.json"  # in the folder of a cell whose training has come to its end


def mark_trained(cell: Cell) -> None:
    """Writes down that the training has ended, and at which step.

    A folder with results need not be one of those: any checkpoint can be scored.

    Raises:
      ValueError: no result of a last state is there, or one cannot be read.
    """
    steps = [
        int(path.parent.name)
        for path in cell.folder.glob("eval/*/*.json")
        if path.parent.name.isdigit() and _load(path).get("checkpoint") == "last"
    ]
    if not steps:
        raise ValueError(f"{cell.folder} holds no results although its command has ended well")
    files.write_whole(cell.folder / TRAINED, json.dumps({"step": max(steps)}) + "\n")


def trained_at(folder: pathlib.Path) -> int | None:
    """The last step of a cell's training; None while it has not come to its end.

    Raises:
      ValueError: the file that says so cannot be read.
    """
    path = folder / TRAINED
    return int(_load(path)["step"]) if path.exists() else None


def metrics(cell: Cell, score: Score) -> dict[str, float] | None:
    """{"R1": ..., "mAP": ...} as fractions; None if it is not trained or not scored like that.

    A result counts only if it was measured as the cell's eval section says: another number of
    draws or repeats, another gallery, or work at test time make other results.

    Raises:
      ValueError: it was scored like that on two sets of test images, or a file cannot be read.
    """
    step = trained_at(cell.folder)
    if step is None:
        return None
    folder = cell.folder / "eval" / str(step)
    found = [_read(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.json"))]
    fitting = [result for result in found if _fits(result, score, cell.config)]
    if len(fitting) > 1:
        raise ValueError(
            f"{folder} holds {len(fitting)} results of {score.protocol}, {score.feature}: of "
            "several test sets; delete those that are not meant"
        )
    if not fitting:
        return None
    values = {name: float(value) for name, value in fitting[0]["metrics"].items()}
    return values if all(math.isfinite(value) for value in values.values()) else None


def missing(cell: Cell) -> list[Score]:
    """The wanted scores that the cell lacks.

    Raises:
      ValueError: as `metrics`.
    """
    return [score for score in cell.scores if metrics(cell, score) is None]


@functools.cache
def _read(path: pathlib.Path, changed: int) -> dict[str, Any]:
    """A result without its long lists; a table is written after every cell, from all of them."""
    del changed  # a file that is replaced is read again
    return {key: value for key, value in _load(path).items() if key not in ("per_query", "curves")}


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
        raise ValueError(f"it holds a {type(found).__name__}, expected an object")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: {error}; delete it to have it made again"
        ) from error


def _fits(result: Mapping[str, Any], score: Score, config: Mapping[str, Any]) -> bool:
    from vireid_jax.metrics import get_protocol

    protocol = get_protocol(score.protocol)
    wanted: dict[str, Any] = {
        "checkpoint": "last",
        "protocol": score.protocol,
        "feature": score.feature,
        "corrupt": score.corrupt,
        "gallery": config["eval.gallery"] if protocol.drawn else "all",
    }
    if any(result.get(key) != value for key, value in wanted.items()):
        return False
    if result.get("flip") or result.get("rerank"):
        return False
    if score.corrupt is not None:  # of the first draw alone
        repeats = (config["eval.corrupt_repeats"], config["eval.corrupt_seed"])
        return (result["results"], result["corrupt_seed"]) == repeats
    asked = config["eval.trials"] if protocol.drawn else None
    return len(result["trials"]) == (asked or protocol.trials)
