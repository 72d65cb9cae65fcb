"""Files: read within bounds, written whole, locks, the user's folder, leftovers, full disks."""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import filelock
import platformdirs

_STALE = 24 * 3600.0  # seconds after which another machine's leftovers are nobody's
_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_KINDS = {
    **{stat.S_IFIFO: "a FIFO (named pipe)", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"},
    **{stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"},
}


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; anything else is not opened.

    A FIFO would be waited for without end, a device has no end, and a sparse file that takes
    no room on the disk fills the memory.

    Raises:
      ValueError: what it is instead, without its name.
      OSError: it is not there, or cannot be read.
    """
    status = os.stat(path)
    if kind := _KINDS.get(stat.S_IFMT(status.st_mode)):
        raise ValueError(f"it is {kind}, expected a regular file")
    if status.st_size > most:
        raise ValueError(
            f"it has {status.st_size:,} bytes ({size_text(status.st_size)}), expected at most "
            f"{size_text(most)}"
        )
    return pathlib.Path(path).read_bytes()


def write_whole(
    path: str | os.PathLike[str], data: bytes | str | Callable[[BinaryIO], object]
) -> None:
    """Writes or replaces a file so that nobody ever sees half of it, through a sibling.

    Args:
      path: of the file.
      data: its content, text as UTF-8; or a function that writes it to an open file.

    Raises:
      OSError: it cannot be written. The old file is still there, the sibling is not.
    """
    path = pathlib.Path(path)
    part = path.with_name(temporary_name(f".{path.name[:100]}"))  # names end at 255 bytes
    try:
        with part.open("wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data.encode() if isinstance(data, str) else data)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def user_folder(variable: str, part: str = "") -> str:
    """$variable, else `part` of the project's folder in the user's cache folder.

    Raises:
      FileNotFoundError: there is neither, nor a home folder.
    """
    if own := os.environ.get(variable):
        return own
    try:
        # On Linux $XDG_CACHE_HOME/vireid_jax, else ~/.cache/vireid_jax.
        base = platformdirs.user_cache_dir("vireid_jax", appauthor=False)
    except RuntimeError:
        base = "~"
    if base.startswith("~"):  # a user that the system does not know
        raise FileNotFoundError(
            f"there is no home folder to keep files in; set {variable} to a folder that can "
            "be written to"
        )
    return os.path.join(base, part) if part else base


def make_folder(folder: pathlib.Path, *, what: str, hint: str) -> None:
    """Makes a folder that can be written to; an OSError says for what it is, and what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{what} cannot be kept in {folder}: {error.strerror} ({error.filename}); {hint}",
        ) from error


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether folder is a URI such as gs://bucket/path, which no file system call understands."""
    return "://" in os.fspath(folder)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock file `path`; another process or thread of this machine waits for it.

    The operating system lets go of it with the process, however that ends. Where a file system
    has no locks nothing is held, and everyone writes a temporary file of their own anyway.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.info("waiting for the process that holds %s", path)
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        yield
        return
    try:
        yield
    finally:
        # Under the lock: whoever waits for it sees that the file is gone, and makes another.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def temporary_name(prefix: str) -> str:
    """A name for a file or folder in the making that no other process uses."""
    return f"{prefix}.{_host()}.{os.getpid()}.{os.urandom(4).hex()}.part"


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())


def clear_temporaries(folder: pathlib.Path, prefix: str) -> None:
    """Removes what interrupted work has left in `folder`.

    Call it under the lock of `prefix`: then temporaries of that prefix and this machine belong
    to no living process. Any other ones go when they are a day old.
    """
    for path in folder.glob("*.part"):
        mine = path.name.startswith(f"{prefix}.{_host()}.")
        with contextlib.suppress(FileNotFoundError):
            if mine or time.time() - path.stat().st_mtime > _STALE:
                remove(path)


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder with all that is in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_text(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def check_space(folder: pathlib.Path, needed: int, *, what: str, hint: str) -> None:
    """Raises OSError (ENOSPC) if `folder` has less than `needed` bytes free."""
    if shutil.disk_usage(folder).free < needed:
        need = f"needs {needed:,} bytes ({size_text(needed)})"
        raise _full_disk(folder, what, need, hint)


@contextlib.contextmanager
def explain_full_disk(folder: pathlib.Path, *, what: str, hint: str) -> Iterator[None]:
    """Gives an error that is due to a full disk, in whatever form, the form of `check_space`."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise _full_disk(folder, what, f"did not fit ({error})", hint) from error


def _full_disk(folder: pathlib.Path, what: str, need: str, hint: str) -> OSError:
    free = size_text(shutil.disk_usage(folder).free)
    return OSError(
        errno.ENOSPC,
        f"{what} {need} in {folder}, where {free} are free; nothing half-written is left. Make "
        f"room, or {hint}",
    )


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that the disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # The writer of ArrayRecord knows only RuntimeError.
        if any(os.strerror(code) in str(error) for code in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
