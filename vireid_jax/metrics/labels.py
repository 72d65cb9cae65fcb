"""What is known of the images of one side, queries or gallery, and which pairs are left out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.distance import as_array

# (query person, query camera, gallery person, gallery camera) -> bool [Q, G], True: not compared
Exclude = Callable[[Any, Any, Any, Any], np.ndarray]


class Labels(NamedTuple):
    """The labels of N images of one side."""

    side: str  # "query" or "gallery"
    person: np.ndarray  # int64 [N]
    camera: np.ndarray | None  # int64 [N]
    name: Sequence[str] | None  # N
    number: np.ndarray | None = None  # int [N], rows of the caller's arrays; None: 0 .. N - 1

    def take(self, rows: np.ndarray | None) -> "Labels":
        """The labels of some rows, int [n]; None takes all."""
        if rows is None:
            return self
        return Labels(
            self.side,
            self.person[rows],
            None if self.camera is None else self.camera[rows],
            None if self.name is None else [self.name[row] for row in rows.tolist()],
            rows if self.number is None else self.number[rows],
        )

    def where(self, row: int) -> str:
        """What an error calls a row of features, such as "query features row 3 (a.jpg)"."""
        number = row if self.number is None else self.number[row]
        name = "" if self.name is None else f" ({self.name[row]})"
        return f"{self.side} features row {number}{name}"


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
    )


def check_ids(ids: Any, length: int, what: str) -> np.ndarray:
    """`ids` as an int64 array [length], or a ValueError that says what is wrong."""
    ids = as_array(ids)
    if ids.shape != (length,) or (length and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"{what} is {ids.dtype} {list(ids.shape)}, expected integers [{length}], one per row"
        )
    return ids.astype(np.int64)


def excluded_pairs(
    exclude: Exclude | None,
    query: Labels,
    gallery: Labels,
    rows: Any = slice(None),
    columns: Any = slice(None),
) -> np.ndarray | None:
    """Bool [q, g]: pairs of some queries and gallery images that are not compared.

    None where there is no rule.

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
