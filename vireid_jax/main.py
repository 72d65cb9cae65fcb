"""The command line: python -m vireid_jax.main --config configs/smcl.py [--config.key=value ...].

Exit codes: 0 done, 1 an error that the user can cure, 2 a wrong command line, 42 stopped by
SIGTERM with everything saved (run the same command again), 130 the same for Ctrl-C, 43 another
process of the run was lost (run the same command again on all hosts).
"""

# Nothing heavy up here: --help and a misspelt flag must answer at once.
import keyword
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]

_argv: list[str] = []  # the command line as the recipe's flag is to read it, see _parse

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe: a file, with an optional data set: configs/smcl.py or configs/smcl.py:sysu. "
    "Single values: --config.optim.lr=1e-3.",
    lock_config=True,
    sys_argv=_argv,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; repeating a command resumes its run. Default: "
    "runs/<name of the recipe and of the values changed in it>.",
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "train (and score), or eval: score a run's checkpoint."
)
_STEP = flags.DEFINE_string(
    "step", "last", "Checkpoint that --mode=eval scores: last, best, or a number of steps."
)
_DIST = flags.DEFINE_enum(
    "dist",
    "auto",
    ["auto", "off", "on"],
    "Several processes: auto finds a TPU pod, a Slurm step or JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID; off: one process; on: refuse to be only one.",
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main(argv: Sequence[str]) -> None:
    """Runs one command; see the module's docstring for the exit codes."""
    if len(argv) > 1:
        _refuse(f"unexpected arguments {list(argv[1:])}; every option starts with --")
    try:
        config = _CONFIG.value
        if config is not None:
            config.items()  # a recipe is read at its first use
    except OSError:
        _refuse(
            f"no recipe {config_flags.get_config_filename(flags.FLAGS['config'])!r}; {_known()}"
        )
    if config is None and not (_MODE.value == "eval" and _WORKDIR.value):
        _refuse(f"--config is missing (or --mode=eval with --workdir of a run); {_known()}")
    from vireid_jax import run

    changed = {} if config is None else config_flags.get_override_values(flags.FLAGS["config"])
    overrides = {dotted(key): value for key, value in changed.items()}
    sys.exit(
        run.run(
            config,
            workdir=_WORKDIR.value,
            overrides=overrides,
            mode=_MODE.value,
            step=_STEP.value,
            processes=_DIST.value,
            debug=_DEBUG.value,
        )
    )


def _known() -> str:
    apart = ("common.py", "ablation.py")  # the latter needs the name of a row
    recipes = sorted(p.name for p in (ROOT / "configs").glob("*.py") if p.name not in apart)
    return f"recipes here: {', '.join(f'configs/{name}' for name in recipes) or 'none'}"


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def quoted(argument: str) -> str:
    """--config.init.from=FILE as --config.init["from"]=FILE.

    Keys are read as Python expressions, where a word of the language is no name.
    """
    key, equals, value = argument.partition("=")
    if not re.fullmatch(r"--?(no)?config(\.\w+)+", key):
        return argument
    first, *names = key.split(".")
    parts = [f'["{name}"]' if keyword.iskeyword(name) else f".{name}" for name in names]
    return "".join([first, *parts, equals, value])


def dotted(text: str) -> str:
    """Undoes `quoted`, in a key or a message."""
    return re.sub(r'\["(\w+)"\]', r".\1", text)


def _given(argv: list[str]) -> dict[str, str]:
    """The values of flags, before they are parsed."""
    given = dict(zip(argv, [*argv[1:], ""], strict=True))  # --flag value
    given |= {a.partition("=")[0]: a.partition("=")[2] for a in argv if "=" in a}  # --flag=value
    return {key.lstrip("-"): value for key, value in given.items() if key.startswith("-")}


def _with_stored_recipe(argv: list[str]) -> list[str]:
    """Names the run's own recipe where --mode=eval changes a value of it without naming one."""
    given = _given(argv)
    changes = any(key.startswith("config.") for key in given)
    if given.get("mode") == "eval" and given.get("workdir") and changes and "config" not in given:
        recipe = ROOT / "vireid_jax" / "stored_recipe.py"
        return [argv[0], f"--config={recipe}:{given['workdir']}", *argv[1:]]
    return argv


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; what is wrong with them becomes one line, not a traceback."""
    sys.path.append(str(ROOT))  # recipes import configs.common wherever they are run from
    argv = [quoted(argument) for argument in _with_stored_recipe(list(argv))]
    _argv[:] = argv
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # A recipe that raises arrives with its traceback; its last line is the message.
        _refuse(dotted(str(error)).strip().splitlines()[-1].removeprefix("ValueError: "))
    except OSError as error:  # the recipe cannot be read, and a value of it is changed
        recipe = _given(argv).get("config", "").partition(":")[0]
        if pathlib.Path(recipe).name != "stored_recipe.py":
            _refuse(f"no recipe {recipe!r}; {_known()}")
        _, _, reason = str(error).partition("earlier failure to load: ")
        print(f"error: {reason.strip() or error}", file=sys.stderr)
        sys.exit(1)
    except (AttributeError, KeyError) as error:
        # A key that the locked config lacks: the text is "'lrr'\nDid you mean ...".
        text = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'")
        key, _, hint = text.strip("\"'").partition("\n")
        given = [a.split("=")[0] for a in argv if key.strip("'\"") in a.split("=")[0].split(".")]
        _refuse(f"unknown key {', '.join(given) or key}. {hint}")
    raise AssertionError("unreachable")


def cli() -> None:
    """Entry point of the `vireid` command."""
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    cli()
