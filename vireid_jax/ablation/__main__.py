"""The command line: python -m vireid_jax.ablation TABLE... --seeds 0 1 2 [--config.key=value ...].

Exit codes: 0 every cell is done, 1 some failed (the tables show the others), 2 a wrong command
line, 42 stopped by SIGTERM with everything saved (run the same command again), 130 the same for
Ctrl-C.
"""

# Nothing heavy up here: --help and --list must answer at once.
import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from vireid_jax.ablation import plan, settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code, see the module's docstring."""
    argv = list(sys.argv[1:] if argv is None else argv)
    changes = [a for a in argv if a.startswith("--config.")]
    try:
        settings.check_written(changes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parser = _parser()
    options = parser.parse_intermixed_args([a for a in argv if not a.startswith("--config.")])
    try:
        tables = plan.load_tables()
        names = plan.choose(options.tables or (list(tables) if options.list else []), tables)
        if options.list:
            print(_listing(names, tables, options.dataset))
            return 0
        if not names:
            raise ValueError(
                f"no table is named; expected of {', '.join(tables)}, before --seeds and --rows, "
                "or --list"
            )
        if options.jobs is not None and options.jobs < 1:
            raise ValueError(f"--jobs is {options.jobs}, expected at least 1")
        planned = plan.plan(
            names,
            tables=tables,
            dataset=options.dataset,
            seeds=sorted(set(options.seeds)),
            folder=options.folder,
            changes=changes,
            protocol=options.protocol,
            feature=options.feature,
            rows=options.rows,
        )
        cells = plan.cells_of(planned, options.rows)
        if options.page is not None and not options.page.is_file():
            raise FileNotFoundError(f"--page is {options.page}, which is no file; make it first")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _run(planned, cells, options, _made_by(argv))


def _made_by(argv: Sequence[str]) -> str:
    """The command that makes the tables, without what only says how or where they are shown."""
    words, rest = ["python", "-m", "vireid_jax.ablation"], list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("--jobs", "--page"):
            del rest[:1]
        elif word != "--show" and not word.startswith(("--jobs=", "--page=")):
            words.append(word)
    return shlex.join(words)


def _run(
    planned: Sequence[plan.PlannedTable],
    cells: Sequence[plan.Cell],
    options: argparse.Namespace,
    command: str,
) -> int:
    from vireid_jax.ablation import pool, report

    outcome = pool.Outcome({}, 0)
    try:
        waiting = [cell for cell in cells if not _done(cell)]
        if waiting and not options.show:
            backend = pool.find_backend()
            jobs = options.jobs or (pool.cores() if backend == "cpu" else 1)
            print(
                f"{len(cells)} cells in {options.folder / 'cells'}, {len(cells) - len(waiting)} "
                f"done before; {min(jobs, len(waiting))} at a time on {backend}",
                flush=True,
            )
            outcome = pool.run_cells(
                waiting,
                jobs=jobs,
                env=pool.environment(backend, jobs),
                changed=lambda: _write_meanwhile(planned, options.folder, command),
            )
        report.write(planned, options.folder, command)
        for table in planned:
            print(f"\n{report.to_markdown(table)}")
        print(f"\nwritten to {options.folder}")
        if options.page is not None:
            for name in report.fill_page(options.page, planned, command):
                print(f"{options.page} has no place <!-- table: {name} -->", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, why in outcome.failed.items():
        print(f"\nfailed: {name}: {why}", file=sys.stderr)
    if outcome.stopped:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return outcome.stopped
    return 1 if outcome.failed else 0


def _write_meanwhile(
    planned: Sequence[plan.PlannedTable], folder: pathlib.Path, command: str
) -> None:
    """A disk that is full now must not end cells that run; the last report tells it again."""
    from vireid_jax.ablation import report

    try:
        report.write(planned, folder, command)
    except OSError as error:
        print(f"tables are not written for now: {error}", file=sys.stderr, flush=True)


def _done(cell: plan.Cell) -> bool:
    from vireid_jax.ablation import results

    try:
        return not results.missing(cell)
    except ValueError as error:
        print(f"{cell.name}: {error}", file=sys.stderr)
        return False


def _listing(names: Sequence[str], tables: dict[str, Any], dataset: str) -> str:
    lines = []
    for name in names:
        lines.append(f"{name}  {tables[name].title}")
        for row, spec in tables[name].rows.items():
            changed = {**spec.changes, **(spec.embedded if dataset == "synthetic" else {})}
            lines.append(f"  {row:10} {spec.label}")
            lines.append(f"             {plan.row_command(name, row, dataset)}")
            lines += [f"             the recipe of {spec.method}"] * (spec.method is not None)
            lines += [f"             {key} = {_shown(value)}" for key, value in changed.items()]
    if dataset == "synthetic":
        lines += ["", f"Tables are of shorter trainings than these commands: {_embedded()}."]
    return "\n".join(lines)


def _embedded() -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.EMBEDDED.items())


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; name tables before --seeds")
    return int(text)


def _shown(value: Any) -> str:
    if not hasattr(value, "share"):
        return repr(value)
    share = "the recipe's share" if value.share is None else f"{value.share:.3f}"
    return f"{share} of train.epochs"


def _parser() -> argparse.ArgumentParser:
    from vireid_jax.data.datasets import names

    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.ablation",
        usage="%(prog)s TABLE ... [options] [--config.key=value ...]",
        allow_abbrev=False,
        description="Train every row of the tables of the papers of SMCL, MUN, IDKL and PDM with "
        "every seed, and write mean and spread as Markdown and CSV. What is done is not done "
        "again; repeat a command that was stopped.",
        epilog="--config.key=value changes a value of all rows, such as --config.optim.lr=1e-3 "
        "or --config.data.root=DIR. Shorter than the recipe on the embedded data: "
        + f"{_embedded()}.",
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="smcl/1, ..., mun, see --list")
    parser.add_argument("--list", action="store_true", help="show tables, rows and their commands")
    parser.add_argument("--seeds", type=_seed, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--dataset", choices=names(), default="synthetic")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="train these rows alone; of the others the tables show what is there",
    )
    parser.add_argument(
        "--jobs", type=int, help="cells at a time (default: a core each; 1 on an accelerator)"
    )
    parser.add_argument(
        "--folder", type=pathlib.Path, default=pathlib.Path("runs/ablation"), help="of everything"
    )
    parser.add_argument("--protocol", help="what is shown (default: the table's own)")
    parser.add_argument(
        "--feature",
        choices=list(dict.fromkeys([*settings.FEATURES, *sum(settings.FUSED.values(), ())])),
        help="of the model, likewise (default: the headline of each row's method)",
    )
    parser.add_argument("--show", action="store_true", help="train nothing, write what there is")
    parser.add_argument(
        "--page",
        type=pathlib.Path,
        metavar="FILE",
        help="put the tables into this page too, between <!-- table: smcl-1 --> and <!-- end -->",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
