"""What a preemption costs: seconds from the signal to the checkpoint, and back to training.

  python -m benchmarks.restart                        the main job by two processes, and by one
  python -m benchmarks.restart --processes 1 2 4      by others; --devices, fake ones of each
  python -m benchmarks.restart --restarts 1 --tiny    a small one, of no meaning

Every run is started with an empty compilation cache, gets SIGTERM (its last process alone does)
after its fifth new step, and is started again, now with its cache; and so on. All processes are on
this machine and share its cores, so what several of them compute takes longer than one takes. The
embedded images are rendered before, if they are not in the cache.
"""

import argparse
import json
import pathlib
import signal
import statistics
import tempfile
import time
from typing import Any

from benchmarks import report
from tests.support import pods

TINY = ("--config.method.width=4", "--config.data.train_ids=16", "--config.data.test_ids=4")
STEPS = 5


class Run:
    """A job that is stopped and started again."""

    def __init__(self, folder: pathlib.Path, processes: int, devices: int, options: list[str]):
        self.workdir, self.cache = folder / "run", folder / "cache"
        self.logs, self.processes, self.devices = folder / "logs", processes, devices
        self.command = [
            "--config=configs/smcl.py",
            f"--workdir={self.workdir}",
            "--config.train.log_every=1",
            *options,
        ]

    def steps(self) -> list[int]:
        """The steps that metrics.jsonl tells of."""
        path = self.workdir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [row["step"] for row in rows if row["split"] == "train"]

    def saved(self) -> int:
        """The newest step on disk, 0 for none."""
        folder = self.workdir / "checkpoints"
        return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)

    def once(self) -> dict[str, float]:
        """One start and one SIGTERM; seconds."""
        before, kept = len(self.steps()), self.saved()
        began = time.monotonic()
        pod = pods.start(
            *(self.processes, self.devices, "vireid_jax.main", *self.command),
            logs=self.logs,
            env={"JAX_COMPILATION_CACHE_DIR": str(self.cache)},
        )
        pod.wait_for(lambda: len(self.steps()) > before)
        first = time.monotonic() - began
        pod.wait_for(lambda: len(self.steps()) >= before + STEPS)
        pod.send(self.processes - 1, signal.SIGTERM)
        told = time.monotonic()
        while self.saved() == kept and any(p.popen.poll() is None for p in pod.processes):
            time.sleep(0.005)
        saved = time.monotonic() - told
        pod.wait()
        if set(pod.codes) != {42} or self.saved() == kept:
            raise RuntimeError(f"exit codes {pod.codes}, expected 42 of each:\n{pod.text()}")
        return {
            "start to first step": first,
            "signal to checkpoint": saved,
            "signal to exit": time.monotonic() - told,
        }


def measure(processes: int, devices: int, restarts: int, options: list[str]) -> dict[str, Any]:
    """Seconds of one cold start and of the median of the warm ones."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(pathlib.Path(folder), processes, devices, options)
        cold = run.once()
        warm = [run.once() for _ in range(restarts)]
    return {
        "processes": processes,
        "devices": devices,
        "cold": cold["start to first step"],
        "warm": statistics.median(w["start to first step"] for w in warm),
        **{
            name: statistics.median(w[name] for w in [cold, *warm])
            for name in ("signal to checkpoint", "signal to exit")
        },
    }


def markdown(found: dict[str, Any]) -> str:
    """A row for each number of processes."""
    header = ["processes x devices", "start to first step, empty cache", "with the cache"]
    header += ["signal to checkpoint", "signal to exit"]
    names = ("cold", "warm", "signal to checkpoint", "signal to exit")
    rows = [
        [f"{r['processes']} x {r['devices']}", *(f"{r[name]:.1f} s" for name in names)]
        for r in found["rows"]
    ]
    return report.table(header, rows)


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    report.options(parser)
    parser.add_argument("--processes", type=report.positive, nargs="+", default=[1, 2])
    parser.add_argument("--devices", type=report.positive, default=2, help="of each process")
    parser.add_argument("--restarts", type=report.positive, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small job, of no meaning")
    flags = parser.parse_args()
    measuring = report.Run("restart", flags)
    options = list(TINY) if flags.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        Run(pathlib.Path(folder), 1, flags.devices, options).once()  # renders the images
    rows = [measure(n, flags.devices, flags.restarts, options) for n in flags.processes]
    measuring.save({"rows": rows}, markdown)


if __name__ == "__main__":
    main()
