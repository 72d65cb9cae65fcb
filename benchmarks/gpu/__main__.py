"""Checks a GPU in one command: is it right, how fast is it, and where does the time go?

  python -m benchmarks.gpu --out runs/gpu           8 minutes on one H200
  python -m benchmarks.gpu --budget 900             more time, for what did not fit
  python -m benchmarks.gpu --methods agw smcl       some methods
  python -m benchmarks.gpu --tiny                   on a CPU too; shows that it runs, no more

It needs this repository, jax with CUDA and, for the rows beside it, PyTorch with CUDA. No data is
read. Parts, the most valuable first:

  correctness     losses and gradients in float32 against the CPU's, bfloat16 near them
  resume          a run that is stopped and resumed ends with the same bits
  train           the train step at the paper's size in bf16, TF32 and float32: speed, memory,
                  shares of the peak rates, and a profile
  torch           the same in PyTorch, eager with channels last
  feeding, embed  whether the device waits for the loader; images embedded in a second
  torch_compiled  the train step by torch.compile

Each part is a process of its own with a time limit. A part that fails or hangs is recorded with
its last lines, and what it had found is kept. OUT/gpu.json and OUT/gpu.md are written after every
part. The command stops at the budget. One GPU is used. Exit codes: 0 all that ran is right, 1
something is wrong, 2 a wrong command line or no GPU.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from benchmarks import report
from benchmarks.candidates import METHODS
from benchmarks.gpu import parts, tables

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def plan(methods: list[str], flags: argparse.Namespace, torch: bool) -> list[parts.Part]:
    """All parts, the most valuable first."""
    tiny = ["--tiny"] if flags.tiny else []

    def part(name: str, timeout_s: float, xla: str = "") -> parts.Part:
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(flags.out)]
        env = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the device
            "JAX_PLATFORMS": "cpu" if flags.tiny else "cuda,cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla}".strip(),
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
            # Compilation is timed.
            "JAX_ENABLE_COMPILATION_CACHE": "true" if flags.tiny else "false",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(flags.tiny)),
        }
        return parts.Part(name, [*command, *tiny], timeout_s, env)

    names = [f"correctness-{m}" for m in methods] + ["correctness-caj"] * ("agw" in methods)
    # Waiting for the device counts.
    found = [part(name, 200) for name in names]
    deterministic = "" if flags.tiny else DETERMINISTIC
    found += [part("resume-deterministic", 200, deterministic)]
    found += [part(f"train-{m}", 300) for m in methods]
    if torch:
        found += [part(f"torch-{m}", 200) for m in methods]
    fed = "agw" if "agw" in methods else methods[0]
    found += [part(f"feeding-{fed}", 200), *(part(f"embed-{m}", 200) for m in methods)]
    if torch:
        found += [part(f"torch_compiled-{m}", 150) for m in methods]
    return [*found, part("resume-plain", 200)]


def run_part(name: str, out: pathlib.Path, tiny: bool) -> None:
    """Runs one part in this process; its findings are lines of JSON on stdout."""
    kind, _, of = name.partition("-")
    if kind in ("correctness", "resume"):
        from benchmarks.gpu import correctness

        if kind == "resume":
            correctness.resume(out, of == "deterministic", tiny)
        else:
            correctness.check(of, out, tiny)
    elif kind in ("torch", "torch_compiled"):
        from benchmarks.gpu import pytorch

        pytorch.train(of, out, tiny, compiled=kind == "torch_compiled")
    else:
        from benchmarks.gpu import steps

        {"train": steps.train, "embed": steps.embed, "feeding": steps.feeding}[kind](of, out, tiny)


FIND = """
import json, jax
device = jax.devices()[0]
print(json.dumps([device.platform, device.device_kind, jax.device_count()]))
"""


def find_device(tiny: bool) -> str:
    """JAX's name of the device, asked in another process so that this one holds none of it.

    Raises:
      SystemExit: there is no GPU, and the sizes are not tiny.
    """
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env |= {"JAX_PLATFORMS": "cpu"} if tiny else {}
    done = subprocess.run([sys.executable, "-c", FIND], env=env, capture_output=True, text=True)
    platform, kind = "none", (done.stderr.strip().splitlines() or ["?"])[-1]
    if done.returncode == 0:
        platform, kind, _ = json.loads(done.stdout.strip().splitlines()[-1])
    if platform != "gpu" and not tiny:
        print(
            f"error: JAX finds no GPU here ({platform}: {kind}). Install jax with CUDA "
            "(pip install 'vireid_jax[cuda]'), or add --tiny to try the command without a GPU",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return kind


def main() -> None:
    """Parses the command line and runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds, default 480")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    default = max(1, min(8, len(report.cores()) // 2))
    text = f"parts at a time, which share the device to compile; default {default} here"
    parser.add_argument("--workers", type=report.positive, default=default, help=text)
    parser.add_argument("--only", nargs="+", help="parts by the beginnings of their names")
    parser.add_argument("--peak-tflops", type=float, help="of bfloat16; known for H200")
    parser.add_argument("--peak-tbs", type=float, help="TB/s of memory; known for H200")
    parser.add_argument("--tiny", action="store_true", help="small networks, on a CPU too")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        run_part(flags.part, flags.out, flags.tiny)
        return
    began = time.monotonic()
    kind = find_device(flags.tiny)
    run = report.Run("gpu", flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    torch = importlib.util.find_spec("torch") is not None
    wanted = plan(flags.methods, flags, torch)
    if flags.only:
        wanted = [p for p in wanted if p.name.startswith(tuple(flags.only))]
    figures: dict[str, Any] = {
        "device": kind,
        "tiny": flags.tiny,
        "budget_s": flags.budget,
        "seconds": 0.0,
        "torch": report.version("torch") if torch else None,
        "peaks": tables.peaks(kind, flags.peak_tflops, flags.peak_tbs),
        "rows": [],
        "parts": [],
    }

    def save() -> None:
        # As it was before: what a part had used that is killed does not count as ours.
        found = run.report(figures, kind) | {"busy": run.at_start}
        report.save("gpu", found, report.page(found, tables.markdown(found)), flags.out)

    def ended(part: dict[str, Any]) -> None:
        figures["rows"] += part.pop("rows")
        figures["parts"].append(part)
        figures["seconds"] = time.monotonic() - began
        print(f"{figures['seconds']:5.0f} s  {part['part']}: {part['state']}", flush=True)
        save()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which stops the parts, as Ctrl-C does
    budget = flags.budget - (time.monotonic() - began)
    parts.run(wanted, flags.out, budget_s=budget, workers=flags.workers, ended=ended)
    print((flags.out / "gpu.md").read_text())
    wrong = tables.verdicts(figures["rows"])
    print("\n".join(wrong), file=sys.stderr)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
