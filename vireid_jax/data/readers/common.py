"""What the readers share: listings and checks, looking into folders, dividing people."""

import dataclasses
import io
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.runtime.files import read_regular
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE, Records, Retrieval, Split

_FIRST = 5  # a message names no more than this
_MOST = 50  # folders looked into to say what a wrong root is instead
_SAMPLE = 8  # images of a camera that `exchanged` looks at
_ALIKE = 0.75  # share of a sample that makes a camera
# Mean difference between the largest and smallest channel, in gray levels of 255. A JPEG that
# was gray has 0; clothes and walls have 15 and more.
_GRAY = 8.0
_MAX_LIST = 256 * 2**20  # bytes of a list of images


class Check(NamedTuple):
    """One fact about a data set, as published and as found."""

    what: str  # "train identities", "queries", ...
    expected: str
    found: str
    ok: bool
    required: bool = True  # False: reported, never a reason to refuse


@dataclasses.dataclass(frozen=True)
class Listing:
    """Every image of a data set that its protocols use.

    `part` says where an image belongs: "train", "val" or "test"; for RegDB ten letters, one for
    each trial, "r" where the image is in the training half and "e" where it is in the other
    ("-": in neither). "all" where people are divided only by the reader's `split`.
    """

    name: str  # a key of `readers.READERS`
    records: Records  # paths, encoded images or pixels
    part: np.ndarray  # str [N]
    checks: tuple[Check, ...] = ()
    problems: tuple[str, ...] = ()  # files and identities that need attention, a line each
    persons: tuple[str, ...] = ()  # the name of person number n, where people have names

    def take(self, rows: np.ndarray) -> "Listing":
        """The images at `rows` (int [n] or bool [N]); checks and problems stay."""
        return dataclasses.replace(self, records=self.records.take(rows), part=self.part[rows])


class TreeError(ValueError):
    """A tree is not the data set that it was said to be; the message says how it differs."""


class Image(NamedTuple):
    """One image that a reader found."""

    path: str  # absolute
    name: str  # relative to the root, with "/"
    person: int
    camera: int
    modality: int
    part: str


# --- The root -------------------------------------------------------------------------------


def open_tree(root: str | os.PathLike[str], name: str) -> str:
    """The absolute path of a folder; TreeError unless it is laid out like the data set `name`."""
    reader = _readers()[name]
    path = open_root(root, reader.TITLE)
    if not os.path.isdir(path) or not reader.looks_like(path, entries(path)[0]):
        raise wrong_root(path, name)
    return path


