"""What the readers share: looking into folders, comparing counts, and refusing a tree."""

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterable, Sequence

import numpy as np

from vireid_jax.data.listing import Check, Listing, TreeError
from vireid_jax.types import Records

_FIRST = 5  # a message names no more than this


@dataclasses.dataclass(frozen=True)
class Image:
    """One image that a reader found."""

    path: str  # absolute
    name: str  # relative to the root, with "/"
    person: int
    camera: int
    modality: int
    part: str


def open_root(root: str | os.PathLike[str], title: str) -> str:
    """The absolute path of a folder (or file) that exists.

    Raises:
      FileNotFoundError: it does not exist, or lies in a bucket.
    """
    text = os.fspath(root)
    if re.match(r"[a-z0-9]+://", text):
        raise FileNotFoundError(
            f"{text} is an address, expected the path of a folder: {title} is read from a disk; "
            "copy it there and prepare it once (python -m vireid_jax.data prepare), the prepared "
            "files may lie in a bucket"
        )
    path = os.path.abspath(os.path.expanduser(text))
    if not os.path.exists(path):
        folder = os.path.dirname(path)
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        inside = named(sorted(os.listdir(folder))) if os.path.isdir(folder) else ""
        raise FileNotFoundError(
            f"{path} does not exist, expected the folder of {title}; {folder} does exist and "
            f"holds {inside or 'nothing'}"
        )
    return path


