r"""A Markdown table of several recipes, from the JSON files of `launch.ahead.compile_ahead`.

  for m in smcl mun idkl agw deen pdm; do
    python -m launch.ahead.compile_ahead --config configs/$m.py:sysu --topology v5e:1x1 \
      --scaling --largest_batch --json ahead/$m.json
  done
  python -m launch.ahead.table ahead/*.json

Efficiency is images a second and chip without overlap, relative to one chip by itself, for the
numbers of chips that were compiled for.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from launch.ahead import chips

CHIPS = (8, 32, 128, 256)
_HEAD = (
    "method | batch | pixels | memory | TFLOP | between chips | "
    + " | ".join(str(n) for n in CHIPS)
    + " | largest | with remat"
)


def table(recipes: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a Markdown table.

    Args:
      recipes: figures as `launch.ahead.compile_ahead --json` writes them.
    """
    head = [f"| {_HEAD} |", "|" + "---|" * (_HEAD.count("|") + 1)]
    return "\n".join([*head, *map(row, recipes)])


def row(figures: Mapping[str, Any]) -> str:
    """One recipe."""
    step = figures["step"]
    memory = step["memory_bytes"].get("peak")
    height, width = figures["image_size"]
    cells = [
        figures["recipe"],
        f"{step['num_ids']} x {step['num_instances']}",
        f"{height} x {width}",
        "-" if memory is None else f"{memory / chips.GIB:.1f} GiB{'' if step['fits'] else ', no'}",
        "-" if step["flops_per_chip"] is None else f"{step['flops_per_chip'] / 1e12:.2f}",
    ]
    points = {point["chips"]: point for point in figures.get("scaling", [])}
    sent = [
        collective_bytes(point) for _, point in sorted(points.items()) if "collectives" in point
    ]
    cells.append(", ".join(f"{size / 1e6:.0f}" for size in sent) + " MB" if sent else "-")
    cells += [efficiency(step, points, n) for n in CHIPS]
    for kind in ("plain", "remat"):
        found = figures.get("largest_batch", {}).get(kind)
        cells.append(largest(found) if found else "-")
    return f"| {' | '.join(cells)} |"


def collective_bytes(point: Mapping[str, Any]) -> int:
    """Bytes that the collectives of a step return on every chip."""
    return sum(group["bytes"] for group in point["collectives"].values())


def efficiency(step: Mapping[str, Any], points: Mapping[int, Mapping[str, Any]], count: int) -> str:
    """Of `count` chips, if that was compiled for."""
    if count not in points or "seconds" not in points[count] or "seconds" not in step:
        return "-"
    alone = max(step["seconds"]["compute"], step["seconds"]["memory"])
    share = f"{alone / points[count]['seconds']['serial']:.0%}"
    return share if points[count]["fits"] else f"{share}, does not fit"


def largest(found: Mapping[str, Any]) -> str:
    """The largest batch, and what was refused."""
    if found["num_ids"] is None:
        return f"under {found['refused_num_ids']} x {found['num_instances']}"
    # What is refused need not be the next: "at least" unless the two are close.
    refused = found["refused_num_ids"]
    close = refused is not None and refused <= 1.05 * found["num_ids"] + 1
    size = f"{found['num_ids']} x {found['num_instances']}"
    return size if close else f">= {size}"


def main(argv: Sequence[str]) -> int:
    """Prints the table of the files that are named."""
    if not argv or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv else 2
    try:
        print(table([json.loads(pathlib.Path(name).read_text()) for name in argv]))
    except (OSError, ValueError, KeyError) as error:
        print(
            f"error: {type(error).__name__} {error}; expected files that", end=" ", file=sys.stderr
        )
        print("python -m launch.ahead.compile_ahead --json=FILE wrote", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
