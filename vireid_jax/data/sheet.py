"""Contact sheets: rows of captioned pictures in columns, written whole or not at all.

`contact_sheet` shows a data set: rows are persons, columns cameras, visible ones first.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vireid_jax.data import decoding
from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Listing
from vireid_jax.runtime import files
from vireid_jax.types import MODALITIES

_GAP, _HEAD, _LETTER = 3, 34, 6  # pixels; the default font is about 6 wide
_COLUMNS = 12  # aimed at: few cameras show several images each
_NAME = 14  # letters of a person's name that are shown


class Sheet:
    """A white picture with a place for `shots` pictures in every row and column."""

    def __init__(
        self,
        heads: Sequence[Sequence[str]],
        captions: Sequence[Sequence[str]],
        size: tuple[int, int],
        *,
        shots: int = 1,
    ) -> None:
        """Writes up to two lines above each column and before each row.

        `size` is the (height, width) of a place in pixels.
        """
        from PIL import Image, ImageDraw  # only users of pictures need Pillow

        self.height, self.width = size
        self._margin = 8 + _LETTER * max(len(line) for lines in captions for line in lines)
        self._block = shots * (self.width + 1) + _GAP
        whole = (
            self._margin + len(heads) * self._block,
            _HEAD + len(captions) * (self.height + _GAP),
        )
        self.picture = Image.new("RGB", whole, "white")
        self._pen = ImageDraw.Draw(self.picture)
        for column, lines in enumerate(heads):
            self._write(lines, self.corner(0, column)[0] + 2, 4, 14)
        for row, lines in enumerate(captions):
            self._write(lines, 4, self.corner(row, 0)[1] + self.height // 2 - 12, 12)

    def _write(self, lines: Sequence[str], x: int, y: int, step: int) -> None:
        for n, line in enumerate(lines):
            self._pen.text((x, y + step * n), line, fill="dimgray" if n else "black")

    def corner(self, row: int, column: int, shot: int = 0) -> tuple[int, int]:
        """(x, y) of a place's upper left pixel."""
        x = self._margin + column * self._block + shot * (self.width + 1)
        return x, _HEAD + row * (self.height + _GAP)

    def paste(self, picture: Any, row: int, column: int, shot: int = 0) -> None:
        """Puts a Pillow picture, or pixels uint8 [h, w, 3], into the middle of a place."""
        from PIL import Image

        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        x, y = self.corner(row, column, shot)
        at = x + (self.width - picture.width) // 2, y + (self.height - picture.height) // 2
        self.picture.paste(picture, at)

    def clear(self, row: int, column: int, shot: int = 0, *, crossed: bool = False) -> None:
        """Fills a place with gray, and crosses it out."""
        x, y = self.corner(row, column, shot)
        right, below = x + self.width - 1, y + self.height - 1
        self._pen.rectangle((x, y, right, below), fill="gainsboro")
        if crossed:
            self._pen.line((x, y, right, below), fill="red", width=2)
            self._pen.line((x, below, right, y), fill="red", width=2)


def picture_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, if a picture can be written there.

    Raises:
      ValueError: its ending is not a picture format's.
      FileNotFoundError: its folder does not exist.
    """
    from PIL import Image

    target = pathlib.Path(path)
    if target.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{target} does not end like a picture, expected a name such as sheet.png")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first")
    return target


def write_picture(picture: Any, target: pathlib.Path, *, optimize: bool = False) -> None:
    """Saves a Pillow picture to a `picture_path`, whole or not at all.

    With `optimize` it takes longer for a smaller file.
    """
    from PIL import Image

    kind = Image.registered_extensions()[target.suffix.lower()]
    files.write_whole(target, lambda file: picture.save(file, kind, optimize=optimize))


def contact_sheet(
    listing: Listing,
    path: str | os.PathLike[str],
    *,
    persons: int = 8,
    shots: int | None = None,
    image_size: tuple[int, int] = (144, 72),
) -> list[str]:
    """Draws images of persons who have both modalities, spread evenly over the data set.

    Images keep their proportions. A place without an image is gray; one whose image cannot be
    opened is crossed out.

    Args:
      listing: of paths or encoded images.
      path: the picture to write; its ending picks the format, such as .png.
      persons: rows.
      shots: images of a camera, spread evenly; None for about twelve columns in all.
      image_size: (height, width) of a place in pixels.

    Returns:
      A line for every image that could not be opened.

    Raises:
      ValueError: an option is out of range, the ending is not a picture's, or nobody has images
        of both modalities.
      FileNotFoundError: the folder to write into does not exist.
    """
    common.check_number("persons", persons, 1, 200)
    if shots is not None:
        common.check_number("shots", shots, 1, 20)
    target = picture_path(path)
    records = listing.records
    people = common.paired(records, np.ones(len(records), bool))
    if not len(people):
        raise ValueError(
            f"nobody of {listing.name!r} has images of both modalities: nothing to show"
        )
    chosen = common.spread(people, min(persons, len(people))).tolist()
    columns = np.unique(np.stack([records.modality, records.camera], axis=1), axis=0).tolist()
    rows = {}  # of each place's images
    for person in chosen:
        for modality, camera in columns:
            mine = (records.person == person) & (records.modality == modality)
            rows[person, modality, camera] = np.flatnonzero(mine & (records.camera == camera))
    shots = min(max(map(len, rows.values())), shots or max(1, _COLUMNS // len(columns)))
    heads = [(f"camera {c}" if c else "no camera", MODALITIES[m]) for m, c in columns]
    sheet = Sheet(heads, [_caption(listing, p) for p in chosen], image_size, shots=shots)
    problems = []
    for (person, *column), mine in rows.items():
        place = chosen.index(person), columns.index(column)
        shown = common.spread(mine, min(shots, len(mine))).tolist() if len(mine) else []
        for shot in range(shots):
            sheet.clear(*place, shot)
            if shot >= len(shown):
                continue
            row = shown[shot]
            try:
                picture = _opened(records.images[row], *image_size)
            # Pillow raises SyntaxError and struct.error too, depending on the format.
            except Exception as error:
                problems.append(f"{records.name[row]} cannot be opened: {error}")
                sheet.clear(*place, shot, crossed=True)
            else:
                sheet.paste(picture, *place, shot)
    write_picture(sheet.picture, target)
    return problems


def _caption(listing: Listing, person: int) -> list[str]:
    name = listing.persons[person] if listing.persons else f"{person:04d}"
    part = str(listing.part[np.flatnonzero(listing.records.person == person)[0]])
    return [name[:_NAME], part] if part in ("train", "val", "test") else [name[:_NAME]]


def _opened(image: Any, height: int, width: int) -> Any:
    """The image, upright, as a Pillow picture in RGB that fits into a place."""
    from PIL import Image

    picture = decoding.upright(image).convert("RGB")
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)
