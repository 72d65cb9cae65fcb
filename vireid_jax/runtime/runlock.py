"""A run's folder belongs to one command at a time.

Each process of a run holds a lock file in the folder, from before it writes there until it ends;
process 0 has 0.lock. The operating system lets go of a lock with its process, however that ends.
Where hosts share the folder, NFS and Lustre (mounted with -o flock) carry the locks between them;
a bucket mounted with gcsfuse does not, and there the lock is for the processes of one host.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

import filelock

from vireid_jax.runtime import files

FOLDER = ".running"  # in the run's folder, while a process works there
_log = logging.getLogger(__name__)
_held: set[pathlib.Path] = set()


class InUseError(OSError):
    """Another process trains in the folder. The message names it."""


@contextlib.contextmanager
def held(workdir: str | os.PathLike[str], process: int = 0) -> Iterator[None]:
    """Holds the folder of a run, which is made if missing and goes again if it stays empty.

    Does nothing where this process holds the folder already.

    Args:
      workdir: the run's folder.
      process: number of this process in its run.

    Raises:
      InUseError: another process holds it; says so at once.
      OSError: the folder cannot be written to.
    """
    workdir = pathlib.Path(workdir).absolute()
    path = workdir / FOLDER / f"{process}.lock"
    if path in _held:
        yield
        return
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    lock = _take(path)
    _held.add(path)
    about = path.with_suffix(".json")
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        files.write_whole(about, json.dumps(facts | {"command": sys.argv}) + "\n")
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            about.unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # under the lock, see `files.locked`
        if lock is not None:
            lock.release()
        with contextlib.suppress(OSError):  # not empty
            path.parent.rmdir()
            for folder in made:
                folder.rmdir()


def _take(path: pathlib.Path) -> filelock.BaseFileLock | None:
    """The lock; None where the file system has none."""
    workdir = path.parent.parent
    lock = filelock.FileLock(path, thread_local=False)
    for _ in range(100):
        files.make_folder(workdir, what="the run", hint="name another --workdir")
        try:
            path.parent.mkdir(exist_ok=True)
            lock.acquire(timeout=0.2, poll_interval=0.05)
            return lock
        except FileNotFoundError:  # another command has just taken its empty folder away
            continue
        except filelock.Timeout:
            break
        except OSError as error:
            if error.errno not in files.NO_LOCKS:
                raise
            _log.warning("%s has no locks: let no second command train there", workdir)
            return None
    raise InUseError(_in_use(path))


def _in_use(path: pathlib.Path) -> str:
    who = "another process"
    until = time.monotonic() + 1
    while time.monotonic() < until:  # it may have locked this moment
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            facts = json.loads(path.with_suffix(".json").read_text())
            who = f"process {facts['pid']} on {facts['host']}"
            break
        time.sleep(0.05)
    return (
        f"{path.parent.parent} is in use by {who}; wait until it has ended, stop it, or name "
        "another --workdir"
    )
