"""What `memory.prepare` does to a process: what it starts with, and what it says."""

import json
import os
import subprocess
import sys

import pytest

from vireid_jax.runtime import memory

# A command that says how it runs: whether it was started again, and with what.
COMMAND = """
import json, os, sys
print("started", flush=True)
from vireid_jax.runtime import memory
memory.prepare()
memory.trim()
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv]))
"""
GLIBC = memory._glibc()
huge_pages = pytest.mark.skipif(
    GLIBC < (2, 35) or not memory._on_request(), reason="no huge pages on request here"
)


def run(**environment):
    """(how often it was started, [process, GLIBC_TUNABLES, arguments] at the end)."""
    own = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "VIREID_MEMORY")}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "a b", "--c"],
        env={**own, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    *starts, last = process.communicate()[0].splitlines()
    assert process.returncode == 0
    pid, *rest = json.loads(last)
    assert pid == process.pid
    return len(starts), rest


@huge_pages
def test_a_command_starts_itself_again_once_in_the_same_process():
    assert run() == (2, ["glibc.malloc.hugetlb=1", ["-c", "a b", "--c"]])


@huge_pages
def test_other_settings_of_the_library_stay():
    starts, (tunables, _) = run(GLIBC_TUNABLES="glibc.malloc.perturb=1")
    assert (starts, tunables) == (2, "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1")


@pytest.mark.parametrize(
    "environment",
    [
        dict(VIREID_MEMORY="system"),
        dict(VIREID_MEMORY="keep"),
        dict(GLIBC_TUNABLES="glibc.malloc.hugetlb=0"),
    ],
)
def test_a_command_that_is_set_already_starts_once(environment):
    starts, (tunables, _) = run(**environment)
    assert (starts, tunables) == (1, environment.get("GLIBC_TUNABLES"))


def test_a_process_that_does_something_else_is_left_alone(monkeypatch):
    """A notebook, or these tests, may run the command within."""
    monkeypatch.setattr(memory, "_glibc", lambda: (2, 36))
    monkeypatch.setattr(memory, "_on_request", lambda: True)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("VIREID_MEMORY", raising=False)
    main = "/site/vireid_jax/main.py"
    for original, arguments in (
        (["ipython"], [main, "--config=smcl"]),
        (["python", "-m", "ipykernel", "-f", "x"], [main]),
        (["python", "-m", "pytest", "--config=smcl"], [main, "--config=smcl"]),
        (["python"], [main]),
    ):
        monkeypatch.setattr(sys, "orig_argv", original)
        monkeypatch.setattr(sys, "argv", arguments)
        memory.prepare()


@pytest.mark.parametrize(
    "start",
    [
        ["python", "-m", "vireid_jax.main"],
        ["python", "-X", "dev", "-m", "vireid_jax.main"],
        ["python", "/site/vireid_jax/main.py"],
    ],
)
def test_what_is_started_for_the_command(start, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [*start, "--mode", "eval"])
    monkeypatch.setattr(sys, "argv", ["/site/vireid_jax/main.py", "--mode", "eval"])
    assert memory._started_for_this()


@pytest.mark.parametrize("where", ["no file", "another C library", "an old one", "[never]"])
def test_a_system_without_huge_pages_on_request_starts_once(where, monkeypatch, tmp_path):
    enabled = tmp_path / "enabled"
    enabled.write_text("always madvise [never]" if where == "[never]" else "always [madvise] never")
    monkeypatch.setattr(memory, "ON_REQUEST", tmp_path / "none" if where == "no file" else enabled)
    versions = {"another C library": (), "an old one": (2, 34)}
    monkeypatch.setattr(memory, "_glibc", lambda: versions.get(where, (2, 36)))
    monkeypatch.setattr(memory, "_started_for_this", lambda: True)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("VIREID_MEMORY", raising=False)
    memory.prepare()


def test_an_unknown_choice_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("VIREID_MEMORY", "big")
    with pytest.raises(SystemExit, match="2"):
        memory.prepare()
    assert "VIREID_MEMORY is 'big', expected one of huge, keep, system" in capsys.readouterr().err


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_keep_gives_nothing_back():
    """A buffer that is freed is at the next request where it was, already in memory."""
    code = """
import os, resource
from vireid_jax.runtime import memory
memory.prepare()
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**25, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, second = faults(), faults()
assert (second < 100) == (os.environ["VIREID_MEMORY"] == "keep"), (first, second)
"""
    for choice in ("keep", "system"):
        environment = {**os.environ, "VIREID_MEMORY": choice, "GLIBC_TUNABLES": ""}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
