"""The mean of several runs, such as RegDB's ten splits: see `--help`."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from vireid_jax import __version__
from vireid_jax.metrics.results import combine, row_label
from vireid_jax.metrics.table import format_table, to_markdown
from vireid_jax.runtime import accept_any_text

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.metrics",
        description="Print the mean and the spread over runs that were measured alike, from the "
        "results that they saved: the ten splits of RegDB, or seeds.",
    )
    parser.add_argument("--version", action="version", version=f"vireid_jax {__version__}")
    parser.add_argument(
        "runs",
        nargs="+",
        type=pathlib.Path,
        metavar="RUN",
        help="folders of runs, or of a step (RUN/eval/400)",
    )
    parser.add_argument("--step", help="which of a run's scored steps (default: the last)")
    parser.add_argument("--over", default="runs", help="what the runs differ in (default: runs)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", metavar="FILE", help="write the combined results as JSON, too")
    args = parser.parse_args(argv)
    try:
        combined = [combine(alike, over=args.over) for alike in _groups(args.runs, args.step)]
        show = to_markdown if args.markdown else format_table
        print("\n\n".join(f"{title}\n\n{show(rows)}" for title, rows in _tables(combined)))
        if args.json:
            text = json.dumps(combined, indent=1, allow_nan=False)
            pathlib.Path(args.json).write_text(text + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _groups(runs: Sequence[pathlib.Path], step: str | None) -> list[list[Result]]:
    """The results that make one row each, of all runs; a row that a run lacks is left out.

    Raises:
      ValueError: no row is left, a run has one of two test sets, or a run is named twice.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError("a run is named twice, expected each once: it would count double")
    # row -> {(run, split): result}
    groups: dict[tuple[str, ...], dict[tuple[pathlib.Path, Any], Result]] = {}
    for run in runs:
        for result in read_results(run, step):
            about = [str(result.get(k, "")) for k in ("dataset", "protocol", "gallery", "cmc")]
            group = groups.setdefault((*about, row_label(result)), {})
            if (source := (run, result.get("trial"))) in group:
                raise ValueError(
                    f"{run} holds results of {' '.join([*about[1:], row_label(result)])} on two "
                    f"sets of test images of {about[0]!r}, expected one; delete those that are "
                    "not meant from its eval folder"
                )
            group[source] = result
    for key, group in list(groups.items()):
        each = [sum(source[0] == run for source in group) for run in runs]
        lacking = [str(run) for run, n in zip(runs, each, strict=True) if n < max(each)]
        if lacking:
            print(
                f"left out: {key[0]}, {key[1]}, {key[-1]} (gallery {key[2]}) was scored in "
                f"{len(runs) - len(lacking)} of {len(runs)} runs; score the others with "
                f"--mode=eval: {', '.join(lacking)}",
                file=sys.stderr,
            )
            del groups[key]
    if not groups:
        raise ValueError("no row was scored in all runs, expected one at least")
    return [list(group.values()) for group in groups.values()]


def _tables(results: Sequence[Result]) -> list[tuple[str, dict[tuple[str, str], Result]]]:
    """(title, rows) of a table for each data set, and for each way to draw the gallery.

    Results of one protocol are beside each other only if they are means over as many draws.
    """
    tables: list[tuple[str, dict[tuple[str, str], Result]]] = []
    for result in results:
        title = str(result.get("dataset", "results"))
        if result["gallery"] == "official":
            title += ", official gallery"
        same = [rows for name, rows in tables if name.partition(" (")[0] == title]
        for rows in same:
            beside = [row for (protocol, _), row in rows.items() if protocol == result["protocol"]]
            if all(row["draws"] == result["draws"] for row in beside):
                break
        else:
            rows = {}
            tables.append((title + f" (draws: {result['draws']})" * bool(same), rows))
        rows[result["protocol"], row_label(result)] = result
    return tables


def read_results(run: pathlib.Path, step: str | None = None) -> list[Result]:
    """The results that a run saved at a step (None: the last that was scored).

    Args:
      run: its folder, or the folder of a step in it, RUN/eval/STEP.
      step: which; of no effect where `run` says it.

    Raises:
      FileNotFoundError: the run has none; the message says what there is.
    """
    if run.parent.name == "eval" and run.name.isdigit():
        run, step = run.parent.parent, run.name
    folder = run / "eval"
    steps = sorted((p.name for p in folder.glob("*") if p.name.isdigit()), key=int)
    if not steps or step not in (None, *steps):
        raise FileNotFoundError(
            f"{folder} holds results of {', '.join(steps) or 'no step'}, expected "
            f"{'some' if step is None else 'step ' + step}; score the run with "
            f"--mode=eval --workdir {run}"
        )
    files = sorted((folder / (step or steps[-1])).glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


if __name__ == "__main__":
    accept_any_text()
    sys.exit(main())
