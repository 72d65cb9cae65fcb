"""k-reciprocal re-ranking (Zhong et al., CVPR 2017, arXiv 1701.08398), in NumPy alone.

With N = Q + G images and squared Euclidean distances D of unit vectors, or of vectors as they come:

  T[i, j]   = D[i, j] / max_n D[i, n]                    the original distance
  N(i, k)   = the k + 1 nearest images of i, itself among them
  R(i, k)   = {j in N(i, k): i in N(j, k)}               k-reciprocal neighbors
  R*(i)     = R(i, k1) with every R(j, k1/2), j in R(i, k1), that lies in R(i, k1) by more
              than two thirds
  V[i, j]   = exp(-T[i, j]) / sum over R*(i), for j in R*(i), else 0
  V[i]     <- mean of V over the first k2 entries of N(i, k1)       local query expansion
  jaccard   = 1 - m / (2 - m),  m[q, g] = sum_j min(V[q, j], V[g, j])
  result    = (1 - lam) jaccard + lam T

These are the conventions of the released code of the paper and of its copies in MPANet and
IDKL. `scope="queries"` is what the two use on SYSU-MM01: before the neighbor search every
distance to a gallery image becomes the largest of all, so that neighbors are queries only.

Differs from their code: V and the Jaccard distance are float32 instead of float16, and of
two images at one distance the lower index is the nearer one.

Memory: the unit features (4 D bytes per image), the result (4 Q G bytes), the working
memory `block_bytes`, and two sparse rows of V per image (for k1 = 20, k2 = 6 about 2 kB).
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.inputs import ROWS, as_array, check_widths, half_squares
from vireid_jax.metrics.ranking import BLOCK_BYTES

SCOPES = ("all", "queries")


class _Sparse(NamedTuple):
    """Rows of a sparse matrix, one after the other; columns ascend within a row."""

    start: np.ndarray  # int64 [N + 1]
    column: np.ndarray  # int64 [entries]
    value: np.ndarray  # float32 [entries]


def k_reciprocal(
    query: Any,
    gallery: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lam: float = 0.3,
    scope: str = "all",
    distance: str = "cosine",
    excluded: Any = None,
    block_bytes: int = BLOCK_BYTES,
) -> np.ndarray:
    """Re-ranked distances, float32 [Q, G], lower is closer.

    Args:
      query: [Q, D], any real dtype and scale.
      gallery: [G, D].
      k1: size of a neighborhood beyond the image itself.
      k2: images over which V is averaged; 1 for none.
      lam: weight of the original distance, 0 to 1.
      scope: "all" looks for neighbors in queries and gallery, "queries" in queries alone.
      distance: "cosine" scales rows to length 1, "euclidean" takes them as they come (IDKL's code
        on RegDB and LLCM).
      excluded: bool [Q, G] or None. True: the two come last in each other's neighbor
        search. None is what the released codes do, also where a protocol excludes pairs.
      block_bytes: bound on the working memory (see the top of this file).

    Raises:
      ValueError: bad options, empty or unequal feature matrices, entries that are not finite.
    """
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}, expected one of {', '.join(SCOPES)}")
    if k1 < 1 or k2 < 1 or block_bytes < 1 or not 0 <= lam <= 1:
        raise ValueError(
            f"k1 is {k1}, k2 {k2}, block_bytes {block_bytes} and lam {lam}, expected at least 1, "
            "1 and 1, and a weight from 0 to 1"
        )
    if distance not in ROWS:
        raise ValueError(f"unknown distance {distance!r}, expected one of {', '.join(ROWS)}")
    query = ROWS[distance](query, what="query features")
    gallery = ROWS[distance](gallery, what="gallery features")
    check_widths(query, gallery)
    q, g = len(query), len(gallery)
    if not q or not g:
        raise ValueError(f"there are {q} queries and {g} gallery images, expected some of each")
    if excluded is not None:
        excluded = as_array(excluded)
        if excluded.dtype != bool or excluded.shape != (q, g):
            raise ValueError(
                f"excluded is {excluded.dtype} {list(excluded.shape)}, expected bool {[q, g]}"
            )
    features = np.concatenate([query, gallery])
    half = half_squares(features, distance)
    result = np.empty((q, g), np.float32)
    rank, farthest = _neighbors(features, half, result, k1, scope, excluded, block_bytes)
    weights = _weights(features, half, rank, farthest, _expanded_sets(rank, k1, block_bytes))
    if k2 > 1:
        weights = _average(weights, rank[:, :k2], block_bytes)
    _mix_in_jaccard(result, weights, lam)
    return result


def _neighbors(
    features: np.ndarray,
    half: np.ndarray,
    result: np.ndarray,
    k1: int,
    scope: str,
    excluded: np.ndarray | None,
    block_bytes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest images [N, k1 + 1] and largest distance [N] of each image; writes T to `result`."""
    q, n = len(result), len(features)
    k = min(k1 + 1, n)
    rank = np.empty((n, k), np.int64)
    farthest = np.empty(n, np.float32)
    step = max(1, block_bytes // (24 * n))  # distances, a copy, and the order of a row
    for at in range(0, n, step):
        rows = slice(at, min(at + step, n))
        distance = features[rows] @ features.T
        np.subtract(half[rows, None] + half, distance, out=distance)
        np.maximum(distance, 0, out=distance)
        largest = distance.max(axis=1)
        farthest[rows] = np.where(largest > 0, largest, 1)
        if at < q:
            some = slice(at, min(at + step, q))
            result[some] = distance[: q - at, q:] / farthest[some, None]
        if excluded is not None:
            asked = max(0, min(q - at, len(distance)))  # rows that are queries
            distance[:asked, q:][excluded[at : at + asked]] = np.inf
            images = slice(max(0, at - q), max(0, rows.stop - q))
            distance[asked:, :q][excluded[:, images].T] = np.inf
        if scope == "queries":
            distance[:, q:] = np.inf
        rank[rows] = _nearest_columns(distance, k)
    return rank, farthest


def _nearest_columns(value: np.ndarray, k: int) -> np.ndarray:
    """Int64 [q, k] columns of each row's k least values, in order; ties by column."""
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


def _reciprocal(rank: np.ndarray, block_bytes: int) -> np.ndarray:
    """Bool [N, k]: image i is among the neighbors of its neighbor rank[i, a]."""
    n, k = rank.shape
    found = np.empty((n, k), bool)
    step = max(1, block_bytes // (9 * k * k))
    for at in range(0, n, step):
        rows = slice(at, min(at + step, n))
        mine = np.arange(rows.start, rows.stop)[:, None, None]
        found[rows] = (rank[rank[rows]] == mine).any(axis=2)
    return found


def _expanded_sets(rank: np.ndarray, k1: int, block_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """R*(i) of every image: int64 rows and columns of its members, sorted."""
    n, k = rank.shape
    half = rank[:, : int(np.around(k1 / 2)) + 1]
    mutual, half_mutual = _reciprocal(rank, block_bytes), _reciprocal(half, block_bytes)
    step = max(1, block_bytes // (k * half.shape[1] * (k + 32)))
    keys = []
    for at in range(0, n, step):
        near, is_near = rank[at : at + step], mutual[at : at + step]
        member = half[near]  # [b, k, h], of candidate a the half-size neighborhood
        kept = half_mutual[near] & is_near[:, :, None]
        known = ((member[..., None] == near[:, None, None]) & is_near[:, None, None]).any(axis=3)
        overlap, size = (known & kept).sum(axis=2), kept.sum(axis=2)
        kept &= (3 * overlap > 2 * size)[:, :, None]
        row = np.arange(at, at + len(near))
        own = np.broadcast_to(row[:, None], near.shape)[is_near] * n + near[is_near]
        more = np.broadcast_to(row[:, None, None], kept.shape)[kept] * n + member[kept]
        keys.append(np.unique(np.concatenate([own, more])))
    key = np.concatenate(keys)
    return key // n, key % n


def _weights(
    features: np.ndarray,
    half: np.ndarray,
    rank: np.ndarray,
    farthest: np.ndarray,
    members: tuple[np.ndarray, np.ndarray],
) -> _Sparse:
    """V before its expansion."""
    row, column = members
    start = np.searchsorted(row, np.arange(len(rank) + 1))
    value = np.empty(len(row), np.float32)
    for i, (first, end) in enumerate(itertools.pairwise(start)):
        if first == end:  # no neighbor has it among its own, as of the gallery for "queries"
            continue
        near = column[first:end]
        distance = np.maximum(half[near] + half[i] - features[near] @ features[i], 0) / farthest[i]
        weight = np.exp(-distance)
        value[first:end] = weight / weight.sum()
    return _Sparse(start, column, value)


def _take_rows(sparse: _Sparse, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the entries of the given rows, and of which of `rows` each is."""
    size = sparse.start[rows + 1] - sparse.start[rows]
    which = np.repeat(np.arange(len(rows)), size)
    before = np.cumsum(size) - size
    return np.arange(len(which)) + np.repeat(sparse.start[rows] - before, size), which


def _average(weights: _Sparse, rank: np.ndarray, block_bytes: int) -> _Sparse:
    """V averaged over the first images of each neighborhood, rank [N, k2]."""
    n, k = rank.shape
    longest = max(1, int(np.diff(weights.start).max()))
    step = max(1, block_bytes // (64 * k * longest))
    size, columns, values = [], [], []
    for at in range(0, n, step):
        part = rank[at : at + step]
        entry, which = _take_rows(weights, part.reshape(-1))
        key, at_key = np.unique(which // k * n + weights.column[entry], return_inverse=True)
        total = np.bincount(at_key, weights.value[entry], len(key))
        columns.append(key % n)
        values.append((total / k).astype(np.float32))
        size.append(np.bincount(key // n, minlength=len(part)))
    start = np.concatenate([[0], np.cumsum(np.concatenate(size))])
    return _Sparse(start, np.concatenate(columns), np.concatenate(values))


def _mix_in_jaccard(result: np.ndarray, weights: _Sparse, lam: float) -> None:
    """Turns the original distances in `result` into the mixed ones, in place."""
    q, g = result.shape
    # The gallery's entries column by column: which images hold a given neighbor.
    split = weights.start[q]
    column = weights.column[split:]
    order = np.argsort(column, kind="stable")
    image = np.repeat(np.arange(g), np.diff(weights.start[q:]))[order]
    holders = _Sparse(
        np.searchsorted(column[order], np.arange(q + g + 1)), image, weights.value[split:][order]
    )
    for i in range(q):
        mine = slice(weights.start[i], weights.start[i + 1])
        entry, which = _take_rows(holders, weights.column[mine])
        both = np.minimum(weights.value[mine][which], holders.value[entry])
        shared = np.bincount(holders.column[entry], both, g)
        result[i] = (1 - lam) * (1 - shared / (2 - shared)) + lam * result[i]
