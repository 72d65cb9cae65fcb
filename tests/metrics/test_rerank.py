"""k-reciprocal re-ranking against its definition written out with Python sets."""

import itertools

import numpy as np

from tests.metrics.problems import check_refusals, peak_bytes
from vireid_jax.metrics.rerank import k_reciprocal


def slow(query, gallery, k1, k2, lam, scope="all", excluded=None, distance="cosine"):
    """The formulas one image, one set and one number at a time, in float64."""
    points = np.concatenate([query, gallery]).astype(np.float64)
    if distance == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    q, n = len(query), len(points)
    squared = np.array([[np.sum((a - b) ** 2) for b in points] for a in points])
    scaled = [[squared[i, j] / max(squared[i]) for j in range(n)] for i in range(n)]

    def far(i, j):
        if scope == "queries":
            return j >= q
        low, high = min(i, j), max(i, j)
        return excluded is not None and low < q <= high and excluded[low][high - q]

    order = [sorted(range(n), key=lambda j: (far(i, j), squared[i, j], j)) for i in range(n)]

    def reciprocal(i, size):
        return {j for j in order[i][: size + 1] if i in order[j][: size + 1]}

    vectors = []
    for i in range(n):
        base = reciprocal(i, k1)
        members = set(base)
        for j in base:
            other = reciprocal(j, round(k1 / 2))
            if len(other & base) > 2 / 3 * len(other):
                members |= other
        total = sum(np.exp(-scaled[i][j]) for j in members)
        vectors.append([np.exp(-scaled[i][j]) / total if j in members else 0.0 for j in range(n)])
    if k2 > 1:
        vectors = [np.mean([vectors[j] for j in order[i][:k2]], axis=0) for i in range(n)]

    def jaccard(a, b):
        shared = sum(min(x, y) for x, y in zip(a, b, strict=True))
        return 1 - shared / (2 - shared)

    return np.array(
        [
            [(1 - lam) * jaccard(vectors[i], vectors[j]) + lam * scaled[i][j] for j in range(q, n)]
            for i in range(q)
        ]
    )


def clustered(seed, q=11, g=16, width=12, people=5):
    """Features that gather around a few people, so that neighborhoods overlap in part."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(people, width))
    pick = rng.integers(0, people, q + g)
    points = (centers[pick] + 0.7 * rng.normal(size=(q + g, width))) * rng.uniform(1, 9, (q + g, 1))
    return points[:q].astype(np.float32), points[q:].astype(np.float32)


def test_equals_the_definition():
    sizes = [(6, 3), (5, 1), (3, 2), (8, 6), (40, 50)]
    for seed, (k1, k2), scope in itertools.product(range(2), sizes, ["all", "queries"]):
        query, gallery = clustered(seed)
        expected = slow(query, gallery, k1, k2, 0.3, scope)
        for block_bytes in (1, 1 << 20):
            found = k_reciprocal(query, gallery, k1=k1, k2=k2, scope=scope, block_bytes=block_bytes)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=f"{k1} {k2} {scope}")


def test_of_features_as_they_come():
    """IDKL's code on RegDB and LLCM; their lengths, which differ ninefold, count."""
    query, gallery = clustered(2)
    query[3] = 0  # has no direction
    for scope in ("all", "queries"):
        options = dict(scope=scope, distance="euclidean")
        expected = slow(query, gallery, 6, 3, 0.3, **options)
        for block_bytes in (1, 1 << 20):
            options["block_bytes"] = block_bytes
            found = k_reciprocal(query, gallery, k1=6, k2=3, lam=0.3, **options)
            np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=scope)
    query[3] = 1
    unlike = k_reciprocal(query, gallery, k1=6, k2=3) - k_reciprocal(
        query, gallery, k1=6, k2=3, distance="euclidean"
    )
    assert np.abs(unlike).max() > 0.05


def test_the_defaults_are_those_of_the_paper():
    query, gallery = clustered(1, 30, 25)
    expected = slow(query, gallery, 20, 6, 0.3)
    np.testing.assert_allclose(k_reciprocal(query, gallery), expected, atol=2e-6)
    for lam in (0.0, 1.0):
        found = k_reciprocal(query, gallery, k1=6, k2=3, lam=lam)
        np.testing.assert_allclose(found, slow(query, gallery, 6, 3, lam), atol=2e-6)


