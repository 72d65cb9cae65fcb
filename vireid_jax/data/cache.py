"""The pixel cache: every image of a data set decoded and resized once, in one file.

The file is a plain .npy, uint8 [N, H, W, 3], that is memory-mapped: a step reads the rows that it
needs and the operating system keeps what fits. Beside it lies a small JSON file with checksums,
written last: without it, or if the two disagree, the cache is made anew.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data import arrays, decoding
from vireid_jax.data.readers.common import Listing, TreeError
from vireid_jax.runtime import files
from vireid_jax.types import Pixels

Progress = Callable[[int, int], None]  # images done, images in all

UNREADABLE = ("refuse", "skip")
# Raise it whenever `arrays.decode` gives other pixels for the same file.
DECODER_VERSION = 1

_CHUNK_BYTES = 64 * 2**20  # of pixels that are in memory at once
_CHUNK = 512  # images at most, for small ones
_BLOCK = 16  # images of one checksum
_LOOK = 256  # images that `readable` opens at once
_NAMED = 5  # unreadable images that an error message names
_SAMPLED = 64  # checksums that are verified when a cache is opened

_log = logging.getLogger(__name__)


class UnreadableError(TreeError):
    """Images that cannot be decoded; `problems` has a line for every one of them."""

    def __init__(self, name: str, problems: Sequence[str], total: int) -> None:
        self.problems = tuple(problems)
        first = "; ".join(problems[:_NAMED])
        rest = f"; and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
        super().__init__(
            f"{name}: {len(problems):,} of {total:,} images cannot be decoded: {first}{rest}. "
            "Replace these files, or leave them out with unreadable='skip'"
        )


def decode_once(
    listing: Listing,
    *,
    image_size: tuple[int, int],
    filter: str = "lanczos",
    folder: str | os.PathLike[str] | None = None,
    unreadable: str = "refuse",
    progress: Progress | None = None,
) -> Listing:
    """Decodes and resizes all images into a file, unless it is there already.

    The pixels are those of `arrays.decode`. The file is known by the data set's name, the names
    and the sizes and times of change of the images (or the fingerprint of the prepared set), the
    image size, the filter, and the versions of the decoder and of Pillow. It gets its name when
    it is complete and on the disk; an interrupted call leaves nothing that is taken for it, and
    the next one removes what it has left. Processes of one machine wait for each other, those of
    several machines on one file system each write their own, the last one's stays, and all are
    equal.

    When a cache is opened, its size and shape are checked and the checksums of up to 64 blocks
    of 16 images, spread over the file.

    Args:
      listing: of paths, or from `prepared`.
      image_size: height, width in pixels.
      filter: "lanczos" or "bilinear", as for `arrays.decode`.
      folder: where caches are kept, a local folder; default $VIREID_CACHE, else the user's cache
        folder.
      unreadable: "refuse" raises if any image cannot be decoded, "skip" leaves those out and
        names each in the listing's `problems`.
      progress: called with (images done, images in all) while decoding.

    Returns:
      The listing with `Pixels` of the memory-mapped, read-only file.

    Raises:
      UnreadableError: (a ValueError) naming the images that cannot be decoded.
      ValueError: for a bad size, filter or option.
      OSError: ENOSPC if the disk is full, before or while decoding.
    """
    size = _checked(image_size, filter, unreadable)
    where = files.user_folder("VIREID_CACHE") if folder is None else os.fspath(folder)
    if files.is_remote(where):
        raise ValueError(
            f"the pixel cache is memory-mapped and cannot be in {where}; set VIREID_CACHE (or "
            "folder=) to a local folder"
        )
    root = pathlib.Path(where).expanduser()
    stem = _stem(listing, size, filter)
    path = root / f"{stem}.npy"
    if (found := _read(path)) is None:
        hint = "name another folder (data.cache, --cache or $VIREID_CACHE)"
        files.make_folder(root, what=f"the decoded images of {listing.name}", hint=hint)
        with files.locked(root / f"{stem}.lock"):
            files.clear_temporaries(root, stem)
            if (found := _read(path)) is None:
                _write(path, listing, size, filter, unreadable, progress)
                found = _read(path)
    if found is None:
        raise OSError(f"{path} was written but cannot be read back; is the disk sound?")
    array, left_out = found
    return _listing_of(listing, Pixels(array), left_out, unreadable)


def in_memory(listing: Listing) -> Listing:
    """A listing from `decode_once` with its pixels read into an array."""
    return _with_images(listing, listing.records.images[:])


def look_at(listing: Listing, *, progress: Progress | None = None) -> tuple[np.ndarray, list[str]]:
    """Opens every image and keeps none.

    Args:
      listing: of paths or encoded images.
      progress: called with (images done, images in all).

    Returns:
      rows: int [m], the images that can be decoded.
      problems: a line for every other image.
    """
    total, kept, problems = len(listing.records), [np.zeros(0, int)], []
    for first in range(0, total, _LOOK):
        part = listing.records.take(np.arange(first, min(first + _LOOK, total)))
        _, rows, bad = decoding.decodable(part.images, part.name, (8, 8), "bilinear")
        kept.append(first + rows)
        problems += bad
        if progress is not None:
            progress(first + len(part), total)
    return np.concatenate(kept), problems


def readable(
    listing: Listing, *, unreadable: str = "refuse", progress: Progress | None = None
) -> Listing:
    """The listing without the images that cannot be decoded, see `decode_once`.

    Raises:
      UnreadableError: (a ValueError) naming the images that cannot be decoded.
    """
    check_unreadable(unreadable)
    rows, problems = look_at(listing, progress=progress)
    if not problems:
        return listing
    if unreadable == "refuse" or not len(rows):
        raise UnreadableError(listing.name, problems, len(listing.records))
    left = listing.take(rows)
    return dataclasses.replace(left, problems=(*listing.problems, *problems))


def check_unreadable(unreadable: str) -> None:
    """Raises ValueError unless unreadable is one of the two choices."""
    if unreadable not in UNREADABLE:
        raise ValueError(f"unreadable is {unreadable!r}, expected {' or '.join(UNREADABLE)}")


def fingerprint(listing: Listing, *, times: bool = False) -> str:
    """A digest of what is stored of a listing: every name, and the size of its image.

    Args:
      listing: of paths, or from `prepared`.
      times: whether a file that was written again counts as changed though its size is the same;
        a copy of a tree does not keep the time of change.

    Returns:
      32 hexadecimal digits.
    """
    records = listing.records
    digest = hashlib.sha256()

    def put(values: Iterable[Any]) -> None:
        digest.update("\n".join(map(str, values)).encode())
        digest.update(b"\0")

    put([listing.name, len(records)])
    put(records.name)
    put(listing.persons)
    for column in (records.person, records.camera, records.modality, listing.part):
        put(np.asarray(column).tolist())

    def mark(path: Any) -> Any:
        try:
            status = os.stat(path)
        except OSError as error:
            return error.errno
        return (status.st_size, status.st_mtime_ns) if times else status.st_size

    if hasattr(records.images, "fingerprint"):
        put([records.images.fingerprint])  # of a prepared set: what was there when it was prepared
    else:
        with ThreadPoolExecutor(decoding.cores()) as pool:
            put(pool.map(mark, records.images))
    return digest.hexdigest()[:32]


def _checked(image_size: tuple[int, int], filter: str, unreadable: str) -> tuple[int, int]:
    check_unreadable(unreadable)
    arrays.check_filter(filter)
    arrays.check_size(image_size)
    return int(image_size[0]), int(image_size[1])


def _with_images(listing: Listing, images: Any) -> Listing:
    records = dataclasses.replace(listing.records, images=images)
    return dataclasses.replace(listing, records=records)


def _listing_of(
    listing: Listing, images: Any, left_out: list[tuple[int, str]], unreadable: str
) -> Listing:
    """The rows that were decoded, with their pixels; `left_out` has a row and why for others."""
    if not left_out:
        return _with_images(listing, images)
    lines = [line for _, line in left_out]
    total = len(listing.records)
    if unreadable == "refuse" or len(left_out) == total:
        raise UnreadableError(listing.name, lines, total)
    keep = np.ones(total, bool)
    keep[[row for row, _ in left_out]] = False
    kept = _with_images(listing.take(keep), images)
    return dataclasses.replace(kept, problems=(*listing.problems, *lines))


def _decoded(
    listing: Listing, size: tuple[int, int], filter: str, progress: Progress | None
) -> Iterator[tuple[np.ndarray, list[tuple[int, str]]]]:
    """Pixels uint8 [n, H, W, 3] of the images that can be decoded; row and why of the others."""
    records, total = listing.records, len(listing.records)
    step = min(max(_CHUNK_BYTES // (3 * size[0] * size[1]), 1), _CHUNK)
    for first in range(0, total, step):
        part = records.take(np.arange(first, min(first + step, total)))
        pixels, rows, problems = decoding.decodable(part.images, part.name, size, filter)
        bad = np.setdiff1d(np.arange(len(part)), rows)
        yield pixels, [(first + n, line) for n, line in zip(bad.tolist(), problems, strict=True)]
        if progress is not None:
            progress(first + len(part), total)


# --- The file -------------------------------------------------------------------------------


def _stem(listing: Listing, size: tuple[int, int], filter: str) -> str:
    """The file's name, a function of all that its pixels depend on."""
    import PIL

    source = fingerprint(listing, times=True)
    key = json.dumps([DECODER_VERSION, PIL.__version__, source, size, filter])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{listing.name}-{size[0]}x{size[1]}-{filter}-{digest}"


