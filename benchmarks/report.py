"""What all benchmarks share: the machine, whether it is busy, turns, tables and files.

A benchmark has a function `markdown(report) -> str`, which makes its tables from the JSON alone,
and measures within a `Run`:

  flags = parser.parse_args()              # of a parser that `options` was given
  run = report.Run("loader", flags)        # refuses a busy machine
  run.save(measure(flags), markdown)       # prints Markdown; writes OUT/loader.json and loader.md

The JSON is {"benchmark", "command", "date", "machine", "busy", and the benchmark's own figures}.
"busy" is None on a quiet machine. Otherwise it says what else the machine did, and the first line
of the Markdown repeats it.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

from vireid_jax.runtime.files import write_whole

LIMIT = 0.15  # of the cores' time, that other processes may take
SAMPLE_S = 1.0
VERSIONS = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # what the package sets for itself

Result = TypeVar("Result")


# --- The machine ------------------------------------------------------------------------


def machine(device: str | None = None) -> dict[str, Any]:
    """What a reader needs to judge the figures.

    Args:
      device: kind of an accelerator, from a caller that has started it. None: the CPU alone.
    """
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        models = [x.split(":", 1)[1] for x in info.read_text().splitlines() if "model name" in x]
        cpu = models[0].strip() if models else cpu
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "cores": len(cores()),
        "memory_gb": round(pages / 1e9, 1),
        "load": [round(x, 2) for x in os.getloadavg()],
        "device": device,
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "huge_pages": "hugetlb" in os.environ.get("GLIBC_TUNABLES", ""),
    }


def version(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def many(count: int, thing: str) -> str:
    """A number of things, as a page says it: 1 core, 2 cores."""
    return f"{count} {thing}{'s' * (count != 1)}"


# --- Is it busy? ------------------------------------------------------------------------


class Counted(NamedTuple):
    """CPU time so far, in seconds."""

    busy: float  # of all processes on our cores, and what a host took from a virtual machine
    total: float  # with the idle time
    own: float  # of this process and of its children that have ended


def counted() -> Counted | None:
    """CPU time so far; None where the system does not say (no /proc/stat)."""
    path = pathlib.Path("/proc/stat")
    if not path.exists():
        return None
    return Counted(*times_of(path.read_text(), cores()), sum(os.times()[:4]))


def times_of(stat: str, of: Sequence[int]) -> tuple[float, float]:
    """Busy and total seconds of some cores in the text of /proc/stat."""
    rows = {f[0]: [int(x) for x in f[1:9]] for f in map(str.split, stat.splitlines()) if f}
    sums = [sum(ticks) for ticks in zip(*(rows[f"cpu{n}"] for n in of), strict=True)]
    second = os.sysconf("SC_CLK_TCK")
    return (sum(sums) - sums[3] - sums[4]) / second, sum(sums) / second  # less idle and iowait


def others(before: Counted, after: Counted) -> float:
    """The share of the cores' time between two counts that other processes took, 0 to 1."""
    busy, total, own = (b - a for a, b in zip(before, after, strict=True))
    return min(max((busy - own) / total, 0.0), 1.0) if total > 0 else 0.0


def too_much(share: float) -> str | None:
    """What to say of such a share of other work; None if it is little enough."""
    if share <= LIMIT:
        return None
    return (
        f"other processes took {100 * share:.0f} % of the time of {many(len(cores()), 'core')}, "
        f"expected at most {100 * LIMIT:.0f} %"
    )


def busy() -> str | None:
    """Looks for a second whether other processes use the machine: what they take, or None."""
    before = counted()
    if before is None:
        return None
    time.sleep(SAMPLE_S)
    after = counted()
    return too_much(others(before, after)) if after else None


# --- A run of a benchmark ---------------------------------------------------------------


def options(parser: argparse.ArgumentParser, *, rounds: int | None = None) -> None:
    """Adds the options that benchmarks share; --rounds where a default is given for it."""
    out = pathlib.Path("runs/benchmarks")
    parser.add_argument("--out", type=pathlib.Path, default=out, help=f"folder, default {out}")
    if rounds is not None:
        text = f"how often each candidate has its turn, default {rounds}"
        parser.add_argument("--rounds", type=positive, default=rounds, help=text)
    parser.add_argument("--busy-ok", action="store_true", help="run although the machine is busy")


