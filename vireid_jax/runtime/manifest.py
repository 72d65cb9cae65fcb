"""What a checkpoint holds, written beside it: shape, dtype and CRC-32 of every array.

A state is split into two items by its top-level entries, "variables" (all that evaluation needs)
and "training" (the rest), and each item is a flat {path: array}. Names in the manifest are paths
joined by "/": "variables/params/conv1/kernel", "opt_state/0/mu/conv1/kernel".
"""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

FORMAT = 1
ITEMS = ("variables", "training")

Key = tuple[str, ...]  # the path of a leaf in its tree


class DamageError(ValueError):
    """A checkpoint on disk cannot be read back as it was written."""


def flatten(tree: Any) -> tuple[list[Key], list[Any], Any]:
    """Paths as strings, leaves, treedef. Containers become part of the path only by name."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    paths = [
        tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        for path, _ in leaves
    ]
    return paths, [leaf for _, leaf in leaves], treedef


def split(state: Any) -> dict[str, dict[Key, Any]]:
    """{item: {path: leaf}} of a state; "variables" is its own item."""
    items: dict[str, dict[Key, Any]] = {item: {} for item in ITEMS}
    paths, leaves, _ = flatten(state)
    for path, leaf in zip(paths, leaves, strict=True):
        items["variables" if path[:1] == ("variables",) else "training"][path] = leaf
    if not items["variables"]:
        raise ValueError(
            "the state has no top-level 'variables'; its top-level entries are "
            f"{sorted({path[0] for path in paths if path})}"
        )
    return items


def nest(flat: Mapping[Key, Any]) -> dict[str, Any]:
    """{("a", "b"): x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def array_name(path: Key) -> str:
    """How the manifest and messages call an array."""
    return "/".join(path)


def checksum(leaf: Any) -> int | None:
    """CRC-32 of an array's bytes; None where this process does not hold all of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            return None
        leaf = leaf.addressable_data(0)
    return zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8).data)


def describe(items: Mapping[str, Mapping[Key, Any]], step: int) -> dict[str, Any]:
    """The manifest of `split(state)`."""
    for flat in items.values():
        for leaf in flat.values():
            if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
                leaf.copy_to_host_async()  # all transfers at once, then the checksums
    arrays = {
        array_name(path): {"shape": list(np.shape(x)), "dtype": str(x.dtype), "crc32": checksum(x)}
        for flat in items.values()
        for path, x in flat.items()
    }
    content = {"format": FORMAT, "step": step, "arrays": arrays}
    return content | {"crc32": _text_checksum(content)}


def _text_checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The arrays of a step's manifest, {name: {"shape", "dtype", "crc32"}}.

    Raises:
      DamageError: the manifest is missing or is not what was written.
      ValueError: it was written in another format.
    """
    path = folder / "manifest" / "metadata"
    try:
        content = json.loads(path.read_text())
        crc = content.pop("crc32")
        arrays, version = content["arrays"], content["format"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamageError(f"{path}: {type(error).__name__}: {error}") from error
    if _text_checksum(content) != crc:
        raise DamageError(f"{path}: its checksum is not that of its content")
    if version != FORMAT:
        raise ValueError(
            f"{path} is of format {version}, this version reads format {FORMAT}; use the version "
            "of the package that wrote it (see env.json of the run)"
        )
    return arrays


def check_arrays(
    folder: pathlib.Path,
    wanted: Mapping[str, Mapping[Key, Any]],
    saved: Mapping[str, Any],
    items: tuple[str, ...],
) -> None:
    """Raises ValueError where names, shapes or dtypes of a step are not the target's."""
    want = {array_name(p): x for flat in wanted.values() for p, x in flat.items()}
    have = {
        name: x
        for name, x in saved.items()
        if ("variables" if name.startswith("variables/") else "training") in items
    }
    lines = []
    for name in sorted(want.keys() | have.keys()):
        a, b = have.get(name), want.get(name)
        there = f"{a['dtype']} {a['shape']}" if a else "absent"
        here = f"{b.dtype} {list(b.shape)}" if b is not None else "absent"
        if there != here:
            lines.append(f"  {name}: {there} in the checkpoint, {here} in this run")
    if lines:
        more = f"\n  and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise ValueError(
            f"{folder} was saved by another model: {len(lines)} of {len(want)} arrays differ\n"
            + "\n".join(lines[:8])
            + more
            + "\nUse the configuration that the run was started with, or another --workdir"
        )
