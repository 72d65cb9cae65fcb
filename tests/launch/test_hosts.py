"""on_worker.sh and setup_host.sh: what a TPU host is told to do, by programs that record it."""

import shlex
import time

import pytest

from tests.launch.shell import LAUNCH, StandIns, ended, run, script, wait_for

pytestmark = pytest.mark.slow

# --- on the workers


def worker(tmp_path, *arguments, systemd=False, **does):
    """Runs on_worker.sh with a stand-in Python in the environment folder."""
    folder = tmp_path / "bin"
    if not folder.exists():
        stand_ins = StandIns(folder, **does)
    else:
        stand_ins = StandIns.__new__(StandIns)
        stand_ins.folder = folder
    (tmp_path / "systemd").mkdir(exist_ok=True)
    variables = {
        "ENV_DIR": str(tmp_path / "an env"),
        "STATE_DIR": str(tmp_path / "the state"),
        "SYSTEMD_DIR": str(tmp_path / ("systemd" if systemd else "none")),
        "STOP_SECONDS": "10",
    }
    return stand_ins, run("on_worker.sh", *arguments, **variables, **stand_ins.environment())


def test_worker_with_systemd(tmp_path):
    does = {"sudo": '"$@"', "systemctl": '[[ "$*" != *is-active* ]]', "systemd_run": ""}
    job = ["start", "JAX_X=a b", "--", "--config=c d"]
    stand_ins, result = worker(tmp_path, *job, systemd=True, **does)
    assert result.returncode == 0, result.stderr
    (call,) = [c for c in stand_ins.calls() if c.startswith("systemd-run")]
    for words in (
        "<--unit=vireid>",
        "<--property=KillMode=mixed>",
        "<--property=TimeoutStopSec=10>",
        "<--property=LimitNOFILE=65536>",
        f"<--working-directory={LAUNCH.parent}>",
        f"<--property=StandardOutput=append:{tmp_path}/the state/vireid.log>",
        f"<env> <PYTHONUNBUFFERED=1> <JAX_X=a b> <bash> <{LAUNCH}/supervise.sh>",
        f"<--> <{tmp_path}/an env/bin/python> <-m> <vireid_jax.main> <--config=c d>",
    ):
        assert words in call
    assert any(c.startswith("sudo <systemd-run>") for c in stand_ins.calls())


def test_worker_with_systemd_refuses_a_second_job(tmp_path):
    does = {"sudo": '"$@"', "systemctl": "true", "systemd_run": ""}
    stand_ins, result = worker(tmp_path, "start", "--", "--config=c", systemd=True, **does)
    assert result.returncode == 1
    assert "runs already" in result.stderr
    assert not [c for c in stand_ins.calls() if c.startswith("systemd-run")]
    _, result = worker(tmp_path, "idle", systemd=True)
    assert result.returncode == 1
    stand_ins, result = worker(tmp_path, "stop", systemd=True)
    assert "systemctl <stop> <vireid>" in stand_ins.calls()


def test_worker_without_systemd(tmp_path):
    (tmp_path / "an env" / "bin").mkdir(parents=True)
    text = """#!/usr/bin/env bash
trap 'echo saved; exit 42' TERM
echo "args: $* JAX_X=$JAX_X"
while :; do sleep 0.05; done
"""
    script(tmp_path / "an env" / "bin" / "python", text)
    assert "does not run" in worker(tmp_path, "status")[1].stdout
    assert worker(tmp_path, "idle")[1].returncode == 0
    _, result = worker(tmp_path, "start", "JAX_X=a b", "--", "--config=c d")
    assert result.returncode == 0, result.stderr
    for _ in range(200):
        logs = worker(tmp_path, "logs")[1].stdout
        if "args" in logs:
            break
        time.sleep(0.05)
    assert "args: -m vireid_jax.main --config=c d JAX_X=a b" in logs
    # The job may write its log before its supervisor notes that it runs.
    wait_for(tmp_path / "the state" / "status.json")
    status = worker(tmp_path, "status")[1].stdout
    assert "vireid runs" in status and '"state": "running"' in status
    assert worker(tmp_path, "start", "--")[1].returncode == 1
    pid = int((tmp_path / "the state" / "vireid.pid").read_text())
    _, result = worker(tmp_path, "stop")
    assert result.returncode == 0
    assert ended(pid)
    assert "saved" in worker(tmp_path, "logs")[1].stdout
    assert '"state": "stopped"' in worker(tmp_path, "status")[1].stdout


@pytest.mark.parametrize("arguments", [[], ["begin"], ["start", "--config=c"]])
def test_worker_refusals(tmp_path, arguments):
    assert worker(tmp_path, *arguments)[1].returncode == 2


