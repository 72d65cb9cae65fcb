"""One result of several like it: RegDB's ten splits, repeats of a corruption, seeds.

`evaluate` averages over the gallery draws of one model. What is averaged over models, or over
repeats of a random corruption, is averaged here: each result counts once, and the spread is that
of the results, not that of the draws within them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CORRUPTED = "-C (vireid)"  # images were corrupted, by code of ours: see `data.corrupt`

# What must be equal for a mean to mean something.
MEASURED = (
    "protocol", "feature", "gallery", "cmc", "ties", "flip", "rerank", "corrupt", "corrupt_seed",
    "dataset", "test_set", "direction",
)  # fmt: skip


def combine(results: Sequence[Mapping[str, Any]], *, over: str) -> dict[str, Any]:
    """The mean of results that were measured alike, with their spread.

    Args:
      results: dicts of `evaluate`, with or without the keys that a run adds (dataset, ...).
      over: what the results differ in, for the table: "splits", "seeds", "repeats", ... Only
        "splits" may have been scored on different test images.

    Returns:
      A dict like theirs: "metrics", "chance" and "curves" are means over the results, "std" their
      standard deviation (divided by their number), "trials" the metrics of each result, "over",
      "results" (how many) and "draws" (of each of them); "counts" are the first result's, ties
      those of all. Results per query are left out.

    Raises:
      ValueError: no results, or results that were not measured alike; the message names the key.
    """
    if not results:
        raise ValueError("there are no results to combine, expected at least one")
    first = results[0]
    kept = {key: first[key] for key in MEASURED if key in first}
    if over == "splits":
        kept.pop("test_set", None)  # the splits' own
    for key in (*MEASURED, "trials"):
        if key == "test_set" and over == "splits":
            continue
        values = {str(len(r[key]) if key == "trials" else r.get(key)) for r in results}
        if len(values) > 1:
            raise ValueError(
                f"results differ in {key!r}: {', '.join(sorted(values))}; a mean over them would "
                "say nothing, combine those that were measured alike"
                + (" (of RegDB's trials: over 'splits')" if key == "test_set" else "")
            )
    names = list(first["metrics"])
    table = {name: np.array([result["metrics"][name] for result in results]) for name in names}
    tied = sum(result["counts"]["tied_true_images"] for result in results)
    return {
        **kept,
        "metrics": {name: float(values.mean()) for name, values in table.items()},
        "std": {name: float(values.std()) for name, values in table.items()},
        "trials": [dict(result["metrics"]) for result in results],
        "chance": _mean([result["chance"] for result in results]),
        "curves": {
            key: np.mean([result["curves"][key] for result in results], axis=0).tolist()
            for key in first["curves"]
        },
        "counts": {**first["counts"], "tied_true_images": tied},
        "over": over,
        "results": len(results),
        "draws": first.get("draws", len(first["trials"])),
    }


def _mean(dicts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([d[key] for d in dicts])) for key in dicts[0]}


def row_label(result: Mapping[str, Any]) -> str:
    """The feature of a result with what was done to it, such as "bn, flip, re-ranked"."""
    marks = [str(result["feature"])]
    if result.get("flip"):
        marks.append("flip")
    if result.get("rerank"):
        scope = "" if result["rerank"] == "all" else f" ({result['rerank']})"
        marks.append(f"re-ranked{scope}")
    if result.get("corrupt"):
        marks.append(f"{result['corrupt']} {CORRUPTED}")
    return ", ".join(marks)
