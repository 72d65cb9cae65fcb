"""The command line: python -m vireid_jax.ablation TABLE... --seeds 0 1 2 [--config.key=value ...].

What is to be done is read from the folders of the cells, so a command that was stopped in any way
is repeated and goes on. SIGTERM and Ctrl-C are passed on to the trainings, which save and end.

Exit codes: 0 every cell is done, 1 some failed (the tables show the others), 2 a wrong command
line, 42 stopped by SIGTERM with everything saved (run the same command again), 130 the same for
Ctrl-C.
"""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime.command import answer_signals

    answer_signals()

# Nothing heavy up here: --help and --list must answer at once.
import argparse
import fcntl
import importlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import FrameType
from typing import Any

from vireid_jax import __version__
from vireid_jax.ablation import cells as cells_
from vireid_jax.ablation import page
from vireid_jax.ablation.cells import Cell, Score, Table
from vireid_jax.runtime import EXIT_INTERRUPTED, EXIT_PREEMPTED, printable
from vireid_jax.runtime.command import run
from vireid_jax.runtime.writer import duration

LOG, LOCK = "console.log", ".lock"
TAIL = 15  # lines of a log that a report shows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code, see the module's docstring."""
    argv = list(sys.argv[1:] if argv is None else argv)
    changes = [a for a in argv if a.startswith("--config.")]
    try:
        for change in changes:
            cells_.split_change(change)  # without a "=" its value would be a table or a seed
        tables = cells_.load_tables()
        rest = [a for a in argv if not a.startswith("--config.")]
        options = _parser().parse_intermixed_args(rest)
        names = cells_.choose(options.tables or (list(tables) if options.list else []), tables)
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
        resolved = cells_.resolve_tables(
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
        cells = cells_.cells_of(resolved, options.rows)
        if options.page is not None and not options.page.is_file():
            raise FileNotFoundError(f"--page is {options.page}, which is no file; make it first")
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    return _run(resolved, cells, options, _made_by(argv))


def _run(
    tables: Sequence[Table], cells: Sequence[Cell], options: argparse.Namespace, command: str
) -> int:
    failed: dict[str, str] = {}
    stopped = 0
    try:
        waiting = [cell for cell in cells if not _done(cell)]
        if waiting and not options.show:
            backend = find_backend()
            jobs = options.jobs or (len(os.sched_getaffinity(0)) if backend == "cpu" else 1)
            _say(
                f"{len(cells)} cells in {options.folder / 'cells'}, {len(cells) - len(waiting)} "
                f"done before; {min(jobs, len(waiting))} at a time on {backend}"
            )
            with _Pool(jobs, environment(backend, jobs)) as pool:
                for cell, why in pool.run(waiting):
                    if why:
                        failed[cell.name] = why
                        continue
                    try:
                        page.write(tables, options.folder, command)
                    except OSError as error:  # a disk that is full now must not end cells that run
                        print(f"tables are not written for now: {error}", file=sys.stderr)
            stopped = pool.stopped
        page.write(tables, options.folder, command)
        for table in tables:
            print(f"\n{page.to_markdown(table)}")
        print(f"\nwritten to {options.folder}")
        if options.page is not None:
            for name in page.fill(options.page, tables, command):
                print(f"{options.page} has no place <!-- table: {name} -->", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    for name, why in failed.items():
        print(f"\nfailed: {name}: {why}", file=sys.stderr)
    if stopped:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return stopped
    return 1 if failed else 0


def _done(cell: Cell) -> bool:
    try:
        return cell.trained_at() is not None and not cell.missing()
    except ValueError as error:
        print(printable(f"{cell.name}: {error}"), file=sys.stderr)
        return False


class _Pool:
    """Threads that each wait for one process, and the signals that all processes get."""

    def __init__(self, jobs: int, env: Mapping[str, str]) -> None:
        self.stopped = 0  # the exit code of a request to stop
        self._executor = ThreadPoolExecutor(jobs)
        self._env = dict(env)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a signal may interrupt the handler of another one

    def __enter__(self) -> "_Pool":
        # A terminal that is closed would leave the processes behind, in sessions of their own.
        caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        heard = [s for s in caught if signal.getsignal(s) != signal.SIG_IGN]  # nohup
        self._before = {s: signal.signal(s, self._handle) for s in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # an error of our own
            self._stop(EXIT_PREEMPTED)
        self._executor.shutdown()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, str]]:
        """Trains and scores what is missing, in the order of `cells`, each once.

        Yields each cell that is done or has failed, and why it failed. A failed cell does not
        keep others from running; one that was stopped is left out.
        """
        futures = {self._executor.submit(self._complete, cell): cell for cell in cells}
        for future in as_completed(futures):
            cell = futures[future]
            try:
                if future.result():
                    yield cell, ""
            except (OSError, ValueError) as error:
                _say(f"{cell.name}: failed: {str(error).splitlines()[0]}")
                yield cell, str(error)

    def _complete(self, cell: Cell) -> bool:
        """Runs what the cell needs; whether it has come to its end. A ValueError says why not."""
        if self.stopped:
            return False
        cell.folder.mkdir(parents=True, exist_ok=True)
        with (cell.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another command works on {cell.folder}; repeat this one when it is done"
                ) from None
            if cell.trained_at() is None and not self._process(cell, None, lock.fileno()):
                return False
            return all(self._process(cell, score, lock.fileno()) for score in cell.missing())

    def _process(self, cell: Cell, score: Score | None, lock: int) -> bool:
        """Trains, or scores; False if it was stopped."""
        command, log = cell.command(score), cell.folder / LOG
        what = score.protocol if score else ""
        what += f", {score.corrupt} images corrupted" if score and score.corrupt else ""
        with self._lock, log.open("ab") as file:
            if self.stopped:
                return False
            file.write(f"\n$ {subprocess.list2cmdline(command)}\n".encode())
            file.flush()
            # A session of its own: Ctrl-C in the terminal reaches it through us, once. It holds
            # the lock of the cell too, and may outlive us.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
                pass_fds=[lock],
            )
            self._running.add(process)
        _say(f"{cell.name}: {f'scores {what}' if score else 'trains'}")
        started = time.monotonic()
        code = process.wait()
        self._running.discard(process)
        if code in (EXIT_PREEMPTED, EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
            _say(f"{cell.name}: stopped")
            interrupted = code in (EXIT_INTERRUPTED, -signal.SIGINT)
            self._stop(EXIT_INTERRUPTED if interrupted else EXIT_PREEMPTED)
            return False
        if code:
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            end = log.read_text(errors="replace").splitlines()[-TAIL:]
            raise ValueError("\n  ".join([f"{how}; the end of {log}:", *end]))
        if score is None:
            cell.mark_trained()
        shown = cell.metrics(score or cell.scores[0])
        if score is not None and shown is None:
            raise ValueError(
                f"scoring {what} has left no finite result of that kind in {cell.folder}"
            )
        mean = f", mAP {100 * shown['mAP']:.1f}" if shown else ""
        took = duration(time.monotonic() - started)
        _say(f"{cell.name}: {'scored' if score else 'trained'}{mean} ({took})")
        return True

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.stopped and signum == signal.SIGINT:  # again: end at once
            self._send(signal.SIGINT)
        self._stop(EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_PREEMPTED)

    def _stop(self, code: int) -> None:
        """Starts nothing more, and asks what runs to save and end; once."""
        with self._lock:
            if not self.stopped:
                self.stopped = code
                self._send(signal.SIGTERM)

    def _send(self, signum: signal.Signals) -> None:
        with self._lock:
            for process in list(self._running):
                process.send_signal(signum)  # has no effect on one that has ended


def environment(backend: str, jobs: int) -> dict[str, str]:
    """The environment of the processes.

    On CPU each has one device of one core, however many `jobs` there are: the same numbers, side
    by side or one after the other. On a GPU the memory is divided. A TPU has one process.
    """
    env = dict(os.environ)
    if backend == "cpu":
        flags = env.get("XLA_FLAGS", "")
        for flag in ("force_host_platform_device_count=1", "cpu_multi_thread_eigen=false"):
            if flag.partition("=")[0] not in flags:
                flags += f" --xla_{flag}"
        env["XLA_FLAGS"] = flags.strip()
    elif jobs > 1 and backend == "tpu":
        raise ValueError(f"--jobs is {jobs}; a TPU runs one process at a time, leave it out")
    elif jobs > 1:
        env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / jobs:.3f}")
    return env


