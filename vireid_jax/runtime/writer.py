"""What a run says: metrics.jsonl (the record), TensorBoard event files, lines for its user.

metrics.jsonl has one JSON object per line, {"step", "split", "time", name: value, ...}. A resumed
run first drops the lines after the step it resumes from, so that apart from the times (and what
is computed from them) its file is that of a run that was never interrupted.

Event files are written by tensorboardX: importing TensorFlow for them, as clu.metric_writers does,
costs 3 s and 600 MB. They reach the disk with the first record after `EVENTS_FLUSH_S` seconds.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from absl import logging

from vireid_jax.runtime import files, printable

METRICS = "metrics.jsonl"
EVENTS_FLUSH_S = 5
SAY_EVERY_S = 15.0  # a run that works says so at least this often
_RESERVED = ("step", "split", "time")
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class Writer:
    """Writes scalars as they come; every line is on disk when `write` returns.

    Args:
      workdir: the run folder; made if missing.
      tensorboard: also write event files.
      resume_step: drop what was written for later steps; 0 where training starts from nothing.
        None keeps every line, for what only adds to a run (an evaluation).
      every: steps between lines of training, to say so where the last ones are gone.
      console: where progress goes; standard error by default.
      active: False on all processes but the first: every method does nothing.
      clock: seconds, for the estimate of the time left.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        tensorboard: bool = True,
        resume_step: int | None = None,
        every: int = 0,
        console: TextIO | None = None,
        active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._active = active
        self._console = sys.stderr if console is None else console
        self._clock = clock
        self._start: tuple[int, float] | None = None  # step and time of the first progress()
        self._width = 0  # of the progress line on the terminal
        self._events: _Events | None = None
        if not active:
            return
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / METRICS
        files.make_way(path)
        rows = _drop_after(path, resume_step) if path.exists() else []
        # What stands there for the very step that the run goes on from (its validation, say)
        # may be computed once more; the record keeps one line.
        self._known = {(r["step"], r["split"]) for r in rows if r["step"] == resume_step}
        last = max((r["step"] for r in rows if r["split"] == "train"), default=0)
        if every and resume_step and resume_step - last >= every:
            logging.warning(
                "%s has no lines of the steps %d to %d: they were deleted, or cut off",
                *(path, last + 1, resume_step),
            )
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            self._events = _Events(workdir, None if resume_step is None else resume_step + 1)

    def write(self, step: int, scalars: Mapping[str, Any], *, split: str = "train") -> None:
        """Records scalars of a step.

        Args:
          step: optimizer steps done.
          scalars: anything that float() takes; values that are not finite become the strings
            "nan", "inf" and "-inf", which JSON has no numbers for.
          split: "train", "val", ...

        Raises:
          ValueError: a scalar is called "step", "split" or "time".
        """
        if clash := [k for k in _RESERVED if k in scalars]:
            raise ValueError(f"scalars {clash} have names that every line of {METRICS} uses")
        if not self._active or (step, split) in self._known:
            return
        values = {k: float(v) for k, v in scalars.items()}
        now = time.time()
        line: dict[str, Any] = {"step": int(step), "split": split, "time": round(now, 3)}
        line |= {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(step, {f"{split}/{k}": v for k, v in values.items()}, now)

    def progress(self, step: int, total: int, scalars: Mapping[str, Any]) -> None:
        """Shows how far training is: one line in place on a terminal, a line each otherwise.

        Between the step and the rate stand the scalars that fit into the terminal's width (120
        columns where there is no terminal); the record has all of them.

        Args:
          step: optimizer steps done.
          total: optimizer steps of the whole run.
          scalars: what to show, in this order; "images_per_second" comes last.
        """
        if not self._active:
            return
        now = self._clock()
        if self._start is None or step < self._start[0]:
            self._start = (step, now)  # compilation came before and says nothing of what is left
        steps, seconds = step - self._start[0], now - self._start[1]
        text = f"step {step:{len(str(total))}d}/{total} {step / max(total, 1):4.0%}"
        end = ""
        if "images_per_second" in scalars:
            end += f"  {float(scalars['images_per_second']):.0f} img/s"
        if steps > 0 and step < total:
            end += f"  ETA {duration(seconds / steps * (total - step))}"
        for name, value in scalars.items():
            part = f"  {name} {float(value):.4g}"
            if name == "images_per_second":
                continue
            if len(text) + len(part) + len(end) >= _columns(self._console):
                break
            text += part
        text += end
        if self._console.isatty():
            self._console.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._console.write(text + "\n")
        self._console.flush()

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress line, see `say`."""
        if self._active:
            self._end_line()
            say(text)

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        if self._active:
            self._active = False
            self._end_line()
            self._file.close()
            if self._events is not None:
                self._events.close()

    def _end_line(self) -> None:
        if self._width:
            self._console.write("\n")
            self._console.flush()
            self._width = 0


class _Events:
    """An event file. What cannot be written raises here: tensorboardX's own thread would die.

    Args:
      workdir: its folder.
      purge_step: TensorBoard forgets what earlier files say of this step and later ones.
    """

    def __init__(self, workdir: pathlib.Path, purge_step: int | None):
        # A run without it does not wait for it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        # Its names have seconds alone. A file of the same name would be overwritten, and
        # TensorBoard reads files in the order of their names.
        suffix = f".{time.time_ns()}.{os.getpid()}"
        self._writer = EventsWriter(str(workdir / "events"), suffix)
        self._flushed = -math.inf
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=purge_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float], now: float) -> None:
        values = [self._summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        summary = self._summary(value=values)
        self._writer.write_event(self._event(step=step, wall_time=now, summary=summary))
        if time.monotonic() > self._flushed + EVENTS_FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:  # no reason to hide what has ended the run
            logging.warning("the event file lacks its end: %s", error)


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut off is left out.

    Raises:
      ValueError: another line is no record; the message has its number.
    """
    rows = []
    for n, line in enumerate(lines := _lines(pathlib.Path(path)), 1):
        # Without its end the last line is whole by luck: writing on would drop it.
        if n == len(lines) and not line.endswith("\n"):
            break
        try:
            row = {k: v if k in _RESERVED else float(v) for k, v in json.loads(line).items()}
        except _UNREADABLE as error:
            raise ValueError(f"{path}, line {n} is not a record: {error}") from error
        rows.append(row)
    return rows


def _drop_after(path: pathlib.Path, step: int | None) -> list[dict[str, Any]]:
    """Drops lines after `step` (None: no step) and lines cut off; returns what is kept."""
    kept, rows, damaged = [], [], False
    for line in _lines(path):
        if not line.endswith("\n"):
            continue
        try:
            row = json.loads(line)
            at, _ = int(row["step"]), str(row["split"])
        except _UNREADABLE:
            logging.warning("%s: dropped a line that cannot be read: %r", path, line[:80])
            damaged = True
            continue
        if step is None or at <= step:
            kept.append(line)
            rows.append(row)
    if damaged:
        logging.warning("the file as it was is %s", files.set_aside(path))
    files.write_whole(path, "".join(kept))
    return rows


def _lines(path: pathlib.Path) -> list[str]:
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise ValueError(f"{path} is no file (but a folder, a pipe or a device); take it away")
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _columns(console: TextIO) -> int:
    try:
        return os.get_terminal_size(console.fileno()).columns
    except (OSError, ValueError):
        return 120


def say(text: str) -> None:
    """Prints a line of a run to standard output, in the first process alone."""
    import jax  # readers of a record do without it

    if jax.process_index() == 0:
        print(printable(text), flush=True)


class Progress:
    """Says how far a long piece of work is: now and then while it lasts, and at its end.

    with Progress(say, "images embedded", 5000) as progress:
        progress.add(256)

    Args:
      say: takes the lines.
      what: is counted, with what happens to it.
      total: how many there are.
      clock: seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        what: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._say, self._what, self._total, self._clock = say, what, total, clock
        self._count, self._start = 0, clock()
        self._said = self._start

    def add(self, count: int) -> None:
        """Notes that so many more are done; says so every `SAY_EVERY_S` seconds."""
        self._count += count
        now = self._clock()
        if now - self._said >= SAY_EVERY_S and self._count < self._total:
            self._said = now
            left = (now - self._start) / self._count * (self._total - self._count)
            self._say(f"{self._count:,} of {self._total:,} {self._what}, ETA {duration(left)}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        if error is None and self._count:
            took = duration(self._clock() - self._start)
            self._say(f"{self._count:,} {self._what} in {took}")


def duration(seconds: float) -> str:
    """Reads like 1:02:03 (hours), 2:03 (minutes) or 3 s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours}:{m:02d}:{s:02d}"
    return f"{m}:{s:02d}" if m else f"{s} s"
