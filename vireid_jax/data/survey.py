"""What a user should know of how images are stored: turned ones, and 16-bit ones of few levels."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.data import decoding, thermal
from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Listing

_SAMPLE = 64  # images that are looked at where not all are
_ENOUGH = 0.5  # share of an image's values, or of 256 levels, below which more is to be had


class _Facts(NamedTuple):
    turned: bool
    values: tuple[int, int, int, int] | None  # of 16 bits: least, largest, how many, levels left


def survey(
    listing: Listing, *, every: bool = False, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Lines on images that are turned upright and on 16-bit images; none if there are none.

    Args:
      listing: of paths.
      every: look at all images, not at 64 spread over the listing. Most cost the header alone.
      progress: called with (images done, images in all).
    """
    total = len(listing.records)
    rows = np.arange(total) if every else common.spread(np.arange(total), min(total, _SAMPLE))
    some = listing.records.take(rows)
    found: list[_Facts] = []
    with ThreadPoolExecutor(decoding.cores()) as pool:
        for facts in pool.map(_look, some.images):
            found.append(facts)
            if progress is not None:
                progress(len(found), len(rows))
    of = f"of {len(rows):,} images" + ("" if len(rows) == total else " looked at")
    lines = []
    if turned := [name for name, facts in zip(some.name, found, strict=True) if facts.turned]:
        lines.append(
            f"{len(turned):,} {of} are marked as turned (EXIF), such as {turned[0]}; they are "
            "decoded upright"
        )
    if deep := [facts.values for facts in found if facts.values]:
        lines.append(_levels(np.array(deep), of, thermal.range_of(some.images[0])))
    return lines


def _levels(deep: np.ndarray, of: str, thermal_range: str) -> str:
    """The line on 16-bit images: int [n, 4] as in `_Facts`."""
    few = deep[:, 3] < _ENOUGH * np.minimum(deep[:, 2], 256)  # [n]
    shown = deep[few] if few.any() else deep
    low, high = shown[:, 0].min(), shown[:, 1].max()
    there, left = np.median(shown[:, 2:], axis=0).astype(int)
    part = "" if len(shown) == len(deep) else f"; {len(shown):,} of them keep few levels"
    line = (
        f"{len(deep):,} {of} have 16 bits{part}, values {low:,} to {high:,}: the {there:,} values "
        f"of an image (median) become {left} gray levels with data.thermal_range={thermal_range}"
    )
    if not few.any():
        return line
    return (
        f"{line}; to keep more, name the range of values that matter, such as "
        f"data.thermal_range={low}:{high}, or data.thermal_range={thermal.OWN} for the range of "
        "each image (see docs/data.md)"
    )


def _look(image: Any) -> _Facts:
    """What there is to say of an image; nothing of one that cannot be decoded."""
    try:
        with decoding.opened(image) as picture:
            turned = decoding.is_turned(picture)
            if not decoding.is_deep(picture):
                return _Facts(turned, None)
            values = np.asarray(picture).astype(np.uint16)
    # Pillow raises SyntaxError and struct.error too; the image is named by who decodes it.
    except Exception:
        return _Facts(False, None)
    levels = thermal.stretch(values, thermal.range_of(image))
    each = len(np.unique(values)), len(np.unique(levels))
    return _Facts(turned, (int(values.min()), int(values.max()), *each))
