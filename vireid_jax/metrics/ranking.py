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
others at that distance and `optimistic` before them. How many true images such a rule
touches is counted, so that nobody mistakes an order of the gallery for a result.

How it is computed: only the few true images need a rank, and a rank is a count: the images that
are closer, and of those at the same distance the ones that the rule for ties puts before it. No
ranking is written out. Counts of disjoint parts of a gallery add up to the same whatever the
parts, so `vireid_jax.metrics.streaming` uses the same functions for a gallery in blocks.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.distance import as_array
from vireid_jax.metrics.labels import check_ids

TIES = ("stable", "pessimistic", "optimistic")  # orders of images at one distance
BLOCK_BYTES = 128 << 20  # working memory
CACHED_PAIRS = 1 << 18  # of a block, so that passing over it many times stays in the cache


class Rows(NamedTuple):
    """What is known of each query of a block; 0 or NaN where the query is not valid."""

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
        excluded = np.asarray(excluded)
        if excluded.dtype != bool or excluded.shape != (q, g):
            raise ValueError(
                f"excluded is {excluded.dtype} {list(excluded.shape)}, expected bool {[q, g]} "
                "like distance"
            )
    if max_rank < 1 or block_bytes < 1:
        raise ValueError(
            f"max_rank is {max_rank} and block_bytes {block_bytes}, expected at least 1 of each"
        )
    index = index_gallery(gallery_person)
    blocks = rank_blocks(
        distance, query_person, index, excluded=excluded, block_bytes=block_bytes, ties=ties
    )
    return summarize(blocks, query_person, index.person, g, max_rank=max_rank)


def check_ties(ties: str) -> None:
    """Raises ValueError unless `ties` is a known rule."""
    if ties not in TIES:
        raise ValueError(f"unknown ties {ties!r}, expected one of {', '.join(TIES)}")


