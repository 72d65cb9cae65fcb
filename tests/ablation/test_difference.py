"""The interval of a difference has the coverage that it states, over people and seeds."""

import json

import numpy as np
import pytest

from vireid_jax.ablation import difference


def rows(gap, per_person=2, base=0.2):
    """Two rows whose queries differ by gap [S, P]: {seed: {query: (person, AP)}} of each."""
    made = ({}, {})
    for seed, of_people in enumerate(gap):
        for out, share in zip(made, (1.0, 0.0), strict=True):
            out[seed] = {
                f"cam{c}/{p}": (p, base + share * g)
                for p, g in enumerate(of_people)
                for c in range(per_person)
            }
    return made


def drawn(rng, people=40, seeds=5, mean=0.0, of_people=0.05, of_seeds=0.02, noise=0.05):
    a = rng.normal(0, of_people, people)
    b = rng.normal(0, of_seeds, (seeds, 1))
    return mean + a + b + rng.normal(0, noise, (seeds, people))


def test_a_constant_difference_is_certain():
    found = difference.between(*rows(np.full((3, 10), 0.1)))
    assert found.mean == pytest.approx(0.1) and found.low == pytest.approx(0.1)
    assert found.verdict == "helps"
    row, other = rows(np.full((3, 10), 0.1))
    assert difference.between(other, row).verdict == "hurts"
    same = difference.between(row, row)
    assert same.verdict == "no difference seen" and same.smallest == 0


def test_queries_weigh_alike_and_only_shared_ones_count():
    row = {s: {"a": (1, 0.4), "b": (1, 0.4), "c": (2, 0.1), "x": (3, 1.0)} for s in (0, 1, 7)}
    other = {s: {"a": (1, 0.2), "b": (1, 0.2), "c": (2, 0.1), "y": (3, 1.0)} for s in (0, 1, 8)}
    found = difference.between(row, other)
    assert found.mean == pytest.approx(0.4 / 3)
    assert difference.between({0: row[0]}, other) is None
    assert difference.between({0: {}, 1: {}}, other) is None


def test_it_is_the_same_each_time():
    made = rows(drawn(np.random.default_rng(0)))
    assert difference.between(*made) == difference.between(*made)


@pytest.mark.parametrize("spread", [(0.05, 0.005), (0.01, 0.05), (0.04, 0.02)])
def test_the_interval_covers_the_truth(monkeypatch, spread):
    """Of people who differ, of seeds that differ, of both: 95 % of the time, up to chance."""
    monkeypatch.setattr(difference, "DRAWS", 500)
    rng, hits, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        gap = drawn(rng, mean=0.03, of_people=spread[0], of_seeds=spread[1])
        found = difference.between(*rows(gap, per_person=1))
        hits += found.low <= 0.03 <= found.high
    assert 0.92 <= hits / trials <= 0.995


def test_a_saved_result(tmp_path):
    path = tmp_path / "r.json"
    per_query = {"name": ["a", "b"], "person": [4, 5], "AP": [0.5, None]}
    path.write_text(json.dumps({"per_query": per_query}))
    assert difference.read(path, 1) == {"a": (4, 0.5)}
    path.write_text("{}")
    assert difference.read(path, 1) == {"a": (4, 0.5)} and difference.read(path, 2) == {}
