"""The training curve of runs: losses and validation mAP over optimizer steps.

  python -m vireid_jax.visual.curve runs/smcl-synthetic --out curve.png

Needs matplotlib (`pip install 'vireid_jax[viz]'`).
"""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime.command import answer_signals

    answer_signals()

import argparse
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from vireid_jax import __version__
from vireid_jax.runtime import command, printable
from vireid_jax.runtime.writer import METRICS, read_metrics

# Colors that people with a color deficiency tell apart (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw(runs: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Draws the runs' curves into one picture.

    Args:
      runs: folders of runs; the losses are those of the first.
      out: picture to write, by its ending PNG, PDF or SVG.

    Raises:
      FileNotFoundError: a folder without metrics.
      ImportError: matplotlib is missing; the message says how to install it.
      ValueError: metrics without a training record, or another ending.
    """
    try:
        from matplotlib.figure import Figure  # pyplot would choose a screen and keep figures
    except ImportError as error:
        raise ImportError(f"{error}; curves need pip install 'vireid_jax[viz]'") from error

    records = [_read(run) for run in runs]
    train, _ = records[0]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    terms = [k for k in train[0] if k.startswith("id_")]
    for color, term in zip(itertools.cycle(COLORS), terms, strict=False):
        steps = [line["step"] for line in train]
        values = [line[term] for line in train]
        left.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        left.plot(steps, _smooth(values), color=color, label=term)
    left.set(xlabel="step", ylabel="cross-entropy", title="identity losses")
    for color, run, (_, val) in zip(itertools.cycle(COLORS), runs, records, strict=False):
        if val:
            points = [(line["step"], 100 * line["mAP"]) for line in val]
            right.plot(*zip(*points, strict=True), "o-", color=color, label=run.name)
    if records[0][1] and "chance_mAP" in records[0][1][0]:
        chance = 100 * records[0][1][0]["chance_mAP"]
        right.axhline(chance, color="gray", linestyle=":", label=f"chance {chance:.1f}")
    right.set(xlabel="step", ylabel="mAP (%)", title="unseen identities, infrared to visible")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=150)


def _read(run: pathlib.Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and the validation lines of a run."""
    path = run / METRICS
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: {run} is not the folder of a run")
    lines = read_metrics(path)
    train, val = ([line for line in lines if line["split"] == s] for s in ("train", "val"))
    if not train:
        raise ValueError(f"{path} has no training record yet")
    return train, val


def _smooth(values: Sequence[float], half: int = 4) -> list[float]:
    """A centered running mean; windows shrink at the ends."""
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"vireid_jax {__version__}")
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="folders of runs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("curve.png"))
    options = parser.parse_args()
    try:
        draw(options.runs, options.out)
    except (OSError, ValueError, ImportError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    command.run(main)
