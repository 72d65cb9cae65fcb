"""The chance level against enumeration and simulation."""

import itertools

import numpy as np
import pytest

from tests.metrics.problems import check_refusals
from vireid_jax.metrics import chance_map, rank_metrics


def test_equals_enumeration():
    """All placements of the true images, each equally likely."""
    for size, true in itertools.combinations_with_replacement(range(7, 0, -1), 2):
        aps, firsts = [], []
        for ranks in itertools.combinations(range(1, size + 1), true):
            aps.append(np.mean([j / r for j, r in enumerate(ranks, start=1)]))
            firsts.append(ranks[0] == 1)
        chance = chance_map([true], size)
        assert chance.mAP == pytest.approx(np.mean(aps), abs=1e-12), (true, size)
        assert chance.R1 == pytest.approx(np.mean(firsts), abs=1e-12), (true, size)
        assert chance.mAP_sigma == pytest.approx(np.std(aps), abs=1e-7), (true, size)


def test_equals_simulation_under_exclusion():
    rng = np.random.default_rng(0)
    query_person, gallery_person = rng.integers(0, 9, 30), rng.integers(0, 8, 60)
    excluded = rng.random((30, 60)) < 0.3
    runs = [
        rank_metrics(rng.random((30, 60)), query_person, gallery_person, excluded=excluded)
        for _ in range(250)
    ]
    rows = runs[0].rows
    assert 0 < rows.valid.sum() < 30
    chance = chance_map(rows.num_true, rows.num_kept)
    maps = np.array([run.mAP for run in runs])
    assert chance.mAP == pytest.approx(maps.mean(), abs=4 * chance.mAP_sigma / np.sqrt(250))
    assert chance.mAP_sigma == pytest.approx(maps.std(), rel=0.1)
    assert chance.R1 == pytest.approx(np.mean([run.cmc_id[0] for run in runs]), abs=0.015)


def test_sigma_of_collapsed_features():
    """Where all queries of a person rank alike, the sigma that takes them as one draw holds."""
    rng = np.random.default_rng(1)
    gallery_person = np.repeat(np.arange(12), 4)
    query_person = np.repeat(np.arange(12), 5)
    maps, rows = [], None
    for _ in range(250):
        order = np.repeat(rng.random((12, 48)), 5, axis=0)
        run = rank_metrics(order, query_person, gallery_person)
        maps.append(run.mAP)
        rows = run.rows
    apart = chance_map(rows.num_true, rows.num_kept)
    alike = chance_map(rows.num_true, rows.num_kept, query_person=query_person)
    assert alike.mAP == apart.mAP
    assert alike.mAP_sigma == pytest.approx(apart.mAP_sigma * np.sqrt(5), rel=1e-9)
    assert alike.mAP_sigma == pytest.approx(np.std(maps), rel=0.12)


def test_one_million():
    chance = chance_map([40], 10**6)
    assert 0 < chance.mAP < 1e-4
    assert np.isfinite(chance.mAP_sigma)


def test_bad_input():
    check_refusals(
        chance_map,
        [
            ({"num_true": [3, 4], "num_gallery": [3, 3]}, "query 1 has 4 true images among 3"),
            ({"num_true": [-1], "num_gallery": 3}, "query 0 has -1"),
            ({"num_true": [0, 0], "num_gallery": 3}, "no query has a true image"),
            ({"num_true": [0.5], "num_gallery": 3}, "expected integers"),
            (
                {"num_true": [1, 1], "num_gallery": 3, "query_person": [1]},
                r"query_person is \[1\]",
            ),
        ],
    )
