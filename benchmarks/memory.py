"""Bytes of device memory that a train step needs, with and without remat and accumulate.

  python -m benchmarks.memory                                 every method, for an H100 and for v5e
  python -m benchmarks.memory --topologies cpu:1              by the buffers of XLA's CPU compiler
  python -m benchmarks.memory --methods agw --variants plain remat --dtypes bfloat16

The step is that of the recipe for SYSU-MM01, as `python -m launch.ahead` compiles it: no chip has
to be there, and nothing is timed. Bytes are those of the compiled program: arguments, outputs and
temporary memory, each byte that is used twice counted once. They leave out what no compiler knows
before a chip is there: the workspace of cuDNN's convolutions, and the CUDA context.

Bytes are nearly linear in the batch. Each variant is compiled at the recipe's number of identities
P and at twice that, and the largest P that fits is read off the line. `--check` compiles at three
times the number, too, and states how far off the line is.

A compilation takes about a minute on one core. `--keep` names a folder of what was compiled before.
The compilers are packages of their own; see `python -m launch.ahead --help`.
"""

import argparse
import copy
import importlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import report
from benchmarks.candidates import METHODS
from launch.ahead import roofline

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "remat": {"remat": True},
    "accumulate 2": {"accumulate": 2},
    "accumulate 4": {"accumulate": 4},
}
# What a card of that name has for a program: a part is the CUDA context's and the driver's.
GPUS = {"24 GB": 24 * 10**9, "80 GB": 80 * 10**9}


def limits(topology: str) -> dict[str, int]:
    """Memories that the programs of a topology are held against, in bytes by name."""
    parsed = roofline.parse(topology)
    if parsed.kind in roofline.TPUS:
        return {parsed.kind: roofline.TPUS[parsed.kind].memory}
    return GPUS


def fitting(
    points: Mapping[int, int], limit: int, *, first: int, most: int, rows: int, chunks: int
) -> int:
    """The largest number of identities whose bytes fit, on the line through two points.

    Args:
      points: {identities: bytes}, two at least; the line goes through the first two.
      limit: bytes there are.
      first: fewest identities that a batch may have.
      most: identities there are.
      rows: of an identity.
      chunks: that the rows of a batch have to divide into.

    Returns:
      The number; 0 if not even `first` fit.
    """
    (n0, b0), (n1, b1) = sorted(points.items())[:2]
    slope = (b1 - b0) / (n1 - n0)
    reach = most if slope <= 0 else min(most, n0 + math.floor((limit - b0) / slope))
    reach -= reach % (chunks // math.gcd(chunks, rows))
    return reach if reach >= first and (slope > 0 or b0 <= limit) else 0


def off_the_line(points: Mapping[int, int]) -> float | None:
    """How far a third point is from the line through the first two, as a share; None without."""
    if len(points) < 3:
        return None
    (n0, b0), (n1, b1), (n2, b2) = sorted(points.items())[:3]
    return (b0 + (b1 - b0) * (n2 - n0) / (n1 - n0)) / b2 - 1


def row_of(
    method: str, variant: str, dtype: str, topology: str, check: bool, keep: pathlib.Path | None
) -> dict[str, Any]:
    """Compiles one variant at two or three batches.

    Returns:
      Plain figures, with "points" {identities: bytes} and "largest" {name of a memory: identities}.

    Raises:
      ValueError: the compiler is not there; the message says how to get it.
    """
    from launch.ahead import programs
    from vireid_jax.runtime.devices import make_mesh

    config = importlib.import_module(f"configs.{method}").get_config("sysu")
    config.method.dtype = dtype
    config.devices.update(VARIANTS[variant])
    facts = programs.facts(config)
    target = programs.find_devices(roofline.parse(topology))
    mesh = make_mesh(target.devices)
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    points, seconds, figures = {}, 0.0, {}
    for times in (1, 2, 3)[: 3 if check else 2]:
        larger = copy.deepcopy(config)
        larger.sampler.num_ids = times * ids
        program = programs.train_step(programs.assemble(larger, facts, mesh), target, keep)
        points[times * ids] = program.memory["peak"]
        seconds += program.seconds
        if times == 1:
            figures = program.memory
    fit = dict(first=2, most=facts.classes, rows=instances, chunks=config.devices.accumulate)
    return {
        "method": method,
        "variant": variant,
        "dtype": dtype,
        "topology": topology,
        "num_ids": ids,
        "num_instances": instances,
        "image_size": list(config.data.image_size),
        "points": points,
        "memory": figures,
        "off_the_line": off_the_line(points),
        "largest": {k: fitting(points, v, **fit) for k, v in limits(topology).items()},
        "compile_s": round(seconds, 1),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """A table for each dtype: a line for each method and variant, all topologies beside it."""
    return "\n\n".join(
        f"Compute in {dtype}:\n\n{_table([r for r in found['rows'] if r['dtype'] == dtype])}"
        for dtype in dict.fromkeys(r["dtype"] for r in found["rows"])
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    topologies = list(dict.fromkeys(r["topology"] for r in rows))
    header = ["method", "images", "step"]
    for name in topologies:
        header += [f"{name}, GiB", "an identity more, GiB"]
        header += [f"P in {memory}" for memory in limits(name)]
    lines: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for r in rows:
        lines.setdefault((r["method"], r["variant"]), {})[r["topology"]] = r
    body = []
    for (method, variant), of in lines.items():
        any_row = next(iter(of.values()))
        height, width = any_row["image_size"]
        batch = f"{any_row['num_ids']} x {any_row['num_instances']} of {height} x {width}"
        cells = [method, batch, variant]
        for name in topologies:
            if name not in of:
                cells += [""] * (2 + len(limits(name)))
                continue
            (n0, b0), (n1, b1) = sorted((int(n), b) for n, b in of[name]["points"].items())[:2]
            cells += [f"{b0 / 2**30:.2f}", f"{(b1 - b0) / (n1 - n0) / 2**30:.3f}"]
            cells += [str(of[name]["largest"][k] or "none") for k in limits(name)]
        body.append(cells)
    return report.table(header, body, left=3)


def main() -> None:
    """Parses the command line, compiles, and writes after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument(
        "--topologies", nargs="+", default=["h100", "v5e:1x1"], help="see launch.ahead"
    )
    parser.add_argument("--check", action="store_true", help="compile at a third batch, too")
    parser.add_argument("--keep", type=pathlib.Path, help="folder of what was compiled before")
    report.options(parser)
    flags = parser.parse_args()
    from launch.ahead.__main__ import prepare

    try:
        topologies = [roofline.parse(name) for name in flags.topologies]
        if any(t.chips > 1 for t in topologies):
            raise ValueError(f"--topologies {flags.topologies}: expected one chip of each")
    except ValueError as error:
        parser.error(str(error))
    for topology in topologies:  # before JAX starts
        prepare(topology)
    run = report.Run("memory", flags, timed=False)
    rows: list[dict[str, Any]] = []
    wanted = [
        (method, variant, dtype, name)
        for name in flags.topologies
        for dtype in flags.dtypes
        for method in flags.methods
        for variant in flags.variants
    ]
    for what in wanted:
        try:
            rows.append(row_of(*what, flags.check, flags.keep))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        run.save({"rows": rows}, markdown)


if __name__ == "__main__":
    main()
