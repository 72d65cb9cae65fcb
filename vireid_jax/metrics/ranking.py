"""CMC, mAP and mINP of a ranking, in NumPy alone.

Definitions, for one query with n true images left at ranks r_1 < ... < r_n among the
gallery images that its exclusion keeps:

  AP       = mean_j  j / r_j             (no interpolation)
  INP      = n / r_n                     (AGW, arXiv 2001.04193)
  rank_image = r_1
  rank_id  = 1 + number of other people whose closest image comes before r_1

A query without a true image is not valid: it is counted and left out of every mean. The
CMC at rank r is the fraction of valid queries with rank_image <= r (or rank_id <= r);
SYSU-MM01 and LLCM use the second, RegDB the first. They agree at rank 1.

Ties: of two images at exactly the same distance, the one with the lower gallery index
comes first (`ties="stable"`). For an audit, `pessimistic` puts the true images after the
others at that distance and `optimistic` before them. The true images that such a rule
touches are counted, so that nobody mistakes an order of the gallery for a result.

A row of distances becomes a row of integers that no two images share: the distance, what the rule
for ties says, the gallery index, and in the last bit whether the image is a true one. Sorting them
gives the ranks.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.inputs import as_array, check_ids

TIES = ("stable", "pessimistic", "optimistic")  # orders of images at one distance
BLOCK_BYTES = 128 << 20  # working memory
CACHED_PAIRS = 1 << 18  # of a block, so that passing over it many times stays in the cache

LATE = 1 << 31  # bit of a key: after the others at that distance
NONE = np.iinfo(np.int64).max - 1  # key of an excluded image


class Rows(NamedTuple):
    """The results of each query; 0 or NaN where the query is not valid."""

    ap: np.ndarray  # float64 [Q]
    inp: np.ndarray  # float64 [Q]
    rank_image: np.ndarray  # int64 [Q], rank of the first true image, from 1
    rank_id: np.ndarray  # int64 [Q], rank of the true person among distinct people, from 1
    num_true: np.ndarray  # int64 [Q], true images that were not excluded
    num_kept: np.ndarray  # int64 [Q], gallery images that were not excluded
    num_tied: np.ndarray  # int64 [Q], true images level with an image of someone else

    @property
    def valid(self) -> np.ndarray:
        """Bool [Q]: the query has at least one true image."""
        return self.num_true > 0

    @classmethod
    def empty(cls, queries: int) -> "Rows":
        """Of queries that are not valid."""
        return cls(*np.full((2, queries), np.nan), *np.zeros((5, queries), np.int64))

    def put(self, at: Any, rows: "Rows") -> None:
        """Writes the results of some queries."""
        for field, known in zip(self, rows, strict=True):
            field[at] = known


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The metrics of a ranking (fractions 0..1) and what they were computed from."""

    cmc_id: np.ndarray  # float64 [max_rank], over distinct people
    cmc_image: np.ndarray  # float64 [max_rank], over images
    mAP: float
    mINP: float
    rows: Rows  # per query, in the order given
    counts: dict[str, int]  # queries, valid_queries, gallery_images, gallery_ids, tied_true_images


def rank_metrics(
    distance: Any,
    query_person: Any,
    gallery_person: Any,
    *,
    excluded: Any = None,
    max_rank: int = 20,
    block_bytes: int = BLOCK_BYTES,
    ties: str = "stable",
) -> Ranking:
    """Ranks every gallery row for every query and scores the result.

    Args:
      distance: float [Q, G], lower is closer. Never modified; a float64 matrix is ranked in
        float64, at several times the cost of float32.
      query_person: int [Q].
      gallery_person: int [G].
      excluded: bool [Q, G] or None; True drops that gallery image from that query's ranking.
      max_rank: length of the CMC curves. Beyond the last rank that a short gallery has,
        a curve keeps its last value.
      block_bytes: bound on the working memory, met by taking rows in blocks.
      ties: "stable", "pessimistic" or "optimistic", see the top of this file.

    Returns:
      A `Ranking`; the means are over valid queries.

    Raises:
      ValueError: wrong shapes or dtypes, a distance that is not finite (naming its row), or
        no valid query (naming the likely cause).
    """
    distance = as_array(distance)
    if distance.ndim != 2 or not np.issubdtype(distance.dtype, np.floating):
        raise ValueError(
            f"distance is {distance.dtype} {list(distance.shape)}, expected a float matrix "
            "[queries, gallery], lower = closer"
        )
    q, g = distance.shape
    query_person = check_ids(query_person, q, "query_person")
    gallery_person = check_ids(gallery_person, g, "gallery_person")
    if excluded is not None:
        excluded = as_array(excluded)
        if excluded.dtype != bool or excluded.shape != (q, g):
            raise ValueError(
                f"excluded is {excluded.dtype} {list(excluded.shape)}, expected bool {[q, g]} "
                "like distance"
            )
    if max_rank < 1 or block_bytes < 1:
        raise ValueError(
            f"max_rank is {max_rank} and block_bytes {block_bytes}, expected at least 1 of each"
        )
    check_ties(ties)
    index = index_gallery(gallery_person, np.arange(g))
    rows, _ = rank_blocks(distance, query_person, index, excluded, ties, block_bytes)
    return summarize(rows, query_person, index.person, g, max_rank)


