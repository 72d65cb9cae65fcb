"""Runs of the main command in processes of their own, that tests stop and start again."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from tests.support.plain import PLAIN, QUICK
from vireid_jax.runtime import checkpoint

REPO = pathlib.Path(__file__).resolve().parents[2]
STEPS = 24  # 6 epochs of 4: a checkpoint every 4 steps, a validation every 8

_RECIPE = """
from configs import {method}
from ml_collections import ConfigDict

def get_config(arg=None):
    c = {method}.get_config()
    c.run_name = "tiny"
    parts = ("train", "val", "test")
    c.data.update({{f"{{part}}_{{m}}": 1 for part in parts for m in ("visible", "infrared")}})
    c.data.update(train_ids=6, val_ids=3, test_ids=3, cache={cache!r})
    c.data.image_size = (32, 16)
    c.method.width = 4
    c.sampler.num_ids, c.sampler.num_instances, c.sampler.steps_per_epoch = 4, 2, 4
    c.train.epochs, c.train.log_every = 6.0, 1
    c.train.eval_every, c.train.checkpoint_every = 2.0, 1.0
    c.train.tensorboard = False  # it would import torch, where that is installed
    c.eval.protocols, c.eval.trials = ("sysu/all/single",), 2
    c.eval.baselines, c.eval.batch_size = False, 16
    {changes}
    return c
"""
# The linear method, which tests/support/linear_command.py knows.
LINEAR_COMMAND = "tests.support.linear_command"
LINEAR = (  # the options of its backbone are SMCL's
    "c.method = ConfigDict({'name': 'linear', 'from_step': 8, **{key: c.method[key] for key in "
    "('depth', 'width', 'last_stride', 'kernels', 'dtype')}})"
)


def write_recipe(folder, method="smcl", changes=""):
    """A small recipe of a method on rendered images; returns its path.

    Args:
      folder: where it and the images are kept.
      method: name of a recipe in configs/.
      changes: statements on its config `c`.
    """
    path = folder / "tiny.py"
    cache = str(folder / "cache")
    path.write_text(_RECIPE.format(method=method, changes=changes, cache=cache))
    return path


@dataclasses.dataclass
class Job:
    """One command, repeated."""

    recipe: pathlib.Path
    workdir: pathlib.Path
    devices: int = 4
    module: str = "vireid_jax.main"

    def start(self, *options, under=()):
        flags = f"--xla_force_host_platform_device_count={self.devices} {QUICK}"
        return subprocess.Popen(
            [
                *[*under, sys.executable, "-m", self.module],
                *[f"--config={self.recipe}", f"--workdir={self.workdir}", *options],
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPO,
            env=os.environ | PLAIN | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        )

    def finish(self, *options, code=0):
        """Runs to the end; returns what was printed."""
        process = self.start(*options)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == code, out
        return out

    @contextlib.contextmanager
    def started_until(self, moment):
        """The process once `moment()` has come; what is left of it at the end is killed."""
        process = self.start()
        try:
            while not moment():
                assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
                time.sleep(0.001)
            yield process
        finally:
            process.kill()

    def stop_when(self, moment, signum):
        """Runs until `moment()`, then sends the signal; returns (exit code, output, seconds)."""
        with self.started_until(moment) as process:
            began = time.monotonic()
            process.send_signal(signum)
            out, _ = process.communicate(timeout=120)
        return process.returncode, out, time.monotonic() - began

    def copied_at(self, moment, workdir):
        """Runs to the end; returns the run with the folder as a kill at `moment()` leaves it."""
        with self.started_until(moment) as process:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            shutil.copytree(self.workdir, workdir)
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        return dataclasses.replace(self, workdir=workdir)

    def steps_written(self, split="train"):
        path = self.workdir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [row["step"] for row in rows if row["split"] == split]

    def committed(self):
        folder = self.workdir / "checkpoints"
        return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())

    def arrays(self, step=STEPS):
        """Every array of a checkpoint by its shape, dtype and checksum."""
        return checkpoint.read_manifest(self.workdir / "checkpoints" / str(step))

    def result(self, step=STEPS):
        """The arrays of a checkpoint, and the record without times."""
        timed = ("time", "images_per_second")
        text = (self.workdir / "metrics.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        return self.arrays(step), [{k: v for k, v in row.items() if k not in timed} for row in rows]
