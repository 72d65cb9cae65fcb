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
EXIT_INTERRUPTED = 130  # ctrl-C, as shells report it; everything is saved as well
ENDED_WELL = (0, EXIT_PREEMPTED, EXIT_INTERRUPTED)


def say(text: str) -> None:
    """Writes a line to standard error at once, whatever this thread or signal has interrupted."""
    os.write(2, f"\n{text}\n".encode())


def accept_any_text() -> None:
    """A character that the encoding of the standard streams lacks is written as "?"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def indented(lines: Sequence[str], limit: int) -> str:
    """The first lines of many, for a message."""
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  {line}" for line in [*lines[:limit], *more])
