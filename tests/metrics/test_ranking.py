"""CMC, mAP and mINP against hand-worked numbers and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metrics import reference
from tests.metrics.problems import check_refusals, peak_bytes
from vireid_jax.metrics import rank_metrics
from vireid_jax.metrics.ranking import TIES


def ranked_at(*ranks, size=8):
    """A distance row [1, size], person 1, and people [size] with its true images at `ranks`."""
    person = np.full(size, 2)
    person[np.array(ranks) - 1] = 1
    return np.arange(size, dtype=np.float32)[None], [1], person


def test_single_query_by_hand():
    for ranks, ap, inp in (
        ((5,), 0.2, 0.2),
        ((1, 2, 4), (1 + 1 + 3 / 4) / 3, 0.75),
        ((1,), 1.0, 1.0),
        ((2, 8), 0.375, 0.25),
    ):
        result = rank_metrics(*ranked_at(*ranks))
        assert result.mAP == pytest.approx(ap, abs=1e-12), ranks
        assert result.mINP == pytest.approx(inp, abs=1e-12), ranks
        assert result.rows.rank_image.tolist() == [ranks[0]]
        assert result.rows.num_true.tolist() == [len(ranks)]


def test_three_by_four_by_hand():
    #                  person  7    8    7    9
    distance = np.array(
        [
            [0.3, 0.1, 0.2, 0.4],  # of 7: order 8 7 7 9 -> hits 2, 3
            [0.1, 0.4, 0.2, 0.3],  # of 8: order 7 7 9 8 -> hit 4, third person
            [0.1, 0.2, 0.3, 0.4],  # of 5: nobody
        ]
    )
    result = rank_metrics(distance, [7, 8, 5], [7, 8, 7, 9], max_rank=5)
    assert result.mAP == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 4) / 2)
    assert result.mINP == pytest.approx((2 / 3 + 1 / 4) / 2)
    np.testing.assert_array_equal(result.cmc_image, [0, 0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(result.cmc_id, [0, 0.5, 1, 1, 1])
    assert result.rows.valid.tolist() == [True, True, False]
    assert result.rows.rank_id.tolist() == [2, 3, 0]
    assert np.isnan(result.rows.ap).tolist() == [False, False, True]
    assert result.counts == {
        "queries": 3,
        "valid_queries": 2,
        "gallery_images": 4,
        "gallery_ids": 3,
        "tied_true_images": 0,
    }


def test_ties_go_to_the_lower_gallery_index():
    distance = np.zeros((1, 4))
    first = rank_metrics(distance, [1], [1, 2, 2, 2])
    last = rank_metrics(distance, [1], [2, 2, 2, 1])
    assert (first.mAP, last.mAP) == (1.0, 0.25)
    assert (first.rows.rank_id[0], last.rows.rank_id[0]) == (1, 2)
    assert first.counts["tied_true_images"] == last.counts["tied_true_images"] == 1
    # Level with oneself only: nothing hinges on the rule.
    assert rank_metrics(distance, [1], [1, 1, 1, 1]).counts["tied_true_images"] == 0
    # Minus zero is zero.
    signed = np.array([[0.0, -0.0]], np.float32)
    assert rank_metrics(signed, [1], [1, 2]).mAP == 1.0


def test_each_rule_for_ties_by_hand():
    for dtype in (np.float16, np.float32, np.float64):
        distance = np.array([[0.5, 0.5, 0.5, 0.5, 0.5, 0.75]], dtype)
        for ties, ranks, rank_id in (
            ("stable", (2, 4), 2),
            ("pessimistic", (4, 5), 3),
            ("optimistic", (1, 2), 1),
        ):
            result = rank_metrics(distance, [1], [2, 1, 3, 1, 3, 4], ties=ties)
            assert result.mAP == pytest.approx((1 / ranks[0] + 2 / ranks[1]) / 2, abs=1e-12), ties
            assert result.mINP == pytest.approx(2 / ranks[1], abs=1e-12), ties
            assert (result.rows.rank_image[0], result.rows.rank_id[0]) == (ranks[0], rank_id), ties
            assert result.counts["tied_true_images"] == 2


def random_problem(seed):
    """Ties, exclusions, people who are missing, often fewer than 20 people."""
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, 25), rng.integers(1, 60)
    people = rng.integers(1, 30)
    levels = rng.choice([3, 10, 10**6])
    distance = rng.integers(-levels, levels, (q, g)) / np.float64(levels)
    dtype = rng.choice([np.float16, np.float32, np.float64])
    excluded = rng.random((q, g)) < rng.choice([0.0, 0.2, 0.9])
    query_person = rng.integers(0, people + 2, q)
    return distance.astype(dtype), query_person, rng.integers(0, people, g), excluded


@given(st.integers(0, 10**6))
def test_equals_the_slow_reference(seed):
    distance, *people, excluded = random_problem(seed)
    before = [array.copy() for array in (distance, *people, excluded)]
    for array in (distance, *people, excluded):
        array.flags.writeable = False  # a write would raise
    for ties in TIES:
        found, mean = reference.rank_all(distance, *people, excluded, ties=ties)
        options = {"excluded": excluded, "block_bytes": 1 if seed % 2 else 1 << 20, "ties": ties}
        if mean is None:
            with pytest.raises(ValueError, match="true image"):
                rank_metrics(distance, *people, **options)
        else:
            reference.check(rank_metrics(distance, *people, **options), found, mean)
    for old, array in zip(before, (distance, *people, excluded), strict=True):
        np.testing.assert_array_equal(old, array)


def test_many_images_of_one_person():
    for images in (15, 17, 49, 200):
        rng = np.random.default_rng(images)
        person = rng.permutation(np.r_[np.full(images, 1), np.full(20, 2), rng.integers(3, 9, 30)])
        distance = rng.integers(0, 60, (8, len(person))).astype(np.float32)
        asked = rng.integers(1, 5, 8)
        asked[0] = 1
        excluded = rng.random(distance.shape) < 0.1
        for ties in TIES:
            found, _ = reference.rank_all(distance, asked, person, excluded, ties=ties)
            ranking = rank_metrics(distance, asked, person, excluded=excluded, ties=ties)
            reference.check_rows(ranking.rows, found)


def test_the_random_problems_are_hard():
    problems = [random_problem(seed) for seed in range(100)]
    assert sum(len(np.unique(p[2])) < 20 for p in problems) > 25
    assert sum(len(np.setdiff1d(p[1], p[2])) > 0 for p in problems) > 25
    assert sum(len(np.unique(p[0])) < p[0].size for p in problems) > 50
    assert sum(bool(p[3].any()) for p in problems) > 50


@given(st.integers(0, 10**6))
def test_does_not_depend_on_order_without_ties(seed):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, 12), rng.integers(2, 30)
    # Distinct distances in every row.
    distance = rng.permuted(np.tile(np.arange(g, dtype=np.float32), (q, 1)), axis=1) - g / 2
    query_person, gallery_person = rng.integers(0, 5, q), rng.integers(0, 5, g)
    query_person[0] = gallery_person[0]
    rows, columns = rng.permutation(q), rng.permutation(g)
    a = rank_metrics(distance, query_person, gallery_person)
    b = rank_metrics(
        distance[rows][:, columns], query_person[rows] * 3 + 1, gallery_person[columns] * 3 + 1
    )
    for field_a, field_b in zip(a.rows, b.rows, strict=True):
        np.testing.assert_array_equal(field_a[rows], field_b)
    assert a.mAP == pytest.approx(b.mAP, abs=1e-12)
    np.testing.assert_allclose(a.cmc_id, b.cmc_id, atol=1e-12)
    # An order-preserving change of the distances changes nothing, and neither do blocks.
    c = rank_metrics(distance * 2 + 1, query_person, gallery_person, block_bytes=1)
    assert (a.mAP, a.mINP, a.counts) == (c.mAP, c.mINP, c.counts)


def test_lists_work_and_short_galleries_pad_the_curve():
    result = rank_metrics([[0.2, 0.1]], [1], [1, 2])
    assert result.cmc_id.tolist() == [0.0] + [1.0] * 19
    assert result.cmc_image.shape == (20,)


def test_empty_row_beside_good_ones():
    # Everything is excluded from query 0; others are scored as if it were not there.
    distance = np.array([[1.0, 2.0], [2.0, 1.0]])
    excluded = np.array([[True, True], [False, False]])
    result = rank_metrics(distance, [1, 1], [1, 2], excluded=excluded)
    assert result.counts["valid_queries"] == 1
    assert result.mAP == 0.5
    assert result.rows.num_kept.tolist() == [0, 2]


def test_not_finite_names_the_row():
    for dtype in (np.float32, np.float64):
        for bad in (np.nan, np.inf, -np.inf):
            distance = np.zeros((6, 3), dtype)
            distance[4, 2] = distance[5, 0] = bad
            with pytest.raises(ValueError, match=r"row 4 .* column 2"):
                rank_metrics(distance, np.ones(6, int), np.ones(3, int), block_bytes=1)


def test_bad_input():
    names = ("distance", "query_person", "gallery_person")
    good = dict(zip(names, (np.zeros((1, 2)), [1], [1, 1]), strict=True))
    check_refusals(
        rank_metrics,
        [
            (dict(zip(names, arguments, strict=True)), message)
            for arguments, message in (
                ((np.zeros(3), [1], [1]), r"distance is float64 \[3\]"),
                ((np.zeros((1, 2), int), [1], [1, 1]), "distance is int64"),
                ((np.zeros((1, 2)), [1, 2], [1, 1]), r"query_person .* expected integers \[1\]"),
                ((np.zeros((1, 2)), [1], [1]), r"gallery_person .* expected integers \[2\]"),
                ((np.zeros((1, 2)), [1.0], [1, 1]), "query_person is float64"),
                ((np.zeros((1, 2)), [1], [2, 3]), r"people \(1..1\).*others \(2..3\)"),
                ((np.zeros((0, 2)), [], [2, 3]), "no queries"),
                ((np.zeros((2, 0)), [1, 2], []), "no gallery images"),
            )
        ],
    )
    check_refusals(
        rank_metrics,
        [
            (good | options, message)
            for options, message in (
                ({"excluded": np.zeros((1, 2), int)}, "excluded is int64"),
                ({"excluded": np.zeros((2, 1), bool)}, r"excluded is bool \[2, 1\]"),
                ({"excluded": np.ones((1, 2), bool)}, "every true image is excluded"),
                ({"max_rank": 0}, "max_rank is 0"),
                ({"block_bytes": 0}, "block_bytes 0"),
                ({"ties": "random"}, "unknown ties 'random', expected one of stable, pess"),
            )
        ],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_stays_in_the_block(dtype):
    rng = np.random.default_rng(0)
    distance = np.round(rng.random((800, 1000)), 3).astype(dtype)  # every row has ties
    people = rng.integers(0, 50, 800), rng.integers(0, 50, 1000)
    whole = peak_bytes(lambda: rank_metrics(distance, *people))
    blocks = peak_bytes(lambda: rank_metrics(distance, *people, block_bytes=1 << 19))
    assert whole > 2.5e6
    assert blocks < 1.5 * (1 << 19)
