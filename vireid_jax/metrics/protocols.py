"""The named evaluation protocols, and `evaluate`, which scores features under one of them.

A protocol says which modality searches, what each trial draws, and which gallery images a query
must not be compared with. Galleries and queries that are not drawn are every image of a side.

  name                  query     gallery                          not compared            CMC
  sysu/all/single       infrared  1 of each person and camera,     camera 3 with camera 2  people
                                  visible cameras 1, 2, 4, 5
  sysu/all/multi        infrared  up to 10 of each                 camera 3 with camera 2  people
  sysu/indoor/{...}     infrared  the same of cameras 1, 2         camera 3 with camera 2  people
  regdb/v2t             visible   every infrared (thermal) image   -                       images
  regdb/t2v             infrared  every visible image              -                       images
  llcm/i2v              infrared  1 of each person and camera,     same person's           people
                                  visible cameras 1 .. 9           same camera
  llcm/v2i              visible   1 of each person and camera,     same person's           people
                                  infrared cameras 1, 2, 4 .. 9    same camera
  llcm/v2i_released     infrared, every visible image              same person's           people
                        drawn                                      same camera
  llcm/idkl_{i2v,v2i}   one side  every image of the other         -                       people
  folders/{i2v,v2i}     one side  every image of the other         -                       images

"People" counts distinct people up to the first image of the right one, "images" counts images;
the two agree at rank 1. `synthetic` keeps SYSU-MM01's camera roles and uses its protocols. RegDB
is ten problems, a half of the data set each: score each with the model trained on the other half.
The draws are described in `vireid_jax.metrics.draws`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from vireid_jax.metrics.counting import check_ties
from vireid_jax.metrics.distance import as_array
from vireid_jax.metrics.official import Permutations
from vireid_jax.metrics.plan import Protocol, make_labels, make_plan
from vireid_jax.metrics.ranking import BLOCK_BYTES
from vireid_jax.metrics.report import REPORTED_RANKS, report
from vireid_jax.metrics.search import Search, rank_plan, rank_similarity

CMC = ("id", "image")
RERANK = (None, "all", "queries")


def _same_room(
    query_person: np.ndarray,
    query_camera: np.ndarray,
    gallery_person: np.ndarray,
    gallery_camera: np.ndarray,
) -> np.ndarray:
    """Bool [Q, G]: SYSU-MM01's cameras 2 and 3 see the same room."""
    return (query_camera == 3)[:, None] & (gallery_camera == 2)


def _same_camera(
    query_person: np.ndarray,
    query_camera: np.ndarray,
    gallery_person: np.ndarray,
    gallery_camera: np.ndarray,
) -> np.ndarray:
    """Bool [Q, G]: the same person before the same camera; LLCM's cameras take both modalities."""
    same = query_person[:, None] == gallery_person
    same &= query_camera[:, None] == gallery_camera
    return same


_VISIBLE_9 = (1, 2, 3, 4, 5, 6, 7, 8, 9)
_INFRARED_8 = (1, 2, 4, 5, 6, 7, 8, 9)

_SYSU = functools.partial(
    Protocol,
    "infrared",
    "id",
    "queries of camera 3 skip every gallery image of camera 2: the two see one room",
    drawn="gallery",
    draws=("agw", "official"),
    query_cameras=(3, 6),
    gallery_cameras=(1, 2, 4, 5),
    exclude=_same_room,
)
_LLCM = functools.partial(Protocol, cmc="id", draws=("agw",), shots=1, exclude=_same_camera)
_LLCM_RULE = "queries skip images of their own person from their own camera"
_REGDB = functools.partial(Protocol, cmc="image", explain="one of ten released splits")
_IDKL = functools.partial(
    Protocol,
    cmc="id",
    explain="IDKL's variant: every image, no camera rule; not comparable with llcm/i2v, llcm/v2i",
)
_FOLDERS = functools.partial(Protocol, cmc="image", explain="every image of the other modality")

