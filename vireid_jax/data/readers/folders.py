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
import dataclasses
import hashlib
import io
import os
import posixpath
import unicodedata

import numpy as np

from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Check, Image, Listing, TreeError
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE, Records, Split

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


def _has_modalities(folders: list[str]) -> bool:
    """Whether names of both modalities are among these folders' names."""
    lower = {f.lower() for f in folders}
    return bool(lower & set(VISIBLE_NAMES)) and bool(lower & set(INFRARED_NAMES))


def looks_like(root: str, folders: list[str]) -> bool:
    """Whether there is a folder for each modality, in the root or in a folder for each part."""
    parts = [f for f in folders if f in PARTS]
    return _has_modalities(folders) or any(
        _has_modalities(common.entries(os.path.join(root, f))[0]) for f in parts
    )


def scan(root: str | os.PathLike[str], *, strict: bool = True) -> Listing:
    """Lists one's own images, by part, modality, person and name, or as the CSV file does.

    The root is a folder with both modalities, a CSV file, or a folder with one CSV file. `part` is
    "train", "val" or "test" where people are divided already, else "all". With strict=True lines
    that cannot be used, files that are not there, people on both sides of a given division, and
    a set without anybody who has both modalities are a TreeError.
    """
    root = common.open_root(root, TITLE)
    found = _find(root)
    rows = (
        sorted(found.rows, key=lambda r: (r.modality, r.part)) if not found.checks else found.rows
    )
    number, names, merged = _numbers({r.person for r in rows})
    camera, notes = _cameras({r.camera for r in rows})
    images = [
        Image(r.path, r.name, number[r.person], camera[r.camera], r.modality, r.part or "all")
        for r in rows
    ]
    label = {n: name for name, n in number.items()}
    lines, paired = _unusable(images, label)
    parts = collections.defaultdict(set)
    for image in images:
        parts[image.person].add(image.part)
    both = [label[p] for p, where in sorted(parts.items()) if "train" in where and len(where) > 1]
    checks = [
        *found.checks,
        Check("persons with both modalities", "some", f"{paired:,}", paired > 0),
        common.none("persons trained and tested on", both),
    ]
    return common.finish(
        "folders", images, root=root, title="a set of people", strict=strict,
        checks=checks,
        problems=[*lines, *merged, *notes, *found.problems], persons=names,
        cure=f"expected {LAYOUT}; the same person has the same name in both modalities",
    )  # fmt: skip


def _find(root: str) -> Found:
    if os.path.isfile(root):
        if root.lower().endswith((".csv", ".tsv")):
            return read_csv(root)
        raise common.wrong_root(root, "folders")
    tree = walk(root)
    if tree is not None:
        return tree
    tables = [f for f in common.entries(root)[1] if f.lower().endswith((".csv", ".tsv"))]
    if len(tables) == 1:
        return read_csv(os.path.join(root, tables[0]))
    if tables:
        raise TreeError(f"{root} has {len(tables)} CSV files; name one of {common.named(tables)}")
    raise common.wrong_root(root, "folders")


def _numbers(names: set[str]) -> tuple[dict[str, int], list[str], list[str]]:
    """Number of each name, names in order (only where they are no numbers), and problems."""
    if all(n.isascii() and n.isdigit() and len(n) <= 9 for n in names):
        number = {name: int(name) for name in sorted(names)}
        same = collections.defaultdict(list)
        for name, value in number.items():
            same[value].append(name)
        merged = [" = ".join(group) for group in same.values() if len(group) > 1]
        note = f"names of one number are one person: {common.named(merged)}"
        return number, [], [note] if merged else []
    ordered = sorted(names)
    return {name: n for n, name in enumerate(ordered)}, ordered, []


def _cameras(names: set[str]) -> tuple[dict[str, int], list[str]]:
    """Number of each camera; 0 where there is none."""
    given = sorted(names - {""})
    if all(n.isascii() and n.isdigit() and len(n) <= 9 for n in given):
        return {"": 0, **{name: int(name) for name in given}}, []
    number = {name: n for n, name in enumerate(given, start=1)}
    words = common.named([f"{n} = {name}" for name, n in number.items()], 12)
    return {"": 0, **number}, [f"cameras are numbered {words}"]


def _unusable(images: list[Image], label: dict[int, str]) -> tuple[list[str], int]:
    """Lines on persons who cannot be trained on, and how many have both modalities."""
    each = collections.Counter((i.person, i.modality) for i in images)
    lines = []
    paired = 0
    for person in sorted(label):
        counts = each[person, VISIBLE], each[person, INFRARED]
        paired += min(counts) > 0
        if min(counts) >= MIN_IMAGES:
            continue
        few = counts.index(min(counts))
        noun = "image" if min(counts) == 1 else "images"
        why = "" if min(counts) == 0 else f" (fewer than {MIN_IMAGES})"
        lines.append(
            f"person {label[person]} has {min(counts)} {MODALITIES[few]} {noun}{why}: not usable "
            "for training, kept for search"
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
    if _has_modalities(folders):
        tops = [("", "")]
    else:
        parts = [p for p in PARTS if p in folders]
        tops = [(p, p) for p in parts if _has_modalities(common.entries(os.path.join(root, p))[0])]
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


# --- Dividing people ------------------------------------------------------------------------


def check_options(*, test_share: float = 0.25, seed: int = 0, val_ids: int = 0) -> None:
    """Raises ValueError for an option that no set of people could honor."""
    if isinstance(test_share, bool) or not isinstance(test_share, int | float):
        raise ValueError(f"test_share is {test_share!r}, expected a number, above 0 and up to 1")
    if not 0 < test_share <= 1:
        raise ValueError(f"test_share is {test_share}, expected above 0 and up to 1 (everybody)")
    common.check_number("seed", seed, 0)
    common.check_number("val_ids", val_ids, 0)


def split(
    listing: Listing,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    val_ids: int = 0,
) -> Split:
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
    records: Records = listing.records
    usable = _trainable(records)
    notes: tuple[str, ...] = ()
    if not records.camera.any():
        notes += ("no camera numbers: protocols that go by cameras do not apply",)
    if (listing.part == "all").all():
        train, val, test = _draw(listing, usable, test_share, seed, val_ids)
        tested, n = len(np.unique(records.person[test])), len(np.unique(records.person))
        notes += (f"{tested} of {n} persons are tested on (share {test_share}, seed {seed})",)
    else:
        train, val, test = (listing.part == p for p in ("train", "val", "test"))
        lost = np.setdiff1d(records.person[train], usable)
        if len(lost):
            notes += (f"left out of training, as given above: {len(lost)} persons",)
        train = train & np.isin(records.person, usable)
        if val_ids and not val.any():
            val = common.hold_out(records, train, val_ids)
            train = train & ~val
        elif val_ids and val_ids != (official := len(np.unique(records.person[val]))):
            raise ValueError(
                f"val_ids is {val_ids}, but the people of the validation are given: 0 or {official}"
            )
    return common.divide(listing, "folders", train=train, val=val, test=test, notes=notes)


def _trainable(records: Records) -> np.ndarray:
    """Persons with enough images of both modalities, ascending."""
    enough = []
    for modality in (VISIBLE, INFRARED):
        persons, counts = np.unique(
            records.person[records.modality == modality], return_counts=True
        )
        enough.append(persons[counts >= MIN_IMAGES])
    return np.intersect1d(enough[0], enough[1])


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
