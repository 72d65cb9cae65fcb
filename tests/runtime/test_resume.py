"""A run that is killed and started again ends with the bits of one that was not.

Each test drives the command line in processes of its own: a small recipe on rendered images,
stopped at chosen moments (seen in the run's folder), repeated until it is done. The method is
linear here, since what is tested surrounds it; test_resume_methods.py has the real ones.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import time

import pytest

from tests.launch.shell import BASH, LAUNCH
from tests.support.jobs import LINEAR, STEPS, Job, write_recipe
from tests.support.jobs import LINEAR_COMMAND as COMMAND


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"), changes=LINEAR)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Runs that nothing interrupts, by number of devices; `cut` is step 10 of such a run."""
    jobs = {}

    def get(devices):
        if devices not in jobs:
            folder = tmp_path_factory.mktemp("whole")
            job = jobs[devices] = Job(recipe, folder / "run", devices, COMMAND)
            job.copied_at(lambda: 10 in job.steps_written(), folder / "cut")
        return jobs[devices]

    return get


@pytest.mark.slow
def test_a_run_goes_on_between_two_checkpoints(whole):
    """Lines are written again; the record and the bits of all arrays are those of a whole run."""
    arrays, rows = whole(4).result()
    assert [r["step"] for r in rows if r["split"] == "train"] == list(range(1, STEPS + 1))
    assert [r["step"] for r in rows if r["split"] == "val"] == [8, 16, 24]
    assert all(a["crc32"] is not None for a in arrays.values())
    job = dataclasses.replace(whole(4), workdir=whole(4).workdir.with_name("cut"))
    assert job.committed()[-1] < job.steps_written()[-1] < STEPS
    job.finish()
    assert job.result() == (arrays, rows)


@pytest.mark.slow
def test_killed_at_any_moment(recipe, whole, tmp_path):
    job = Job(recipe, tmp_path / "run", 4, COMMAND)
    checkpoints = job.workdir / "checkpoints"

    def before_the_first_step():  # compiling
        # Its line, not the file: killed between the two, the start would not be counted below.
        file = job.workdir / "COMMAND"
        return file.exists() and file.read_text().endswith("\n")

    def during_a_save():
        return any("tmp" in p.name for p in checkpoints.glob("*")) and job.steps_written()

    def during_validation():
        # Step 16 is logged and being saved, its scores are not there yet.
        return 16 in job.steps_written() and 16 not in job.steps_written("val")

    def during_the_last_save():
        return 24 in job.steps_written()

    moments = [before_the_first_step, during_a_save, during_validation, during_the_last_save]
    for moment in moments:
        code, out, _ = job.stop_when(moment, signal.SIGKILL)
        assert code == -signal.SIGKILL, (moment.__name__, out)
    job.finish()
    assert not [p for p in checkpoints.iterdir() if "tmp" in p.name], "leftovers are cleared"
    assert len((job.workdir / "COMMAND").read_text().splitlines()) == len(moments) + 1
    assert job.result() == whole(4).result()


@pytest.mark.slow
def test_terminated_saves_and_exits_with_42(recipe, whole, tmp_path):
    job = Job(recipe, tmp_path / "run", 1, COMMAND)
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
    assert job.result() == whole(1).result()


@pytest.mark.slow
def test_a_supervisor_starts_it_again(recipe, whole, tmp_path):
    """launch/supervise.sh around the command: a preemption, then a kill, then the end."""
    job = Job(recipe, tmp_path / "run", 1, COMMAND)
    script = [*BASH, str(LAUNCH / "supervise.sh"), "--backoff", "0", "--"]
    supervisor = job.start(under=script)
    try:
        for step, signum in ((5, signal.SIGTERM), (13, signal.SIGKILL)):
            while step not in job.steps_written():
                assert supervisor.poll() is None, supervisor.communicate()[0]
                time.sleep(0.01)
            os.kill(_child(supervisor.pid, COMMAND), signum)
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


@pytest.mark.slow
def test_a_killed_supervisor_finds_its_child(whole, tmp_path):
    """The next one waits until the command of the former has ended."""
    recipe = write_recipe(tmp_path, changes=LINEAR)
    job = Job(recipe, tmp_path / "run", 1, COMMAND)
    script = [*BASH, str(LAUNCH / "supervise.sh"), "--backoff", "1", "--"]
    first = job.start(under=script)
    while 3 not in job.steps_written():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    child = _child(first.pid, COMMAND)
    first.kill()
    first.wait()  # a stopped child would get SIGHUP with its end
    os.kill(child, signal.SIGSTOP)  # for as long as the next one needs to start
    second = job.start(under=script)
    lines = iter(second.stdout.readline, "")
    assert any("the command ended with 75" in line for line in lines)
    os.kill(child, signal.SIGCONT)
    out, _ = second.communicate(timeout=300)
    first.stdout.close()  # not before: its child writes there
    assert second.returncode == 0, out
    assert job.result() == whole(1).result()


def _child(parent, name):
    """The process that a process has started whose command line has this name."""
    for child in pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if name in pathlib.Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    raise AssertionError(f"{parent} has no child {name}")


@pytest.mark.slow
def test_goes_on_with_other_devices(recipe, whole, tmp_path):
    """4 -> 1 -> 8, of which four share the state: the same run, to rounding."""
    job = Job(recipe, tmp_path / "run", 4, COMMAND)
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


@pytest.mark.slow
def test_another_config_is_refused(whole, tmp_path):
    job = dataclasses.replace(whole(4), workdir=tmp_path / "run")
    shutil.copytree(whole(4).workdir, job.workdir)
    before = {p: p.stat().st_mtime_ns for p in job.workdir.rglob("*")}
    changes = ["--config.seed=3", "--config.sampler.num_ids=2"]
    out = job.finish(*changes, "--config.train.log_every=2", code=1)
    assert "  sampler.num_ids: 4 -> 2\n  seed: 0 -> 3\n" in out and "log_every" not in out
    assert "--config.allow_changes=True" in out and "Traceback" not in out
    assert {p: p.stat().st_mtime_ns for p in job.workdir.rglob("*")} == before
    out = job.finish("--config.data.image_size=(16,16)", "--config.allow_changes=True", code=1)
    assert "was saved by another model" in out and "Traceback" not in out
    assert {p: p.stat().st_mtime_ns for p in job.workdir.rglob("*")} == before, "nothing is written"
    assert job.committed() == whole(4).committed()
    record = (job.workdir / "metrics.jsonl").read_bytes()
    job.finish("--config.seed=3", "--config.allow_changes=True")
    at_the_end = "resumed where it was: at the end"
    assert (job.workdir / "metrics.jsonl").read_bytes() == record, at_the_end
    assert json.loads((job.workdir / "config.json").read_text())["seed"] == 3
