"""The closest few of many, in NumPy alone."""

from typing import NamedTuple

import numpy as np


class Nearest(NamedTuple):
    """The k closest images of each query so far, closest first."""

    value: np.ndarray  # float32 [q, k], infinity where there is none
    column: np.ndarray  # int64 [q, k], -1 where there is none


def nearest_columns(value: np.ndarray, k: int) -> np.ndarray:
    """Int64 [q, k] columns of each row's k least values, in order; ties by column.

    Args:
      value: float [q, G], no NaN.
      k: 1 to G.
    """
    if k >= value.shape[1]:
        return np.argsort(value, axis=1, kind="stable")[:, :k]
    column = np.argpartition(value, k - 1, axis=1)[:, :k]
    column.sort(axis=1)  # then a stable order of the values has ties by column
    found = np.take_along_axis(value, column, axis=1)
    # Where the k-th value occurs beyond the k chosen, a lower column may have been left out.
    level = np.count_nonzero(value <= found.max(axis=1, keepdims=True), axis=1) > k
    order = np.argsort(found, axis=1, kind="stable")
    column = np.take_along_axis(column, order, axis=1)
    if level.any():
        column[level] = np.argsort(value[level], axis=1, kind="stable")[:, :k]
    return column


def merge_nearest(
    known: Nearest,
    value: np.ndarray,
    column: np.ndarray,
    *,
    query_person: np.ndarray,
    gallery_person: np.ndarray,
    ties: str,
) -> Nearest:
    """The k closest of those known and of more images.

    Args:
      known: k images of each query.
      value: float32 [q, C] distances of more images; infinity for those to leave out.
      column: int64 [C] their rows in the gallery.
      query_person: int [q].
      gallery_person: int [G], of the whole gallery.
      ties: the rule for images at one distance, see `vireid_jax.metrics.ranking`.
    """
    q, k = known.value.shape
    limit = np.minimum(known.value[:, -1:], np.finfo(np.float32).max)
    mask = value <= limit
    if k < value.shape[1] and np.count_nonzero(mask) > 4 * q * k:  # little is known yet
        limit = np.minimum(limit, np.partition(value, k - 1, axis=1)[:, k - 1 : k])
        np.less_equal(value, limit, out=mask)
    at = np.flatnonzero(mask)
    if not len(at):
        return known
    old = np.flatnonzero(known.column.reshape(-1) >= 0)
    row = np.concatenate([old // k, at // value.shape[1]])
    columns = np.concatenate([known.column.reshape(-1)[old], column[at % value.shape[1]]])
    values = np.concatenate([known.value.reshape(-1)[old], value.reshape(-1)[at]])
    own = np.zeros(len(row), bool)
    if ties != "stable":
        own = (gallery_person[columns] == query_person[row]) == (ties == "pessimistic")
    order = np.lexsort((columns, own, values, row))
    row = row[order]
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(q))[row]
    first = place < k
    merged = Nearest(np.full((q, k), np.inf, np.float32), np.full((q, k), -1))
    merged.value[row[first], place[first]] = values[order][first]
    merged.column[row[first], place[first]] = columns[order][first]
    return merged
