"""Images as they are stored, in files or encoded: which can be decoded, which have changed."""

import dataclasses
import hashlib
import io
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data import arrays, decoding
from vireid_jax.data.listing import Listing, TreeError
from vireid_jax.types import is_decoded

Progress = Callable[[int, int], None]  # images done, images in all

UNREADABLE = ("refuse", "skip")
_CHUNK = 256  # images that are looked at at once
_NAMED = 5  # unreadable images that an error message names
_VERBATIM = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG


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


def check_unreadable(unreadable: str) -> None:
    """Raises ValueError unless unreadable is one of the two choices."""
    if unreadable not in UNREADABLE:
        raise ValueError(f"unreadable is {unreadable!r}, expected {' or '.join(UNREADABLE)}")


def fingerprint(listing: Listing, *, times: bool = False) -> str:
    """A digest of what is stored of a listing: every name, and the size or bytes of its image.

    Images in files count with their size (and with `times` their time of change, which a copy
    of the tree does not keep); images in memory count with a checksum of their bytes.

    Args:
      listing: of paths, encoded images, pixels or stored images.
      times: whether a file that was written again counts as changed though its size is the same.

    Returns:
      32 hexadecimal digits.
    """
    records = listing.records
    images = records.images
    digest = hashlib.sha256()

    def put(values: Iterable[Any]) -> None:
        digest.update("\n".join(map(str, values)).encode())
        digest.update(b"\0")

    put([listing.name, len(records)])
    put(records.name)
    put(listing.persons)
    for column in (records.person, records.camera, records.modality, listing.part):
        put(np.asarray(column).tolist())

    def mark(n: int) -> Any:
        image = images[n]
        if isinstance(image, bytes | np.ndarray):
            return zlib.crc32(
                image if isinstance(image, bytes) else np.ascontiguousarray(image).data
            )
        try:
            status = os.stat(image)
        except OSError as error:
            return error.errno
        return (status.st_size, status.st_mtime_ns) if times else status.st_size

    if hasattr(images, "fingerprint"):
        put([images.fingerprint])  # stored images: what was there when they were stored
    else:
        if is_decoded(images):
            put(images.shape)
        with ThreadPoolExecutor(decoding.cores()) as pool:
            put(pool.map(mark, range(len(records))))
    return digest.hexdigest()[:32]


def decodable(
    images: Sequence[Any], names: Sequence[str], size: tuple[int, int], filter: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`arrays.decode` of the images that it can decode.

    Args:
      images: n encoded images or paths.
      names: what to call them.
      size: height, width in pixels.
      filter: as `arrays.decode` takes it.

    Returns:
      pixels: uint8 [m, H, W, 3].
      rows: int [m], which of the n images these are.
      problems: a line for every other image.

    Raises:
      TreeError: the prepared set that the images are read from is damaged.
    """
    try:
        return arrays.decode(images, size, filter=filter), np.arange(len(images)), []
    except (ValueError, FileNotFoundError):
        pass  # which ones?
    pixels, rows, problems = [], [], []
    # A record of a prepared set that cannot be read is no broken image: `zip` raises for it.
    for n, (image, name) in enumerate(zip(images, names, strict=True)):
        try:
            pixels.append(arrays.decode([image], size, filter=filter))
            rows.append(n)
        except (ValueError, FileNotFoundError) as error:
            # A path may still be a message's best name; the row number here means nothing.
            where = name if isinstance(image, bytes) else f"{name} ({os.fspath(image)})"
            problems.append(f"{where}: {_reason(error)}")
    empty = np.empty((0, *size, 3), np.uint8)
    return np.concatenate([empty, *pixels]), np.array(rows, int), problems


def readable(
    listing: Listing, *, unreadable: str = "refuse", progress: Progress | None = None
) -> Listing:
    """The listing without the images that cannot be decoded; opens all and keeps none.

    Args:
      listing: of paths or encoded images.
      unreadable: "refuse" raises if there is any such image, "skip" leaves those out and names
        each in the listing's `problems`.
      progress: called with (images done, images in all).

    Raises:
      UnreadableError: (a ValueError) naming the images that cannot be decoded.
    """
    check_unreadable(unreadable)
    total, kept, problems = len(listing.records), [], []
    for first in range(0, total, _CHUNK):
        part = listing.records.take(np.arange(first, min(first + _CHUNK, total)))
        _, rows, bad = decodable(part.images, part.name, (8, 8), "bilinear")
        kept.append(first + rows)
        problems += bad
        if progress is not None:
            progress(first + len(part), total)
    if not problems:
        return listing
    if unreadable == "refuse" or len(problems) == total:
        raise UnreadableError(listing.name, problems, total)
    left = listing.take(np.concatenate(kept))
    return dataclasses.replace(left, problems=(*listing.problems, *problems))


def _reason(error: Exception) -> str:
    """Why the image cannot be decoded, in the words of who tried."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError):
        return "the file does not exist"
    return str(cause or error)


def source_bytes(images: Any) -> int | None:
    """About how many bytes the images take as stored; None if only reading them would tell."""
    if is_decoded(images):
        return int(np.prod(images.shape))
    if hasattr(images, "fingerprint"):
        return None
    with ThreadPoolExecutor(decoding.cores()) as pool:
        return sum(pool.map(_stored_size, images))


def _stored_size(image: Any) -> int:
    if isinstance(image, bytes):
        return len(image)
    try:
        return os.stat(image).st_size
    except OSError:
        return 0  # it will be named among the unreadable ones


def encoded(listing: Listing) -> tuple[list[bytes], np.ndarray, list[str]]:
    """The images of a listing as they are stored.

    Returns:
      images: m of the N images, JPEG or PNG.
      rows: int [m], which of the N rows they are.
      problems: a line for every image that cannot be decoded.
    """
    images = listing.records.images
    with ThreadPoolExecutor(decoding.cores()) as pool:
        read = list(pool.map(lambda n: _read(images[n]), range(len(images))))
        names = list(listing.records.name)
        if not is_decoded(images) and isinstance(images[0], str | os.PathLike):
            names = [f"{n} ({os.fspath(i)})" for n, i in zip(names, images, strict=True)]
        problems = [f"{names[n]}: {x}" for n, x in enumerate(read) if isinstance(x, str)]
        there = np.array([n for n, x in enumerate(read) if isinstance(x, bytes)], int)
        data: list[Any] = [read[n] for n in there.tolist()]
        # Any size would do; what costs is the decoding.
        _, good, bad = decodable(data, [names[n] for n in there.tolist()], (8, 8), "bilinear")
        kept = list(pool.map(lambda n: _as_stored(data[n]), good.tolist()))
    return kept, there[good], problems + bad


def _read(image: Any) -> bytes | str:
    """The encoded image, or why it cannot be read."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return _png(image)
    try:
        return pathlib.Path(image).read_bytes()
    except FileNotFoundError:
        return "the file does not exist"
    except OSError as error:
        return str(error)


def _as_stored(data: bytes) -> bytes:
    """JPEG and PNG as they are, anything else as PNG with the pixels that `arrays` decodes."""
    if data.startswith(_VERBATIM):
        return data
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    return _png(arrays.decode([data], (height, width))[0])


def _png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
