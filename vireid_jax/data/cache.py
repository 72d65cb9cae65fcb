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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data import arrays, decoding, stored
from vireid_jax.data.listing import Listing
from vireid_jax.runtime import files
from vireid_jax.types import Pixels, is_decoded

# Raise it whenever `arrays.decode` gives other pixels for the same file.
DECODER_VERSION = 1

_CHUNK_BYTES = 64 * 2**20  # of pixels that are in memory at once
_CHUNK = 512  # images at most, for small ones
_BLOCK = 16  # images of one checksum
_SAMPLED = 64  # checksums that are verified when a cache is opened

_log = logging.getLogger(__name__)


def decode_once(
    listing: Listing,
    *,
    image_size: tuple[int, int],
    filter: str = "lanczos",
    folder: str | os.PathLike[str] | None = None,
    unreadable: str = "refuse",
    progress: stored.Progress | None = None,
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
    of 16 images, spread over the file; `verify` checks them all.

    Args:
      listing: of paths, encoded images or stored ones; decoded images of that size stay.
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
    if is_decoded(listing.records.images):
        return _of_size(listing, size)
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


def in_memory(
    listing: Listing,
    *,
    image_size: tuple[int, int],
    filter: str = "lanczos",
    unreadable: str = "refuse",
    progress: stored.Progress | None = None,
) -> Listing:
    """As `decode_once`, with the pixels in an array and nothing written.

    A cached listing (`Pixels` of that size) is read into memory.
    """
    size = _checked(image_size, filter, unreadable)
    images = listing.records.images
    if is_decoded(images):
        whole = images if isinstance(images, np.ndarray) else images[:]
        return _with_images(_of_size(listing, size), whole)
    out = np.empty((len(images), *size, 3), np.uint8)
    kept, left_out = 0, []
    for pixels, bad in _decoded(listing, size, filter, progress):
        out[kept : kept + len(pixels)] = pixels
        kept += len(pixels)
        left_out += bad
    return _listing_of(listing, out[:kept], left_out, unreadable)


def verify(listing: Listing) -> None:
    """Compares a cached listing's whole file with its checksums, which takes reading all of it.

    Raises:
      ValueError: if they differ, or the images are not a cache of `decode_once`.
    """
    array: Any = getattr(listing.records.images, "array", None)
    base = getattr(array, "base", None)
    if not isinstance(base, np.memmap) or not base.filename:
        raise ValueError(
            f"the images are a {type(listing.records.images).__name__}, expected the "
            "memory-mapped pixels of cache.decode_once"
        )
    path = pathlib.Path(base.filename)
    told = json.loads(path.with_suffix(".json").read_text())
    if bad := _bad_blocks(array, told["crc32"], range(len(told["crc32"]))):
        raise ValueError(
            f"{path} is damaged: {len(bad)} of {len(told['crc32'])} checksums differ; remove "
            "the file, and the next run decodes the images again"
        )


def _checked(image_size: tuple[int, int], filter: str, unreadable: str) -> tuple[int, int]:
    stored.check_unreadable(unreadable)
    arrays.check_filter(filter)
    arrays.check_size(image_size)
    return int(image_size[0]), int(image_size[1])


def _of_size(listing: Listing, size: tuple[int, int]) -> Listing:
    """The listing, whose images are decoded already, if they have that size."""
    images = listing.records.images
    arrays.check_decoded(images)
    if tuple(images.shape[1:3]) != size:
        raise ValueError(
            f"the images of {listing.name} are decoded already, at {tuple(images.shape[1:3])}, "
            f"and image_size is {size}; ask for that size, or start from the encoded images"
        )
    return listing


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
        raise stored.UnreadableError(listing.name, lines, total)
    keep = np.ones(total, bool)
    keep[[row for row, _ in left_out]] = False
    kept = _with_images(listing.take(keep), images)
    return dataclasses.replace(kept, problems=(*listing.problems, *lines))


def _decoded(
    listing: Listing, size: tuple[int, int], filter: str, progress: stored.Progress | None
) -> Iterator[tuple[np.ndarray, list[tuple[int, str]]]]:
    """Pixels uint8 [n, H, W, 3] of the images that can be decoded; row and why of the others."""
    records, total = listing.records, len(listing.records)
    step = min(max(_CHUNK_BYTES // (3 * size[0] * size[1]), 1), _CHUNK)
    for first in range(0, total, step):
        part = records.take(np.arange(first, min(first + step, total)))
        pixels, rows, problems = stored.decodable(part.images, part.name, size, filter)
        bad = np.setdiff1d(np.arange(len(part)), rows)
        yield pixels, [(first + n, line) for n, line in zip(bad.tolist(), problems, strict=True)]
        if progress is not None:
            progress(first + len(part), total)


# --- The file -------------------------------------------------------------------------------


def _stem(listing: Listing, size: tuple[int, int], filter: str) -> str:
    """The file's name, a function of all that its pixels depend on."""
    import PIL

    source = stored.fingerprint(listing, times=True)
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


class _Sums:
    """Checksums of each block of `_BLOCK` images of a stream of images."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self._sum, self._count = 0, 0

    def update(self, pixels: np.ndarray) -> None:
        while len(pixels):
            some = pixels[: _BLOCK - self._count]
            self._sum = zlib.crc32(np.ascontiguousarray(some).data, self._sum)
            self._count += len(some)
            pixels = pixels[len(some) :]
            if self._count == _BLOCK:
                self.close()

    def close(self) -> None:
        """Ends the block."""
        if self._count:
            self.done.append(self._sum)
        self._sum, self._count = 0, 0


def _write(
    path: pathlib.Path,
    listing: Listing,
    size: tuple[int, int],
    filter: str,
    unreadable: str,
    progress: stored.Progress | None,
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
    sums, kept, left_out = _Sums(), 0, []
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
                    sums.update(pixels)
                    kept += len(pixels)
                sums.close()
                if left_out and (unreadable == "refuse" or not kept):
                    raise stored.UnreadableError(listing.name, [x for _, x in left_out], total)
                if kept < total:
                    file.seek(0)
                    file.write(_header(kept, size))
                file.flush()
                os.fsync(file.fileno())
            told = {
                "shape": [kept, *size, 3],
                "bytes": part.stat().st_size,
                "images_per_checksum": _BLOCK,
                "crc32": sums.done,
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
        blocks = len(told["crc32"])
        spread = np.unique(np.linspace(0, blocks - 1, _SAMPLED).round().astype(int))
        if bad := _bad_blocks(array, told["crc32"], spread.tolist()):
            raise ValueError(f"{len(bad)} of {len(spread)} checksums differ")
        return np.asarray(array), [(int(row), str(line)) for row, line in told["left_out"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        _log.warning("%s cannot be used (%s); decoding the images again", path, error)
        return None


def _bad_blocks(array: np.ndarray, sums: list[int], blocks: Iterable[int]) -> list[int]:
    """Which of the `blocks` of images have another checksum than they should."""

    def one(n: int) -> bool:
        block = np.ascontiguousarray(array[n * _BLOCK : (n + 1) * _BLOCK])
        return zlib.crc32(block.data) != sums[n]

    with ThreadPoolExecutor(decoding.cores()) as pool:  # zlib lets go of the interpreter lock
        blocks = list(blocks)
        return [n for n, bad in zip(blocks, pool.map(one, blocks), strict=True) if bad]
