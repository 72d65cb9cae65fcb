"""A run that is killed and started again ends with the bits of one that was not.

Each test drives the command line in processes of its own: a small recipe on rendered images,
stopped at chosen moments (seen in the run's folder), repeated until it is done.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from tests.launch.shell import BASH, LAUNCH
from tests.support.plain import PLAIN
from vireid_jax.runtime import checkpoint
from vireid_jax.runtime.checkpoint import Checkpoints

REPO = pathlib.Path(__file__).resolve().parents[2]
STEPS = 24  # 6 epochs of 4: a checkpoint every 4 steps, a validation every 8

RECIPE = """
from configs import smcl

def get_config(arg=None):
    c = smcl.get_config()
    c.run_name = "tiny"
    parts = ("train", "val", "test")
    c.data.update({{f"{{part}}_{{m}}": 1 for part in parts for m in ("visible", "infrared")}})
    c.data.update(train_ids=6, val_ids=3, test_ids=3, cache={cache!r})
    c.data.image_size = (32, 16)
    c.method.width = 4
    c.method.metric_from_epoch = 2.0  # the loss changes on the way
    c.sampler.num_ids, c.sampler.num_instances, c.sampler.steps_per_epoch = 4, 2, 4
    c.train.epochs, c.train.log_every = 6.0, 1
    c.train.eval_every, c.train.checkpoint_every = 2.0, 1.0
    c.eval.protocols, c.eval.trials = ("sysu/all/single",), 2
    c.eval.baselines, c.eval.batch_size = False, 16
    return c
"""


@dataclasses.dataclass
class Job:
    """One command, repeated."""

    recipe: pathlib.Path
    workdir: pathlib.Path
    devices: int = 4

    def start(self, *options, under=()):
        flags = f"--xla_force_host_platform_device_count={self.devices}"
        return subprocess.Popen(
            [
                *[*under, sys.executable, "-m", "vireid_jax.main"],
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

    def stop_when(self, moment, signum):
        """Runs until `moment()`, then sends the signal; returns (exit code, output, seconds)."""
        process = self.start()
        try:
            while not moment():
                assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
                time.sleep(0.001)
            began = time.monotonic()
            process.send_signal(signum)
            out, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        return process.returncode, out, time.monotonic() - began

    def steps_written(self, split="train"):
        path = self.workdir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [row["step"] for row in rows if row["split"] == split]

    def committed(self):
        folder = self.workdir / "checkpoints"
        return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())

    def result(self):
        """Every array of the last checkpoint by its checksum, and the record without times."""
        folder = self.workdir / "checkpoints" / str(STEPS)
        arrays = checkpoint.read_manifest(folder)
        timed = ("time", "images_per_second")
        text = (self.workdir / "metrics.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        return arrays, [{k: v for k, v in row.items() if k not in timed} for row in rows]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "tiny.py"
    path.write_text(RECIPE.format(cache=str(folder / "cache")))
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Runs that nothing interrupts, by number of devices."""
    jobs = {}

    def get(devices):
        if devices not in jobs:
            jobs[devices] = Job(recipe, tmp_path_factory.mktemp("whole") / "run", devices)
            jobs[devices].finish()
        return jobs[devices]

    return get


def test_uninterrupted_run(whole):
    job = whole(4)
    arrays, rows = job.result()
    assert [r["step"] for r in rows if r["split"] == "train"] == list(range(1, STEPS + 1))
    assert [r["step"] for r in rows if r["split"] == "val"] == [8, 16, 24]
    assert all(a["crc32"] is not None for a in arrays.values())
    # The checksums are those of the arrays: a restore compares them.
    target = {}
    replicated = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = target
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = jax.ShapeDtypeStruct(array["shape"], array["dtype"], sharding=replicated)
    checkpoints = Checkpoints(job.workdir / "checkpoints")
    assert checkpoints.restore(target, step=STEPS)[1] == STEPS
    assert checkpoints.best() in (8, 16, 24)
    checkpoints.close()


