"""Counts, the closest few, and unit rows, each against a line of plain NumPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vireid_jax.metrics.distance import unit_rows
from vireid_jax.metrics.ranking import closest_images, count_less, find_people, index_gallery
from vireid_jax.metrics.rerank import nearest_columns
from vireid_jax.metrics.streaming import Nearest, merge_nearest


def test_counts():
    for dtype, n, g in itertools.product(
        (np.float32, np.float64), (1, 48, 300), (1, 7, 8, 300, 2500)
    ):
        rng = np.random.default_rng(g)
        rows = rng.integers(-20, 20, (5, g)).astype(dtype) / 4
        rows[rows == 0] *= rng.choice([-1, 1], np.count_nonzero(rows == 0))  # both zeros
        rows[rng.random(rows.shape) < 0.1] = np.inf
        value = rng.integers(-22, 22, (5, n)).astype(dtype) / 4
        before = rows.copy()
        less, equal = count_less(rows, value)
        for found, compare in ((less, np.less), (equal, np.equal)):
            expected = compare(rows[:, None], value[:, :, None]).sum(axis=2)
            np.testing.assert_array_equal(found, expected, str((dtype, n, g)))
        np.testing.assert_array_equal(rows, before)


@given(st.integers(0, 10**6))
def test_grouping_a_gallery(seed):
    rng = np.random.default_rng(seed)
    g = rng.integers(1, 120)
    person = rng.integers(-3, rng.choice([1, 4, 60]), g)  # up to 120 images of one person
    column = np.sort(rng.choice(500, g, replace=False))
    index = index_gallery(person, column)
    value = rng.normal(size=(4, 500)).astype(np.float32)
    closest = closest_images(value[:, index.order], index)
    assert sorted(index.order) == column.tolist()
    np.testing.assert_array_equal(index.order[index.place], index.column)
    group, size = find_people(index, np.arange(-5, 65))
    for who, at, images in zip(range(-5, 65), group, size, strict=True):
        mine = column[person == who]
        assert images == len(mine)
        if images:
            start = index.start[at]
            assert index.column[start : start + images].tolist() == mine.tolist()
            number = index.rank[at]
            assert index.order[index.place[start : start + images]].tolist() == mine.tolist()
            np.testing.assert_array_equal(closest[:, number], value[:, mine].min(axis=1))


def test_an_empty_gallery_groups():
    index = index_gallery(np.zeros(0, np.int64))
    assert len(index.order) == len(index.person) == 0
    assert find_people(index, np.array([1, 2]))[1].tolist() == [0, 0]


@given(st.integers(0, 10**6))
def test_nearest_columns_are_those_of_a_stable_sort(seed):
    rng = np.random.default_rng(seed)
    value = rng.integers(0, rng.choice([2, 30, 10**6]), (6, 40)).astype(np.float32)
    k = int(rng.integers(1, 41))
    expected = np.argsort(value, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(nearest_columns(value, k), expected)


@given(st.integers(0, 10**6), st.sampled_from(["stable", "pessimistic", "optimistic"]))
def test_merging_parts_is_sorting_the_whole(seed, ties):
    rng = np.random.default_rng(seed)
    value = rng.integers(0, rng.choice([2, 30, 10**6]), (5, 60)).astype(np.float32)
    value[rng.random(value.shape) < rng.choice([0.1, 0.97])] = np.inf
    people = rng.integers(0, 4, 5), rng.integers(0, 4, 60)
    k = int(rng.integers(1, 20))
    found = Nearest(np.full((5, k), np.inf, np.float32), np.full((5, k), -1))
    for part in np.array_split(rng.permutation(60), rng.integers(1, 8)):
        found = merge_nearest(
            found,
            value[:, part],
            part,
            query_person=people[0],
            gallery_person=people[1],
            ties=ties,
        )
    own = people[0][:, None] == people[1]
    last = {"stable": 0 * own, "pessimistic": own, "optimistic": ~own}[ties]
    for row in range(5):
        order = [g for g in np.lexsort((last[row], value[row]))[:k] if value[row, g] < np.inf]
        missing = k - len(order)
        assert found.column[row].tolist() == order + [-1] * missing
        assert found.value[row].tolist() == value[row, order].tolist() + [np.inf] * missing


def test_unit_rows_equal_float64():
    for dtype, width in itertools.product((np.float16, np.float32, np.float64), (1, 3, 500)):
        rng = np.random.default_rng(width)
        features = rng.normal(size=(700, width)).astype(dtype)
        features[features == 0] = 1
        exact = features.astype(np.float64)
        exact /= np.sqrt((exact**2).sum(axis=1, keepdims=True))
        found = unit_rows(features)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=3e-7, atol=1e-9)


def test_unit_rows_keep_what_is_unit():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 64)).astype(np.float32)
    unit = unit_rows(features)
    assert unit_rows(unit) is unit
    torch_like = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert unit_rows(torch_like) is torch_like
    mixed = unit_rows(np.where(np.arange(50)[:, None] % 2, unit, 3 * unit))
    np.testing.assert_array_equal(mixed[1::2], unit[1::2])
    np.testing.assert_allclose(mixed[::2], unit[::2], rtol=3e-7)


def test_unit_rows_of_any_scale():
    rng = np.random.default_rng(0)
    features = rng.uniform(0.5, 1, (60, 8))
    exact = features / np.sqrt((features**2).sum(axis=1, keepdims=True))
    for dtype, scale in (
        (np.float32, 10.0 ** rng.integers(-36, 36, (60, 1))),
        (np.float64, 1e250),
    ):
        found = unit_rows((features * scale).astype(dtype))
        np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_unit_rows_errors_use_the_given_numbers():
    features = np.ones((3, 2), np.float32)
    features[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"gallery row 70 \(c\) holds a NaN .*1 of 3 rows"):
        unit_rows(features, where=lambda row: f"gallery row {50 + 10 * row} ({'abc'[row]})")
    features[1:] = 0
    with pytest.raises(ValueError, match=r"features row 1 is all zeros \(2 of 3"):
        unit_rows(features)
