"""Looks at the corruptions: see `--help`."""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.data.corrupt",
        description="Show the 20 corruptions at 5 severities on one image, as they look at "
        "288 x 144 pixels.",
    )
    parser.add_argument(
        "--sheet", metavar="PICTURE", required=True, help="contact sheet to write, e.g. sheet.png"
    )
    parser.add_argument(
        "--image", metavar="FILE", help="a picture of a person (default: one is rendered)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    args = parser.parse_args(argv)
    from vireid_jax.data.corrupt import sheet

    try:
        image = sheet.person() if args.image is None else sheet.read(args.image)
        sheet.contact_sheet(args.sheet, image, seed=args.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
