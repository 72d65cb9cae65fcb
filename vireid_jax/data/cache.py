"""The pixel cache: every image of a data set decoded and resized once, in one file.

The file is a plain .npy, uint8 [N, H, W, 3], that is memory-mapped: a step reads the rows that it
needs and the operating system keeps what fits. A small JSON file with checksums lies beside it:
without it, or if the two disagree, the images are decoded again.
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
from typing import Any

import numpy as np

from vireid_jax.data import contents, decoding, thermal
from vireid_jax.data.readers.common import Listing, TreeError
from vireid_jax.runtime import files
from vireid_jax.types import Pixels

Progress = Callable[[int, int], None]  # images done, images in all
LeftOut = list[tuple[int, str]]  # rows that cannot be decoded, and a line on why

UNREADABLE = ("refuse", "skip")
# Raise it whenever `decoding.decode` gives other pixels for the same file.
DECODER_VERSION = 2

_CHUNK_BYTES = 64 * 2**20  # of pixels that are in memory at once
_CHUNK = 512  # images at most, for small ones
_BLOCK = 16  # images of one checksum
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

    `decoding.decode` makes the pixels. The file is known by all that they depend on, such as
    the content of the images, see `_stem`. An interrupted call leaves nothing that is taken for a
    cache, and the next one clears it away. Processes of one machine wait for each other. Several
    machines on one file system each write their own; all are equal, and the last one stays. Opening
    a cache checks its size, its shape and the checksums of up to 64 blocks of 16 images, spread
    over the file.

    Args:
      listing: of paths, or from `prepared`.
      image_size: height, width in pixels.
      filter: "lanczos" or "bilinear".
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
    check_unreadable(unreadable)
    decoding.check_filter(filter)
    decoding.check_size(image_size)
    size = int(image_size[0]), int(image_size[1])
    where = files.user_folder("VIREID_CACHE") if folder is None else os.fspath(folder)
    if files.is_remote(where):
        raise ValueError(
            f"the pixel cache is memory-mapped and cannot be in {where}; set VIREID_CACHE (or "
            "folder=) to a local folder"
        )
    root = files.expanded(where, "the folder of decoded images")
    stem = _stem(listing, size, filter, root, progress)
    path, total = root / f"{stem}.npy", len(listing.records)
    if (found := _read(path, total)) is None:
        hint = "name another folder (data.cache, --cache or $VIREID_CACHE)"
        files.make_folder(root, what=f"the decoded images of {listing.name}", hint=hint)
        with files.locked(root / f"{stem}.lock"):
            files.clear_temporaries(root, stem)
            if (found := _read(path, total)) is None:
                _write(path, listing, size, filter, unreadable, progress)
                found = _read(path, total)
    if found is None:
        raise OSError(f"{path} was written but cannot be read back; is the disk sound?")
    array, left_out = found
    return _with_images(without(listing, left_out, unreadable), Pixels(array))


def in_memory(listing: Listing) -> Listing:
    """A listing from `decode_once` with its pixels read into an array."""
    return _with_images(listing, listing.records.images[:])


def _with_images(listing: Listing, images: Any) -> Listing:
    return dataclasses.replace(listing, records=dataclasses.replace(listing.records, images=images))


def look_at(listing: Listing, *, progress: Progress | None = None) -> LeftOut:
    """Opens every image of a listing, keeps none, and names those that cannot be decoded."""
    looked_at = _decoded(listing, (8, 8), "bilinear", progress)  # what costs is the decoding
    return [line for _, left_out in looked_at for line in left_out]


def without(listing: Listing, left_out: LeftOut, unreadable: str) -> Listing:
    """The listing without some rows, which its `problems` then name.

    Raises:
      UnreadableError: (a ValueError) there are such rows and they are refused, or all rows are.
    """
    if not left_out:
        return listing
    total, lines = len(listing.records), [line for _, line in left_out]
    if unreadable == "refuse" or len(left_out) == total:
        raise UnreadableError(listing.name, lines, total)
    kept = listing.take(np.delete(np.arange(total), [row for row, _ in left_out]))
    return dataclasses.replace(kept, problems=(*listing.problems, *lines))


def check_unreadable(unreadable: str) -> None:
    """Raises ValueError unless unreadable is one of the two choices."""
    if unreadable not in UNREADABLE:
        raise ValueError(f"unreadable is {unreadable!r}, expected {' or '.join(UNREADABLE)}")


def fingerprint(
    listing: Listing, *, folder: pathlib.Path | None = None, progress: Progress | None = None
) -> str:
    """A digest of all that matters of a listing: names, labels, checks, what the images hold.

    The range of 16-bit images belongs to it (`thermal.Ranged`).

    Args:
      listing: of paths, or from `prepared`.
      folder: where digests of files are kept between calls, see `contents.digests`; None reads
        every file.
      progress: called with (0, images in all) now and then while files are read.

    Returns:
      32 hexadecimal digits.
    """
    records = listing.records
    digest = hashlib.sha256()

    def put(values: Iterable[Any]) -> None:
        digest.update("\n".join(map(str, values)).encode())
        digest.update(b"\0")

    put([listing.name, len(records), DECODER_VERSION])
    put(records.name)
    put(listing.persons)
    for column in (records.person, records.camera, records.modality, listing.part):
        put(np.asarray(column).tolist())
    put(tuple(check) for check in listing.checks)
    if hasattr(records.images, "fingerprint"):
        put([records.images.fingerprint])  # of a prepared set: what was there when it was prepared
    else:
        put(sorted({thermal.range_of(image) for image in records.images}))
        put(contents.digests(records.images, folder=folder, progress=progress))
    return digest.hexdigest()[:32]


def _decoded(
    listing: Listing, size: tuple[int, int], filter: str, progress: Progress | None
) -> Iterator[tuple[np.ndarray, LeftOut]]:
    """Pixels uint8 [n, H, W, 3] of some images after others, and those that have none."""
    records, total = listing.records, len(listing.records)
    step = min(max(_CHUNK_BYTES // (3 * size[0] * size[1]), 1), _CHUNK)
    for first in range(0, total, step):
        part = records.take(np.arange(first, min(first + step, total)))
        pixels, left_out = decoding.decodable(part.images, part.name, size, filter)
        yield pixels, [(first + n, line) for n, line in left_out]
        if progress is not None:
            progress(first + len(part), total)


# --- The file -------------------------------------------------------------------------------


def _stem(
    listing: Listing,
    size: tuple[int, int],
    filter: str,
    folder: pathlib.Path,
    progress: Progress | None,
) -> str:
    """The file's name: what the images are and hold, and how they are decoded."""
    import PIL

    source = fingerprint(listing, folder=folder, progress=progress)
    key = json.dumps([PIL.__version__, source, size, filter])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{listing.name}-{size[0]}x{size[1]}-{filter}-{digest}"


