"""From the rankings of all trials to one dict of plain values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vireid_jax.metrics.chance import Chance, chance_map
from vireid_jax.metrics.ranking import Ranking, Rows

REPORTED_RANKS = (1, 5, 10, 20)


def report(
    rankings: Sequence[Ranking], queries: Sequence[np.ndarray], query_person: np.ndarray, cmc: str
) -> dict[str, Any]:
    """Metrics, their spread, the chance level, curves, counts and results per query.

    Args:
      rankings: one for each trial.
      queries: for each trial, int [q], whose rows those of the ranking are.
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
    """The rows of some queries among those of all; the others are not valid."""
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
