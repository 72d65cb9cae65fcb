"""Writes docs/options.md: every key of every recipe, with type, range, default and meaning.

python docs/make_options.py

Types are those of what takes a section, ranges those of `vireid_jax.options`.

The meaning of a key that all recipes have is its comment in configs/common.py. The meaning of an
option of a method is the text of the argument of its `build`. A key without either is an error.
`tests/docs/test_options.py` holds the page.
"""

import importlib
import inspect
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from configs import common  # noqa: E402
from vireid_jax import build, options, train  # noqa: E402
from vireid_jax.methods import METHODS, get_build  # noqa: E402
from vireid_jax.methods.common import Backbone  # noqa: E402

PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options

Every key of every recipe. Change one on the command line:
`python -m vireid_jax.main --config configs/smcl.py --config.optim.lr=1e-3`. See what a recipe ends
up with: `python -m vireid_jax.main --config configs/smcl.py --print_config`.

This page is written by `python docs/make_options.py`, from the recipes and the docstrings.
"""
DATASETS = common.DATASETS
SECTIONS = {
    "": ("The run", "Values are those of SMCL's recipe here and up to the section on methods."),
    "data": ("Data set", "See [data.md](data.md)."),
    "init": ("Pretrained weights", "See [data.md](data.md#pretrained-weights)."),
    "sampler": ("Batches", "See [data.md](data.md#batches)."),
    "loader": ("Loader", ""),
    "augment": ("Augmentation", "Probabilities and areas are fractions."),
    "optim": ("Optimizer and schedule", ""),
    "train": ("Length, logs, checkpoints", ""),
    "devices": ("Devices and memory", "See [launch.md](launch.md)."),
    "eval": ("Evaluation", "See [evaluation.md](evaluation.md)."),
}


def comments() -> dict[str, str]:
    """{key: its comment} of configs/common.py: behind the value, or on the lines above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in (ROOT / "configs" / "common.py").read_text().splitlines():
        if only := re.fullmatch(r"\s+# (.*)", line):
            above.append(only[1])
            continue
        if key := re.match(r"\s+c\.([a-z_]+(?:\.[a-z_0-9]+)?) = ", line):
            behind = re.search(r"  # (.*)$", line)
            text = behind[1] if behind else " ".join(above)
            if text:
                found.setdefault(key[1], text)
        above = []
    return found


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """{argument: its text} of a Google docstring; "a, b: text" stands for both."""
    texts: dict[str, str] = {}
    doc = inspect.getdoc(function) or ""
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", doc, re.M):
        for entry in re.split(r"^(?=\S)", textwrap.dedent(section), flags=re.M):
            names, colon, text = entry.partition(":")
            if colon:
                for name in names.split(","):
                    texts[name.strip()] = " ".join(text.split())
    return texts


def recipes() -> dict[tuple[str, str], Any]:
    """{(method, data set): its recipe}."""
    found = {}
    for method in METHODS:
        get_config = importlib.import_module(f"configs.{method}").get_config
        for dataset in common.DATASETS:
            found[method, dataset] = get_config(dataset)
    return found


def shown(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None:
        return "none"
    text = repr(value) if isinstance(value, (tuple, float)) else str(value)
    return f"`{text}`".replace("|", "\\|")


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *body)]


def kinds_of(recipes: Mapping[str, Any]) -> dict[str, str]:
    """{key: what its value may be, in words}, of a method's recipes by data set."""
    found = {}
    for recipe in recipes.values():
        sections = {"": build.TOP, "train": options.hints_of(train.Options)}
        sections |= build.section_types(recipe)
        for section, hints in sections.items():
            for name, hint in hints.items():
                key = f"{section}.{name}" if section else name
                allowed = options.range_of(key)
                kind = options.kind(hint)
                found[key] = f"{kind}, {allowed}" if allowed and "number" in kind else kind
    return found


def row(key: str, sections: Mapping[str, Any], kind: str, text: str) -> tuple[str, ...]:
    """The row of a key: its type, its value on the embedded data and on SYSU-MM01, its meaning.

    Args:
      key: dotted.
      sections: {data set: the section that has the key there}.
      kind: what its value may be.
      text: its meaning.
    """
    name = key.rpartition(".")[2]
    there = {dataset: section for dataset, section in sections.items() if name in section}
    values = [
        shown(there[dataset][name]) if dataset in there else "-"
        for dataset in ("synthetic", "sysu")
    ]
    if key == "run_name":
        values = ["`METHOD-DATASET`"] * 2
    meaning = text.replace("|", "\\|").replace("<", "&lt;").rstrip(".")
    return (f"`{key}`", kind, *values, meaning)


def page() -> str:
    """The text of docs/options.md.

    Raises:
      ValueError: a key has no meaning written down.
    """
    found, meaning = recipes(), comments()
    missing: list[str] = []
    head = ("key", "type", "embedded data", "SYSU-MM01", "meaning")
    lines = [HEAD]
    kinds = kinds_of({d: found["smcl", d] for d in DATASETS})
    for section, (title, more) in SECTIONS.items():
        of_smcl = {d: found["smcl", d][section] if section else found["smcl", d] for d in DATASETS}
        keys = list(dict.fromkeys(key for part in of_smcl.values() for key in part))
        rows = [head]
        for key in keys:
            if not section and hasattr(of_smcl["sysu"][key], "items"):
                continue
            path = f"{section}.{key}" if section else key
            if path in meaning:
                rows.append(row(path, of_smcl, kinds[path], meaning[path]))
            else:
                missing.append(path)
        lines += [f"## {title}", "", *([more, ""] if more else []), *table(rows), ""]
    lines += ["## Methods", ""]
    for method in (None, *METHODS):
        texts = arguments(Backbone if method is None else get_build(method))
        own = {d: found[method or "smcl", d] for d in DATASETS}
        methods = {d: recipe.method for d, recipe in own.items()}
        kinds = kinds_of(own)
        rows = [head]
        for key in methods["sysu"]:
            if key == "name" or (key in Backbone._fields) != (method is None):
                continue
            if key in texts:
                name = f"method.{key}"
                rows.append(row(name, methods, kinds[name], texts[key]))
            else:
                missing.append(f"method.{key} ({method or 'Backbone'})")
        title = "The ResNet of every method" if method is None else method.upper()
        lines += [f"### {title}", "", *table(rows), ""]
    if missing:
        raise ValueError(
            f"no meaning is written down for {', '.join(missing)}; add a comment in "
            "configs/common.py, or an argument to the docstring of the method's build"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
