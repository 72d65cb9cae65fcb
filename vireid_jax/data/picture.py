"""Writing a picture whole or not at all, to a place that was looked at before it was drawn."""

import os
import pathlib
from typing import Any

from vireid_jax.runtime import files


def picture_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, if a picture can be written there.

    Raises:
      ValueError: its ending is not that of a picture format.
      FileNotFoundError: its folder does not exist.
    """
    from PIL import Image  # only users of pictures need Pillow

    target = pathlib.Path(path)
    if target.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{target} does not end like a picture, expected a name such as sheet.png")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first")
    return target


def write_picture(picture: Any, target: pathlib.Path, *, optimize: bool = False) -> None:
    """Saves a Pillow picture under another name first, so that half of it is never there.

    Args:
      picture: a Pillow picture.
      target: from `picture_path`.
      optimize: take longer for a smaller file.

    Raises:
      OSError: it cannot be written; nothing is left behind.
    """
    from PIL import Image

    kind = Image.registered_extensions()[target.suffix.lower()]
    files.write_whole(target, lambda file: picture.save(file, kind, optimize=optimize))
