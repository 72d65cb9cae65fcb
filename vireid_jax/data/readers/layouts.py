"""Tells the data sets apart by their folders, to say what a wrong root is instead."""

import os
import re

from vireid_jax.data.listing import TreeError
from vireid_jax.data.readers import common

VISIBLE_NAMES = ("visible", "vis", "rgb")
INFRARED_NAMES = ("infrared", "ir", "nir", "thermal")
PARTS = ("train", "val", "test")
_TITLES = {"sysu": "SYSU-MM01", "regdb": "RegDB", "llcm": "LLCM", "folders": "own folders"}
_MOST = 50  # children looked into for a suggestion


def has_modalities(folders: list[str]) -> bool:
    """Whether names of both modalities are among these folders' names."""
    lower = {f.lower() for f in folders}
    return bool(lower & set(VISIBLE_NAMES)) and bool(lower & set(INFRARED_NAMES))


def layout_of(path: str) -> str | None:
    """The data set whose folders lie in `path`, by their names alone."""
    try:
        folders, _ = common.entries(path)
    except OSError:
        return None
    if sum(bool(re.fullmatch("cam[1-6]", f)) for f in folders) >= 3:
        return "sysu"
    if {"Visible", "Thermal"} <= set(folders):
        return "regdb"
    if {"test_vis", "test_nir"} & set(folders) and {"vis", "nir"} & set(folders):
        return "llcm"
    if has_modalities(folders):
        return "folders"
    try:
        if any(
            has_modalities(common.entries(os.path.join(path, f))[0]) for f in folders if f in PARTS
        ):
            return "folders"
    except OSError:
        return None
    return None


def wrong_root(root: str, name: str, expected: list[str], layout: str) -> TreeError:
    """The error for a folder that is not the data set `name`.

    Args:
      root: the folder that was given.
      name: a key of `readers.READERS`.
      expected: entries that the data set has.
      layout: the data set's tree in words.
    """
    title = _TITLES[name]
    if not os.path.isdir(root):
        return TreeError(f"{root} is a file, expected the folder of {title}: {layout}")
    folders, files = common.entries(root)
    there = [e for e in expected if e in folders or e in files]
    absent = [e for e in expected if e not in there]
    inside = common.named([*(f + "/" for f in folders), *files], 8) or "nothing"
    lines = [
        f"{root} is not {title}: of the entries expected there it has "
        f"{', '.join(there) or 'none'} and lacks {', '.join(absent) or 'none'}",
        f"it holds {inside}; expected {layout}",
    ]
    if hint := _suggestion(root, name, folders):
        lines.append(hint)
    return TreeError("\n".join(lines))


def _suggestion(root: str, name: str, folders: list[str]) -> str:
    own = layout_of(root)
    if own is not None and own != name:
        return f"this looks like {_TITLES[own]}: name the data set {own}"
    near = [os.path.join(root, f) for f in folders[:_MOST]]
    near += [os.path.dirname(root), os.path.dirname(os.path.dirname(root))]
    kinds = {path: layout_of(path) for path in near}
    inside = [f for f, path in zip(folders, near, strict=False) if kinds[path] == "folders"]
    if name == "folders" and len(inside) > 1:
        return (
            f"{len(inside)} folders there, such as {inside[0]}, hold both modalities: name one of "
            "them as the root; or, if they are persons, exchange the levels (visible/<person>, not "
            "<person>/visible) or list the images in a CSV file"
        )
    for path, kind in kinds.items():
        if kind == name:
            return f"{path} looks like {_TITLES[name]}: name that folder as the root"
    for path, kind in kinds.items():
        if kind is not None:
            return f"{path} looks like {_TITLES[kind]} (data set {kind})"
    return ""
