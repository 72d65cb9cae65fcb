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
    odd, absent, others = [], [], []
    for side, modality in _SIDES:
        lost = set(common.missing(root, [path for path, _ in lists[side]]))
        for path, _ in lists[side]:
            stem, (person, camera) = posixpath.splitext(path)[0], _person_and_camera(path)
            if path in lost:
                absent.append(path)
                continue
            if person is None or camera is None:
                odd.append(path)
            if person is not None:
                full = os.path.join(root, *path.split("/"))
                images.append(Image(full, stem, person, camera or 0, modality, "train"))
    for side, modality in _SIDES:
        top = os.path.join(root, f"test_{side}")
        for camera, folder in common.numbered(top, r"cam(\d{1,2})"):
            for person, inner in common.numbered(os.path.join(top, folder)):
                if person not in ids:
                    continue
                for file in common.entries(os.path.join(top, folder, inner))[1]:
                    name = f"test_{side}/{folder}/{inner}/{file}"
                    stem, ending = posixpath.splitext(name)
                    # "._a.jpg" is a note of another file system, not an image.
                    if ending.lower() not in _ENDINGS or file.startswith("."):
                        others.append(name)
                        continue
                    path = os.path.join(top, folder, inner, file)
                    images.append(Image(path, stem, person, camera, modality, "test"))
    people = {part: {i.person for i in images if i.part == part} for part in ("train", "test")}
    problems = common.lonely(images, people) + common.skipped(others, "test_vis and test_nir")
    if odd:
        problems.append(
            f"{len(odd):,} training images tell no person or camera, such as "
            f"vis/0001/0001_c06_s1_f2_vis.jpg does: {common.named(odd)}"
        )
    if lost_ids := sorted(ids - people["test"]):
        problems.append(
            f"{len(lost_ids)} persons of test_id.txt have no image: {common.named(lost_ids)}"
        )
    return common.finish(
        "llcm", images, root=root, strict=strict, problems=problems,
        checks=_checks(lists, ids, images, absent, odd),
    )  # fmt: skip


def _person_and_camera(path: str) -> tuple[int | None, int | None]:
    """The numbers of the folder that an image lies in, and of the camera that its name tells."""
    folder, file = posixpath.basename(posixpath.dirname(path)), posixpath.basename(path)
    person = int(folder) if re.fullmatch(r"\d{1,9}", folder, re.ASCII) else None
    camera = _CAMERA.search(posixpath.splitext(file)[0])
    return person, int(camera[1]) if camera else None


def _checks(
    lists: dict[str, list[tuple[str, int]]],
    ids: set[int],
    images: list[Image],
    absent: list[str],
    odd: list[str],
) -> list[Check]:
    sides = collections.Counter((i.part, i.modality) for i in images)
    pairs = {s: {(label, _person_and_camera(path)[0]) for path, label in rows}
             for s, rows in lists.items()}  # fmt: skip
    labels = {s: {label for label, _ in found} for s, found in pairs.items()}
    differ = sorted({label for label, _ in pairs["vis"] ^ pairs["nir"]})
    train = {i.person for i in images if i.part == "train"}
    test = [i for i in images if i.part == "test"]
    strange = [i.name for i in test if i.modality == INFRARED and i.camera == 3]
    checks = [
        common.count("train identities, visible", _TRAIN_IDS, len(labels["vis"])),
        common.count("train identities, near-infrared", _TRAIN_IDS, len(labels["nir"])),
        common.count("test identities", _TEST_IDS, len(ids)),
        common.lists_labeled({f"train_{s}.txt": rows for s, rows in lists.items()}),
        common.none("labels that differ between the lists", differ),
        common.none("persons trained and tested on", sorted(train & ids)),
        common.none("listed images that are not there", absent),
        # What file names look like is known from code that reads them, not from the release.
        common.none("training images without person or camera", odd, required=False),
        common.none("near-infrared test images of camera 3", strange, required=False),
    ]
    for what, expected in _IMAGES.items():
        part, side = what.split()
        found = sides[part, dict(_SIDES)[side]]
        checks.append(common.count(f"{what} images", expected, found, required=False))
    for (side, modality), way in zip(_SIDES, ("i2v", "v2i"), strict=True):
        gallery = {
            (i.person, i.camera) for i in images if (i.part, i.modality) == ("test", modality)
        }
        what = f"gallery of a trial, {way} ({side})"
        checks.append(Check(what, "any", f"{len(gallery):,}", True, False))
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
    return common.divide(listing, train=train, test=test, val=val_ids)
