"""The rankings of a protocol's trials, in blocks of bounded memory."""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.blocks import index_gallery
from vireid_jax.metrics.distance import check_widths, unit_rows
from vireid_jax.metrics.plan import Exclude, Labels, Plan
from vireid_jax.metrics.ranking import Ranking, Rows, rank_blocks, summarize

MAX_WORKERS = 8  # threads; beyond it a block is too small to be worth one


class Search(NamedTuple):
    """Who is searched for among whom, and how the answer is ranked."""

    labels: Labels
    exclude: Exclude | None
    ties: str
    max_rank: int
    block_bytes: int

    def excluded(self, query: Any, gallery: Any = slice(None)) -> np.ndarray | None:
        """Bool mask of some queries and gallery images, or None where there is no rule."""
        if self.exclude is None:
            return None
        known = self.labels
        if known.query_camera is None or known.gallery_camera is None:
            raise ValueError("the protocol excludes pairs by camera, got no cameras")
        return self.exclude(
            known.query_person[query],
            known.query_camera[query],
            known.gallery_person[gallery],
            known.gallery_camera[gallery],
        )


def rank_plan(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    plan: Plan,
    search: Search,
    *,
    rerank: str | None = None,
) -> list[Ranking]:
    """One ranking for each trial of a plan.

    Args:
      query_features: [Q, D], any real dtype and scale.
      gallery_features: [G, D].
      plan: rows of both that take part.
      search: labels of all rows, and options.
      rerank: None, "all" or "queries".
    """
    search = search._replace(labels=search.labels.take(plan.query, plan.gallery))
    if plan.query is not None:
        query_features = query_features[plan.query]
    if plan.gallery is not None:
        gallery_features = gallery_features[plan.gallery]
    drawn = [columns for _, columns in plan.trials if columns is not None]
    unit_bytes = 4 * (query_features.size + gallery_features.size)
    # Half of the memory for normalized features, half for distances and ranks.
    if not drawn and rerank is None and 2 * unit_bytes > search.block_bytes:
        whole = _rank_streamed(query_features, gallery_features, plan, search)
    else:
        query = unit_rows(
            query_features,
            what="query features",
            name=search.labels.query_name,
            number=plan.query,
        )
        gallery = unit_rows(
            gallery_features,
            what="gallery features",
            name=search.labels.gallery_name,
            number=plan.gallery,
        )
        check_widths(query, gallery)
        if rerank is not None:
            return _rank_reranked(query, gallery, plan, search, scope=rerank)

        def distances(block: slice) -> np.ndarray:
            # Minus the cosine orders as the cosine distance does, without its rounding: 1 - s
            # would make similarities near 0 equal that are not.
            return -query[block] @ gallery.T

        shape = len(query), len(gallery)
        if drawn:
            return _rank_blocks(distances, shape, drawn, search)
        rest = search._replace(block_bytes=max(1, search.block_bytes - unit_bytes))
        [whole] = _rank_blocks(distances, shape, [np.arange(len(gallery))], rest)
    return [
        whole if places is None else _some_queries(whole, places, search)
        for places, _ in plan.trials
    ]


def rank_similarity(similarity: np.ndarray, plan: Plan, search: Search) -> list[Ranking]:
    """One ranking for each trial of a plan, by a matrix of similarities.

    Args:
      similarity: real [Q, G], larger for what is closer.
      plan: rows of both that take part.
      search: labels of all rows, and options.

    Raises:
      ValueError: entries that are not finite, naming the query.
    """
    names = search.labels.query_name
    for at in range(0, len(similarity), 1024):
        bad = np.flatnonzero(~np.isfinite(similarity[at : at + 1024]).all(1))
        if len(bad):
            row = at + int(bad[0])
            named = "" if names is None else f" ({names[row]})"
            raise ValueError(
                f"similarities of query row {row}{named} are not finite; check the weights and the "
                "images"
            )
    search = search._replace(labels=search.labels.take(plan.query, plan.gallery))
    rows = np.arange(similarity.shape[0]) if plan.query is None else plan.query
    columns = slice(None) if plan.gallery is None else plan.gallery
    shape = len(rows), len(np.arange(similarity.shape[1])[columns])

    def distances(block: slice) -> np.ndarray:
        return -np.asarray(similarity[rows[block]][:, columns], np.float32)

    drawn = [places for _, places in plan.trials if places is not None]
    if drawn:
        return _rank_blocks(distances, shape, drawn, search)
    [whole] = _rank_blocks(distances, shape, [np.arange(shape[1])], search)
    return [
        whole if places is None else _some_queries(whole, places, search)
        for places, _ in plan.trials
    ]


