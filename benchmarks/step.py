"""A method's train step beside the same model in PyTorch eager: time and memory.

  python -m benchmarks.step                                SMCL at both sizes, all cores
  python -m benchmarks.step --method all --threads 1 2     every method, on one core and on two
  python -m benchmarks.step --method agw --sizes main --rounds 3
  python -m benchmarks.step --candidates jax torch_channels_last_hugepages

Sizes: `main` is what the method's recipe trains by default. `paper` is ResNet-50: SMCL on 4 x 4
images of 384 x 128 in each modality, 48 with the syncretic ones; MUN on 4 x 4 of 288 x 144, 48
maps with the auxiliary ones; IDKL on 4 x 5 of 384 x 128, 40 images; AGW on 8 x 4 of 288 x 144, 64
images; DEEN on 6 x 4 of 384 x 144, 48 images that are 144 rows from layer4 on; PDM on 4 x 4 of
384 x 192, 32 images that are 96 rows there. They fit 23 GB. Recipes of MUN, IDKL and PDM have 8,
12 and 8 identities (`--ids`), for machines with memory for it. A step takes uint8 images to updated
parameters: standardize, forward pass, all terms, gradients, optimizer. Random crops, flips and
dropout are left out of both sides.

Every candidate runs in a process of its own on the same cores, so that its memory is its own, and
from the same weights and images; the losses of the first step must agree. Candidates take turns
when there are several rounds. With `--threads 1` each is pinned to one core. Steady memory is what
the process holds after the timed steps; its peak includes compilation. Ours has huge pages, as the
program sets them; PyTorch is as it comes, and with the same setting by name. Needs PyTorch.
"""

import argparse
import functools
import json
import statistics
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.candidates import METHODS, huge_pages, measure, settings

CANDIDATES = {
    "jax": "vireid_jax",
    "jax_remat": "vireid_jax, generator rematerialized",
    "torch_channels_last": "PyTorch, channels last",
    "torch": "PyTorch",
    "torch_channels_last_hugepages": "PyTorch, channels last, huge pages",
}
BESIDE = "torch_channels_last"  # what ratios are to
SIZES = ("main", "paper")


def compared(method: str) -> list[str]:
    """The candidates of a method."""
    found = ["jax", "jax_remat", "torch_channels_last", "torch"]
    return [c for c in found if c != "jax_remat" or method == "mun"]


def run_candidate(candidate: str, options: list[str], cores: list[int]) -> dict[str, Any]:
    """Runs one candidate, given options of this command, in a process pinned to `cores`."""
    env = {"OMP_NUM_THREADS": str(len(cores)), **dict.fromkeys(report.HUGE_PAGES, "")}
    if huge_pages(candidate):
        env |= report.HUGE_PAGES
    arguments = ["--candidate", candidate, *options]
    return report.in_process("benchmarks.step", arguments, env=env, on=cores)


def merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One row from the rounds of a candidate: all steps together, the smallest memory."""
    row = dict(rounds[0])
    for key in ("step_s", "cpu_s"):
        row[key] = [x for r in rounds for x in r[key]]
    for key in ("rss_mb", "peak_rss_mb"):
        row[key] = min(r[key] for r in rounds)
    row["median_s"], row["min_s"] = statistics.median(row["step_s"]), min(row["step_s"])
    row["median_cpu_s"] = statistics.median(row["cpu_s"])
    return row


def table(rows: list[dict[str, Any]], images: int) -> str:
    """A Markdown table; ratios are ours over PyTorch's, below 1 is better for us."""
    header = ["", "step s, median", "best", "CPU-s", "images/s", "steady RSS MB", "peak RSS MB"]
    header.append("XLA temp MB")
    lines = []
    for r in rows:
        peak = f"{r['peak_rss_mb']:.0f}"
        if "device_mb" in r:
            peak += f" (device {r['device_mb']:.0f})"
        temp = f"{r['xla_temp_mb']:.0f}" if "xla_temp_mb" in r else ""
        times = [f"{r[k]:.3f}" for k in ("median_s", "min_s", "median_cpu_s")]
        speed = f"{images / r['median_s']:.1f}"
        name = CANDIDATES[r["candidate"]]
        lines.append([name, *times, speed, f"{r['rss_mb']:.0f}", peak, temp])
    theirs = next((r for r in rows if r["candidate"] == BESIDE), None)
    for r in rows:
        if theirs and r["candidate"].startswith("jax"):
            keys = ("median_s", "min_s", "median_cpu_s", "rss_mb", "peak_rss_mb")
            ratios = [f"{r[k] / theirs[k]:.2f}" for k in keys]
            name = f"{CANDIDATES[r['candidate']]} / {CANDIDATES[BESIDE]}"
            lines.append([name, *ratios[:3], "", *ratios[3:], ""])
    return report.table(header, lines)