def entries(path: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, each in sorted order."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(path) as found:
        for entry in found:
            (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def missing(root: str, names: Iterable[str]) -> list[str]:
    """Those names ("/" between the parts, relative or absolute) that are no files, in order.

    Looks into every folder once: asking for each file costs minutes on a network disk.
    """
    seen: dict[str, set[str]] = {}
    absent = []
    for name in names:
        folder, file = posixpath.split(name)
        if folder not in seen:
            path = os.path.join(root, folder)
            seen[folder] = set(entries(path)[1]) if os.path.isdir(path) else set()
        if file not in seen[folder]:
            absent.append(name)
    return absent


def named(items: Sequence[object], first: int = _FIRST) -> str:
    """The first few of a list in words, and how many more there are."""
    text = ", ".join(str(item) for item in items[:first])
    return text + (f" and {len(items) - first:,} more" if len(items) > first else "")


def count(what: str, expected: int, found: int, *, required: bool = True) -> Check:
    """A number that was published."""
    return Check(what, f"{expected:,}", f"{found:,}", expected == found, required)


def none(what: str, found: Sequence[object]) -> Check:
    """Things that must not be there, the first of them named."""
    text = f"{len(found):,}: {named(found, 3)}" if found else "0"
    return Check(what, "0", text, not found)


def every(what: str, total: int, wrong: Sequence[object]) -> Check:
    """Something that holds for all of `total` things, or the ones for which it does not."""
    text = f"all but {len(wrong):,}: {named(wrong, 3)}" if wrong else f"all {total:,}"
    return Check(what, f"all {total:,}", text, not wrong)


def table(checks: Sequence[Check]) -> str:
    """What was expected and what was found, a line each, for people."""
    rows = [("what", "expected", "found", "")]
    for c in checks:
        rows.append((c.what, c.expected, c.found, _verdict(c)))
    width = [max(len(row[k]) for row in rows) for k in range(3)]
    # A long cell (names of files) may run over; the columns of numbers stay readable.
    width = [min(w, limit) for w, limit in zip(width, (52, 14, 14), strict=True)]
    return "\n".join(
        f"{what:<{width[0]}}  {expected:>{width[1]}}  {found:>{width[2]}}  {verdict}".rstrip()
        for what, expected, found, verdict in rows
    )


def _verdict(check: Check) -> str:
    if check.ok:
        return "ok"
    return "DIFFERS" if check.required else "differs (no reason to refuse)"


def finish(
    name: str,
    images: Sequence[Image],
    *,
    root: str,
    title: str,
    agreement: str,
    strict: bool,
    released: bool = True,
    checks: Sequence[Check] = (),
    problems: Sequence[str] = (),
    persons: Sequence[str] = (),
) -> Listing:
    """The listing of what was found, or the refusal of it.

    Args:
      name: a key of `readers.READERS`.
      images: in the order that the listing shall have.
      root: the folder, for messages.
      title: the data set's name for people.
      agreement: in words, where the whole data set is obtained.
      strict: refuse if a required check fails.
      released: others publish results on it.
      checks: against the release.
      problems: a line each.
      persons: the name of each person number, where people have names.

    Raises:
      TreeError: strict, and a required check fails; or there is no image at all.
    """
    failed = [c for c in checks if c.required and not c.ok]
    whole = f"{title} as released" if released else f"{title} without faults"
    if not images or (failed and strict):
        cure = "" if not images else "; or go on with what is there (data.strict=False)"
        lines = [
            f"{root} is not {whole}: {len(failed)} of {len(checks)} checks differ"
            if images
            else f"{root} holds no image of {title}",
            table(failed),
            *problems,
            f"{agreement}{cure}",
        ]
        raise TreeError("\n".join(line for line in lines if line))
    notes = []
    if failed:
        so = ", so results are not comparable with published ones" if released else ""
        notes.append(
            f"this is not {whole}{so}: {len(failed)} of {len(checks)} checks differ: "
            f"{_differences(failed)} (all of them: python -m vireid_jax.data check {name} "
            f"--root {root})"
        )
    if doubtful := [c for c in checks if not c.required and not c.ok]:
        notes.append(f"differs from what is known of {title}: {_differences(doubtful)}")
    records = Records(
        [i.path for i in images],
        np.array([i.person for i in images], np.int32),
        np.array([i.camera for i in images], np.int32),
        np.array([i.modality for i in images], np.int8),
        [i.name for i in images],
    )
    return Listing(
        name, records, np.array([i.part for i in images]), tuple(checks), (*notes, *problems),
        tuple(persons),
    )  # fmt: skip


def _differences(checks: Sequence[Check], first: int = 4) -> str:
    shown = "; ".join(f"{c.what} {c.found} instead of {c.expected}" for c in checks[:first])
    return shown + (f"; and {len(checks) - first} more" if len(checks) > first else "")


def beyond_checks(listing: Listing) -> tuple[str, ...]:
    """The problems of a listing that its table of checks does not show; see `finish`."""
    failing = {c.required for c in listing.checks if not c.ok}
    return listing.problems[len(failing) :]


def skipped(what: Sequence[str], where: str) -> list[str]:
    """A line on files that are not read, or none."""
    return [f"skipped {len(what):,} other files in {where}: {named(what)}"] if what else []


def read_ids(root: str, name: str, title: str) -> list[int]:
    """The integers of an id file: one line, separated by commas.

    Raises:
      FileNotFoundError: there is no such file.
      TreeError: it holds something else.
    """
    lines = read_lines(root, name, title)
    if len(lines) != 1:
        raise TreeError(
            f"{name} in {root} has {len(lines)} lines, expected one line of numbers separated by "
            "commas; take the file from the release"
        )
    words = [word.strip() for word in lines[0].strip().strip(",").split(",")]
    if wrong := [word for word in words if not re.fullmatch(r"\d{1,9}", word)]:
        raise TreeError(
            f"{name} in {root} holds {named([repr(w[:30]) for w in wrong])}, expected numbers "
            "separated by commas; take the file from the release"
        )
    return [int(word) for word in words]


def read_pairs(root: str, name: str, title: str) -> list[tuple[str, int]]:
    """The rows "path label" of a list; paths come with "/" whatever they were written with.

    Raises:
      FileNotFoundError: there is no such file.
      TreeError: a line is something else.
    """
    pairs = []
    for number, line in enumerate(read_lines(root, name, title), start=1):
        path, _, label = line.strip().rpartition(" ")
        if not path.strip() or not re.fullmatch(r"\d{1,9}", label):
            raise TreeError(
                f"line {number} of {name} in {root} is {line[:80]!r}, expected a path, a blank and "
                "a label; take the file from the release"
            )
        pairs.append((posixpath.normpath(path.strip().replace("\\", "/")), int(label)))
    return pairs


def read_lines(root: str, name: str, title: str) -> list[str]:
    """The lines of a text file that are not blank."""
    path = os.path.join(root, *name.split("/"))
    if not os.path.isfile(path):
        folder = os.path.dirname(path)
        inside = named(sorted(os.listdir(folder))) if os.path.isdir(folder) else "no such folder"
        raise FileNotFoundError(
            f"{path} does not exist; {title} is released with it. "
            f"In {folder}: {inside or 'nothing'}"
        )
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return [line.rstrip("\n") for line in file if line.strip()]
