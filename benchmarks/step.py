"""A method's train step beside the same model in PyTorch eager: step time and peak memory.

  python -m benchmarks.step                       SMCL at both sizes, Markdown and a JSON file
  python -m benchmarks.step --method mun          MUN
  python -m benchmarks.step --sizes main --rounds 3
  python -m benchmarks.step --threads 1           pin every candidate to one core

Sizes: `main` is what `configs/smcl.py` or `configs/mun.py` trains by default. `paper` is
ResNet-50: SMCL on 4 x 4 images of 384 x 128 in each modality, 48 with the syncretic ones; MUN
on 4 x 4 of 288 x 144, 48 maps with the auxiliary ones. MUN's recipe has 8 x 4 (`--ids 8`), for
machines with memory for it. A step takes uint8 images to updated parameters: standardize,
forward pass, all terms, gradients, optimizer. Random crops and flips are left out of both sides.

Every candidate runs in a process of its own on the same cores, so that its peak of resident
memory is its own, and from the same weights and images; the losses of the first step must
agree. Candidates take turns when there are several rounds. On CPU the main job makes every
core a device; "one device" is XLA left to its own threads. Needs PyTorch.
"""

import argparse
import importlib
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
    "jax_remat": "vireid_jax, generator rematerialized",
    "torch_channels_last": "PyTorch eager, channels last",
    "torch": "PyTorch eager",
}
COMPARED = {
    "smcl": ("jax", "jax_one_device", "torch_channels_last", "torch"),
    "mun": ("jax", "jax_one_device", "jax_remat", "torch_channels_last", "torch"),
}
STEPS = {  # warm-up and timed steps
    ("smcl", "main"): (3, 15),
    ("smcl", "paper"): (1, 4),
    ("mun", "main"): (3, 15),
    ("mun", "paper"): (1, 1),
}
SIZES = ("main", "paper")
LR = 1e-4


def settings(method: str, size: str, num_ids: int | None = None) -> dict[str, Any]:
    """What a method is measured with at a size; see `settings` of its module."""
    return {"name": method, **_module(method).settings(size, num_ids)}


def _module(method: str) -> Any:
    return importlib.import_module(f"benchmarks.step_{method}")


def reference(name: str) -> Any:
    """A module of the tests' PyTorch reference, which needs PyTorch; its types are not checked."""
    return importlib.import_module(f"tests.reference.{name}")


def written_options(config: Any, written: dict[str, Any]) -> dict[str, Any]:
    """Options of a config's method, which must have those that a PyTorch step is written for."""
    method = config.method.to_dict()
    method.pop("name")
    if other := {k: method[k] for k in written if method[k] != written[k]}:
        raise ValueError(f"the PyTorch step is written for {written}, the config has {other}")
    return method


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


def jax_program(s: dict[str, Any], variant: str) -> tuple[Any, Any, Any, Any]:
    """The method, the optimizer's transform, the train step and the mesh it runs on."""
    from vireid_jax import optim, sharding
    from vireid_jax.data.augment import standardize
    from vireid_jax.train import make_train_step

    if variant != "one_device":
        sharding.use_cpu_cores(s["num_ids"] * s["num_instances"])  # before jax starts
    options = s["method"]
    if variant == "remat":
        options = {**options, "generator": {**options["generator"], "remat": True}}
    build = importlib.import_module(f"vireid_jax.methods.{s['name']}").build
    method = build(**s["facts"], **options)
    transform, learning_rate = optim.make(
        steps_per_epoch=1, epochs=1, lr=LR, schedule="constant", **s["optim"]
    )

    def only_standardize(key: Any, batch: Any) -> Any:
        return {**batch, **{k: standardize(batch[k]) for k in ("visible", "infrared")}}

    mesh = sharding.make_mesh()
    step_fn = make_train_step(method, only_standardize, transform, learning_rate, mesh=mesh, seed=0)
    return method, transform, step_fn, mesh


def jax_step(s: dict[str, Any], variant: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that does one step and returns its loss, and the compiler's memory figures."""
    import jax

    from tests.reference.case import fill
    from tests.reference.convert import flatten, nest
    from vireid_jax import sharding
    from vireid_jax.train import TrainState

    method, transform, step_fn, mesh = jax_program(s, variant)
    shapes = dict(jax.eval_shape(lambda: method.init(jax.random.key(0))))
    memory = {k: np.zeros(v.shape, v.dtype) for k, v in shapes.pop("memory", {}).items()}
    variables = nest(fill({k: v.shape for k, v in flatten(shapes).items()}, "benchmark"))
    variables |= {"memory": memory} if memory else {}
    state = TrainState(np.int32(0), variables, transform.init(variables["params"]))
    held = [sharding.replicate(state, mesh)]
    batch = sharding.to_global(batch_of(s), mesh)

    start = time.perf_counter()
    compiled = step_fn.lower(held[0], batch).compile()
    figures: dict[str, Any] = {"compile_s": time.perf_counter() - start}
    if (analysis := compiled.memory_analysis()) is not None:
        for name in ("temp", "argument"):  # of all devices together
            size = getattr(analysis, f"{name}_size_in_bytes") * mesh.size
            figures[f"xla_{name}_mb"] = size / 2**20

    def step() -> float:
        held[0], scalars = compiled(held[0], batch)
        return float(scalars["loss"])  # waits for the whole step

    return step, figures


def torch_step(s: dict[str, Any], layout: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """The same in PyTorch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def prepare(model: Any) -> Any:
        return model.to(device).to(memory_format=memory_format).train()

    optimizer, loss = _module(s["name"]).torch_training(s, prepare, LR)
    batch = batch_of(s)
    pixels = [torch.tensor(batch[k]).to(device) for k in ("visible", "infrared")]
    labels = torch.tensor(batch["label"], dtype=torch.int64, device=device)
    smcl = reference("smcl")
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (smcl.MEAN, smcl.STD))

    def standardized(x: Any) -> Any:
        x = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
        return x.contiguous(memory_format=memory_format)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = loss(*(standardized(x) for x in pixels), labels)
        total.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(total.detach())

    return step, {}


def measure(candidate: str, method: str, size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Runs one candidate in this process."""
    s = settings(method, size, num_ids)
    warmup, timed = STEPS[method, size]
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
    images = 3 * slots
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
