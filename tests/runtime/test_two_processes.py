"""Two processes train as one: the same numbers, and stopped, killed and restarted without loss.

The processes are real and talk over Gloo on this machine; each has two fake devices.
"""

import json
import re
import signal
import time

import pytest

from tests.support import pods
from tests.support.jobs import LINEAR, STEPS, Job, write_recipe
from tests.support.jobs import LINEAR_COMMAND as COMMAND
from tests.support.plain import PLAIN
from vireid_jax.runtime.watch import HOSTS

pytestmark = pytest.mark.slow

# A process that is gone is told from one that is slow after this long.
TIMES = {"VIREID_START_TIMEOUT": "120", "VIREID_HEARTBEAT_TIMEOUT": "20"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"), changes=LINEAR)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    for key, value in TIMES.items():
        monkeypatch.setenv(key, value)


class Run(Job):
    """A `Job` of two processes."""

    def begin(self, *options, own=None, processes=2, count=None, **env):
        command = [f"--config={self.recipe}", f"--workdir={self.workdir}", *options]
        return pods.start(
            *(processes, 2, COMMAND, *command),
            logs=self.workdir.with_name(self.workdir.name + "-logs"),
            env=PLAIN | TIMES | env,
            own=own,
            count=count,
        )


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run of two processes that nothing interrupts."""
    run = Run(recipe, tmp_path_factory.mktemp("whole") / "run", 4, COMMAND)
    pod = run.begin().wait()
    assert pod.codes == [0, 0], pod.text()
    return run, pod


def test_two_processes_train_as_one(recipe, whole, tmp_path):
    run, pod = whole
    one = Job(recipe, tmp_path / "one", 1, COMMAND)
    one.finish()
    arrays, rows = run.result()
    expected_arrays, expected = one.result()
    assert arrays.keys() == expected_arrays.keys()
    assert all(a["crc32"] is not None for a in arrays.values())  # every process holds all of them
    assert [r["step"] for r in rows] == [r["step"] for r in expected]
    for found, row in zip(rows, expected, strict=True):
        assert found.keys() == row.keys()
        if row["split"] == "train" and row["step"] <= 8:  # later, rounding has grown
            for key in row.keys() - {"split", "time"}:
                assert found[key] == pytest.approx(row[key], rel=2e-3, abs=2e-4), (row["step"], key)
    # As many features out as images in, on both processes: the same scores and queries.
    (score,) = (run.workdir / "eval" / str(STEPS)).glob("*bn*.json")
    other = one.workdir / "eval" / str(STEPS) / score.name
    mine, theirs = (json.loads(path.read_text()) for path in (score, other))
    assert mine["counts"]["queries"] == 6 and mine["counts"] == theirs["counts"]
    assert mine["per_query"].keys() == theirs["per_query"].keys()
    # The first process alone tells and writes; both left their status, one by itself does not.
    assert not (one.workdir / HOSTS).exists()
    text = [p.out() for p in pod.processes]
    assert "step 24/24" in text[0] and "mAP" in text[0]
    assert "step" not in text[1] and "mAP" not in text[1]
    statuses = [json.loads((run.workdir / HOSTS / f"000{n}.json").read_text()) for n in (0, 1)]
    assert [(s["process"], s["code"], s["phase"]) for s in statuses] == [
        (0, 0, "score"),
        (1, 0, "score"),
    ]


def test_another_command_is_refused_and_the_run_goes_on(tmp_path):
    long = write_recipe(tmp_path, changes=f"{LINEAR}; c.train.epochs = 500.0")
    run = Run(long, tmp_path / "run", 4, COMMAND)
    pod = run.begin()
    try:
        pod.wait_for(lambda: 3 in run.steps_written())
        second = run.begin().wait()
        assert second.codes == [75, 75], second.text()
        for number, process in enumerate(second.processes):
            pid = pod.processes[number].popen.pid
            assert f"is in use by process {pid} on" in process.out()
        Job(long, run.workdir, 1, COMMAND).finish(code=75)
        pod.send(1, signal.SIGTERM)
        pod.wait()
    finally:
        pod.kill()
    assert pod.codes == [42, 42], pod.text()
    steps = run.steps_written()
    assert steps == list(range(1, run.committed()[-1] + 1))
    assert not (run.workdir / ".running").exists()


def test_stopped_killed_and_restarted_without_loss(recipe, whole, tmp_path):
    run = Run(recipe, tmp_path / "run", 4, COMMAND)
    pod = run.begin()
    pod.wait_for(lambda: 5 in run.steps_written())
    began = time.monotonic()
    pod.send(1, signal.SIGTERM)  # to the second one alone
    pod.wait()
    assert pod.codes == [42, 42], pod.text()
    assert time.monotonic() - began < 60
    stopped = run.committed()[-1]
    assert stopped >= 5 and run.steps_written()[-1] == stopped
    said = [re.search(r"step (\d+) is saved", p.out()) for p in pod.processes]
    assert [int(match[1]) for match in said] == [stopped, stopped]

    pod = run.begin()
    pod.wait_for(lambda: 13 in run.steps_written())
    pod.send(1, signal.SIGKILL)
    pod.wait(timeout=90)
    # Either the collective fails, or the watch notices; both name the process.
    assert pod.codes == [43, -signal.SIGKILL], pod.text()
    assert "process 1: " in pod.processes[0].out()
    assert "Run the same command again on all hosts" in pod.processes[0].out()

    pod = run.begin()
    pod.wait_for(lambda: 18 in run.steps_written())
    pod.send(0, signal.SIGKILL)  # with it goes the service that connects the processes
    pod.wait(timeout=90)
    assert pod.codes[0] == -signal.SIGKILL
    # jax aborts whoever loses that service; it may be that the collective fails before.
    assert pod.codes[1] in (43, -signal.SIGABRT), pod.text()
    assert "another task died" in pod.processes[1].log.read_text() or pod.codes[1] == 43

    # The newest checkpoint is broken off: both take the one before.
    *_, before, newest = run.committed()
    (run.workdir / f"checkpoints/{newest}/variables/manifest.ocdbt").write_bytes(b"")
    pod = run.begin().wait()
    assert pod.codes == [0, 0], pod.text()
    said = f"checkpoint {newest} is damaged"
    assert all(said in p.log.read_text() for p in pod.processes)
    assert (run.workdir / f"checkpoints/damaged/{newest}").is_dir() and before < newest
    assert run.result() == whole[0].result()


def test_a_shared_state_is_saved_by_both_and_read_by_one(recipe, tmp_path):
    """All four devices share one state; stopped by ctrl-C while validating."""
    run = Run(recipe, tmp_path / "run", 1, COMMAND)
    pod = run.begin("--config.devices.fsdp=4")
    pod.wait_for(lambda: 8 in run.steps_written() and 8 not in run.steps_written("val"))
    pod.send(0, signal.SIGINT)
    pod.wait()
    assert pod.codes == [42, 42], pod.text()
    assert "SIGINT: stopping all processes" in pod.processes[0].out()
    last = run.committed()[-1]
    assert last >= 8 and last == run.steps_written()[-1]
    # By one process with one device.
    assert f"step {last}" in run.finish("--mode=eval")
    run.finish()
    assert run.steps_written() == list(range(1, STEPS + 1))
    assert run.steps_written("val") == [8, 16, 24]


def test_who_is_missing_is_named(recipe, tmp_path):
    run = Run(recipe, tmp_path / "run", 4, COMMAND)
    pod = run.begin(processes=1, count=2, VIREID_START_TIMEOUT="8").wait(timeout=150)
    assert pod.codes == [43]
    text = pod.text()
    assert "1 of 2 processes cannot be reached" in text
    assert "process 1: has not started; was the command given to all workers?" in text
    assert not (run.workdir / "config.json").exists()


UNEQUAL = {
    "--config.seed=7": (
        "the processes differ in the package and the config, expected the same",
        "seed: 0 on process 0, 7 on process 1",
    ),
    "--workdir=other": ("process(es) 1 do not see the folder", "NFS, Lustre, Filestore"),
}


@pytest.mark.parametrize("own", UNEQUAL)
def test_processes_that_are_not_equal_are_refused(recipe, tmp_path, own):
    run = Run(recipe, tmp_path / "run", 4, COMMAND)
    own_folder = own.replace("other", str(tmp_path / "other"))
    command = [f"--config={recipe}", f"--workdir={run.workdir}", own_folder]
    pod = run.begin(own={1: command}).wait(timeout=120)
    assert pod.codes == [1, 1], pod.text()
    for process in pod.processes:
        assert all(text in process.out() for text in UNEQUAL[own]), process.out()
    assert not (run.workdir / "config.json").exists()


def test_an_error_of_one_process_ends_the_others(recipe, tmp_path):
    """A file that one host lacks, say: the others are told, and do not wait for a time-out."""
    run = Run(recipe, tmp_path / "run", 4, COMMAND)
    missing = tmp_path / "missing.npz"
    command = [f"--config={recipe}", f"--workdir={run.workdir}", f"--config.init.weights={missing}"]
    began = time.monotonic()
    pod = run.begin(own={1: command}).wait(timeout=120)
    assert time.monotonic() - began < 100
    assert pod.codes == [43, 1], pod.text()
    text = pod.processes[0].out()
    assert "process 1: " in text and "ended with code 1 in phase 'data'" in text
    assert str(missing) in text  # the reason, too
    assert not (run.workdir / "config.json").exists()
