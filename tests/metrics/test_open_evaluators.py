"""The loops of the open codes, which the benchmark times, give the metrics that ours give."""

import numpy as np
import pytest

from benchmarks.open_evaluators import RANKS, score_regdb, score_sysu
from vireid_jax.metrics import rank_metrics


def problem(seed):
    """At least 20 people in every ranking, as the original needs, and no ties."""
    rng = np.random.default_rng(seed)
    person = np.concatenate([np.arange(60), rng.integers(0, 60, 60)])
    camera = np.concatenate([np.full(60, 1), rng.choice([1, 2, 4, 5], 60)])
    distance = rng.permuted(np.tile(np.arange(120.0), (30, 1)), axis=1)
    return distance, rng.integers(0, 70, 30), person, rng.choice([3, 6], 30), camera


def check(found, ours, curve):
    assert found["mAP"] == pytest.approx(ours.mAP, abs=1e-12)
    assert found["mINP"] == pytest.approx(ours.mINP, abs=1e-12)
    for rank in RANKS:
        assert found[f"R{rank}"] == pytest.approx(curve[rank - 1], abs=1e-12)


def test_the_loops_score_as_we_do():
    for seed in range(5):
        distance, query_person, gallery_person, query_camera, gallery_camera = problem(seed)
        people = query_person, gallery_person
        excluded = (query_camera == 3)[:, None] & (gallery_camera == 2)
        ours = rank_metrics(distance, *people, excluded=excluded)
        check(score_sysu(distance, *people, query_camera, gallery_camera), ours, ours.cmc_id)
        ours = rank_metrics(distance, *people)
        check(score_regdb(distance, *people), ours, ours.cmc_image)


def test_no_match_is_an_error():
    with pytest.raises(ValueError, match="no query has a true image"):
        score_regdb(np.zeros((2, 30)), np.array([7, 8]), np.arange(30) + 10)
