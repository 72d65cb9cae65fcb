"""supervise.sh: what it does with each exit code, with progress, and with signals."""

import json
import os
import pathlib
import signal
import time

import pytest

from tests.launch.shell import ended, run, script, start, wait_for

pytestmark = pytest.mark.slow

# Ends with the codes in $CODES, one per start; makes checkpoint $STEPS[i]. Ends with 99 after them.
_COMMAND = """#!/usr/bin/env bash
n=$(cat "$RUN/starts" 2>/dev/null || echo 0)
echo $((n + 1)) >"$RUN/starts"
codes=($CODES 99 99 99) steps=($STEPS)
[[ ! ${steps[n]-} ]] || mkdir -p "$RUN/checkpoints/${steps[n]}"
exit "${codes[n]}"
"""


class Run:
    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "a run"  # a space: paths have them
        (self.folder / "checkpoints").mkdir(parents=True)
        self.command = script(folder / "a command", _COMMAND)

    def __call__(self, codes: str, *options: str, steps: str = "", known: bool = True):
        workdir = ["--workdir", str(self.folder)] if known else []
        variables = {"RUN": str(self.folder), "CODES": codes, "STEPS": steps}
        arguments = ["--backoff", "0", *options, "--", str(self.command), *workdir]
        return run("supervise.sh", *arguments, HOSTNAME="host-3", **variables)

    @property
    def starts(self) -> int:
        return int((self.folder / "starts").read_text())

    @property
    def status(self) -> dict:
        return json.loads((self.folder / "supervise" / "host-3.json").read_text())


@pytest.fixture
def supervised(tmp_path):
    return Run(tmp_path)


@pytest.mark.parametrize(
    ("codes", "starts", "code"),
    [
        ("0", 1, 0),
        ("42 0", 2, 0),
        ("42 42 42 42 42 42 0", 7, 0),  # a preemption is no failure, however often
        ("43 134 137 143 43 0", 6, 0),
        ("1 1 0", 3, 0),
        ("1 1 1", 3, 1),
        ("7 1 5", 3, 5),  # the last code
        ("75 75 75 75 75 0", 6, 0),  # another process works there: wait, however long
        ("1 75 1 75 1", 5, 1),  # and that is no success
        ("1 43 1 137 1", 5, 1),  # a lost process does not make up for failures
        ("2", 1, 2),
        ("1 2", 2, 2),
        ("127", 1, 127),
        ("130", 1, 130),
    ],
)
def test_exit_codes(supervised, codes, starts, code):
    result = supervised(codes)
    assert (result.returncode, supervised.starts) == (code, starts), result.stderr


@pytest.mark.parametrize(
    ("codes", "steps", "starts", "code"),
    [
        ("1 1 1 1 1 0", "10 20 30 40 50", 6, 0),  # each attempt got further
        ("1 1 1 1 1 1", "10 10 20", 6, 1),  # the count begins anew at 20
        ("1 1 1 1", "30 20 10", 4, 1),  # older steps are no progress
        ("1 1 1", "x 11.orbax-checkpoint-tmp 12a", 3, 1),  # and unfinished ones are none
        ("1 1 1 1", "9 10", 5, 99),  # numbers, not words: 10 is after 9
        ("43 43 43 43 0", "", 2, 43),
        ("43 43 43 43 0", "1 2 3 4", 5, 0),
    ],
)
def test_progress(supervised, codes, steps, starts, code):
    result = supervised(codes, "--max_lost=2", steps=steps)
    assert (result.returncode, supervised.starts) == (code, starts), result.stderr


def test_without_a_folder_no_progress_is_seen(supervised):
    assert supervised("1 1 1 1", steps="1 2 3 4", known=False).returncode == 1
    assert supervised.starts == 3
    assert not (supervised.folder / "supervise").exists()


def test_max_failures_and_own_status(supervised, tmp_path):
    result = supervised("1 1", "--max_failures=1", "--status", str(tmp_path / "s" / "t.json"))
    assert (result.returncode, supervised.starts) == (1, 1)
    assert json.loads((tmp_path / "s" / "t.json").read_text())["state"] == "failed"


def test_status_says_what_happened(supervised):
    (supervised.folder / "checkpoints" / "5").mkdir()
    supervised("42 1 0", steps="7")
    status = supervised.status
    assert status["state"] == "done"
    assert status["restarts"] == 2
    assert status["last_exit_code"] == 0
    assert status["step"] == 7
    assert status["host"] == "host-3"
    assert "a\\ command" in status["command"]
    assert status["started"] <= status["attempt_started"] <= status["updated"]
    assert os.listdir(supervised.folder / "supervise") == ["host-3.json"]  # no temporary files


def test_back_off_doubles_and_starts_anew_after_progress(supervised):
    messages = supervised("1 1 1", "--backoff=1", steps="5").stderr
    waits = [line.split()[3] for line in messages.splitlines() if "restart in" in line]
    assert waits == ["1", "1", "2"]  # the first attempt made step 5, the next is failure 1
    before = time.monotonic()
    messages = Run(supervised.folder)("43 43 43 0", "--backoff=1").stderr
    waits = [line.split()[3] for line in messages.splitlines() if "restart in" in line]
    assert waits == ["1", "2", "4"]
    assert 6.5 < time.monotonic() - before < 20


@pytest.mark.parametrize(
    ("name", "code"), [("TERM", 42), ("INT", 130), ("HUP", 42)], ids=["term", "int", "hup"]
)
def test_a_signal_goes_on_and_nothing_is_restarted(tmp_path, name, code):
    command = script(
        tmp_path / "command",
        f"""#!/usr/bin/env bash
trap 'sleep 0.3; echo saved; exit 42' TERM
trap 'exit 130' INT
echo start >>{tmp_path}/starts
for i in {{1..300}}; do sleep 0.1; done
""",
    )
    with start("supervise.sh", "--status", f"{tmp_path}/s.json", "--", str(command)) as process:
        wait_for(tmp_path / "starts")
        process.send_signal(getattr(signal, f"SIG{name}"))
        before = time.monotonic()
        assert process.wait(timeout=20) == code
        assert time.monotonic() - before < 10
    assert (tmp_path / "starts").read_text() == "start\n"
    state = json.loads((tmp_path / "s.json").read_text())
    assert state["last_exit_code"] == code
    assert state["state"] == ("stopped" if code == 42 else "failed")


def test_a_signal_during_the_back_off_stops_at_once(tmp_path):
    with start("supervise.sh", "--backoff=200", "--", "bash", "-c", "exit 43") as process:
        for line in process.stderr:
            if "restart in 200 s" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 43


def test_what_a_command_leaves_behind_is_killed(tmp_path):
    text = f"sleep 300 & echo $! >{tmp_path}/pid; exit 0"
    assert run("supervise.sh", "--", "bash", "-c", text).returncode == 0
    assert ended(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-- is missing"),
        (["--"], "command after -- is missing"),
        (["--backof=1", "--", "true"], "unknown option --backof=1"),
        (["--backoff", "soon", "--", "true"], "'soon', expected a whole number"),
        (["--max_failures"], "lacks its value"),
    ],
)
def test_bad_options(arguments, message):
    result = run("supervise.sh", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
