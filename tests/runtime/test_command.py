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


BUSY = {
    "sleep": "time.sleep(60)",
    "library": "import sqlite3; sqlite3.connect(':memory:').execute('WITH RECURSIVE c(x) AS "
    "(SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT count(*) FROM c')",  # never returns
    "swallow": "\nwhile True:\n  try: time.sleep(60)\n  except BaseException: pass",
    "threads": "\nwith ThreadPoolExecutor(1) as pool: list(pool.map(time.sleep, [60] * 3))",
}


@pytest.mark.parametrize("name", BUSY)
def test_signals_are_answered_whatever_the_process_does(name):
    code = (
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "from vireid_jax.runtime import command\ncommand.answer_signals()\n"
        f"print('ready', flush=True)\n{BUSY[name]}"
    )
    for signum, expected in ((signal.SIGTERM, 42), (signal.SIGINT, 130)):
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPO,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            before = time.monotonic()
            process.send_signal(signum)
            _, err = process.communicate(timeout=10)
        assert process.returncode == expected and time.monotonic() - before < 2.5, (name, err)
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_command_that_imports_or_renders_is_stopped_at_once(tmp_path):
    run = ["vireid_jax.main", "--config=smcl", f"--workdir={tmp_path}/run"]
    run += [f"--config.data.cache={tmp_path}/cache"]
    prepare = ["vireid_jax.data", "check", "folders", f"--root={tmp_path}"]
    for arguments in (run, prepare):
        for wait_s in (0.4, 1.5, 4, 8) if arguments is run else (0.4,):
            for signum, expected in ((signal.SIGTERM, 42), (signal.SIGINT, 130)):
                with subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    cwd=REPO,
                    env=os.environ | {"JAX_PLATFORMS": "cpu"},
                ) as process:
                    time.sleep(wait_s)
                    before = time.monotonic()
                    process.send_signal(signum)
                    out, _ = process.communicate(timeout=60)
                assert process.returncode == expected, (arguments, wait_s, out)
                assert time.monotonic() - before < 2.5 and "Traceback" not in out, (wait_s, out)
    assert not (tmp_path / "run").exists()
