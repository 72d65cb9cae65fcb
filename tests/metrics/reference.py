"""The metrics by plain loops over sorted Python lists, one query at a time."""

import math

import numpy as np


def rank_one(distance, person, own, excluded, max_rank, ties="stable"):
    """One query: a dict of its results, or None if it has no true image."""

    def place(g):
        true = person[g] == own
        level = {"stable": 0, "pessimistic": int(true), "optimistic": int(not true)}[ties]
        return distance[g], level, g

    order = sorted((g for g in range(len(distance)) if not excluded[g]), key=place)
    hits = [rank for rank, g in enumerate(order, start=1) if person[g] == own]
    if not hits:
        return None
    rank_id = list(dict.fromkeys(person[g] for g in order)).index(own) + 1
    others = {distance[g] for g in order if person[g] != own}
    return {
        "ap": math.fsum(j / rank for j, rank in enumerate(hits, start=1)) / len(hits),
        "inp": len(hits) / hits[-1],
        "order": order,
        "rank_image": hits[0],
        "rank_id": rank_id,
        "num_true": len(hits),
        "num_kept": len(order),
        "num_tied": sum(person[g] == own and distance[g] in others for g in order),
        "cmc_image": [float(hits[0] <= r) for r in range(1, max_rank + 1)],
        "cmc_id": [float(rank_id <= r) for r in range(1, max_rank + 1)],
        "person": own,
    }


def rank_all(distance, query_person, gallery_person, excluded, max_rank=20, ties="stable"):
    """All queries: (per-query results, means over the valid ones or None)."""
    found = [
        rank_one(list(d), list(gallery_person), p, list(e), max_rank, ties)
        for d, p, e in zip(distance, query_person, excluded, strict=True)
    ]
    valid = [f for f in found if f is not None]
    if not valid:
        return found, None
    mean = {key: math.fsum(f[key] for f in valid) / len(valid) for key in ("ap", "inp")}
    for key in ("cmc_image", "cmc_id"):
        mean[key] = [math.fsum(f[key][r] for f in valid) / len(valid) for r in range(max_rank)]
    return found, mean


def check(ranking, found, mean):
    """Holds a `Ranking` against what `rank_all` returns."""
    assert abs(ranking.mAP - mean["ap"]) < 1e-12
    assert abs(ranking.mINP - mean["inp"]) < 1e-12
    np.testing.assert_allclose(ranking.cmc_id, mean["cmc_id"], atol=1e-12)
    np.testing.assert_allclose(ranking.cmc_image, mean["cmc_image"], atol=1e-12)
    check_rows(ranking.rows, found)


def check_rows(rows, found):
    """Holds the results of each query against those of `rank_all`."""
    for row, expected in enumerate(found):
        assert rows.valid[row] == (expected is not None), row
        if expected is not None:
            for key in ("ap", "inp"):
                assert abs(getattr(rows, key)[row] - expected[key]) < 1e-12, (row, key)
            for key in ("rank_image", "rank_id", "num_true", "num_kept", "num_tied"):
                assert getattr(rows, key)[row] == expected[key], (row, key)


def check_trial(trial, mean, cmc="cmc_id"):
    """Holds the metrics of one trial of `evaluate` against the means of `rank_all`."""
    expected = {"mAP": mean["ap"], "mINP": mean["inp"]}
    expected |= {f"R{rank}": mean[cmc][rank - 1] for rank in (1, 5, 10, 20)}
    for name, value in expected.items():
        assert abs(trial[name] - value) < 1e-9, (name, trial[name], value)
