"""Exact ranking of a gallery of any size, read in blocks; in NumPy alone.

The gallery is taken in the order of its people, those that are asked for first. Two passes over
blocks of it, for some queries at a time:

  1. blocks with images of these queries' people: the distance of every true image;
  2. all blocks: how many images and people come before each true image (see
     `vireid_jax.metrics.ranking`), and the closest images.

Queries are taken in the order of their people, too, so pass 1 reads a few blocks and the work is
little more than one product of queries and gallery. Nothing is estimated: the whole matrix
of distances gives the same ranks. The last bit of a distance can depend on the shape of the product
that it comes from, so a true image keeps the distance of pass 1 in pass 2, and every other image
has one distance only.

Memory: block_bytes, plus about 40 bytes per gallery image for its place in the order, plus the
results. A gallery in a file (`np.memmap`) that is sorted by person is read nearly front to back.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.distance import as_array, check_matrix, check_widths, unit_rows
from vireid_jax.metrics.labels import Exclude, Labels, check_labels, excluded_pairs
from vireid_jax.metrics.ranking import (
    BLOCK_BYTES,
    CACHED_PAIRS,
    GalleryIndex,
    Ranking,
    Rows,
    Truth,
    check_ties,
    count_block,
    finish_rows,
    index_gallery,
    no_valid_query,
    summarize,
    true_places,
)

MAX_WORKERS = 8  # threads; NumPy works outside the interpreter lock
ROWS_AT_ONCE = 128  # of the gallery, normalized by one thread


class Streamed(NamedTuple):
    """The ranking of a gallery and the images at its top."""

    ranking: Ranking
    top_index: np.ndarray  # int64 [Q, k] gallery rows, closest first; -1 where none is left
    top_distance: np.ndarray  # float32 [Q, k] cosine distances; infinity where none is left


def rank_features(
    query: Any,
    gallery: Any,
    query_person: Any,
    gallery_person: Any,
    *,
    query_camera: Any = None,
    gallery_camera: Any = None,
    exclude: Exclude | None = None,
    max_rank: int = 20,
    top_k: int = 0,
    ties: str = "stable",
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Streamed:
    """Ranks the gallery by cosine for every query, without the matrix of distances.

    Args:
      query: [Q, D], any real dtype and scale; rows are normalized.
      gallery: [G, D], the same, in memory or a `np.memmap`; never copied or normalized whole.
      query_person: int [Q].
      gallery_person: int [G].
      query_camera: int [Q], needed by `exclude` alone.
      gallery_camera: int [G], needed by `exclude` alone.
      exclude: None, or a function of (query person, query camera, gallery person, gallery
        camera) of a block -> bool [q, g], True where the pair is not to be compared.
      max_rank: length of the CMC curves.
      top_k: how many of the closest images to list for each query.
      ties: "stable", "pessimistic" or "optimistic", see `vireid_jax.metrics.ranking`.
      block_bytes: bound on the working memory (see the top of this file); a few hundred MB
        make good use of the processor.
      progress: called after each block with the number of blocks done and of all.

    Returns:
      A `Streamed`.

    Raises:
      ValueError: wrong shapes, widths, dtypes or options, cameras that are missing, features
        that are not finite or all zeros (naming the row), or no valid query.
    """
    check_ties(ties)
    if max_rank < 1 or block_bytes < 1 or top_k < 0:
        raise ValueError(
            f"max_rank is {max_rank}, block_bytes {block_bytes} and top_k {top_k}, expected at "
            "least 1, 1 and 0"
        )
    query, gallery = as_array(query), as_array(gallery)
    check_matrix(query, "query features")
    check_matrix(gallery, "gallery features")
    return rank_labeled(
        query,
        gallery,
        check_labels("query", len(query), query_person, query_camera),
        check_labels("gallery", len(gallery), gallery_person, gallery_camera),
        exclude=exclude,
        max_rank=max_rank,
        top_k=top_k,
        ties=ties,
        block_bytes=block_bytes,
        progress=progress,
    )


def rank_labeled(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    exclude: Exclude | None,
    max_rank: int,
    top_k: int = 0,
    ties: str,
    block_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Streamed:
    """`rank_features` with labels that are checked; errors name images as the labels do."""
    check_widths(query, gallery)
    # Of no pairs, for its error: cameras that are missing show before the long work.
    excluded_pairs(exclude, query_labels, gallery_labels, slice(0), slice(0))
    q, g = len(query), len(gallery)
    whole = _order_gallery(gallery, query_labels.person, gallery_labels, block_bytes)
    start, size = _find_runs(whole, query_labels.person)
    if not size.any():
        raise ValueError(no_valid_query(query_labels.person, whole.people))
    most = int(size.max())
    # Per query: its features twice, a row of distances, and for each true image its counts.
    row_bytes = 8 * gallery.shape[1] + 4 * whole.step + 96 * most + 64 * top_k
    q_step = max(1, block_bytes // 2 // row_bytes)
    by_person = np.argsort(query_labels.person, kind="stable")
    chunks = [by_person[at : at + q_step] for at in range(0, q, q_step)]
    asked = [_blocks_of(whole, start[rows], size[rows]) for rows in chunks]
    total = len(chunks) * len(whole.blocks) + sum(map(len, asked))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    out = Rows(*np.full((2, q), np.nan), *np.zeros((5, q), np.int64))
    index, distance = np.full((q, top_k), -1), np.full((q, top_k), np.inf, np.float32)
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    space = np.empty((min(whole.step, g), gallery.shape[1]), np.float32)
    products = np.empty(min(q, q_step) * len(space), np.float32)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        options = _Options(exclude, ties, block_bytes, tick, pool, workers, space, products)
        for rows, blocks in zip(chunks, asked, strict=True):
            labels = query_labels.take(rows)
            features = unit_rows(query[rows], where=labels.where)
            # Negated, products are distances but for a constant.
            queries = _Queries(np.negative(features), labels, start[rows])
            del features
            found, top = _rank_queries(queries, whole, blocks, most, top_k, options)
            for field, known in zip(out, found, strict=True):
                field[rows] = known
            index[rows], distance[rows] = top.column, 1 + top.value
    ranking = summarize([out], query_labels.person, whole.people, g, max_rank=max_rank)
    return Streamed(ranking, index, distance)


# --- The gallery in order ---------------------------------------------------------------------


class _Gallery(NamedTuple):
    """A gallery and the order in which it is taken."""

    features: np.ndarray  # [G, D], maybe in a file
    labels: Labels  # of G images
    order: np.ndarray  # int64 [G] rows: people who are asked for first, then by person
    people: np.ndarray  # int64 [I] distinct people, ascending
    start: np.ndarray  # int64 [I] where each person's run begins in `order`
    size: np.ndarray  # int64 [I]
    step: int  # images in a block

    @property
    def blocks(self) -> range:
        """Numbers of all blocks."""
        return range(-(-len(self.order) // self.step))


def _order_gallery(
    features: np.ndarray, query_person: np.ndarray, labels: Labels, block_bytes: int
) -> _Gallery:
    order = np.argsort(labels.person, kind="stable")
    ordered = labels.person[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    people, size = ordered[first], np.diff(first, append=len(ordered))
    later = ~np.isin(people, query_person)
    sequence = np.argsort(later, kind="stable")  # each person's run moves as a whole
    start = np.empty_like(size)
    start[sequence] = np.cumsum(size[sequence]) - size[sequence]
    order = order[np.argsort(np.repeat(later, size), kind="stable")]
    # Per image: a unit row, and what grouping it takes.
    step = max(1, block_bytes // 3 // (4 * features.shape[1] + 200))
    return _Gallery(features, labels, order, people, start, size, step)


def _find_runs(gallery: _Gallery, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Int64 [q]: where the run of each query's person begins in the order; its length or 0."""
    if not len(gallery.people):
        return np.zeros_like(person), np.zeros_like(person)
    at = np.minimum(np.searchsorted(gallery.people, person), len(gallery.people) - 1)
    return gallery.start[at], np.where(gallery.people[at] == person, gallery.size[at], 0)


