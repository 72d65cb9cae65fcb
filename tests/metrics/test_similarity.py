"""Ranking by a matrix of similarities: that of features gives what the features give."""

import itertools

import numpy as np
import pytest

from tests.metrics.problems import arguments, check_refusals, problem
from vireid_jax.metrics import evaluate

PROTOCOLS = ("sysu/all/single", "regdb/v2t", "llcm/v2i", "llcm/v2i_released", "folders/i2v")


def cosine(query, gallery):
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    return q @ g.T


def of_features(protocol, seed):
    """Keyword arguments of a random problem with features, and the same with a similarity."""
    query, gallery = problem(
        protocol if "sysu" not in protocol else "folders/i2v", seed, ties=False
    )
    given = arguments(query, gallery)
    if "sysu" in protocol:
        rng = np.random.default_rng(seed)
        for side, cameras in (("query", (3, 6)), ("gallery", (1, 2, 4, 5))):
            camera = rng.choice(cameras, len(given[f"{side}_person"]))
            given[f"{side}_camera"] = camera
            people = given[f"{side}_person"]
            given[f"{side}_name"] = [
                f"cam{c}/{p:04d}/{n:04d}"
                for n, (c, p) in enumerate(zip(camera, people, strict=True))
            ]
    matrix = cosine(given["query_features"], given["gallery_features"])
    rest = {k: v for k, v in given.items() if not k.endswith("features")}
    return given, rest | {"similarity": 3 * matrix - 7}  # of any scale


def test_a_similarity_of_features_scores_as_they_do():
    for protocol, seed in itertools.product(PROTOCOLS, range(2)):
        features, similarity = of_features(protocol, seed)
        before = similarity["similarity"].copy()
        expected = evaluate(protocol=protocol, **features)
        found = evaluate(protocol=protocol, **similarity)
        np.testing.assert_array_equal(similarity["similarity"], before)
        assert found.keys() == expected.keys()
        assert found["counts"] == expected["counts"] and found["chance"] == expected["chance"]
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-12), (protocol, seed)
        assert found["per_query"]["best_rank"] == expected["per_query"]["best_rank"]


def test_blocks_change_nothing():
    _, given = of_features("sysu/all/single", 0)
    expected = evaluate(**given)["metrics"]
    for block_bytes in (1, 1 << 12):
        assert evaluate(**given, block_bytes=block_bytes)["metrics"] == expected


def test_ties_go_by_the_gallery():
    given = dict(
        query_person=[1], gallery_person=[2, 1], similarity=np.zeros((1, 2)), protocol="regdb/v2t"
    )
    found = {t: evaluate(**given, ties=t)["metrics"]["R1"] for t in ("stable", "optimistic")}
    assert found == {"stable": 0, "optimistic": 1}


def test_what_does_not_fit_is_refused():
    _, given = of_features("folders/i2v", 0)
    check_refusals(
        lambda **changes: evaluate(protocol="folders/i2v", **{**given, **changes}),
        [
            ({"query_features": np.ones((4, 2))}, "got query features, the similarity"),
            ({"similarity": None}, "got nothing"),
            ({"similarity": None, "gallery_features": np.ones((4, 2))}, "got gallery features"),
            ({"similarity": np.zeros(3)}, r"the similarity are float64 \[3\]"),
            ({"rerank": "all"}, "rerank is 'all' with a similarity, expected None"),
            ({"query_person": [1]}, "query_person"),
        ],
    )


def test_a_similarity_that_is_not_finite_names_its_query():
    _, given = of_features("folders/i2v", 1)
    given["similarity"][2, 1] = np.nan
    name = given["query_name"][2]
    with pytest.raises(ValueError, match=rf"query row 2 \({name}\) are not finite"):
        evaluate(protocol="folders/i2v", **given)
