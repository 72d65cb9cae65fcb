"""Stored images to pixels, with Pillow in threads."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data.thermal import range_of, stretch
from vireid_jax.runtime import files

FILTERS = ("lanczos", "bilinear")

UNIT = 4  # images that a thread decodes before it looks for more work
MAX_BYTES = 256 * 2**20  # of a file
MAX_PIXELS = 2**26  # 8192 x 8192; a person's image has some 50,000

# What brings an image upright, by the number that EXIF has for its orientation.
_UPRIGHT = {
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"},
    **{6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}


def decode(
    images: Sequence[bytes] | Sequence[str] | Sequence[os.PathLike],
    size: tuple[int, int],
    *,
    filter: str = "lanczos",
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Decodes stored images once, into an array for `arrays.batches`.

    Always three channels: gray is repeated, alpha dropped. An image that EXIF marks as turned is
    turned upright. 16-bit gray becomes 8-bit gray, see `thermal.stretch`. An image is resized
    only if its size differs, so images stored at their final size come out exactly as stored.

    Args:
      images: N encoded images (bytes) or paths, which may be `thermal.Ranged`.
      size: height, width in pixels.
      filter: "lanczos" (the caches of AGW and its descendants) or "bilinear" (MPANet, IDKL),
        both antialiased.
      names: N names for error messages, e.g. `Records.name`.

    Returns:
      uint8 [N, H, W, 3].

    Raises:
      ValueError: naming the image that cannot be decoded, or for a bad size or filter. A file
        that is no regular file, has more than `MAX_BYTES` or more than `MAX_PIXELS` is not read.
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
        picture = upright(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_what(image, n, names)} does not exist") from error
    # Pillow raises SyntaxError and struct.error too, depending on the format.
    except Exception as error:
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


@contextlib.contextmanager
def opened(image: bytes | str | os.PathLike[str]) -> Iterator[Any]:
    """The Pillow picture of an encoded image or of a path, its header read.

    Raises:
      ValueError: it is no image, no regular file, or beyond `MAX_BYTES` or `MAX_PIXELS`.
      FileNotFoundError: there is no such file.
    """
    from PIL import Image

    data = image if isinstance(image, bytes) else files.read_regular(image, MAX_BYTES)
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:  # it names an object in memory
        start = f"it is no image, it begins {data[:16]!r}" if data else "it is empty"
        raise ValueError(start) from None
    with picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(
                f"it has {picture.height:,} x {picture.width:,} pixels, expected at most "
                f"{MAX_PIXELS:,}"
            )
        yield picture


def upright(image: bytes | str | os.PathLike[str]) -> Any:
    """The Pillow picture of an image, RGB or one channel (L), upright; raises as `opened`."""
    from PIL import Image

    with opened(image) as stored:
        picture = _channels(stored, range_of(image))
        # Only now: Pillow turns a TIFF itself while it loads it.
        method = _UPRIGHT.get(_orientation(stored))
    return picture.transpose(Image.Transpose[method]) if method else picture


def is_turned(picture: Any) -> bool:
    """Whether the Pillow picture, not loaded yet, is marked as turned."""
    return _orientation(picture) in _UPRIGHT


def is_deep(picture: Any) -> bool:
    """Whether the Pillow picture is 16-bit gray."""
    return picture.mode.startswith("I;16")


def is_plain(data: bytes) -> bool:
    """Whether every reader gives these pixels: a JPEG or PNG, 8-bit RGB or gray, not turned."""
    with opened(data) as picture:
        if picture.format not in ("JPEG", "PNG") or picture.mode not in ("RGB", "L"):
            return False
        # Pillow reads 2, 4 and 16 bits of a channel, too; a PNG's only tile says so.
        if picture.format == "PNG" and picture.tile[0][3] != picture.mode:
            return False
        odd = "transparency" in picture.info or getattr(picture, "n_frames", 1) > 1
        return not odd and not is_turned(picture)


def _orientation(picture: Any) -> int:
    """The number in an image's EXIF or XMP, 1 without."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # a broken note is no broken image
        return 1


def _what(image: Any, n: int, names: Sequence[str] | None) -> str:
    """What an error message calls image n: its name and its file, as far as they are known."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        return f"{path} (image {n})" if names is None else f"{names[n]} ({path}, image {n})"
    size = f", {len(image)} bytes" if isinstance(image, bytes) else ""
    return f"image {n}{size}" if names is None else f"{names[n]} (image {n}{size})"


def _channels(picture: Any, thermal_range: str) -> Any:
    """The Pillow picture, loaded, in RGB or, if that is how it is stored, in one channel."""
    if picture.mode in ("RGB", "L"):
        picture.load()  # `convert` would copy it
        return picture
    if is_deep(picture):  # Pillow would clip at 255
        from PIL import Image

        return Image.fromarray(stretch(np.asarray(picture).astype(np.uint16), thermal_range))
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
