"""What every command does: it answers signals at once, and ends in one line and an exit code.

  if __name__ == "__main__":
      command.run(main)

Until a training has something to save (see `preemption`), SIGTERM and Ctrl-C end the process within
`ANSWER_S`, whatever it does: import, prepare, decode, compile. Files are written whole or not at
all, so there is nothing to lose.
"""

import contextlib
import datetime
import functools
import os
import pathlib
import platform
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from vireid_jax import __version__
from vireid_jax.runtime import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    accept_any_text,
    printable,
    say,
)

ANSWER_S = 1.5  # for temporary files to be removed; then the process is gone
_at_once = False  # whether signals end this process
_heard: int | None = None  # the signal that ends it


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command, and ends the process with the exit code that `main` returns.

    An exception that `main` lets through is a fault of the program: see `explain`. With --debug it
    is shown as Python shows it.
    """
    answer_signals()
    accept_any_text()
    sys.argv[1:] = map(_at_home, sys.argv[1:])
    try:
        code = main()
    except Exception as error:
        if "--debug" in sys.argv or _heard:
            raise
        print(printable(explain(error)), file=sys.stderr, flush=True)
        code = EXIT_INTERNAL
    sys.exit(code)


def _at_home(word: str) -> str:
    """A word of the command line with ~ as the home folder: shells leave it alone behind "="."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{name}{equals}{os.path.expanduser(value)}"


def explain(error: Exception) -> str:
    """Writes what there is to report about an error to a file; returns a line that names it."""
    what = f"internal error: {type(error).__name__}: {first_line(error)}"
    facts = {
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": sys.version.replace("\n", " "),
        "platform": platform.platform(),
        "vireid_jax": __version__,
        **_versions(),
    }
    lines = [f"{name}: {value}" for name, value in facts.items()]
    text = "\n".join([what, "", *lines, "", *traceback.format_exception(error)])
    try:
        handle, name = tempfile.mkstemp(prefix="vireid_jax-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:  # a full disk, say
        print(text, file=sys.stderr)
        return f"{what} (please report the lines above)"
    return f"{what}; please report it with the file {pathlib.Path(name)}"


def first_line(error: BaseException) -> str:
    """What an error says, for a line of a message."""
    return str(error).strip().partition("\n")[0][:500]


def _versions() -> dict[str, Any]:
    with contextlib.suppress(Exception):  # what fails may be the library that is asked here
        from vireid_jax.runtime import runfolder

        return runfolder.versions()
    return {}


def answer_signals() -> None:
    """From here on SIGTERM and Ctrl-C end this process; in the main thread alone."""
    global _at_once
    if threading.current_thread() is not threading.main_thread():
        return
    _at_once = True
    _guard()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)


def answers() -> bool:
    """Whether a signal ends this process at once."""
    return _at_once


def hand_over() -> None:
    """From here on somebody else handles signals."""
    global _at_once
    _at_once = False


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    del frame
    global _heard
    _heard = signum
    _tell(signum)
    raise SystemExit(_code(signum))


@functools.cache
def _tell(signum: int) -> None:
    """Says once why the process ends: in the handler, or where that cannot run in the guard."""
    say(f"{signal.Signals(signum).name}: stopped; run the same command again")


def _code(signum: int) -> int:
    return EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_PREEMPTED


@functools.cache
def _guard() -> None:
    """A thread that sees to `ANSWER_S`.

    The main thread may be in a library that does not return, wait for threads that decode, or meet
    an `except` that swallows everything.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    otherwise = sys.unraisablehook

    def without_exits(unraisable: Any) -> None:
        # Where the handler interrupts a destructor or a callback, Python would print its exit.
        if unraisable.exc_type is not SystemExit:
            otherwise(unraisable)

    sys.unraisablehook = without_exits
    shown = sys.excepthook

    def as_exit(*error: Any) -> None:
        # An exit amid the work of a lock or an import may come out as another error.
        if _heard and answers():
            sys.exit(_code(_heard))
        shown(*error)

    sys.excepthook = as_exit

    def ours(signum: int) -> bool:
        # Who takes a signal over, for a while or for good, is left alone.
        handled = signum in (signal.SIGTERM, signal.SIGINT)
        return handled and answers() and signal.getsignal(signum) is _leave

    def wait() -> None:
        while True:
            signum = os.read(heard, 1)[0]
            if ours(signum):
                time.sleep(ANSWER_S)
                if ours(signum):
                    _tell(signum)
                    os._exit(_code(signum))

    threading.Thread(target=wait, name="signals", daemon=True).start()
