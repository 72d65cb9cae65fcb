"""Looks at the embedded data set, or writes it to disk: see `--help`."""

import argparse
import sys
from collections.abc import Sequence


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
            from vireid_jax.synthetic.dataset import check_image_size
            from vireid_jax.synthetic.sheet import contact_sheet

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
