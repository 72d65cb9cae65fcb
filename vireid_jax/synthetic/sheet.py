"""A contact sheet of the embedded data set: rows are people, columns cameras."""

import os

import numpy as np

from vireid_jax.data.picture import picture_path, write_picture
from vireid_jax.synthetic.cameras import CAMERAS
from vireid_jax.synthetic.dataset import FIRST_PERSON, check_count, render_images
from vireid_jax.types import MODALITIES

_MARGIN, _GAP, _HEAD = 40, 3, 34


def contact_sheet(
    path: str | os.PathLike[str],
    *,
    ids: int = 12,
    shots: int = 2,
    split: str = "test",
    image_size: tuple[int, int] = (192, 96),
    seed: int = 0,
) -> None:
    """Renders `shots` images of the first `ids` people of a split before every camera.

    Args:
      path: the picture to write; its ending picks the format, such as .png.
      ids: rows.
      shots: images side by side for each camera.
      split: "train", "val" or "test".
      image_size: (height, width) of each image in pixels.
      seed: of the data set.

    Raises:
      ValueError: an option is out of range, or the ending is not that of a picture format.
      OSError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    check_count("ids", ids, 1, 200)
    check_count("shots", shots, 1, 20)
    if split not in FIRST_PERSON:
        raise ValueError(f"split {split!r} is unknown, expected one of {sorted(FIRST_PERSON)}")
    target = picture_path(path)
    height, width = image_size
    order = [c for m in (0, 1) for c in CAMERAS if c.modality == m]
    person, column, shot = (
        x.ravel()
        for x in np.meshgrid(np.arange(ids), np.arange(len(order)), np.arange(shots), indexing="ij")
    )
    numbers = np.array([c.number for c in order])
    images = render_images(
        seed, FIRST_PERSON[split] + person, numbers[column], shot + 1, image_size=image_size
    )
    block = shots * width + _GAP
    sheet = Image.new("RGB", (_MARGIN + len(order) * block, _HEAD + ids * (height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, camera in enumerate(order):
        x = _MARGIN + k * block + 2
        draw.text((x, 4), f"camera {camera.number}: {camera.place}", fill="black")
        draw.text((x, 18), MODALITIES[camera.modality], fill="dimgray")
    for row in range(ids):
        y = _HEAD + row * (height + _GAP) + height // 2 - 5
        draw.text((4, y), f"{FIRST_PERSON[split] + row:04d}", fill="black")
    for p, c, s, image in zip(person, column, shot, images, strict=True):
        at = _MARGIN + c * block + s * width, _HEAD + p * (height + _GAP)
        sheet.paste(Image.fromarray(image), (int(at[0]), int(at[1])))
    write_picture(sheet, target)
