"""The recipe's flag of the commands, --config and the values changed in it, and its errors.

One line and exit code 2 for what is wrong with a command line, not a traceback.
"""

# Nothing heavy up here: --help and a misspelt flag must answer at once.
import keyword
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import ml_collections
from absl import flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]

_argv: list[str] = []  # the command line as the recipe's flag is to read it, see `parse`

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe: a file, with an optional data set: configs/smcl.py or configs/smcl.py:sysu. "
    "Single values: --config.optim.lr=1e-3.",
    lock_config=True,
    sys_argv=_argv,
)
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def recipe(argv: Sequence[str]) -> ml_collections.ConfigDict | None:
    """The recipe of a command line that `parse` has read; None if it names none.

    Args:
      argv: what is left of it; whatever is no flag is refused, with exit code 2, as is a recipe
        that is not there.
    """
    if len(argv) > 1:
        refuse(f"unexpected arguments {list(argv[1:])}; every option starts with --")
    try:
        config = _CONFIG.value
        if config is not None:
            config.items()  # a recipe is read at its first use
    except OSError:
        refuse(f"no recipe {config_flags.get_config_filename(flags.FLAGS['config'])!r}; {known()}")
    return config


def overrides() -> dict[str, object]:
    """The values that the command line changes in the recipe, by their dotted keys."""
    changed = config_flags.get_override_values(flags.FLAGS["config"])
    return {dotted(key): value for key, value in changed.items()}


def known() -> str:
    """Names the recipes there are, for an error."""
    apart = ("common.py", "tables.py")  # the latter needs the name of a row
    recipes = sorted(p.name for p in (ROOT / "configs").glob("*.py") if p.name not in apart)
    return f"recipes here: {', '.join(f'configs/{name}' for name in recipes) or 'none'}"


def refuse(message: str) -> NoReturn:
    """Ends the process: the command line is wrong."""
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


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; what is wrong with them becomes one line, not a traceback."""
    sys.path.append(str(ROOT))  # recipes import configs.common wherever they are run from
    argv = [quoted(argument) for argument in _with_stored_recipe(list(argv))]
    _argv[:] = argv
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # A recipe that raises arrives with its traceback; its last line is the message.
        refuse(dotted(str(error)).strip().splitlines()[-1].removeprefix("ValueError: "))
    except OSError as error:  # the recipe cannot be read, and a value of it is changed
        recipe = _given(argv).get("config", "").partition(":")[0]
        if pathlib.Path(recipe).name != "stored_recipe.py":
            refuse(f"no recipe {recipe!r}; {known()}")
        _, _, reason = str(error).partition("earlier failure to load: ")
        print(f"error: {reason.strip() or error}", file=sys.stderr)
        sys.exit(1)
    except (AttributeError, KeyError) as error:
        # A key that the locked config lacks: the text is "'lrr'\nDid you mean ...".
        text = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'")
        key, _, hint = text.strip("\"'").partition("\n")
        given = [a.split("=")[0] for a in argv if key.strip("'\"") in a.split("=")[0].split(".")]
        refuse(f"unknown key {', '.join(given) or key}. {hint}")
