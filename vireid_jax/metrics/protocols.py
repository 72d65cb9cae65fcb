"""The named evaluation protocols, and `evaluate`, which scores features under one of them.

A protocol says which cameras take part, which images each trial draws as its gallery, and
which gallery images a query must not be compared with.

SYSU-MM01 (and `synthetic`, which keeps its camera roles): cameras 1, 2, 4, 5 are visible,
3 and 6 infrared; 2 and 3 stand in one room.
  Query      every infrared image, in all trials and protocols.
  Gallery    `all`: cameras 1, 2, 4, 5; `indoor`: cameras 1, 2.
             `single`: one image of each person and camera; `multi`: up to ten.
  Exclusion  a query of camera 3 ignores every gallery image of camera 2, of anyone.
  CMC        over distinct people, so that ten images of one person count once.

The draw is described in `vireid_jax.metrics.draws`.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.chance import chance_map
from vireid_jax.metrics.distance import check_widths, unit_rows
from vireid_jax.metrics.draws import draw_groups, pool_groups
from vireid_jax.metrics.ranking import (
    BLOCK_BYTES,
    GalleryIndex,
    Ranking,
    Rows,
    check_ids,
    index_gallery,
    rank_blocks,
    summarize,
)

REPORTED_RANKS = (1, 5, 10, 20)
MAX_WORKERS = 8  # threads; beyond it a block is too small to be worth one

# (query person, query camera, gallery person, gallery camera) -> bool [Q, G]
Exclude = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Protocol(NamedTuple):
    """One way to search."""

    query_cameras: tuple[int, ...]  # every camera that may take a query
    pool_cameras: tuple[int, ...]  # every camera whose images may be offered for drawing
    gallery_cameras: tuple[int, ...]  # those that are drawn from, in the order of the draw
    shots: int  # gallery images of one person and camera, at most
    exclude: Exclude
    cmc: str = "id"  # R1 ... R20 count distinct people ("id") or images ("image")
    gallery: str = "agw"  # the name of the draw


def _same_room(
    query_person: np.ndarray,
    query_camera: np.ndarray,
    gallery_person: np.ndarray,
    gallery_camera: np.ndarray,
) -> np.ndarray:
    """Bool [Q, G]: SYSU-MM01's cameras 2 and 3 see the same room."""
    return (query_camera == 3)[:, None] & (gallery_camera == 2)


