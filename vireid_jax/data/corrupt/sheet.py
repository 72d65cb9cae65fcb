"""A contact sheet of the corruptions: every kind at every severity on one picture of a person."""

import os

import numpy as np
from PIL import Image, ImageDraw

from vireid_jax.data.corrupt import CORRUPTIONS, MIN_SIDE, SEVERITIES, corrupt
from vireid_jax.data.picture import picture_path, write_picture

IMAGE_SIZE = (288, 144)  # (height, width) at which the benchmark corrupts
_SHOWN = (112, 56)  # reduced, so that the sheet stays small
_GROUPS, _GAP, _HEAD, _CAPTION = 2, 2, 16, 106
_PERSON, _CAMERA, _SHOT = 904, 4, 1  # of the embedded data set: bags, bright day


def person() -> np.ndarray:
    """One visible image of the embedded data set, uint8 [288, 144, 3]."""
    # The renderer brings jax in; a sheet of one's own image does without it.
    from vireid_jax.synthetic import render_images

    rows = (np.array([n]) for n in (_PERSON, _CAMERA, _SHOT))
    return render_images(0, *rows, image_size=IMAGE_SIZE)[0]


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture, resized as the benchmark does before it corrupts: uint8 [288, 144, 3].

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a picture that can be read.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found; --image takes a picture of a person") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    height, width = IMAGE_SIZE
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def contact_sheet(
    path: str | os.PathLike[str],
    image: np.ndarray,
    *,
    seed: int = 0,
    shown: tuple[int, int] = _SHOWN,
) -> None:
    """Writes `image` and its 20 x 5 corruptions, a row for each kind, in two groups.

    Args:
      path: the picture to write; its ending picks the format, such as .png.
      image: uint8 [H, W, 3]; corrupted as it is, shown reduced.
      seed: of the corruptions' random numbers.
      shown: (height, width) in pixels of each image on the sheet.

    Raises:
      ValueError: the ending is not that of a picture format, or see `corrupt`.
      OSError: the file cannot be written.
    """
    target = picture_path(path)
    if min(shown) < MIN_SIDE:
        raise ValueError(f"shown is {shown}, expected sides of {MIN_SIDE} pixels or more")
    height, width = shown
    rows = -(-len(CORRUPTIONS) // _GROUPS)
    group = _CAPTION + (1 + len(SEVERITIES)) * (width + _GAP)
    sheet = Image.new("RGB", (_GROUPS * group + _GAP, _HEAD + rows * (height + _GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for left in range(0, _GROUPS * group, group):
        for column, text in enumerate(["clean", *map(str, SEVERITIES)]):
            pen.text((left + _CAPTION + column * (width + _GAP) + 4, 2), text, fill="dimgray")
    for index, kind in enumerate(CORRUPTIONS):
        left, top = index // rows * group, _HEAD + index % rows * (height + _GAP)
        pen.text((left + 4, top + height // 2 - 5), kind.replace("_", " "), fill="black")
        cells = [image] + [
            corrupt(image, kind, s, rng=np.random.default_rng([seed, index, s])) for s in SEVERITIES
        ]
        for column, cell in enumerate(cells):
            small = Image.fromarray(cell).resize((width, height), Image.Resampling.BOX)
            sheet.paste(small, (left + _CAPTION + column * (width + _GAP), top))
    # Noise hardly compresses: without the two lowest bits the file is a quarter smaller.
    sheet = Image.fromarray(np.asarray(sheet) & np.uint8(0xFC))
    write_picture(sheet, target, optimize=True)