def compare(
    method: str, size: str, candidates: list[str], cores: list[int], rounds: int, ids: int | None
) -> dict[str, Any]:
    """Measures candidates at one size, in turn; "failed" says that memory did not suffice."""
    options = ["--method", method, "--sizes", size, *(["--ids", str(ids)] if ids else [])]
    run = functools.partial(run_candidate, options=options, cores=cores)
    try:
        rows = [merge(r) for r in report.in_turn(candidates, run, rounds).values()]
    except report.Killed as error:
        return {"size": size, "threads": len(cores), "failed": str(error)}
    check_same_model(rows, size)
    s = settings(method, size, ids)
    images = s["modalities"] * s["num_ids"] * s["num_instances"]
    return {"size": size, "threads": len(cores), "images": images, "settings": s, "rows": rows}


def check_same_model(rows: list[dict[str, Any]], size: str) -> None:
    """Raises RuntimeError unless the losses of the first step agree."""
    first = [r["first_loss"] for r in rows]
    if not np.allclose(first, first[0], rtol=1e-3, atol=0):
        raise RuntimeError(f"not the same model: losses of the first step at {size} are {first}")


def markdown(found: dict[str, Any]) -> str:
    """A table for each size and number of threads."""
    parts = []
    for t in found["tables"]:
        threads = "one core and thread" if t["threads"] == 1 else f"{t['threads']} threads"
        what = f"{found['method'].upper()}, `{t['size']}`, {threads}:"
        if "failed" in t:
            hint = "Give fewer identities: --ids 2 or more."
            parts.append(f"{what} not measured. {t['failed']}. {hint}")
            continue
        s, ours = t["settings"], t["rows"][0]
        height, width = s["image_size"]
        compiled = f"; compiled in {ours['compile_s']:.1f} s" if "compile_s" in ours else ""
        parts.append(
            f"{what} ResNet-{s['method']['depth']} of width {s['method']['width']}, "
            f"{t['images']} images of {height} x {width}, {s['num_ids']} x "
            f"{s['num_instances']} in a modality, float32, {ours['device']}. "
            f"First loss {ours['first_loss']:.4f} in all{compiled}.\n\n"
            + table(t["rows"], t["images"])
        )
    return "\n\n".join(parts)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser, rounds=1)
    parser.add_argument("--method", choices=[*METHODS, "all"], default="smcl")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ids", type=int, help="identities in a batch instead of the size's")
    text = "cores for each candidate, a table for each number; default all"
    parser.add_argument("--threads", nargs="+", type=report.positive, help=text)
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), help="these alone")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.candidate:
        print(json.dumps(measure(flags.candidate, flags.method, flags.sizes[0], flags.ids)))
        return
    cores = report.cores()
    threads = flags.threads or [len(cores)]
    if max(threads) > len(cores):
        parser.error(f"--threads {max(threads)}, but this process may use {len(cores)} cores")
    for method in METHODS if flags.method == "all" else [flags.method]:
        for size in flags.sizes:
            run = report.Run("step", flags)
            flags.busy_ok = True  # once begun, a busy moment marks a page, no more
            names = flags.candidates or compared(method)
            tables = [
                compare(method, size, names, cores[:count], flags.rounds, flags.ids)
                for count in threads
            ]
            figures = {"method": method, "rounds": flags.rounds, "tables": tables}
            suffix = "" if size == "main" else f"_{size}"
            run.save(figures, markdown, name=f"step_{method}{suffix}")


if __name__ == "__main__":
    main()
