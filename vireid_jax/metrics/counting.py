"""How many entries of a row are less than a given one; in NumPy alone."""

import numpy as np

TIES = ("stable", "pessimistic", "optimistic")  # orders of images at one distance
FEW = 48  # counts per row up to which comparing with all entries beats sorting them


def check_ties(ties: str) -> None:
    """Raises ValueError unless `ties` is a known rule."""
    if ties not in TIES:
        raise ValueError(f"unknown ties {ties!r}, expected one of {', '.join(TIES)}")


def count_less(rows: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many entries of a row are less than each value, and how many equal it.

    Args:
      rows: float [q, G], no NaN; in any order.
      value: float [q, n], of the same dtype.

    Returns:
      Two int64 [q, n].
    """
    if value.shape[1] > FEW:
        ordered = np.sort(rows, axis=1)
        less = _count_below(ordered, value)
        return less, _count_below(ordered, np.nextafter(value, np.inf, dtype=value.dtype)) - less
    q, g = rows.shape
    less, equal = np.empty((2, *value.shape), np.int64)
    mask = np.zeros((q, -(-g // 8) * 8), bool)  # whole words, so that they can be added up
    for j in range(value.shape[1]):
        at = value[:, j : j + 1]
        less[:, j] = count_true(np.less(rows, at, out=mask[:, :g]), mask)
        equal[:, j] = count_true(np.equal(rows, at, out=mask[:, :g]), mask)
    return less, equal


def count_true(mask: np.ndarray, padded: np.ndarray | None = None) -> np.ndarray:
    """Int64 [q]: the true entries of each row of a bool matrix [q, G].

    Args:
      mask: bool [q, G].
      padded: the array that `mask` is the left part of, if its rows are whole words of eight
        bytes and the rest of it is False; then the count takes a tenth of the time.
    """
    if padded is None:
        return np.count_nonzero(mask, axis=1)
    # Eight counters per word, of a byte each; they hold up to 255.
    words = padded.view(np.uint64)
    if words.shape[1] > 255:
        words = np.add.reduceat(words, np.arange(0, words.shape[1], 255), axis=1)
    else:
        words = np.add.reduce(words, axis=1, keepdims=True)
    return words.view(np.uint8).sum(axis=1, dtype=np.int64)


def _count_below(rows: np.ndarray, value: np.ndarray) -> np.ndarray:
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