def check_ties(ties: str) -> None:
    """Raises ValueError unless `ties` is a known rule."""
    if ties not in TIES:
        raise ValueError(f"unknown ties {ties!r}, expected one of {', '.join(TIES)}")


class GalleryIndex(NamedTuple):
    """The gallery's columns in a distance matrix, laid out for ranking.

    The layout is the first image of every person, then the second of all that have one, and so on,
    people with more images first. So the closest image of each person is an elementwise minimum of
    parts of a matrix, many times faster than one reduction per person.
    """

    person: np.ndarray  # int64 [I] the distinct people, ascending
    start: np.ndarray  # int64 [I] where each person's run begins in `place`
    size: np.ndarray  # int64 [I] images of each person
    place: np.ndarray  # int64 [G] person by person, where an image is laid out
    order: np.ndarray  # int64 [G] columns as laid out
    parts: np.ndarray  # int64, how many people have a first, second, ... image


def index_gallery(gallery_person: np.ndarray, column: np.ndarray) -> GalleryIndex:
    """Groups a gallery, int [G], by person; `column` are its columns, int [G] below 2 ** 30."""
    person, size = np.unique(gallery_person, return_counts=True)
    start = np.cumsum(size) - size
    rank = np.empty_like(size)
    rank[np.argsort(-size, kind="stable")] = np.arange(len(size))
    number = np.arange(len(column)) - np.repeat(start, size)  # of an image within its person
    laid_out = np.lexsort((np.repeat(rank, size), number))
    place = np.empty_like(laid_out)
    place[laid_out] = np.arange(len(laid_out))
    order = column[np.argsort(gallery_person, kind="stable")[laid_out]]
    return GalleryIndex(person, start, size, place, order, np.bincount(number))


