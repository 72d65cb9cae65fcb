"""Writes docs/options.md: every key of every recipe, from the recipes and the docstrings.

python docs/make_options.py

The meaning of a key is the text of the argument that takes it, so a key without a documented
argument is an error. `tests/docs/test_options.py` fails when the page is not up to date.
"""

import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "options.md"


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """{argument: its text} of a Google docstring; "a, b: text" stands for both.

    Args:
      function: a function, or a class whose docstring has the sections.
    """
    texts: dict[str, str] = {}
    doc = inspect.getdoc(function) or ""
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", doc, re.M):
        for entry in re.split(r"^(?=\S)", textwrap.dedent(section), flags=re.M):
            names, colon, text = entry.partition(":")
            if colon:
                for name in names.split(","):
                    texts[name.strip().lstrip("*")] = " ".join(text.split())
    return texts


def type_name(values: list[Any]) -> str:
    """What a key takes, from the values that it has in the recipes."""
    words = {
        bool: "True or False",
        int: "whole number",
        float: "number",
        str: "text",
        tuple: "list",
        type(None): "none",
    }
    kinds = list(dict.fromkeys(words.get(type(v), type(v).__name__) for v in values))
    if "whole number" in kinds and "number" in kinds:
        kinds.remove("whole number")
    return " or ".join(sorted(kinds, key=lambda kind: kind == "none"))


def shown(value: Any) -> str:
    """A value as the command line takes it."""
    return "" if value is None else f"`{value}`".replace("|", "\\|")


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
