"""Checks, prepares or shows a data set on disk: see `--help`."""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime.command import answer_signals

    answer_signals()

import argparse
import os
import sys
from collections.abc import Sequence

from vireid_jax import __version__
from vireid_jax.data import thermal
from vireid_jax.data.readers import READERS, common, get_reader, sysu
from vireid_jax.runtime import indented, printable
from vireid_jax.runtime.command import run

_SHOWN = 20  # unreadable files that `check` names


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 288x144")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.data",
        description="Check a data set against its release, prepare it for training, or show it.",
    )
    parser.add_argument("--version", action="version", version=f"vireid_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="compare with the release, and name what is missing or wrong",
        description="Compares a data set with its release. Exit status 1 if anything differs.",
    )
    prepare = commands.add_parser(
        "prepare",
        help="write the images into a few large files, once",
        description="Writes the images into ArrayRecord files and, with --size, decoded into one "
        "file besides. Training from the tree decodes on first use and prepares nothing. Needs "
        "tensorflow_datasets: pip install 'vireid_jax[data]'.",
    )
    show = commands.add_parser(
        "show",
        help="draw a contact sheet and print a summary",
        description="Draws persons (rows) before the cameras (columns) and prints a summary.",
    )
    root = "its folder as released; for folders that of your images, or a CSV file"
    levels = "of 16-bit images: full (default), image (each one's own) or LOW:HIGH"
    for command in (check, prepare, show):
        command.add_argument("name", choices=tuple(READERS), help="of the data set")
        command.add_argument("--root", required=True, metavar="DIR", help=root)
        command.add_argument("--thermal-range", default=thermal.FULL, metavar="R", help=levels)
    option = check.add_argument
    option("--decode", action="store_true", help="open and count every image, not some of them")
    option("--rand-perm", metavar="FILE", help="rand_perm_cam.mat, to be compared too (sysu)")
    option = prepare.add_argument
    where = "(default: ${}, else the user's cache folder)"
    option("--out", metavar="DIR", help=f"for the prepared files {where.format('VIREID_DATA')}")
    unreadable = "images that cannot be decoded (default refuse)"
    option("--unreadable", choices=("refuse", "skip"), default="refuse", help=unreadable)
    anyway = "go on although something differs from the release"
    option("--no-strict", dest="strict", action="store_false", help=anyway)
    option("--size", type=_size, metavar="HxW", help="decode to this size, too")
    resizing = "of resizing (default lanczos)"
    option("--filter", choices=("lanczos", "bilinear"), default="lanczos", help=resizing)
    option("--cache", metavar="DIR", help=f"for the decoded images {where.format('VIREID_CACHE')}")
    option = show.add_argument
    option("--sheet", required=True, metavar="PICTURE", help="the picture to write, e.g. sheet.png")
    option("--persons", type=int, default=8, help="rows (default 8)")
    option("--shots", type=int, help="images of a camera (default: what fits)")
    return parser


def _scan(args: argparse.Namespace, *, strict: bool = False) -> common.Listing:
    thermal.check_range(args.thermal_range)
    return thermal.ranged(get_reader(args.name).scan(args.root, strict=strict), args.thermal_range)


def _check(args: argparse.Namespace) -> int:
    from vireid_jax.data import cache
    from vireid_jax.data.datasets import progress
    from vireid_jax.data.survey import survey

    reader = get_reader(args.name)
    listing = _scan(args)
    checks = list(listing.checks)
    if args.rand_perm:
        checks += sysu.permutations(listing, args.rand_perm)
    where = printable(os.path.abspath(args.root))
    print(f"{reader.TITLE} in {where}: {len(listing.records):,} images")
    print(printable(common.table(checks)))
    wrong = [c for c in checks if c.required and not c.ok]
    _print_problems([*common.beyond_checks(listing), *common.exchanged(listing)])
    unreadable: cache.LeftOut = []
    if args.decode:
        unreadable = cache.look_at(listing, progress=progress("decoding"))
        print(f"{len(unreadable):,} of {len(listing.records):,} images cannot be decoded")
        if unreadable:
            print(printable(indented([line for _, line in unreadable], _SHOWN)))
    _print_problems(survey(listing, every=args.decode, progress=progress("looking at images")))
    if wrong:
        print(f"{len(wrong)} of {len(checks)} checks differ; the data set: {reader.AGREEMENT}")
    return 1 if wrong or unreadable else 0


def _prepare(args: argparse.Namespace) -> int:
    from vireid_jax.data import cache, prepared
    from vireid_jax.data.datasets import progress
    from vireid_jax.data.survey import survey
    from vireid_jax.runtime import files

    listing = _scan(args, strict=args.strict)
    _print_problems([*listing.problems, *common.exchanged(listing), *survey(listing)])
    ready = listing
    # With --size alone, only what training from the tree would decode on first use.
    if args.out or not args.size:
        ready = prepared.prepare(
            listing, out=args.out, unreadable=args.unreadable, progress=progress("preparing")
        )
        print(f"prepared {len(ready.records):,} images in {ready.records.images.folder}")
        out = args.out or prepared.default_folder()
        flags = f"--config.data.prepared={out}"
        flags += "" if args.strict else " --config.data.strict=False"
        flags += "" if args.unreadable == "refuse" else " --config.data.unreadable=skip"
        print(f"to train on it: {flags} (--config.data.root is not needed)")
    if args.size:
        ready = cache.decode_once(
            ready,
            image_size=args.size,
            filter=args.filter,
            folder=args.cache,
            unreadable=args.unreadable,
            progress=progress("decoding"),
        )
        gigabytes = ready.records.images.array.nbytes / 1e9
        folder = args.cache or files.user_folder("VIREID_CACHE")
        print(f"decoded to {args.size[0]} x {args.size[1]}: {gigabytes:.2f} GB in {folder}")
    _print_problems([line for line in ready.problems if line not in listing.problems])
    return 0


def _show(args: argparse.Namespace) -> int:
    from vireid_jax.data import sheet
    from vireid_jax.data.datasets import records_summary

    listing = _scan(args)
    crossed = sheet.contact_sheet(listing, args.sheet, persons=args.persons, shots=args.shots)
    print(records_summary(get_reader(args.name).split(listing)))
    _print_problems([*listing.problems, *crossed])
    print(f"wrote {args.sheet}")
    return 0


def _print_problems(problems: Sequence[str]) -> None:
    for line in problems:
        print(printable(f"note: {line}"))


_COMMANDS = {"check": _check, "prepare": _prepare, "show": _show}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "rand_perm", None) and args.name != "sysu":
        parser.error("--rand-perm goes with sysu only")
    try:
        return _COMMANDS[args.command](args)
    except (ValueError, OSError, ImportError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1


if __name__ == "__main__":
    run(main)
