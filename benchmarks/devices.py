"""One device with all cores, or several devices: which trains faster on this machine's CPU?

  python -m benchmarks.devices                    SMCL's recipe on the embedded data
  python -m benchmarks.devices --method agw --rounds 5

The train step of a method's embedded recipe is timed with one device, which XLA computes on with
its own threads, and with every number of devices up to the number of cores that divides the batch.
All take turns, a process each. A difference is one in every round: where the ratio to the program's
choice is above 1 in one round and below in another, there is none. PyTorch is not needed.
"""

import argparse
import functools
import statistics
from typing import Any

from benchmarks import candidates, report, step


def choices(rows: int, cores: int) -> list[int]:
    """Numbers of devices that divide a batch of `rows`."""
    return [n for n in range(1, cores + 1) if rows % n == 0]


def name_of(devices: int) -> str:
    """The candidate of `benchmarks.candidates` with so many devices."""
    return f"jax_devices_{devices}"


USED = 1  # a CPU is one device of the program, unless XLA_FLAGS says otherwise


def measure(method: str, rounds: int) -> dict[str, Any]:
    """Seconds and CPU-seconds of a step, a median for each round, by number of devices."""
    s, cores = candidates.settings(method, "main"), report.cores()
    batch = s["num_ids"] * s["num_instances"]
    options = ["--method", method, "--sizes", "main"]
    run = functools.partial(step.run_candidate, options=options, cores=cores)
    counts = choices(batch, len(cores))
    found = report.in_turn([name_of(n) for n in counts], run, rounds)
    rows = []
    for count, results in zip(counts, found.values(), strict=True):
        row: dict[str, Any] = {"devices": count}
        for key in ("step_s", "cpu_s"):
            row[key] = [statistics.median(r[key]) for r in results]
        rows.append(row)
    return {"method": method, "batch": batch, "cores": len(cores), "used": USED, "rows": rows}


def ratios(row: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Step times over another's, a ratio for each round."""
    return [a / b for a, b in zip(row["step_s"], other["step_s"], strict=True)]


def verdict(found: dict[str, Any]) -> str:
    """What the figures say of the program's choice, in a sentence."""
    rows = {r["devices"]: r for r in found["rows"]}
    used = found["used"]
    program = f"The program uses {_text(used)} here"
    others = {n: ratios(r, rows[used]) for n, r in rows.items() if n != used}
    if not others:
        return f"{program}; nothing else divides the batch."
    best = min(others, key=lambda n: statistics.median(others[n]))
    found_ratios = others[best]
    middle, low, high = statistics.median(found_ratios), min(found_ratios), max(found_ratios)
    spread = f"ratio {middle:.2f}, {low:.2f} to {high:.2f} over {len(found_ratios)} rounds"
    if len(found_ratios) < 2:
        return f"{program}. One round says nothing of the spread ({spread}); use --rounds 3."
    if low <= 1 <= high:
        return f"{program}. There is no difference to {_text(best)} ({spread})."
    said = f"{_text(best).capitalize()} took {'more' if low > 1 else 'less'} time ({spread})"
    return f"{program}. {said}: {'keep it' if low > 1 else 'it is not the faster choice'}."


def _text(devices: int) -> str:
    return f"{devices} devices" if devices > 1 else "one device"


def markdown(found: dict[str, Any]) -> str:
    """The verdict and a table."""
    rows = {r["devices"]: r for r in found["rows"]}
    header = ["devices", "step s, median", "CPU-s", "to the program's choice", "least", "most"]
    lines = []
    for n, r in rows.items():
        all_ratios = ratios(r, rows[found["used"]])
        figures = [f"{statistics.median(r[k]):.3f}" for k in ("step_s", "cpu_s")]
        over = [statistics.median(all_ratios), min(all_ratios), max(all_ratios)]
        mark = f"{n}, the program's" if n == found["used"] else str(n)
        lines.append([mark, *figures, *(f"{x:.2f}" for x in over)])
    return (
        f"{found['method'].upper()}, embedded recipe, {found['batch']} rows, "
        f"{report.many(found['cores'], 'core')}. {verdict(found)}\n\n{report.table(header, lines)}"
    )


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser, rounds=3)
    parser.add_argument("--method", choices=candidates.METHODS, default="smcl")
    flags = parser.parse_args()
    run = report.Run("devices", flags)
    run.save(measure(flags.method, flags.rounds), markdown)


if __name__ == "__main__":
    main()
