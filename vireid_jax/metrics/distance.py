"""Distances between feature vectors, in NumPy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def unit_rows(
    features: Any, *, what: str = "features", name: Sequence[str] | None = None
) -> np.ndarray:
    """Rows scaled to length 1, as float32 [N, D].

    Rows are divided by their largest entry first, in their own precision, so that squares
    neither overflow nor vanish whatever the scale.

    Args:
      features: [N, D], any real dtype.
      what: what to call the rows in an error.
      name: N names for error messages.

    Raises:
      ValueError: not a real matrix, an entry that is not finite, or a row of zeros.
    """
    features = np.asarray(features)
    if features.dtype.name == "bfloat16":  # not a NumPy dtype; every value fits a float32
        features = features.astype(np.float32)
    if features.ndim != 2 or features.dtype.kind not in "fiu" or not features.shape[1]:
        raise ValueError(
            f"{what} are {features.dtype} {list(features.shape)}, expected a real matrix "
            "[rows, width], one row per image"
        )
    if features.dtype.kind != "f" or features.dtype.itemsize < 4:
        features = features.astype(np.float32)

    def where(row: int) -> str:
        return f"{what} row {row}" + ("" if name is None else f" ({name[row]})")

    largest = np.maximum(features.max(axis=1), -features.min(axis=1))  # NaN stays NaN
    if len(bad := np.flatnonzero(~np.isfinite(largest))):
        raise ValueError(
            f"{where(bad[0])} holds a NaN or an infinity ({len(bad)} of {len(features)} rows do), "
            "expected finite numbers; check the weights and the image"
        )
    if len(bad := np.flatnonzero(largest == 0)):
        raise ValueError(
            f"{where(bad[0])} is all zeros ({len(bad)} of {len(features)} rows are), so it has no "
            "direction to compare; check the weights and the image"
        )
    scaled = (features / largest[:, None]).astype(np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", scaled, scaled, dtype=np.float64))
    scaled /= length[:, None].astype(np.float32)
    return scaled


def cosine_distance(query: Any, gallery: Any) -> np.ndarray:
    """One minus the cosine of the angle: float32 [Q, G], 0 (same direction) to 2.

    Args:
      query: [Q, D], any real dtype and scale.
      gallery: [G, D].

    Raises:
      ValueError: unequal widths, entries that are not finite, or rows of zeros.
    """
    query = unit_rows(query, what="query features")
    gallery = unit_rows(gallery, what="gallery features")
    check_widths(query, gallery)
    distance = query @ gallery.T
    np.subtract(np.float32(1), distance, out=distance)
    return distance


def check_widths(query: np.ndarray, gallery: np.ndarray) -> None:
    """Raises ValueError unless both feature matrices have one width."""
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}; "
            "take the same feature of the same model for both"
        )
