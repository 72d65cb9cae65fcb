"""SYSU-MM01 as released (Wu et al., "RGB-Infrared Cross-Modality Person Re-Identification").

  cam1 .. cam6/<person, 4 digits>/<index>.jpg      cameras 3 and 6 are infrared
  exp/{train,val,test}_id.txt                      one line of numbers, separated by commas

Only those names are read, and only at that depth: the archive of the videos adds folders such
as cam1_video_train beside them. Persons on none of the three lists are left out.
The counts are those of the released images and of the permutation file of the official
evaluation code; every paper trains on the training and validation lists together.
"""

import collections
import os
import re

import numpy as np

from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Check, Image, Listing
from vireid_jax.types import INFRARED, VISIBLE, Split

TITLE = "SYSU-MM01"
DESCRIPTION = "visible and infrared person images of six cameras (Wu et al., ICCV 2017)"
LAYOUT = "cam1 ... cam6/<person>/<index>.jpg and exp/train_id.txt, val_id.txt, test_id.txt"
AGREEMENT = "https://github.com/wuancong/SYSU-MM01"
PUBLISHED = (395, 22258, 11909)  # people, visible and infrared images that papers train on
HELD_OUT = (99, 1974, 1980)  # of these, the validation list's
VISIBLE_CAMERAS, INFRARED_CAMERAS = (1, 2, 4, 5), (3, 6)
CAMERAS = tuple(range(1, 7))
INDOOR_CAMERAS = (1, 2)
VAL_IDS = HELD_OUT[0]
ENTRIES = (*(f"cam{c}" for c in CAMERAS), "exp")  # of the root
_IDENTITIES = {"train": 296, "val": VAL_IDS, "test": 96}
_PER_CAMERA = {
    "train": (4721, 5753, 5929, 4821, 4989, 4000),
    "test": (1374, 1565, 1883, 1918, 1918, 1920),
}


def looks_like(root: str, folders: list[str]) -> bool:
    """Whether these are the names of SYSU-MM01's folders."""
    return sum(bool(re.fullmatch("cam[1-6]", f)) for f in folders) >= 3


def scan(root: str | os.PathLike[str], *, strict: bool = True) -> Listing:
    """Lists the images of the three id lists, by camera, person and index; see `readers`.

    `part` is "train", "val" or "test", names are such as "cam1/0006/0025".
    """
    root = common.open_tree(root, "sysu")
    ids = {part: common.read_ids(root, f"exp/{part}_id.txt", TITLE) for part in _IDENTITIES}
    # Whoever is on two lists is never trained on: the test list comes last.
    part_of = {p: part for part in _IDENTITIES for p in ids[part]}
    images: list[Image] = []
    others, gaps = [], []
    for camera in CAMERAS:
        modality = INFRARED if camera in INFRARED_CAMERAS else VISIBLE
        top = os.path.join(root, f"cam{camera}")
        for person, folder in common.numbered(top, r"(\d{4})"):
            if person not in part_of:
                continue
            numbers = {}
            for file in common.entries(os.path.join(top, folder))[1]:
                if match := re.fullmatch(r"(\d+)\.jpg", file, re.ASCII | re.IGNORECASE):
                    numbers[int(match[1])] = file
                else:
                    others.append(f"cam{camera}/{folder}/{file}")
            if lost := sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
                gaps.append(f"cam{camera}/{folder} (no {lost[0]:04d})")
            for _, file in sorted(numbers.items()):
                name = f"cam{camera}/{folder}/{file[:-4]}"
                path = os.path.join(top, folder, file)
                images.append(Image(path, name, person, camera, modality, part_of[person]))
    return common.finish(
        "sysu", images, root=root, strict=strict, checks=_checks(root, ids, images, gaps),
        problems=common.lonely(images, ids) + common.skipped(others, "the camera folders"),
    )  # fmt: skip


