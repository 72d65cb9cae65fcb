"""A contact sheet of a data set: rows are persons, columns cameras, visible ones first."""

import io
import os
from typing import Any

import numpy as np

from vireid_jax.data.listing import Listing
from vireid_jax.data.picture import picture_path, write_picture
from vireid_jax.data.readers import select
from vireid_jax.types import MODALITIES, Records

_GAP, _HEAD, _LETTER = 3, 34, 6  # pixels; the default font is about 6 wide
_COLUMNS = 12  # aimed at: few cameras show several images each
_NAME = 14  # letters of a person's name that are shown


def contact_sheet(
    listing: Listing,
    path: str | os.PathLike[str],
    *,
    persons: int = 8,
    shots: int | None = None,
    image_size: tuple[int, int] = (144, 72),
) -> list[str]:
    """Draws images of persons who have both modalities, spread evenly over the data set.

    Images keep their proportions. A cell without an image is grey; one that cannot be opened
    is crossed out.

    Args:
      listing: of paths or encoded images.
      path: the picture to write; its ending picks the format, such as .png.
      persons: rows.
      shots: images of a camera, spread evenly; None for about twelve columns in all.
      image_size: (height, width) of a cell in pixels.

    Returns:
      A line for every image that could not be opened.

    Raises:
      ValueError: an option is out of range, the ending is not a picture's, or nobody has images
        of both modalities.
      FileNotFoundError: the folder to write into does not exist.
    """
    from PIL import Image, ImageDraw

    select.check_number("persons", persons, 1, 200)
    if shots is not None:
        select.check_number("shots", shots, 1, 20)
    target = picture_path(path)
    records = listing.records
    chosen = select.paired(records, np.ones(len(records), bool))
    if not len(chosen):
        raise ValueError(
            f"nobody of {listing.name!r} has images of both modalities: nothing to show"
        )
    chosen = select.spread(chosen, min(persons, len(chosen)))
    columns = np.unique(np.stack([records.modality, records.camera], axis=1), axis=0).tolist()
    shown = np.isin(records.person, chosen)
    groups = [records.person[shown], records.modality[shown], records.camera[shown]]
    most = int(np.unique(np.stack(groups, axis=1), axis=0, return_counts=True)[1].max())
    shots = min(most, shots or max(1, _COLUMNS // len(columns)))
    height, width = image_size
    captions = [_caption(listing, p) for p in chosen.tolist()]
    margin = 8 + _LETTER * max(len(line) for lines in captions for line in lines)
    block = shots * (width + 1) + _GAP
    sheet = Image.new(
        "RGB", (margin + len(columns) * block, _HEAD + len(chosen) * (height + _GAP)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    problems = []
    for k, (modality, camera) in enumerate(columns):
        left = margin + k * block
        draw.text((left + 2, 4), f"camera {camera}" if camera else "no camera", fill="black")
        draw.text((left + 2, 18), MODALITIES[modality], fill="dimgray")
    for row, person in enumerate(chosen.tolist()):
        top = _HEAD + row * (height + _GAP)
        for n, line in enumerate(captions[row]):
            draw.text((4, top + height // 2 - 12 + 12 * n), line, fill="dimgray" if n else "black")
        for k, (modality, camera) in enumerate(columns):
            rows = _shots(records, person, modality, camera, shots)
            for shot in range(shots):
                x = margin + k * block + shot * (width + 1)
                draw.rectangle((x, top, x + width - 1, top + height - 1), fill="gainsboro")
                if shot >= len(rows):
                    continue
                try:
                    picture = _opened(records.images[rows[shot]], width, height)
                # Pillow raises SyntaxError and struct.error too, depending on the format.
                except Exception as error:
                    problems.append(f"{records.name[rows[shot]]} cannot be opened: {error}")
                    draw.line((x, top, x + width - 1, top + height - 1), fill="red", width=2)
                    draw.line((x, top + height - 1, x + width - 1, top), fill="red", width=2)
                    continue
                at = x + (width - picture.width) // 2, top + (height - picture.height) // 2
                sheet.paste(picture, at)
    write_picture(sheet, target)
    return problems


def _caption(listing: Listing, person: int) -> list[str]:
    name = listing.persons[person] if listing.persons else f"{person:04d}"
    part = str(listing.part[np.flatnonzero(listing.records.person == person)[0]])
    return [name[:_NAME], part] if part in ("train", "val", "test") else [name[:_NAME]]


def _shots(records: Records, person: int, modality: int, camera: int, shots: int) -> list[int]:
    """Up to `shots` rows of a person and camera, evenly spread."""
    mine = (records.person == person) & (records.modality == modality)
    rows = np.flatnonzero(mine & (records.camera == camera))
    return select.spread(rows, min(shots, len(rows))).tolist() if len(rows) else []


def _opened(image: Any, width: int, height: int) -> Any:
    """The image as a Pillow picture in RGB that fits into the cell."""
    from PIL import Image

    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
    else:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as stored:
            picture = stored.convert("RGB")
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)
