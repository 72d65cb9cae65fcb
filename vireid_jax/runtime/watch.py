"""Who is there and what each does: a status file for every process of a run, and a watchdog.

JAX's own service notices that a process is missing or dead, but not which one, and then aborts.
Here every process of a run of several writes `<workdir>/hosts/<process>.json` every few seconds,
into the folder that all hosts share. A thread in each says who is waited for, once a minute, and
ends its process with `EXIT_PEER_LOST` when another one ended with an error, fell silent, or did not
come in time. A process is silent when a counter in its file no longer changes: clocks differ
between hosts.
"""

import dataclasses
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from vireid_jax.runtime import ENDED_WELL, EXIT_PEER_LOST, files, say

HOSTS = "hosts"  # the folder in a run's folder

BEAT_S = 2.0
SAY_EVERY_S = 60.0
# All processes may meet the same error: each gets this long to say so itself.
GRACE_S = 5.0

CONNECT = "connect"  # the first phase: until all processes have found each other


@dataclasses.dataclass
class Status:
    """What a process says of itself; the content of its file."""

    process: int
    host: str
    pid: int
    started: float  # seconds since 1970, differs between starts
    phase: str = CONNECT
    beat: int = 0
    code: int | None = None  # how it ended
    message: str = ""  # of the error that it ended with


@dataclasses.dataclass
class _Seen:
    """What is known of another process."""

    status: Status | None  # of its file
    changed: float  # when the file last changed, by this process's clock
    fresh: bool  # whether it has changed since this process looks


def _leave(code: int) -> None:
    sys.stdout.flush()
    os._exit(code)


