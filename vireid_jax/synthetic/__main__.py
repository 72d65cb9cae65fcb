"""Looks at the embedded data set, or writes it to disk: see `--help`."""

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np

from vireid_jax import __version__
from vireid_jax.data.sheet import Sheet, picture_path, write_picture
from vireid_jax.synthetic.dataset import FIRST_PERSON, check_count, check_image_size, render_images
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
    check_count("ids", ids, 1, 200)
    check_count("shots", shots, 1, 20)
    if split not in FIRST_PERSON:
        raise ValueError(f"split {split!r} is unknown, expected one of {sorted(FIRST_PERSON)}")
    target = picture_path(path)
    order = [c for m in (0, 1) for c in CAMERAS if c.modality == m]
    person, column, shot = (
        x.ravel()
        for x in np.meshgrid(np.arange(ids), np.arange(len(order)), np.arange(shots), indexing="ij")
    )
    numbers = np.array([c.number for c in order])
    images = render_images(
        seed, FIRST_PERSON[split] + person, numbers[column], shot + 1, image_size=image_size
    )
    heads = [(f"camera {c.number}: {c.place}", MODALITIES[c.modality]) for c in order]
    captions = [[f"{FIRST_PERSON[split] + row:04d}"] for row in range(ids)]
    sheet = Sheet(heads, captions, image_size, shots=shots)
    for p, c, s, image in zip(person, column, shot, images, strict=True):
        sheet.paste(image, int(p), int(c), int(s))
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
    parser.add_argument("--version", action="version", version=f"vireid_jax {__version__}")
    parser.add_argument("--sheet", metavar="PICTURE", help="write a contact sheet, e.g. sheet.png")
    parser.add_argument("--out", metavar="FOLDER", help="write a data set into this new folder")
    parser.add_argument(
        "--layout", choices=("sysu", "regdb", "llcm"), help="whose folders and lists --out follows"
    )
    parser.add_argument("--seed", type=int, default=0, help="of people and images (default 0)")
    parser.add_argument(
        "--ids", type=int, help="people: rows of the sheet, or of each of train and test in --out "
        "(default 12)",
    )  # fmt: skip
    parser.add_argument("--val-ids", type=int, help="people of the validation list (--layout sysu)")
    parser.add_argument(
        "--images", type=int, help="images per person and camera (default 2 on a sheet, else 10)"
    )
    parser.add_argument(
        "--image-size", type=_size, metavar="HxW", help="default 192x96 on a sheet, else 128x64"
    )
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
    ids = 12 if args.ids is None else args.ids
    try:
        if args.sheet:
            contact_sheet(
                args.sheet,
                ids=ids,
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
                train_ids=ids,
                val_ids=args.val_ids,
                test_ids=ids,
                images=10 if args.images is None else args.images,
                image_size=args.image_size or (128, 64),
                seed=args.seed,
            )
            print(f"wrote {root}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
