"""One's own images, in folders or by a CSV file; nothing has to be numbered or converted.

  <root>/visible/<person>/*   <root>/infrared/<person>/*       or vis, rgb; ir, nir, thermal
  <root>/{train,val,test}/visible/<person>/* ...               if the people are divided already
  <root>.csv: path, person, modality, and maybe camera, split

Persons have any names. Names that are all numbers are kept as those numbers; otherwise persons
are numbered 0, 1, ... by their sorted names (`Listing.persons`). Folders know no cameras: all
are 0 then. The protocols folders/i2v and folders/v2i do not go by cameras anyway.

A person with images in one modality only, or with fewer than `MIN_IMAGES` in one, is not
trained on. Unless people are divided already, such a person is among those who are searched
for: visible images fill the gallery, infrared ones are queries that no protocol counts.
"""

import collections
import csv
import hashlib
import io
import os
import posixpath
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Check, Image, Listing, TreeError
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE, Split

TITLE = "own folders"
LAYOUT = (
    "visible/<person>/* and infrared/<person>/* (or train/visible/..., test/visible/...), or one "
    "CSV file with the columns path, person, modality"
)
DESCRIPTION = "a user's own visible and infrared person images"
AGREEMENT = "your own images"
PUBLISHED = None  # nobody knows how many people these are
ENTRIES = ("visible", "infrared")  # of the root
VISIBLE_NAMES = ("visible", "vis", "rgb")
INFRARED_NAMES = ("infrared", "ir", "nir", "thermal")
PARTS = ("train", "val", "test")
MIN_IMAGES = 2  # of a modality, to be trained on: of a single one no two batches differ
_FIRST = 10  # persons named one by one
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_COLUMNS = ("path", "person", "modality")
_OPTIONAL = ("camera", "split")


class Row(NamedTuple):
    """One image, as its owner describes it."""

    path: str  # absolute
    name: str  # relative to the root, with its ending: a.jpg and a.png are two images
    person: str
    modality: int
    camera: str = ""
    part: str = ""


class Found(NamedTuple):
    """What is in the tree or the CSV file."""

    rows: list[Row]
    problems: list[str]
    checks: list[Check]


def _has_modalities(folders: list[str]) -> bool:
    """Whether names of both modalities are among these folders' names."""
    return {modality_of(f) for f in folders} >= {VISIBLE, INFRARED}


def looks_like(root: str, folders: list[str]) -> bool:
    """Whether there is a folder for each modality, in the root or in a folder for each part."""
    return _has_modalities(folders) or bool(_parts(root, folders))


def _parts(root: str, folders: list[str]) -> list[str]:
    """The folders of parts that hold both modalities."""
    there = [p for p in PARTS if p in folders]
    return [p for p in there if _has_modalities(common.entries(os.path.join(root, p))[0])]


def scan(root: str | os.PathLike[str], *, strict: bool = True) -> Listing:
    """Lists one's own images, by part, modality, person and name, or as the CSV file does.

    The root is a folder with both modalities, a CSV file, or a folder with one CSV file. `part` is
    "train", "val" or "test" where people are divided already, else "all". With strict=True lines
    that cannot be used, files that are not there, people on both sides of a given division, and
    a set without anybody who has both modalities are a TreeError.
    """
    root = common.open_root(root, TITLE)
    rows, problems, checks = _find(root)
    names = sorted({r.person for r in rows})
    number = _numbers(names)
    camera, notes = _cameras({r.camera for r in rows})
    images = [
        Image(r.path, r.name, number[r.person], camera[r.camera], r.modality, r.part or "all")
        for r in rows
    ]
    label = {n: name for name, n in number.items()}
    lines, paired = _unusable(images, label)
    same = collections.defaultdict(list)
    for name in names:
        same[number[name]].append(name)
    if merged := [" = ".join(group) for group in same.values() if len(group) > 1]:
        lines.append(f"names of one number are one person: {common.named(merged)}")
    parts = collections.defaultdict(set)
    for image in images:
        parts[image.person].add(image.part)
    both = [label[p] for p, where in sorted(parts.items()) if "train" in where and len(where) > 1]
    checks = [
        *checks,
        Check("persons with both modalities", "some", f"{paired:,}", paired > 0),
        common.none("persons trained and tested on", both),
    ]
    return common.finish(
        "folders", images, root=root, title="a set of people", strict=strict, checks=checks,
        problems=[*lines, *notes, *problems], persons=() if _are_numbers(names) else names,
        cure=f"expected {LAYOUT}; the same person has the same name in both modalities",
    )  # fmt: skip