def _header(count: int, size: tuple[int, int]) -> bytes:
    """What precedes the pixels in a .npy file; NumPy leaves room for any count."""
    buffer = io.BytesIO()
    shape = (count, *size, 3)
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _write(
    path: pathlib.Path,
    listing: Listing,
    size: tuple[int, int],
    filter: str,
    unreadable: str,
    progress: Progress | None,
) -> None:
    """Makes the cache at `path`, under the lock of its stem."""
    folder, total = path.parent, len(listing.records)
    header = _header(total, size)
    what = f"the pixel cache of {listing.name} at {size[0]} x {size[1]}"
    hint = "name another folder (data.cache, --cache or $VIREID_CACHE) on a larger disk"
    files.check_space(folder, len(header) + total * size[0] * size[1] * 3, what=what, hint=hint)
    _log.info("decoding %d images to %s", total, path)
    part = folder / files.temporary_name(path.stem)
    side = folder / files.temporary_name(path.stem)
    sums: list[tuple[int, int]] = []  # images of a block, and their checksum
    kept, left_out = 0, []
    try:
        with files.explain_full_disk(folder, what=what, hint=hint):
            # Plain writes: a memory-mapped file kills the process when the disk is full.
            with open(part, "xb") as file:
                file.write(header)
                for pixels, bad in _decoded(listing, size, filter, progress):
                    left_out += bad
                    if left_out and unreadable == "refuse":
                        continue  # only to name every image that is wrong
                    file.write(pixels.data)
                    for n in range(0, len(pixels), _BLOCK):
                        block = pixels[n : n + _BLOCK]
                        sums.append((len(block), zlib.crc32(block.data)))
                    kept += len(pixels)
                if left_out and (unreadable == "refuse" or not kept):
                    raise UnreadableError(listing.name, [x for _, x in left_out], total)
                if kept < total:
                    file.seek(0)
                    file.write(_header(kept, size))
                file.flush()
                os.fsync(file.fileno())
            told = {
                "shape": [kept, *size, 3],
                "bytes": part.stat().st_size,
                "crc32": sums,
                "left_out": left_out,
            }
            side.write_text(json.dumps(told))
            files.sync(side)
        os.replace(part, path)
        os.replace(side, path.with_suffix(".json"))
        files.sync(folder)
    finally:
        for leftover in (part, side):
            files.remove(leftover)


def _read(path: pathlib.Path) -> tuple[np.ndarray, list[tuple[int, str]]] | None:
    """The cache's pixels and what it left out, or None where there is none that can be used."""
    side = path.with_suffix(".json")
    if not path.exists() or not side.exists():
        return None
    try:
        told = json.loads(side.read_text())
        if path.stat().st_size != told["bytes"]:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, expected {told['bytes']:,}")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or list(array.shape) != told["shape"]:
            raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
        ends = np.cumsum([count for count, _ in told["crc32"]])
        spread = np.unique(np.linspace(0, len(ends) - 1, _SAMPLED).round().astype(int))

        def wrong(n: int) -> bool:
            count, checksum = told["crc32"][n]
            block = np.ascontiguousarray(array[ends[n] - count : ends[n]])
            return zlib.crc32(block.data) != checksum

        with ThreadPoolExecutor(decoding.cores()) as pool:  # zlib lets go of the interpreter lock
            if bad := sum(pool.map(wrong, spread.tolist())):
                raise ValueError(f"{bad} of {len(spread)} checksums differ")
        return np.asarray(array), [(int(row), str(line)) for row, line in told["left_out"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        _log.warning("%s cannot be used (%s); decoding the images again", path, error)
        return None
