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
process of the run was lost (run the same command again on all hosts), 75 another command works in
the run's folder, 70 an error of the program's own: a file that the message names has all about it.
"""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime import memory
    from vireid_jax.runtime.command import answer_signals

    memory.prepare()
    answer_signals()

# Nothing heavy up here: --help and a misspelt flag must answer at once.
import contextlib
import difflib
import hashlib
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import ml_collections
from absl import flags, logging
from ml_collections import config_dict, config_flags

import vireid_jax
from vireid_jax.options import flat, full_paths
from vireid_jax.runtime import EXIT_IN_USE, command, memory, printable

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


def cli() -> NoReturn:
    """The command line; see the module's docstring."""
    memory.prepare()
    command.run(lambda: main(sys.argv))


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
    config, overrides = parse(argv, own, about=__doc__)
    flags.FLAGS.mark_as_parsed()  # absl's log asks for it
    if config is None:
        refuse(f"--config is missing (or --mode=eval with --workdir of a run); {known()}")
    if own.print_config:
        print(
            "\n".join(f"{key} = {value!r}" for key, value in sorted(flat(config.to_dict()).items()))
        )
        sys.exit(0)
    named = own["config"].present or bool(overrides)
    sys.exit(
        run(
            config if named else None,
            workdir=own.workdir,
            overrides=overrides,
            source=own.config or os.path.join(own.workdir, "config.json"),
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
) -> tuple[ml_collections.ConfigDict | None, dict[str, Any]]:
    """Parses a command line; what is wrong with it becomes one line and exit code 2.

    Adds --config, the values changed in it, --debug and --version to the flags in `own`; `about` is
    what --help says above them.

    Returns:
      The recipe that --config names; with --mode=eval and no --config the one of the run in
      --workdir; None where neither is given. And the values that were changed, by key.
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
    given = _given(argv)
    stored = given.get("mode") == "eval" and given.get("workdir") and "config" not in given
    try:
        if stored:
            config = _stored(str(given["workdir"]))
        else:
            config = read_recipe(given["config"]) if "config" in given else None
        flags.DEFINE_string("config", None, text, flag_values=own)
        rest = own([word for word in _joined(argv) if not _CHANGE.match(word)])
        if len(rest) > 1:
            refuse(f"unexpected arguments {rest[1:]}; every option starts with --")
        changes = _changes(argv)
        if config is None:
            return None, {}
        return changed(config, changes, source=given.get("config"))
    except flags.Error as error:
        refuse(str(error).strip().splitlines()[-1])
    except ValueError as error:
        refuse(str(error))


_CHANGE = re.compile(r"--?(no)?config\.")
_SIZE = re.compile(r"\(?\s*(\d+)\s*[xX]\s*(\d+)\s*\)?")


def _joined(argv: Sequence[str]) -> list[str]:
    """The command line with --config.KEY VALUE as --config.KEY=VALUE."""
    words: list[str] = []
    for word in argv:
        last = words[-1] if words else ""
        if _CHANGE.match(last) and "=" not in last and not word.startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _changes(argv: Sequence[str]) -> list[str]:
    """The values that are changed in the recipe; of one that is given twice the last."""
    found: dict[str, str] = {}
    for word in filter(_CHANGE.match, _joined(argv)):
        key, equals, value = _CHANGE.sub("", word).partition("=")
        if key.endswith("image_size") and (size := _SIZE.fullmatch(value)):
            value = f"({size[1]}, {size[2]})"
        found.pop(key, None)
        found[key] = f"--{'no' * word.lstrip('-').startswith('no')}config.{key}{equals}{value}"
    return list(found.values())


def changed(
    config: ml_collections.ConfigDict, changes: Sequence[str], *, source: str | None = None
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """A recipe with the values of --config.KEY=VALUE, and {KEY: value} of these.

    Args:
      config: the recipe.
      changes: the last of several values for a key counts.
      source: how --config names the recipe, for a message.

    Raises:
      ValueError: a line about the flag that is wrong.
    """
    changes = _changes(changes)
    known = flat(config.to_dict())
    for change in changes:
        key, _, value = _CHANGE.sub("", change).partition("=")
        if key in ("method.name", "data.name") and value != known.get(key):
            recipe = (source or "NAME").partition(":")[0]
            named = f"{value}:{known['data.name']}" if key[0] == "m" else f"{recipe}:{value}"
            raise ValueError(
                f"--config.{key}={value} would change the name alone, and not the options that "
                f"belong to {known.get(key)}; choose the recipe instead: --config={named}"
            )
        if key not in known:
            raise ValueError(_unknown(key, known))
    own = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=own, sys_argv=["", *changes])
        own(["", *changes])
        found = own.config
        values = config_flags.get_override_values(own["config"]) if changes else {}
    except flags.Error as error:
        raise ValueError(str(error).strip().splitlines()[-1]) from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{' '.join(changes)}: {error}") from error
    return found, dict(values)


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    """What there is instead of a key that the recipe lacks, as flags."""
    section, _, word = key.rpartition(".")
    if key in {k.rpartition(".")[0] for k in known}:
        return (
            f"--config.{key} is a section; change one of its values: "
            f"{', '.join(f'--config.{k}=VALUE' for k in known if k.startswith(f'{key}.'))}"
        )
    last = {k: k.rpartition(".")[2] for k in known}
    near = [k for k in difflib.get_close_matches(key, known, 2, 0.8)]
    near += [k for k, name in last.items() if difflib.get_close_matches(word, [name], 1, 0.7)]
    near += [k for k, name in last.items() if word and word in name.split("_")]
    near = near or [k for k in known if k.startswith(f"{section}.")] or list(known)
    hints = [f"--config.{k}=VALUE" for k in dict.fromkeys(near)][:5]
    hints += ["--max_steps=VALUE"] * ("steps" in word)
    return f"unknown key --config.{key}. Did you mean {' or '.join(hints)}?"


def read_recipe(source: str) -> ml_collections.ConfigDict:
    """The recipe that --config names: FILE[:ARGUMENT] or NAME[:ARGUMENT].

    Raises:
      ValueError: there is none, or it raises; says in which line.
    """
    name, colon, argument = source.partition(":")
    path = recipe_path(name)
    if path is None:
        raise ValueError(f"no recipe {name!r}; {known()}")
    add_recipes_to_path()
    try:
        get_config = runpy.run_path(str(path), run_name="recipe").get("get_config")
        if get_config is None:
            raise ValueError(f"{path} has no function get_config")
        config = get_config(argument) if colon else get_config()
        if not isinstance(config, ml_collections.ConfigDict):
            raise ValueError(f"get_config of {path} returns {config!r}, expected a ConfigDict")
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and frames[-1].filename != str(path):
            raise ValueError(text) from error  # about the words behind the colon
        at = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        where = f"{path}, line {at}" if at else str(path)
        raise ValueError(f"{where}: {type(error).__name__}: {text}") from error
    return config.lock()


def _line_of(source: str, key: str) -> str:
    """The place in a recipe's file that a message about one of its keys names."""
    path = recipe_path(source) or recipe_path(source.partition(":")[0])
    lines = path.read_text().splitlines() if path else []
    code = [line.partition("#")[0] for line in lines]
    for word in (*reversed(key.split(".")), "get_config"):
        if found := [n for n, line in enumerate(code, 1) if re.search(rf"\b{word}\b", line)]:
            return f"{path}, line {found[-1]}: "
    return f"{path}: "


def refuse(message: str, code: int = 2) -> NoReturn:
    """Ends the process: the command line is wrong."""
    print(printable(f"error: {message}"), file=sys.stderr)
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


def _given(argv: Sequence[str]) -> dict[str, str]:
    """The values of flags, before they are parsed."""
    given = dict(zip(argv, [*argv[1:], ""], strict=True))  # --flag value
    given |= {a.partition("=")[0]: a.partition("=")[2] for a in argv if "=" in a}  # --flag=value
    return {key.lstrip("-"): value for key, value in given.items() if key.startswith("-")}


def _stored(workdir: str) -> ml_collections.ConfigDict:
    """The recipe of the run in `workdir`, so that single values of it can be changed.

    JSON does not say what type an option has that was left at None; on the command line it is
    text or a whole number.
    """
    from vireid_jax.runtime import files, runfolder

    try:
        config = runfolder.load_config(files.expanded(workdir, "--workdir"))
    except (OSError, ValueError) as error:
        refuse(str(error), code=1)
    for section in config.values():
        for key, value in section.items() if hasattr(section, "items") else ():
            if value is None:
                whole = key in ("trials", "steps_per_epoch")
                section[key] = config_dict.placeholder(int if whole else str)
    return config


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
    source: str | None = None,
) -> int:
    """Trains and scores a recipe, or scores a run, as a command of its own.

    Args:
      config: a recipe; None takes the one stored in `workdir`. To "eval" a recipe gives the
        data, loader and eval sections, the run in `workdir` all others.
      workdir: folder of the run; None names one under runs/ after the recipe and `overrides`.
      overrides: the values that were changed in the recipe, for that name.
      mode, step, dist, max_steps: as the flags of the command.
      debug: let errors through with their traceback.
      source: how --config names the recipe, for messages.

    Returns:
      The exit code, as the module's docstring has it.
    """
    command.answer_signals()
    from vireid_jax import build, train
    from vireid_jax.runtime import (
        compilation,
        devices,
        files,
        preemption,
        processes,
        runfolder,
        runlock,
    )
    from vireid_jax.types import Stopped

    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    code, message = 0, ""
    holding = contextlib.ExitStack()
    try:
        folder = folder_of(config, workdir, overrides or {})
        source = source or (str(folder / runfolder.CONFIG) if config is None else None)
        if mode == "eval":
            config = build.config_to_score(config, folder, overrides or {})
        elif config is None:
            config = runfolder.load_config(folder)
        config = ml_collections.ConfigDict(full_paths(config.to_dict())).lock()
        if mode == "eval":
            build.check(config, sections=build.SCORED)
        else:
            build.check(config, train=train.Options)
        files.check_writable(folder)

        def hold(process: int) -> None:
            holding.enter_context(runlock.held(folder, process))

        processes.start(folder, dist, hold)
        if processes.count() > 1:
            preemption.install()
        compilation.use_cache()
        if mode == "train":
            hold(processes.process())  # before the devices, which the other command may have
        devices.share_cpu()
        processes.check_equal(
            "the package and the config", runfolder.shared_facts(config.to_dict())
        )
        processes.check_equal("devices", devices.local_facts())
        with files.explain_full_disk(folder, what="the run", hint="name another --workdir"):
            if mode == "eval":
                score_run(config, folder, step=step)
            else:
                train_and_score(config, folder, max_steps=max_steps)
    except train.Preempted as stop:
        code, message = preemption.exit_code(), f"{stop}; run the same command again to go on"
    except Stopped:
        code = preemption.exit_code()
        message = "evaluation stopped on request; run the same command again"
    except runlock.InUseError as error:
        code, message = EXIT_IN_USE, f"error: {error}"
    except (ValueError, OSError, FloatingPointError) as error:
        if debug and processes.count() == 1:
            raise
        if debug:
            traceback.print_exc()
        key = getattr(error, "key", None)
        at = _line_of(source, key) if source and key and key not in (overrides or {}) else ""
        code, message = 1, f"error: {at}{error}\n(--debug shows where)"
    except Exception as error:
        if processes.count() == 1:
            raise
        # With another process gone, jax, Orbax and the collectives fail in many ways.
        if debug:
            traceback.print_exc()
        code, message = processes.explain(error)
    finally:
        holding.close()
    if message:
        print(printable(message), file=sys.stderr, flush=True)
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
    from vireid_jax.runtime import devices, files, runfolder, writer

    workdir = pathlib.Path(workdir)
    runfolder.check_resume(workdir, config.to_dict(), allow=config.allow_changes)
    parts = build.build_file_to_score(config)
    runfolder.save_run_info(workdir, config.to_dict(), sys.argv)
    if jax.process_index() == 0 and parts.weights is not None:
        files.write_whole(workdir / "weights.txt", parts.weights.details() + "\n")
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
    from vireid_jax.runtime import devices, preemption, runfolder, watch, writer

    preemption.take_over()

    def fresh() -> Any:
        return devices.place(dict(parts.method.init(jax.random.key(config.seed))), parts.mesh)

    watch.phase("score")
    test = parts.split.test
    writer.say(f"scoring {len(test.query):,} infrared and {len(test.gallery):,} visible images")
    # Without its file, `fresh` would be something else than what the run began with.
    none = parts.file_is_gone or chosen == FILE
    results = parts.scorer.test(variables, test, None if none else fresh)
    data = runfolder.recipe({"data": config.data.to_dict()})
    about = {
        "step": step,
        "checkpoint": chosen,  # "last", "best", the number that was asked for; or "file"
        "dataset": parts.split.name,
        "test_set": runfolder.name_test_set(parts.split),
        "seed": config.seed,
        **({"trial": config.data.trial} if "trial" in config.data else {}),
        "data": {key.removeprefix("data."): value for key, value in data.items()},
        "recipe": runfolder.trained_with(workdir),
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
    from vireid_jax.runtime import files, runfolder

    if workdir is not None:
        if "://" in str(workdir):
            raise ValueError(
                f"--workdir is {str(workdir)!r}, expected a folder of the file system, which all "
                "hosts of a run share; mount a bucket with gcsfuse, or use Filestore, NFS or Lustre"
            )
        return files.expanded(workdir, "--workdir")
    if config is None:
        raise ValueError("neither a recipe nor a workdir is given")
    words = Counter(key.split(".")[-1] for key in flat(config.to_dict()))
    changed = []
    for key, value in sorted(overrides.items()):
        if runfolder.changes_training(key):
            word = key.split(".")[-1]
            changed.append(f"{word if words[word] == 1 else key}={value}")
    full = "-".join([config.run_name, *changed])
    name = "".join(c if c.isalnum() or c in "._-=," else "_" for c in full)
    if not name.strip("."):  # runs/ itself, or what is above it
        raise ValueError(f"run_name is {config.run_name!r}, expected the name of a folder")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(full.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - 9]}-{digest}"
    return pathlib.Path("runs") / name


if __name__ == "__main__":
    cli()
