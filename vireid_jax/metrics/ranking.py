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

How it is computed: only the few true images need a rank, and a binary search in the row's
sorted distances gives it; no ranking is ever written out. float32 distances are compared as
int32 keys with the same order. Rows in which a true image is level with another image are
done again with int64 keys, distance above and the order of ties below, which all differ.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.keys import check_ties, count_below, dense_keys, float_keys, unique_keys

BLOCK_BYTES = 128 << 20  # working memory


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


class GalleryIndex(NamedTuple):
    """The gallery's columns in a distance matrix, grouped by person."""

    person: np.ndarray  # [I] the distinct people, ascending
    column: np.ndarray  # int64 [G] columns, person by person
    start: np.ndarray  # int64 [I] where each person's run begins in `column`
    size: np.ndarray  # int64 [I] images of each person


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
    distance = np.asarray(distance)
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
    return summarize(blocks, query_person, index, max_rank=max_rank)


def check_ids(ids: Any, length: int, what: str) -> np.ndarray:
    """`ids` as an integer array [length], or a ValueError that says what is wrong."""
    ids = np.asarray(ids)
    if ids.shape != (length,) or (length and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"{what} is {ids.dtype} {list(ids.shape)}, expected integers [{length}], one per row"
        )
    return ids.astype(np.int64)


def index_gallery(gallery_person: np.ndarray, column: np.ndarray | None = None) -> GalleryIndex:
    """Groups a gallery by person; within a person the order is kept.

    Args:
      gallery_person: int [G].
      column: int [G] or None, the gallery's columns in a wider distance matrix, ascending.
    """
    order = np.argsort(gallery_person, kind="stable")
    person, start, size = np.unique(gallery_person[order], return_index=True, return_counts=True)
    return GalleryIndex(person, order if column is None else column[order], start, size)


def rank_blocks(
    distance: np.ndarray,
    query_person: np.ndarray,
    index: GalleryIndex,
    *,
    excluded: np.ndarray | None = None,
    block_bytes: int = BLOCK_BYTES,
    ties: str = "stable",
) -> list[Rows]:
    """`rank_rows` over blocks of queries that take about `block_bytes` of working memory."""
    check_ties(ties)
    # Per pair: distances, masks and, in rows with ties, two int64 keys. Per true image: the
    # arrays of the binary search.
    most = int(index.size.max(initial=0))
    step = max(1, block_bytes // max(1, 32 * len(index.column) + 96 * most))
    return [
        rank_rows(
            distance[at : at + step],
            query_person[at : at + step],
            index,
            excluded=None if excluded is None else excluded[at : at + step],
            first_row=at,
            ties=ties,
        )
        for at in range(0, len(distance), step)
    ]


def rank_rows(
    distance: np.ndarray,
    query_person: np.ndarray,
    index: GalleryIndex,
    *,
    excluded: np.ndarray | None = None,
    first_row: int = 0,
    ties: str = "stable",
) -> Rows:
    """Ranks one block of queries against the whole gallery.

    Args:
      distance: float [q, columns], at least those that `index` names.
      query_person: int [q].
      index: the gallery grouped by person.
      excluded: bool like `distance`, or None.
      first_row: the number of the block's first row, for error messages.
      ties: "stable", "pessimistic" or "optimistic", see the top of this file.

    Raises:
      ValueError: a distance is not finite, or an unknown rule for ties.
    """
    check_ties(ties)
    q, g = len(distance), len(index.column)
    if not q or not g:
        return Rows(*np.full((2, q), np.nan), *np.zeros((5, q), np.int64))
    value = distance[:, index.column]
    if not (finite := np.isfinite(value)).all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"distance row {first_row + row} holds {value[row, column]} at gallery column "
            f"{index.column[column]}, expected finite numbers; look at the features of that query "
            "and of that gallery image"
        )
    dropped = None if excluded is None else excluded[:, index.column]
    if value.dtype.itemsize > 4:
        unique = unique_keys(dense_keys(value), index.column, _last(query_person, index, ties))
        return _rank_keys(unique, query_person, index, dropped)[0]
    keys = float_keys(value)
    rows, level = _rank_keys(keys.copy(), query_person, index, dropped)
    if len(again := np.flatnonzero(level)):
        last = _last(query_person[again], index, ties)
        unique = unique_keys(keys[again], index.column, last)
        some = None if dropped is None else dropped[again]
        exact, _ = _rank_keys(unique, query_person[again], index, some)
        for field, known in zip(rows, exact, strict=True):
            field[again] = known
    return rows


