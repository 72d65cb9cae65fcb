"""Helpers of the tests of launch/: run a script, record the commands that it gives."""

import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

# Under nohup, or as a job in the background of a script, tests inherit ignored signals, which bash
# cannot trap.
BASH = ("env", "--default-signal", "bash")

# Writes its name and arguments as one line, each in <>, then does what $STAND_IN/<name> says.
_RECORDER = """#!/usr/bin/env bash
{ printf '%s' "${0##*/}"; printf ' <%s>' "$@"; echo; } >>"$STAND_IN/calls"
[[ ! -f "$STAND_IN/${0##*/}.does" ]] || . "$STAND_IN/${0##*/}.does"
"""


def script(path: pathlib.Path, text: str) -> pathlib.Path:
    """An executable file."""
    path.write_text(text)
    path.chmod(0o755)
    return path


class StandIns:
    """Programs on PATH that record how they are called instead of doing anything."""

    def __init__(self, folder: pathlib.Path, **does: str):
        self.folder = folder
        folder.mkdir(parents=True)
        for name, text in does.items():
            script(folder / name.replace("_", "-"), _RECORDER)
            (folder / f"{name.replace('_', '-')}.does").write_text(text)

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.folder}:/usr/bin:/bin", "STAND_IN": str(self.folder)}


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment without what steers the scripts, and with `variables`."""
    steering = ("JAX_", "XLA_", "VIREID_", "SLURM_", "PYTHON", "PROJECT", "ZONE", "NAME", "BUCKET")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
    return kept | variables


def run(
    name: str, *arguments: str, timeout: float = 60, cwd: pathlib.Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs launch/<name> to its end."""
    return subprocess.run(
        [*BASH, str(LAUNCH / name), *arguments],
        env=clean_environment(**variables),
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=timeout,
    )


def start(name: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Starts launch/<name>; use it with `with`."""
    return subprocess.Popen(
        [*BASH, str(LAUNCH / name), *arguments],
        env=clean_environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(path: pathlib.Path, seconds: float = 20) -> None:
    """Until a file has content."""
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < end, f"no {path} within {seconds} s"
        time.sleep(0.02)


def ended(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends in time; a zombie has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False
