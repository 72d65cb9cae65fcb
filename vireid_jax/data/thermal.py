"""16-bit gray images: which of their values the 8-bit levels stand for (`data.thermal_range`).

Thermal cameras use a small part of 16 bits: radiometric images count hundredths of a kelvin (a
person and the room are at some 29,000 to 31,500), uncooled sensors give 14 bits.
"""

import dataclasses
import os
import re
from typing import Any

import numpy as np

from vireid_jax.data.readers.common import Listing

FULL, OWN = "full", "image"  # the third range is "LOW:HIGH"


@dataclasses.dataclass(frozen=True)
class Ranged(os.PathLike):
    """The path of an image, with the range that it is read by if it is 16-bit gray."""

    path: str
    thermal_range: str

    def __fspath__(self) -> str:
        return self.path


def ranged(listing: Listing, thermal_range: str) -> Listing:
    """The listing of paths with a range for those that are 16-bit gray.

    Raises:
      ValueError: thermal_range is none.
    """
    check_range(thermal_range)
    if thermal_range == FULL:
        return listing
    images = [Ranged(os.fspath(path), thermal_range) for path in listing.records.images]
    records = dataclasses.replace(listing.records, images=images)
    return dataclasses.replace(listing, records=records)


def range_of(image: Any) -> str:
    """The range that an image is read by: "full" where nothing else is said."""
    return image.thermal_range if isinstance(image, Ranged) else FULL


def stretch(values: np.ndarray, thermal_range: str) -> np.ndarray:
    """16-bit gray as 8-bit gray.

    Args:
      values: uint16 [H, W].
      thermal_range: "full", the upper 8 bits of each value (as libpng strips 16 bits); "image",
        from 0 at the image's least value to 255 at its largest; or "LOW:HIGH", from 0 at LOW
        and below to 255 at HIGH and above. The last two round to the nearest level.

    Returns:
      uint8 [H, W].

    Raises:
      ValueError: thermal_range is none.
    """
    check_range(thermal_range)
    if thermal_range == FULL:
        return (values >> 8).astype(np.uint8)
    if thermal_range == OWN:
        low, high = int(values.min()), int(values.max())
    else:
        low, high = map(int, thermal_range.split(":"))
    span = max(high - low, 1)  # an image of one value is black
    above = np.clip(values, low, high).astype(np.int64) - low
    return ((510 * above + span) // (2 * span)).astype(np.uint8)


def check_range(thermal_range: str) -> None:
    """Raises ValueError unless thermal_range is "full", "image" or "LOW:HIGH"."""
    if thermal_range in (FULL, OWN):
        return
    limits = re.fullmatch(r"(\d{1,5}):(\d{1,5})", str(thermal_range), re.ASCII)
    if not limits or not int(limits[1]) < int(limits[2]) < 2**16:
        raise ValueError(
            f"thermal_range is {thermal_range!r}, expected {FULL}, {OWN} or LOW:HIGH within "
            "0:65535, such as 29000:31500"
        )