def _rank_keys(
    keys: np.ndarray, query_person: np.ndarray, index: GalleryIndex, dropped: np.ndarray | None
) -> tuple[Rows, np.ndarray]:
    """Ranks by integer keys [q, G] in the order of `index.column`; overwrites the keys.

    Returns:
      The rows, and bool [q]: a true image has the key of another image, so that the ranks
      of that row hold only up to the order of ties (never with unique keys).
    """
    beyond = np.iinfo(keys.dtype).max  # no distance has this key
    num_kept = np.full(len(keys), keys.shape[1], np.int64)
    if dropped is not None:
        np.copyto(keys, beyond, where=dropped)
        num_kept -= np.count_nonzero(dropped, axis=1)
    closest = np.minimum.reduceat(keys, index.start, axis=1)  # [q, I]
    true = _true_keys(keys, query_person, index, beyond)  # [q, n]
    keys.sort(axis=1)

    is_true = true < beyond
    num_true = np.count_nonzero(is_true, axis=1)
    rank = 1 + count_below(keys, true)  # [q, n]
    following = np.take_along_axis(keys, np.minimum(rank, keys.shape[1] - 1), axis=1)
    level = (is_true & (following == true) & (rank < keys.shape[1])).any(axis=1)
    order = np.arange(1, true.shape[1] + 1)
    with np.errstate(invalid="ignore"):  # 0 / 0 of queries without a true image is their NaN
        ap = np.where(is_true, order / rank, 0.0).sum(axis=1) / num_true
    valid = num_true > 0
    last = np.take_along_axis(rank, np.maximum(num_true - 1, 0)[:, None], axis=1)[:, 0]
    before = np.count_nonzero(closest < true[:, :1], axis=1)
    rows = Rows(
        ap=ap,
        inp=np.where(valid, num_true / last, np.nan),
        rank_image=np.where(valid, rank[:, 0], 0),
        rank_id=np.where(valid, 1 + before, 0),
        num_true=num_true,
        num_kept=num_kept,
        num_tied=_count_tied(keys, true, beyond) if keys.dtype == np.int64 else np.zeros_like(last),
    )
    return rows, level


def _count_tied(keys: np.ndarray, true: np.ndarray, beyond: int) -> np.ndarray:
    """Int64 [q]: true images at the very distance of an image of someone else.

    That is so where more images share the distance, the upper half of a unique key, than
    true ones do.
    """
    is_true = true < beyond
    low = true >> 32 << 32
    high = np.where(is_true, low + (1 << 32), beyond)
    everyone = count_below(keys, high) - count_below(keys, low)
    own = count_below(true, high) - count_below(true, low)
    return np.count_nonzero(is_true & (everyone > own), axis=1)


def summarize(
    blocks: Sequence[Rows], query_person: np.ndarray, index: GalleryIndex, *, max_rank: int
) -> Ranking:
    """The means over valid queries of all blocks, in order.

    Raises:
      ValueError: no query is valid; the message names the likely cause.
    """
    rows = Rows(*(np.concatenate(field) for field in zip(*blocks, strict=True))) if blocks else None
    if rows is None or not rows.valid.any():
        raise ValueError(_no_valid_query(query_person, index))
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
            "gallery_images": len(index.column),
            "gallery_ids": len(index.person),
            "tied_true_images": int(rows.num_tied.sum()),
        },
    )


def _no_valid_query(query_person: np.ndarray, index: GalleryIndex) -> str:
    asked = np.unique(query_person)
    if not len(asked) or not len(index.person):
        side = "queries" if not len(asked) else "gallery images"
        return f"there are no {side}, expected at least one; check which images were selected"
    shared = len(np.intersect1d(asked, index.person))
    found = f"none of the {len(query_person)} queries has a true image in the gallery: "
    if shared:
        return (
            f"{found}{shared} people are in both, but every true image is excluded (the rule "
            "about cameras, or the `excluded` mask); check the camera numbers"
        )
    return (
        f"{found}queries show {len(asked)} people ({asked[0]}..{asked[-1]}), the gallery "
        f"{len(index.person)} others ({index.person[0]}..{index.person[-1]}); check that both "
        "come from one split and number people alike"
    )


def _last(query_person: np.ndarray, index: GalleryIndex, ties: str) -> np.ndarray | None:
    """Bool [q, G] in the order of `index.column`: the images that come last among equals."""
    if ties == "stable":
        return None
    own = query_person[:, None] == np.repeat(index.person, index.size)
    return own if ties == "pessimistic" else ~own


def _true_keys(
    keys: np.ndarray, query_person: np.ndarray, index: GalleryIndex, beyond: int
) -> np.ndarray:
    """Keys [q, n] of each query's true images, ascending, padded with `beyond`."""
    group = np.minimum(np.searchsorted(index.person, query_person), len(index.person) - 1)
    size = np.where(index.person[group] == query_person, index.size[group], 0)
    slot = np.arange(int(index.size.max()))  # of all people: sums must not depend on the block
    at = np.minimum(index.start[group][:, None] + slot, keys.shape[1] - 1)
    true = np.take_along_axis(keys, at, axis=1)
    true[slot >= size[:, None]] = beyond
    true.sort(axis=1)
    return true