def _find(root: str) -> Found:
    if os.path.isfile(root):
        if root.lower().endswith((".csv", ".tsv")):
            return read_csv(root)
        raise common.wrong_root(root, "folders")
    if (tree := walk(root)) is not None:
        return tree
    tables = [f for f in common.entries(root)[1] if f.lower().endswith((".csv", ".tsv"))]
    if len(tables) == 1:
        return read_csv(os.path.join(root, tables[0]))
    if tables:
        raise TreeError(f"{root} has {len(tables)} CSV files; name one of {common.named(tables)}")
    raise common.wrong_root(root, "folders")


def _are_numbers(names: Iterable[str]) -> bool:
    return all(n.isascii() and n.isdigit() and len(n) <= 9 for n in names)


def _numbers(names: list[str], first: int = 0) -> dict[str, int]:
    """Names that are all numbers as they are, others numbered in order."""
    if _are_numbers(names):
        return {name: int(name) for name in names}
    return {name: n for n, name in enumerate(names, start=first)}


def _cameras(names: set[str]) -> tuple[dict[str, int], list[str]]:
    """Number of each camera, 0 where there is none, and a line on those that had to be numbered."""
    given = sorted(names - {""})
    number = _numbers(given, first=1)
    words = common.named([f"{n} = {name}" for name, n in number.items()], 12)
    note = [] if _are_numbers(given) else [f"cameras are numbered {words}"]
    return {"": 0, **number}, note


def _unusable(images: list[Image], label: dict[int, str]) -> tuple[list[str], int]:
    """Lines on persons who cannot be trained on, and how many have both modalities."""
    each = collections.Counter((i.person, i.modality) for i in images)
    lines = []
    paired = 0
    for person in sorted(label):
        counts = each[person, VISIBLE], each[person, INFRARED]
        least = min(counts)
        paired += least > 0
        if least < MIN_IMAGES:
            side = MODALITIES[counts.index(least)]
            noun = "image" if least == 1 else "images"
            why = f" (fewer than {MIN_IMAGES})" if least else ""
            lines.append(
                f"person {label[person]} has {least} {side} {noun}{why}: not usable for training, "
                "kept for search"
            )
    if len(lines) > _FIRST:
        lines[_FIRST:] = [f"so it is with {len(lines) - _FIRST:,} more persons"]
    return lines, paired


# --- Finding images -------------------------------------------------------------------------


def modality_of(name: str) -> int | None:
    """VISIBLE, INFRARED or None for the name of a folder or a cell."""
    lower = name.strip().lower()
    if lower in VISIBLE_NAMES:
        return VISIBLE
    return INFRARED if lower in INFRARED_NAMES else None


def _readable(name: str) -> str:
    r"""A file's name as text; bytes that are no UTF-8 are written such as \xfc."""
    # Python has such bytes as lone surrogates, which can neither be printed nor hashed.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _person(name: str) -> str:
    """The name of a person, alike from every system: macOS writes an umlaut as two characters."""
    return unicodedata.normalize("NFC", _readable(name))


def walk(root: str) -> Found | None:
    """Reads root/<modality>/<person>/*, or root/<part>/<modality>/<person>/*.

    Returns:
      None if there is neither.

    Raises:
      TreeError: two folders have the name of one modality, or people are to be trained on and
        none to be tested on.
    """
    folders, _ = common.entries(root)
    tops = [""] if _has_modalities(folders) else _parts(root, folders)
    if not tops:
        return None
    if tops != [""] and "test" not in tops:
        there = [p for p in PARTS if p in folders]
        raise TreeError(
            f"{root} has {', '.join(there)} but no test/visible and test/infrared; add them, or "
            f"name {os.path.join(root, there[0])} as the root, whose people are then divided by lot"
        )
    rows: list[Row] = []
    others: list[str] = []
    for part in tops:
        inside = common.entries(os.path.join(root, part))[0]
        for modality in (VISIBLE, INFRARED):
            found = [posixpath.join(part, f) for f in inside if modality_of(f) == modality]
            if len(found) > 1:
                raise TreeError(
                    f"{root} has {len(found)} folders of {MODALITIES[modality]} images: "
                    f"{', '.join(found)}; leave one of them"
                )
            people, odd = _people(root, found[0], modality, part)
            rows += people
            others += odd
    rows.sort(key=lambda r: (r.modality, r.part))
    problems = []
    if others:
        problems.append(
            f"skipped {len(others):,} files or folders that are no images of a person (expected "
            f"<person>/<image>, ending {', '.join(ENDINGS)}; a CSV file may name images anywhere): "
            f"{common.named(others)}"
        )
    return Found(rows, problems, [])


