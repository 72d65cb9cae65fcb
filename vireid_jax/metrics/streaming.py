"""Exact ranking of a gallery of any size, read in blocks; in NumPy alone.

The gallery is taken in the order of its people, those that are asked for first. Two passes
over blocks of it:

  1. blocks with images of people who are asked for: the distance of every true image;
  2. all blocks: how many images and people come before each true image (see
     `vireid_jax.metrics.blocks`), and the closest images.

So the work is one product of queries and gallery, and a second one for the blocks of pass 1.
Nothing is estimated: the ranks are those of the whole matrix of distances. The last bit of
a distance can depend on the shape of the product that it comes from, so a true image keeps
the distance of pass 1 in pass 2, and every other image has one distance only.

Memory: block_bytes, plus about 40 bytes per gallery image for its place in the order, plus the
results. A gallery in a file (`np.memmap`) that is sorted by person is read nearly front to back.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.blocks import Truth, sort_truth
from vireid_jax.metrics.counting import check_ties
from vireid_jax.metrics.distance import as_array, check_matrix, check_widths, unit_rows
from vireid_jax.metrics.ranking import (
    BLOCK_BYTES,
    Ranking,
    Rows,
    check_ids,
    finish_rows,
    no_valid_query,
    summarize_people,
)
from vireid_jax.metrics.stream_parts import (
    Exclude,
    Options,
    OrderedGallery,
    Queries,
    Tally,
    Workspace,
    find_runs,
    make_block,
    order_gallery,
)

MAX_WORKERS = 8


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
    check_widths(query, gallery)
    q, g = len(query), len(gallery)
    query_person = check_ids(query_person, q, "query_person")
    gallery_person = check_ids(gallery_person, g, "gallery_person")
    if exclude is not None:
        if query_camera is None or gallery_camera is None:
            raise ValueError("exclude is given but no cameras, expected both query_ and gallery_")
        query_camera = check_ids(query_camera, q, "query_camera")
        gallery_camera = check_ids(gallery_camera, g, "gallery_camera")
    whole = order_gallery(gallery, query_person, gallery_person, gallery_camera, block_bytes)
    start, size = find_runs(whole, query_person)
    if not size.any():
        raise ValueError(no_valid_query(query_person, whole.people))
    most = int(size.max())
    q_step, kept = _plan_queries(whole, q, most, top_k, block_bytes)
    chunks = range(0, q, q_step)
    total = len(chunks) * (len(whole.blocks) + len(whole.asked_blocks))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    rows: list[Rows] = []
    index, distance = np.full((q, top_k), -1), np.full((q, top_k), np.inf, np.float32)
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    space = Workspace(min(q, q_step), whole, kept)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        options = Options(exclude, ties, block_bytes, tick, pool, workers)
        for at in chunks:
            part = slice(at, min(at + q_step, q))
            features = unit_rows(
                query[part], what="query features", number=np.arange(part.start, part.stop)
            )
            some = Queries(
                np.negative(features),  # then products are distances but for a constant
                query_person[part],
                None if query_camera is None else query_camera[part],
                start[part],
                size[part],
            )
            tally = _rank_queries(some, whole, most, top_k, space, options)
            rows.append(tally[0])
            index[part], distance[part] = tally[1].top.column, 1 + tally[1].top.value
    return Streamed(
        summarize_people(rows, query_person, whole.people, g, max_rank=max_rank), index, distance
    )


def _plan_queries(
    gallery: OrderedGallery, q: int, most: int, top_k: int, block_bytes: int
) -> tuple[int, int]:
    """Queries to take at a time, and blocks of pass 1 whose distances are kept for pass 2.

    Keeping them saves a product, but takes memory, so that the gallery may have to be read
    and normalized for more chunks of queries: whichever is faster.
    """
    # Per query: its features twice, a row of distances, and for each true image its counts.
    row_bytes = 8 * gallery.features.shape[1] + 4 * gallery.step + 96 * most + 64 * top_k
    g, again = len(gallery.order), gallery.asked
    choices = []
    for kept in (1, max(1, len(gallery.asked_blocks))):
        step = max(1, block_bytes // 2 // (row_bytes + 4 * gallery.step * (kept - 1)))
        rows = g + max(0, again - kept * gallery.step)
        # Normalizing an image takes about as long as comparing it with 300 queries.
        choices.append((rows * (300 * -(-q // step) + q), step, kept))
    _, step, kept = min(choices)
    return step, kept


def _rank_queries(
    queries: Queries,
    gallery: OrderedGallery,
    most: int,
    top_k: int,
    space: Workspace,
    options: Options,
) -> tuple[Rows, Tally]:
    """Both passes for some queries whose people have at most `most` images."""
    # Pass 1. Distances by query and by the number of the image among those of its person.
    q = len(queries.person)
    value = np.full((q, most), np.inf, np.float32)
    slot = np.arange(most)
    known = slot < queries.size[:, None]
    place = np.where(known, queries.start[:, None] + slot, 0)
    kept = {}
    for number in reversed(gallery.asked_blocks):
        block = make_block(queries, gallery, number, space, options)
        value[block.own] = block.distance[block.own_at]
        if number < space.kept:
            kept[number] = block
        options.tick()
    order = np.argsort(value, axis=1, kind="stable")
    lies_in = np.take_along_axis(np.where(known, place // gallery.step, -1), order, axis=1)
    truth = sort_truth(Truth(value, gallery.order[place]))

    # Pass 2.
    tally = Tally.empty(q, most, top_k)
    for number in gallery.blocks:
        if number in kept:
            block = kept.pop(number)
        else:
            block = make_block(queries, gallery, number, space, options)
        block.distance[block.own_at] = value[block.own]
        tally.add(block, queries, gallery, truth, lies_in == number, options)
        options.tick()
    rows = finish_rows(
        truth, tally.less, tally.equal, tally.before, tally.closer, tally.num_kept, options.ties
    )
    return rows, tally