def _checks(
    root: str, ids: dict[str, list[int]], images: list[Image], gaps: list[str]
) -> list[Check]:
    per_camera = collections.Counter((i.part, i.camera) for i in images)
    test = collections.Counter((i.person, i.camera) for i in images if i.part == "test")

    def sum_of(parts: tuple[str, ...], cameras: tuple[int, ...]) -> int:
        return sum(per_camera[p, c] for p in parts for c in cameras)

    def gallery(cameras: tuple[int, ...], shots: int) -> int:
        return sum(min(shots, n) for (_, c), n in test.items() if c in cameras)

    twice = [p for p, n in collections.Counter(p for x in ids.values() for p in set(x)).items()
             if n > 1]  # fmt: skip
    absent = [f"cam{c}" for c in CAMERAS if not os.path.isdir(os.path.join(root, f"cam{c}"))]
    checks = [
        common.none("camera folders missing", absent),
        *(common.count(f"{p} identities", n, len(set(ids[p]))) for p, n in _IDENTITIES.items()),
        common.none("identities on two lists", sorted(twice)),
        common.every("folders numbered 0001 .. n", len({i.name[:9] for i in images}), gaps),
    ]
    # Queries with an image of the same person in cameras 1 or 2; camera 3 ignores camera 2.
    indoors = sum(
        n for (person, camera), n in test.items()
        if camera in INFRARED_CAMERAS and (test[person, 1] or (camera == 6 and test[person, 2]))
    )  # fmt: skip
    both = ("train", "val")
    counts = [
        ("train + val visible images", PUBLISHED[1], sum_of(both, VISIBLE_CAMERAS)),
        ("train + val infrared images", PUBLISHED[2], sum_of(both, INFRARED_CAMERAS)),
        ("val visible images", HELD_OUT[1], sum_of(("val",), VISIBLE_CAMERAS)),
        ("val infrared images", HELD_OUT[2], sum_of(("val",), INFRARED_CAMERAS)),
        ("test visible images", 6775, sum_of(("test",), VISIBLE_CAMERAS)),
        ("queries", 3803, sum_of(("test",), INFRARED_CAMERAS)),
        ("queries with a match indoors", 2208, indoors),
        ("gallery, all search, 1 shot", 301, gallery(VISIBLE_CAMERAS, 1)),
        ("gallery, all search, 10 shots", 3010, gallery(VISIBLE_CAMERAS, 10)),
        ("gallery, indoor search, 1 shot", 112, gallery(INDOOR_CAMERAS, 1)),
        ("gallery, indoor search, 10 shots", 1120, gallery(INDOOR_CAMERAS, 10)),
        *(
            (f"{part} images of camera {camera}", numbers[camera - 1], per_camera[part, camera])
            for part, numbers in _PER_CAMERA.items()
            for camera in CAMERAS
        ),
    ]
    return checks + [common.count(*row) for row in counts]


def check_options(*, val_ids: int = 0) -> None:
    """Raises ValueError for a number of validation persons that no tree has."""
    common.check_number("val_ids", val_ids, 0)


def split(listing: Listing, *, val_ids: int = 0) -> Split:
    """Divides as the id lists say.

    Infrared queries are of cameras 3 and 6, the visible gallery is of 1, 2, 4 and 5.

    Args:
      listing: from `scan`, its images in any form.
      val_ids: 0 trains on the training and validation lists together (395 persons), as every
        paper does; 99 (or as many as the tree's validation list has) holds that list out.

    Raises:
      ValueError: val_ids is another number.
    """
    check_options(val_ids=val_ids)
    common.check_listing(listing, "sysu")
    train, val, test = (listing.part == part for part in _IDENTITIES)
    official = len(np.unique(listing.records.person[val]))
    if val_ids not in (0, VAL_IDS, official):
        raise ValueError(
            f"val_ids is {val_ids}, expected 0 (train on the validation list too, as every paper "
            f"does) or {official or VAL_IDS} (hold the whole list out): SYSU-MM01 names who is "
            "validated on"
        )
    if not val_ids:
        return common.divide(listing, train=train | val, test=test)
    note = (
        f"trains without the {official} persons of the validation list; papers train on them too "
        "(data.val_ids=0)"
    )
    return common.divide(listing, train=train, val=val, test=test, notes=(note,))


def permutations(listing: Listing, path: str) -> list[Check]:
    """Compares SYSU-MM01's file rand_perm_cam.mat with the images of the test persons.

    Raises:
      ValueError: the listing is of another data set, or the file is not such a file.
      FileNotFoundError: there is no such file.
    """
    from vireid_jax.metrics import check_permutations, read_permutations  # needed only here

    if listing.name != "sysu":
        raise ValueError(f"permutations are SYSU-MM01's alone, the listing is of {listing.name!r}")
    drawn = read_permutations(path)
    records = listing.records.take(listing.part == "test")
    found = collections.Counter(zip(records.camera.tolist(), records.person.tolist(), strict=True))
    people = {p for _, p in found}
    there = {key: table.shape[1] for key, table in drawn.items() if key[1] in people}
    wrong = [
        f"cam{c}/{p:04d} ({found[c, p]} images, {there.get((c, p), 0)} in the file)"
        for c, p in sorted(set(found) | set(there))
        if found[c, p] != there.get((c, p), 0)
    ]
    verdict = "equal"
    try:
        check_permutations(drawn, sorted(people))
    except ValueError as error:
        verdict = str(error)
    return [
        common.every("cameras and persons as in the permutations", len(there), wrong),
        Check("official galleries of the release", "equal", verdict, verdict == "equal"),
    ]