def rank_blocks(
    distance: np.ndarray,
    query_person: np.ndarray,
    index: GalleryIndex,
    excluded: np.ndarray | None,
    ties: str,
    block_bytes: int,
    top_k: int = 0,
) -> tuple[Rows, np.ndarray]:
    """The results of queries, and the keys of their closest images, int64 [Q, top_k].

    Args:
      distance: float [Q, columns], at least the columns that `index` names.
      query_person: int [Q].
      index: the gallery, grouped by person.
      excluded: bool like `distance`, or None.
      ties: see the top of this file.
      block_bytes: bound on the working memory.
      top_k: how many of the closest images to return, see `read_keys`.

    Raises:
      ValueError: a distance is not finite.
    """
    q, g = len(distance), len(index.order)
    found = Rows.empty(q)
    top = np.full((q, top_k), NONE)
    if g:
        pair_bytes = 6 * max(4, distance.itemsize)
        step = max(1, min(block_bytes // (pair_bytes * g), CACHED_PAIRS // g))
        for at in range(0, q, step):
            part = slice(at, at + step)
            dropped = None if excluded is None else np.take(excluded[part], index.order, axis=1)
            keys, closer = _sorted_keys(
                distance[part], query_person[part], index, dropped, ties, first_row=at
            )
            num_kept = g if dropped is None else g - np.count_nonzero(dropped, axis=1)
            found.put(part, _read_ranks(keys, closer, num_kept))
            top[part, :g] = keys[:, :top_k]
    return found, top


def _sorted_keys(
    distance: np.ndarray,
    query_person: np.ndarray,
    index: GalleryIndex,
    dropped: np.ndarray | None,
    ties: str,
    first_row: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Keys, int64 [q, G] ascending, and how many people come before the first true image, [q]."""
    value = np.take(distance, index.order, axis=1)
    if not (np.isfinite(value.min()) and np.isfinite(value.max())):
        columns = np.sort(index.order)
        row, at = np.argwhere(~np.isfinite(distance[:, columns]))[0]
        raise ValueError(
            f"distance row {first_row + row} holds {distance[row, columns[at]]} at gallery column "
            f"{columns[at]}, expected finite numbers; look at the features of that query "
            "and of that gallery image"
        )
    keys = _levels(value)
    del value
    keys <<= 32
    keys |= 2 * index.order + (LATE if ties == "optimistic" else 0)
    row, place = _true_places(index, query_person)
    keys[row, place] ^= 1 if ties == "stable" else 1 | LATE
    if dropped is not None:
        np.copyto(keys, NONE, where=dropped)
    first = np.full(len(keys), NONE)
    np.minimum.at(first, row, keys[row, place])
    closer = np.count_nonzero(_closest_images(keys, index) < first[:, None], axis=1)
    keys.sort(axis=1)
    return keys, closer


def _levels(value: np.ndarray) -> np.ndarray:
    """Int64 [q, G] of 32 bits that order as the values do."""
    if value.itemsize > 4:  # too many bits for a key: the number of the value within its row
        order = np.argsort(value, axis=1)
        value = np.take_along_axis(value, order, axis=1)
        step = np.zeros(value.shape, np.int64)
        np.cumsum(value[:, 1:] != value[:, :-1], axis=1, out=step[:, 1:])
        level = np.empty_like(step)
        np.put_along_axis(level, order, step, axis=1)
        return level
    bits = (value + np.float32(0)).view(np.int32)  # the sum makes 0 of -0
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)  # negative floats order backwards
    return bits.astype(np.int64)


def read_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and float32 distances of keys; -1 and infinity where there is no image."""
    level = keys >> 32
    value = (level ^ (level >> 31) & 0x7FFFFFFF).astype(np.int32).view(np.float32)
    there = keys != NONE
    return np.where(there, keys % LATE >> 1, -1), np.where(there, value, np.float32(np.inf))


def _true_places(index: GalleryIndex, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every true image: its query and where it is laid out, int64."""
    group = np.minimum(np.searchsorted(index.person, person), len(index.person) - 1)
    size = np.where(index.person[group] == person, index.size[group], 0)
    query = np.repeat(np.arange(len(size)), size)
    number = np.arange(len(query)) - np.repeat(np.cumsum(size) - size, size)
    return query, index.place[np.repeat(index.start[group], size) + number]


def _closest_images(keys: np.ndarray, index: GalleryIndex) -> np.ndarray:
    """Int64 [q, I]: the least key of each person, people as laid out."""
    closest = keys[:, : index.parts[0]].copy()
    at = index.parts[0]
    for people in index.parts[1:]:
        some = closest[:, :people]
        np.minimum(some, keys[:, at : at + people], out=some)
        at += people
    return closest


def _read_ranks(keys: np.ndarray, closer: np.ndarray, num_kept: Any) -> Rows:
    """The results of each query from its sorted keys."""
    q, g = keys.shape
    flat = keys.reshape(-1)
    hit = np.flatnonzero((flat & 1).astype(bool))
    row, rank = hit // g, hit % g + 1
    num_true = np.bincount(row, minlength=q)
    valid = num_true > 0
    end = np.cumsum(num_true)
    number = np.arange(len(hit)) - (end - num_true)[row] + 1  # of a true image within its query
    some = np.maximum(num_true, 1)
    first, last = (np.where(valid, np.append(rank, 0)[at], 0) for at in (end - num_true, end - 1))
    precision = np.bincount(row, number / rank, minlength=q)

    # Where a distance is shared, someone else's image stands beside a run of true ones.
    level = flat[hit] >> 32
    tied = np.zeros(len(hit), bool)
    for beside, border in ((hit - 1, 1), (hit + 1, g)):
        other = flat[beside % len(flat)]
        tied |= (rank != border) & (other >> 32 == level) & (other & 1 == 0)
    run = np.cumsum((np.diff(level, prepend=0) != 0) | (np.diff(row, prepend=0) != 0))
    tied = np.bincount(run, tied)[run] > 0
    return Rows(
        ap=np.where(valid, precision / some, np.nan),
        inp=np.where(valid, num_true / np.maximum(last, 1), np.nan),
        rank_image=first,
        rank_id=np.where(valid, 1 + closer, 0),
        num_true=num_true,
        num_kept=num_kept,
        num_tied=np.bincount(row[tied], minlength=q),
    )


def summarize(
    rows: Rows, query_person: np.ndarray, people: np.ndarray, num_images: int, max_rank: int
) -> Ranking:
    """The means over valid queries; `people` are the distinct ones of the gallery, ascending.

    Raises:
      ValueError: no query is valid; the message names the likely cause.
    """
    valid = rows.valid
    if not valid.any():
        raise ValueError(no_valid_query(query_person, people))
    ranks = np.arange(1, max_rank + 1)
    return Ranking(
        cmc_id=(rows.rank_id[valid, None] <= ranks).mean(axis=0),
        cmc_image=(rows.rank_image[valid, None] <= ranks).mean(axis=0),
        mAP=float(rows.ap[valid].mean()),
        mINP=float(rows.inp[valid].mean()),
        rows=rows,
        counts={
            "queries": len(valid),
            "valid_queries": int(valid.sum()),
            "gallery_images": num_images,
            "gallery_ids": len(people),
            "tied_true_images": int(rows.num_tied.sum()),
        },
    )


def no_valid_query(query_person: np.ndarray, people: np.ndarray) -> str:
    """The message for queries that have no true image among a gallery's people."""
    asked = np.unique(query_person)
    if not len(asked) or not len(people):
        side = "queries" if not len(asked) else "gallery images"
        return f"there are no {side}, expected at least one; check which images were selected"
    shared = len(np.intersect1d(asked, people))
    found = f"none of the {len(query_person)} queries has a true image in the gallery: "
    if shared:
        return (
            f"{found}{shared} people are in both, but every true image is excluded (the rule "
            "about cameras, or the `excluded` mask); check the camera numbers"
        )
    return (
        f"{found}queries show {len(asked)} people ({asked[0]}..{asked[-1]}), the gallery "
        f"{len(people)} others ({people[0]}..{people[-1]}); check that both "
        "come from one split and number people alike"
    )
