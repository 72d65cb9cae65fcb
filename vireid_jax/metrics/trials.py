"""The images that each trial of a protocol ranks, and the rankings, in blocks of bounded memory."""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vireid_jax.metrics.distance import check_widths, unit_rows
from vireid_jax.metrics.labels import Exclude, Labels, excluded_pairs
from vireid_jax.metrics.ranking import Ranking, Rows, index_gallery, rank_blocks, summarize
from vireid_jax.metrics.rerank import k_reciprocal
from vireid_jax.metrics.streaming import MAX_WORKERS, rank_labeled

Distances = Callable[[slice], np.ndarray]


class Trials(NamedTuple):
    """Which images each trial ranks; None stands for every row, or every place."""

    query: np.ndarray | None  # int [q] rows of queries that some trial uses
    gallery: np.ndarray | None  # int [g] rows of the gallery that some trial uses
    # for each trial: places among `query` and, ascending, among `gallery`
    places: tuple[tuple[np.ndarray | None, np.ndarray | None], ...]

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


def rank_features(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    trials: Trials,
    query: Labels,
    gallery: Labels,
    rules: Rules,
    *,
    rerank: str | None = None,
) -> list[Ranking]:
    """One ranking for each trial, by the cosine of features.

    Args:
      query_features: [Q, D], any real dtype and scale.
      gallery_features: [G, D].
      trials: rows of both that take part.
      query: labels of Q rows.
      gallery: labels of G rows.
      rules: how to rank.
      rerank: None, "all" or "queries".
    """
    query, gallery = query.take(trials.query), gallery.take(trials.gallery)
    if trials.query is not None:
        query_features = query_features[trials.query]
    if trials.gallery is not None:
        gallery_features = gallery_features[trials.gallery]
    drawn = any(columns is not None for _, columns in trials.places)
    unit_bytes = 4 * (query_features.size + gallery_features.size)
    # Half of the memory for normalized features, half for distances and ranks.
    if not drawn and rerank is None and 2 * unit_bytes > rules.block_bytes:
        whole = rank_labeled(query_features, gallery_features, query, gallery, **rules._asdict())
        return _of_each_trial(whole.ranking, trials, query, gallery, rules)
    query_unit = unit_rows(query_features, what="query features", where=query.where)
    gallery_unit = unit_rows(gallery_features, what="gallery features", where=gallery.where)
    check_widths(query_unit, gallery_unit)
    if rerank is not None:
        return _rank_reranked(query_unit, gallery_unit, trials, query, gallery, rules, rerank)

    def distances(block: slice) -> np.ndarray:
        # Minus the cosine orders as the cosine distance does, without its rounding: 1 - s
        # would make similarities near 0 equal that are not.
        return -query_unit[block] @ gallery_unit.T

    if not drawn:
        rules = rules._replace(block_bytes=max(1, rules.block_bytes - unit_bytes))
    return _rank_distances(distances, trials, query, gallery, rules)


def rank_similarity(
    similarity: np.ndarray, trials: Trials, query: Labels, gallery: Labels, rules: Rules
) -> list[Ranking]:
    """One ranking for each trial, by a matrix of similarities.

    Args:
      similarity: real [Q, G], larger for what is closer.
      trials: rows of both that take part.
      query: labels of Q rows.
      gallery: labels of G rows.
      rules: how to rank.

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
    rows = np.arange(similarity.shape[0]) if trials.query is None else trials.query
    columns = slice(None) if trials.gallery is None else trials.gallery

    def distances(block: slice) -> np.ndarray:
        return -np.asarray(similarity[rows[block]][:, columns], np.float32)

    query, gallery = query.take(trials.query), gallery.take(trials.gallery)
    return _rank_distances(distances, trials, query, gallery, rules)


def _rank_distances(
    distances: Distances, trials: Trials, query: Labels, gallery: Labels, rules: Rules
) -> list[Ranking]:
    """Ranks every query in each trial's gallery; each block of distances serves all trials.

    Args:
      distances: rows of queries -> a new array float32 [q, G], smaller for what is closer.
      trials: places among the rows of `query` and of `gallery`.
      query: labels of the rows of distances.
      gallery: labels of the columns of distances.
      rules: how to rank.
    """
    q, g = len(query.person), len(gallery.person)
    drawn = [columns for _, columns in trials.places if columns is not None]
    galleries = drawn or [np.arange(g)]
    indices = [index_gallery(gallery.person[columns], columns) for columns in galleries]
    # NumPy sorts and gathers outside the interpreter lock, so trials run side by side, and where
    # there are fewer of them than threads, parts of a block do.
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    parts = -(-workers // len(indices))
    blocks: list[list[Rows]] = [[] for _ in indices]
    # 6 bytes for the distance and the masks of a pair; then comes its ranking.
    step = max(1, rules.block_bytes // 2 // max(1, 6 * g))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for at in range(0, q, step):
            block = slice(at, at + step)
            distance, people = distances(block), query.person[block]
            dropped = excluded_pairs(rules.exclude, query, gallery, block)
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
                        block_bytes=max(1, rules.block_bytes // 2 // workers),
                        ties=rules.ties,
                    )
                    jobs.append((number, pool.submit(rank)))
            for number, job in jobs:  # in the order of the rows
                blocks[number].extend(job.result())
    rankings = [
        summarize(found, query.person, index.person, len(index.column), max_rank=rules.max_rank)
        for found, index in zip(blocks, indices, strict=True)
    ]
    return rankings if drawn else _of_each_trial(rankings[0], trials, query, gallery, rules)


def _of_each_trial(
    whole: Ranking, trials: Trials, query: Labels, gallery: Labels, rules: Rules
) -> list[Ranking]:
    """The ranking of the queries that each trial draws, from the ranking of all of them."""
    people, images = np.unique(gallery.person), len(gallery.person)
    rankings = []
    for places, _ in trials.places:
        if places is None:
            rankings.append(whole)
            continue
        rows = Rows(*(field[places] for field in whole.rows))
        asked = query.person[places]
        rankings.append(summarize([rows], asked, people, images, max_rank=rules.max_rank))
    return rankings


def _rank_reranked(
    query_unit: np.ndarray,
    gallery_unit: np.ndarray,
    trials: Trials,
    query: Labels,
    gallery: Labels,
    rules: Rules,
    scope: str,
) -> list[Ranking]:
    """Ranks each trial after k-reciprocal re-ranking among its own images, with usual numbers."""
    rankings = []
    for places, columns in trials.places:
        rows = np.arange(len(query_unit)) if places is None else places
        images = np.arange(len(gallery_unit)) if columns is None else columns
        # Neighbors are sought among all images, as in the released codes: pairs that the
        # protocol excludes are left out of the ranking alone.
        distance = k_reciprocal(
            query_unit[rows], gallery_unit[images], scope=scope, block_bytes=rules.block_bytes
        )
        index = index_gallery(gallery.person[images])
        blocks = rank_blocks(
            distance,
            query.person[rows],
            index,
            excluded=excluded_pairs(rules.exclude, query, gallery, rows, images),
            block_bytes=rules.block_bytes,
            ties=rules.ties,
        )
        rankings.append(
            summarize(
                blocks, query.person[rows], index.person, len(images), max_rank=rules.max_rank
            )
        )
    return rankings
