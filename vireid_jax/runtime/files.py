"""Files: read within bounds, written whole, locks, the user's folder, leftovers, full disks."""

import contextlib
import errno
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import filelock
import platformdirs

_STALE = 24 * 3600.0  # seconds after which another machine's leftovers are nobody's
_log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MOST_JSON = 1 << 30  # bytes; results of 100,000 queries have 20 MB
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


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file, as `json.loads` gives it.

    Raises:
      OSError: it cannot be opened; FileNotFoundError: there is none.
      ValueError: it is no JSON, or no regular file. The message names it.
    """
    try:
        return json.loads(read_regular(path, _MOST_JSON))
    except RecursionError:
        fault = "it is nested too deep"
    except ValueError as error:  # UnicodeDecodeError is one
        fault = str(error)
    raise ValueError(f"{path} cannot be read: {fault}")


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file that a command makes again if it is not there.

    Raises:
      OSError: it cannot be opened.
      ValueError: it holds something else. The message names it.
    """
    try:
        if isinstance(content := read_json(path), dict):
            return content
        fault = f"{path} holds no JSON object"
    except ValueError as error:
        fault = str(error)
    raise ValueError(f"{fault}; delete it to have it made again")


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
    with whole(path) as file:
        if callable(data):
            data(file)
        else:
            file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """An open file that becomes `path` once the block has ended without an error.

    Until then it is a sibling, see `temporary`, which goes if the block fails.
    """
    path = pathlib.Path(path)
    part = temporary(path.parent, path.stem)
    try:
        with part.open("xb") as file:  # "x" follows no link and opens nothing that is there
            yield file
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a damaged file to NAME.damaged, and returns that."""
    return path.rename(free_name(path.with_name(f"{path.name}.damaged")))


def make_way(path: pathlib.Path) -> None:
    """Sets aside what is no regular file: a pipe would be waited for without end."""
    if path.exists() and not path.is_file():
        _log.warning("%s is no file (but a folder or a pipe), now %s", path, set_aside(path).name)


def free_name(path: pathlib.Path) -> pathlib.Path:
    """The path; where something is there NAME-2, NAME-3, ..."""
    others = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not name.exists())


def expanded(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """A path that a user gave as `name`, with ~ as the home folder.

    Shells leave ~ alone within --option=~/folder, and all of it in the files of containers.

    Raises:
      ValueError: a variable of the shell stands in it, or there is no home folder.
    """
    text = os.path.expanduser(path)
    if text.startswith("~") or re.match(r"\$\w|.*\$\{", text):
        what = "there is no home folder" if text.startswith("~") else "no shell has expanded it"
        raise ValueError(f"{name} is {str(path)!r}, and {what}; write the whole path")
    return pathlib.Path(text)


def user_folder(variable: str, part: str = "") -> str:
    """$variable, else `part` of the project's folder in the user's cache folder.

    Raises:
      FileNotFoundError: there is neither, nor a home folder.
      ValueError: see `expanded`.
    """
    if own := os.environ.get(variable):
        return own if is_remote(own) else str(expanded(own, variable))
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


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raises OSError unless a folder can be written to, or made; makes nothing."""
    path = near = pathlib.Path(os.path.abspath(folder))
    while not os.path.lexists(near):
        near = near.parent
    if not near.is_dir():
        raise NotADirectoryError(
            f"{path} cannot be a folder, since {near} is none; name another folder"
        )
    if not os.access(near, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path} cannot be written to: {near} allows it not, or is read-only; name another "
            "folder"
        )


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
        if error.errno not in NO_LOCKS:
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


def temporary(folder: pathlib.Path, stem: str) -> pathlib.Path:
    """A path for what will become `stem`, with any ending. Nobody else has it, or can guess it."""
    # Names end at 255 bytes.
    return folder / f".{stem[:100]}.{_host()}.{os.getpid()}.{os.urandom(8).hex()}.part"


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())


def clear_temporaries(folder: pathlib.Path, stem: str) -> None:
    """Removes what interrupted work has left in `folder`.

    Call it under the lock of `stem`: then temporaries of that stem and this machine belong to no
    living process. Any other ones go when they are a day old.
    """
    for path in folder.glob("*.part"):
        mine = path.name.startswith(f".{stem[:100]}.{_host()}.")
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


class FullDiskError(OSError):
    """A disk or a quota is full: in which folder, for what, and how much is free."""


def check_space(folder: pathlib.Path, needed: int, *, what: str, hint: str) -> None:
    """Raises FullDiskError if `folder` has less than `needed` bytes free."""
    if shutil.disk_usage(folder).free < needed:
        raise _full_disk(folder, f"{what} needs {_bytes(needed)}", hint)


@contextlib.contextmanager
def explain_full_disk(
    folder: pathlib.Path, *, what: str, hint: str, needed: int = 0
) -> Iterator[None]:
    """Gives an error that is due to a full disk, in whatever form, the form of `check_space`."""
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        need = f"{what} did not fit ({error})"
        if needed:
            need = f"{what} needs {_bytes(needed)}, and did not fit"
        raise _full_disk(folder, need, hint) from error


def _full_disk(folder: pathlib.Path, need: str, hint: str) -> FullDiskError:
    free = size_text(shutil.disk_usage(folder).free)
    return FullDiskError(
        errno.ENOSPC,
        f"{need} in {folder}, where {free} are free; nothing half-written is left. Make "
        f"room, or {hint}",
    )


def _bytes(count: int) -> str:
    return f"{count:,} bytes ({size_text(count)})"


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
