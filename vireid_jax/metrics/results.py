"""From rankings to results: one dict of plain values for an evaluation, and means of such dicts.

`make_result` averages over the gallery draws of one model. `combine` averages over models (RegDB's
ten splits, seeds) or over repeats of a random corruption: each result counts once, and the spread
is over the results, not over the draws within them. `chance_map` is what a random ranking scores.
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
    base = int(big_n.max()) + 1
    pairs, which = np.unique((n * base + big_n)[valid], return_inverse=True)
    moments = np.array([_ap_moments(*divmod(int(pair), base)) for pair in pairs])[which]
    mean, deviation = moments.T
    draws = deviation
    if query_person is not None:
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
    """Mean and standard deviation of the AP of n true images among N in random order, exact.

    Let I_r be 1 if the image at rank r is true. Any k given ranks are all true with probability
    p_k = n (n-1) ... (n-k+1) / (N (N-1) ... (N-k+1)), and n AP = sum_{s <= r} I_s I_r / r: both
    moments are sums of p_k over the ranks in that product.
    """
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
    names = [*(f"R{rank}" for rank in REPORTED_RANKS), "mAP", "mINP"]
    trials: list[dict[str, Any]] = []
    chances: list[Chance] = []
    for ranking, some in zip(rankings, queries, strict=True):
        rows, counts = ranking.rows, ranking.counts
        curve = ranking.cmc_id if cmc == "id" else ranking.cmc_image
        values = [*(float(curve[rank - 1]) for rank in REPORTED_RANKS), ranking.mAP, ranking.mINP]
        invalid = counts["queries"] - counts["valid_queries"]
        trials.append(dict(zip(names, values, strict=True)) | counts | {"invalid_queries": invalid})
        person = query_person[some]
        chances.append(chance_map(rows.num_true, rows.num_kept, query_person=person))
    return {
        "metrics": {name: float(np.mean([t[name] for t in trials])) for name in names},
        "std": {name: float(np.std([t[name] for t in trials])) for name in names},
        "trials": trials,
        "chance": dict(zip(Chance._fields, np.mean(chances, axis=0).tolist(), strict=True)),
        "curves": {
            name: np.mean([getattr(r, name) for r in rankings], axis=0).tolist()
            for name in ("cmc_id", "cmc_image")
        },
        "counts": {
            **{name: trials[0][name] for name in (*rankings[0].counts, "invalid_queries")},
            "tied_true_images": sum(r.counts["tied_true_images"] for r in rankings),
        },
        "per_query": _per_query([r.rows for r in rankings], queries, len(query_person)),
    }


def _per_query(
    trials: Sequence[Rows], queries: Sequence[np.ndarray], total: int
) -> dict[str, list]:
    """Lists [total] over the trials in which a query is valid; None where it never is."""
    spread = [Rows.empty(total) for _ in trials]
    for all_rows, rows, some in zip(spread, trials, queries, strict=True):
        all_rows.put(some, rows)
    valid = np.stack([rows.valid for rows in spread])  # [T, Q]
    times = valid.sum(axis=0)

    def mean(field: Callable[[Rows], np.ndarray]) -> list[float | None]:
        sums = np.where(valid, np.stack([field(rows) for rows in spread]), 0.0).sum(axis=0)
        return [float(s / n) if n else None for s, n in zip(sums, times, strict=True)]

    def best(field: Callable[[Rows], np.ndarray]) -> list[int | None]:
        far = np.iinfo(np.int64).max
        least = np.where(valid, np.stack([field(rows) for rows in spread]), far).min(axis=0)
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
    alike = [key for key in MEASURED if key != "test_set" or over != "splits"]
    for key in (*alike, "trials"):
        values = {str(len(r[key]) if key == "trials" else r.get(key)) for r in results}
        if len(values) > 1:
            raise ValueError(
                f"results differ in {key!r}: {', '.join(sorted(values))}; a mean over them would "
                "say nothing, combine those that were measured alike"
                + (" (of RegDB's trials: over 'splits')" if key == "test_set" else "")
            )
    each = {name: np.array([r["metrics"][name] for r in results]) for name in first["metrics"]}
    tied = sum(result["counts"]["tied_true_images"] for result in results)
    return {
        **{key: first[key] for key in alike if key in first},
        "metrics": {name: float(v.mean()) for name, v in each.items()},
        "std": {name: float(v.std()) for name, v in each.items()},
        "trials": [dict(result["metrics"]) for result in results],
        "chance": {
            key: float(np.mean([r["chance"][key] for r in results])) for key in first["chance"]
        },
        "curves": {
            key: np.mean([result["curves"][key] for result in results], axis=0).tolist()
            for key in first["curves"]
        },
        "counts": {**first["counts"], "tied_true_images": tied},
        "over": over,
        "results": len(results),
        "draws": first.get("draws", len(first["trials"])),
    }


def row_label(result: Mapping[str, Any]) -> str:
    """The feature of a result with what was done to it, such as "bn, flip, re-ranked"."""
    marks = [str(result["feature"])]
    if result.get("distance") == "euclidean":
        marks.append("Euclidean")
    if result.get("flip"):
        marks.append("flip")
    if result.get("rerank"):
        scope = "" if result["rerank"] == "all" else f" ({result['rerank']})"
        marks.append(f"re-ranked{scope}")
    if result.get("corrupt"):
        marks.append(f"{result['corrupt']} {CORRUPTED}")
    return ", ".join(marks)
