"""What the parts of PDM's network cost in time, and other forms of them at the same numbers.

  python -m benchmarks.expansion                     ResNet-50 at 384 x 192, four pairs of images
  python -m benchmarks.expansion --size main         the recipe of the embedded data
  python -m benchmarks.expansion --pairs 2 --repeats 1
  python -m benchmarks.expansion --parts mfgm mfgm_listed
  python -m benchmarks.expansion --whole             and the whole pass, which takes long to compile

A pair is a visible and an infrared image. Times are of value and gradient of each part, with
respect to its parameters and its maps, as the main job runs it (every core of a CPU is a device).
The first table has the parts that make up the pass, and each one's share of their sum; below the
line are pieces of MFGM, the dropout that the step benchmark leaves out, and the whole pass. The
second sets forms of the same numbers against each other:

  DEEN's attention    theta (phi^T g) as it is used where that is cheaper; (theta phi^T) g as the
                      released code has it, with a matrix of places by places for each image;
                      after layer3 of the paper's size that is cheaper, and both are one
  49 x 49 attention   one matrix of places by places; a convolution
  branches            an axis of kernels and maps; a Python list of branches, one after the other

Parts take turns when there are several repeats. Where others use the machine too, CPU-seconds tell
more than seconds. PyTorch is not needed.
"""

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import candidates, step
from benchmarks.expansion_parts import FORMS, NETWORK, parts
from benchmarks.generator import abstract, compile_part, temp_mb
from benchmarks.generator_parts import Part
from tests.support.reference.case import fill
from tests.support.reference.convert import flatten, nest
from vireid_jax.runtime import devices

TOLERANCE = 1e-3  # of values of two forms, relative


class Program:
    """A compiled part with its inputs on the devices."""

    def __init__(self, part: Part) -> None:
        """Compiles, and fills weights and maps with seeded numbers."""
        self.part = part
        start = time.perf_counter()
        self.compiled, mesh = compile_part(part)
        self.row: dict[str, Any] = {
            "part": part.name,
            "compile_s": time.perf_counter() - start,
            **temp_mb(self.compiled, mesh),
        }
        variables, maps = abstract(part)
        # One seed: forms of one part get the same weights, as they have the same names.
        filled = fill({k: v.shape for k, v in flatten(variables).items()}, "expansion")
        self.weights = devices.place({"params": {}, **nest(filled)}, mesh)
        r = np.random.default_rng(0)
        values = {str(n): r.standard_normal(m.shape, np.float32) for n, m in enumerate(maps)}
        self.maps = list(devices.to_global(values, mesh).values())
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self) -> None:
        """Runs once; the first run is not timed.

        Raises:
          RuntimeError: the value is not finite.
        """
        start = time.perf_counter(), time.process_time()
        value = float(jax.block_until_ready(self.compiled(self.weights, self.maps))[0])
        if not np.isfinite(value):
            raise RuntimeError(f"the value of {self.part.name!r} is {value}")
        if "value" in self.row:
            self.wall.append(time.perf_counter() - start[0])
            self.cpu.append(time.process_time() - start[1])
        self.row["value"] = value

    def result(self) -> dict[str, Any]:
        """A row of the report."""
        medians = {
            "median_wall_s": statistics.median(self.wall),
            "median_cpu_s": statistics.median(self.cpu),
        }
        return {**self.row, "wall_s": self.wall, "cpu_s": self.cpu, **medians}


