r"""What compilations came to: lines for people, JSON, and a Markdown table of several recipes.

The table is made of the JSON files of `python -m launch.ahead`:

  for m in smcl mun idkl agw deen pdm; do
    python -m launch.ahead --config configs/$m.py:sysu --topology v5e:1x1 \
      --scaling --largest_batch --json ahead/$m.json
  done
  python -m launch.ahead.tables ahead/*.json

Efficiency is images a second and chip without overlap, relative to one chip by itself, for the
numbers of chips that were compiled for.
"""

import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launch.ahead import hlo, roofline
from vireid_jax.runtime.command import run

if TYPE_CHECKING:  # the table of files needs no JAX
    from launch.ahead import programs

_LARGEST = 5  # collectives shown of each kind
_NAME = 120  # letters of an operation's name


def as_json(
    program: "programs.Program",
    groups: Mapping[str, Sequence[hlo.Collective]] | None,
    time: roofline.Estimate | None,
) -> dict[str, Any]:
    """Everything known of a program, of plain types."""
    found: dict[str, Any] = {
        "fits": program.fits,
        "memory_bytes": program.memory,
        "flops_per_chip": program.flops,
        "bytes_accessed_per_chip": program.bytes_accessed,
        "memory_traffic_per_chip": program.traffic,
        "compile_seconds": round(program.seconds, 1),
    }
    if program.error:
        found["error"] = program.error
    if groups is not None and not program.error:
        found["collectives"] = {
            name: {
                "operations": sum(abs(c.times) for c in members),
                "bytes": sum(abs(c.times) * c.bytes for c in members),
                "list": [_collective(c) for c in _by_size(members)],
            }
            for name, members in groups.items()
        }
    if time is not None:
        both = {"serial": time.serial, "overlapped": time.overlapped}
        found["seconds"] = time._asdict() | both
    return found


def program_lines(
    title: str,
    program: "programs.Program",
    groups: Mapping[str, Sequence[hlo.Collective]] | None,
    target: "programs.Devices",
) -> list[str]:
    """Memory, arithmetic and collectives of a program."""
    lines = ["", f"{title} (compiled in {program.seconds:.0f} s)"]
    if program.error:
        return [*lines, f"  does not fit: {program.error}"]
    m = program.memory
    of = ""
    if target.chip is not None:
        share = m["peak"] / target.chip.memory
        verdict = "fits" if program.fits else "DOES NOT FIT"
        of = f" of {size(target.chip.memory)}, {share:.0%}: {verdict}"
    lines += [
        f"  memory per chip      {size(m['peak'])}{of}",
        f"    arguments {size(m['arguments'])}, outputs {size(m['outputs'])}, temporaries "
        f"{size(m['temporaries'])}, code {size(m['code'])}; donated {size(m['aliased'])}",
    ]
    if program.flops is not None:
        lines.append(f"  arithmetic per chip  {program.flops / 1e9:,.1f} GFLOP a step")
    if program.bytes_accessed is not None and program.traffic is not None:
        lines.append(
            f"  memory traffic       {size(program.traffic)} a step and chip (XLA's count of bytes "
            f"accessed, with what stays on the cores: {size(program.bytes_accessed)})"
        )
    for name, members in (groups or {"all": program.collectives}).items():
        lines.append(f"  collectives, {name}: {_sum(members)}")
        for collective in _by_size(members)[: _LARGEST if name != hlo.OTHER else 99]:
            lines.append(f"    {_line(collective)}")
    return lines


def time_lines(
    time: roofline.Estimate | None, *, images: int, dtype: str, target: "programs.Devices"
) -> list[str]:
    """The roofline estimate of a step over `images` images."""
    if time is None or target.chip is None:
        return ["", f"no figures for this chip ({target.kind}): no estimate of time"]
    rate = dtype if dtype in target.chip.peak else "bfloat16"
    note = "" if rate == dtype else f"; {dtype} operands are rounded to it by default"
    lines = [
        "",
        f"roofline estimate ({target.chip.source}; multiplying in {rate}{note})",
        f"  compute {ms(time.compute)}, memory {ms(time.memory)}: "
        f"bound by {'compute' if time.compute > time.memory else 'memory'}",
    ]
    if len(target.devices) > 1:
        lines.append(
            f"  between chips {ms(time.transfer)} of transfer, {ms(time.latency)} of latency "
            f"({roofline.HOP * 1e6:.0f} us a hop)"
        )
    return [
        *lines,
        f"  step {ms(time.serial)} without overlap, {images / time.serial:,.0f} images/s; "
        f"{ms(time.overlapped)} with all of it, {images / time.overlapped:,.0f} images/s",
        "  a lower bound: no real step keeps the matrix units busy all the time",
    ]


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit, name in ((roofline.GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{1e3 * seconds:.2f} ms"


def _by_size(members: Sequence[hlo.Collective]) -> list[hlo.Collective]:
    return sorted(members, key=lambda c: -abs(c.times) * c.bytes)


def _sum(members: Sequence[hlo.Collective]) -> str:
    if not members:
        return "none"
    kinds: dict[str, int] = {}
    for collective in members:
        kinds[collective.kind] = kinds.get(collective.kind, 0) + abs(collective.times)
    total = sum(abs(c.times) * c.bytes for c in members)
    return f"{', '.join(f'{n} {kind}' for kind, n in kinds.items())}; {size(total)} a step"


def _line(collective: hlo.Collective) -> str:
    shown = _arrays(collective)[:3]
    if len(collective.arrays) > 3:
        shown.append(f"and {len(collective.arrays) - 3} more")
    times = {1: "", -1: ", in a loop of unknown length"}.get(
        collective.times, f", {abs(collective.times)} times"
    )
    # Of collectives that the compiler joined it joins the names, too.
    name = collective.name if len(collective.name) <= _NAME else f"{collective.name[:_NAME]} ..."
    origin = f"  {name}" if name else ""
    what = f"{collective.kind} {', '.join(shown)}"
    return f"{what}: {size(collective.bytes)}{times}{origin}"


def _arrays(collective: hlo.Collective) -> list[str]:
    return [f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in collective.arrays]


def _collective(collective: hlo.Collective) -> dict[str, Any]:
    return {
        "kind": collective.kind,
        "arrays": _arrays(collective),
        "numbers": sum(math.prod(a.shape) for a in collective.arrays),
        "bytes": collective.bytes,
        "times": collective.times,
        "group": collective.group,
        "op_name": collective.name,
    }


# --- The table of several recipes -------------------------------------------------------

CHIPS = (8, 32, 128, 256)
_HEAD = (
    "method | batch | pixels | memory | TFLOP | between chips | "
    + " | ".join(str(n) for n in CHIPS)
    + " | largest | with remat"
)


def table(recipes: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a Markdown table, of figures as `launch.ahead --json` writes them."""
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
        "-"
        if memory is None
        else f"{memory / roofline.GIB:.1f} GiB{'' if step['fits'] else ', no'}",
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
        expected = "expected files that python -m launch.ahead --json=FILE wrote"
        print(f"error: {type(error).__name__} {error}; {expected}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