def rank_blocks(
    distance: np.ndarray,
    query_person: np.ndarray,
    index: "GalleryIndex",
    *,
    excluded: np.ndarray | None = None,
    block_bytes: int = BLOCK_BYTES,
    ties: str = "stable",
) -> list[Rows]:
    """Ranks queries, int [Q], in blocks that take at most `block_bytes` of working memory.

    Args:
      distance: float [Q, columns], at least the columns that `index` names.
      query_person: int [Q].
      index: the gallery grouped by person.
      excluded: bool like `distance`, or None.
      block_bytes: bound on the working memory.
      ties: "stable", "pessimistic" or "optimistic", see the top of this file.

    Raises:
      ValueError: a distance is not finite, or an unknown rule for ties.
    """
    check_ties(ties)
    # Per pair: a copy of the distances, a sorted one and one of the rows with ties, masks, and
    # minima. Per true image: counts and ranks.
    most = int(find_people(index, query_person)[1].max(initial=0))
    g = max(1, len(index.column))
    step = max(1, min(block_bytes // (24 * g + 128 * most), CACHED_PAIRS // g))
    return [
        _rank_rows(
            distance[at : at + step],
            query_person[at : at + step],
            index,
            None if excluded is None else excluded[at : at + step],
            at,
            ties,
        )
        for at in range(0, len(distance), step)
    ]


def _rank_rows(
    distance: np.ndarray,
    query_person: np.ndarray,
    index: "GalleryIndex",
    excluded: np.ndarray | None,
    first_row: int,
    ties: str,
) -> Rows:
    """Ranks one block of queries; `first_row` is its first row's number, for errors."""
    q, g = len(distance), len(index.column)
    if not q or not g:
        return Rows(*np.full((2, q), np.nan), *np.zeros((5, q), np.int64))
    value = np.take(distance, index.order, axis=1)
    if value.dtype.itemsize < 4:
        value = value.astype(np.float32)
    if not np.isfinite(value.min()) or not np.isfinite(value.max()):
        columns = np.sort(index.column)
        row, at = np.argwhere(~np.isfinite(distance[:, columns]))[0]
        raise ValueError(
            f"distance row {first_row + row} holds {distance[row, columns[at]]} at gallery column "
            f"{columns[at]}, expected finite numbers; look at the features of that query "
            "and of that gallery image"
        )
    num_kept = np.full(q, g, np.int64)
    if excluded is not None:
        dropped = np.take(excluded, index.order, axis=1)
        np.copyto(value, np.inf, where=dropped)
        num_kept -= np.count_nonzero(dropped, axis=1)
    row, number, place = true_places(index, query_person)
    truth = Truth.empty(q, int(number.max(initial=0)) + 1, value.dtype)
    truth.value[row, number] = value[row, place]
    truth.column[row, number] = index.order[place]
    truth = truth.sorted()
    found = count_block(value, index, truth, query_person, 0, ties)
    closer = np.count_nonzero(found.closer, axis=1)
    return finish_rows(truth, found.less, found.equal, found.before, closer, num_kept, ties)


# --- Counts over a block of queries and a block of the gallery --------------------------------


class GalleryIndex(NamedTuple):
    """The gallery's columns in a distance matrix, grouped by person.

    Counting works on a matrix whose columns are in `order`: the first image of every person,
    then the second of all that have one, and so on, people with more images first. So the
    closest image of each person is an elementwise minimum of parts of the matrix, many times
    faster than one reduction per person.
    """

    person: np.ndarray  # int64 [I] the distinct people, ascending
    column: np.ndarray  # int64 [G] columns, person by person
    start: np.ndarray  # int64 [I] where each person's run begins in `column`
    size: np.ndarray  # int64 [I] images of each person
    order: np.ndarray  # int64 [G] columns as laid out
    place: np.ndarray  # int64 [G] where `column[i]` is laid out
    rank: np.ndarray  # int64 [I] number of each person in the layout
    parts: np.ndarray  # int64, how many people have a first, second, ... image


class Truth(NamedTuple):
    """The true images of each query; infinity where there is none or it is excluded."""

    value: np.ndarray  # float [q, n] distances
    column: np.ndarray  # int64 [q, n]
    block: np.ndarray  # int64 [q, n] which block of the gallery holds the image

    @classmethod
    def empty(cls, q: int, n: int, dtype: Any = np.float32) -> "Truth":
        """No image is known yet."""
        return cls(np.full((q, n), np.inf, dtype), *np.zeros((2, q, n), np.int64))

    def sorted(self) -> "Truth":
        """Closest first; images at one distance stay in the order they are in."""
        order = np.argsort(self.value, axis=1, kind="stable")
        return Truth(*(np.take_along_axis(field, order, axis=1) for field in self))


class Counts(NamedTuple):
    """What a part of the gallery adds to the ranks of each query's true images."""

    less: np.ndarray  # int64 [q, n] images that are closer
    equal: np.ndarray  # int64 [q, n] images at the same distance, itself among them
    before: np.ndarray  # int64 [q, n] of these, the ones with a lower column; "stable" alone
    closer: np.ndarray  # bool [q, I] people, as laid out, who come before the first true image


def index_gallery(gallery_person: np.ndarray, column: np.ndarray | None = None) -> GalleryIndex:
    """Groups a gallery by person; within a person the order is kept.

    Args:
      gallery_person: int [G].
      column: int [G] or None, the gallery's columns in a wider distance matrix; ascending
        among the images of a person.
    """
    by_person = np.argsort(gallery_person, kind="stable")
    ordered = gallery_person[by_person]
    start = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    size = np.diff(start, append=len(ordered))
    column = by_person if column is None else column[by_person]
    rank = np.empty_like(size)
    rank[np.argsort(-size, kind="stable")] = np.arange(len(size))
    number = np.arange(len(ordered)) - np.repeat(start, size)  # of an image within its person
    laid_out = np.lexsort((np.repeat(rank, size), number))
    place = np.empty_like(laid_out)
    place[laid_out] = np.arange(len(laid_out))
    return GalleryIndex(
        ordered[start], column, start, size, column[laid_out], place, rank, np.bincount(number)
    )


def find_people(index: GalleryIndex, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Int64 [q] positions in `index.person`, and how many images each has (0: not there)."""
    if not len(index.person):
        none = np.zeros(len(person), np.int64)
        return none, none
    group = np.minimum(np.searchsorted(index.person, person), len(index.person) - 1)
    return group, np.where(index.person[group] == person, index.size[group], 0)


def true_places(
    index: GalleryIndex, query_person: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every true image: its query, its number within its person, and where it is laid out.

    All int64, query by query.
    """
    group, size = find_people(index, query_person)
    query = np.repeat(np.arange(len(size)), size)
    number = np.arange(len(query)) - np.repeat(np.cumsum(size) - size, size)
    return query, number, index.place[np.repeat(index.start[group], size) + number]


def count_block(
    value: np.ndarray,
    index: GalleryIndex,
    truth: Truth,
    query_person: np.ndarray,
    block: int,
    ties: str,
) -> Counts:
    """What this part of the gallery adds to the ranks.

    Args:
      value: float [q, G], columns as laid out by `index`; infinity where excluded.
      index: this part of the gallery.
      truth: the true images of each query in the whole gallery, sorted.
      query_person: int64 [q].
      block: the number of this part, as in `truth.block`.
      ties: see the top of this file.
    """
    less, equal = count_less(value, truth.value)
    before = np.zeros_like(less)
    first = truth.value[:, :1]
    closest = closest_images(value, index)
    closer = closest <= first if ties == "pessimistic" else closest < first
    if ties == "stable":
        others = np.isfinite(truth.value) & (equal > (truth.block == block))
        rows = np.flatnonzero(others.any(axis=1))
        if len(rows):
            some = value[rows]
            owner = np.concatenate([np.arange(people) for people in index.parts])
            for j in range(truth.value.shape[1]):
                earlier = some == truth.value[rows, j : j + 1]
                earlier &= index.order < truth.column[rows, j : j + 1]
                before[rows, j] = np.count_nonzero(earlier, axis=1)
                if j == 0:
                    row, column = np.nonzero(earlier)
                    closer[rows[row], owner[column]] = True
    group, size = find_people(index, query_person)
    known = np.flatnonzero(size)
    closer[known, index.rank[group[known]]] = False  # the query's own person
    return Counts(less, equal, before, closer)


def closest_images(value: np.ndarray, index: GalleryIndex) -> np.ndarray:
    """Float [q, I]: the least distance of each person, people as laid out."""
    closest = value[:, : index.parts[0]].copy()
    at = index.parts[0]
    for people in index.parts[1:]:
        some = closest[:, :people]
        np.minimum(some, value[:, at : at + people], out=some)
        at += people
    return closest


def count_less(rows: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many entries of a row are less than each value, and how many equal it.

    Args:
      rows: float [q, G], no NaN; in any order.
      value: float [q, n], of the same dtype.

    Returns:
      Two int64 [q, n].
    """
    less, equal = np.empty((2, *value.shape), np.int64)
    # NumPy sorts a row of floats faster than it compares it with ten values.
    for i, row in enumerate(np.sort(rows, axis=1)):
        less[i] = row.searchsorted(value[i])
        equal[i] = row.searchsorted(value[i], "right")
    equal -= less
    return less, equal


# --- From counts to results -------------------------------------------------------------------


def finish_rows(
    truth: Truth,
    less: np.ndarray,
    equal: np.ndarray,
    before: np.ndarray,
    closer: np.ndarray,
    num_kept: np.ndarray,
    ties: str,
) -> Rows:
    """The results of each query from the counts of the whole gallery.

    Args:
      truth: the true images of each query, sorted.
      less: int64 [q, n], see `Counts`; and the next two.
      equal: int64 [q, n].
      before: int64 [q, n].
      closer: int64 [q], people who come before the first true image.
      num_kept: int64 [q].
      ties: the rule that the counts were made by.
    """
    is_true = np.isfinite(truth.value)
    num_true = np.count_nonzero(is_true, axis=1)
    valid = num_true > 0
    # True images at one distance stand side by side in `truth`, from `start` to `end`.
    n = truth.value.shape[1]
    order = np.arange(n)
    new = truth.value[:, 1:] != truth.value[:, :-1]
    start, end = np.zeros_like(less), np.full_like(less, n - 1)
    start[:, 1:] = np.where(new, order[1:], 0)
    np.maximum.accumulate(start, axis=1, out=start)
    end[:, :-1] = np.where(new, order[:-1], n - 1)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    others = equal - (end - start + 1)  # images of others at that distance
    if ties == "pessimistic":
        before = others + order - start
    elif ties == "optimistic":
        before = order - start

    rank = np.where(is_true, 1 + less + before, 1)
    # A running sum adds one by one, so that it does not depend on the padding.
    precision = np.cumsum(np.where(is_true, (order + 1) / rank, 0.0), axis=1)[:, -1]
    last = np.take_along_axis(rank, np.maximum(num_true - 1, 0)[:, None], axis=1)[:, 0]
    some = np.maximum(num_true, 1)
    return Rows(
        ap=np.where(valid, precision / some, np.nan),
        inp=np.where(valid, num_true / last, np.nan),
        rank_image=np.where(valid, rank[:, 0], 0),
        rank_id=np.where(valid, 1 + closer, 0),
        num_true=num_true,
        num_kept=num_kept,
        num_tied=np.count_nonzero(is_true & (others > 0), axis=1),
    )


def summarize(
    blocks: Sequence[Rows],
    query_person: np.ndarray,
    people: np.ndarray,
    num_images: int,
    *,
    max_rank: int,
) -> Ranking:
    """The means over valid queries of all blocks, in order.

    Args:
      blocks: the results of the queries, block by block.
      query_person: int [Q].
      people: int [I], the distinct people of the gallery, ascending.
      num_images: gallery images.
      max_rank: length of the CMC curves.

    Raises:
      ValueError: no query is valid; the message names the likely cause.
    """
    rows = Rows(*(np.concatenate(field) for field in zip(*blocks, strict=True))) if blocks else None
    if rows is None or not rows.valid.any():
        raise ValueError(no_valid_query(query_person, people))
    valid = rows.valid
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
