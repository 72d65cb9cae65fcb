"""`evaluate` against plain loops that follow the protocol's text."""

import json

import numpy as np
import pytest

from tests.metrics import reference
from tests.metrics.problems import by_loops, check_chance, check_refusals, peak_bytes, sides_of
from vireid_jax.metrics import PROTOCOLS, evaluate, get_protocol


def world(seed=0, *, people=6, width=12, images=4, noise=1.5):
    """Arguments of `evaluate` for a small SYSU-MM01: person 0 has no indoor images."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(people, width))
    rows = [
        (person, camera, f"cam{camera}/{person:04d}/{n:04d}")
        for camera in range(1, 7)
        for person in range(people)
        for n in range(1, images + 1 + (person + camera) % 3)
        if not (person == 0 and camera in (1, 2))
    ]
    rng.shuffle(rows)

    def side(cameras):
        kept = [row for row in rows if row[1] in cameras]
        person, camera, name = zip(*kept, strict=True)
        features = center[list(person)] + noise * rng.normal(size=(len(kept), width))
        return features, np.array(person), np.array(camera), list(name)

    q, g = side((3, 6)), side((1, 2, 4, 5))
    return {
        "query_features": q[0],
        "gallery_features": g[0],
        "query_person": q[1],
        "gallery_person": g[1],
        "query_camera": q[2],
        "gallery_camera": g[2],
        "gallery_name": g[3],
        "query_name": q[3],
    }


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p.startswith("sysu")])
def test_equals_loops(protocol):
    w = world()
    expected = by_loops(protocol, *sides_of(w), 3)
    result = evaluate(**w, protocol=protocol, trials=3)
    assert evaluate(**w, protocol=protocol, trials=3, block_bytes=1) == result
    for trial, (_, mean) in zip(result["trials"], expected, strict=True):
        reference.check_trial(trial, mean)
    maps = [mean["ap"] for _, mean in expected]
    assert result["metrics"]["mAP"] == pytest.approx(np.mean(maps), abs=1e-9)
    assert result["std"]["mAP"] == pytest.approx(np.std(maps), abs=1e-9)
    np.testing.assert_allclose(
        result["curves"]["cmc_image"], np.mean([m["cmc_image"] for _, m in expected], axis=0)
    )
    check_chance(result, expected)
    rows = result["per_query"]
    for q, over_trials in enumerate(zip(*(found for found, _ in expected), strict=True)):
        valid = [f for f in over_trials if f is not None]
        assert rows["valid_trials"][q] == len(valid)
        if not valid:
            assert rows["AP"][q] is rows["R1"][q] is rows["best_rank"][q] is None
            continue
        assert rows["AP"][q] == pytest.approx(np.mean([f["ap"] for f in valid]), abs=1e-9)
        assert rows["INP"][q] == pytest.approx(np.mean([f["inp"] for f in valid]), abs=1e-9)
        assert rows["R1"][q] == pytest.approx(np.mean([f["rank_image"] == 1 for f in valid]))
        assert rows["best_rank"][q] == min(f["rank_image"] for f in valid)
        assert rows["best_rank_id"][q] == min(f["rank_id"] for f in valid)


@pytest.mark.parametrize("protocol", ["sysu/all/single", "regdb/v2t"])
def test_euclidean_distances_of_features_as_they_come(protocol):
    """The order is the one of the squared distances; blocks change nothing."""
    w = world(images=2)
    rng = np.random.default_rng(1)
    for side in ("query", "gallery"):
        length = rng.uniform(0.2, 5, (len(w[f"{side}_person"]), 1))
        w[f"{side}_features"] = np.float32(length * w[f"{side}_features"])
        if protocol == "regdb/v2t":
            w[f"{side}_camera"] = None
    w["query_features"][0] = 0  # no direction, but a place
    query, gallery = (np.float64(w.pop(f"{side}_features")) for side in ("query", "gallery"))
    squared = ((query[:, None] - gallery) ** 2).sum(-1)
    options = dict(protocol=protocol, **w)
    expected = evaluate(similarity=-squared, **options)
    features = dict(query_features=query, gallery_features=gallery)
    for block_bytes in (1, 1 << 27):
        how = dict(distance="euclidean", block_bytes=block_bytes)
        result = evaluate(**features, **options, **how)
        assert result["distance"] == "euclidean" and expected["distance"] == "cosine"
        for key in ("metrics", "trials", "per_query"):
            assert result[key] == expected[key], key
    features["query_features"] = query + 1e-3
    assert evaluate(**features, **options)["metrics"] != expected["metrics"]
    reranked = evaluate(**features, **options, distance="euclidean", rerank="all")
    assert reranked["metrics"] != evaluate(**features, **options, rerank="all")["metrics"]
    for bad, said in ((np.nan, "holds a NaN"), (1e30, "beyond 1e19")):
        features["query_features"] = np.where(query == query[1], bad, query)
        with pytest.raises(ValueError, match=said):
            evaluate(**features, **options, distance="euclidean")
    with pytest.raises(ValueError, match="distance is 'euclidean' with a similarity"):
        evaluate(similarity=-squared, **options, distance="euclidean")


def test_memory_stays_in_the_block():
    w = world(people=40, images=8)
    whole = peak_bytes(lambda: evaluate(**w, protocol="sysu/all/multi", trials=2))
    blocks = peak_bytes(
        lambda: evaluate(**w, protocol="sysu/all/multi", trials=2, block_bytes=1 << 20)
    )
    assert whole > 2 * blocks
    assert blocks < (2 << 20) + w["gallery_features"].nbytes + w["query_features"].nbytes


def test_result_is_plain_and_complete():
    w = world()
    result = evaluate(**w, protocol="sysu/indoor/single")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["protocol"], result["gallery"], result["cmc"]) == (
        "sysu/indoor/single",
        "agw",
        "id",
    )
    assert len(result["trials"]) == 10
    assert set(result["metrics"]) == set(result["std"]) == {"R1", "R5", "R10", "R20", "mAP", "mINP"}
    counts, queries = result["counts"], len(w["query_person"])
    # Person 0 is not in the indoor gallery; the other 5 have one image of each camera.
    lost = int((w["query_person"] == 0).sum())
    assert lost > 0
    assert counts == {
        "queries": queries,
        "valid_queries": queries - lost,
        "invalid_queries": lost,
        "gallery_images": 10,
        "gallery_ids": 5,
        "tied_true_images": 0,
        "pool_images": len(w["gallery_person"]),
    }
    assert result["per_query"]["name"] == w["query_name"]
    assert result["per_query"]["person"] == w["query_person"].tolist()
    assert "name" not in evaluate(**{**w, "query_name": None}, trials=1)["per_query"]
    assert evaluate(**w, trials=1)["std"]["mAP"] == 0.0
    assert len(evaluate(**w, trials=1, max_rank=30)["curves"]["cmc_id"]) == 30


def test_camera_3_ignores_camera_2_of_anyone():
    w = world()
    # Copies of a camera 3 query in camera 2, under another name: they must not be seen.
    query = int(np.flatnonzero((w["query_camera"] == 3) & (w["query_person"] == 1))[0])
    before = evaluate(**w, trials=2)["per_query"]
    changed = w["gallery_features"].copy()
    changed[w["gallery_camera"] == 2] = w["query_features"][query]
    after = evaluate(**{**w, "gallery_features": changed}, trials=2)["per_query"]
    camera_3 = w["query_camera"] == 3
    assert [v for v, c in zip(before["AP"], camera_3, strict=True) if c] == pytest.approx(
        [v for v, c in zip(after["AP"], camera_3, strict=True) if c]
    )
    assert before["AP"] != after["AP"]  # camera 6 does see them


def test_pool_order_changes_nothing_even_with_ties():
    w = world()
    for key in ("query_features", "gallery_features"):
        w[key] = np.sign(w[key][:, :3])  # a few directions only: ties everywhere
    order = np.random.default_rng(5).permutation(len(w["gallery_name"]))
    moved = {key: w[key][order] for key in w if key.startswith("gallery") and key[8:] != "name"}
    moved["gallery_name"] = [w["gallery_name"][row] for row in order]
    a = evaluate(**w, protocol="sysu/all/multi")
    assert a["counts"]["tied_true_images"] > 100
    assert evaluate(**{**w, **moved}, protocol="sysu/all/multi") == a


def test_perfect_and_random_features():
    w = world(noise=0.01)
    metrics = evaluate(**w, protocol="sysu/all/multi", trials=2)["metrics"]
    assert all(value == 1.0 for value in metrics.values())
    w = world(seed=3, people=30, noise=1e6)
    result = evaluate(**w)
    chance = result["chance"]
    assert abs(result["metrics"]["mAP"] - chance["mAP"]) < 3 * chance["mAP_sigma"]


def test_bad_input():
    def row_set(key, row, value):
        changed = world()[key].copy()
        changed[row] = value
        return {key: changed}

    w = world()
    names = w["gallery_name"]
    check_refusals(
        lambda **changes: evaluate(**(w | changes)),
        [
            (
                row_set("query_features", 4, np.nan),
                r"query features row 4 \(cam\d/000\d/000\d\)",
            ),
            (
                {"gallery_features": np.full_like(w["gallery_features"], np.inf)},
                r"gallery features row \d+ \(cam\d/\d{4}/",
            ),
            (row_set("query_features", 0, 0.0), "row 0 .* is all zeros"),
            (
                {"query_features": w["query_features"][:, :5]},
                "5 columns, gallery features 12",
            ),
            ({"query_person": w["query_person"][:-1]}, "query_person is int64"),
            ({"query_person": w["query_person"] + 100}, r"people \(100..105\)"),
            ({"gallery_camera": w["gallery_camera"] * 1.0}, "gallery_camera is float64"),
            ({"query_name": w["query_name"][:-1]}, "query_name has"),
            ({"gallery_name": names[:-1]}, "gallery_name has"),
            ({"gallery_name": [names[1], *names[1:]]}, "pool rows 0 and 1"),
            ({"query_camera": w["query_camera"] - 2}, r"query .* camera \[1, 4\]"),
            ({"gallery_camera": w["gallery_camera"] * 0 + 6}, r"gallery .* camera \[6\]"),
        ],
    )


def test_bad_options():
    w = world()
    with pytest.raises(
        ValueError, match=r"unknown protocol 'sysu'.*sysu/all/single, sysu/all/multi"
    ):
        evaluate(**w, protocol="sysu")
    with pytest.raises(ValueError, match="unknown protocol"):
        get_protocol("regdb")
    for options in ({"trials": 0}, {"max_rank": 19}, {"block_bytes": 0}):
        with pytest.raises(ValueError, match="expected at least"):
            evaluate(**w, **options)
    w["gallery_camera"] = np.full_like(w["gallery_camera"], 4)
    with pytest.raises(ValueError, match=r"no gallery image .*cameras are \[4\]"):
        evaluate(**w, protocol="sysu/indoor/multi")
