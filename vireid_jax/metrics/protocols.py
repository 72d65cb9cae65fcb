"""The named evaluation protocols, and `evaluate`, which scores features under one of them.

A protocol says which modality searches, what each trial draws, and which gallery images a query
must not be compared with. What is not drawn is every image of its side. `docs/evaluation.md` has
the table. `synthetic` keeps SYSU-MM01's camera roles and uses its protocols. RegDB is ten
problems, a half of the data set each: score each with the model trained on the other half.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.draws import Permutations, draw_trials
from vireid_jax.metrics.inputs import ROWS, Exclude, Labels, as_array, check_labels
from vireid_jax.metrics.ranking import BLOCK_BYTES, check_ties
from vireid_jax.metrics.results import REPORTED_RANKS, make_result
from vireid_jax.metrics.search import Rules, Trials, rank_similarity, rank_trials
from vireid_jax.types import MODALITIES

CMC = ("id", "image")
RERANK = (None, "all", "queries")


class Protocol(NamedTuple):
    """One way to search."""

    query: str  # modality of the queries, one of `types.MODALITIES`
    cmc: str  # R1 ... R20 count distinct people ("id") or images ("image")
    explain: str  # what a user may wonder about
    drawn: str | None = None  # which side a trial draws: "gallery", "query", or none
    draws: tuple[str, ...] = ()  # the draws that apply, the usual one first
    draw_cameras: tuple[int, ...] = ()  # cameras that are drawn from, in the order of the draw
    shots: int | None = None  # drawn images of one person and camera, at most; None: everything
    query_cameras: tuple[int, ...] | None = None  # every camera that takes queries; None: any
    gallery_cameras: tuple[int, ...] | None = None  # every camera of images offered for a gallery
    exclude: Exclude | None = None

    @property
    def gallery(self) -> str:
        """The modality of the gallery."""
        return MODALITIES[1 - MODALITIES.index(self.query)]

    @property
    def trials(self) -> int:
        """How many trials the benchmark averages over."""
        return 10 if self.drawn else 1

    @property
    def direction(self) -> str:
        """Such as "infrared to visible"."""
        return f"{self.query} to {self.gallery}"


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
    """The rows of the queries and of the gallery, int [q] and [g], that a trial (from 0) uses.

    Arguments and errors are those of `evaluate`.
    """
    query = check_labels("query", len(query_person), query_person, query_camera, query_name)
    images = check_labels(
        "gallery", len(gallery_person), gallery_person, gallery_camera, gallery_name
    )
    trials = _draw(protocol, query, images, gallery, [trial], permutations)
    return (
        query.number if trials.query is None else trials.query,
        images.number if trials.gallery is None else trials.gallery,
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
    distance: str = "cosine",
    rerank: str | None = None,
    max_rank: int = REPORTED_RANKS[-1],
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Scores features under a protocol: mean over trials.

    No argument is modified. Features may be memory-mapped, of any real dtype and scale, and
    PyTorch's tensors.

    Args:
      query_features: [Q, D], every image of the modality that searches (`Protocol.query`), also
        where the trials draw some of them.
      gallery_features: [G, D], every image of the other modality that a trial may draw.
      similarity: [Q, G] instead of features, of any scale, larger for what is closer.
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
      permutations: for "official", see `read_permutations`.
      cmc: "id" or "image" instead of the protocol's convention.
      trials: draws to average over; None for the benchmark's number, 10 where something is drawn.
      ties: order of images at one distance. "stable": the lower gallery index first, in the order
        of the draw, or as given where nothing is drawn; "pessimistic" and "optimistic" put true
        images last and first, to audit a result.
      distance: of features: "cosine", or "euclidean" of the features as they come, for re-ranking
        too.
      rerank: None, or k-reciprocal re-ranking with neighbors among "all" images or "queries"
        alone. Its result is not comparable with others, and `block_bytes` does not bound it.
      max_rank: length of the CMC curves, at least 20. Beyond the last rank that a short gallery
        has, a curve keeps its last value.
      block_bytes: bound on the working memory; where the gallery is drawn, beyond the normalized
        features of the drawn images and the queries.

    Returns:
      A dict of plain values, ready for JSON; metrics are fractions 0..1.
        protocol, gallery ("agw", "official", or "all" where nothing is drawn), cmc, ties, distance,
          rerank, direction: what was measured.
        metrics, std: R1, R5, R10, R20, mAP, mINP; mean over trials and standard deviation.
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
      ValueError: unknown protocol or option, wrong shapes, cameras or names that the protocol
        needs, a camera that it does not know (swapped modalities), an image of the official draw
        that is missing, features that are not finite (naming the image), no valid query (naming
        the likely cause), features and a similarity both or neither, or re-ranking or a
        distance of a similarity, which says nothing of queries among themselves.
    """
    rule = get_protocol(protocol)
    if cmc is None:
        cmc = rule.cmc
    _check_options(cmc, ties, distance, rerank, max_rank, block_bytes)
    sides = _check_sides(query_features, gallery_features, similarity, distance, rerank)
    count, images = map(len, sides) if similarity is None else sides[0].shape
    queries = check_labels("query", count, query_person, query_camera, query_name)
    searched = check_labels("gallery", images, gallery_person, gallery_camera, gallery_name)
    numbers = range(rule.trials if trials is None else trials)
    drawn = _draw(protocol, queries, searched, gallery, numbers, permutations)
    rules = Rules(rule.exclude, ties, max_rank, block_bytes)
    if similarity is None:
        first, second = sides
        how: Any = dict(rerank=rerank, distance=distance)
        rankings = rank_trials(first, second, drawn, queries, searched, rules, **how)
    else:
        rankings = rank_similarity(sides[0], drawn, queries, searched, rules)
    result = make_result(rankings, drawn.queries(count), queries.person, cmc)
    result["counts"]["pool_images"] = count if rule.drawn == "query" else images
    known = {"person": queries.person.tolist()}
    if query_name is not None:
        known["name"] = [str(name) for name in query_name]
    if queries.camera is not None:
        known["camera"] = queries.camera.tolist()
    result["per_query"] = {**known, **result["per_query"]}
    return {
        "protocol": protocol,
        "gallery": gallery if rule.drawn else "all",
        "cmc": cmc,
        "ties": ties,
        "distance": distance,
        "rerank": rerank,
        "direction": rule.direction,
        **result,
    }