def test_the_problems_tell_the_options_apart():
    query, gallery = clustered(0)
    runs = [
        k_reciprocal(query, gallery, k1=k1, k2=k2, lam=lam, scope=scope)
        for k1, k2, lam, scope in [
            (6, 3, 0.3, "all"), (5, 3, 0.3, "all"), (6, 1, 0.3, "all"), (6, 3, 0.2, "all"),
            (6, 3, 0.3, "queries"),
        ]
    ]  # fmt: skip
    for other in runs[1:]:
        assert np.abs(runs[0] - other).max() > 1e-3


def test_excluded_pairs_come_last_in_the_search():
    query, gallery = clustered(5)
    excluded = np.random.default_rng(0).random((len(query), len(gallery))) < 0.3
    expected = slow(query, gallery, 6, 3, 0.3, "all", excluded)
    for block_bytes in (1, 1 << 20):
        found = k_reciprocal(query, gallery, k1=6, k2=3, excluded=excluded, block_bytes=block_bytes)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert np.abs(found - k_reciprocal(query, gallery, k1=6, k2=3)).max() > 1e-3


def test_queries_alone_are_not_looked_up_in_the_gallery():
    # Another gallery image changes nothing for the rest but the largest distance.
    query, gallery = clustered(6)
    few = k_reciprocal(query, gallery[:-1], k1=4, k2=3, scope="queries", lam=0.0)
    more = k_reciprocal(query, gallery, k1=4, k2=3, scope="queries", lam=0.0)
    np.testing.assert_allclose(few, more[:, :-1], atol=5e-3)
    everything = k_reciprocal(query, gallery, k1=4, k2=3, lam=0.0)
    fewer = k_reciprocal(query, gallery[:-1], k1=4, k2=3, lam=0.0)
    assert np.abs(everything[:, :-1] - fewer).max() > 5e-2


def test_identical_images_and_inputs_untouched():
    query, gallery = np.ones((3, 4), np.float32), np.ones((5, 4), np.float32)
    query.flags.writeable = gallery.flags.writeable = False
    found = k_reciprocal(query, gallery, k1=2, k2=2)
    assert np.isfinite(found).all()
    assert k_reciprocal(query[:1], gallery[:1]).shape == (1, 1)


def test_memory_stays_in_the_block():
    query, gallery = clustered(0, 500, 700, people=60)
    peak = peak_bytes(lambda: k_reciprocal(query, gallery, block_bytes=1 << 20))
    result, rows = 500 * 700 * 4, 1200 * 2500
    assert peak < 1.5 * (1 << 20) + result + 2 * rows  # 1200 x 1200 floats alone are 5.8 MB


def test_what_does_not_fit_is_refused():
    good = {"query": np.eye(3)[:2], "gallery": np.eye(3)}
    check_refusals(
        lambda **changes: k_reciprocal(**(good | changes)),
        [
            ({"scope": "gallery"}, "unknown scope 'gallery', expected one of all, queries"),
            ({"distance": "l2"}, "unknown distance 'l2', expected one of cosine, euclidean"),
            ({"k1": 0}, "k1 is 0"),
            ({"k2": 0}, "k2 0"),
            ({"lam": 1.5}, "lam 1.5"),
            ({"lam": float("nan")}, "lam nan"),
            ({"block_bytes": 0}, "block_bytes 0"),
            (
                {"excluded": np.zeros((2, 3))},
                r"excluded is float64 \[2, 3\], expected bool \[2, 3\]",
            ),
            ({"excluded": np.zeros((3, 2), bool)}, r"excluded is bool \[3, 2\]"),
            ({"query": np.eye(3)[:0]}, "0 queries and 3 gallery images"),
            ({"query": np.eye(3), "gallery": np.eye(3)[:0]}, "3 queries and 0 gallery images"),
            ({"gallery": np.eye(2)}, "3 columns, gallery features 2"),
            (
                {"query": np.array([[np.nan, 1]]), "gallery": np.eye(2)},
                "query features row 0 holds a NaN",
            ),
            (
                {"query": np.eye(2), "gallery": np.zeros((1, 2))},
                "gallery features row 0 is all zeros",
            ),
        ],
    )
