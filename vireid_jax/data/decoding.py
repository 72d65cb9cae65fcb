"""Stored images to pixels, with Pillow in threads."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

FILTERS = ("lanczos", "bilinear")

UNIT = 4  # images that a thread decodes before it looks for more work


def decode(
    images: Sequence[bytes] | Sequence[str] | Sequence[os.PathLike],
    size: tuple[int, int],
    *,
    filter: str = "lanczos",
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Decodes stored images once, into an array for `arrays.batches`.

    Always three channels: gray is repeated, alpha dropped, and 16-bit gray cut to its upper 8
    bits. An orientation in EXIF is not applied, as by the authors' code. An image is resized only
    if its size differs, so images stored at their final size come out exactly as stored.

    Args:
      images: N encoded images (bytes) or paths.
      size: height, width in pixels.
      filter: "lanczos" (the caches of AGW and its descendants) or "bilinear" (MPANet, IDKL),
        both antialiased.
      names: N names for error messages, e.g. `Records.name`.

    Returns:
      uint8 [N, H, W, 3].

    Raises:
      ValueError: naming the image that cannot be decoded, or for a bad size or filter.
      FileNotFoundError: naming the file.
    """
    check_size(size)
    check_filter(filter)
    out = np.empty((len(images), *size, 3), np.uint8)

    def fill(first: int) -> None:
        for n in range(first, min(first + UNIT, len(out))):
            out[n] = load(images, n, size, filter, names)

    # Pillow lets go of the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(fill, range(0, len(out), UNIT)))
    return out


def decodable(
    images: Sequence[Any], names: Sequence[str], size: tuple[int, int], filter: str
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """`decode` of the images that can be decoded.

    Returns:
      pixels: uint8 [m, H, W, 3] of the m images that can be decoded, in their order.
      left_out: row and problem, a line, of every other image.

    Raises:
      TreeError: the prepared set that the images are read from is damaged.
    """
    try:
        return decode(images, size, filter=filter), []
    except (ValueError, FileNotFoundError):
        pass  # which ones?
    pixels, left_out = [np.empty((0, *size, 3), np.uint8)], []
    # A record of a prepared set that cannot be read is no broken image: `zip` raises for it.
    for n, (image, name) in enumerate(zip(images, names, strict=True)):
        try:
            pixels.append(decode([image], size, filter=filter))
        except (ValueError, FileNotFoundError) as error:
            # A path may still be a message's best name; the row number here means nothing.
            where = name if isinstance(image, bytes) else f"{name} ({os.fspath(image)})"
            cause = error.__cause__ or error
            missing = isinstance(cause, FileNotFoundError)
            left_out.append((n, f"{where}: {'the file does not exist' if missing else cause}"))
    return np.concatenate(pixels), left_out


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError unless size is (height, width) in pixels."""
    if len(size) != 2 or any(int(s) != s or s < 1 for s in size):
        raise ValueError(f"size is {size}, expected (height, width) in pixels")


def check_filter(filter: str) -> None:
    """Raises ValueError unless filter is the name of one."""
    if filter not in FILTERS:
        raise ValueError(f"filter is {filter!r}, expected one of {', '.join(FILTERS)}")


def load(
    images: Sequence[Any], n: int, size: tuple[int, ...], filter: str, names: Sequence[str] | None
) -> np.ndarray:
    """Image n of `images`, read, decoded and resized as `decode` does: uint8 [H, W, 3]."""
    from PIL import Image  # only users of stored images need Pillow

    image = None
    try:
        image = images[n]
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as stored:
            picture = _channels(stored)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_what(image, n, names)} does not exist") from error
    # Pillow raises SyntaxError and struct.error too, depending on the format.
    except Exception as error:
        if isinstance(error, Image.UnidentifiedImageError):
            error = ValueError(_no_image(image))  # Pillow's names an object in memory
        raise ValueError(
            f"cannot {'read' if image is None else 'decode'} {_what(image, n, names)}: {error}; "
            "replace the file, or leave it out of the records"
        ) from error
    if picture.size != (size[1], size[0]):
        resample = Image.Resampling[filter.upper()]
        if picture.mode == "RGB":
            # Channels are resized alike, and infrared images mostly have three equal ones.
            picture = _gray(picture)
        # Rows first, then columns, each rounded to 8 bits: what Pillow always did. From 13.0
        # on it takes columns first for tall images, and a third of the pixels would change
        # with Pillow's version; one direction at a time leaves it no choice.
        picture = picture.resize((size[1], picture.height), resample)
        picture = picture.resize((size[1], size[0]), resample)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _no_image(image: Any) -> str:
    """What is in a file that is no image, whatever its name says."""
    if isinstance(image, bytes):
        start = image[:16]
    else:
        with open(image, "rb") as file:
            start = file.read(16)
    return f"it is no image, it begins {start!r}" if start else "it is empty"


def _what(image: Any, n: int, names: Sequence[str] | None) -> str:
    """What an error message calls image n: its name and its file, as far as they are known."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        return f"{path} (image {n})" if names is None else f"{names[n]} ({path}, image {n})"
    size = f", {len(image)} bytes" if isinstance(image, bytes) else ""
    return f"image {n}{size}" if names is None else f"{names[n]} (image {n}{size})"


def _channels(picture: Any) -> Any:
    """The Pillow picture, loaded, in RGB or, if that is how it is stored, in one channel."""
    if picture.mode in ("RGB", "L"):
        picture.load()  # `convert` would copy it
        return picture
    if picture.mode.startswith("I;16"):
        from PIL import Image

        # Pillow would clip at 255; the upper byte is what libpng keeps when it strips 16 bits.
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {picture.mode}), expected 8 or 16")
    return picture.convert("RGB")


def _gray(picture: Any) -> Any:
    """The one channel of an RGB picture whose channels are equal, otherwise the picture."""
    middle = picture.height // 2
    # A line first: it tells what has color.
    for part in (picture.crop((0, middle, picture.width, middle + 1)), picture):
        red, green, blue = part.split()
        if not red.tobytes() == green.tobytes() == blue.tobytes():
            return picture
    return red


def cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
