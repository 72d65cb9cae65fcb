"""Trains and scores a recipe, or scores a run.

  python -m vireid_jax.main --config configs/smcl.py                     embedded data, a laptop
  python -m vireid_jax.main --config smcl:sysu --config.data.root=DIR    a recipe that is shipped
  python -m vireid_jax.main --config smcl --config.optim.lr=1e-3         change a value
  python -m vireid_jax.main --config smcl --max_steps=20                 a try: 20 steps, a table
  python -m vireid_jax.main --config smcl --print_config                 all that can be changed
  python -m vireid_jax.main --mode=eval --workdir runs/smcl-synthetic --config.eval.flip=True
  python -m vireid_jax.main --mode=eval --config agw:sysu --config.init.weights=FILE   an author's

Repeating a command resumes its run. From Python: `train_and_score(config, workdir)`.

Exit codes: 0 done, 1 an error that the user can cure, 2 a wrong command line, 42 stopped by
SIGTERM with everything saved (run the same command again), 130 the same for Ctrl-C, 43 another
process of the run was lost (run the same command again on all hosts).
"""

# Nothing heavy up here: --help and a misspelt flag must answer at once.
import contextlib
import hashlib
import os
import pathlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import ml_collections
from absl import flags, logging
from ml_collections import config_dict, config_flags

import vireid_jax

if TYPE_CHECKING:
    from vireid_jax.build import Parts

CLONE = pathlib.Path(__file__).resolve().parents[1]
SHIPPED = pathlib.Path(__file__).resolve().parent / "recipes"  # has configs/ in a wheel

FILE = "file"  # what is scored where no run is
LONGEST_NAME = 80  # of a run's folder


# name: (default, allowed values if not any, what --help says)
FLAGS: dict[str, tuple[Any, list[str] | None, str]] = {
    "workdir": (None, None, "Folder of the run. Default: runs/METHOD-DATASET[-CHANGED=VALUE...]."),
    "step": ("last", None, "Checkpoint that --mode=eval scores: last, best, or a number of steps."),
    "mode": ("train", ["train", "eval"], "train (and score), or eval: score a run's checkpoint."),
    "dist": (
        "auto",
        ["auto", "off", "on"],
        "Several processes: auto finds a TPU pod, a Slurm step or JAX_COORDINATOR_ADDRESS, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID; off: one process; on: refuse to be only one.",
    ),
}


def cli() -> None:
    """The command line; see the module's docstring."""
    main(sys.argv)


def main(argv: Sequence[str]) -> NoReturn:
    """Runs one command, and ends the process with its exit code."""
    own = flags.FlagValues()
    for name, (default, values, text) in FLAGS.items():
        if values is None:
            flags.DEFINE_string(name, default, text, flag_values=own)
        else:
            flags.DEFINE_enum(name, default, values, text, flag_values=own)
    text = "End training after this step and score: a try. Without it the run goes on from there."
    flags.DEFINE_integer("max_steps", None, text, flag_values=own)
    text = "Print the recipe, a value a line, and end."
    flags.DEFINE_bool("print_config", False, text, flag_values=own)
    config = parse(argv, own, about=__doc__)
    flags.FLAGS.mark_as_parsed()  # absl's log asks for it
    if config is None:
        refuse(f"--config is missing (or --mode=eval with --workdir of a run); {known()}")
    if own.print_config:
        print("\n".join(f"{key} = {value!r}" for key, value in sorted(_flat(config).items())))
        sys.exit(0)
    named = own["config"].present or bool(_changes(argv))
    sys.exit(
        run(
            config if named else None,
            workdir=own.workdir,
            overrides=config_flags.get_override_values(own["config"]) if named else {},
            mode=own.mode,
            step=own.step,
            dist=own.dist,
            max_steps=own.max_steps,
            debug=own.debug,
        )
    )


# The command line -------------------------------------------------------------------------------


