"""From rankings to results: one dict of plain values for an evaluation, and means of such dicts.

`make_result` averages over the gallery draws of one model. `combine` averages over models (RegDB's
ten splits, seeds) or over repeats of a random corruption: each result counts once, and the spread
is over the results, not over the draws within them.

`chance_map` is what a random ranking scores: the level below which a result says nothing. Let n of
the N gallery images that a query keeps be true, in random order, and let I_r be 1 if the image at
rank r is true. Any k given ranks are all true with probability

  p_k = n (n-1) ... (n-k+1) / (N (N-1) ... (N-k+1))

and n * AP = sum_{s <= r} I_s I_r / r. Both moments below are sums of p_k over the ranks that occur
in that product, so they are exact.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.ranking import Ranking, Rows

REPORTED_RANKS = (1, 5, 10, 20)
CORRUPTED = "-C (vireid)"  # images were corrupted, by code of ours: see `data.corrupt`

# What must be equal for a mean to mean something.
MEASURED = (
    "protocol", "feature", "gallery", "cmc", "ties", "flip", "rerank", "corrupt", "corrupt_seed",
    "dataset", "test_set", "direction",
)  # fmt: skip


class Chance(NamedTuple):
    """Expected metrics of a random ranking, fractions 0..1."""

    mAP: float
    R1: float
    mAP_sigma: float


def chance_map(num_true: Any, num_gallery: Any, *, query_person: Any = None) -> Chance:
    """Exact mAP and rank-1 that a random ranking reaches on average, over valid queries.

    E[AP] = H_N / N + (n - 1) / (N - 1) * (1 - H_N / N), with H_N = 1 + 1/2 + ... + 1/N, and
    E[rank-1] = n / N.

    Args:
      num_true: int [Q], true images of each query that its exclusion keeps (n); queries with
        none are left out.
      num_gallery: int [Q] or [], gallery images of each query that its exclusion keeps (N).
      query_person: int [Q] or None. If given, `mAP_sigma` takes the queries of one person as
        one draw, since a network whose features collapsed ranks them all alike; otherwise
        every query is a draw of its own.

    Raises:
      ValueError: negative counts, more true images than images, or no valid query.
    """
    n = np.atleast_1d(np.asarray(num_true))
    big_n = np.broadcast_to(np.asarray(num_gallery), n.shape)
    if n.ndim != 1 or n.dtype.kind not in "iu" or big_n.dtype.kind not in "iu":
        raise ValueError(
            f"num_true is {n.dtype} {list(n.shape)} and num_gallery {big_n.dtype}, expected "
            "integers [queries]"
        )
    if (n < 0).any() or (n > big_n).any():
        row = int(np.flatnonzero((n < 0) | (n > big_n))[0])
        raise ValueError(
            f"query {row} has {n[row]} true images among {big_n[row]}, expected 0 <= true <= all"
        )
    valid = n > 0
    if not valid.any():
        raise ValueError("no query has a true image, so a random ranking has no mAP either")
    pairs, which = np.unique(np.stack([n, big_n], 1)[valid], axis=0, return_inverse=True)
    moments = np.array([_ap_moments(int(t), int(m)) for t, m in pairs])[which.reshape(-1)]
    mean, deviation = moments.T
    if query_person is None:
        draws = deviation
    else:
        person = np.asarray(query_person)
        if person.shape != n.shape:
            raise ValueError(
                f"query_person is {list(person.shape)}, expected {list(n.shape)} like num_true"
            )
        draws = np.bincount(np.unique(person[valid], return_inverse=True)[1], deviation)
    return Chance(
        mAP=float(mean.mean()),
        R1=float((n[valid] / big_n[valid]).mean()),
        mAP_sigma=float(np.sqrt((draws**2).sum()) / len(mean)),
    )


def _ap_moments(n: int, big_n: int) -> tuple[float, float]:
    """Mean and standard deviation of the AP of n true images among N in random order."""
    r = np.arange(1, big_n + 1, dtype=np.float64)
    p = [1.0]
    for k in range(4):
        p.append(p[-1] * max(0, n - k) / max(1, big_n - k))
    h1, h2 = (1 / r).sum(), (1 / r**2).sum()
    harmonic = np.cumsum(1 / r)
    # n AP = A + B with A = sum_r I_r / r and B = sum_{s < r} I_s I_r / r.
    mean = p[1] * h1 + p[2] * (big_n - h1)
    pairs = h1**2 - h2  # sum over r != u of 1 / (r u)
    once = ((r - 1) / r**2).sum()
    all_b = big_n - h1  # sum over s < r of 1 / r
    # sum over s < r < u of 1 / (r u), from sum_{r < u} (1 - 1/r) = u - 1 - H_{u-1}
    chain = ((r[1:] - 1 - harmonic[:-1]) / r[1:]).sum()
    aa = p[1] * h2 + p[2] * pairs
    ab = p[2] * (once + pairs / 2) + p[3] * (h1 * all_b - once - pairs / 2)
    # B^2, by how many of the two pairs (s, r) and (v, u) coincide:
    three = ((r - 1) * (r - 2) / r**2).sum() + 4 * chain  # r = u; s = v; r = v or s = u
    bb = p[2] * once + p[3] * three + p[4] * (all_b**2 - once - three)
    variance = (aa + 2 * ab + bb - mean**2) / n**2
    return mean / n, float(np.sqrt(max(0.0, variance)))


def make_result(
    rankings: Sequence[Ranking], queries: Sequence[np.ndarray], query_person: np.ndarray, cmc: str
) -> dict[str, Any]:
    """Metrics, their spread, the chance level, curves, counts and results per query.

    Args:
      rankings: one for each trial.
      queries: for each trial, int [q], which queries the rows of its ranking are.
      query_person: int [Q], of all queries.
      cmc: "id" or "image", what R1 ... R20 count.
    """
    trials = []
    for ranking in rankings:
        curve = ranking.cmc_id if cmc == "id" else ranking.cmc_image
        values = {f"R{rank}": float(curve[rank - 1]) for rank in REPORTED_RANKS}
        counts = ranking.counts
        left_out = counts["queries"] - counts["valid_queries"]
        trials.append(
            {
                **values,
                "mAP": ranking.mAP,
                "mINP": ranking.mINP,
                **counts,
                "invalid_queries": left_out,
            }
        )
    names = [*(f"R{rank}" for rank in REPORTED_RANKS), "mAP", "mINP"]
    chances = np.mean(_chances([r.rows for r in rankings], queries, query_person), axis=0)
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
            **{name: trials[0][name] for name in (*rankings[0].counts, "invalid_queries")},
            "tied_true_images": sum(r.counts["tied_true_images"] for r in rankings),
        },
        "per_query": _per_query(
            [
                _spread(r.rows, some, len(query_person))
                for r, some in zip(rankings, queries, strict=True)
            ]
        ),
    }


def _chances(
    trials: Sequence[Rows], queries: Sequence[np.ndarray], query_person: np.ndarray
) -> list[Chance]:
    """The chance level of each trial; most draws offer as many true images as the first."""
    known: dict[tuple[bytes, ...], Chance] = {}
    out = []
    for rows, some in zip(trials, queries, strict=True):
        key = tuple(x.tobytes() for x in (rows.num_true, rows.num_kept, some))
        if key not in known:
            person = query_person[some]
            known[key] = chance_map(rows.num_true, rows.num_kept, query_person=person)
        out.append(known[key])
    return out


def _spread(rows: Rows, queries: np.ndarray, total: int) -> Rows:
    """The rows of some queries among all; the others are not valid."""
    out = Rows(*np.full((2, total), np.nan), *np.zeros((5, total), np.int64))
    for field, known in zip(out, rows, strict=True):
        field[queries] = known
    return out


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


def combine(results: Sequence[Mapping[str, Any]], *, over: str) -> dict[str, Any]:
    """The mean of results that were measured alike, with their spread.

    Args:
      results: dicts of `evaluate`, with or without the keys that a run adds (dataset, ...).
      over: what the results differ in, for the table: "splits", "seeds", "repeats", ... Only
        "splits" may have been scored on different test images.

    Returns:
      A dict like theirs: "metrics", "chance" and "curves" are means over the results, "std" their
      standard deviation (divided by their number), "trials" the metrics of each result, "over",
      "results" (how many) and "draws" (of each of them); "counts" are the first result's, ties
      those of all. Results per query are left out.

    Raises:
      ValueError: no results, or results that were not measured alike; the message names the key.
    """
    if not results:
        raise ValueError("there are no results to combine, expected at least one")
    first = results[0]
    kept = {key: first[key] for key in MEASURED if key in first}
    if over == "splits":
        kept.pop("test_set", None)  # the splits' own
    for key in (*MEASURED, "trials"):
        if key == "test_set" and over == "splits":
            continue
        values = {str(len(r[key]) if key == "trials" else r.get(key)) for r in results}
        if len(values) > 1:
            raise ValueError(
                f"results differ in {key!r}: {', '.join(sorted(values))}; a mean over them would "
                "say nothing, combine those that were measured alike"
                + (" (of RegDB's trials: over 'splits')" if key == "test_set" else "")
            )
    names = list(first["metrics"])
    each = {name: np.array([result["metrics"][name] for result in results]) for name in names}
    tied = sum(result["counts"]["tied_true_images"] for result in results)
    return {
        **kept,
        "metrics": {name: float(v.mean()) for name, v in each.items()},
        "std": {name: float(v.std()) for name, v in each.items()},
        "trials": [dict(result["metrics"]) for result in results],
        "chance": _mean([result["chance"] for result in results]),
        "curves": {
            key: np.mean([result["curves"][key] for result in results], axis=0).tolist()
            for key in first["curves"]
        },
        "counts": {**first["counts"], "tied_true_images": tied},
        "over": over,
        "results": len(results),
        "draws": first.get("draws", len(first["trials"])),
    }


def _mean(dicts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([d[key] for d in dicts])) for key in dicts[0]}


def row_label(result: Mapping[str, Any]) -> str:
    """The feature of a result with what was done to it, such as "bn, flip, re-ranked"."""
    marks = [str(result["feature"])]
    if result.get("flip"):
        marks.append("flip")
    if result.get("rerank"):
        scope = "" if result["rerank"] == "all" else f" ({result['rerank']})"
        marks.append(f"re-ranked{scope}")
    if result.get("corrupt"):
        marks.append(f"{result['corrupt']} {CORRUPTED}")
    return ", ".join(marks)
