"""Switches SMCL's parts on and off one by one, over seeds, on the embedded data; writes the table.

  python -m benchmarks.ablation                     4 rows x 3 seeds into runs/ablation
  python -m benchmarks.ablation --seeds 0 --jobs 1

Every cell is the main command with values changed, in a process of its own on one device; a
cell that is finished is not run again, one that was stopped resumes.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ROWS: dict[str, dict[str, Any]] = {
    "SMCL, embedded recipe": {},
    # Q of 18 of 25 epochs, the share of 220 of 300 in the paper.
    "with incremental training": {"method.metric_from_epoch": 18.0},
    "without margin": {"method.id_margin": 0.0},
    "without auxiliary modality": {"method.auxiliary": "none"},
}
# Shorter than the recipe, and only what the table shows is scored.
SETTINGS = {
    "train.epochs": 25.0,
    "eval.protocols": ("sysu/all/single",),
    "eval.baselines": False,
    "train.eval_every": 0.0,
    "train.tensorboard": False,
}
RESULT = "sysu-all-single-bn-????????.json"  # at its end, which test images it is of
COLUMNS = ("R1", "R10", "mAP", "mINP")


def run_cell(folder: pathlib.Path, row: str, seed: int, extra: Sequence[str]) -> dict[str, float]:
    """Trains and scores one row with one seed, unless that is done; returns its metrics."""
    workdir = folder / f"{row.replace(',', '').replace(' ', '_')}-seed{seed}"
    if not (found := sorted(workdir.glob(f"eval/*/{RESULT}"))):
        values = {**ROWS[row], "seed": seed, **SETTINGS}
        command = [sys.executable, "-m", "vireid_jax.main", "--config", "configs/smcl.py"]
        command += ["--workdir", str(workdir), *(f"--config.{k}={v}" for k, v in values.items())]
        flags = "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "console.log").open("a") as log:
            code = subprocess.run(
                [*command, *extra], stdout=log, stderr=log, env=os.environ | {"XLA_FLAGS": flags}
            ).returncode
        if code:
            raise RuntimeError(f"{row}, seed {seed}: exit code {code}, see {workdir}/console.log")
        found = sorted(workdir.glob(f"eval/*/{RESULT}"))
    metrics = json.loads(found[-1].read_text())["metrics"]
    print(f"{row}, seed {seed}: mAP {100 * metrics['mAP']:.1f}", flush=True)
    return metrics


def table(cells: dict[str, list[dict[str, float]]]) -> str:
    """Mean and sample standard deviation over seeds, in percent, as Markdown."""
    lines = ["| | " + " | ".join(COLUMNS) + " | seeds |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for row, results in cells.items():
        texts = []
        for name in COLUMNS:
            values = [100 * r[name] for r in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            texts.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {row} | " + " | ".join(texts) + f" | {len(results)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time")
    options, extra = parser.parse_known_args()  # the rest goes to the main command
    cells: dict[str, list[dict[str, float]]] = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        # Seed by seed, so that a table of all rows is there early.
        jobs = {
            (row, seed): pool.submit(run_cell, options.folder, row, seed, extra)
            for seed in options.seeds
            for row in ROWS
        }
        for row in ROWS:
            cells[row] = [jobs[row, seed].result() for seed in options.seeds]
    text = table(cells)
    (options.folder / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
