"""Finds the images of one's own people: in two trees of folders, or by one CSV file."""

import csv
import dataclasses
import io
import os
import posixpath
import unicodedata

from vireid_jax.data.listing import Check, TreeError
from vireid_jax.data.readers import common
from vireid_jax.data.readers.layouts import INFRARED_NAMES, PARTS, VISIBLE_NAMES, has_modalities
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_COLUMNS = ("path", "person", "modality")
_OPTIONAL = ("camera", "split")


@dataclasses.dataclass(frozen=True)
class Row:
    """One image, as its owner describes it."""

    path: str  # absolute
    name: str  # relative to the root, with its ending: a.jpg and a.png are two images
    person: str
    modality: int
    camera: str = ""
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """What is in the tree or the CSV file."""

    rows: list[Row]
    checks: list[Check]
    problems: list[str]


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
    if has_modalities(folders):
        tops = [("", "")]
    else:
        parts = [p for p in PARTS if p in folders]
        tops = [(p, p) for p in parts if has_modalities(common.entries(os.path.join(root, p))[0])]
        if not tops:
            return None
        if "test" not in [part for _, part in tops]:
            raise TreeError(
                f"{root} has {', '.join(parts)} but no test/visible and test/infrared; add them, "
                f"or name {os.path.join(root, parts[0])} as the root, whose people are then "
                "divided by lot"
            )
    rows: list[Row] = []
    others: list[str] = []
    for top, part in tops:
        for modality, folder in _modality_folders(root, top):
            found, odd = _people(root, folder, modality, part)
            rows += found
            others += odd
    problems = []
    if others:
        problems.append(
            f"skipped {len(others):,} files or folders that are no images of a person (expected "
            f"<person>/<image>, ending {', '.join(ENDINGS)}; a CSV file may name images anywhere): "
            f"{common.named(others)}"
        )
    return Found(rows, [], problems)


def _modality_folders(root: str, top: str) -> list[tuple[int, str]]:
    """(modality, relative folder), visible first."""
    found: dict[int, list[str]] = {VISIBLE: [], INFRARED: []}
    for folder in common.entries(os.path.join(root, top))[0]:
        modality = modality_of(folder)
        if modality is not None:
            found[modality].append(posixpath.join(top, folder))
    for modality, folders in found.items():
        if len(folders) > 1:
            raise TreeError(
                f"{root} has {len(folders)} folders of {MODALITIES[modality]} images: "
                f"{', '.join(folders)}; leave one of them"
            )
    return [(modality, folder) for modality, (folder,) in found.items()]


def _people(root: str, folder: str, modality: int, part: str) -> tuple[list[Row], list[str]]:
    """Rows of <folder>/<person>/<image>, and whatever else lies there."""
    rows = []
    people, others = common.entries(os.path.join(root, *folder.split("/")))
    others = [f"{folder}/{_readable(file)}" for file in others]
    for person in people:
        if person.startswith("."):  # .ipynb_checkpoints and its like hold copies of images
            others.append(f"{folder}/{_readable(person)}/")
            continue
        inner, files = common.entries(os.path.join(root, *folder.split("/"), person))
        others += [_readable(f"{folder}/{person}/{name}/") for name in inner]
        for file in files:
            name = _readable(f"{folder}/{person}/{file}")
            # "._a.jpg" is a note of another file system, not an image.
            if file.lower().endswith(ENDINGS) and not file.startswith("."):
                path = os.path.join(root, *folder.split("/"), person, file)
                rows.append(Row(path, name, _person(person), modality, part=part))
            else:
                others.append(name)
    return rows, others


def read_csv(file: str) -> Found:
    """Reads a CSV file with a header: path, person, modality, and maybe camera and split.

    Paths are relative to the file's folder, or absolute. The separator is a comma, a semicolon
    or a tab. The modality is one of the names that folders may have.

    Raises:
      TreeError: the header lacks a column, or the file is no text in UTF-8.
    """
    with open(file, "rb") as stored:
        data = stored.read()
    try:
        # Guessing at another encoding could make two people one, or lose their images.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TreeError(
            f"line {line} of {file} is not in UTF-8, expected a "
            "CSV file in UTF-8; save it so (in Excel: as 'CSV UTF-8'), or convert it with iconv"
        ) from error
    with io.StringIO(text, newline="") as lines:
        header = lines.readline()
        lines.seek(0)
        reader = csv.DictReader(lines, delimiter=max(",;\t", key=header.count), strict=False)
        # pandas writes its row numbers into a column without a name.
        columns = {n.strip().lower(): n for n in reader.fieldnames or [] if n and n.strip()}
        if lacking := [c for c in _COLUMNS if c not in columns]:
            raise TreeError(
                f"the first line of {file} is {header.strip()[:80]!r} and lacks "
                f"{', '.join(lacking)}; expected a header with {', '.join(_COLUMNS)} and, if you "
                f"have them, {', '.join(_OPTIONAL)}"
            )
        known = _COLUMNS + _OPTIONAL
        cells = []
        try:
            for row in reader:
                values = {c: row.get(name) or "" for c, name in columns.items() if c in known}
                stripped = {c: values.get(c, "").strip() for c in known}
                cells.append((reader.line_num, stripped))
        except csv.Error as error:
            raise TreeError(
                f"line {reader.line_num + 1} of {file}: {error}; is it text?"
            ) from error
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
    return Found([r for r in rows if r.name not in absent], checks, problems)
