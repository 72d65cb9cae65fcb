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
import hashlib
import os

import numpy as np

from vireid_jax.data.listing import Check, Listing, TreeError
from vireid_jax.data.readers import common, layouts, people, select
from vireid_jax.data.readers.common import Image
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE, Records, Split

TITLE = "own folders"
LAYOUT = (
    "visible/<person>/* and infrared/<person>/* (or train/visible/..., test/visible/...), or one "
    "CSV file with the columns path, person, modality"
)
AGREEMENT = "your own images"
MIN_IMAGES = 2  # of a modality, to be trained on: of a single one no two batches differ
_FIRST = 10  # persons named one by one


def scan(root: str | os.PathLike[str], *, strict: bool = True) -> Listing:
    """Lists one's own images, by part, modality, person and name, or as the CSV file does.

    Args:
      root: a folder with both modalities, a CSV file, or a folder with one CSV file.
      strict: refuse lines that cannot be used, files that are not there, people on both sides
        of a given division, and a set without anybody who has both modalities.

    Returns:
      A listing; `part` is "train", "val" or "test" where people are divided already, else "all".

    Raises:
      FileNotFoundError: the folder or file does not exist.
      TreeError: it is laid out in another way, or (strict) something is wrong with it.
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
        "folders", images, root=root, title="a set of people", released=False, strict=strict,
        checks=checks,
        problems=[*lines, *merged, *notes, *found.problems], persons=names,
        agreement=f"expected {LAYOUT}; the same person has the same name in both modalities",
    )  # fmt: skip


def _find(root: str) -> people.Found:
    if os.path.isfile(root):
        if root.lower().endswith((".csv", ".tsv")):
            return people.read_csv(root)
        raise layouts.wrong_root(root, "folders", [], LAYOUT)
    tree = people.walk(root)
    if tree is not None:
        return tree
    tables = [f for f in common.entries(root)[1] if f.lower().endswith((".csv", ".tsv"))]
    if len(tables) == 1:
        return people.read_csv(os.path.join(root, tables[0]))
    if tables:
        raise TreeError(f"{root} has {len(tables)} CSV files; name one of {common.named(tables)}")
    raise layouts.wrong_root(root, "folders", ["visible", "infrared"], LAYOUT)


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


def check_options(
    *, test_share: float = 0.25, seed: int = 0, val_ids: int = 0, min_images: int = MIN_IMAGES
) -> None:
    """Raises ValueError for an option that no set of people could honor."""
    if isinstance(test_share, bool) or not isinstance(test_share, int | float):
        raise ValueError(f"test_share is {test_share!r}, expected a number, above 0 and up to 1")
    if not 0 < test_share <= 1:
        raise ValueError(f"test_share is {test_share}, expected above 0 and up to 1 (everybody)")
    select.check_number("seed", seed, 0)
    select.check_number("val_ids", val_ids, 0)
    select.check_number("min_images", min_images, 1)


def split(
    listing: Listing,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    val_ids: int = 0,
    min_images: int = MIN_IMAGES,
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
      min_images: of each modality, to be trained on.

    Returns:
      A split named "folders"; infrared queries, visible gallery.

    Raises:
      ValueError: an option is out of range, or too few people are left to train on.
    """
    check_options(test_share=test_share, seed=seed, val_ids=val_ids, min_images=min_images)
    select.check_listing(listing, "folders")
    records: Records = listing.records
    usable = _trainable(records, min_images)
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
            val = select.hold_out(records, train, val_ids)
            train = train & ~val
        elif val_ids and val_ids != (official := len(np.unique(records.person[val]))):
            raise ValueError(
                f"val_ids is {val_ids}, but the people of the validation are given: 0 or {official}"
            )
    return select.divide(listing, "folders", train=train, val=val, test=test, notes=notes)


def _trainable(records: Records, min_images: int) -> np.ndarray:
    """Persons with enough images of both modalities, ascending."""
    enough = []
    for modality in (VISIBLE, INFRARED):
        persons, counts = np.unique(
            records.person[records.modality == modality], return_counts=True
        )
        enough.append(persons[counts >= min_images])
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