def _check_options(
    cmc: str, ties: str, distance: str, rerank: str | None, max_rank: int, block_bytes: int
) -> None:
    check_ties(ties)
    choices = (("cmc", cmc, CMC), ("distance", distance, tuple(ROWS)), ("rerank", rerank, RERANK))
    for what, value, known in choices:
        if value not in known:
            raise ValueError(f"{what} is {value!r}, expected one of {', '.join(map(str, known))}")
    if block_bytes < 1 or max_rank < REPORTED_RANKS[-1]:
        raise ValueError(
            f"block_bytes is {block_bytes} and max_rank {max_rank}, expected at least 1 and "
            f"{REPORTED_RANKS[-1]} (R{REPORTED_RANKS[-1]} is reported)"
        )


def _check_sides(
    query: Any, gallery: Any, similarity: Any, distance: str, rerank: str | None
) -> list[np.ndarray]:
    """The features of both sides, or the similarity."""
    sides = {"query features": query, "gallery features": gallery, "the similarity": similarity}
    given = {what: as_array(x) for what, x in sides.items() if x is not None}
    if list(given) not in (["query features", "gallery features"], ["the similarity"]):
        raise ValueError(
            "expected features of both sides or a similarity, got "
            + (", ".join(given) or "nothing")
        )
    for what, matrix in given.items():
        if matrix.ndim != 2:
            raise ValueError(
                f"{what} are {matrix.dtype} {list(matrix.shape)}, expected a real matrix "
                "[rows, width], one row per image"
            )
    if similarity is not None and distance != "cosine":
        raise ValueError(
            f"distance is {distance!r} with a similarity, expected none: images are ranked by the "
            "similarity"
        )
    if similarity is not None and rerank is not None:
        raise ValueError(
            f"rerank is {rerank!r} with a similarity, expected None: re-ranking compares queries "
            "and gallery images among themselves, and needs features"
        )
    return list(given.values())


def _draw(
    protocol: str,
    query: Labels,
    gallery: Labels,
    draw: str,
    trials: Sequence[int],
    permutations: Permutations | None,
) -> Trials:
    """Draws from labels of every image; refuses labels that the protocol cannot use."""
    rule = get_protocol(protocol)
    known = rule.draws or ("agw", "all")
    if draw not in known:
        raise ValueError(
            f"{protocol} has no gallery {draw!r}, expected {' or '.join(known)}"
            + ("" if rule.drawn else ", which make no difference: nothing is drawn")
        )
    if not len(trials) or min(trials) < 0:
        raise ValueError(f"there are {len(trials)} trials, expected at least 1, numbered from 0")
    if not rule.drawn and list(trials) != [0]:
        raise ValueError(
            f"{protocol} draws nothing, so it has one trial, got {len(trials)}; leave `trials` "
            "out, and score each model or split by itself (metrics.combine averages over them)"
        )
    _check_cameras(protocol, rule, query, gallery)
    if rule.drawn is None or rule.shots is None:
        return Trials()
    pool, other = (query, gallery) if rule.drawn == "query" else (gallery, query)
    if pool.name is None or pool.camera is None:  # cameras have been checked
        raise ValueError(
            f"{protocol} needs {rule.drawn}_name, got None: its draw goes by the names of the "
            "images, such as cam1/0006/0025"
        )
    rows, places = draw_trials(
        draw,
        pool.person,
        pool.camera,
        pool.name,
        cameras=rule.draw_cameras,
        shots=rule.shots,
        trials=trials,
        permutations=permutations,
        people=other.person,
    )
    if not len(rows):
        raise ValueError(
            f"no {rule.drawn} image is from a camera of {protocol} {list(rule.draw_cameras)}; the "
            f"pool's cameras are {np.unique(pool.camera).tolist()}"
        )
    if rule.drawn == "query":
        return Trials(rows, None, tuple((p, None) for p in places))
    return Trials(None, rows, tuple((None, p) for p in places))


def _check_cameras(protocol: str, rule: Protocol, query: Labels, gallery: Labels) -> None:
    for what, known, camera in (
        ("query", rule.query_cameras, query.camera),
        ("gallery", rule.gallery_cameras, gallery.camera),
    ):
        if known is None:
            continue
        if camera is None:
            why = [f"it draws images of each camera of its {rule.drawn}"] * (rule.drawn == what)
            raise ValueError(
                f"{protocol} needs {what}_camera, got None: "
                + "; ".join([*why, *([rule.explain] if rule.exclude else [])])
            )
        if len(other := np.setdiff1d(camera, known)):
            raise ValueError(
                f"{what} of {protocol}: got images of camera {other.tolist()}, expected only "
                f"{list(known)}; are query and gallery swapped, or is this another data set's "
                "protocol?"
            )
