"""The mean of several runs, such as RegDB's ten splits: see `--help`."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.metrics",
        description="Print the mean and the spread over runs that were measured alike, from the "
        "results that they saved: the ten splits of RegDB, or seeds.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--step", help="which of a run's scored steps (default: the last)")
    parser.add_argument("--over", default="runs", help="what the runs differ in (default: runs)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", metavar="FILE", help="write the combined results as JSON, too")
    args = parser.parse_args(argv)

    from vireid_jax.metrics.combine import combine, row_label
    from vireid_jax.metrics.table import format_table, to_markdown

    try:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in args.runs:
            for result in read_results(pathlib.Path(run), args.step):
                groups.setdefault((result["protocol"], row_label(result)), []).append(result)
        for (protocol, feature), results in groups.items():
            if len(results) != len(args.runs):
                raise ValueError(
                    f"{protocol} {feature} was scored in {len(results)} of {len(args.runs)} runs, "
                    "expected in all; score the others with --mode=eval, or leave them out"
                )
        rows = {key: combine(results, over=args.over) for key, results in groups.items()}
        print((to_markdown if args.markdown else format_table)(rows))
        if args.json:
            text = json.dumps(list(rows.values()), indent=1, allow_nan=False)
            pathlib.Path(args.json).write_text(text + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_results(run: pathlib.Path, step: str | None = None) -> list[dict[str, Any]]:
    """The results that a run saved at a step (None: the last that was scored).

    Raises:
      FileNotFoundError: the run has none; the message says what there is.
    """
    folder = run / "eval"
    steps = sorted(
        (p.name for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else (), key=int
    )
    if not steps or (step is not None and step not in steps):
        raise FileNotFoundError(
            f"{folder} holds results of {', '.join(steps) or 'no step'}, expected "
            f"{'some' if step is None else 'step ' + step}; score the run with "
            f"--mode=eval --workdir {run}"
        )
    files = sorted((folder / (step or steps[-1])).glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


if __name__ == "__main__":
    sys.exit(main())