def find_backend() -> str:
    """What jax computes on here; asked in another process, which gives the device back."""
    code = "import jax; print(jax.default_backend())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}, no message"]
        raise ValueError(f"jax does not start: {said[-1]}")
    return asked.stdout.split()[-1]


def _say(text: str) -> None:
    print(text, flush=True)


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


def _listing(names: Sequence[str], tables: Mapping[str, Any], dataset: str) -> str:
    lines = []
    data = "" if dataset == "synthetic" else f":{dataset}"
    for name in names:
        lines.append(f"{name}  {tables[name].title}")
        for row, spec in tables[name].rows.items():
            changed = {**spec.changes, **(spec.embedded if dataset == "synthetic" else {})}
            lines.append(f"  {row:10} {spec.label}")
            command = f"python -m vireid_jax.main --config configs/tables.py:{name}/{row}{data}"
            lines.append(f"             {command}")
            lines += [f"             the recipe of {spec.method}"] * (spec.method is not None)
            lines += [f"             {key} = {_shown(value)}" for key, value in changed.items()]
    if dataset == "synthetic":
        lines += ["", f"Tables are of shorter trainings than these commands: {_embedded()}."]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if not hasattr(value, "share"):
        return repr(value)
    share = "the recipe's share" if value.share is None else f"{value.share:.3f}"
    return f"{share} of train.epochs"


def _embedded() -> str:
    return ", ".join(f"{key}={value}" for key, value in cells_.EMBEDDED.items())


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; name tables before --seeds")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    # A file of the recipes, loaded as such: the package imports none of them.
    datasets = importlib.import_module("configs.common").DATASETS

    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.ablation",
        usage="%(prog)s TABLE ... [options] [--config.key=value ...]",
        allow_abbrev=False,
        description="Train every row of the tables of the papers with every seed, and write mean "
        "and spread as Markdown and CSV. What is done is not done again; repeat a command that "
        "was stopped.",
        epilog="--config.key=value changes a value of all rows, such as --config.optim.lr=1e-3 "
        "or --config.data.root=DIR. Shorter than the recipe on the embedded data: "
        + f"{_embedded()}.",
    )
    parser.add_argument("--version", action="version", version=f"vireid_jax {__version__}")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="smcl/1, ..., mun, see --list")
    parser.add_argument("--list", action="store_true", help="show tables, rows and their commands")
    parser.add_argument("--seeds", type=_seed, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--dataset", choices=datasets, default=datasets[0])
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
        "--feature", help="of the model (default: the headline of each row's method)"
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
    run(main)