def parse(
    argv: Sequence[str], own: flags.FlagValues, *, about: str
) -> ml_collections.ConfigDict | None:
    """Parses a command line; what is wrong with it becomes one line and exit code 2.

    Adds --config, the values changed in it, --debug and --version to the flags in `own`; `about` is
    what --help says above them.

    Returns:
      The recipe that --config names; with --mode=eval and no --config the one of the run in
      --workdir; None where neither is given.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=own)
    flags.DEFINE_bool("version", False, "Show the version.", flag_values=own)
    text = (
        "Recipe: a file such as configs/smcl.py, with a data set configs/smcl.py:sysu; or a name, "
        "smcl or smcl:sysu. Single values: --config.optim.lr=1e-3."
    )
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        flags.DEFINE_string("config", None, text, flag_values=own)
        print(f"{about.strip()}\n\nFlags:\n{own.get_help().strip()}")
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"vireid_jax {vireid_jax.__version__}")
        sys.exit(0)
    argv = list(argv)
    given = _given(argv)
    stored = given.get("mode") == "eval" and given.get("workdir") and "config" not in given
    with _one_line(argv):
        if stored:
            config_flags.DEFINE_config_dict(
                "config", _stored(str(given["workdir"])), text, flag_values=own
            )
        else:
            if "config" in given:
                argv = _with_path(argv, given["config"])
            config_flags.DEFINE_config_file(
                "config", None, text, lock_config=True, flag_values=own, sys_argv=argv
            )
        rest = own(argv)
        if len(rest) > 1:
            refuse(f"unexpected arguments {rest[1:]}; every option starts with --")
        config = own.config
        if config is not None:
            config.items()  # a recipe is read at its first use
    return config


@contextlib.contextmanager
def _one_line(argv: Sequence[str]) -> Iterator[None]:
    """What is wrong with a command line, as a line and an exit code."""
    try:
        yield
    except flags.Error as error:
        # A recipe that raises arrives with its traceback; its last line is the message.
        refuse(str(error).strip().splitlines()[-1].removeprefix("ValueError: "))
    except (AttributeError, KeyError) as error:
        # A key that the locked config lacks: the text is "'lrr'\nDid you mean ...".
        text = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'")
        key, _, hint = text.strip("\"'").partition("\n")
        keys = [a.split("=")[0] for a in argv if key.strip("'\"") in a.split("=")[0].split(".")]
        refuse(f"unknown key {', '.join(keys) or key}. {hint}")


def refuse(message: str, code: int = 2) -> NoReturn:
    """Ends the process: the command line is wrong."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def known() -> str:
    """Names the recipes there are, for an error."""
    apart = ("common.py", "tables.py")  # the latter needs the name of a row
    names = {p.name for root in roots() for p in (root / "configs").glob("*.py")} - {*apart}
    return f"recipes here: {', '.join(f'configs/{name}' for name in sorted(names)) or 'none'}"


def roots() -> list[pathlib.Path]:
    """Folders that may have recipes in configs/: where we are, the clone, the installed package."""
    return [pathlib.Path.cwd(), CLONE, SHIPPED]


def recipe_path(name: str) -> pathlib.Path | None:
    """The file of a recipe named by path (configs/smcl.py) or by name (smcl)."""
    path = pathlib.Path(name)
    if path.suffix != ".py" and len(path.parts) == 1:
        path = pathlib.Path("configs", f"{name}.py")
    return next((root / path for root in roots() if (root / path).is_file()), None)


def add_recipes_to_path() -> None:
    """Recipes import configs.common wherever they are run from."""
    root = CLONE if (CLONE / "configs").is_dir() else SHIPPED
    if str(root) not in sys.path:
        sys.path.append(str(root))


def _with_path(argv: Sequence[str], value: str) -> list[str]:
    """The command line with the path of the recipe's file in place of how it was named."""
    name, colon, arg = value.partition(":")
    path = recipe_path(name)
    if path is None:
        refuse(f"no recipe {name!r}; {known()}")
    add_recipes_to_path()
    found = f"{path}{colon}{arg}"
    whole = (f"--config={value}", f"-config={value}")
    before = ("", *argv)
    return [
        f"--config={found}" if word in whole else found if last in ("--config", "-config") else word
        for last, word in zip(before, argv, strict=False)
    ]


def _given(argv: Sequence[str]) -> dict[str, str]:
    """The values of flags, before they are parsed."""
    given = dict(zip(argv, [*argv[1:], ""], strict=True))  # --flag value
    given |= {a.partition("=")[0]: a.partition("=")[2] for a in argv if "=" in a}  # --flag=value
    return {key.lstrip("-"): value for key, value in given.items() if key.startswith("-")}


def _changes(argv: Sequence[str]) -> list[str]:
    return [key for key in _given(argv) if key.startswith(("config.", "noconfig."))]


