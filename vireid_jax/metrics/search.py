"""Ranking by features or by similarities, in blocks of bounded memory.

Queries are taken in blocks. The distances of a block to all images, [q, G], serve all trials. A
gallery that is too large to be normalized in memory is read front to back for each block of
queries. Nothing is estimated: blocks change no rank.
"""

import concurrent.futures
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.inputs import (
    ROWS,
    Exclude,
    Labels,
    as_array,
    check_labels,
    check_matrix,
    check_widths,
    excluded_pairs,
    half_squares,
)
from vireid_jax.metrics.ranking import (
    NONE,
    Ranking,
    Rows,
    check_ties,
    index_gallery,
    no_valid_query,
    rank_blocks,
    read_keys,
    summarize,
)
from vireid_jax.metrics.rerank import k_reciprocal

MAX_WORKERS = 8  # threads; NumPy works outside the interpreter lock

# rows of queries -> float32 [q, G], smaller for what is closer
Distances = Callable[[slice], np.ndarray]


class Trials(NamedTuple):
    """Which images each trial ranks; None stands for every row, or every place."""

    query: np.ndarray | None = None  # int [q] rows of queries that some trial uses
    gallery: np.ndarray | None = None  # int [g] rows of the gallery that some trial uses
    # for each trial: places among `query` and, ascending, among `gallery`
    places: tuple[tuple[np.ndarray | None, np.ndarray | None], ...] = ((None, None),)

    def queries(self, count: int) -> list[np.ndarray]:
        """For each trial, int [q]: its rows among all `count` queries."""
        rows = np.arange(count) if self.query is None else self.query
        return [rows if places is None else rows[places] for places, _ in self.places]


class Rules(NamedTuple):
    """How a search is ranked."""

    exclude: Exclude | None
    ties: str
    max_rank: int
    block_bytes: int


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
    block_bytes: int = 1 << 30,
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
      block_bytes: bound on the working memory, beyond 60 bytes an image for their order and the
        results. The gallery is read once for every block_bytes / (8 G) queries.
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
    labels = (
        check_labels("query", len(query), query_person, query_camera),
        check_labels("gallery", len(gallery), gallery_person, gallery_camera),
    )
    rules = Rules(exclude, ties, max_rank, block_bytes)
    distances = _streamed(query, gallery, *labels, rules, progress)
    [ranking], keys = _rank(distances, Trials(), *labels, rules, top_k)
    index, distance = read_keys(keys)
    return Streamed(ranking, index, 1 + distance)


def rank_trials(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    trials: Trials,
    query: Labels,
    gallery: Labels,
    rules: Rules,
    *,
    rerank: str | None = None,
    distance: str = "cosine",
) -> list[Ranking]:
    """One ranking for each trial, by the distance of features, [Q, D] and [G, D]."""
    query, gallery = query.take(trials.query), gallery.take(trials.gallery)
    if trials.query is not None:
        query_features = query_features[trials.query]
    if trials.gallery is not None:
        gallery_features = gallery_features[trials.gallery]
    unit_bytes = 4 * (query_features.size + gallery_features.size)
    # Half of the memory for normalized features, half for distances and ranks.
    if trials.gallery is None and rerank is None and 2 * unit_bytes > rules.block_bytes:
        streamed = _streamed(
            query_features, gallery_features, query, gallery, rules, distance=distance
        )
        return _rank(streamed, trials, query, gallery, rules)[0]
    query_rows = ROWS[distance](query_features, what="query features", where=query.where)
    gallery_rows = ROWS[distance](gallery_features, what="gallery features", where=gallery.where)
    check_widths(query_rows, gallery_rows)
    if rerank is not None:
        options = dict(scope=rerank, distance=distance, block_bytes=rules.block_bytes)
        return _rank_reranked(query_rows, gallery_rows, trials, query, gallery, rules, options)
    if trials.gallery is None:
        rules = rules._replace(block_bytes=max(1, rules.block_bytes - unit_bytes))

    def distances(block: slice) -> np.ndarray:
        # Not 1 - cosine, whose rounding makes cosines near 0 equal that are not.
        return _less_inner(-query_rows[block] @ gallery_rows.T, gallery_rows, distance)

    return _rank(distances, trials, query, gallery, rules)[0]


def rank_similarity(
    similarity: np.ndarray, trials: Trials, query: Labels, gallery: Labels, rules: Rules
) -> list[Ranking]:
    """One ranking for each trial, by similarities, real [Q, G], larger for what is closer.

    Raises:
      ValueError: entries that are not finite, naming the query.
    """
    for at in range(0, len(similarity), 1024):
        bad = np.flatnonzero(~np.isfinite(similarity[at : at + 1024]).all(1))
        if len(bad):
            row = at + int(bad[0])
            named = "" if query.name is None else f" ({query.name[row]})"
            raise ValueError(
                f"similarities of query row {row}{named} are not finite; check the weights and the "
                "images"
            )
    rows = np.arange(len(similarity)) if trials.query is None else trials.query
    columns = slice(None) if trials.gallery is None else trials.gallery

    def distances(block: slice) -> np.ndarray:
        return -np.asarray(similarity[rows[block]][:, columns], np.float32)

    query, gallery = query.take(trials.query), gallery.take(trials.gallery)
    return _rank(distances, trials, query, gallery, rules)[0]


