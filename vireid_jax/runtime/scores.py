"""The scores of a run's checkpoints: `scores.json` beside the steps, {step: {metric: value}}.

Kept apart from the arrays, so that a step is written once and may be scored later.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping

from absl import logging

from vireid_jax.runtime import files

SCORES = "scores.json"

Scores = Mapping[int, Mapping[str, float]]


def read(directory: pathlib.Path) -> dict[int, dict[str, float]]:
    """The scores in `directory`; none, with a warning, if the file cannot be read."""
    path = directory / SCORES
    try:
        text = json.loads(path.read_text())
        return {int(s): {k: float(v) for k, v in m.items()} for s, m in text.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        logging.warning("%s cannot be read (%s): earlier scores are not known", path, error)
        return {}


def write(directory: pathlib.Path, scores: Scores) -> None:
    """Replaces the file at once: a reader sees the old scores or the new ones."""
    # JSON has no NaN; float() reads the strings back.
    text = {
        str(step): {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
        for step, metrics in sorted(scores.items())
    }
    files.write_whole(directory / SCORES, json.dumps(text, indent=1, allow_nan=False) + "\n")


def best(steps: Iterable[int], scores: Scores, metric: str | None) -> int | None:
    """The step with the highest `metric`, the later one of equals; None if none is scored."""
    if metric is None:
        return None
    known = [(scores[s][metric], s) for s in steps if s in scores and metric in scores[s]]
    return max(((v, s) for v, s in known if not math.isnan(v)), default=(None, None))[1]