def positive(text: str) -> int:
    """A number of 1 or more from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected 1 or more")
    return number


class Run:
    """One run of a benchmark, from the check of the machine to the files."""

    def __init__(self, name: str, flags: argparse.Namespace, *, timed: bool = True):
        """Looks at the machine.

        Args:
          name: of the benchmark, and of its files.
          flags: from a parser with the options of `options`.
          timed: False for figures that do not depend on what else the machine does.

        Raises:
          SystemExit: the machine is busy and --busy-ok is not given.
        """
        self.name, self.out = name, flags.out
        self.timed = timed
        self.at_start = busy() if timed else None
        if self.at_start and not flags.busy_ok:
            raise SystemExit(
                f"The machine is busy: {self.at_start}. Times would mean nothing. Wait until it is "
                "quiet, or add --busy-ok for figures that are not to be quoted."
            )
        self.load = machine()["load"]  # before our own work adds to it
        self.date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.began = counted()

    def report(self, figures: Mapping[str, Any], device: str | None = None) -> dict[str, Any]:
        """The JSON object of what is measured so far.

        Args:
          figures: the benchmark's own.
          device: see `machine`.
        """
        return {
            "benchmark": self.name,
            "command": shlex.join(["python", "-m", f"benchmarks.{self.name}", *_arguments()]),
            "date": self.date,
            "machine": machine(device) | {"load": self.load},
            "busy": self._busy(),
            **figures,
        }

    def _busy(self) -> str | None:
        if not self.timed:
            return None
        now = counted()
        if self.began is None or now is None:
            return "not known, as this system has no /proc/stat"
        return self.at_start or too_much(others(self.began, now))

    def save(
        self,
        figures: Mapping[str, Any],
        markdown: Callable[[dict[str, Any]], str],
        *,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        """Prints the report and writes it; may be called again with more figures.

        Args:
          figures: see `report`.
          markdown: the benchmark's.
          device: see `machine`.
          name: of the files, where it is not the benchmark's.
        """
        found = self.report(figures, device)
        text = page(found, markdown(found))
        print(text, flush=True)
        save(name or self.name, found, text, self.out)


def _arguments() -> list[str]:
    """The command line without folders of a machine, which say nothing of the figures."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word in ("--out", "--keep"):
            next(words, None)
        elif not word.startswith(("--out=", "--keep=")):
            kept.append(word)
    return kept


def warning(report: Mapping[str, Any]) -> str:
    """The line above figures of a busy machine; empty for a quiet one."""
    if not report["busy"]:
        return ""
    return f"**Not to be quoted. The machine was busy: {report['busy']}.**\n\n"


def page(report: Mapping[str, Any], body: str) -> str:
    """A report in Markdown: a warning where the machine was busy, the tables, the machine."""
    m = report["machine"]
    facts = [m["cpu"], many(m["cores"], "core"), f"{m['memory_gb']} GB", m["device"]]
    facts += [f"load {' '.join(map(str, m['load']))}", f"python {m['python']}"]
    facts += [f"{name} {m[name]}" for name in VERSIONS if m[name]]
    line = ", ".join(fact for fact in facts if fact)
    return f"{warning(report)}{body}\n\n`{report['command']}`, {report['date']}: {line}.\n"


def save(name: str, report: Mapping[str, Any], markdown: str, out: pathlib.Path) -> None:
    """Writes OUT/NAME.json and OUT/NAME.md, each of them whole."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / f"{name}.json", json.dumps(report, indent=1) + "\n")
    write_whole(out / f"{name}.md", markdown.rstrip("\n") + "\n")
    print(f"\nwrote {out / name}.json and {name}.md", file=sys.stderr)


# --- Candidates and tables --------------------------------------------------------------


def in_turn(
    candidates: Iterable[str], run: Callable[[str], Result], rounds: int
) -> dict[str, list[Result]]:
    """Results by candidate. They take turns, A B A B, so that all have the same conditions."""
    results: dict[str, list[Result]] = {c: [] for c in candidates}
    for _ in range(rounds):
        for candidate, found in results.items():
            found.append(run(candidate))
    return results


class Killed(RuntimeError):
    """The system ended a process, as a rule for want of memory."""


def in_process(
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    on: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Runs a module as a command, and returns the JSON object of its last line.

    Args:
      module: its name.
      arguments: of its command line.
      env: changes to the environment.
      on: cores to pin the process to; None leaves it all.

    Raises:
      Killed: the system ended it.
      RuntimeError: it failed. The message has the end of what it wrote.
    """
    pin = None
    if on is not None and hasattr(os, "sched_setaffinity"):
        pin = lambda: os.sched_setaffinity(0, on)  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(env or {})},
        capture_output=True,
        text=True,
        preexec_fn=pin,
    )
    called = shlex.join([module, *arguments])
    if done.returncode == -signal.SIGKILL:
        raise Killed(f"{called} was killed, perhaps out of memory")
    if done.returncode:
        raise RuntimeError(f"{called} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others numbers."""
    sides = ["---"] * left + ["---:"] * (len(header) - left)
    lines = [header, sides, *rows]
    if wrong := [row for row in lines if len(row) != len(header)]:
        raise ValueError(f"{len(header)} columns {list(header)}, but a row is {list(wrong[0])}")
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
