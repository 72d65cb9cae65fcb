"""LLCM as released.

Zhang and Wang, "Diverse Embedding Expansion Network and Low-Light Cross-Modality Benchmark for
Visible-Infrared Person Re-identification", CVPR 2023.

  vis/<person>/*  nir/<person>/*                            training images
  test_vis/cam<n>/<person>/*  test_nir/cam<n>/<person>/*    test images; near-infrared has no cam3
  idx/train_vis.txt, train_nir.txt                          lines "<path> <label>", labels 0 .. 712
  idx/test_id.txt                                           one line of numbers

Training images are those of the lists, test images those of the folders whose person is on
test_id.txt: the protocol of the authors' code (DEEN), which AGW's and CAJ's figures follow too.
"""

import collections
import os
import posixpath
import re

from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Check, Image, Listing
from vireid_jax.types import INFRARED, VISIBLE, Split

TITLE = "LLCM"
DESCRIPTION = "visible and near-infrared person images, low light (Zhang, Wang, CVPR 2023)"
LAYOUT = (
    "vis, nir/<person>/*, test_vis, test_nir/cam<n>/<person>/* and idx/train_vis.txt, "
    "train_nir.txt, test_id.txt"
)
AGREEMENT = "https://github.com/ZYK100/LLCM"
PUBLISHED = (713, 16946, 13975)  # people, visible and infrared images that papers train on
ENTRIES = ("vis", "nir", "test_vis", "test_nir", "idx")  # of the root
_SIDES = (("vis", VISIBLE), ("nir", INFRARED))
_TRAIN_IDS, _TEST_IDS = PUBLISHED[0], 351
# They add up to the 46,767 boxes of the release's description, but nobody who wrote this
# counted the images: reported, never a reason to refuse.
_IMAGES = {"train vis": PUBLISHED[1], "train nir": PUBLISHED[2], "test vis": 8680, "test nir": 7166}
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
# 0001_c06_s200656_f4830_nir.jpg
_CAMERA = re.compile(r"(?:^|_)c(\d{1,2})(?:_|s|$)")


def looks_like(root: str, folders: list[str]) -> bool:
    """Whether these are the names of LLCM's folders."""
    return bool({"test_vis", "test_nir"} & set(folders) and {"vis", "nir"} & set(folders))


def scan(root: str | os.PathLike[str], *, strict: bool = True) -> Listing:
    """Lists the training images as the lists have them, then the test images; see `readers`.

    `part` is "train" or "test", persons are the folders' numbers, names are such as
    "test_nir/cam6/0001/0001_c06_s200656_f4830_nir".
    """
    root = common.open_tree(root, "llcm")
    lists = {s: common.read_pairs(root, f"idx/train_{s}.txt", TITLE) for s, _ in _SIDES}
    ids = set(common.read_ids(root, "idx/test_id.txt", TITLE))
    images: list[Image] = []
    odd: list[str] = []
    absent: list[str] = []
    for side, modality in _SIDES:
        lost = common.missing(root, [path for path, _ in lists[side]])
        absent += lost
        found, strange = _train(root, lists[side], set(lost), modality)
        images += found
        odd += strange
    others: list[str] = []
    for side, modality in _SIDES:
        found, strange = _test(root, f"test_{side}", ids, modality)
        images += found
        others += strange
    people = {part: {i.person for i in images if i.part == part} for part in ("train", "test")}
    problems = common.lonely(images, people) + common.skipped(others, "test_vis and test_nir")
    if odd:
        problems.append(
            f"{len(odd):,} training images tell no person or camera, such as "
            f"vis/0001/0001_c06_s1_f2_vis.jpg does: {common.named(odd)}"
        )
    if lost_ids := sorted(ids - {i.person for i in images if i.part == "test"}):
        problems.append(
            f"{len(lost_ids)} persons of test_id.txt have no image: {common.named(lost_ids)}"
        )
    return common.finish(
        "llcm", images, root=root, strict=strict,
        checks=_checks(lists, ids, images, absent, odd), problems=problems,
        cure=f"the whole of it is had after signing the agreement, see {AGREEMENT}",
    )  # fmt: skip


def _train(
    root: str, rows: list[tuple[str, int]], lost: set[str], modality: int
) -> tuple[list[Image], list[str]]:
    """The listed images that are there, and those whose path tells no person or camera."""
    images, odd = [], []
    for path, _ in rows:
        if path in lost:
            continue
        stem = posixpath.splitext(path)[0]
        person, camera = _person(path), _CAMERA.search(posixpath.basename(stem))
        if person is None or camera is None:
            odd.append(path)
        if person is not None:
            number = 0 if camera is None else int(camera[1])
            full = os.path.join(root, *path.split("/"))
            images.append(Image(full, stem, person, number, modality, "train"))
    return images, odd