def measure(found: dict[str, Part], repeats: int) -> dict[str, dict[str, Any]]:
    """Times and temporary memory by key; parts take turns."""
    programs = {key: Program(part) for key, part in found.items()}
    for _ in range(1 + repeats):
        for program in programs.values():
            program.run()
    rows = {key: program.result() for key, program in programs.items()}
    for one, other in FORMS.items():
        if one in rows and other in rows:
            check_same(rows[one], rows[other])
    return rows


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises RuntimeError unless two forms have one value."""
    if not np.allclose(one["value"], other["value"], rtol=TOLERANCE, atol=0):
        raise RuntimeError(
            f"{one['part']!r} and {other['part']!r} are not one thing: values {one['value']} and "
            f"{other['value']}"
        )


# --- Report -----------------------------------------------------------------------------


def time_table(rows: dict[str, dict[str, Any]], images: int) -> str:
    """Markdown; shares are of the sum of the parts that make up the pass, if all are there."""
    whole = all(k in rows for k in NETWORK)
    total = sum(rows[k]["median_wall_s"] for k in NETWORK) if whole else 0.0
    lines = [
        "| value and gradient | s, median | CPU-s | ms an image | share | XLA temp MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]

    def line(name: str, wall: float, cpu: float, temp: str) -> str:
        share = f"{100 * wall / total:.0f} %" if whole else ""
        each = 1000 * wall / images
        return f"| {name} | {wall:.3f} | {cpu:.3f} | {each:.1f} | {share} | {temp} |"

    def row(key: str) -> str:
        r = rows[key]
        temp = f"{r['temp_mb']:.0f}" if "temp_mb" in r else ""
        return line(r["part"], r["median_wall_s"], r["median_cpu_s"], temp)

    lines += [row(k) for k in NETWORK if k in rows]
    if whole:
        cpu = sum(rows[k]["median_cpu_s"] for k in NETWORK)
        lines.append(line("sum", total, cpu, ""))
    forms = set(FORMS.values())
    lines += [row(k) for k in rows if k not in NETWORK and k not in forms]
    return "\n".join(lines)


def form_table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown; ratios are of the form in use over the other, below 1 is better for it."""
    lines = [
        "| form in use | other form | s | other s | ratio | CPU-s ratio | XLA temp MB | other MB "
        "| ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def ratio(a: dict[str, Any], b: dict[str, Any], key: str) -> str:
        return f"{a[key] / b[key]:.2f}" if b[key] else ""

    for one, other in FORMS.items():
        if one not in rows or other not in rows:
            continue
        a, b = rows[one], rows[other]
        line = f"| {a['part']} | {b['part']} | {a['median_wall_s']:.3f} | {b['median_wall_s']:.3f} "
        line += f"| {ratio(a, b, 'median_wall_s')} | {ratio(a, b, 'median_cpu_s')} "
        if "temp_mb" in a:
            line += f"| {a['temp_mb']:.1f} | {b['temp_mb']:.1f} | {ratio(a, b, 'temp_mb')} |"
        else:
            line += "| | | |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=step.SIZES, default="paper")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of images, 2 or more")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs after a first one")
    parser.add_argument("--parts", nargs="+", help="of these parts alone, by key")
    parser.add_argument("--whole", action="store_true", help="the whole pass too")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("runs/expansion.json"))
    flags = parser.parse_args()
    if flags.pairs < 2 or flags.repeats < 1:
        parser.error(
            f"--pairs {flags.pairs} --repeats {flags.repeats}, expected 2 or more pairs (losses "
            "need two identities) and 1 or more repeats"
        )
    devices.use_cpu_cores(flags.pairs)
    found = parts(candidates.settings("pdm", flags.size), flags.pairs)
    chosen = flags.parts or [k for k in found if k != "whole" or flags.whole]
    if unknown := set(chosen) - set(found):
        parser.error(f"no parts {sorted(unknown)}; there are {', '.join(found)}")
    report: dict[str, Any] = {
        "machine": step.machine(),
        "size": flags.size,
        "pairs": flags.pairs,
        "devices": jax.device_count(),
    }
    print(json.dumps(report["machine"]))
    report["rows"] = measure({k: part for k, part in found.items() if k in chosen}, flags.repeats)
    print(f"\n{flags.pairs} pairs of images, {jax.device_count()} devices\n")
    print(time_table(report["rows"], 2 * flags.pairs))
    print("\n" + form_table(report["rows"]))
    flags.json.parent.mkdir(parents=True, exist_ok=True)
    flags.json.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {flags.json}")


if __name__ == "__main__":
    main()
