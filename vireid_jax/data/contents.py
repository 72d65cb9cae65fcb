"""What the files of a data set hold: a digest of each. Files that did not change are not read."""

import contextlib
import hashlib
import io
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data import decoding
from vireid_jax.runtime import files

_MOST_BYTES = 2**30  # of an image; a larger file is not read
_CHUNK = 64  # files that are read before progress is reported
# A file that changed so lately could change again without a new time. Clocks tick in up to 2 s.
_RECENT_NS = 2 * 10**9


def digests(
    paths: Sequence[str | os.PathLike[str]],
    *,
    folder: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """A digest of the content of each file: equal content, equal digest.

    With `folder`, the digests are kept there, with the size and both times of each file: when it
    was written, and when anything of it was changed, which no program can set back. A file for
    which all three are as before is not read again.

    Args:
      paths: of N files.
      folder: where digests are kept between calls. Nothing is kept if it cannot be written to.
      progress: called with (0, N) now and then while files are read.

    Returns:
      N times 32 hexadecimal digits, or "" for what cannot be read.
    """
    names = [os.fspath(path) for path in paths]
    now = time.time_ns()
    with ThreadPoolExecutor(decoding.cores()) as pool:
        status = np.array(list(pool.map(_status, names)), np.int64).reshape(-1, 3)
        digest = np.zeros(len(names), "S32")
        kept = None
        if folder is not None:
            of_paths = hashlib.sha256(b"\0".join(map(os.fsencode, names))).hexdigest()[:16]
            kept = folder / f"files-{of_paths}.npz"
            known, was = _read(kept, len(names))
            digest = np.where((known == status).all(axis=1), was, digest)
        rows = np.flatnonzero(digest == b"")
        for first in range(0, len(rows), _CHUNK):
            if first and progress is not None:
                progress(0, len(names))
            part = rows[first : first + _CHUNK]
            digest[part] = list(pool.map(_digest, [names[n] for n in part]))
    lasting = np.where(status[:, 2] < now - _RECENT_NS, digest, b"")
    if kept is not None and (lasting[rows] != b"").any():
        with contextlib.suppress(OSError):  # the next call reads the files again
            kept.parent.mkdir(parents=True, exist_ok=True)
            content: Any = {"status": status, "digest": lasting}
            files.write_whole(kept, lambda file: np.savez(file, **content))
    return digest.astype(str).tolist()


def _status(path: str) -> tuple[int, int, int]:
    """Size, and times of writing and of any change, of a file; -1 if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(files.read_regular(path, _MOST_BYTES)).hexdigest()[:32]
    except (OSError, ValueError):
        return ""  # whoever decodes the images names it


def _read(path: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What was kept: int64 [count, 3] and S32 [count]; zeros and "" if that cannot be used."""
    try:
        stored = np.load(io.BytesIO(files.read_regular(path, _MOST_BYTES)), allow_pickle=False)
        status, digest = stored["status"], stored["digest"]
        if status.shape == (count, 3) and digest.shape == (count,) and digest.dtype == "S32":
            return status, digest
    except Exception:  # a damaged file fails in many ways; the files are read again
        pass
    return np.zeros((count, 3), np.int64), np.zeros(count, "S32")
