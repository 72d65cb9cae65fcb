"""slurm.sbatch: its directives, and what it does with what srun ends with."""

import os
import re
import signal
import subprocess

import pytest

from tests.launch.shell import BASH, LAUNCH, StandIns, clean_environment, script, wait_for

pytestmark = pytest.mark.slow

_FILE = LAUNCH / "slurm.sbatch"
_JOB = ["--config=c.py:sysu", "--workdir=/shared/runs/a b"]


def directives() -> dict[str, str]:
    lines = _FILE.read_text().splitlines()
    # Slurm stops reading them at the first line that is a command.
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[end:])
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in lines[:end]]
    return {m[1]: m[2] for m in found if m}


def test_directives():
    found = directives()
    assert len(found) == _FILE.read_text().count("\n#SBATCH ")  # each of them parses
    assert found.keys() <= {
        *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-gpu", "time"),
        *("requeue", "signal", "open-mode", "output"),
    }
    assert "requeue" in found
    assert found["signal"] == "TERM@180"  # no "B:": to the tasks, not to the shell
    assert found["open-mode"] == "append"  # a requeued job goes on in the same file
    assert "%j" in found["output"]
    assert found["nodes"] == found["ntasks-per-node"] == found["gpus-per-node"] == "1"
    assert _FILE.read_text().startswith("#!")


def environment(tmp_path, srun: str, **variables: str):
    stand_ins = StandIns(tmp_path / "bin", srun=srun, scontrol="")
    python = tmp_path / "an env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, "#!/bin/sh\n")
    settings = {
        "ENV_DIR": str(tmp_path / "an env"),
        "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "http_proxy": "http://p:1",
        "HTTPS_PROXY": "http://p:1",
    }
    return stand_ins, clean_environment(**settings, **stand_ins.environment(), **variables)


def run(env, *arguments: str):
    command = [*BASH, str(_FILE), *arguments]
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("code", "requeued"),
    [(0, False), (42, True), (43, True), (1, False), (2, False), (134, False), (137, False)],
)
def test_requeues_what_was_preempted_or_lost(tmp_path, code, requeued):
    stand_ins, env = environment(tmp_path, f"exit {code}")
    result = run(env, *_JOB)
    assert result.returncode == code
    step, *requeue = stand_ins.calls()
    python = tmp_path / "an env" / "bin" / "python"
    options = "<--kill-on-bad-exit=0> <--wait=300>"
    assert step == (
        f"srun {options} <{python}> <-m> <vireid_jax.main> <--config=c.py:sysu> "
        "<--workdir=/shared/runs/a b>"
    )
    assert requeue == (["scontrol <requeue> <77>"] if requeued else [])


@pytest.mark.parametrize(("restarts", "most", "requeued"), [("49", "50", 1), ("2", "2", 0)])
def test_requeues_have_an_end(tmp_path, restarts, most, requeued):
    stand_ins, env = environment(
        tmp_path, "exit 42", SLURM_RESTART_COUNT=restarts, MAX_RESTARTS=most
    )
    assert run(env, *_JOB).returncode == 42
    assert len(stand_ins.calls()) == 1 + requeued


def test_the_tasks_see_no_proxy_and_start_in_the_submit_folder(tmp_path):
    _, env = environment(tmp_path, "env; pwd", all_proxy="http://p:1")
    output = run(env, *_JOB).stdout
    assert "_proxy=" not in output.lower()
    assert str(tmp_path) in output.splitlines()


def test_told_to_stop_itself_it_does_not_requeue(tmp_path):
    """As by scancel, which signals the tasks and the shell."""
    does = "trap 'exit 42' TERM; echo here >$STAND_IN/here; while :; do sleep 0.05; done"
    stand_ins, env = environment(tmp_path, does)
    with subprocess.Popen(
        [*BASH, str(_FILE), *_JOB],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        process_group=0,
    ) as job:
        wait_for(stand_ins.folder / "here")
        os.killpg(job.pid, signal.SIGTERM)
        output, _ = job.communicate(timeout=20)
    assert job.returncode == 42
    assert "told to stop" in output
    assert not [c for c in stand_ins.calls() if c.startswith("scontrol")]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--config=c"], {}, "--workdir is missing"),
        (["--workdir=gs://b/x"], {}, "is a bucket"),
        (["--workdir", "gs://b/x"], {}, "is a bucket"),
        (_JOB, {"MAX_RESTARTS": "x[0]"}, "MAX_RESTARTS is 'x[0]', expected a whole number"),
        (_JOB, {"ENV_DIR": "/nowhere"}, "no Python at /nowhere/bin/python"),
    ],
)
def test_refusals(tmp_path, arguments, variables, message):
    stand_ins, env = environment(tmp_path, "")
    result = run(env | variables, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert stand_ins.calls() == []