PROTOCOLS: dict[str, Protocol] = {
    "sysu/all/single": _SYSU(draw_cameras=(1, 2, 4, 5), shots=1),
    "sysu/all/multi": _SYSU(draw_cameras=(1, 2, 4, 5), shots=10),
    "sysu/indoor/single": _SYSU(draw_cameras=(1, 2), shots=1),
    "sysu/indoor/multi": _SYSU(draw_cameras=(1, 2), shots=10),
    "regdb/v2t": _REGDB("visible"),
    "regdb/t2v": _REGDB("infrared"),
    "llcm/i2v": _LLCM(
        "infrared",
        explain=_LLCM_RULE,
        drawn="gallery",
        draw_cameras=_VISIBLE_9,
        query_cameras=_INFRARED_8,
        gallery_cameras=_VISIBLE_9,
    ),
    "llcm/v2i": _LLCM(
        "visible",
        explain=_LLCM_RULE,
        drawn="gallery",
        draw_cameras=_INFRARED_8,
        query_cameras=_VISIBLE_9,
        gallery_cameras=_INFRARED_8,
    ),
    "llcm/v2i_released": _LLCM(
        "infrared",
        explain="what AGW's and DEEN's code computes as v2i: the drawn infrared images search",
        drawn="query",
        draw_cameras=_INFRARED_8,
        query_cameras=_INFRARED_8,
        gallery_cameras=_VISIBLE_9,
    ),
    "llcm/idkl_i2v": _IDKL("infrared"),
    "llcm/idkl_v2i": _IDKL("visible"),
    "folders/i2v": _FOLDERS("infrared"),
    "folders/v2i": _FOLDERS("visible"),
}


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`, or a ValueError that lists the names."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def sampled_rows(
    protocol: str,
    *,
    query_person: Any,
    gallery_person: Any,
    query_camera: Any = None,
    gallery_camera: Any = None,
    query_name: Sequence[str] | None = None,
    gallery_name: Sequence[str] | None = None,
    gallery: str = "agw",
    permutations: Permutations | None = None,
    trial: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the queries and of the gallery, int [q] and [g], that one trial uses.

    Args:
      protocol: a key of `PROTOCOLS`; see `evaluate` for the others.
      trial: its number, from 0.

    Raises:
      ValueError: see `evaluate`.
    """
    q, g = len(query_person), len(gallery_person)
    labels = make_labels(
        q,
        g,
        query_person=query_person,
        gallery_person=gallery_person,
        query_camera=query_camera,
        gallery_camera=gallery_camera,
        query_name=query_name,
        gallery_name=gallery_name,
    )
    plan = make_plan(protocol, get_protocol(protocol), labels, gallery, [trial], permutations)
    return (
        np.arange(q) if plan.query is None else plan.query,
        np.arange(g) if plan.gallery is None else plan.gallery,
    )


def evaluate(
    query_features: Any = None,
    gallery_features: Any = None,
    *,
    similarity: Any = None,
    query_person: Any,
    gallery_person: Any,
    query_camera: Any = None,
    gallery_camera: Any = None,
    gallery_name: Sequence[str] | None = None,
    query_name: Sequence[str] | None = None,
    protocol: str = "sysu/all/single",
    gallery: str = "agw",
    permutations: Permutations | None = None,
    cmc: str | None = None,
    trials: int | None = None,
    ties: str = "stable",
    rerank: str | None = None,
    max_rank: int = REPORTED_RANKS[-1],
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Scores features under a protocol: by cosine, mean over trials.

    No argument is modified. Features may be memory-mapped, of any real dtype and scale, and
    PyTorch's tensors.

    Args:
      query_features: [Q, D], every image of the modality that searches (`Protocol.query`), also
        where the trials draw some of them.
      gallery_features: [G, D], every image of the other modality that a trial may draw.
      similarity: [Q, G] instead of features, of any scale, larger for what is closer: for
        similarities that are no cosine of two vectors.
      query_person: int [Q].
      gallery_person: int [G].
      query_camera: int [Q], needed where a rule or a draw of the protocol goes by cameras.
      gallery_camera: int [G], likewise.
      gallery_name: G distinct names such as "cam1/0006/0025", needed where the gallery is drawn:
        the draw goes by them. Otherwise they are for error messages.
      query_name: Q names, needed where the queries are drawn; for the results per query.
      protocol: a key of `PROTOCOLS`.
      gallery: the draw, "agw" or "official" (SYSU-MM01's fixed permutations); "agw" is of no
        effect where nothing is drawn.
      permutations: for "official", see `official.read_permutations`.
      cmc: "id" or "image" instead of the protocol's convention.
      trials: draws to average over; None for the benchmark's number, 10 where something is drawn.
      ties: order of images at one distance. "stable": the lower gallery index first, which is
        the order of the draw, and the order given where the gallery is not drawn; "pessimistic"
        and "optimistic" put true images last and first, to audit a result.
      rerank: None, or k-reciprocal re-ranking with neighbors among "all" images or "queries"
        alone. Its result is not comparable with others, and `block_bytes` does not bound it.
      max_rank: length of the CMC curves, at least 20. Beyond the last rank that a short gallery
        has, a curve keeps its last value.
      block_bytes: bound on the working memory; where the gallery is drawn, beyond the normalized
        features of the drawn images and the queries.

    Returns:
      A dict of plain values, ready for JSON; metrics are fractions 0..1.
        protocol, gallery ("agw", "official", or "all" where nothing is drawn), cmc, ties, rerank,
          direction: what was measured.
        metrics: R1, R5, R10, R20, mAP, mINP, each the mean over trials.
        std: their standard deviation over trials (divided by the number of trials).
        trials: the metrics of each trial, with its counts.
        chance: mAP, R1 of a random ranking, and mAP_sigma (see `chance_map`).
        curves: cmc_id and cmc_image, lists [max_rank], mean over trials.
        counts: queries, valid_queries, invalid_queries (no true image that may be compared; left
          out of every mean), gallery_images, gallery_ids (of the first trial; a draw changes
          none of them), pool_images (offered on the side that is drawn), tied_true_images (of all
          trials).
        per_query: lists [Q]: name, person, camera (if given), AP, INP and R1 (means over the
          trials in which the query is drawn and valid, None if in none), best_rank (the best
          rank of a true image in any trial), best_rank_id (among distinct people), valid_trials.

    Raises:
      ValueError: unknown protocol or option, wrong shapes, cameras or names missing that the
        protocol needs, a camera that it does not know (swapped modalities), an image of the
        official draw that is missing, features that are not finite (naming the image), no valid
        query (naming the likely cause), features and a similarity both or neither, or re-ranking
        of a similarity, which says nothing of queries among themselves.
    """
    rule = get_protocol(protocol)
    if cmc is None:
        cmc = rule.cmc
    _check_options(cmc, ties, rerank, max_rank, block_bytes)
    count, images = _check_sides(query_features, gallery_features, similarity, rerank)
    labels = make_labels(
        count,
        images,
        query_person=query_person,
        gallery_person=gallery_person,
        query_camera=query_camera,
        gallery_camera=gallery_camera,
        query_name=query_name,
        gallery_name=gallery_name,
    )
    times = rule.trials if trials is None else trials
    plan = make_plan(protocol, rule, labels, gallery, range(times), permutations)
    search = Search(labels, rule.exclude, ties, max_rank, block_bytes)
    if similarity is None:
        sides = as_array(query_features), as_array(gallery_features)
        rankings = rank_plan(*sides, plan, search, rerank=rerank)
    else:
        rankings = rank_similarity(as_array(similarity), plan, search)
    result = report(rankings, plan.queries(count), labels.query_person, cmc)
    result["counts"]["pool_images"] = count if rule.drawn == "query" else images
    known = {"person": labels.query_person.tolist()}
    if query_name is not None:
        known["name"] = [str(name) for name in query_name]
    if labels.query_camera is not None:
        known["camera"] = labels.query_camera.tolist()
    result["per_query"] = {**known, **result["per_query"]}
    return {
        "protocol": protocol,
        "gallery": gallery if rule.drawn else "all",
        "cmc": cmc,
        "ties": ties,
        "rerank": rerank,
        "direction": rule.direction,
        **result,
    }


def _check_options(
    cmc: str, ties: str, rerank: str | None, max_rank: int, block_bytes: int
) -> None:
    check_ties(ties)
    for what, value, known in (("cmc", cmc, CMC), ("rerank", rerank, RERANK)):
        if value not in known:
            raise ValueError(f"{what} is {value!r}, expected one of {', '.join(map(str, known))}")
    if block_bytes < 1 or max_rank < REPORTED_RANKS[-1]:
        raise ValueError(
            f"block_bytes is {block_bytes} and max_rank {max_rank}, expected at least 1 and "
            f"{REPORTED_RANKS[-1]} (R{REPORTED_RANKS[-1]} is reported)"
        )


def _check_sides(query: Any, gallery: Any, similarity: Any, rerank: str | None) -> tuple[int, int]:
    """How many queries and gallery images there are."""
    given = [x is not None for x in (query, gallery, similarity)]
    if given not in ([True, True, False], [False, False, True]):
        raise ValueError(
            "expected features of both sides or a similarity, got "
            + (", ".join(name for name, x in zip(_SIDES, given, strict=True) if x) or "nothing")
        )
    if similarity is None:
        return tuple(
            _rows_of(x, f"{what} features") for what, x in (("query", query), ("gallery", gallery))
        )  # type: ignore[return-value]
    if rerank is not None:
        raise ValueError(
            f"rerank is {rerank!r} with a similarity, expected None: re-ranking compares queries "
            "and gallery images among themselves, and needs features"
        )
    matrix = as_array(similarity)
    _rows_of(matrix, "the similarity")
    return matrix.shape


_SIDES = ("query features", "gallery features", "a similarity")


def _rows_of(values: Any, what: str) -> int:
    values = as_array(values)
    if values.ndim != 2:
        raise ValueError(
            f"{what} are {values.dtype} {list(values.shape)}, expected a real matrix "
            "[rows, width], one row per image"
        )
    return len(values)
