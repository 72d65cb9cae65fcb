"""Shows every corruption at every severity on one picture of a person: see `--help`."""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime.command import answer_signals

    answer_signals()

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vireid_jax import __version__
from vireid_jax.data import decoding
from vireid_jax.data.corrupt import KINDS, SEVERITIES, corrupt
from vireid_jax.data.sheet import Sheet, picture_path, write_picture
from vireid_jax.runtime import command, printable

IMAGE_SIZE = (288, 144)  # (height, width) at which the benchmark corrupts
_SHOWN = (112, 56)  # reduced, so that the sheet stays small
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
        picture = decoding.upright(path).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found; --image takes a picture of a person") from None
    # Pillow raises SyntaxError and struct.error too, depending on the format.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return np.asarray(picture.resize(IMAGE_SIZE[::-1], Image.Resampling.LANCZOS))


def contact_sheet(path: str | os.PathLike[str], image: np.ndarray, *, seed: int = 0) -> None:
    """Writes `image` and its 20 x 5 corruptions, a row for each kind, in two groups.

    Args:
      path: the picture to write; its ending picks the format, such as .png.
      image: uint8 [H, W, 3]; corrupted as it is, shown reduced.
      seed: of the corruptions' random numbers.

    Raises:
      ValueError: the ending is not that of a picture format, or see `corrupt`.
      OSError: the file cannot be written.
    """
    target = picture_path(path)
    heads = [[text] for text in ("clean", *map(str, SEVERITIES))]
    halves = []
    for first in (0, len(KINDS) // 2):
        half = KINDS[first : first + len(KINDS) // 2]
        sheet = Sheet(heads, [kind.split("_") for kind in half], _SHOWN)
        for row, kind in enumerate(half):
            for severity in (0, *SEVERITIES):
                rng = np.random.default_rng([seed, first + row, severity])
                cell = corrupt(image, kind, severity, rng=rng) if severity else image
                small = Image.fromarray(cell).resize(_SHOWN[::-1], Image.Resampling.BOX)
                sheet.paste(small, row, severity)
        halves.append(np.asarray(sheet.picture))
    # Noise hardly compresses: without the two lowest bits the file is a quarter smaller.
    whole = np.concatenate(halves, axis=1) & np.uint8(0xFC)
    write_picture(Image.fromarray(whole), target, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.data.corrupt",
        description="Show the 20 corruptions at 5 severities on one image, as they look at "
        "288 x 144 pixels.",
    )
    parser.add_argument("--version", action="version", version=f"vireid_jax {__version__}")
    parser.add_argument(
        "--sheet", metavar="PICTURE", required=True, help="contact sheet to write, e.g. sheet.png"
    )
    parser.add_argument(
        "--image", metavar="FILE", help="a picture of a person (default: one is rendered)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    args = parser.parse_args(argv)
    try:
        image = person() if args.image is None else read(args.image)
        contact_sheet(args.sheet, image, seed=args.seed)
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    print(f"wrote {args.sheet}")
    return 0


if __name__ == "__main__":
    command.run(main)