_SYSU = ((3, 6), (1, 2, 4, 5))
PROTOCOLS: dict[str, Protocol] = {
    "sysu/all/single": Protocol(*_SYSU, (1, 2, 4, 5), 1, _same_room),
    "sysu/all/multi": Protocol(*_SYSU, (1, 2, 4, 5), 10, _same_room),
    "sysu/indoor/single": Protocol(*_SYSU, (1, 2), 1, _same_room),
    "sysu/indoor/multi": Protocol(*_SYSU, (1, 2), 10, _same_room),
}


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`, or a ValueError that lists the names."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def evaluate(
    query_features: Any,
    gallery_features: Any,
    *,
    query_person: Any,
    gallery_person: Any,
    query_camera: Any,
    gallery_camera: Any,
    gallery_name: Sequence[str],
    query_name: Sequence[str] | None = None,
    protocol: str = "sysu/all/single",
    trials: int = 10,
    max_rank: int = 20,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Scores features under a protocol: by cosine, mean over trials.

    Args:
      query_features: [Q, D], every query of the protocol; any scale, rows need no normalizing.
      gallery_features: [G, D], every image that a trial may draw.
      query_person: int [Q].
      gallery_person: int [G].
      query_camera: int [Q].
      gallery_camera: int [G].
      gallery_name: G distinct names such as "cam1/0006/0025"; the draw depends on them.
      query_name: Q names for the results per query and for error messages.
      protocol: a key of `PROTOCOLS`.
      trials: gallery draws; the benchmark's number is 10.
      max_rank: length of the CMC curves, at least 20.
      block_bytes: bound on the working memory beyond the normalized features.

    Returns:
      A dict of plain values, ready for JSON; metrics are fractions 0..1.
        protocol, gallery, cmc: what was measured.
        metrics: R1, R5, R10, R20, mAP, mINP, each the mean over trials.
        std: their standard deviation over trials (divided by the number of trials).
        trials: the metrics of each trial, with its counts.
        chance: mAP, R1 of a random ranking, and mAP_sigma (see `chance_map`).
        curves: cmc_id and cmc_image, lists [max_rank], mean over trials.
        counts: queries, valid_queries, gallery_images, gallery_ids (of the first trial; a
          draw changes none of them), pool_images, tied_true_images (of all trials).
        per_query: lists [Q]: name (if given), person, camera, AP, INP and R1 (means over
          the trials in which the query is valid, None if in none), best_rank (the best rank
          of a true image in any trial), best_rank_id (among distinct people), valid_trials.

    Raises:
      ValueError: unknown protocol, wrong shapes, a camera that the protocol does not know
        (swapped modalities), features that are not finite, or no valid query.
    """
    rule = get_protocol(protocol)
    if trials < 1 or block_bytes < 1 or max_rank < REPORTED_RANKS[-1]:
        raise ValueError(
            f"trials is {trials}, block_bytes {block_bytes} and max_rank {max_rank}, expected at "
            f"least 1, 1 and {REPORTED_RANKS[-1]} (R{REPORTED_RANKS[-1]} is reported)"
        )
    query_features, gallery_features = np.asarray(query_features), np.asarray(gallery_features)
    q, g = len(query_features), len(gallery_features)
    query_person = check_ids(query_person, q, "query_person")
    query_camera = check_ids(query_camera, q, "query_camera")
    gallery_person = check_ids(gallery_person, g, "gallery_person")
    gallery_camera = check_ids(gallery_camera, g, "gallery_camera")
    for what, names, rows in (("gallery", gallery_name, g), ("query", query_name, q)):
        if names is not None and len(names) != rows:
            raise ValueError(f"{what}_name has {len(names)} names for {rows} rows of features")
    _check_cameras(query_camera, rule.query_cameras, f"query of {protocol}")
    _check_cameras(gallery_camera, rule.pool_cameras, f"gallery of {protocol}")

    # The pool in the order of the draw: then equal distances rank alike however the caller
    # ordered it, and a trial's gallery is an ascending choice of columns.
    groups = pool_groups(gallery_person, gallery_camera, gallery_name, rule.gallery_cameras)
    if not groups:
        raise ValueError(
            f"no gallery image is from a camera of {protocol} {list(rule.gallery_cameras)}; the "
            f"pool's cameras are {np.unique(gallery_camera).tolist()}"
        )
    draws = [draw_groups(groups, rule.shots, trial) for trial in range(trials)]
    place = np.full(g, -1)
    place[[row for group in groups for row in group]] = np.arange(sum(map(len, groups)))
    drawn = np.unique(np.concatenate(draws))
    drawn = drawn[np.argsort(place[drawn])]  # int [U]: pool rows that some trial draws
    place[drawn] = np.arange(len(drawn))

    query = unit_rows(query_features, what="query features", name=query_name)
    gallery = unit_rows(
        gallery_features[drawn],
        what="gallery features",
        name=[f"pool row {row}, {gallery_name[row]}" for row in drawn],
    )
    check_widths(query, gallery)
    columns = [place[draw] for draw in draws]
    rankings = _rank_trials(
        query,
        gallery,
        columns,
        query_person=query_person,
        query_camera=query_camera,
        gallery_person=gallery_person[drawn],
        gallery_camera=gallery_camera[drawn],
        exclude=rule.exclude,
        max_rank=max_rank,
        block_bytes=block_bytes,
    )
    result = _report(rankings, rule.cmc, query_person)
    result["counts"]["pool_images"] = g
    result["per_query"] = {
        **({} if query_name is None else {"name": [str(name) for name in query_name]}),
        "person": query_person.tolist(),
        "camera": query_camera.tolist(),
        **_per_query([ranking.rows for ranking in rankings]),
    }
    return {"protocol": protocol, "gallery": rule.gallery, "cmc": rule.cmc, **result}


def _check_cameras(camera: np.ndarray, known: tuple[int, ...], what: str) -> None:
    if len(other := np.setdiff1d(camera, known)):
        raise ValueError(
            f"{what}: got images of camera {other.tolist()}, expected only {list(known)}; are "
            "query and gallery swapped, or is this another data set's protocol?"
        )


def _rank_trials(
    query: np.ndarray,
    gallery: np.ndarray,
    columns: list[np.ndarray],
    *,
    query_person: np.ndarray,
    query_camera: np.ndarray,
    gallery_person: np.ndarray,
    gallery_camera: np.ndarray,
    exclude: Exclude,
    max_rank: int,
    block_bytes: int,
) -> list[Ranking]:
    """One ranking per trial; each block of distances is computed once for all trials."""
    indices: list[GalleryIndex] = [index_gallery(gallery_person[c], c) for c in columns]
    # NumPy sorts and gathers outside the interpreter lock, so trials run side by side.
    workers = min(len(columns), MAX_WORKERS, os.cpu_count() or 1)
    blocks: list[list[Rows]] = [[] for _ in columns]
    step = max(1, block_bytes // 2 // (5 * len(gallery)))  # distance and mask, then the ranking
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for at in range(0, len(query), step):
            part = slice(at, at + step)
            # Minus the cosine orders as the cosine distance does, without its rounding: 1 - s
            # would make similarities near 0 equal that are not.
            distance = query[part] @ gallery.T
            np.negative(distance, out=distance)
            people = query_person[part]
            dropped = exclude(people, query_camera[part], gallery_person, gallery_camera)
            rank = functools.partial(
                rank_blocks,
                distance,
                people,
                excluded=dropped,
                block_bytes=max(1, block_bytes // 2 // workers),
            )
            for found, rows in zip(blocks, pool.map(rank, indices), strict=True):
                found.extend(rows)
    return [
        summarize(found, query_person, index, max_rank=max_rank)
        for found, index in zip(blocks, indices, strict=True)
    ]


def _report(rankings: list[Ranking], cmc: str, query_person: np.ndarray) -> dict[str, Any]:
    trials = []
    for ranking in rankings:
        curve = ranking.cmc_id if cmc == "id" else ranking.cmc_image
        values = {f"R{rank}": float(curve[rank - 1]) for rank in REPORTED_RANKS}
        trials.append({**values, "mAP": ranking.mAP, "mINP": ranking.mINP, **ranking.counts})
    names = [*(f"R{rank}" for rank in REPORTED_RANKS), "mAP", "mINP"]
    chances = np.array(
        [chance_map(r.rows.num_true, r.rows.num_kept, query_person=query_person) for r in rankings]
    ).mean(axis=0)
    return {
        "metrics": {name: float(np.mean([t[name] for t in trials])) for name in names},
        "std": {name: float(np.std([t[name] for t in trials])) for name in names},
        "trials": trials,
        "chance": dict(zip(("mAP", "R1", "mAP_sigma"), chances.tolist(), strict=True)),
        "curves": {
            "cmc_id": np.mean([r.cmc_id for r in rankings], axis=0).tolist(),
            "cmc_image": np.mean([r.cmc_image for r in rankings], axis=0).tolist(),
        },
        "counts": {
            **rankings[0].counts,
            "tied_true_images": sum(r.counts["tied_true_images"] for r in rankings),
        },
    }


def _per_query(trials: Sequence[Rows]) -> Mapping[str, list]:
    """Lists [Q] over the trials in which a query is valid; None where it never is."""
    valid = np.stack([rows.valid for rows in trials])  # [T, Q]
    times = valid.sum(axis=0)

    def mean(field: Callable[[Rows], np.ndarray]) -> list[float | None]:
        total = np.where(valid, np.stack([field(rows) for rows in trials]), 0.0).sum(axis=0)
        return [float(s / n) if n else None for s, n in zip(total, times, strict=True)]

    def best(field: Callable[[Rows], np.ndarray]) -> list[int | None]:
        far = np.iinfo(np.int64).max
        least = np.where(valid, np.stack([field(rows) for rows in trials]), far).min(axis=0)
        return [int(r) if n else None for r, n in zip(least, times, strict=True)]

    return {
        "AP": mean(lambda rows: rows.ap),
        "INP": mean(lambda rows: rows.inp),
        "R1": mean(lambda rows: rows.rank_image == 1),
        "best_rank": best(lambda rows: rows.rank_image),
        "best_rank_id": best(lambda rows: rows.rank_id),
        "valid_trials": times.tolist(),
    }
