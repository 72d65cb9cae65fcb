"""SMCL's train step beside the same model in PyTorch eager: step time and peak memory.

  python -m benchmarks.step                       both sizes, a Markdown table and a JSON file
  python -m benchmarks.step --sizes main --rounds 3
  python -m benchmarks.step --threads 1           pin every candidate to one core

Sizes: `main` is what `configs/smcl.py` trains by default, `paper` is ResNet-50 on 4 x 4
images of 384 x 128 in each modality, 48 with the syncretic ones. A step takes uint8 images
to updated parameters: standardize, forward pass, all terms of eq. 9, gradients, Adam. Random
crops and flips are left out of both sides.

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
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CANDIDATES = {
    "jax": "vireid_jax",
    "jax_one_device": "vireid_jax, one device",
    "torch_channels_last": "PyTorch eager, channels last",
    "torch": "PyTorch eager",
}
STEPS = {"main": (3, 15), "paper": (1, 4)}  # warm-up and timed steps
LR = 1e-4


def settings(size: str) -> dict[str, Any]:
    """Image size, P, K, classes and the method's options of a size, from configs/smcl.py."""
    from configs import smcl

    config = smcl.get_config("synthetic" if size == "main" else "sysu")
    method = config.method.to_dict()
    method.pop("name")
    written = {"auxiliary": "syncretic", "cehl_form": "both", "updates": "joint"}
    if other := {k: method[k] for k in written if method[k] != written[k]}:
        raise ValueError(f"the PyTorch step is written for {written}, the config has {other}")
    return {
        "image_size": tuple(config.data.image_size),
        "num_ids": config.sampler.num_ids,
        "num_instances": config.sampler.num_instances,
        "num_classes": config.data.train_ids if size == "main" else 395,
        "weight_decay": config.optim.weight_decay,
        # From the first step, so that the metric terms are part of what is timed.
        "method": {**method, "metric_from_epoch": 0.0},
    }


def batch_of(s: dict[str, Any]) -> dict[str, np.ndarray]:
    """A batch of random uint8 images, always the same."""
    rows = s["num_ids"] * s["num_instances"]
    r = np.random.default_rng(0)
    label = np.repeat(r.permutation(s["num_classes"])[: s["num_ids"]], s["num_instances"])
    images = [r.integers(256, size=(rows, *s["image_size"], 3), dtype=np.uint8) for _ in range(2)]
    return {
        "visible": images[0],
        "infrared": images[1],
        "label": label.astype(np.int32),
        "camera": np.zeros((rows, 2), np.int32),
    }


# --- Candidates -------------------------------------------------------------------------


def jax_step(s: dict[str, Any], variant: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that does one step and returns its loss, and the compiler's memory figures."""
    import jax

    from tests.reference.case import fill
    from tests.reference.convert import flatten, nest
    from vireid_jax import optim, sharding
    from vireid_jax.data.augment import standardize
    from vireid_jax.methods import smcl
    from vireid_jax.train import TrainState, make_train_step

    if variant != "one_device":
        sharding.use_cpu_cores(s["num_ids"] * s["num_instances"])  # before jax starts
    method = smcl.build(
        num_classes=s["num_classes"], image_size=s["image_size"], steps_per_epoch=1, **s["method"]
    )
    transform, learning_rate = optim.make(
        steps_per_epoch=1, epochs=1, lr=LR, weight_decay=s["weight_decay"], schedule="constant"
    )

    def only_standardize(key: Any, batch: Any) -> Any:
        return {**batch, **{k: standardize(batch[k]) for k in ("visible", "infrared")}}

    mesh = sharding.make_mesh()
    step_fn = make_train_step(method, only_standardize, transform, learning_rate, mesh=mesh, seed=0)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0)))
    variables = nest(fill({k: v.shape for k, v in flatten(shapes).items()}, "benchmark"))
    state = TrainState(np.int32(0), variables, transform.init(variables["params"]))
    held = [sharding.replicate(state, mesh)]
    batch = sharding.to_global(batch_of(s), mesh)

    start = time.perf_counter()
    compiled = step_fn.lower(held[0], batch).compile()  # type: ignore[attr-defined]
    figures: dict[str, Any] = {"compile_s": time.perf_counter() - start}
    if (memory := compiled.memory_analysis()) is not None:
        for name in ("temp", "argument"):  # of all devices together
            size = getattr(memory, f"{name}_size_in_bytes") * mesh.size
            figures[f"xla_{name}_mb"] = size / 2**20

    def step() -> float:
        held[0], scalars = compiled(held[0], batch)
        return float(scalars["loss"])  # waits for the whole step

    return step, figures