def test_a_time_that_is_no_number(tmp_path):
    state = str(tmp_path / "state")
    result = run("on_worker.sh", "status", STATE_DIR=state, STOP_SECONDS="5m")
    assert result.returncode == 2 and "STOP_SECONDS is '5m'" in result.stderr


# --- setting a host up


def setup(tmp_path, *arguments: str, **variables: str):
    fake = tmp_path / "a home"
    fake.mkdir(exist_ok=True)
    return run("setup_host.sh", *arguments, "--fake", str(fake), **variables), fake


def programs(tmp_path, **does: str) -> dict[str, str]:
    return StandIns(tmp_path / "bin", **does).environment()


@pytest.mark.parametrize(("devices", "extra"), [("tpu", "[tpu]"), ("cuda", "[cuda]"), ("cpu", "")])
def test_setup_with_uv_is_idempotent(tmp_path, devices, extra):
    environment = programs(tmp_path, uv="")
    result, fake = setup(tmp_path, devices, **environment)
    assert result.returncode == 0, result.stderr
    commands = [shlex.split(c[2:]) for c in result.stdout.splitlines() if c.startswith("+ ")]
    env = str(fake / "vireid_env")
    uv = f"{environment['STAND_IN']}/uv"
    assert [uv, "venv", "--python", "3.12", env] in commands
    install = [uv, "pip", "install", "--python", f"{env}/bin/python", "--editable"]
    assert [*install, f"{LAUNCH.parent}{extra}"] in commands
    assert not (tmp_path / "bin" / "calls").exists()  # printed, not done
    again, _ = setup(tmp_path, devices, **environment)
    assert "up to date" in again.stdout
    assert f"{uv} venv" not in again.stdout


def test_setup_without_uv_takes_a_recent_python(tmp_path):
    # Every name of an interpreter: only python3.13 is recent enough.
    names = ("python3", "python3.11", "python3.12", "python3.14")
    environment = programs(tmp_path, **{"python3.13": ""}, **dict.fromkeys(names, "exit 1"))
    result, _ = setup(tmp_path, "tpu", **environment)
    assert result.returncode == 0, result.stderr
    assert "+ python3.13 -m venv --clear" in result.stdout
    assert "bin/python -m pip install" in result.stdout


def test_setup_without_a_recent_python_gets_one_by_uv(tmp_path):
    names = ("python3", "python3.11", "python3.12", "python3.13", "python3.14")
    environment = programs(tmp_path, **dict.fromkeys(names, "exit 1"))
    result, fake = setup(tmp_path, "tpu", **environment)
    assert result.returncode == 0, result.stderr
    own = shlex.quote(f"{fake}/.vireid_uv").replace("'", "").replace(" ", "\\ ")
    assert f"+ python3 -m venv {own}" in result.stdout
    assert f"+ {own}/bin/uv venv --python 3.12" in result.stdout


def test_setup_mounts_a_bucket_once(tmp_path):
    environment = programs(tmp_path, uv="", gcsfuse="", mountpoint="exit 1")
    result, _ = setup(tmp_path, "tpu", "--bucket=bkt", "--mount", "/mnt/my runs", **environment)
    (mount,) = [line for line in result.stdout.splitlines() if line.startswith("+ gcsfuse")]
    words = shlex.split(mount[2:])
    assert words[-2:] == ["bkt", "/mnt/my runs"]
    assert "--rename-dir-limit=100000" in words and "--metadata-cache-ttl-secs=0" in words
    (tmp_path / "bin" / "mountpoint.does").write_text("exit 0")
    result, _ = setup(tmp_path, "tpu", "--bucket=bkt", "--mount", "/mnt/my runs", **environment)
    assert "is mounted" in result.stdout and "+ gcsfuse" not in result.stdout


def test_setup_changes_nothing_outside_the_folder(tmp_path):
    before = sorted(p for p in tmp_path.iterdir())
    home = tmp_path / "real"
    home.mkdir()
    result, fake = setup(tmp_path, "tpu", "--bucket=b", HOME=str(home))
    assert result.returncode == 0, result.stderr
    assert list(home.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == sorted([*before, fake, home])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the devices are ''"),
        (["gpu"], "the devices are 'gpu'"),
        (["tpu", "--evn=x"], "unknown option --evn=x"),
        (["tpu", "--bucket=gs://b"], "expected the name alone"),
        (["tpu", "--mount=/m"], "--mount without --bucket"),
        (["tpu", "--bucket"], "--bucket lacks its value"),
    ],
)
def test_setup_refusals(arguments, message):
    result = run("setup_host.sh", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
