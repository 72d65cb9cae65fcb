"""Runs the parts of the check in processes of their own, within a budget of time.

A part prints a line of JSON for each thing that it found, so what it found before it failed, hung
or was stopped is kept. Several parts run side by side to share the cores while they compile. The
device is shared then; a part that takes times has it alone.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

LEAST_S = 15.0  # left of the budget, to begin a part
LAST_LINES = 8  # kept of what a part wrote that did not end well


class Part(NamedTuple):
    """One process."""

    name: str
    command: Sequence[str]
    timeout_s: float
    env: dict[str, str] = {}  # noqa: RUF012, changes to the environment; never written to


class _Running(NamedTuple):
    part: Part
    process: subprocess.Popen
    began: float
    files: tuple[IO[str], IO[str]]


@contextlib.contextmanager
def device(out: pathlib.Path, *, alone: bool) -> Iterator[None]:
    """Waits for the device: with others that compile, or alone to take times."""
    with open(out / "device.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def emit(row: dict[str, Any]) -> None:
    """What a part prints for a thing that it found."""
    print(json.dumps(row), flush=True)


def rows_of(text: str) -> list[dict[str, Any]]:
    """The lines of JSON among what a part printed."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


def run(
    parts: Sequence[Part],
    out: pathlib.Path,
    *,
    budget_s: float,
    workers: int,
    ended: Callable[[dict[str, Any]], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Runs parts in their order, several at a time.

    A part is killed after its own time, or when the budget is over; parts that would begin with
    less than `LEAST_S` left are left out.

    Args:
      parts: the most valuable first.
      out: folder of what they print, in parts/.
      budget_s: seconds for all.
      workers: parts at a time.
      ended: called with {"part", "state", "seconds", "rows", "last_lines"} of each part. The state
        is "done", "failed (code)", "timed out", "stopped at the budget" or "left out".
      clock: seconds.
    """
    (out / "parts").mkdir(parents=True, exist_ok=True)
    end = clock() + budget_s
    waiting, running = list(parts), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                part = waiting.pop(0)
                if end - clock() < LEAST_S:
                    ended({"part": part.name, "state": "left out", "seconds": 0.0, "rows": []})
                else:
                    running.append(_start(part, out, clock()))
            for r in list(running):
                state = _state(r, clock(), end)
                if state is not None:
                    running.remove(r)
                    ended(_result(r, state, clock(), out))
            if running:
                time.sleep(0.05)
    finally:
        for r in running:  # an error or Ctrl-C
            _stop(r)


def _paths(out: pathlib.Path, part: Part) -> tuple[pathlib.Path, pathlib.Path]:
    return out / "parts" / f"{part.name}.out", out / "parts" / f"{part.name}.err"


def _start(part: Part, out: pathlib.Path, now: float) -> _Running:
    files = tuple(path.open("w") for path in _paths(out, part))
    process = subprocess.Popen(
        part.command,
        stdin=subprocess.DEVNULL,
        stdout=files[0],
        stderr=files[1],
        env={**os.environ, **part.env},
        start_new_session=True,
    )
    return _Running(part, process, now, files)  # type: ignore[arg-type]


def _state(r: _Running, now: float, end: float) -> str | None:
    """How a part has ended, after stopping it if its time is over; None if it goes on."""
    code = r.process.poll()
    if code is not None:
        return "done" if code == 0 else f"failed ({code})"
    if now > min(r.began + r.part.timeout_s, end):
        _stop(r)
        return "timed out" if r.began + r.part.timeout_s < end else "stopped at the budget"
    return None


def _stop(r: _Running) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(r.process.pid, signal.SIGKILL)  # its children, too: the part leads a session
    r.process.wait()


def _result(r: _Running, state: str, now: float, out: pathlib.Path) -> dict[str, Any]:
    for file in r.files:
        file.close()
    printed, errors = (path.read_text(errors="replace") for path in _paths(out, r.part))
    last = [] if state == "done" else errors.strip().splitlines()[-LAST_LINES:]
    return {
        "part": r.part.name,
        "state": state,
        "seconds": round(now - r.began, 1),
        "rows": rows_of(printed),
        "last_lines": [line[:300] for line in last],
    }
