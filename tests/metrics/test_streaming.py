"""The ranking of features in blocks against sorted lists."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metrics import reference
from tests.metrics.problems import check_refusals, peak_bytes
from vireid_jax.metrics import cosine_distance, rank_features
from vireid_jax.metrics.ranking import TIES


def same_camera(query_person, query_camera, gallery_person, gallery_camera):
    """An exclusion that depends on all four."""
    same = query_person[:, None] == gallery_person
    return (same & (query_camera[:, None] == gallery_camera)) | (
        (query_camera[:, None] == 3) & (gallery_camera == 2)
    )


def sign_features(rng, rows):
    """Entries of -1 and 1 in 16 columns: exact products of 17 levels, so there are many ties."""
    return rng.choice([-1.0, 1.0], (rows, 16))


def random_problem(seed):
    """Features, people and cameras; ties or none; few or many images of a person."""
    rng = np.random.default_rng(seed)
    q, g = rng.integers(1, 25), rng.integers(1, 70)
    people = rng.choice([2, 10, 60])
    if seed % 3:
        query, gallery = sign_features(rng, q), sign_features(rng, g)
    else:
        query, gallery = rng.normal(size=(q, 16)), rng.normal(size=(g, 16))
    dtype = rng.choice([np.float16, np.float32, np.float64])
    return {
        "query": query.astype(dtype),
        "gallery": gallery.astype(dtype),
        "query_person": rng.integers(0, people + 2, q),
        "gallery_person": rng.integers(-1, people, g),
        "query_camera": rng.integers(1, 5, q),
        "gallery_camera": rng.integers(1, 5, g),
    }


def whole_matrix(problem, exclude):
    """The same by the matrix: distances (exact to the last bit for signs) and exclusion."""
    people_and_cameras = [
        problem[key] for key in ("query_person", "query_camera", "gallery_person", "gallery_camera")
    ]
    distance = cosine_distance(problem["query"], problem["gallery"])
    return distance, exclude(*people_and_cameras) if exclude else np.zeros(distance.shape, bool)


def clear(problem):
    """Whether rounding cannot change an order: signs, or distances that lie far apart."""
    query, gallery = (problem[key].astype(np.float64) for key in ("query", "gallery"))
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    gaps = np.diff(np.sort(query @ gallery.T, axis=1), axis=1)
    return bool((np.abs(problem["query"]) == 1).all() or (gaps > 3e-6).all())


@given(st.integers(0, 10**6), st.sampled_from(TIES), st.integers(1, 1 << 18))
def test_equals_the_slow_reference(seed, ties, block_bytes):
    problem = random_problem(seed)
    if not clear(problem):
        return
    exclude = same_camera if seed % 2 else None
    distance, excluded = whole_matrix(problem, exclude)
    people = problem["query_person"], problem["gallery_person"]
    k = 5
    found, mean = reference.rank_all(distance, *people, excluded, ties=ties)
    options = {"exclude": exclude, "top_k": k, "ties": ties, "block_bytes": block_bytes}
    if mean is None:
        with pytest.raises(ValueError, match="true image"):
            rank_features(**problem, **options)
        return
    result = rank_features(**problem, **options)
    reference.check(result.ranking, found, mean)
    for row, expected in enumerate(found):
        if expected is not None:
            top = expected["order"][:k]
            assert result.top_index[row].tolist() == top + [-1] * (k - len(top)), row
    near = np.take_along_axis(distance, np.maximum(result.top_index, 0), axis=1)
    near[result.top_index < 0] = np.inf
    np.testing.assert_allclose(result.top_distance, near, atol=1e-6)


def test_few_random_problems_are_skipped():
    problems = [random_problem(seed) for seed in range(45)]
    assert sum(map(clear, problems)) > 38
    assert sum(not (np.abs(p["query"]) == 1).all() for p in problems if clear(p)) > 10


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_memory_maps_are_read_and_not_written(dtype, tmp_path):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(30, 32)).astype(dtype), rng.normal(size=(500, 32))
    path = tmp_path / "gallery.npy"
    np.save(path, gallery.astype(dtype))
    people = rng.integers(0, 40, 30), rng.integers(0, 40, 500)
    for array in (query, *people):
        array.flags.writeable = False  # a write would raise
    mapped = np.load(path, mmap_mode="r")
    before = path.read_bytes()
    result = rank_features(query, mapped, *people, top_k=3, block_bytes=50_000)
    known = rank_features(query, gallery.astype(dtype), *people, top_k=3)
    assert path.read_bytes() == before
    np.testing.assert_array_equal(result.top_index, known.top_index)
    np.testing.assert_array_equal(result.ranking.rows.rank_image, known.ranking.rows.rank_image)
    expected = np.argsort(cosine_distance(query, mapped), axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(result.top_index, expected)


def test_memory_stays_in_the_block():
    for asked, dtype in ((10, np.float32), (500, np.float16)):
        rng = np.random.default_rng(0)
        query = rng.normal(size=(300, 64)).astype(np.float32)
        gallery = rng.normal(size=(6000, 64)).astype(dtype)  # the matrix alone is 7.2 MB
        people = rng.integers(0, asked, 300), rng.integers(0, 500, 6000)
        options = {"top_k": 10, "block_bytes": 3 << 19}
        rank_features(query[:9], gallery, people[0][:9], people[1])  # imports, threads
        peak = peak_bytes(functools.partial(rank_features, query, gallery, *people, **options))
        index = 64 * len(gallery)
        results = 300 * (10 * 12 + 200)
        assert peak < options["block_bytes"] + index + results, (asked, dtype)


def test_progress_and_threads():
    rng = np.random.default_rng(0)
    calls = []
    rank_features(
        rng.normal(size=(50, 8)),
        rng.normal(size=(200, 8)),
        rng.integers(0, 9, 50),
        rng.integers(0, 9, 200),
        block_bytes=20_000,
        progress=lambda done, total: calls.append((done, total)),
    )
    total = calls[0][1]
    assert total > 4
    assert calls == [(done, total) for done in range(1, total + 1)]


PROBLEM = {
    "query": np.eye(4)[:2],
    "gallery": np.eye(4)[:3],
    "query_person": [1, 2],
    "gallery_person": [1, 2, 3],
}


def test_bad_input():
    rows = [
        ({"query": np.ones(3)}, r"query features are float64 \[3\]"),
        ({"gallery": np.ones(3)}, r"gallery features are float64 \[3\]"),
        ({"gallery": np.ones((3, 5))}, "4 columns, gallery features 5"),
        ({"query_person": [1]}, r"query_person .* expected integers \[2\]"),
        ({"gallery_person": [1.0, 2.0, 3.0]}, "gallery_person is float64"),
        ({"exclude": same_camera}, "exclude is given but no cameras"),
        (
            {"exclude": same_camera, "query_camera": [1], "gallery_camera": [1, 1, 1]},
            r"query_camera .* expected integers \[2\]",
        ),
        (
            {"exclude": same_camera, "query_camera": [1, 1], "gallery_camera": [1, 1, 1]},
            "every true image is excluded",
        ),
        ({"query_person": [7, 8]}, r"people \(7..8\).*others \(1..3\)"),
        ({"query": np.ones((0, 4)), "query_person": []}, "no queries"),
        ({"gallery": np.ones((0, 4)), "gallery_person": []}, "no gallery images"),
        ({"ties": "random"}, "unknown ties 'random'"),
        ({"max_rank": 0}, "max_rank is 0"),
        ({"block_bytes": 0}, "block_bytes 0"),
        ({"top_k": -1}, "top_k -1"),
    ]
    check_refusals(lambda **options: rank_features(**(PROBLEM | options)), rows)


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_bad_features_name_their_row(block_bytes):
    query, gallery = np.eye(4)[:2].copy(), np.tile(np.eye(4), (20, 1))
    people = [1, 2], np.arange(80)[::-1] % 9
    gallery[57, 1] = np.nan
    with pytest.raises(ValueError, match="gallery features row 57 holds a NaN"):
        rank_features(query, gallery, *people, block_bytes=block_bytes)
    gallery[57] = 0
    with pytest.raises(ValueError, match="gallery features row 57 is all zeros"):
        rank_features(query, gallery, *people, block_bytes=block_bytes)
    gallery[57] = query[1, 3] = 1
    query[1, 0] = np.inf
    with pytest.raises(ValueError, match="query features row 1 holds"):
        rank_features(query, gallery, *people, block_bytes=block_bytes)