def _rank_blocks(
    distances: Callable[[slice], np.ndarray],
    shape: tuple[int, int],
    trials: Sequence[np.ndarray],
    search: Search,
) -> list[Ranking]:
    """Ranks every query in each trial's gallery; each block of distances serves all trials.

    Args:
      distances: rows of queries -> a new array float32 [q, G], smaller for what is closer.
      shape: Q and G.
      trials: for each trial, ascending int columns [g] of the gallery.
      search: labels of these rows, and options.
    """
    person = search.labels.query_person
    indices = [index_gallery(search.labels.gallery_person[c], c) for c in trials]
    # NumPy sorts and gathers outside the interpreter lock, so trials run side by side, and where
    # there are fewer of them than threads, parts of a block do.
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    parts = -(-workers // len(trials))
    blocks: list[list[Rows]] = [[] for _ in trials]
    pairs = 6 * shape[1]  # bytes of a query's distances and masks; then comes its ranking
    step = max(1, search.block_bytes // 2 // max(1, pairs))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for at in range(0, shape[0], step):
            block = slice(at, at + step)
            distance = distances(block)
            dropped = search.excluded(block)
            people = person[block]
            cuts = np.linspace(0, len(distance), min(parts, len(distance)) + 1).astype(int)
            jobs = []
            for number, index in enumerate(indices):
                for low, high in itertools.pairwise(cuts):
                    rank = functools.partial(
                        rank_blocks,
                        distance[low:high],
                        people[low:high],
                        index,
                        excluded=None if dropped is None else dropped[low:high],
                        block_bytes=max(1, search.block_bytes // 2 // workers),
                        ties=search.ties,
                    )
                    jobs.append((number, pool.submit(rank)))
            for number, job in jobs:  # in the order of the rows
                blocks[number].extend(job.result())
    return [
        summarize(found, person, index, max_rank=search.max_rank)
        for found, index in zip(blocks, indices, strict=True)
    ]


def _rank_streamed(query: np.ndarray, gallery: np.ndarray, plan: Plan, search: Search) -> Ranking:
    """Ranks every query in the whole gallery without a normalized copy of the features."""
    from vireid_jax.metrics.streaming import rank_features

    labels = search.labels
    try:
        return rank_features(
            query,
            gallery,
            labels.query_person,
            labels.gallery_person,
            query_camera=labels.query_camera,
            gallery_camera=labels.gallery_camera,
            exclude=search.exclude,
            max_rank=search.max_rank,
            ties=search.ties,
            block_bytes=search.block_bytes,
        ).ranking
    except ValueError:
        # It knows rows by number alone; if one is broken, say which file it is of.
        _name_broken_row("query", query, labels.query_name, plan.query)
        _name_broken_row("gallery", gallery, labels.gallery_name, plan.gallery)
        raise


def _name_broken_row(
    side: str, features: np.ndarray, name: Sequence[str] | None, rows: np.ndarray | None
) -> None:
    """Raises ValueError with the name of the first row that cannot be normalized."""
    number = np.arange(len(features)) if rows is None else rows
    step = max(1, (1 << 22) // max(1, features.shape[1]))
    for at in range(0, len(features), step):
        part = slice(at, at + step)
        unit_rows(
            features[part],
            what=f"{side} features",
            name=None if name is None else name[part],
            number=number[part],
        )


def _rank_reranked(
    query: np.ndarray, gallery: np.ndarray, plan: Plan, search: Search, *, scope: str
) -> list[Ranking]:
    """Ranks each trial after k-reciprocal re-ranking among its own images, with usual numbers."""
    from vireid_jax.metrics.rerank import k_reciprocal

    rankings = []
    for places, columns in plan.trials:
        rows = np.arange(len(query)) if places is None else places
        images = np.arange(len(gallery)) if columns is None else columns
        # Neighbors are sought among all images, as in the released codes: pairs that the
        # protocol excludes are left out of the ranking alone.
        distance = k_reciprocal(
            query[rows], gallery[images], scope=scope, block_bytes=search.block_bytes
        )
        index = index_gallery(search.labels.gallery_person[images])
        people = search.labels.query_person[rows]
        blocks = rank_blocks(
            distance,
            people,
            index,
            excluded=search.excluded(rows, images),
            block_bytes=search.block_bytes,
            ties=search.ties,
        )
        rankings.append(summarize(blocks, people, index, max_rank=search.max_rank))
    return rankings


def _some_queries(ranking: Ranking, places: np.ndarray, search: Search) -> Ranking:
    """The ranking that some queries (int [q], rows of the ranking) would have alone."""
    rows = Rows(*(field[places] for field in ranking.rows))
    people = search.labels.query_person[places]
    index = index_gallery(search.labels.gallery_person)
    return summarize([rows], people, index, max_rank=search.max_rank)
