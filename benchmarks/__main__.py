"""Lists the benchmarks, runs one, and fills the tables of the pages.

  python -m benchmarks                  what there is
  python -m benchmarks loader --quick   one of them; the same as python -m benchmarks.loader
  python -m benchmarks docs             tables of docs/ from the files of benchmarks/results/

A page has a table between two comments, `<!-- results: step_smcl -->` and `<!-- end -->`. What is
between them is made from benchmarks/results/step_smcl.json, by the `markdown` of its benchmark.
"""

import argparse
import importlib
import json
import pathlib
import re
import runpy
import sys
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks import report
from vireid_jax.runtime.files import write_whole

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


class Benchmark(NamedTuple):
    """What a reader chooses a benchmark by."""

    question: str
    takes: str
    needs: str = ""


BENCHMARKS = {
    "step": Benchmark(
        "What does a train step cost, beside PyTorch?",
        "a minute a method for the embedded recipes, 5 to 15 for a paper's size",
        "PyTorch; 23 GB for a paper's size",
    ),
    "devices": Benchmark(
        "Is one device with all cores faster here than a device a core?", "5 minutes"
    ),
    "kernels": Benchmark("What does each form for CPUs save?", "a minute"),
    "expansion": Benchmark("What do the parts of PDM's network cost?", "10 minutes", "10 GB"),
    "generator": Benchmark("What do the parts of MUN's network cost?", "10 minutes", "16 GB"),
    "evaluator": Benchmark(
        "How fast is scoring?", "3 minutes; with --million 10", "5 GB of disk for --million"
    ),
    "loader": Benchmark("How fast are images loaded?", "3 minutes", "PyTorch, TensorFlow, Linux"),
    "prepare": Benchmark("What does preparing a data set cost?", "8 minutes", "13 GB of disk"),
    "restart": Benchmark("What do a start and a stop cost?", "5 minutes"),
    "confuser": Benchmark("Does IDKL's confuser hide the modality?", "2 minutes"),
    "memory": Benchmark(
        "How much device memory does a train step need, and what batch fits?",
        "an hour and a half on one core; a minute for each program",
        "the compilers for GPUs and TPUs, see python -m launch.ahead --help",
    ),
    "gpu": Benchmark(
        "Is a GPU right, how fast is it, and where does the time go?",
        "8 minutes",
        "a GPU, jax with CUDA; PyTorch for the rows beside it",
    ),
}


def listing() -> str:
    """Each benchmark, how long it takes and what it needs."""
    lines = []
    for name, b in BENCHMARKS.items():
        lines += [f"  {name:10} {b.question}", f"  {'':10} Takes {b.takes}."]
        lines += [f"  {'':10} Needs {b.needs}."] if b.needs else []
    return "\n".join(lines)


def fill(text: str, results: pathlib.Path) -> str:
    """A page with its tables made again from the files of a folder.

    Raises:
      FileNotFoundError: there is no file for a table.
    """

    def made(match: re.Match[str]) -> str:
        path = results / f"{match[2]}.json"
        if not path.exists():
            raise FileNotFoundError(
                f"a page has the table {match[2]!r}, but there is no {path.name} in "
                f"{results.name}/: measure it with --out, or take the marks out of the page"
            )
        found = json.loads(path.read_text())
        benchmark = importlib.import_module(f"benchmarks.{found['benchmark']}")
        return f"{match[1]}\n{report.page(found, benchmark.markdown(found))}\n{match[4]}"

    return BLOCK.sub(made, text)


def pages() -> Iterable[pathlib.Path]:
    """The pages with tables."""
    return (p for p in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(p.read_text()))


def main() -> None:
    """Lists, runs or fills, as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"benchmarks, and what each takes on two cores:\n\n{listing()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=[*BENCHMARKS, "docs"], metavar="NAME")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENTS")
    flags = parser.parse_args()
    if flags.name is None:
        print(listing())
    elif flags.name == "docs":
        for path in pages():
            write_whole(path, fill(path.read_text(), RESULTS))
            print(path.relative_to(ROOT))
    else:
        module = f"benchmarks.{flags.name}"
        sys.argv = [module, *flags.arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
