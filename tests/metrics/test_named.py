"""RegDB, LLCM, IDKL's variants and own folders against plain loops, ties and gaps included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metrics import reference
from tests.metrics.problems import (
    EVERYTHING,
    FOLDERS,
    LLCM,
    arguments,
    by_loops,
    check_chance,
    check_refusals,
    draw_by_hand,
    problem,
)
from vireid_jax.metrics import (
    PROTOCOLS,
    evaluate,
    get_protocol,
    rank_metrics,
    sampled_rows,
)
from vireid_jax.metrics.rerank import k_reciprocal


@pytest.mark.parametrize("protocol", [*LLCM, *EVERYTHING, *FOLDERS])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_loops_on_random_problems(protocol, ties):
    kind = "cmc_id" if protocol.startswith("llcm") else "cmc_image"
    trials = 3 if get_protocol(protocol).drawn else 1
    compared = impossible = level = lost = small = 0
    for seed in range(5):
        query, gallery = problem(protocol, seed, ties=ties)
        expected = by_loops(protocol, query, gallery, trials)
        block_bytes = 1 << (27 if seed % 4 else 10)  # 10: the gallery is streamed if not drawn
        options = {"protocol": protocol, "trials": trials, "block_bytes": block_bytes}
        if any(mean is None for _, mean in expected):
            with pytest.raises(ValueError, match="has a true image in the gallery"):
                evaluate(**arguments(query, gallery), **options)
            impossible += 1
            continue
        result = evaluate(**arguments(query, gallery), **options)
        for trial, (found, mean) in zip(result["trials"], expected, strict=True):
            invalid = found.count(None)
            assert (trial["queries"], trial["invalid_queries"]) == (len(found), invalid)
            assert trial["valid_queries"] == len(found) - invalid
            reference.check_trial(trial, mean, kind)
        check_chance(result, expected)
        compared += 1
        level += result["counts"]["tied_true_images"]
        lost += result["counts"]["invalid_queries"]
        small += result["counts"]["gallery_ids"] < 20
    assert compared >= 3 and compared + impossible == 5
    assert lost > 0 and small > 0 and (level > 0) == ties


def test_every_protocol_says_what_it_is():
    letters = {"v2i": "visible", "v2t": "visible", "i2v": "infrared", "t2v": "infrared"}
    for name, rule in PROTOCOLS.items():
        assert {rule.query, rule.gallery} == {"visible", "infrared"}, name
        assert rule.direction == f"{rule.query} to {rule.gallery}", name
        assert rule.explain and "\n" not in rule.explain and len(rule.explain) < 100, name
        assert rule.trials == (10 if rule.drawn else 1), name
        drawn = {bool(rule.drawn), bool(rule.draws), bool(rule.draw_cameras), bool(rule.shots)}
        assert len(drawn) == 1, name
        last = name.split("/")[-1].removeprefix("idkl_")
        assert rule.query == letters.get(last, rule.query), name
        assert rule.cmc == ("id" if name.split("/")[0] in ("sysu", "llcm") else "image"), name


def test_regdb_directions_are_transposes():
    """t2v is v2t with the two sides swapped, and nothing else."""
    visible, infrared = problem("regdb/v2t", 0, ties=True)
    a = evaluate(**arguments(visible, infrared), protocol="regdb/v2t")
    b = evaluate(**arguments(infrared, visible), protocol="regdb/v2t")
    swapped = evaluate(**arguments(infrared, visible), protocol="regdb/t2v")
    assert swapped["direction"] == "infrared to visible"
    for key in ("metrics", "counts", "per_query", "curves", "chance"):
        assert swapped[key] == b[key] != a[key]


def test_llcm_v2i_is_not_what_the_released_code_computes():
    """Two visible images of person 1 and one infrared image a person: an asymmetric problem."""
    visible = {
        "features": [[1.0, 0.1], [0.2, 1.0], [0.0, 1.0]],
        "person": [1, 1, 2],
        "camera": [1, 1, 1],
        "name": ["a", "b", "c"],
    }
    infrared = {
        "features": [[1.0, 0.0], [0.0, 1.0]],
        "person": [1, 2],
        "camera": [2, 2],
        "name": ["d", "e"],
    }
    right = evaluate(**arguments(visible, infrared), protocol="llcm/v2i")
    released = evaluate(**arguments(infrared, visible), protocol="llcm/v2i_released")
    # Visible a finds d first; b finds e first, d second; c finds e first.
    assert right["metrics"]["R1"] == pytest.approx(2 / 3)
    assert right["metrics"]["mAP"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    # Infrared d finds a, b, c; e finds c, b, a.
    assert released["metrics"]["R1"] == 1.0
    assert released["metrics"]["mAP"] == 1.0
    assert right["counts"]["queries"] == 3 and released["counts"]["queries"] == 2
    assert (right["direction"], released["direction"]) == (
        "visible to infrared",
        "infrared to visible",
    )


def test_released_llcm_lists_every_query_and_the_trials_it_was_drawn_in():
    query, gallery = problem("llcm/v2i_released", 3, ties=False)
    result = evaluate(**arguments(query, gallery), protocol="llcm/v2i_released", trials=3)
    rows = result["per_query"]
    drawn = [set(draw_by_hand(query, t)) for t in range(3)]
    assert len(rows["AP"]) == len(query["person"]) == result["counts"]["pool_images"]
    times = [sum(q in d for d in drawn) for q in range(len(query["person"]))]
    assert all(v <= t for v, t in zip(rows["valid_trials"], times, strict=True))
    assert any(t == 0 for t in times) and any(t > 1 for t in times)
    for q, (ap, n) in enumerate(zip(rows["AP"], rows["valid_trials"], strict=True)):
        assert (ap is None) == (n == 0), q
    # A query's rank does not depend on the others: the mean over trials is that of its queries.
    some = [np.mean([rows["AP"][q] for q in d if rows["AP"][q] is not None]) for d in drawn]
    assert [t["mAP"] for t in result["trials"]] == pytest.approx(some)
    queries, images = sampled_rows(
        "llcm/v2i_released",
        trial=2,
        **{k: v for k, v in arguments(query, gallery).items() if not k.endswith("features")},
    )
    assert set(queries.tolist()) == drawn[2]
    assert images.tolist() == list(range(len(gallery["person"])))


def test_llcm_skips_the_own_person_of_the_own_camera_only():
    features = np.eye(4)
    options = {
        "query_features": features[:1],
        "query_person": [1],
        "query_camera": [5],
        "gallery_features": [[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0.5, 0.5, 0, 0]],
        "gallery_person": [1, 2, 1],
        "gallery_name": ["a", "b", "c"],
    }
    seen = evaluate(**options, gallery_camera=[5, 5, 4], protocol="llcm/i2v", trials=1)
    assert seen["per_query"]["best_rank"] == [2]  # person 2 of camera 5 stays, own image goes
    seen = evaluate(**options, gallery_camera=[6, 5, 4], protocol="llcm/i2v", trials=1)
    assert seen["per_query"]["best_rank"] == [1]


def test_what_is_needed_is_asked_for():
    query, gallery = problem("llcm/i2v", 0, ties=False)
    complete = arguments(query, gallery)
    for name, lost, message in (
        ("llcm/i2v", "gallery_camera", "gallery_camera, got None: it draws images of each camera"),
        ("llcm/i2v", "query_camera", "query_camera, got None: queries skip images of their own"),
        ("llcm/i2v", "gallery_name", "gallery_name, got None: its draw goes by the names"),
        ("llcm/v2i_released", "query_name", "query_name, got None: its draw goes by the names"),
        ("sysu/all/single", "query_camera", "query_camera, got None: queries of camera 3 skip"),
    ):
        some = {k: v for k, v in complete.items() if k != lost}
        with pytest.raises(ValueError, match=f"{name} needs {message}"):
            evaluate(**some, protocol=name)
    # Elsewhere neither is needed, and what is given of them changes no number.
    for name in (*EVERYTHING, *FOLDERS):
        bare = {k: v for k, v in complete.items() if k.split("_")[1] in ("features", "person")}
        full, less = evaluate(**complete, protocol=name), evaluate(**bare, protocol=name)
        assert full["metrics"] == less["metrics"] and full["gallery"] == "all"
        assert set(full["per_query"]) - set(less["per_query"]) == {"name", "camera"}
    wrong = [3] * len(query["person"])
    other = {"protocol": "folders/i2v"}
    check_refusals(
        lambda **changes: evaluate(**complete | changes),
        [
            (
                {"query_camera": wrong, "protocol": "llcm/i2v"},
                r"query of llcm/i2v: got images of camera \[3\]",
            ),
            (
                {"protocol": "regdb/v2t", "trials": 10},
                "regdb/v2t draws nothing, so it has one trial, got 10",
            ),
            (
                other | {"gallery": "official"},
                r"folders/i2v has no gallery 'official'.*nothing is drawn",
            ),
            (other | {"cmc": "rank"}, "cmc is 'rank', expected one of id, image"),
            (other | {"rerank": "none"}, "rerank is 'none', expected one of None, all, queries"),
            (other | {"ties": "first"}, "unknown ties 'first'"),
            (
                {"query_features": [1.0, 2.0, 3.0], "query_person": [1]},
                r"query features are float64 \[3\], expected a real mat",
            ),
        ],
    )


def test_cmc_in_the_other_convention():
    query, gallery = problem("regdb/v2t", 1, ties=False)
    both = {}
    for cmc in ("image", "id"):
        both[cmc] = evaluate(**arguments(query, gallery), protocol="regdb/v2t", cmc=cmc)
        assert both[cmc]["cmc"] == cmc
        curve = both[cmc]["curves"][f"cmc_{cmc}"]
        for rank in (1, 5, 10, 20):
            assert both[cmc]["metrics"][f"R{rank}"] == pytest.approx(curve[rank - 1])
    assert both["id"]["metrics"]["R1"] == both["image"]["metrics"]["R1"]
    assert both["id"]["metrics"]["R10"] > both["image"]["metrics"]["R10"]
    assert both["id"]["curves"] == both["image"]["curves"]


@given(
    seed=st.integers(0, 10**6),
    protocol=st.sampled_from([*LLCM, *EVERYTHING]),
    exponent=st.integers(-20, 20),
    ties=st.booleans(),
)
def test_properties(seed, protocol, exponent, ties):
    """Order of the sides, scale and precision change nothing; arguments are left as they were."""
    query, gallery = problem(protocol, seed, ties=ties)
    options = {"protocol": protocol, "trials": 2 if get_protocol(protocol).drawn else 1}
    given_ = {
        k: np.array(v) if k.split("_")[1] != "name" else v
        for k, v in arguments(query, gallery).items()
    }
    copies = {k: np.array(v) for k, v in given_.items()}
    for value in given_.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    try:
        result = evaluate(**given_, **options)
    except ValueError as error:
        assert "has a true image" in str(error)
        return
    for key, value in given_.items():
        np.testing.assert_array_equal(value, copies[key])

    scaled = {k: v * 2.0**exponent if "features" in k else v for k, v in given_.items()}
    assert evaluate(**scaled, **options) == result

    rng = np.random.default_rng(seed)
    moved = dict(given_)
    for which in ("query", "gallery"):
        order = rng.permutation(len(moved[f"{which}_person"]))
        for key in ("features", "person", "camera"):
            moved[f"{which}_{key}"] = moved[f"{which}_{key}"][order]
        moved[f"{which}_name"] = [moved[f"{which}_name"][row] for row in order]
    again = evaluate(**moved, **options)
    drawn_gallery = get_protocol(protocol).drawn == "gallery"
    if drawn_gallery or not result["counts"]["tied_true_images"]:
        for name, value in result["metrics"].items():
            assert again["metrics"][name] == pytest.approx(value, abs=1e-12)
        a, b = (
            dict(zip(r["per_query"]["name"], r["per_query"]["best_rank"], strict=True))
            for r in (result, again)
        )
        assert a == b
    assert again["counts"] == result["counts"]


def test_ties_enclose_the_stable_order():
    for protocol in (*LLCM, "regdb/t2v"):
        query, gallery = problem(protocol, 5, ties=True)
        worst, stable, best = (
            evaluate(**arguments(query, gallery), protocol=protocol, ties=ties)
            for ties in ("pessimistic", "stable", "optimistic")
        )
        assert (worst["ties"], best["ties"]) == ("pessimistic", "optimistic")
        for name in ("mAP", "R1"):
            low, middle, high = (r["metrics"][name] for r in (worst, stable, best))
            assert low <= middle <= high, (protocol, name)
        assert worst["metrics"]["mAP"] < best["metrics"]["mAP"], protocol


@pytest.mark.parametrize("protocol", ["llcm/i2v", "llcm/v2i_released", "llcm/idkl_v2i"])
@pytest.mark.parametrize("scope", ["all", "queries"])
def test_reranking_takes_each_trials_own_images(protocol, scope):
    query, gallery = problem(protocol, 25, ties=False)
    rule = get_protocol(protocol)
    trials = 2 if rule.drawn else 1
    result = evaluate(
        **arguments(query, gallery), protocol=protocol, trials=trials, rerank=scope, block_bytes=1
    )
    assert result["rerank"] == scope
    for t, trial in enumerate(result["trials"]):
        rows, columns = list(range(len(query["person"]))), list(range(len(gallery["person"])))
        if rule.drawn == "query":
            rows = draw_by_hand(query, t)
        elif rule.drawn:
            columns = draw_by_hand(gallery, t)
        distance = k_reciprocal(query["features"][rows], gallery["features"][columns], scope=scope)
        person, camera = (np.array(query[k])[rows, None] for k in ("person", "camera"))
        others = np.array(gallery["person"])[columns]
        excluded = (person == others) & (camera == np.array(gallery["camera"])[columns])
        assert excluded.any()
        excluded &= protocol != "llcm/idkl_v2i"
        expected = rank_metrics(distance, person[:, 0], others, excluded=excluded)
        assert trial["mAP"] == pytest.approx(expected.mAP, abs=1e-6)
        assert trial["R1"] == pytest.approx(expected.cmc_id[0])
        assert trial["valid_queries"] == expected.counts["valid_queries"]
    plain = evaluate(**arguments(query, gallery), protocol=protocol, trials=trials)
    assert plain["rerank"] is None and plain["metrics"]["mAP"] != result["metrics"]["mAP"]