def _people(root: str, folder: str, modality: int, part: str) -> tuple[list[Row], list[str]]:
    """Rows of <folder>/<person>/<image>, and whatever else lies there."""
    rows = []
    people, others = common.entries(os.path.join(root, folder))
    for person in people:
        if person.startswith("."):  # .ipynb_checkpoints and its like hold copies of images
            others.append(f"{person}/")
            continue
        inner, files = common.entries(os.path.join(root, folder, person))
        others += [f"{person}/{name}/" for name in inner]
        for file in files:
            # "._a.jpg" is a note of another file system, not an image.
            if file.lower().endswith(ENDINGS) and not file.startswith("."):
                path = os.path.join(root, folder, person, file)
                name = _readable(f"{folder}/{person}/{file}")
                rows.append(Row(path, name, _person(person), modality, part=part))
            else:
                others.append(f"{person}/{file}")
    return rows, [_readable(f"{folder}/{name}") for name in others]


def read_csv(file: str) -> Found:
    """Reads a CSV file with a header: path, person, modality, and maybe camera and split.

    Paths are relative to the file's folder, or absolute. The separator is a comma, a semicolon
    or a tab. The modality is one of the names that folders may have.

    Raises:
      TreeError: the header lacks a column, or the file is no text in UTF-8.
    """
    data = common.read_list(file)
    try:
        # Guessing at another encoding could make two people one, or lose their images.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TreeError(
            f"line {line} of {file} is not in UTF-8, expected a "
            "CSV file in UTF-8; save it so (in Excel: as 'CSV UTF-8'), or convert it with iconv"
        ) from error
    header = io.StringIO(text, newline="").readline()
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    # pandas writes its row numbers into a column without a name.
    columns = {n.strip().lower(): n for n in reader.fieldnames or [] if n and n.strip()}
    if lacking := [c for c in _COLUMNS if c not in columns]:
        raise TreeError(
            f"the first line of {file} is {header.strip()[:80]!r} and lacks {', '.join(lacking)}; "
            f"expected a header with {', '.join(_COLUMNS)} and, if you have them, "
            f"{', '.join(_OPTIONAL)}"
        )
    cells = []
    try:
        for row in reader:
            given = {c: (row[name] or "").strip() for c, name in columns.items()}
            values = {c: given.get(c, "") for c in _COLUMNS + _OPTIONAL}
            cells.append((reader.line_num, values))
    except csv.Error as error:
        raise TreeError(f"line {reader.line_num + 1} of {file}: {error}; is it text?") from error
    return _rows(os.path.dirname(file), cells)


def _rows(root: str, cells: list[tuple[int, dict[str, str]]]) -> Found:
    rows: list[Row] = []
    wrong: list[str] = []
    twice: list[str] = []
    seen: set[str] = set()
    divided = any(row["split"] for _, row in cells)
    for line, row in cells:
        name = posixpath.normpath(row["path"].replace("\\", "/"))
        path = os.path.normpath(os.path.join(root, name))  # or the name itself, if it is absolute
        modality, part = modality_of(row["modality"]), row["split"].lower()
        if not row["path"] or not row["person"]:
            wrong.append(f"line {line} lacks a path or a person")
        elif modality is None:
            wrong.append(f"line {line} has the modality {row['modality'][:20]!r}")
        elif divided and part not in PARTS:
            wrong.append(f"line {line} has the split {row['split'][:20]!r}")
        elif not name.lower().endswith(ENDINGS):
            wrong.append(f"line {line} names {name!r}, no image")
        elif path in seen:
            twice.append(f"{name} (line {line})")
        else:
            seen.add(path)
            person = _person(row["person"])
            rows.append(Row(path, name, person, modality, row["camera"], part))
    absent = set(common.missing(root, [r.name for r in rows]))
    checks = [
        common.none("listed images that are not there", sorted(absent)),
        common.none("images listed twice", twice),
        common.none("lines that cannot be used", wrong),
    ]
    problems = []
    if wrong:
        problems.append(
            f"a line has a path, a person, a modality ({', '.join(VISIBLE_NAMES)} or "
            f"{', '.join(INFRARED_NAMES)}) and, if any has, a split ({', '.join(PARTS)}); not so: "
            f"{common.named(wrong)}"
        )
    return Found([r for r in rows if r.name not in absent], problems, checks)


