"""Features that callers pass: unit rows and cosines."""

import itertools

import numpy as np
import pytest

from tests.metrics.problems import check_refusals
from vireid_jax.metrics import chance_map, cosine_distance, rank_metrics
from vireid_jax.metrics.inputs import check_ids, unit_rows


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


def test_cosine_distance_equals_float64_loops():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(5, 16)), rng.normal(size=(7, 16))
    expected = [[1 - q @ g / np.sqrt(q @ q) / np.sqrt(g @ g) for g in gallery] for q in query]
    for scale in (1.0, 1e-200, 1e200):
        distance = cosine_distance(query * scale, gallery)
        assert distance.dtype == np.float32
        np.testing.assert_allclose(distance, expected, atol=1e-6)
    small = query.astype(np.float32) * np.float32(1e-30)  # squares vanish in float32
    np.testing.assert_allclose(cosine_distance(small, gallery), expected, atol=1e-6)
    half = cosine_distance(query.astype(np.float16), gallery)
    np.testing.assert_allclose(half, expected, atol=2e-3)
    pixels = rng.integers(0, 255, (3, 12), dtype=np.uint8)
    np.testing.assert_allclose(np.diag(cosine_distance(pixels, pixels)), 0, atol=1e-6)


def test_cosine_distance_takes_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    query = np.eye(3).astype(ml_dtypes.bfloat16)
    np.testing.assert_allclose(cosine_distance(query, query), 1 - np.eye(3), atol=1e-7)


def test_cosine_distance_bad_input():
    check_refusals(
        lambda query: cosine_distance(query, np.ones((1, 2))),
        [
            ({"query": query}, message)
            for query, message in (
                (np.array([[1.0, 0], [0, 0]]), "query features row 1 is all zeros"),
                (np.array([[1.0, 0], [np.nan, 1]]), "query features row 1 holds a NaN"),
                (np.array([[1.0, -np.inf]]), "query features row 0 holds"),
                (np.ones(3), r"query features are float64 \[3\]"),
                (np.array([["a"]]), "real matrix"),
                (np.ones((1, 3)), "3 columns, gallery features 2"),
            )
        ],
    )


def test_numbers_that_int64_lacks_are_refused():
    """2^64 - 1 would become -1, which a query of another person may have."""
    large = np.array([1, 2**63], np.uint64)
    with pytest.raises(ValueError, match="gallery_person holds 9223372036854775808, expected"):
        rank_metrics(np.eye(2), query_person=np.array([-(2**63), 1]), gallery_person=large)
    for ids in (np.array([0, 2**63 - 1], np.uint64), np.array([-5, 200], np.int16)):
        found = check_ids(ids, 2, "x")
        assert found.dtype == np.int64 and found.tolist() == ids.tolist()
    with pytest.raises(ValueError, match="expected integers"):
        check_ids([2**64, 1], 2, "x")


def test_masked_entries_are_refused():
    """What lies under a mask is no value; without a masked entry an array is like any other."""
    rows = np.random.default_rng(0).normal(size=(2, 3))
    masked = np.ma.masked_array(rows, np.eye(2, 3, dtype=bool))
    person = np.arange(2)
    hidden = np.ma.masked_array(person, [False, True])
    pairs = np.ma.masked_array(np.zeros((2, 2), bool), np.eye(2, dtype=bool))
    for call in (
        lambda: unit_rows(masked),
        lambda: cosine_distance(rows, masked),
        lambda: check_ids(hidden, 2, "x"),
        lambda: rank_metrics(np.eye(2), person, hidden),
        lambda: rank_metrics(np.ma.masked_equal(np.eye(2), 1), person, person),
        lambda: rank_metrics(np.eye(2), person, person, excluded=pairs),
        lambda: chance_map(hidden, 5),
        lambda: chance_map(person, 5, query_person=hidden),
    ):
        with pytest.raises(ValueError, match=r"entries of an array \[.*are masked"):
            call()
    np.testing.assert_array_equal(unit_rows(np.ma.masked_array(rows)), unit_rows(rows))
