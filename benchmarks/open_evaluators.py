"""How the open codes of the field score a ranking, written again as loops for comparison.

Two of them, after the descriptions of AGW's evaluators (arXiv 2001.04193; CAJ, DEEN and PDM
share them): sort the whole matrix of distances, then go through the queries one by one, with
Python lists for the distinct people and for the precision at every rank.

They are kept to the same steps as the originals, so that their time is that of the originals;
only what they return is put into one form.
"""

import numpy as np

Metrics = dict[str, float]
RANKS = (1, 5, 10, 20)


def score_sysu(
    distance: np.ndarray,
    query_person: np.ndarray,
    gallery_person: np.ndarray,
    query_camera: np.ndarray,
    gallery_camera: np.ndarray,
    max_rank: int = 20,
) -> Metrics:
    """SYSU-MM01: queries of camera 3 skip camera 2; the CMC counts distinct people.

    Args:
      distance: float [Q, G].
      query_person: int [Q].
      gallery_person: int [G].
      query_camera: int [Q].
      gallery_camera: int [G].
      max_rank: length of the CMC curve.
    """
    order = np.argsort(distance, axis=1)
    people = gallery_person[order]
    hits = (people == query_person[:, np.newaxis]).astype(np.int32)
    curves, precisions, penalties = [], [], []
    for row in range(len(distance)):
        skipped = (query_camera[row] == 3) & (gallery_camera[order[row]] == 2)
        kept = np.invert(skipped)
        ranked = people[row][kept]
        first = np.unique(ranked, return_index=True)[1]
        distinct = [ranked[at] for at in sorted(first)]
        curve = (np.asarray(distinct) == query_person[row]).astype(np.int32).cumsum()
        curves.append(curve[:max_rank])
        hit = hits[row][kept]
        if not np.any(hit):
            continue
        precision, penalty = _precision(hit)
        precisions.append(precision)
        penalties.append(penalty)
    return _mean(curves, precisions, penalties)


def score_regdb(
    distance: np.ndarray,
    query_person: np.ndarray,
    gallery_person: np.ndarray,
    max_rank: int = 20,
) -> Metrics:
    """RegDB: nothing is skipped, and the CMC counts images.

    The original marks query and gallery as cameras 1 and 2 and then looks, query by query, for
    images of the same person and camera, of which there are none.

    Args:
      distance: float [Q, G].
      query_person: int [Q].
      gallery_person: int [G].
      max_rank: length of the CMC curve.
    """
    gallery_camera = np.full(len(gallery_person), 2)
    query_camera = np.full(len(query_person), 1)
    order = np.argsort(distance, axis=1)
    hits = (gallery_person[order] == query_person[:, np.newaxis]).astype(np.int32)
    curves, precisions, penalties = [], [], []
    for row in range(len(distance)):
        at = order[row]
        skipped = (gallery_person[at] == query_person[row]) & (
            gallery_camera[at] == query_camera[row]
        )
        kept = np.invert(skipped)
        hit = hits[row][kept]
        if not np.any(hit):
            continue
        curve = hit.cumsum()
        curve[curve > 1] = 1
        curves.append(curve[:max_rank])
        precision, penalty = _precision(hit)
        precisions.append(precision)
        penalties.append(penalty)
    return _mean(curves, precisions, penalties)


def _precision(hit: np.ndarray) -> tuple[float, float]:
    """AP and INP of one query from its hits, int [kept], in the order of the ranking."""
    last = np.max(np.where(hit == 1)[0])
    found = hit.cumsum()
    penalty = found[last] / (last + 1.0)
    at_each_rank = [count / (rank + 1.0) for rank, count in enumerate(found)]
    return (np.asarray(at_each_rank) * hit).sum() / hit.sum(), penalty


def _mean(curves: list, precisions: list, penalties: list) -> Metrics:
    if not precisions:
        raise ValueError("no query has a true image in the gallery")
    # The originals divide in float32, which is good for seven digits; this is the same in full.
    curve = np.asarray(curves).astype(np.float32).sum(0).astype(np.float64) / len(precisions)
    return {
        **{f"R{rank}": float(curve[rank - 1]) for rank in RANKS},
        "mAP": float(np.mean(precisions)),
        "mINP": float(np.mean(penalties)),
    }
