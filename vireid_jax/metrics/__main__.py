"""The mean of several runs, such as RegDB's ten splits: see `--help`."""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime.command import answer_signals

    answer_signals()

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from vireid_jax import __version__
from vireid_jax.metrics.results import OVER, combine, differences, measured, row_label
from vireid_jax.metrics.saved import folder_of, read_results
from vireid_jax.metrics.table import format_table, to_markdown
from vireid_jax.runtime import command, files, printable

Result = dict[str, Any]
Source = tuple[pathlib.Path, Any]  # run and split


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
    parser.add_argument(
        "--over",
        choices=("runs", "seeds", "splits"),
        default="runs",
        help="what the runs differ in: seeds, splits, or runs that may have one seed (default)",
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", metavar="FILE", help="write the combined results as JSON, too")
    args = parser.parse_args(argv)
    try:
        groups = _groups(args.runs, args.step, args.over)
        combined = [combine(alike, over=args.over) for alike in groups]
        show = to_markdown if args.markdown else format_table
        tables = [f"{title}\n\n{show(rows)}" for title, rows in _tables(combined)]
        print(printable("\n\n".join(tables)))
        if args.json:
            text = json.dumps(combined, indent=1, allow_nan=False)
            files.write_whole(args.json, text + "\n")
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def _groups(runs: Sequence[pathlib.Path], step: str | None, over: str) -> list[list[Result]]:
    """The results that make one row each, of all runs; a row that a run lacks is left out.

    Raises:
      ValueError: no row is left, a run is named twice, it has two results of one row that were
        measured alike, or a result does not say how its model was trained.
    """
    if len({folder_of(run).resolve() for run in runs}) < len(runs):
        raise ValueError("a run is named twice, expected each once: it would count double")
    groups: dict[tuple[str, ...], list[tuple[Source, Result]]] = {}
    for run in runs:
        for result in read_results(run, step):
            if len(runs) > 1 and result.get("recipe") is None:
                raise ValueError(
                    f"{run} holds results of an earlier version, which do not say how the model "
                    f"was trained; score it again with --mode=eval --workdir {folder_of(run)}"
                )
            about = [str(result.get(k, "")) for k in ("dataset", "protocol", "gallery", "cmc")]
            groups.setdefault((*about, row_label(result)), []).append(
                ((run, result.get("trial")), result)
            )
    found = []
    for key, group in groups.items():
        # Rows of one name that a run has twice, of one draw and of ten, say, are two rows.
        twice = len(dict(group)) < len(group)
        ways: dict[tuple[int, str], list[tuple[Source, Result]]] = {}
        for source, result in group:
            ways.setdefault(_way(result) if twice else (0, ""), []).append((source, result))
        for _, rows in sorted(ways.items(), key=lambda way: way[0]):
            for source in dict(rows):
                same = [measured(result) for own, result in rows if own == source]
                if len(same) > 1:
                    raise ValueError(
                        f"{source[0]} holds {len(same)} results of {' '.join(key)} that differ in "
                        f"{'; '.join(differences(same)) or 'nothing'}; expected one, delete those "
                        "that are not meant from its eval folder"
                    )
            each = [sum(run == own for (own, _), _ in rows) for run in runs]
            lacking = [str(run) for run, n in zip(runs, each, strict=True) if n < max(each)]
            if not lacking:
                found.append([result for _, result in rows])
                continue
            draws = f", draws: {measured(rows[0][1])['draws']}" if twice else ""
            text = (
                f"left out: {key[0]}, {key[1]}, {key[-1]} (gallery {key[2]}{draws}) was scored in "
                f"{len(runs) - len(lacking)} of {len(runs)} runs; score the others with "
                f"--mode=eval: {', '.join(lacking)}"
            )
            print(printable(text), file=sys.stderr)
    if not found:
        raise ValueError("no row was scored in all runs, expected one at least")
    return found


def _way(result: Result) -> tuple[int, str]:
    """How a result was measured: the most draws come first."""
    about = measured(result)
    apart = {"step"}.union(*OVER.values())
    kept = {k: v for k, v in about.items() if k not in apart and not k.startswith("recipe.")}
    return -about["draws"], json.dumps(kept, sort_keys=True)


def _tables(results: Sequence[Result]) -> list[tuple[str, dict[tuple[str, str], Result]]]:
    """(title, rows) of a table for each data set, and for each way to draw the gallery.

    Results of one protocol are beside each other only if they are means over as many draws. Several
    results of one row stand in tables of their own, whose titles say in what they differ.
    """
    tables: list[tuple[str, str, dict[tuple[str, str], Result]]] = []
    for result in results:
        dataset = str(result.get("dataset", "results"))
        if result["gallery"] == "official":
            dataset += ", official gallery"
        place, marks = (result["protocol"], row_label(result)), ""
        for own, _, rows in tables:
            if own != dataset:
                continue
            beside = [row for (protocol, _), row in rows.items() if protocol == result["protocol"]]
            if place not in rows and all(row["draws"] == result["draws"] for row in beside):
                break
            found, other = measured(result), measured(rows.get(place, beside[0]))
            unlike = [key for key in found if found[key] != other.get(key)]
            marks = ", ".join(f"{key}: {found[key]}" for key in sorted(unlike)[:3])
            marks = f" (draws: {result['draws']})" if "draws" in unlike else f" ({marks})"
        else:
            rows = {}
            tables.append((dataset, dataset + marks, rows))
        rows[place] = result
    return [(title, rows) for _, title, rows in tables]


if __name__ == "__main__":
    command.run(main)