def _blocks_of(gallery: _Gallery, start: np.ndarray, size: np.ndarray) -> range:
    """The blocks that hold some runs, for queries in the order of their people."""
    some = size > 0
    if not some.any():
        return range(0)
    low, high = start[some].min(), (start[some] + size[some]).max()
    return range(int(low) // gallery.step, -(-int(high) // gallery.step))


# --- Both passes ------------------------------------------------------------------------------


class _Queries(NamedTuple):
    """Some queries, and where the images of each one's person begin in the gallery's order."""

    features: np.ndarray  # float32 [q, D], rows of length 1, negated
    labels: Labels
    start: np.ndarray  # int64 [q]


class _Options(NamedTuple):
    """How to go about it."""

    exclude: Exclude | None
    ties: str
    block_bytes: int
    tick: Callable[[], None]  # called after each block
    pool: concurrent.futures.ThreadPoolExecutor
    workers: int
    # Every block is computed in these: fresh memory costs more than a pass over it.
    space: np.ndarray  # float32 [step, D]
    products: np.ndarray  # float32 [q * step]

    def each(self, act: Callable[[Any], None], parts: Sequence[Any]) -> None:
        """Acts on all parts, side by side."""
        if len(parts) == 1:
            act(parts[0])
        else:
            list(self.pool.map(act, parts))  # the list passes errors on

    def row_parts(self, rows: int, columns: int) -> list[slice]:
        """Blocks of rows whose temporary arrays stay in the cache and within the memory."""
        pairs = min(CACHED_PAIRS, self.block_bytes // 6 // (16 * self.workers))
        step = max(1, pairs // max(1, columns))
        return [slice(at, min(at + step, rows)) for at in range(0, rows, step)]


class _Block(NamedTuple):
    """The distances of some queries to a block of the gallery."""

    number: int
    layout: GalleryIndex
    distance: np.ndarray  # float32 [q, g], columns as laid out; infinity where excluded
    num_kept: np.ndarray  # int64 [q] images that are not excluded
    own: tuple[np.ndarray, np.ndarray]  # true images: query, and number within its person
    own_at: tuple[np.ndarray, np.ndarray]  # where each is in `distance`
    last_person: np.ndarray  # int64 [1], with whom the block ends


def _read_block(queries: _Queries, gallery: _Gallery, number: int, options: _Options) -> _Block:
    """Reads, normalizes and compares a block of the gallery."""
    low = number * gallery.step
    rows = gallery.order[low : low + gallery.step]
    q, g = len(queries.start), len(rows)
    index = index_gallery(gallery.labels.person[rows], rows)
    features = options.space[:g]

    def normalize(at: int) -> None:
        part = index.order[at : at + ROWS_AT_ONCE]
        features[at : at + ROWS_AT_ONCE] = unit_rows(
            gallery.features[part], where=lambda row: gallery.labels.where(part[row])
        )

    options.each(normalize, range(0, g, ROWS_AT_ONCE))
    distance = options.products[: q * g].reshape(q, g)
    np.matmul(queries.features, features.T, out=distance)
    num_kept = np.full(q, g)

    def leave_out(part: slice) -> None:
        dropped = excluded_pairs(options.exclude, queries.labels, gallery.labels, part, index.order)
        if dropped is not None:
            np.copyto(distance[part], np.inf, where=dropped)
            num_kept[part] -= np.count_nonzero(dropped, axis=1)

    if options.exclude is not None:
        options.each(leave_out, options.row_parts(q, g))
    query, within, place = true_places(index, queries.labels.person)
    within += np.maximum(low - queries.start[query], 0)  # images in blocks before
    return _Block(
        number,
        index,
        distance,
        num_kept,
        own=(query, within),
        own_at=(query, place),
        last_person=gallery.labels.person[rows[-1:]],
    )


def _rank_queries(
    queries: _Queries, gallery: _Gallery, asked: range, most: int, top_k: int, options: _Options
) -> tuple[Rows, "Nearest"]:
    """Both passes for some queries, whose people have at most `most` images in blocks `asked`."""
    q, ties = len(queries.start), options.ties
    person = queries.labels.person
    known = Truth.empty(q, most)
    block = None
    for number in reversed(asked):
        block = _read_block(queries, gallery, number, options)
        known.value[block.own] = block.distance[block.own_at]
        known.column[block.own] = block.layout.order[block.own_at[1]]
        known.block[block.own] = number
        options.tick()
    truth = known.sorted()

    less, equal, before = np.zeros((3, q, most), np.int64)
    closer, num_kept = np.zeros((2, q), np.int64)
    top = Nearest(np.full((q, top_k), np.inf, np.float32), np.full((q, top_k), -1))
    # A person whose images go on from one block to the next counts once: whether the last person
    # of the last block is counted in `closer`.
    seen, last_person = np.zeros(q, bool), np.zeros(0, np.int64)

    def count(part: slice) -> None:
        index, value = here.layout, here.distance[part]
        some = Truth(*(field[part] for field in truth))
        found = count_block(value, index, some, person[part], here.number, ties)
        less[part] += found.less
        equal[part] += found.equal
        before[part] += found.before
        found.closer[:, goes_on] &= ~seen[part, None]
        if last not in goes_on:
            seen[part] = False
        seen[part] |= found.closer[:, last]
        closer[part] += np.count_nonzero(found.closer, axis=1)
        if top_k:
            top.value[part], top.column[part] = merge_nearest(
                Nearest(top.value[part], top.column[part]),
                value,
                index.order,
                query_person=person[part],
                gallery_person=gallery.labels.person,
                ties=ties,
            )

    for number in gallery.blocks:
        if block is None or block.number != number:
            block = _read_block(queries, gallery, number, options)
        here = block
        here.distance[here.own_at] = known.value[here.own]
        num_kept += here.num_kept
        goes_on = here.layout.rank[np.isin(here.layout.person, last_person)]
        last_person = here.last_person
        [last] = here.layout.rank[here.layout.person == last_person]
        options.each(count, options.row_parts(q, len(here.layout.order)))
        options.tick()
    return finish_rows(truth, less, equal, before, closer, num_kept, ties), top


# --- The closest few --------------------------------------------------------------------------


class Nearest(NamedTuple):
    """The k closest images of each query so far, closest first."""

    value: np.ndarray  # float32 [q, k], infinity where there is none
    column: np.ndarray  # int64 [q, k], -1 where there is none


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