def _stored(workdir: str) -> ml_collections.ConfigDict:
    """The recipe of the run in `workdir`, so that single values of it can be changed.

    JSON does not say what type an option has that was left at None; on the command line it is
    text or a whole number.
    """
    from vireid_jax.runtime import runfolder

    try:
        config = runfolder.load_config(workdir)
    except (OSError, ValueError) as error:
        refuse(str(error), code=1)
    for section in config.values():
        for key, value in section.items() if hasattr(section, "items") else ():
            if value is None:
                whole = key in ("trials", "steps_per_epoch")
                section[key] = config_dict.placeholder(int if whole else str)
    return config


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# A run --------------------------------------------------------------------------------------------


def run(
    config: ml_collections.ConfigDict | None,
    *,
    workdir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    mode: str = "train",
    step: str = "last",
    dist: str = "auto",
    max_steps: int | None = None,
    debug: bool = False,
) -> int:
    """Trains and scores a recipe, or scores a run, as a command of its own.

    Args:
      config: a recipe; None takes the one stored in `workdir`. To "eval" a recipe gives the
        data, loader and eval sections, the run in `workdir` all others.
      workdir: folder of the run; None names one under runs/ after the recipe and `overrides`.
      overrides: the values that were changed in the recipe, for that name.
      mode, step, dist, max_steps: as the flags of the command.
      debug: let errors through with their traceback.

    Returns:
      The exit code, as the module's docstring has it.
    """
    from vireid_jax import build, train
    from vireid_jax.runtime import devices, preemption, processes, runfolder
    from vireid_jax.types import Stopped

    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    code, message = 0, ""
    try:
        folder = folder_of(config, workdir, overrides or {})
        processes.start(folder, dist)
        preemption.install()
        _use_compilation_cache()
        if mode == "eval":
            config = build.config_to_score(config, folder, overrides or {})
        elif config is None:
            config = runfolder.load_config(folder)
        rows = config.sampler.num_ids * config.sampler.num_instances
        # A batch that does not divide over the processes is refused later, with a reason.
        devices.use_cpu_cores(max(rows // processes.count(), min(rows, 1)))
        processes.check_equal(
            "the package and the config", runfolder.shared_facts(config.to_dict())
        )
        processes.check_equal("devices", devices.local_facts())
        if mode == "eval":
            score_run(config, folder, step=step)
        else:
            train_and_score(config, folder, max_steps=max_steps)
    except train.Preempted as stop:
        code, message = preemption.exit_code(), f"{stop}; run the same command again to go on"
    except Stopped:
        code = preemption.exit_code()
        message = "evaluation stopped on request; run the same command again"
    except (ValueError, OSError, FloatingPointError) as error:
        if debug and processes.count() == 1:
            raise
        if debug:
            traceback.print_exc()
        code, message = 1, f"error: {error}\n(--debug shows where)"
    except Exception as error:
        if processes.count() == 1:
            raise
        # With another process gone, jax, Orbax and the collectives fail in many ways.
        traceback.print_exc()
        code, message = processes.explain(error)
    if message:
        print(message, file=sys.stderr, flush=True)
    return processes.finish(code, message.partition("\n")[0])


def train_and_score(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    max_steps: int | None = None,
) -> list[dict]:
    """Trains to the end, resuming what `workdir` holds, and scores the last state.

    Returns the results that are printed and saved under `workdir`/eval; raises as `train.fit`.
    """
    from vireid_jax import train

    workdir = pathlib.Path(workdir)
    found = train.fit(config, workdir, max_steps=max_steps)
    return _score(config, found.parts, found.variables, workdir, found.step, "last")


def score_run(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], *, step: str = "last"
) -> list[dict]:
    """Scores a checkpoint of `workdir`: "last", "best" or a number.

    Without a run in `workdir` the file that `config.init` names, see `score_file`.

    Raises:
      FileNotFoundError: if there is no such checkpoint; the message lists what is there.
      ValueError: the run cannot be scored under this config; says why.
    """
    import jax

    from vireid_jax import build
    from vireid_jax.runtime import checkpoint, devices

    workdir = pathlib.Path(workdir)
    if build.is_file_alone(config, workdir):
        return score_file(config, workdir)
    chosen: str | int = int(step) if step.isdigit() else step
    # Before any data is loaded: a wrong folder is refused at once.
    checkpoint.find_step(workdir / "checkpoints", chosen)
    parts = build.build_to_score(config, workdir)
    shapes = jax.eval_shape(parts.method.init, jax.random.key(config.seed))
    variables, at = checkpoint.restore_variables(
        workdir / "checkpoints", devices.abstract(dict(shapes), parts.mesh), chosen
    )
    return _score(config, parts, variables, workdir, at, step)


def score_file(config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> list[dict]:
    """Scores an author's checkpoint, the file `config.init.weights`, as step 0 of `workdir`.

    Raises:
      FileNotFoundError: there is no such file, or no data.
      ValueError: it is no such checkpoint, or does not fit the recipe; says why.
    """
    import jax

    from vireid_jax import build
    from vireid_jax.runtime import devices, runfolder, writer

    workdir = pathlib.Path(workdir)
    runfolder.check_resume(workdir, config.to_dict(), allow=config.allow_changes)
    parts = build.build_file_to_score(config)
    runfolder.save_run_info(workdir, config.to_dict(), sys.argv)
    if jax.process_index() == 0 and parts.weights is not None:
        (workdir / "weights.txt").write_text(parts.weights.details() + "\n")
    writer.say(f"weights   {parts.weights}")
    variables = devices.place(dict(parts.method.init(jax.random.key(config.seed))), parts.mesh)
    return _score(config, parts, variables, workdir, 0, FILE)


def _score(
    config: ml_collections.ConfigDict,
    parts: "Parts",
    variables: Any,
    workdir: pathlib.Path,
    step: int,
    chosen: str,
) -> list[dict]:
    """Scores the test set, prints the table, saves it with per-query results."""
    import jax

    from vireid_jax import evaluate
    from vireid_jax.metrics import format_table, row_label
    from vireid_jax.runtime import devices, runfolder, watch, writer

    def fresh() -> Any:
        return devices.place(dict(parts.method.init(jax.random.key(config.seed))), parts.mesh)

    watch.phase("score")
    test = parts.split.test
    writer.say(f"scoring {len(test.query):,} infrared and {len(test.gallery):,} visible images")
    # Without its file, `fresh` would be something else than what the run began with.
    none = parts.file_is_gone or chosen == FILE
    results = parts.scorer.test(variables, test, None if none else fresh)
    about = {
        "step": step,
        "checkpoint": chosen,  # "last", "best", the number that was asked for; or "file"
        "dataset": parts.split.name,
        "test_set": runfolder.name_test_set(parts.split),
        "seed": config.seed,
        **({"trial": config.data.trial} if "trial" in config.data else {}),
    }
    for result in results:
        result |= about
    if jax.process_index() == 0:
        folder = workdir / "eval" / str(step)
        evaluate.save_results(results, folder)
        rows = {(r["protocol"], row_label(r)): r for r in results}
        writer.say(f"\n{parts.split.name}, test identities, step {step} ({workdir})")
        writer.say(format_table(rows, baselines=evaluate.BASELINES))
        writer.say(f"per-query results: {folder}")
    return results


def folder_of(
    config: ml_collections.ConfigDict | None,
    workdir: str | os.PathLike[str] | None,
    overrides: Mapping[str, Any],
) -> pathlib.Path:
    """The run's folder; unless named, runs/METHOD-DATASET[-CHANGED=VALUE...].

    Values that have no say in the training are left out. A key goes by its last word where no other
    key of the recipe has that word.
    """
    from vireid_jax.runtime import runfolder

    if workdir is not None:
        if "://" in str(workdir):
            raise ValueError(
                f"--workdir is {str(workdir)!r}, expected a folder of the file system, which all "
                "hosts of a run share; mount a bucket with gcsfuse, or use Filestore, NFS or Lustre"
            )
        return pathlib.Path(workdir)
    if config is None:
        raise ValueError("neither a recipe nor a workdir is given")
    words = Counter(key.split(".")[-1] for key in _flat(config))
    changed = []
    for key, value in sorted(overrides.items()):
        if runfolder.changes_training(key):
            word = key.split(".")[-1]
            changed.append(f"{word if words[word] == 1 else key}={value}")
    full = "-".join([config.run_name, *changed])
    name = "".join(c if c.isalnum() or c in "._-=," else "_" for c in full)
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(full.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - 9]}-{digest}"
    return pathlib.Path("runs") / name


def _use_compilation_cache() -> None:
    """Compiled programs outlive the process: a repeated command starts in seconds."""
    import jax

    from vireid_jax.runtime import files

    try:
        folder = files.user_folder("JAX_COMPILATION_CACHE_DIR", "xla")
    except FileNotFoundError:  # no home: every start compiles
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    cli()
