"""What a caller passes, features and labels, checked; in NumPy alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CACHED = 1 << 17  # entries that are normalized at a time, so that they stay in the cache
UNIT = 5e-7  # how far from 1 the length of a row normalized in float32 may be
_LARGEST = np.iinfo(np.int64).max

# (query person, query camera, gallery person, gallery camera) -> bool [Q, G], True: not compared
Exclude = Callable[[Any, Any, Any, Any], np.ndarray]


def as_array(values: Any) -> np.ndarray:
    """The values as an array, without a copy where that can be.

    A PyTorch tensor may need a gradient, lie on an accelerator, or be bfloat16 (which NumPy lacks:
    float32 then); it is known by its methods, since nothing here imports PyTorch.

    Raises:
      ValueError: some entries of a masked array are masked.
    """
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    if masked := np.ma.count_masked(values) if np.ma.isMaskedArray(values) else 0:
        raise ValueError(
            f"{masked} entries of an array {list(values.shape)} are masked, expected a value for "
            "each; leave out the images that have none"
        )
    return np.asarray(values)


def check_matrix(features: np.ndarray, what: str) -> None:
    """Raises ValueError unless `features` is a real matrix [rows, width >= 1]."""
    known = features.dtype.kind in "fiu" or features.dtype.name == "bfloat16"
    if features.ndim != 2 or not known or not features.shape[1]:
        raise ValueError(
            f"{what} are {features.dtype} {list(features.shape)}, expected a real matrix "
            "[rows, width], one row per image"
        )


def check_widths(query: np.ndarray, gallery: np.ndarray) -> None:
    """Raises ValueError unless both feature matrices have one width."""
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}; "
            "take the same feature of the same model for both"
        )


def unit_rows(
    features: Any, *, what: str = "features", where: Callable[[int], str] | None = None
) -> np.ndarray:
    """Rows scaled to length 1, as float32 [N, D].

    Rows of length 1 up to 5e-7 stay as they are, bit for bit, so that normalized float32
    features keep the similarities that their inner products have elsewhere; if all rows do,
    the result is the array given. No scale of a row makes its squares overflow or vanish.

    Args:
      features: [N, D], any real dtype.
      what: what to call the features in an error.
      where: what to call a row in an error; None for `what` and its number.

    Raises:
      ValueError: not a real matrix, an entry that is not finite, or a row of zeros.
    """
    features = as_array(features)
    check_matrix(features, what)
    n, width = features.shape
    if features.dtype == np.float32 and features.flags.c_contiguous:
        with np.errstate(over="ignore", invalid="ignore"):
            if (np.abs(np.sqrt(np.vecdot(features, features)) - 1) <= UNIT).all():
                return features
    out = np.empty((n, width), np.float32)
    length = np.empty(n)
    step = max(1, CACHED // width)
    for at in range(0, n, step):
        length[at : at + step] = _unit_part(features[at : at + step], out[at : at + step])
    for bad, fault in (
        (
            ~np.isfinite(length),
            "holds a NaN or an infinity ({} of {} rows do), expected finite numbers",
        ),
        (length == 0, "is all zeros ({} of {} rows are), so it has no direction to compare"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            named = where(row) if where else f"{what} row {row}"
            fault = fault.format(np.count_nonzero(bad), n)
            raise ValueError(f"{named} {fault}; check the weights and the image")
    return out


def float_rows(
    features: Any, *, what: str = "features", where: Callable[[int], str] | None = None
) -> np.ndarray:
    """Rows as they come, as float32 [N, D]; arguments as of `unit_rows`.

    Raises:
      ValueError: not a real matrix, or an entry that is not finite in float32 or whose square is
        not.
    """
    features = as_array(features)
    check_matrix(features, what)
    with np.errstate(over="ignore", invalid="ignore"):
        out = features.astype(np.float32, copy=False)
        bad = ~np.isfinite(np.vecdot(out, out))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{where(row) if where else f'{what} row {row}'} holds a NaN, an infinity or numbers "
            f"beyond 1e19 ({np.count_nonzero(bad)} of {len(out)} rows do), expected finite ones; "
            "check the weights and the image"
        )
    return out


ROWS = {"cosine": unit_rows, "euclidean": float_rows}  # distance -> what is compared


def half_squares(rows: np.ndarray, distance: str) -> np.ndarray:
    """float32 [N], half the squared length of each row: with the inner products, the distance.

    Half the squared distance of two rows a and b is half |a|^2 + half |b|^2 - a b. Rows of `cosine`
    have length 1.
    """
    if distance == "cosine":
        return np.full(len(rows), 0.5, np.float32)
    return np.vecdot(rows, rows) / 2


def _unit_part(part: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes unit rows to `out`; lengths up to scale: 0 for zeros, NaN if not finite."""
    if part.dtype.kind != "f" or part.dtype.itemsize < 4:
        part = part.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.vecdot(part, part)
        safe = (squared > 1e-20) & (squared < 1e20)  # False for NaN
        length = np.sqrt(np.where(safe, squared, 1).astype(np.float64))
        length[np.abs(length - 1) <= UNIT] = 1
        np.divide(part, length[:, None].astype(part.dtype), out=out, casting="same_kind")
    if len(rows := np.flatnonzero(~safe)):
        some = part[rows].astype(np.float64)
        largest = np.abs(some).max(axis=1)
        largest[~np.isfinite(largest)] = np.nan
        some[np.isnan(largest)] = 0
        some /= np.where(largest > 0, largest, 1)[:, None]
        length[rows] = np.sign(largest)
        out[rows] = some / np.sqrt(np.maximum(np.vecdot(some, some), 1e-300))[:, None]
    return length


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


