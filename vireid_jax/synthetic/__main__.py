"""Looks at the embedded data set, or writes it to disk: see `--help`."""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime.command import answer_signals

    answer_signals()

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np

from vireid_jax import __version__
from vireid_jax.data.readers.common import check_number
from vireid_jax.data.sheet import Sheet, picture_path, write_picture
from vireid_jax.runtime import command, printable
from vireid_jax.synthetic.dataset import FIRST_PERSON, check_image_size, render_images
from vireid_jax.synthetic.scene import CAMERAS
from vireid_jax.types import MODALITIES


def contact_sheet(
    path: str | os.PathLike[str],
    *,
    ids: int = 12,
    shots: int = 2,
    split: str = "test",
    image_size: tuple[int, int] = (192, 96),
    seed: int = 0,
) -> None:
    """Renders the first people of a split, a row each, before every camera.

    Args:
      path: the picture to write; its ending picks the format, such as .png.
      ids: how many people.
      shots: images side by side for each camera.
      split: "train", "val" or "test".
      image_size: (height, width) of each image in pixels.
      seed: of the data set.

    Raises:
      ValueError: an option is out of range, or the ending is not that of a picture format.
      OSError: the file cannot be written.
    """
    check_number("ids", ids, 1, 200)
    check_number("shots", shots, 1, 20)
    if split not in FIRST_PERSON:
        raise ValueError(f"split {split!r} is unknown, expected one of {sorted(FIRST_PERSON)}")
    target = picture_path(path)
    order = sorted(CAMERAS, key=lambda camera: camera.modality)
    heads = [(f"camera {c.number}: {c.place}", MODALITIES[c.modality]) for c in order]
    people = FIRST_PERSON[split] + np.arange(ids)
    sheet = Sheet(heads, [[f"{person:04d}"] for person in people], image_size, shots=shots)
    places = list(np.ndindex(ids, len(order), shots))
    row, column, shot = np.array(places).T
    number = np.array([c.number for c in order])[column]
    images = render_images(seed, people[row], number, shot + 1, image_size=image_size)
    for place, image in zip(places, images, strict=True):
        sheet.paste(image, *place)
    write_picture(sheet.picture, target)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 96x48")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.synthetic",
        description="Render people of the embedded data set: as a contact sheet (--sheet), or as "
        "a folder tree laid out like a released data set (--out and --layout).",
    )
    add = parser.add_argument
    add("--version", action="version", version=f"vireid_jax {__version__}")
    add("--sheet", metavar="PICTURE", help="write a contact sheet, e.g. sheet.png")
    add("--out", metavar="FOLDER", help="write a data set into this new folder")
    add("--layout", choices=("sysu", "regdb", "llcm"), help="whose folders and lists --out follows")
    add("--seed", type=int, default=0, help="of people and images (default 0)")
    add(
        "--ids",
        type=int,
        default=12,
        help="people: rows of the sheet, or of each of train and test in --out (default 12)",
    )
    add("--val-ids", type=int, help="people of the validation list (--layout sysu)")
    add("--images", type=int, help="images per person and camera (default 2 on a sheet, else 10)")
    add("--image-size", type=_size, metavar="HxW", help="default 192x96 on a sheet, else 128x64")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.sheet and not args.out:
        parser.error("nothing to do: give --sheet PICTURE, or --out FOLDER with --layout")
    if bool(args.out) != bool(args.layout):
        parser.error("--out and --layout go together")
    if args.val_ids is not None and args.layout != "sysu":
        parser.error("--val-ids goes with --layout sysu only")
    try:
        if args.sheet:
            contact_sheet(
                args.sheet,
                ids=args.ids,
                shots=2 if args.images is None else args.images,
                image_size=check_image_size(args.image_size or (192, 96)),
                seed=args.seed,
            )
            print(f"wrote {args.sheet}")
        if args.out:
            from vireid_jax.synthetic.layouts import write_tree

            root = write_tree(
                args.out,
                args.layout,
                train_ids=args.ids,
                val_ids=args.val_ids,
                test_ids=args.ids,
                images=10 if args.images is None else args.images,
                image_size=args.image_size or (128, 64),
                seed=args.seed,
            )
            print(f"wrote {root}")
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command.run(main)
