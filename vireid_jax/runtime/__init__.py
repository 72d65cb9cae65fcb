"""What keeps a run alive: checkpoints, devices, processes, signals, the run's folder, its record.

The exit codes below are for whoever starts a command: launch/ repeats it or not by them. Beside
them 0 is done, 1 an error that the user can cure, 2 a wrong command line.
"""

import io
import os
import sys
from collections.abc import Sequence

EXIT_PREEMPTED = 42  # SIGTERM: everything is saved, run the same command again
EXIT_PEER_LOST = 43  # another process of the run is gone: run the same command again on all hosts
EXIT_INTERNAL = 70  # an error of the program's own; a file that it names has the traceback
EXIT_IN_USE = 75  # another process trains in the folder: wait, and run the same command again
EXIT_INTERRUPTED = 130  # ctrl-C, as shells report it; everything is saved as well
ENDED_WELL = (0, EXIT_PREEMPTED, EXIT_INTERRUPTED)


def say(text: str) -> None:
    """Writes a line to standard error at once, whatever this thread or signal has interrupted."""
    os.write(2, f"\n{printable(text)}\n".encode())


def printable(text: str) -> str:
    r"""The text with what a terminal would obey, or cannot show, as escapes such as \x1b.

    Names of files and results come from others. Ends of lines stay.
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def accept_any_text() -> None:
    """A character that the encoding of the standard streams lacks is written as "?"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def indented(lines: Sequence[str], limit: int) -> str:
    """The first lines of many, for a message; a name may hold an end of a line."""
    more = [f"and {len(lines) - limit:,} more"] if len(lines) > limit else []
    shown = (line.replace("\n", "\\n") for line in [*lines[:limit], *more])
    return "\n".join(f"  {line}" for line in shown)