class Labels(NamedTuple):
    """The labels of N images of one side."""

    side: str  # "query" or "gallery"
    person: np.ndarray  # int64 [N]
    camera: np.ndarray | None  # int64 [N]
    name: Sequence[str] | None  # N
    number: np.ndarray  # int64 [N], rows of the caller's arrays

    def take(self, rows: np.ndarray | None) -> "Labels":
        """The labels of some rows, int [n]; None takes all."""
        if rows is None:
            return self
        return Labels(
            self.side,
            self.person[rows],
            None if self.camera is None else self.camera[rows],
            None if self.name is None else [self.name[row] for row in rows.tolist()],
            self.number[rows],
        )

    def where(self, row: int) -> str:
        """What an error calls a row of features, such as "query features row 3 (a.jpg)"."""
        name = "" if self.name is None else f" ({self.name[row]})"
        return f"{self.side} features row {self.number[row]}{name}"


def check_labels(
    side: str, count: int, person: Any, camera: Any = None, name: Sequence[str] | None = None
) -> Labels:
    """The labels of `count` images, from what a caller passes.

    Raises:
      ValueError: not integers, or not one of each for every image.
    """
    if name is not None and len(name) != count:
        raise ValueError(f"{side}_name has {len(name)} names for {count} rows of features")
    return Labels(
        side,
        check_ids(person, count, f"{side}_person"),
        None if camera is None else check_ids(camera, count, f"{side}_camera"),
        name,
        np.arange(count),
    )


def check_ids(ids: Any, length: int, what: str) -> np.ndarray:
    """`ids` as an int64 array [length], or a ValueError that says what is wrong."""
    ids = as_array(ids)
    if ids.shape != (length,) or (length and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"{what} is {ids.dtype} {list(ids.shape)}, expected integers [{length}], one per row"
        )
    if length and ids.max() > _LARGEST:  # uint64
        raise ValueError(f"{what} holds {ids.max()}, expected numbers up to {_LARGEST}")
    return ids.astype(np.int64)


def excluded_pairs(
    exclude: Exclude | None,
    query: Labels,
    gallery: Labels,
    rows: Any = slice(None),
    columns: Any = slice(None),
) -> np.ndarray | None:
    """Bool [q, g]: pairs of some queries and gallery images that are not compared; None: all are.

    Raises:
      ValueError: the rule needs cameras that are not given.
    """
    if exclude is None:
        return None
    if query.camera is None or gallery.camera is None:
        raise ValueError(
            "exclude is given but no cameras, expected both query_camera and gallery_camera"
        )
    return exclude(
        query.person[rows], query.camera[rows], gallery.person[columns], gallery.camera[columns]
    )