def _header(count: int, size: tuple[int, int]) -> bytes:
    """What precedes the pixels in a .npy file, as long for any count."""
    buffer = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
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
    needed = len(header) + total * size[0] * size[1] * 3
    files.check_space(folder, needed, what=what, hint=hint)
    _log.info("decoding %d images to %s", total, path)
    sums: list[tuple[int, int]] = []  # images of a block, and their checksum
    left_out: LeftOut = []
    with (
        files.explain_full_disk(folder, what=what, hint=hint, needed=needed),
        files.whole(path) as file,  # plain writes: a memory-mapped file kills if the disk is full
    ):
        file.write(header)
        for pixels, bad in _decoded(listing, size, filter, progress):
            left_out += bad
            if left_out and unreadable == "refuse":
                continue  # only to name every image that is wrong
            file.write(pixels.data)
            blocks = [pixels[n : n + _BLOCK] for n in range(0, len(pixels), _BLOCK)]
            sums += [(len(block), zlib.crc32(block.data)) for block in blocks]
        length = file.tell()
        kept = len(without(listing, left_out, unreadable).records)
        file.seek(0)
        file.write(_header(kept, size))
        file.flush()
        os.fsync(file.fileno())
        said = {"shape": [kept, *size, 3], "bytes": length, "crc32": sums, "left_out": left_out}
        files.write_whole(path.with_suffix(".json"), json.dumps(said))
    files.sync(path.with_suffix(".json"))
    files.sync(folder)


def _read(path: pathlib.Path, total: int) -> tuple[np.ndarray, LeftOut] | None:
    """The pixels and what was left out of `total` images; None where nothing can be used."""
    side = path.with_suffix(".json")
    if not path.exists() or not side.exists():
        return None
    try:
        said = files.read_json(side)
        if not path.is_file() or path.stat().st_size != said["bytes"]:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, expected {said['bytes']:,}")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or list(array.shape) != said["shape"]:
            raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
        left_out = {int(row): str(line) for row, line in said["left_out"]}
        if len(array) + len(left_out) != total or not left_out.keys() <= set(range(total)):
            raise ValueError(f"it holds {len(array)} of {total} images, {len(left_out)} left out")
        ends = np.cumsum([count for count, _ in said["crc32"]])
        spread = np.unique(np.linspace(0, len(ends) - 1, _SAMPLED).round().astype(int))
        bad = 0
        for n in spread.tolist():
            count, checksum = said["crc32"][n]
            bad += zlib.crc32(array[ends[n] - count : ends[n]].tobytes()) != checksum
        if bad:
            raise ValueError(f"{bad} of {len(spread)} checksums differ")
        return np.asarray(array), list(left_out.items())
    except Exception as error:  # a damaged file fails in many ways
        _log.warning("%s cannot be used (%s); decoding the images again", path, error)
        return None