def test_killed_at_any_moment(recipe, whole, tmp_path):
    job = Job(recipe, tmp_path / "run")
    checkpoints = job.workdir / "checkpoints"

    def before_the_first_step():  # compiling
        # Its line, not the file: killed between the two, the start would not be counted below.
        file = job.workdir / "COMMAND"
        return file.exists() and file.read_text().endswith("\n")

    def during_a_save():
        return any("tmp" in p.name for p in checkpoints.glob("*")) and job.steps_written()

    def during_training():
        return max(job.steps_written(), default=0) >= 10

    def during_validation():
        # Step 16 is logged and being saved, its scores are not there yet.
        return 16 in job.steps_written() and 16 not in job.steps_written("val")

    def during_the_last_save():
        return 24 in job.steps_written()

    moments = [
        before_the_first_step,
        during_a_save,
        during_training,
        during_validation,
        during_the_last_save,
    ]
    for moment in moments:
        code, out, _ = job.stop_when(moment, signal.SIGKILL)
        assert code == -signal.SIGKILL, (moment.__name__, out)
    job.finish()
    assert len((job.workdir / "COMMAND").read_text().splitlines()) == len(moments) + 1
    arrays, rows = job.result()
    expected_arrays, expected_rows = whole(4).result()
    assert arrays == expected_arrays
    assert rows == expected_rows


