"""Every command answers signals within two seconds and ends in one line."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.jobs import REPO
from vireid_jax.runtime import command


def test_a_fault_of_the_program_is_one_line_and_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=a b"])
    monkeypatch.setattr(command, "answer_signals", lambda: None)

    def fail():
        raise KeyError("one\ntwo")

    with pytest.raises(SystemExit) as end:
        command.run(fail)
    assert end.value.code == 70
    err = capsys.readouterr().err
    assert err.startswith("internal error: KeyError: ") and err.count("\n") == 1
    text = pathlib.Path(re.search(r"with the file (.+)$", err)[1]).read_text()
    for part in ("command: main.py '--config=a b'", "numpy: ", "commit: ", "in fail\n"):
        assert part in text
    monkeypatch.setattr(sys, "argv", ["main.py", "--debug"])
    with pytest.raises(KeyError):
        command.run(fail)
    for code in (0, 1, None):
        with pytest.raises(SystemExit) as end:
            command.run(lambda code=code: code)
        assert end.value.code == code
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path / "none"))
    said = command.explain(KeyError("x"))
    assert said.endswith("please report the lines above)") and "KeyError" in capsys.readouterr().err


def test_a_home_folder_that_no_shell_has_put_in(monkeypatch):
    """Shells leave ~ alone behind "="."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(command, "answer_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["x", "~/runs", "--out=~/a b", "--config.lr=1e-3", "a~b"])
    with pytest.raises(SystemExit):
        command.run(lambda: None)
    assert sys.argv[1:] == ["/home/me/runs", "--out=/home/me/a b", "--config.lr=1e-3", "a~b"]


def test_every_command_is_run_by_it():
    found = []
    for path in (*REPO.glob("vireid_jax/**/*.py"), *REPO.glob("launch/**/*.py")):
        text = path.read_text()
        if '\nif __name__ == "__main__":\n' in text and "runpy.run_module" not in text:
            found.append(path)
            assert re.search(r"\brun\((main|lambda)", text), path
    assert len(found) > 6


BUSY = {
    "sleep": "time.sleep(60)",
    "library": "import sqlite3; sqlite3.connect(':memory:').execute('WITH RECURSIVE c(x) AS "
    "(SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT count(*) FROM c')",  # never returns
    "swallow": "\nwhile True:\n  try: time.sleep(60)\n  except BaseException: pass",
    "changed": "\ntry: time.sleep(60)\nexcept SystemExit: raise RuntimeError('unlocked')",
    "changed in a command": "\ndef main():\n  try: time.sleep(60)\n  finally: 1 / 0\n"
    "command.run(main)",
    "destructor": "\nclass A:\n  def __del__(self): time.sleep(60)\nA()\ntime.sleep(60)",
    "threads": "\nwith ThreadPoolExecutor(1) as pool: list(pool.map(time.sleep, [60] * 3))",
}


def answer(arguments, signum, ready):
    """(exit code, seconds, output) of a Python process that gets a signal when `ready(process)`."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPO,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    ) as process:
        try:
            ready(process)
            before = time.monotonic()
            process.send_signal(signum)
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, time.monotonic() - before, out


def catches(pid, signum):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", text)[1], 16) >> (signum - 1) & 1)


def at_work(process):
    process.stdout.readline()
    time.sleep(0.3)  # it is within its library then


SIGNALS = ((signal.SIGTERM, 42), (signal.SIGINT, 130))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("swallow", "threads") else n for n in BUSY],
)
def test_signals_are_answered_whatever_the_process_does(name):
    code = (
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "from vireid_jax.runtime import command\ncommand.answer_signals()\n"
        f"print('ready', flush=True)\n{BUSY[name]}"
    )
    for signum, expected in SIGNALS:
        code_, seconds, out = answer(["-c", code], signum, at_work)
        assert code_ == expected and seconds < 10, (name, seconds, out)
        assert f"{signum.name}: stopped; run the same" in out and "Traceback" not in out


def test_whoever_takes_a_signal_over_is_left_alone():
    code = (
        "import os, signal, time\nfrom vireid_jax.runtime import command\n"
        "command.answer_signals()\ncommand.ANSWER_S = 0.1\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\nprint('ready', flush=True)\n"
        "until = time.monotonic() + 0.5\nwhile time.monotonic() < until: time.sleep(0.01)\n"
        "raise SystemExit(7)"
    )
    assert answer(["-c", code], signal.SIGTERM, lambda p: p.stdout.readline())[0] == 7


def test_whoever_has_taken_a_signal_over_for_a_while_is_left_alone():
    code = (
        "import os, signal, time\nfrom vireid_jax.runtime import command\n"
        "command.answer_signals()\ncommand.ANSWER_S = 0.3\n"
        "before = signal.signal(signal.SIGINT, lambda *_: None)\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.1)\n"
        "signal.signal(signal.SIGINT, before)\ntime.sleep(0.6)\nraise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 7


@pytest.mark.slow
def test_a_command_that_imports_or_renders_is_stopped_at_once(tmp_path, monkeypatch):
    train = ["-m", "vireid_jax.main", "--config=smcl", f"--workdir={tmp_path}/run"]
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))  # so that it has to render
    check = ["-m", "vireid_jax.data", "check", "folders", f"--root={tmp_path}"]
    for arguments, moments in ((train, (0, 1, 4)), (check, (0,))):
        for wait_s in moments:
            for signum, expected in SIGNALS:

                def ready(process, wait_s=wait_s):
                    while not catches(process.pid, signal.SIGTERM):  # Python itself starts
                        time.sleep(0.01)
                    time.sleep(wait_s)

                code, seconds, out = answer(arguments, signum, ready)
                assert code == expected and seconds < 10, (arguments, wait_s, seconds, out)
                assert "Traceback" not in out, (arguments, wait_s, out)
    assert not (tmp_path / "run").exists()