class Watch:
    """The status of this process, and what it sees of the others.

    Args:
      folder: of the run; its subfolder `HOSTS` is made.
      process: number of this process, of `processes`.
      start_timeout: seconds to wait in the phase `CONNECT`.
      silence_timeout: seconds without a sign of life after which a process is lost.
      say: takes messages.
      leave: ends this process at once, with a code.
      clock: seconds.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        process: int,
        processes: int,
        *,
        start_timeout: float,
        silence_timeout: float,
        say: Callable[[str], None] = say,
        leave: Callable[[int], None] = _leave,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = pathlib.Path(folder) / HOSTS
        self.folder.mkdir(parents=True, exist_ok=True)
        self.status = Status(process, socket.gethostname(), os.getpid(), time.time())
        self.start_timeout, self.silence_timeout = start_timeout, silence_timeout
        self._say, self._leave, self._clock = say, leave, clock
        now = clock()
        others = [p for p in range(processes) if p != process]
        self._seen = {p: _Seen(self._read(p), now, False) for p in others}
        self._phase_since = self._said = self._looked = now
        self._lost_since: float | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.write()

    def phase(self, name: str) -> None:
        """Notes what this process does now."""
        if name != self.status.phase:
            self.status.phase = name
            self._phase_since = self._said = self._clock()
            self.write()

    def end(self, code: int, message: str = "") -> None:
        """Notes how this process ends, and stops the thread."""
        self._stop.set()
        self.status.code, self.status.message = code, message
        self.write()

    def linger(self, seconds: float) -> None:
        """Waits until the others have ended, too, or so many seconds."""
        until = self._clock() + seconds
        while self._clock() < until:
            statuses = [self._read(process) for process in self._seen]
            if all(s is not None and s.code is not None for s in statuses):
                return
            time.sleep(0.1)

    def write(self) -> None:
        """Writes this process's file; the old one is replaced at once."""
        with self._lock:
            self.status.beat += 1
            text = json.dumps(dataclasses.asdict(self.status)) + "\n"
            files.write_whole(self._path(self.status.process), text)

    def look(self) -> None:
        """One round: reads the others' files, says what there is to say, leaves if one is lost."""
        now = self._clock()
        # Where this process did not get to look for long (a stopped machine, a file system that
        # hangs), the others' silence may be its own.
        late = now - self._looked > self.silence_timeout / 2
        self._looked = now
        for process, seen in self._seen.items():
            status = self._read(process)
            moved = status is not None and status != seen.status
            if late or moved:
                self._seen[process] = _Seen(status or seen.status, now, seen.fresh or moved)
        lost = {p: reason for p in self._seen if (reason := self._why_lost(p, now))}
        if self.status.phase == CONNECT and now - self._phase_since > self.start_timeout:
            lost |= {p: self.describe(p) for p in self._seen if not self._alive(p, now)}
        if not lost:
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = now
        elif now - self._lost_since >= GRACE_S:
            self._say(self.lost_message(lost))
            self._leave(EXIT_PEER_LOST)
            return
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            if text := self._waiting(now):
                self._say(text)

    def lost_message(self, lost: Mapping[int, str]) -> str:
        """What is said of processes that are gone; {process: how it was last seen}."""
        who = "\n  ".join(f"process {p}: {reason}" for p, reason in sorted(lost.items()))
        return (
            f"error: {len(lost)} of {len(self._seen) + 1} processes cannot be reached (this one, "
            f"{self.status.process} on {self.status.host}, was in phase '{self.status.phase}'):\n"
            f"  {who}\nRun the same command again on all hosts; it goes on from the last checkpoint"
        )

    def describe(self, process: int) -> str:
        """Where another process is and what it did when it was last seen."""
        seen = self._seen[process]
        s = seen.status
        if s is None:
            return "has not started; was the command given to all workers?"
        where = f"{s.host} (pid {s.pid})"
        ended = f"ended with code {s.code}"
        error = f": {s.message}" if s.message else ""
        if not seen.fresh:
            how = "" if s.code is None else f", {ended}{error}"
            return f"has not started again on {where}; its last run was in phase '{s.phase}'{how}"
        if s.code is not None:
            return f"{where} {ended} in phase '{s.phase}'{error}"
        silent = self._clock() - seen.changed
        return f"{where} is in phase '{s.phase}', last heard of {silent:.0f} s ago"

    def suspects(self) -> dict[int, str]:
        """Who ended or has missed beats: who may have caused an error of communication."""
        now = self._clock()
        return {
            p: self.describe(p)
            for p in self._seen
            if not self._alive(p, now) or now - self._seen[p].changed > 3 * BEAT_S
        }

    def _why_lost(self, process: int, now: float) -> str | None:
        seen = self._seen[process]
        if not seen.fresh or seen.status is None:
            # Past `CONNECT` it is there, whatever its file says: the folder may lag behind.
            return None
        if seen.status.code is not None:
            return None if seen.status.code in ENDED_WELL else self.describe(process)
        return self.describe(process) if now - seen.changed > self.silence_timeout else None

    def _alive(self, process: int, now: float) -> bool:
        seen = self._seen[process]
        if seen.status is None or not seen.fresh or seen.status.code is not None:
            return False
        return now - seen.changed <= self.silence_timeout

    def _waiting(self, now: float) -> str:
        """Who is waited for; nothing where all do the same."""
        phase = self.status.phase
        if phase == CONNECT:
            behind = [p for p in self._seen if not self._alive(p, now)]
        elif self.status.process:  # one report is enough
            return ""
        else:
            phases = {p: seen.status and seen.status.phase for p, seen in self._seen.items()}
            behind = [p for p in phases if phases[p] != phase]
        if not behind:
            return ""
        lines = "\n  ".join(f"process {p}: {self.describe(p)}" for p in behind)
        return (
            f"process {self.status.process} on {self.status.host} is in phase '{phase}' for "
            f"{now - self._phase_since:.0f} s; not there with it:\n  {lines}"
        )

    def _path(self, process: int) -> pathlib.Path:
        return self.folder / f"{process:04d}.json"

    def _read(self, process: int) -> Status | None:
        try:
            return Status(**json.loads(self._path(process).read_text()))
        except (OSError, ValueError, TypeError):  # not there, or of another version
            return None

    def loop(self) -> None:
        """Writes and looks until the process has ended; for a thread."""
        while not self._stop.wait(BEAT_S):
            try:
                self.write()
                self.look()
            except OSError:  # a full or absent folder; who writes there for good will say so
                continue


_current: Watch | None = None


def start(watch: Watch) -> None:
    """Makes `watch` the one of this process, and starts its thread."""
    global _current
    _current = watch
    threading.Thread(target=watch.loop, name="watch", daemon=True).start()


def current() -> Watch | None:
    """The watch of this process; None where it is the only one of its run."""
    return _current


def phase(name: str) -> None:
    """Notes what this process does now; does nothing in a run of one process."""
    if _current is not None:
        _current.phase(name)


def end(code: int, message: str = "", linger_s: float = 0) -> None:
    """Notes how this process ends, and waits so long for the others to notice and end, too."""
    global _current
    if _current is not None:
        _current.end(code, message)
        _current.linger(linger_s)
        _current = None