def test_terminated_saves_and_exits_with_42(recipe, whole, tmp_path):
    job = Job(recipe, tmp_path / "run", devices=1)
    code, out, seconds = job.stop_when(lambda: 5 in job.steps_written(), signal.SIGTERM)
    assert code == 42, out
    assert seconds < 20, "schedulers kill half a minute later"
    stopped = job.committed()[-1]
    assert stopped >= 5 and job.steps_written()[-1] == stopped
    assert f"step {stopped} is saved; run the same command again" in out

    code, out, _ = job.stop_when(lambda: 13 in job.steps_written(), signal.SIGTERM)
    assert code == 42 and job.steps_written()[:13] == list(range(1, 14))
    *_, before, newest = job.committed()
    # The newest checkpoint is cut off: the one before is taken.
    data = max((job.workdir / f"checkpoints/{newest}/variables").rglob("d/*"), key=os.path.getsize)
    os.truncate(data, data.stat().st_size // 2)
    out = job.finish()
    assert f"checkpoint {newest} is damaged" in out and f"trying step {before}" in out
    assert (job.workdir / f"checkpoints/damaged/{newest}").is_dir()
    arrays, rows = job.result()
    expected_arrays, expected_rows = whole(1).result()
    assert arrays == expected_arrays
    assert rows == expected_rows


def test_a_supervisor_starts_it_again(recipe, whole, tmp_path):
    """launch/supervise.sh around the command: a preemption, then a kill, then the end."""
    job = Job(recipe, tmp_path / "run", devices=1)
    script = [*BASH, str(LAUNCH / "supervise.sh"), "--backoff", "0", "--"]
    supervisor = job.start(under=script)
    try:
        for step, signum in ((5, signal.SIGTERM), (13, signal.SIGKILL)):
            while step not in job.steps_written():
                assert supervisor.poll() is None, supervisor.communicate()[0]
                time.sleep(0.01)
            os.kill(_child(supervisor.pid, "vireid_jax.main"), signum)
        out, _ = supervisor.communicate(timeout=300)
    finally:
        supervisor.kill()
    assert supervisor.returncode == 0, out
    ends = re.findall(r"supervise: the command ended with (\d+)", out)
    assert ends == ["42", "137", "0"], out
    (status,) = (job.workdir / "supervise").glob("*.json")
    status = json.loads(status.read_text())
    assert (status["state"], status["restarts"], status["step"]) == ("done", 2, STEPS)
    assert job.result() == whole(1).result()


def _child(parent, name):
    """The process that a process has started whose command line has this name."""
    for child in pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if name in pathlib.Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    raise AssertionError(f"{parent} has no child {name}")


def test_goes_on_with_other_devices(recipe, whole, tmp_path):
    """4 -> 1 -> 8, of which four share the state: the same run, to rounding."""
    job = Job(recipe, tmp_path / "run", devices=4)
    code, out, _ = job.stop_when(lambda: 5 in job.steps_written(), signal.SIGTERM)
    assert code == 42, out
    first = job.committed()[-1]
    job.devices = 1
    code, out, _ = job.stop_when(lambda: 13 in job.steps_written(), signal.SIGTERM)
    assert code == 42, out
    job.devices = 8
    job.finish("--config.devices.fsdp=4")
    arrays, rows = job.result()
    expected_arrays, expected_rows = whole(4).result()
    assert {k: a["shape"] for k, a in arrays.items()} == {
        k: a["shape"] for k, a in expected_arrays.items()
    }
    losses, expected = (
        {r["step"]: r["loss"] for r in found if r["split"] == "train"}
        for found in (rows, expected_rows)
    )
    assert list(losses) == list(range(1, STEPS + 1))
    for step in losses:
        if step <= first:  # on the same devices, the same bits
            assert losses[step] == expected[step]
        elif step <= first + 1:  # the first step of the restored state
            assert losses[step] == pytest.approx(expected[step], rel=1e-4)
        else:  # rounding grows from step to step, as between any two numbers of devices
            assert losses[step] == pytest.approx(expected[step], rel=0.2)


def test_another_batch_or_seed_is_refused(whole, tmp_path):
    job = dataclasses.replace(whole(4), workdir=tmp_path / "run")
    shutil.copytree(whole(4).workdir, job.workdir)
    before = {p: p.stat().st_mtime_ns for p in job.workdir.rglob("*")}
    changes = ["--config.seed=3", "--config.sampler.num_ids=2"]
    out = job.finish(*changes, "--config.train.log_every=2", code=1)
    assert "  sampler.num_ids: 4 -> 2\n  seed: 0 -> 3\n" in out and "log_every" not in out
    assert "--config.allow_changes=True" in out and "Traceback" not in out
    assert {p: p.stat().st_mtime_ns for p in job.workdir.rglob("*")} == before
    record = (job.workdir / "metrics.jsonl").read_bytes()
    job.finish("--config.seed=3", "--config.allow_changes=True")
    assert (job.workdir / "metrics.jsonl").read_bytes() == record, (
        "resumed where it was: at the end"
    )
    assert json.loads((job.workdir / "config.json").read_text())["seed"] == 3
    job.finish("--config.seed=3", "--config.train.log_every=2")  # now it is the run's own


def test_another_model_is_refused(whole, tmp_path):
    job = dataclasses.replace(whole(4), workdir=tmp_path / "run")
    shutil.copytree(whole(4).workdir, job.workdir)
    out = job.finish("--config.method.width=8", "--config.allow_changes=True", code=1)
    assert "was saved by another model" in out and "Traceback" not in out
    assert job.committed() == whole(4).committed()


# --- Other methods, in files of their own so that they run side by side ------------------------

RECIPE_OF = """
from configs import {method}

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
    c.train.eval_every, c.train.checkpoint_every = 0.0, 1.0
    c.eval.protocols, c.eval.trials = ("sysu/all/single",), 2
    c.eval.baselines, c.eval.batch_size = False, 16
    {changes}
    return c
"""


def killed_and_terminated(tmp_path, method, changes):
    """The job of a run that was killed, terminated and finished, which equals one that was not.

    Args:
      method: name of a recipe.
      changes: statements on its config `c`, which are of minutes otherwise.
    """
    recipe = tmp_path / "tiny.py"
    cache = str(tmp_path / "cache")
    recipe.write_text(RECIPE_OF.format(method=method, changes=changes, cache=cache))
    whole, job = (Job(recipe, tmp_path / name, devices=2) for name in ("whole", "run"))
    whole.finish()
    code, out, _ = job.stop_when(lambda: 7 in job.steps_written(), signal.SIGKILL)
    assert code == -signal.SIGKILL, out
    code, out, _ = job.stop_when(lambda: 14 in job.steps_written(), signal.SIGTERM)
    assert code == 42, out
    job.finish()
    assert job.result() == whole.result()
    return job
