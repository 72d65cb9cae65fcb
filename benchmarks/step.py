"""A method's train step beside the same model in PyTorch eager: step time and peak memory.

  python -m benchmarks.step                       SMCL at both sizes, Markdown and a JSON file
  python -m benchmarks.step --method mun          MUN; or idkl, pdm
  python -m benchmarks.step --sizes main --rounds 3
  python -m benchmarks.step --threads 1           pin every candidate to one core

Sizes: `main` is what the method's recipe trains by default. `paper` is ResNet-50: SMCL on 4 x 4
images of 384 x 128 in each modality, 48 with the syncretic ones; MUN on 4 x 4 of 288 x 144, 48
maps with the auxiliary ones; IDKL on 4 x 5 of 384 x 128, 40 images; PDM on 4 x 4 of 384 x 192, 32
images that are 96 rows from layer4 on. Recipes of MUN, IDKL and PDM have 8, 12 and 8 identities
(`--ids`), for machines with memory for it. A step takes uint8 images to updated parameters:
standardize, forward pass, all terms, gradients, optimizer. Random crops, flips and dropout are left
out of both sides.

Every candidate runs in a process of its own on the same cores, so that its peak of resident
memory is its own, and from the same weights and images; the losses of the first step must
agree. Candidates take turns when there are several rounds. On CPU the main job makes every
core a device; "one device" is XLA left to its own threads. Needs PyTorch.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.candidates import measure, settings

CANDIDATES = {
    "jax": "vireid_jax",
    "jax_one_device": "vireid_jax, one device",
    "jax_remat": "vireid_jax, generator rematerialized",
    "torch_channels_last": "PyTorch eager, channels last",
    "torch": "PyTorch eager",
}
COMPARED = {
    "smcl": ("jax", "jax_one_device", "torch_channels_last", "torch"),
    "mun": ("jax", "jax_one_device", "jax_remat", "torch_channels_last", "torch"),
    "idkl": ("jax", "jax_one_device", "torch_channels_last", "torch"),
    "pdm": ("jax", "jax_one_device", "torch_channels_last", "torch"),
}
SIZES = ("main", "paper")


def run_candidate(candidate: str, options: list[str], cores: list[int]) -> dict[str, Any]:
    """Runs one candidate, given options of this command, in a process pinned to `cores`."""
    command = [sys.executable, "-m", "benchmarks.step", "--candidate", candidate, *options]
    threads = {"OMP_NUM_THREADS": str(len(cores)), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    pin = (lambda: os.sched_setaffinity(0, cores)) if hasattr(os, "sched_setaffinity") else None
    done = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, preexec_fn=pin
    )
    if done.returncode:
        killed = " (killed: perhaps out of memory; see --ids)" if done.returncode == -9 else ""
        raise RuntimeError(f"{candidate} {options} failed{killed}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One row from the rounds of a candidate: all steps together, the smallest peak."""
    row = dict(rounds[0])
    for key in ("step_s", "cpu_s"):
        row[key] = [x for r in rounds for x in r[key]]
    row["peak_rss_mb"] = min(r["peak_rss_mb"] for r in rounds)
    row["median_s"], row["min_s"] = statistics.median(row["step_s"]), min(row["step_s"])
    row["median_cpu_s"] = statistics.median(row["cpu_s"])
    return row


def table(rows: list[dict[str, Any]], images: int) -> str:
    """A Markdown table; ratios are ours over the other, below 1 is better for us."""
    lines = [
        "| | step s, median | step s, best | CPU-s | images/s | peak RSS MB | XLA temp + args MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        xla = f"{r['xla_temp_mb']:.0f} + {r['xla_argument_mb']:.0f}" if "xla_temp_mb" in r else ""
        memory = f"{r['peak_rss_mb']:.0f}"
        if "device_mb" in r:
            memory += f" (device {r['device_mb']:.0f})"
        lines.append(
            f"| {CANDIDATES[r['candidate']]} | {r['median_s']:.3f} | {r['min_s']:.3f} "
            f"| {r['median_cpu_s']:.3f} | {images / r['median_s']:.1f} | {memory} | {xla} |"
        )
    ours = rows[0]
    for other in (r for r in rows if r["candidate"].startswith("torch")):
        ratio = {
            k: ours[k] / other[k] for k in ("median_s", "min_s", "median_cpu_s", "peak_rss_mb")
        }
        lines.append(
            f"| ratio to {CANDIDATES[other['candidate']]} | {ratio['median_s']:.2f} "
            f"| {ratio['min_s']:.2f} | {ratio['median_cpu_s']:.2f} | "
            f"| {ratio['peak_rss_mb']:.2f} | |"
        )
    return "\n".join(lines)


def compare(
    method: str, size: str, cores: list[int], rounds: int, num_ids: int | None = None
) -> dict[str, Any]:
    """Measures every candidate at one size and prints the table."""
    options = ["--method", method, "--sizes", size, *(["--ids", str(num_ids)] if num_ids else [])]
    results: dict[str, list[dict[str, Any]]] = {c: [] for c in COMPARED[method]}
    for _ in range(rounds):
        for candidate in results:
            results[candidate].append(run_candidate(candidate, options, cores))
    rows = [merge(r) for r in results.values()]
    check_same_model(rows, size)
    s = settings(method, size, num_ids)
    slots = s["num_ids"] * s["num_instances"]
    images = s["modalities"] * slots
    height, width = s["image_size"]
    print(
        f"\n{size}: ResNet-{s['method']['depth']} of width {s['method']['width']}, {images} images "
        f"of {height} x {width} a step ({2 * slots} loaded), {len(cores)} cores, float32, "
        f"{rows[0]['device']}; first loss {rows[0]['first_loss']:.4f} in all\n"
    )
    print(table(rows, images), flush=True)
    print(f"\ncompilation {rows[0]['compile_s']:.1f} s")
    return {"size": size, "cores": len(cores), "images": images, "settings": s, "rows": rows}


def check_same_model(rows: list[dict[str, Any]], size: str) -> None:
    """Raises RuntimeError unless the losses of the first step agree."""
    first = [r["first_loss"] for r in rows]
    if not np.allclose(first, first[0], rtol=1e-3, atol=0):
        raise RuntimeError(f"not the same model: losses of the first step at {size} are {first}")


def machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    from importlib import metadata

    names = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        models = [x.split(":", 1)[1] for x in info.read_text().splitlines() if "model name" in x]
        cpu = models[0].strip() if models else cpu
    return {
        "cpu": cpu,
        "load": os.getloadavg(),
        "python": platform.python_version(),
        **{n: metadata.version(n) for n in names},
    }


def save(report: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {path}")


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=list(COMPARED), default="smcl")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ids", type=int, help="identities in a batch instead of the size's")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each candidate")
    parser.add_argument("--threads", type=int, help="cores for each candidate; default all")
    parser.add_argument("--json", type=pathlib.Path, help="default runs/step.json, step_mun.json")
    parser.add_argument("--candidate", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.candidate:
        print(json.dumps(measure(flags.candidate, flags.method, flags.sizes[0], flags.ids)))
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = cores or list(range(os.cpu_count() or 1))
    cores = cores[: flags.threads] if flags.threads else cores
    report: dict[str, Any] = {"method": flags.method, "machine": machine()}
    print(json.dumps(report["machine"]))
    report["sizes"] = [
        compare(flags.method, size, cores, flags.rounds, flags.ids) for size in flags.sizes
    ]
    name = "step" if flags.method == "smcl" else f"step_{flags.method}"
    path = flags.json or pathlib.Path(f"runs/{name}.json")
    save(report, path)


if __name__ == "__main__":
    main()