def open_root(root: str | os.PathLike[str], title: str) -> str:
    """The absolute path of a folder or file; FileNotFoundError unless it exists on a disk."""
    text = os.fspath(root)
    if re.match(r"[a-z0-9]+://", text):
        raise FileNotFoundError(
            f"{text} is an address, expected the path of a folder: {title} is read from a disk; "
            "copy it there, or mount the bucket"
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


def _readers() -> dict[str, Any]:
    from vireid_jax.data.readers import READERS  # which imports the readers, and they this file

    return READERS


def _layout_of(path: str) -> str | None:
    """The data set whose folders lie in `path`, by their names alone."""
    try:
        folders, _ = entries(path)
        return next((n for n, r in _readers().items() if r.looks_like(path, folders)), None)
    except OSError:
        return None


def wrong_root(root: str, name: str) -> TreeError:
    """The error for a folder that is not the data set `name`."""
    reader = _readers()[name]
    if not os.path.isdir(root):
        return TreeError(
            f"{root} is a file, expected the folder of {reader.TITLE}: {reader.LAYOUT}"
        )
    folders, files = entries(root)
    there = [e for e in reader.ENTRIES if e in folders or e in files]
    absent = [e for e in reader.ENTRIES if e not in there]
    inside = named([*(f + "/" for f in folders), *files], 8) or "nothing"
    return TreeError(
        f"{root} is not {reader.TITLE}: of the entries expected there it has "
        f"{', '.join(there) or 'none'} and lacks {', '.join(absent) or 'none'}\n"
        f"it holds {inside}; expected {reader.LAYOUT}\n{_suggestion(root, name, folders)}".rstrip()
    )


def _suggestion(root: str, name: str, folders: list[str]) -> str:
    title = {key: reader.TITLE for key, reader in _readers().items()}
    own = _layout_of(root)
    if own is not None and own != name:
        return f"this looks like {title[own]}: name the data set {own}"
    near = [os.path.join(root, f) for f in folders[:_MOST]]
    near += [os.path.dirname(root), os.path.dirname(os.path.dirname(root))]
    kinds = {path: _layout_of(path) for path in near}
    inside = [f for f, path in zip(folders, near, strict=False) if kinds[path] == "folders"]
    if name == "folders" and len(inside) > 1:
        return (
            f"{len(inside)} folders there, such as {inside[0]}, hold both modalities: name one of "
            "them as the root; or, if they are persons, exchange the levels (visible/<person>, not "
            "<person>/visible) or list the images in a CSV file"
        )
    # Folders of this data set first.
    for path, kind in sorted(kinds.items(), key=lambda item: item[1] != name):
        if kind == name:
            return f"{path} looks like {title[name]}: name that folder as the root"
        if kind is not None:
            return f"{path} looks like {title[kind]} (data set {kind})"
    return ""


# --- Folders and lists ---------------------------------------------------------------------


def entries(path: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, each in sorted order."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(path) as found:
        for entry in found:
            (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def numbered(path: str, pattern: str = r"(\d{1,9})") -> list[tuple[int, str]]:
    """(number, name) of the folders in `path` with such names, ascending; none without `path`.

    The group of the pattern is the number.
    """
    folders = entries(path)[0] if os.path.isdir(path) else []
    matches = [re.fullmatch(pattern, folder, re.ASCII) for folder in folders]
    return sorted((int(match[1]), match[0]) for match in matches if match)


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


def read_ids(root: str, name: str, title: str) -> list[int]:
    """The integers of an id file: one line, separated by commas, else a TreeError."""
    lines = _read_lines(root, name, title)
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
    """The rows "path label" of a list, else a TreeError; paths come with "/"."""
    pairs = []
    for number, line in enumerate(_read_lines(root, name, title), start=1):
        path, _, label = line.strip().rpartition(" ")
        if not path.strip() or not re.fullmatch(r"\d{1,9}", label):
            raise TreeError(
                f"line {number} of {name} in {root} is {line[:80]!r}, expected a path, a blank and "
                "a label; take the file from the release"
            )
        pairs.append((posixpath.normpath(path.strip().replace("\\", "/")), int(label)))
    return pairs


def _read_lines(root: str, name: str, title: str) -> list[str]:
    """The lines of a text file that are not blank; FileNotFoundError without the file."""
    path = os.path.join(root, *name.split("/"))
    if not os.path.isfile(path):
        folder = os.path.dirname(path)
        inside = named(sorted(os.listdir(folder))) if os.path.isdir(folder) else "no such folder"
        raise FileNotFoundError(
            f"{path} does not exist; {title} is released with it. "
            f"In {folder}: {inside or 'nothing'}"
        )
    text = read_list(path).decode("utf-8-sig", errors="replace")
    lines = io.StringIO(text, newline=None)  # any of the three ways to end a line
    return [line.rstrip("\n") for line in lines if line.strip()]


def read_list(path: str) -> bytes:
    """The content of a list of images; TreeError if it is no regular file, or too large."""
    try:
        return read_regular(path, _MAX_LIST)
    except ValueError as error:
        raise TreeError(f"{path} is not read as a list of images: {error}") from error


# --- Checks ---------------------------------------------------------------------------------


def count(what: str, expected: int, found: int, *, required: bool = True) -> Check:
    """A number that was published."""
    return Check(what, f"{expected:,}", f"{found:,}", expected == found, required)


def none(what: str, found: Sequence[object], *, required: bool = True) -> Check:
    """Things that must not be there, the first of them named."""
    text = f"{len(found):,}: {named(found, 3)}" if found else "0"
    return Check(what, "0", text, not found, required)


def every(what: str, total: int, wrong: Sequence[object]) -> Check:
    """Something that holds for all of `total` things, or the ones for which it does not."""
    text = f"all but {len(wrong):,}: {named(wrong, 3)}" if wrong else f"all {total:,}"
    return Check(what, f"all {total:,}", text, not wrong)


def lists_labeled(lists: Mapping[str, Sequence[tuple[str, int]]]) -> Check:
    """Whether the labels of each list ("path label") number its folders from 0 on."""
    wrong = []
    for name, rows in lists.items():
        pairs = {(label, posixpath.dirname(path)) for path, label in rows}
        labels = {label for label, _ in pairs}
        if len(pairs) != len(labels) or labels != set(range(len(labels))):
            wrong.append(name)
    return every("lists labeled 0 .. n-1, a label a person", len(lists), wrong)


def table(checks: Sequence[Check]) -> str:
    """What was expected and what was found, a line each, for people."""
    verdict = {True: "DIFFERS", False: "differs (no reason to refuse)"}
    rows = [("what", "expected", "found", "")]
    rows += [(c.what, c.expected, c.found, "ok" if c.ok else verdict[c.required]) for c in checks]
    # A long cell (names of files) may run over; the columns of numbers stay readable.
    width = [min(max(len(row[k]) for row in rows), (52, 14, 14)[k]) for k in range(3)]
    return "\n".join(
        f"{what:<{width[0]}}  {expected:>{width[1]}}  {found:>{width[2]}}  {last}".rstrip()
        for what, expected, found, last in rows
    )


def finish(
    name: str,
    images: Sequence[Image],
    *,
    root: str,
    strict: bool,
    cure: str = "",
    title: str = "",
    checks: Sequence[Check] = (),
    problems: Sequence[str] = (),
    persons: Sequence[str] = (),
) -> Listing:
    """The listing of what was found, or the refusal of it.

    Args:
      name: a key of `readers.READERS`.
      images: in the order that the listing shall have.
      root: the folder, for messages.
      strict: refuse if a required check fails.
      cure: in words, where the whole data set is obtained; "" for the reader's agreement.
      title: what messages call a set on which nobody publishes results; "" for a released one.
      checks: of the listing, as `problems` and `persons`.
      problems: a line each.
      persons: the name of each person number.

    Raises:
      TreeError: strict, and a required check fails; or there is no image at all.
    """
    reader = _readers()[name]
    whole = f"{title} without faults" if title else f"{reader.TITLE} as released"
    cure = cure or f"the whole of it is had after signing the agreement, see {reader.AGREEMENT}"
    failed = [c for c in checks if c.required and not c.ok]
    if not images or (failed and strict):
        head = f"{root} holds no image of {title or reader.TITLE}"
        if images:
            head = f"{root} is not {whole}: {len(failed)} of {len(checks)} checks differ"
            cure += "; or go on with what is there (data.strict=False)"
        raise TreeError("\n".join(line for line in (head, table(failed), *problems, cure) if line))
    notes = []
    if failed:
        so = "" if title else ", so results are not comparable with published ones"
        notes.append(
            f"this is not {whole}{so}: {len(failed)} of {len(checks)} checks differ: "
            f"{differences(failed)} (all of them: python -m vireid_jax.data check {name} "
            f"--root {root})"
        )
    if doubtful := [c for c in checks if not c.required and not c.ok]:
        known = title or reader.TITLE
        notes.append(f"differs from what is known of {known}: {differences(doubtful)}")
    records = Records(
        [i.path for i in images],
        np.array([i.person for i in images], np.int32),
        np.array([i.camera for i in images], np.int32),
        np.array([i.modality for i in images], np.int8),
        [i.name for i in images],
    )
    part = np.array([i.part for i in images])
    return Listing(name, records, part, tuple(checks), (*notes, *problems), tuple(persons))


def differences(checks: Sequence[Check], first: int = 4) -> str:
    """The first of some checks that fail, in words, and how many more there are."""
    shown = "; ".join(f"{c.what} {c.found} instead of {c.expected}" for c in checks[:first])
    return shown + (f"; and {len(checks) - first} more" if len(checks) > first else "")


def beyond_checks(listing: Listing) -> tuple[str, ...]:
    """The problems of a listing that its table of checks does not show; see `finish`."""
    failing = {c.required for c in listing.checks if not c.ok}
    return listing.problems[len(failing) :]


def lonely(images: Sequence[Image], people: Mapping[str, Iterable[int]]) -> list[str]:
    """Lines on the people of each part who lack a modality."""
    seen = {(i.person, i.modality) for i in images}
    lines = []
    for part, persons in people.items():
        fate = "without a match in the test" if part == "test" else "left out of training"
        for modality, word in enumerate(MODALITIES):
            if lost := [f"{p:04d}" for p in sorted(set(persons)) if (p, modality) not in seen]:
                lines.append(
                    f"{len(lost)} {part} persons have no {word} image, so they are {fate}: "
                    f"{named(lost)}"
                )
    return lines


def skipped(what: Sequence[str], where: str) -> list[str]:
    """A line on files that are not read, or none."""
    return [f"skipped {len(what):,} other files in {where}: {named(what)}"] if what else []


def exchanged(listing: Listing) -> list[str]:
    """Lines on cameras whose images look as if they were of the other modality.

    Eight images of each camera are looked at: infrared images have no color. It is a hint, not
    a proof: a dark room has no color either, and thermal images may come in false colors.
    """
    from vireid_jax.data.decoding import decodable  # only this function opens images

    records = listing.records
    causes = ("infrared images, or very dark ones?", "visible images, or false colors?")
    suspects: list[tuple[int, str]] = []
    seen = 0
    for modality, camera in sorted(set(zip(records.modality, records.camera, strict=True))):
        rows = np.flatnonzero((records.modality == modality) & (records.camera == camera))
        rows = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int)]
        images = [records.images[n] for n in rows.tolist()]
        names = [records.name[n] for n in rows.tolist()]
        pixels, _ = decodable(images, names, (48, 24), "bilinear")
        if not len(pixels):
            continue
        seen += 1
        gray = np.ptp(pixels.astype(int), axis=-1).mean(axis=(1, 2)) < _GRAY  # [n]
        odd = int((gray == (modality == VISIBLE)).sum())
        if odd >= _ALIKE * len(pixels):
            line = (
                f"camera {camera} is {MODALITIES[modality]}, but {odd} of {len(pixels)} images "
                f"looked at are {('without', 'in')[modality]} color: {causes[modality]}"
            )
            suspects.append((modality, line))
    if len(suspects) == seen and len({modality for modality, _ in suspects}) == 2:
        return [
            "visible and infrared images look exchanged: the visible ones are without color, the "
            "infrared ones in color; are the folders the wrong way round?"
        ]
    return [line for _, line in suspects]


# --- Dividing people ------------------------------------------------------------------------


def check_number(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer in low .. high."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):  # type: ignore[operator]
        upper = "or more" if high is None else f"to {high}"
        raise ValueError(f"{name} is {value!r}, expected a whole number, {low} {upper}")


def check_listing(listing: Listing, name: str) -> None:
    """Raises ValueError unless the listing is of that data set."""
    if listing.name != name:
        raise ValueError(
            f"the listing is of {listing.name!r}, but this is the reader of {name!r}; use "
            f"readers.get_reader({listing.name!r})"
        )


def paired(records: Records, rows: np.ndarray, least: int = 1) -> np.ndarray:
    """Int32 [C] ascending: persons with `least` images in both modalities in `rows` (bool [N])."""
    enough = []
    for modality in (VISIBLE, INFRARED):
        mine = records.person[rows & (records.modality == modality)]
        persons, counts = np.unique(mine, return_counts=True)
        enough.append(persons[counts >= least])
    return np.intersect1d(enough[0], enough[1])


def spread(persons: np.ndarray, count: int) -> np.ndarray:
    """`count` of the persons, evenly over their order: positions floor((2i + 1) n / 2 count)."""
    n = len(persons)
    return persons[[(2 * i + 1) * n // (2 * count) for i in range(count)]]


def hold_out(records: Records, train: np.ndarray, count: int) -> np.ndarray:
    """Bool [N], the rows of `count` training persons to validate on, see `spread`.

    Only persons with both modalities are chosen: others cannot be found. ValueError if fewer than
    two of them are left for training.
    """
    if count == 0:
        return np.zeros(len(records), bool)
    persons = paired(records, train)
    if count > len(persons) - 2:
        raise ValueError(
            f"val_ids is {count}, but the training half has {len(persons)} persons with both "
            f"modalities and keeps at least 2; give 0 to {max(0, len(persons) - 2)}"
        )
    return train & np.isin(records.person, spread(persons, count))


def retrieval(records: Records, rows: np.ndarray) -> Retrieval:
    """Infrared queries, visible gallery."""
    return Retrieval(
        query=records.take(rows & (records.modality == INFRARED)),
        gallery=records.take(rows & (records.modality == VISIBLE)),
    )


def divide(
    listing: Listing,
    *,
    train: np.ndarray,
    test: np.ndarray,
    val: np.ndarray | int = 0,
    notes: tuple[str, ...] = (),
) -> Split:
    """The split for three sets of rows, each bool [N]; an empty `val` is None.

    A number as `val` holds out as many training persons, see `hold_out`. A listing that is not as
    released may have persons in two sets: nobody who is tested or validated on is trained on, and
    nobody who is tested on is validated on.
    """
    records = listing.records
    if not isinstance(val, np.ndarray):
        if val:
            notes += (f"trains without {val} persons, held out for validation",)
        val = hold_out(records, train, val)
        train = train & ~val
    tested = np.isin(records.person, records.person[test])
    val = val & ~tested
    taken = train & (tested | np.isin(records.person, records.person[val]))
    if taken.any():
        persons = np.unique(records.person[taken]).tolist()
        notes += (
            f"{len(persons)} persons are trained and tested on; left out of training: "
            f"{named(persons)}",
        )
    return Split(
        listing.name,
        records.take(train & ~taken),
        retrieval(records, test),
        retrieval(records, val) if val.any() else None,
        notes,
    )
