"""Cells' commands, several at a time, each in a process of its own.

What is to be done is read from the folders, so a command that was stopped in any way is repeated
and goes on. SIGTERM and ctrl-C are passed on to the processes, which save and end.
"""

import collections
import contextlib
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import NamedTuple

from vireid_jax.ablation import results
from vireid_jax.ablation.plan import Cell, Score
from vireid_jax.runtime import EXIT_INTERRUPTED, EXIT_PREEMPTED

LOG, LOCK = "console.log", ".lock"
TAIL = 15  # lines of a log that a report shows
_POLL_SECONDS = 0.1


class Outcome(NamedTuple):
    """How a run over cells has ended."""

    failed: dict[str, str]  # name of the cell -> why, with the end of its log
    stopped: int  # exit code of a request to stop, 0 for none


class _Running(NamedTuple):
    cell: Cell
    score: Score | None  # None: it trains
    process: subprocess.Popen[bytes]
    started: float


class _Stop:
    """A request to stop, from a signal or from a process that was told to."""

    code = 0
    wanted: signal.Signals | None = None  # what the processes are to be sent
    sent: signal.Signals | None = None


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    env: Mapping[str, str],
    changed: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains and scores what is missing, in the order of `cells`.

    Args:
      cells: each once.
      jobs: processes at a time.
      env: of the processes.
      changed: called after a cell is done.

    Returns:
      What failed, and whether it was stopped. A failed cell does not keep others from running.
    """
    waiting, running = collections.deque(cells), list[_Running]()
    failed: dict[str, str] = {}
    with _signals() as stop:
        try:
            while running or (waiting and not stop.code):
                while waiting and len(running) < jobs and not stop.code:
                    cell = waiting.popleft()
                    try:
                        if (started := _start_next(cell, env)) is not None:
                            running.append(started)
                    except (OSError, ValueError) as error:
                        failed[cell.name] = str(error)
                        _say(f"{cell.name}: failed: {error}")
                time.sleep(_POLL_SECONDS)
                _pass_on(stop, running)
                for job in [r for r in running if r.process.poll() is not None]:
                    running.remove(job)
                    try:
                        finished = _end(job, stop)
                        follows = None if stop.code or not finished else _start_next(job.cell, env)
                    except (OSError, ValueError) as error:
                        failed[job.cell.name] = str(error)
                        _say(f"{job.cell.name}: failed: {str(error).splitlines()[0]}")
                        continue
                    if follows is not None:
                        running.append(follows)
                    elif finished:
                        changed()
        finally:  # only after an error of our own is any left
            for job in running:
                job.process.terminate()
            for job in running:
                job.process.wait()
    return Outcome(failed, stop.code)


def _start_next(cell: Cell, env: Mapping[str, str]) -> _Running | None:
    """Starts what the cell needs next; None if it has everything.

    Raises:
      ValueError: another command works on it, or its results cannot be read.
    """
    if results.trained_at(cell.folder) is None:
        return _start(cell, None, cell.train_command(), env)
    if lacking := results.missing(cell):
        return _start(cell, lacking[0], cell.score_command(lacking[0]), env)
    return None


def _start(
    cell: Cell, score: Score | None, command: Sequence[str], env: Mapping[str, str]
) -> _Running:
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (cell.folder / LOCK).open("w") as lock, (cell.folder / LOG).open("ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another command works on {cell.folder}; repeat this one when it is done"
            ) from None
        log.write(f"\n$ {subprocess.list2cmdline(command)}\n".encode())
        log.flush()
        # A session of its own: ctrl-C in the terminal reaches it through us, once. The lock is
        # the process's from here on, and outlives us.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    _say(f"{cell.name}: {'trains' if score is None else 'scores ' + _what(score)}")
    return _Running(cell, score, process, time.monotonic())


def _end(job: _Running, stop: _Stop) -> bool:
    """Takes note of a process that has ended; whether it has done its work.

    Raises:
      ValueError: it failed.
    """
    cell, code = job.cell, job.process.returncode
    if code in (EXIT_PREEMPTED, EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
        _say(f"{cell.name}: stopped")
        if not stop.code:
            interrupted = code in (EXIT_INTERRUPTED, -signal.SIGINT)
            stop.code = EXIT_INTERRUPTED if interrupted else EXIT_PREEMPTED
            stop.wanted = signal.SIGTERM  # for the others
        return False
    if code:
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        raise ValueError(f"{how}; the end of {cell.folder / LOG}:\n{tail(cell.folder / LOG)}")
    if job.score is None:
        results.mark_trained(cell)
    elif results.metrics(cell, job.score) is None:
        raise ValueError(
            f"scoring {_what(job.score)} has left no finite result of that kind in {cell.folder}"
        )
    minutes, seconds = divmod(round(time.monotonic() - job.started), 60)
    shown = results.metrics(cell, job.score or cell.scores[0])
    mean = f", mAP {100 * shown['mAP']:.1f}" if shown else ""
    _say(f"{cell.name}: {'trained' if job.score is None else 'scored'}{mean} "
         f"({minutes}:{seconds:02})")  # fmt: skip
    return True


def tail(path: pathlib.Path) -> str:
    """The last lines of a log."""
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-TAIL:])


def environment(backend: str, jobs: int) -> dict[str, str]:
    """The environment of the processes.

    On CPU each has one device of one core, whatever `jobs` is: the same numbers, side by side or
    one after the other. On a GPU the memory is divided.

    Args:
      backend: "cpu", "gpu" or "tpu".
      jobs: processes at a time.

    Raises:
      ValueError: several on a TPU, which one process holds.
    """
    env = dict(os.environ)
    if backend == "cpu":
        flags = env.get("XLA_FLAGS", "")
        for flag in ("host_platform_device_count=1", "cpu_multi_thread_eigen=false"):
            if flag.partition("=")[0] not in flags:
                flags += f" --xla_{'force_' * flag.startswith('host')}{flag}"
        env["XLA_FLAGS"] = flags.strip()
    elif jobs > 1 and backend == "tpu":
        raise ValueError(f"--jobs is {jobs}; a TPU runs one process at a time, leave it out")
    elif jobs > 1:
        env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / jobs:.3f}")
    return env


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_backend() -> str:
    """What jax computes on here; asked in another process, which gives the device back.

    Raises:
      ValueError: jax does not start.
    """
    code = "import jax; print(jax.default_backend())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}, no message"]
        raise ValueError(f"jax does not start: {said[-1]}")
    return asked.stdout.split()[-1]


def _what(score: Score) -> str:
    corrupt = f", {score.corrupt} images corrupted" if score.corrupt else ""
    return f"{score.protocol}{corrupt}"


def _pass_on(stop: _Stop, running: Sequence[_Running]) -> None:
    """Tells processes to save and end; on ctrl-C after that, to end at once."""
    if stop.wanted == stop.sent or stop.wanted is None:
        return
    stop.sent = stop.wanted
    for job in running:
        job.process.send_signal(stop.sent)  # of no effect on one that has ended


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """A request to stop that SIGTERM and ctrl-C make while this lasts."""
    stop = _Stop()

    def handle(signum: int, frame: FrameType | None) -> None:
        del frame
        if stop.code and signum == signal.SIGINT:
            stop.wanted = signal.SIGINT
        elif not stop.code:
            stop.code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_PREEMPTED
            stop.wanted = signal.SIGTERM

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # A terminal that is closed would leave the processes behind, in sessions of their own.
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {s: signal.signal(s, handle) for s in caught if not _is_ignored(s)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _is_ignored(signum: int) -> bool:
    return signal.getsignal(signum) == signal.SIG_IGN  # nohup


def _say(text: str) -> None:
    print(text, flush=True)
