"""RegDB as released, with its ten random halves.

Nguyen et al., "Person Recognition System Based on a Combination of Body Images from Visible
Light and Thermal Cameras", Sensors 2017.

  Visible/<person>/*.bmp   Thermal/<person>/*.bmp       412 persons, 10 images each a side
  idx/{train,test}_{visible,thermal}_{1 .. 10}.txt      lines "<path> <label>"

The person is the folder's number. Labels of the lists only number the persons of one half from
0 on, so those of a training and of a test list have nothing to do with each other.
"""

import collections
import os
import posixpath

import numpy as np

from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Check, Image, Listing
from vireid_jax.types import INFRARED, VISIBLE, Split

TITLE = "RegDB"
DESCRIPTION = "aligned visible and thermal person images (Nguyen et al., Sensors 2017)"
LAYOUT = (
    "Visible/<person>/*.bmp, Thermal/<person>/*.bmp and "
    "idx/{train,test}_{visible,thermal}_{1..10}.txt"
)
AGREEMENT = "http://dm.dongguk.edu/link.html"
PUBLISHED = (206, 2060, 2060)  # people, visible and infrared images that papers train on
ENTRIES = ("Visible", "Thermal", "idx")  # of the root
TRIALS = 10
TRAIN, TEST, NEITHER = "r", "e", "-"  # letters of `Listing.part`
_SIDES = (("Visible", "visible", VISIBLE, 1), ("Thermal", "thermal", INFRARED, 2))
_PERSONS, _IMAGES, _HALF = 412, 10, 206
_LETTERS = {"train": TRAIN, "test": TEST}

# (part, modality name, trial) -> rows "path label"
_Lists = dict[tuple[str, str, int], list[tuple[str, int]]]


def looks_like(root: str, folders: list[str]) -> bool:
    """Whether these are the names of RegDB's folders."""
    return {"Visible", "Thermal"} <= set(folders)


def scan(root: str | os.PathLike[str], *, strict: bool = True) -> Listing:
    """Lists the images that any of the ten halves names, by side, person, name; see `readers`.

    `part` has ten letters, camera is 1 (visible) or 2 (thermal), names are such as
    "Thermal/6/male_back_t_00051_6".
    """
    root = common.open_tree(root, "regdb")
    lists: _Lists = {
        (part, side, trial): common.read_pairs(root, f"idx/{part}_{side}_{trial}.txt", TITLE)
        for part in _LETTERS
        for _, side, _, _ in _SIDES
        for trial in range(1, TRIALS + 1)
    }
    letters = _letters(lists)
    images: list[Image] = []
    others, unlisted = [], []
    for folder, _, modality, camera in _SIDES:
        for person, inner in common.numbered(os.path.join(root, folder)):
            for file in common.entries(os.path.join(root, folder, inner))[1]:
                relative = f"{folder}/{inner}/{file}"
                stem, ending = os.path.splitext(relative)
                if ending.lower() != ".bmp":
                    others.append(relative)
                elif relative not in letters:
                    unlisted.append(relative)
                else:
                    path = os.path.join(root, folder, inner, file)
                    part = letters.pop(relative)
                    images.append(Image(path, stem, person, camera, modality, part))
    problems = common.skipped(others, "Visible and Thermal")
    if unlisted:
        problems.append(
            f"{len(unlisted):,} images are on no list and left out: {common.named(unlisted)}"
        )
    seen = [{i.person for i in images if i.modality == m} for m in (VISIBLE, INFRARED)]
    if lonely := sorted(seen[0] ^ seen[1]):
        problems.append(
            f"{len(lonely)} persons have images in one modality only, so they are left out of "
            f"training and without a match in the test: {common.named(lonely)}"
        )
    return common.finish(
        "regdb", images, root=root, strict=strict,
        checks=_checks(lists, images, absent=sorted(letters)), problems=problems,
        cure="the images are had after signing the agreement, see "
        f"{AGREEMENT}; the lists come with them",
    )  # fmt: skip


def _letters(lists: _Lists) -> dict[str, str]:
    """Path -> ten letters. An image on both lists of a trial is a test image: never train on it."""
    found: dict[str, list[str]] = {}
    for part, letter in _LETTERS.items():
        for (this, _, trial), rows in lists.items():
            for path, _ in rows if this == part else ():
                found.setdefault(path, [NEITHER] * TRIALS)[trial - 1] = letter
    return {path: "".join(letters) for path, letters in found.items()}


def _checks(lists: _Lists, images: list[Image], absent: list[str]) -> list[Check]:
    sides = collections.Counter(i.modality for i in images)
    each = collections.Counter((i.person, i.modality) for i in images)
    wrong = [f"{p}/{'VT'[m]} ({n})" for (p, m), n in sorted(each.items()) if n != _IMAGES]
    named = {f"{trial}/{part}_{side}": rows for (part, side, trial), rows in lists.items()}
    uneven = []
    for name, rows in named.items():
        counts = collections.Counter(label for _, label in rows)
        if len(counts) != _HALF or set(counts.values()) != {_IMAGES}:
            uneven.append(name)
    disagreeing, overlapping = [], []
    for trial in range(1, TRIALS + 1):
        people: dict[str, set[str]] = {}
        for part in _LETTERS:
            visible, thermal = (
                {
                    (label, posixpath.dirname(path).rpartition("/")[2])
                    for path, label in lists[part, side, trial]
                }
                for _, side, _, _ in _SIDES
            )
            if visible != thermal:
                disagreeing.append(f"{trial}/{part}")
            people[part] = {person for _, person in visible | thermal}
        if both := people["train"] & people["test"]:
            overlapping.append(f"{trial} (person {min(both)})")
    return [
        common.count("identities", _PERSONS, len({i.person for i in images})),
        common.count("visible images", _PERSONS * _IMAGES, sides[VISIBLE]),
        common.count("thermal images", _PERSONS * _IMAGES, sides[INFRARED]),
        common.every("persons and sides of 10 images", len(each), wrong),
        common.none("listed images that are not there", absent),
        common.every("lists of 206 persons x 10 images", len(lists), uneven),
        common.lists_labeled(named),
        common.every("halves labeled alike on both sides", 2 * TRIALS, disagreeing),
        common.every("trials that test on others than they train on", TRIALS, overlapping),
    ]


def check_options(*, trial: int = 1, val_ids: int = 0) -> None:
    """Raises ValueError for an option that no tree could honor."""
    common.check_number("trial", trial, 1, TRIALS)
    common.check_number("val_ids", val_ids, 0)


def split(listing: Listing, *, trial: int = 1, val_ids: int = 0) -> Split:
    """One of the ten released halves.

    Args:
      listing: from `scan`, its images in any form.
      trial: 1 .. 10.
      val_ids: training persons to hold out for choosing a checkpoint; the papers have none.
        They are spread evenly over the training persons in ascending order, so the same ones
        are held out wherever this runs.

    Raises:
      ValueError: an option is out of range.
    """
    check_options(trial=trial, val_ids=val_ids)
    common.check_listing(listing, "regdb")
    letter = np.array([part[trial - 1] for part in listing.part.tolist()])
    note = f"trial {trial} of {TRIALS}: papers report the mean over all of them"
    return common.divide(
        listing, train=letter == TRAIN, test=letter == TEST, val=val_ids, notes=(note,)
    )