def _person(path: str) -> int | None:
    """The number of the folder that an image lies in."""
    folder = posixpath.basename(posixpath.dirname(path))
    return int(folder) if re.fullmatch(r"\d{1,9}", folder, re.ASCII) else None


def _test(root: str, top: str, ids: set[int], modality: int) -> tuple[list[Image], list[str]]:
    """Images of <top>/cam<n>/<person>, by camera, person and name, and files that are none."""
    images, others = [], []
    folder = os.path.join(root, top)
    cameras = [
        (int(c[3:]), c)
        for c in (common.entries(folder)[0] if os.path.isdir(folder) else [])
        if re.fullmatch(r"cam\d{1,2}", c)
    ]
    for number, camera in sorted(cameras):
        for person in common.entries(os.path.join(folder, camera))[0]:
            if not re.fullmatch(r"\d{1,9}", person, re.ASCII) or int(person) not in ids:
                continue
            for file in common.entries(os.path.join(folder, camera, person))[1]:
                name = f"{top}/{camera}/{person}/{file}"
                stem, ending = posixpath.splitext(name)
                # "._a.jpg" is a note of another file system, not an image.
                if ending.lower() not in _ENDINGS or file.startswith("."):
                    others.append(name)
                    continue
                path = os.path.join(folder, camera, person, file)
                images.append(Image(path, stem, int(person), number, modality, "test"))
    return images, others


def _checks(
    lists: dict[str, list[tuple[str, int]]],
    ids: set[int],
    images: list[Image],
    absent: list[str],
    odd: list[str],
) -> list[Check]:
    sides = collections.Counter((i.part, i.modality) for i in images)
    test = {m: {(i.person, i.camera) for i in images if i.part == "test" and i.modality == m}
            for _, m in _SIDES}  # fmt: skip
    pairs = {s: {(label, _person(path)) for path, label in rows} for s, rows in lists.items()}
    labels = {s: {label for label, _ in found} for s, found in pairs.items()}
    wrong = [
        f"train_{s}.txt"
        for s in lists
        if labels[s] != set(range(len(labels[s]))) or len(pairs[s]) != len(labels[s])
    ]
    train = {i.person for i in images if i.part == "train"}
    checks = [
        common.count("train identities, visible", _TRAIN_IDS, len(labels["vis"])),
        common.count("train identities, near-infrared", _TRAIN_IDS, len(labels["nir"])),
        common.count("test identities", _TEST_IDS, len(ids)),
        common.every("lists labeled 0 .. n-1, a label a person", len(lists), wrong),
        common.none("labels that differ between the lists", sorted(
            {label for label, _ in pairs["vis"] ^ pairs["nir"]})),
        common.none("persons trained and tested on", sorted(train & ids)),
        common.none("listed images that are not there", absent),
        # What file names look like is known from code that reads them, not from the release.
        common.none("training images without person or camera", odd)._replace(required=False),
        common.none("near-infrared test images of camera 3", [
            i.name for i in images if i.part == "test" and i.modality and i.camera == 3
        ])._replace(required=False),
    ]  # fmt: skip
    for (part, modality), (what, expected) in zip(
        [(p, m) for p in ("train", "test") for _, m in _SIDES], _IMAGES.items(), strict=True
    ):
        found = sides[part, modality]
        checks.append(common.count(f"{what} images", expected, found, required=False))
    for (side, modality), way in zip(_SIDES, ("i2v", "v2i"), strict=True):
        size = f"{len(test[modality]):,}"
        checks.append(Check(f"gallery of a trial, {way} ({side})", "any", size, True, False))
    return checks


def check_options(*, val_ids: int = 0) -> None:
    """Raises ValueError for an option that no tree could honor."""
    common.check_number("val_ids", val_ids, 0)


def split(listing: Listing, *, val_ids: int = 0) -> Split:
    """The released halves.

    Args:
      listing: from `scan`, its images in any form.
      val_ids: training persons to hold out for choosing a checkpoint; the papers have none.
        They are spread evenly over the training persons in ascending order.

    Raises:
      ValueError: val_ids is out of range.
    """
    check_options(val_ids=val_ids)
    common.check_listing(listing, "llcm")
    train, test = listing.part == "train", listing.part == "test"
    val = common.hold_out(listing.records, train, val_ids)
    notes = (f"trains without {val_ids} persons, held out for validation",) if val_ids else ()
    return common.divide(listing, "llcm", train=train & ~val, val=val, test=test, notes=notes)
