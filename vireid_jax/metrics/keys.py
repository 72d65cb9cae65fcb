"""Integer keys in the order of distances, and their ranks."""

import numpy as np

TIES = ("stable", "pessimistic", "optimistic")  # orders of images at one distance


def check_ties(ties: str) -> None:
    """Raises ValueError unless `ties` is a known rule."""
    if ties not in TIES:
        raise ValueError(f"unknown ties {ties!r}, expected one of {', '.join(TIES)}")


def float_keys(value: np.ndarray) -> np.ndarray:
    """Int32 [q, G] in the order of the float32 (or float16) values."""
    # The bits of a float32 sort like an int32 once those of negative numbers are flipped.
    # Adding 0 turns -0 into +0, which is the same distance.
    bits = (value.astype(np.float32, copy=False) + np.float32(0)).view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return bits


def dense_keys(value: np.ndarray) -> np.ndarray:
    """Int64 [q, G] in the order of the values: 0 for a row's least value, 1 for the next."""
    order = np.argsort(value, axis=1)
    value = np.take_along_axis(value, order, axis=1)
    step = np.zeros(value.shape, np.int64)
    np.cumsum(value[:, 1:] != value[:, :-1], axis=1, out=step[:, 1:])
    dense = np.empty_like(step)
    np.put_along_axis(dense, order, step, axis=1)
    return dense


def unique_keys(keys: np.ndarray, column: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """Int64 [q, G]: ordered by key, then images not in `last` first, then by column.

    Args:
      keys: int32 [q, G] (or int64 that fits), in the order of the distances.
      column: int [G], all different, below 2^31.
      last: bool [q, G] or None, images that come after the others with their key.
    """
    unique = keys.astype(np.int64)
    unique <<= 32
    unique |= column
    if last is not None:
        unique |= last.astype(np.int64) << 31
    return unique


def count_below(rows: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Int64 [q, n]: how many entries of the sorted row [q, G] are below each value [q, n]."""
    low = np.zeros(value.shape, np.int64)
    high = np.full(value.shape, rows.shape[1], np.int64)
    for _ in range(rows.shape[1].bit_length()):
        middle = (low + high) >> 1
        at = np.minimum(middle, rows.shape[1] - 1)  # low == high == G: answered already
        below = (np.take_along_axis(rows, at, axis=1) < value) & (low < high)
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, middle)
    return low


def nearest(value: np.ndarray, k: int) -> np.ndarray:
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