def _rank_reranked(
    query_rows: np.ndarray,
    gallery_rows: np.ndarray,
    trials: Trials,
    query: Labels,
    gallery: Labels,
    rules: Rules,
    options: dict[str, Any],
) -> list[Ranking]:
    """Ranks each trial after k-reciprocal re-ranking among its own images, with usual numbers."""
    rankings = []
    for rows, columns in trials.places:
        # Neighbors are sought among all images, as in the released codes: pairs that the
        # protocol excludes are left out of the ranking alone.
        distance = k_reciprocal(
            query_rows if rows is None else query_rows[rows],
            gallery_rows if columns is None else gallery_rows[columns],
            **options,
        )
        labels = query.take(rows), gallery.take(columns)
        rankings += _rank(distance.__getitem__, Trials(), *labels, rules)[0]
    return rankings


def _less_inner(minus_inner: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    """Distances from minus the inner products [q, g], up to a constant of the query; in place.

    Half the squared Euclidean distance, less half the squared length of the query.
    """
    if distance == "euclidean":
        minus_inner += half_squares(gallery, distance)
    return minus_inner


def _block_rows(images: int, rules: Rules) -> int:
    """How many queries have their distances in memory, with the masks of an exclusion."""
    pair_bytes = 4 if rules.exclude is None else 6
    return max(1, rules.block_bytes // 2 // (pair_bytes * max(1, images)))


def _workers() -> int:
    return min(MAX_WORKERS, os.cpu_count() or 1)


def _streamed(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    query: Labels,
    gallery: Labels,
    rules: Rules,
    progress: Callable[[int, int], None] | None = None,
    *,
    distance: str = "cosine",
) -> Distances:
    """Distances to a gallery that is read part by part; of cosines minus the cosines."""
    as_rows = ROWS[distance]
    check_widths(query_features, gallery_features)
    q, (g, width) = len(query_features), gallery_features.shape
    step = max(1, rules.block_bytes // 4 // _workers() // (4 * width))
    total = -(-q // _block_rows(g, rules)) * -(-g // step)
    done = itertools.count(1)

    def distances(block: slice) -> np.ndarray:
        queries = np.negative(
            as_rows(query_features[block], where=lambda row: query.where(block.start + row))
        )
        out = np.empty((len(queries), g), np.float32)

        def fill(at: int) -> None:
            part = slice(at, at + step)
            rows = as_rows(gallery_features[part], where=lambda row: gallery.where(at + row))
            _less_inner(np.matmul(queries, rows.T, out=out[:, part]), rows, distance)

        # One part is normalized while another is multiplied.
        with concurrent.futures.ThreadPoolExecutor(_workers()) as pool:
            for _ in pool.map(fill, range(0, g, step)):
                if progress is not None:
                    progress(next(done), total)
        return out

    return distances


def _rank(
    distances: Distances,
    trials: Trials,
    query: Labels,
    gallery: Labels,
    rules: Rules,
    top_k: int = 0,
) -> tuple[list[Ranking], np.ndarray]:
    """One ranking for each trial, and the keys of the closest images [Q, top_k].

    The labels are those of the rows and columns of `distances`, the trials places among them.
    """
    q, g = len(query.person), len(gallery.person)
    # What is missing shows before the long work.
    excluded_pairs(rules.exclude, query, gallery, slice(0), slice(0))
    if not np.isin(query.person, gallery.person).any():
        raise ValueError(no_valid_query(query.person, np.unique(gallery.person)))
    drawn = [columns for _, columns in trials.places if columns is not None]
    galleries = drawn or [np.arange(g)]
    indices = [index_gallery(gallery.person[columns], columns) for columns in galleries]
    found = [Rows.empty(q) for _ in indices]
    top = np.full((q, top_k), NONE)
    # NumPy sorts and gathers outside the interpreter lock, so trials run side by side, and where
    # there are fewer of them than threads, parts of a block do.
    workers = max(1, min(_workers(), rules.block_bytes // 2 // (24 * g)))
    step = _block_rows(g, rules)
    parts = min(step, -(-workers // len(indices)))

    memory = max(1, rules.block_bytes // 2 // workers)

    def rank(number: int, rows: slice, distance: np.ndarray, dropped: np.ndarray | None) -> None:
        people, index = query.person[rows], indices[number]
        results, top[rows] = rank_blocks(
            distance, people, index, dropped, rules.ties, memory, top_k
        )
        found[number].put(rows, results)

    def rank_block(pool: concurrent.futures.Executor, block: slice) -> None:
        distance = distances(block)
        dropped = excluded_pairs(rules.exclude, query, gallery, block)
        cuts = np.linspace(0, len(distance), parts + 1).astype(int).tolist()
        jobs = []
        for low, high in itertools.pairwise(cuts):
            rows = slice(block.start + low, block.start + high)
            mask = None if dropped is None else dropped[low:high]
            for number in range(len(indices)):
                jobs.append(pool.submit(rank, number, rows, distance[low:high], mask))
        for job in jobs:
            job.result()

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for at in range(0, q, step):
            rank_block(pool, slice(at, min(at + step, q)))
    rankings = []
    for number, (places, _) in enumerate(trials.places):
        # A query's rank does not depend on the others.
        some = slice(None) if places is None else places
        index = indices[number if drawn else 0]
        rows = Rows(*(field[some] for field in found[number if drawn else 0]))
        asked, images = query.person[some], len(index.order)
        rankings.append(summarize(rows, asked, index.person, images, rules.max_rank))
    return rankings, top