# --- Dividing people ------------------------------------------------------------------------


def check_options(*, test_share: float = 0.25, seed: int = 0, val_ids: int = 0) -> None:
    """Raises ValueError for an option that no set of people could honor."""
    if isinstance(test_share, bool) or not isinstance(test_share, int | float):
        raise ValueError(f"test_share is {test_share!r}, expected a number, above 0 and up to 1")
    if not 0 < test_share <= 1:
        raise ValueError(f"test_share is {test_share}, expected above 0 and up to 1 (everybody)")
    common.check_number("seed", seed, 0)
    common.check_number("val_ids", val_ids, 0)


def split(listing: Listing, *, test_share: float = 0.25, seed: int = 0, val_ids: int = 0) -> Split:
    """Divides the people as the folders or the CSV file say, or by lot.

    The lot: people who can be trained on are put in the order of SHA-256 of "<seed>:<name>" (or
    number, where all names are numbers); the first round(test_share n) are tested on, at
    least 1, and the last val_ids of the others are validated on. So a person's place depends on
    nobody else, and another machine, NumPy or order of files draws the same. All who cannot be
    trained on are in the test.

    Args:
      listing: from `scan`, its images in any form.
      test_share: share of the people to test on, above 0; 1 tests on everybody, and `train` is
        empty. Without effect where people are divided already.
      seed: of the lot.
      val_ids: people held out of training for choosing a checkpoint.

    Raises:
      ValueError: an option is out of range, or too few people are left to train on.
    """
    check_options(test_share=test_share, seed=seed, val_ids=val_ids)
    common.check_listing(listing, "folders")
    person = listing.records.person
    usable = common.paired(listing.records, np.ones(len(person), bool), MIN_IMAGES)
    notes: tuple[str, ...] = ()
    if not listing.records.camera.any():
        notes += ("no camera numbers: protocols that go by cameras do not apply",)
    if (listing.part == "all").all():
        train, val, test = _draw(listing, usable, test_share, seed, val_ids)
        tested, n = len(np.unique(person[test])), len(np.unique(person))
        notes += (f"{tested} of {n} persons are tested on (share {test_share}, seed {seed})",)
    else:
        train, val, test = (listing.part == p for p in PARTS)
        if lost := len(np.setdiff1d(person[train], usable)):
            notes += (f"left out of training, as given above: {lost} persons",)
        train = train & np.isin(person, usable)
        if val_ids and not val.any():
            val = common.hold_out(listing.records, train, val_ids)
            train = train & ~val
        elif val_ids and val_ids != (official := len(np.unique(person[val]))):
            raise ValueError(
                f"val_ids is {val_ids}, but the people of the validation are given: 0 or {official}"
            )
    return common.divide(listing, train=train, val=val, test=test, notes=notes)


def _draw(
    listing: Listing, usable: np.ndarray, test_share: float, seed: int, val_ids: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, bool [N] each, of training, validation and test."""

    def place(person: int) -> str:
        # Numbers of named people change with every newcomer, and the lot must not.
        name = listing.persons[person] if listing.persons else person
        return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    lot = sorted(usable.tolist(), key=place)
    tests = min(len(lot), max(1, round(test_share * len(lot))))
    rest = lot[tests:]
    if val_ids and val_ids > len(rest) - 2:
        raise ValueError(
            f"val_ids is {val_ids}, but of {len(lot)} persons who can be trained on {tests} are "
            f"tested on, and two are to be left; give 0 to {max(0, len(rest) - 2)}, or a smaller "
            "test_share"
        )
    val = np.isin(listing.records.person, rest[len(rest) - val_ids :])
    train = np.isin(listing.records.person, rest[: len(rest) - val_ids])
    return train, val, ~train & ~val
