"""Looks into images: can they be opened, and does each camera show what it should?"""

from collections.abc import Callable

import numpy as np

from vireid_jax.data import arrays
from vireid_jax.data.listing import Check, Listing
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE

_CHUNK = 256  # images decoded at once
_SAMPLE = 8  # images of a camera
_MOST = 0.75  # share of a sample that makes a camera
# Mean difference between the largest and smallest channel, in grey levels of 255. A JPEG that
# was grey has 0; clothes and walls have 15 and more.
_GREY = 8.0


def unreadable(
    listing: Listing, *, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """A line for every image that cannot be decoded; opens all of them, in several threads.

    Args:
      listing: of paths or encoded images.
      progress: called with (images done, images in all).
    """
    total = len(listing.records)
    lines: list[str] = []
    for first in range(0, total, _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, total))
        lines += _decoded(listing, rows, (8, 8))[1]
        if progress is not None:
            progress(min(first + _CHUNK, total), total)
    return lines


def _decoded(
    listing: Listing, rows: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, list[str]]:
    """uint8 [m, H, W, 3], the images that can be decoded, and a line for each of the others."""
    images = [listing.records.images[n] for n in rows.tolist()]
    try:
        return arrays.decode(images, size, filter="bilinear"), []
    except (ValueError, OSError):
        pass  # which of them?
    pixels, lines = [np.empty((0, *size, 3), np.uint8)], []
    for n, image in zip(rows.tolist(), images, strict=True):
        try:
            pixels.append(arrays.decode([image], size, filter="bilinear"))
        except (ValueError, OSError) as error:
            # The row that the message names means nothing here; its cause is Pillow's.
            lines.append(f"{listing.records.name[n]}: {error.__cause__ or error}")
    return np.concatenate(pixels), lines


def exchanged(listing: Listing) -> list[str]:
    """Lines on cameras whose images look as if they were of the other modality.

    Eight images of each camera are looked at: infrared images have no color. It is a hint, not
    a proof: a dark room has no color either, and thermal images may come in false colors.
    """
    records = listing.records
    suspects: dict[int, list[str]] = {VISIBLE: [], INFRARED: []}
    cameras = {VISIBLE: 0, INFRARED: 0}
    for modality in (VISIBLE, INFRARED):
        mine = records.modality == modality
        for camera in np.unique(records.camera[mine]).tolist():
            rows = np.flatnonzero(mine & (records.camera == camera))
            rows = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int)]
            pixels, _ = _decoded(listing, rows, (48, 24))
            if not len(pixels):
                continue
            cameras[modality] += 1
            grey = np.ptp(pixels.astype(int), axis=-1).mean(axis=(1, 2)) < _GREY  # [n]
            odd = int(grey.sum() if modality == VISIBLE else (~grey).sum())
            if odd >= _MOST * len(pixels):
                what = "without color" if modality == VISIBLE else "in color"
                suspects[modality].append(
                    f"camera {camera} is {MODALITIES[modality]}, but {odd} of {len(pixels)} images "
                    f"looked at are {what}"
                )
    if all(n and len(suspects[m]) == n for m, n in cameras.items()):
        return [
            "visible and infrared images look exchanged: the visible ones are without color, the "
            "infrared ones in color; are the folders the wrong way round?"
        ]
    causes = {
        VISIBLE: "infrared images, or very dark ones?",
        INFRARED: "visible images, or false colors?",
    }
    return [f"{line}: {causes[m]}" for m, lines in suspects.items() for line in lines]


def permutations(listing: Listing, path: str) -> list[Check]:
    """Compares SYSU-MM01's rand_perm_cam.mat with the images of the test persons.

    Args:
      listing: of the reader "sysu".
      path: the file.

    Raises:
      ValueError: the listing is of another data set, or the file is not such a file.
      FileNotFoundError: there is no such file.
    """
    # Both are needed only here, and the metrics know no data set's files.
    from vireid_jax.data.readers import common
    from vireid_jax.metrics import check_permutations, read_permutations

    if listing.name != "sysu":
        raise ValueError(f"permutations are SYSU-MM01's alone, the listing is of {listing.name!r}")
    drawn = read_permutations(path)
    test = listing.part == "test"
    records = listing.records
    pairs, counts = np.unique(
        np.stack([records.camera[test], records.person[test]], axis=1), axis=0, return_counts=True
    )
    found = {(int(c), int(p)): int(n) for (c, p), n in zip(pairs, counts, strict=True)}
    people = {p for _, p in found}
    there = {key: table.shape[1] for key, table in drawn.items() if key[1] in people}
    wrong = [
        f"cam{c}/{p:04d} ({found.get((c, p), 0)} images, {there.get((c, p), 0)} in the file)"
        for c, p in sorted(set(found) | set(there))
        if found.get((c, p), 0) != there.get((c, p), 0)
    ]
    checks = [common.every("cameras and persons as in the permutations", len(there), wrong)]
    try:
        check_permutations(drawn, sorted(people))
        checks.append(Check("official galleries of the release", "equal", "equal", True))
    except ValueError as error:
        checks.append(Check("official galleries of the release", "equal", str(error), False))
    return checks