def torch_step(s: dict[str, Any], layout: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """The same in PyTorch; the terms are written in whole-array form, as one would for speed."""
    import inspect

    import torch
    from torch.nn import functional

    from tests.reference import running
    from tests.reference.smcl import MEAN, SMCL, STD

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {k: v for k, v in s["method"].items() if k in inspect.signature(SMCL).parameters}
    model: Any = SMCL(num_classes=s["num_classes"], **options)
    running.load(model, "benchmark")
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = model.to(device).to(memory_format=memory_format).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=s["weight_decay"])
    batch = batch_of(s)
    pixels = [torch.tensor(batch[k]).to(device) for k in ("visible", "infrared")]
    labels = torch.tensor(batch["label"], dtype=torch.int64, device=device)
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (MEAN, STD))

    def standardized(x: Any) -> Any:
        x = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
        return x.contiguous(memory_format=memory_format)

    def total(g: Any, logits: Any) -> Any:
        margin = model.id_margin * functional.one_hot(labels, s["num_classes"])
        harder = logits[:, 1] - margin
        identity = sum(
            functional.cross_entropy(z, labels) for z in (logits[:, 0], harder, logits[:, 2])
        )
        centers = g.unflatten(0, (-1, s["num_instances"])).mean(1)  # [P, 3, D]
        centers = functional.normalize(centers, dim=2) if model.normalize else centers
        v, i, anchor = centers.unbind(1)
        others = (anchor[:, None] - anchor[None]).square().sum(-1).clamp(min=1e-12).sqrt()
        nearest = (others + torch.diag(others.new_full((len(others),), torch.inf))).amin(1)
        pulls = torch.stack([(anchor - c).norm(dim=1) for c in (v, i)])
        tri = torch.relu(model.center_margin + pulls - nearest).sum()
        return identity + model.metric_weight * (tri + (v - i).norm(dim=1).sum())

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = total(*model(standardized(pixels[0]), standardized(pixels[1])))
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    return step, {}


def measure(candidate: str, size: str) -> dict[str, Any]:
    """Runs one candidate in this process."""
    s = settings(size)
    warmup, timed = STEPS[size]
    framework, _, variant = candidate.partition("_")
    step, figures = (jax_step if framework == "jax" else torch_step)(s, variant)

    losses, wall, cpu = [], [], []
    for _ in range(warmup + timed):
        start = time.perf_counter(), time.process_time()
        losses.append(step())
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return {
        "candidate": candidate,
        "size": size,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "step_s": wall[warmup:],
        "cpu_s": cpu[warmup:],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **device_memory(framework),
        **figures,
    }


def device_memory(framework: str) -> dict[str, Any]:
    """The device's name, and an accelerator's peak memory."""
    if framework == "jax":
        import jax

        device = jax.devices()[0]
        stats = device.memory_stats() or {}
        peak = stats.get("peak_bytes_in_use") if device.platform != "cpu" else None
        return {"device": device.device_kind, **({"device_mb": peak / 2**20} if peak else {})}
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu"}
    return {
        "device": torch.cuda.get_device_name(),
        "device_mb": torch.cuda.max_memory_allocated() / 2**20,
    }


# --- Comparison -------------------------------------------------------------------------


def run_candidate(candidate: str, size: str, cores: list[int]) -> dict[str, Any]:
    """Runs one candidate in a process pinned to `cores`."""
    command = [sys.executable, "-m", "benchmarks.step", "--candidate", candidate, "--sizes", size]
    threads = {"OMP_NUM_THREADS": str(len(cores)), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    pin = (lambda: os.sched_setaffinity(0, cores)) if hasattr(os, "sched_setaffinity") else None
    done = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, preexec_fn=pin
    )
    if done.returncode:
        raise RuntimeError(f"{candidate} at size {size} failed:\n{done.stderr[-3000:]}")
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


def compare(size: str, cores: list[int], rounds: int) -> dict[str, Any]:
    """Measures every candidate at one size and prints the table."""
    results: dict[str, list[dict[str, Any]]] = {c: [] for c in CANDIDATES}
    for _ in range(rounds):
        for candidate in CANDIDATES:
            results[candidate].append(run_candidate(candidate, size, cores))
    rows = [merge(r) for r in results.values()]
    first = [r["first_loss"] for r in rows]
    if max(first) - min(first) > 1e-3 * abs(first[0]):
        raise RuntimeError(f"not the same model: losses of the first step at {size} are {first}")
    s = settings(size)
    method, slots = s["method"], s["num_ids"] * s["num_instances"]
    images = 3 * slots
    height, width = s["image_size"]
    print(
        f"\n{size}: ResNet-{method['depth']} of width {method['width']}, {images} images of "
        f"{height} x {width} a step ({2 * slots} loaded), {len(cores)} cores, float32, "
        f"{rows[0]['device']}; first loss {first[0]:.4f} in all\n"
    )
    print(table(rows, images), flush=True)
    print(f"\ncompilation {rows[0]['compile_s']:.1f} s")
    return {"size": size, "cores": len(cores), "images": images, "settings": s, "rows": rows}


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


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=1, help="processes of each candidate")
    parser.add_argument("--threads", type=int, help="cores for each candidate; default all")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("runs/step.json"))
    parser.add_argument("--candidate", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.candidate:
        print(json.dumps(measure(flags.candidate, flags.sizes[0])))
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = cores or list(range(os.cpu_count() or 1))
    cores = cores[: flags.threads] if flags.threads else cores
    report: dict[str, Any] = {"machine": machine()}
    print(json.dumps(report["machine"]))
    report["sizes"] = [compare(size, cores, flags.rounds) for size in flags.sizes]
    flags.json.parent.mkdir(parents=True, exist_ok=True)
    flags.json.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {flags.json}")


if __name__ == "__main__":
    main()
