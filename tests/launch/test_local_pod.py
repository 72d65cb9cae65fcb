"""local_pod.sh: what its processes are given, exit codes, signals, output, nothing left behind."""

import os
import pathlib
import signal
import socket
import time

import pytest

from tests.launch.shell import ended, run, script, start, wait_for

pytestmark = pytest.mark.slow

_SHOW = r"""#!/usr/bin/env bash
printf '<%s>' "$@"; echo
for name in JAX_PLATFORMS JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID XLA_FLAGS \
  NPROC http_proxy JAX_LOCAL_DEVICE_IDS; do
  echo "$name=${!name-none}"
done
echo "to stderr" >&2
printf 'no end of line'
"""
_EXIT = """#!/usr/bin/env bash
codes=($CODES)
sleep "0.${codes[JAX_PROCESS_ID]##*.}"
exit "${codes[JAX_PROCESS_ID]%.*}"
"""
_WAIT = """#!/usr/bin/env bash
trap 'echo saved; exit 42' TERM
trap 'echo stopped; exit 130' INT
[[ $JAX_PROCESS_ID != "${STUBBORN-}" ]] || trap '' TERM INT
[[ $JAX_PROCESS_ID != "${LEAVES-}" ]] || exit 1
sleep 300 & echo $! >>"$DIR/children"
echo ready >>"$DIR/ready"
while :; do sleep 0.05; done
"""


def test_each_process_is_told_who_it_is(tmp_path):
    python = script(tmp_path / "a python", _SHOW)
    logs = tmp_path / "the logs"
    result = run(
        *("local_pod.sh", "3", "--devices", "2", f"--logs={logs}", "--", "--config=a b", "--x"),
        PYTHON=str(python),
        XLA_FLAGS="--xla_dump_to=/d --xla_force_host_platform_device_count=7",
        http_proxy="http://proxy:1",
        JAX_LOCAL_DEVICE_IDS="0",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    coordinators = set()
    for i in range(3):
        mine = [line[4:] for line in lines if line.startswith(f"[{i}] ")]
        assert mine == (logs / f"{i}.log").read_text().splitlines()
        assert mine[0] == "<-m><vireid_jax.main><--config=a b><--x>"
        assert mine[-1] == "no end of line"
        assert "to stderr" in mine
        told = dict(line.split("=", 1) for line in mine[1:9])
        coordinators.add(told.pop("JAX_COORDINATOR_ADDRESS"))
        assert told == {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_PROCESSES": "3",
            "JAX_PROCESS_ID": str(i),
            "XLA_FLAGS": "--xla_dump_to=/d --xla_force_host_platform_device_count=2"
            " --xla_cpu_multi_thread_eigen=false",
            "NPROC": "32",
            "http_proxy": "none",
            "JAX_LOCAL_DEVICE_IDS": "none",
        }
    assert len(lines) == 3 * len(mine)
    (coordinator,) = coordinators
    host, port = coordinator.split(":")
    assert host == "localhost" and 1024 < int(port) < 32768
    assert len((logs / "pids").read_text().split()) == 3


def test_the_port_is_free_or_the_one_given(tmp_path):
    python = script(tmp_path / "python", _SHOW)
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("local_pod.sh", "1", "--port", str(port), "--", PYTHON=str(python))
    assert f"JAX_COORDINATOR_ADDRESS=localhost:{port}\n" in result.stdout  # the caller knows best


@pytest.mark.parametrize(
    ("codes", "code"),  # 43.5: ends with 43 after 0.5 s
    [
        ("0 0 0", 0),
        ("42 42 42", 42),
        ("0 42 0", 42),
        ("42.1 1.4 43.9", 1),
        ("43.9 1.4 42.1", 1),  # the first in time, not in order
        ("43.4 0 1.9", 43),
    ],
)
def test_exit_code(tmp_path, codes, code):
    python = script(tmp_path / "python", _EXIT)
    result = run("local_pod.sh", "3", "--", PYTHON=str(python), CODES=codes)
    assert result.returncode == code, result.stderr


@pytest.fixture
def waiting(tmp_path):
    """Starts or runs two processes that wait for a signal; see _WAIT."""
    python = script(tmp_path / "python", _WAIT)

    def begin(how, *options, ready=2, **variables):
        arguments = ["local_pod.sh", "2", *options, "--logs", str(tmp_path), "--"]
        pod = how(*arguments, PYTHON=str(python), DIR=str(tmp_path), **variables)
        while len(lines(tmp_path / "ready")) < ready:
            time.sleep(0.02)
        wait_for(tmp_path / "pids")
        return pod

    yield begin
    for pid in lines(tmp_path / "pids") + lines(tmp_path / "children"):
        assert ended(int(pid)), pid


@pytest.mark.parametrize(("name", "code"), [("TERM", 42), ("HUP", 42), ("INT", 130)])
def test_a_signal_goes_to_all(waiting, name, code):
    with waiting(start) as pod:
        pod.send_signal(getattr(signal, f"SIG{name}"))
        output, _ = pod.communicate(timeout=20)
    assert pod.returncode == code
    said = "stopped" if name == "INT" else "saved"
    assert sorted(output.splitlines()) == [f"[0] {said}", f"[1] {said}"]


def test_one_that_ignores_signals_is_killed_in_time(waiting):
    with waiting(start, "--grace=1", STUBBORN="1") as pod:
        before = time.monotonic()
        pod.send_signal(signal.SIGTERM)
        pod.communicate(timeout=30)
        assert 0.5 < time.monotonic() - before < 15
    assert pod.returncode == 137


def test_others_are_told_to_stop_some_time_after_a_failure(waiting):
    before = time.monotonic()
    result = waiting(run, "--grace=1", ready=1, LEAVES="0")
    assert time.monotonic() - before < 20
    assert result.returncode == 1
    assert "[1] saved" in result.stdout


def test_a_killed_process_is_the_failure(waiting, tmp_path):
    with waiting(start, "--grace=1") as pod:
        os.kill(int(lines(tmp_path / "pids")[0]), signal.SIGKILL)
        _, errors = pod.communicate(timeout=30)
    assert pod.returncode == 137
    assert "process 0 ended with 137" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "N is ''"),
        (["0", "--"], "N is '0'"),
        (["two", "--"], "N is 'two'"),
        (["2", "--config=x"], "unknown option --config=x"),
        (["2", "--devices", "0", "--"], "--devices is 0"),
        (["2", "--devices=many", "--"], "--devices is 'many'"),
        (["2"], "-- is missing"),
    ],
)
def test_bad_options(arguments, message):
    result = run("local_pod.sh", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_timeout_that_is_no_number():
    result = run("local_pod.sh", "2", "--", VIREID_HEARTBEAT_TIMEOUT="1.5")
    assert result.returncode == 2
    assert "VIREID_HEARTBEAT_TIMEOUT is '1.5', expected a whole number" in result.stderr


def lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
