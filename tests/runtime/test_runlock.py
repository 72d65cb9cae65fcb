"""A run's folder belongs to one command at a time, until it ends in whatever way."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import filelock
import pytest

from tests.support.jobs import LINEAR, LINEAR_COMMAND, REPO, Job, write_recipe
from vireid_jax.runtime import runlock

HOLDER = """
import sys, time
from vireid_jax.runtime import runlock
with runlock.held(sys.argv[1], int(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(workdir, process=0):
    command = [sys.executable, "-c", HOLDER, str(workdir), str(process)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as other:
        try:
            assert other.stdout.readline() == "held\n"
            yield other
        finally:
            other.kill()


def test_a_second_process_is_refused_at_once_until_the_first_is_gone(tmp_path):
    workdir = tmp_path / "run"
    with holder(workdir) as other:
        before = time.monotonic()
        with pytest.raises(runlock.InUseError) as error, runlock.held(workdir):
            pass
        assert time.monotonic() - before < 10
        assert f"{workdir} is in use by process {other.pid} on {os.uname().nodename}; wait" in str(
            error.value
        )
        with runlock.held(workdir, 1):  # another process of that run
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with runlock.held(workdir):
            assert (workdir / runlock.FOLDER).exists()
    assert not (tmp_path / "run" / runlock.FOLDER).exists()


def test_a_folder_goes_again_if_nothing_was_written(tmp_path):
    workdir = tmp_path / "runs" / "a"
    with pytest.raises(KeyError), runlock.held(workdir):
        with runlock.held(workdir):  # twice in one process
            assert workdir.is_dir()
        assert list(workdir.glob(".running/*.lock")), "the inner one lets go of nothing"
        raise KeyError
    assert not list(tmp_path.iterdir())
    with runlock.held(workdir):
        (workdir / "config.json").touch()
    assert [p.name for p in workdir.iterdir()] == ["config.json"]
    (tmp_path / "own").mkdir()
    with runlock.held(tmp_path / "own"):
        pass
    assert (tmp_path / "own").is_dir(), "it was there before"
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the run cannot be kept in .*; name another --workdir"):
        with runlock.held(tmp_path / "file"):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(lock, **_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with runlock.held(tmp_path / "run"):
        assert "has no locks: let no second command train there" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_commands_at_once_lose_no_line(tmp_path):
    recipe = write_recipe(tmp_path, changes=LINEAR)
    whole = Job(recipe, tmp_path / "whole", 1, LINEAR_COMMAND)
    whole.finish()
    for n, wait_s in enumerate((0, 0.1, 3)):
        job = Job(recipe, tmp_path / f"run{n}", 1, LINEAR_COMMAND)
        first = job.start()
        time.sleep(wait_s)
        second = job.start()
        outs = {p: p.communicate(timeout=300)[0] for p in (first, second)}
        codes = sorted(p.returncode for p in outs)
        # After some seconds the first may have ended; the second has nothing left to do then.
        assert codes == [0, 75] or (wait_s and codes == [0, 0]), outs
        refused, other = sorted(outs, key=lambda p: -p.returncode)
        if 75 in codes:
            assert f"is in use by process {other.pid} on " in outs[refused]
        assert job.result() == whole.result(), wait_s
