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

How it is computed: only the few true images need a rank, and counting what comes before
them gives it (see `vireid_jax.metrics.blocks`); no ranking is ever written out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.blocks import (
    GalleryIndex,
    Truth,
    count_block,
    find_people,
    index_gallery,
    sort_truth,
    true_images,
)
from vireid_jax.metrics.counting import check_ties
from vireid_jax.metrics.distance import as_array

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
    return summarize(blocks, query_person, index, max_rank=max_rank)


def check_ids(ids: Any, length: int, what: str) -> np.ndarray:
    """`ids` as an integer array [length], or a ValueError that says what is wrong."""
    ids = as_array(ids)
    if ids.shape != (length,) or (length and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"{what} is {ids.dtype} {list(ids.shape)}, expected integers [{length}], one per row"
        )
    return ids.astype(np.int64)


def rank_blocks(
    distance: np.ndarray,
    query_person: np.ndarray,
    index: GalleryIndex,
    *,
    excluded: np.ndarray | None = None,
    block_bytes: int = BLOCK_BYTES,
    ties: str = "stable",
) -> list[Rows]:
    """`rank_rows` over blocks of queries that take at most `block_bytes` of working memory."""
    check_ties(ties)
    # Per pair: a copy of the distances and one of the rows with ties, masks, and minima. Per
    # true image: counts and ranks.
    most = int(find_people(index, query_person)[1].max(initial=0))
    g = max(1, len(index.column))
    step = max(1, min(block_bytes // (24 * g + 128 * most), CACHED_PAIRS // g))
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
    value = np.take(distance, index.order, axis=1)
    if value.dtype.itemsize < 4:
        value = value.astype(np.float32)
    if not np.isfinite(value.min()) or not np.isfinite(value.max()):
        row, column = np.argwhere(~np.isfinite(distance[:, np.sort(index.column)]))[0]
        column = np.sort(index.column)[column]
        raise ValueError(
            f"distance row {first_row + row} holds {distance[row, column]} at gallery column "
            f"{column}, expected finite numbers; look at the features of that query "
            "and of that gallery image"
        )
    num_kept = np.full(q, g, np.int64)
    if excluded is not None:
        dropped = np.take(excluded, index.order, axis=1)
        np.copyto(value, np.inf, where=dropped)
        num_kept -= np.count_nonzero(dropped, axis=1)
    group, size = find_people(index, query_person)
    truth = sort_truth(true_images(value, index, group, size, max(1, int(size.max()))))
    own = np.where(size > 0, index.rank[group], -1)
    found = count_block(value, index, truth, own=own, here=1, ties=ties)
    closer = np.count_nonzero(found.closer, axis=1)
    return finish_rows(truth, found.less, found.equal, found.before, closer, num_kept, ties)


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
      less: int64 [q, n], see `blocks.Counts`; and the next two.
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
    blocks: Sequence[Rows], query_person: np.ndarray, index: GalleryIndex, *, max_rank: int
) -> Ranking:
    """The means over valid queries of all blocks, in order.

    Raises:
      ValueError: no query is valid; the message names the likely cause.
    """
    return summarize_people(
        blocks, query_person, index.person, len(index.column), max_rank=max_rank
    )


def summarize_people(
    blocks: Sequence[Rows],
    query_person: np.ndarray,
    people: np.ndarray,
    num_images: int,
    *,
    max_rank: int,
) -> Ranking:
    """`summarize`, for a gallery known by its distinct people and its number of images."""
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
    """The message for queries of whom none has a true image among a gallery's people."""
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
