"""Scores of features and of images, their files, and what is refused before anything is trained."""

import json

import numpy as np
import pytest

from configs import smcl
from tests.support import fused
from tests.support.fused import FUSIONS, naive
from tests.support.recipes import people, small
from tests.support.rows import each
from vireid_jax import evaluate, main
from vireid_jax.data import corrupt, datasets
from vireid_jax.types import Records, Retrieval, Stopped

PROTOCOLS = ("sysu/all/single", "sysu/indoor/single")


def _retrieval():
    """Queries of cameras 3 and 6, a gallery of cameras 1, 2, 4 and 5."""
    both = ([(p, c) for c in cameras for p in range(5)] for cameras in ((3, 6), (1, 2, 4, 5)))
    return Retrieval(*(people(rows, per=1) for rows in both))


def _results(trials=2):
    retrieval = _retrieval()
    rng = np.random.default_rng(4)
    sides = [
        {
            "headline": np.eye(5, dtype=np.float32)[side.person],
            "noise": rng.normal(size=(len(side), 5)).astype(np.float32),
        }
        for side in retrieval
    ]
    return list(evaluate.score(*sides, retrieval, protocol_names=PROTOCOLS, trials=trials))


def test_every_feature_is_scored_under_every_protocol_headline_first():
    results = _results()
    assert [(r["protocol"], r["feature"]) for r in results] == [
        (protocol, feature) for protocol in PROTOCOLS for feature in ("headline", "noise")
    ]
    for result in results:
        assert len(result["trials"]) == 2
        if result["feature"] == "headline":
            assert result["metrics"]["mAP"] == 1.0
        else:
            assert result["metrics"]["mAP"] < 0.9
    # Two of the four gallery cameras are indoors.
    assert [r["counts"]["gallery_images"] for r in results] == [20, 20, 10, 10]


def test_scores_are_computed_as_they_are_asked_for():
    retrieval = _retrieval()
    features = [{"x": np.eye(5)[side.person]} for side in retrieval]
    results = evaluate.score(
        *features, retrieval, protocol_names=["sysu/all/single", "unknown"], trials=1
    )
    assert next(results)["feature"] == "x"
    with pytest.raises(ValueError, match="unknown protocol 'unknown'"):
        next(results)


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_results_are_strict_json_whose_queries_average_to_the_score(tmp_path):
    results = _results()
    folder = tmp_path / "eval" / "7"
    evaluate.save_results(results, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{p.replace('/', '-')}-{f}.json" for p in PROTOCOLS for f in ("headline", "noise")
    ), "a file each and nothing temporary"
    for result in results:
        path = folder / f"{result['protocol'].replace('/', '-')}-{result['feature']}.json"
        read = json.loads(path.read_text(), parse_constant=_refuse)
        assert read == json.loads(json.dumps(result))
        queries = read["per_query"]
        assert queries["name"] == _retrieval().query.name
        # Every query is valid in every trial here, so the mean of means is the mean.
        assert queries["valid_trials"] == [2] * 10
        for name, column in (("mAP", "AP"), ("mINP", "INP")):
            assert np.mean(queries[column]) == pytest.approx(read["metrics"][name], abs=1e-12)
    # Scored again, the files are replaced.
    evaluate.save_results(results[:1], folder)
    assert len(list(folder.iterdir())) == 4


def test_a_result_that_is_not_finite_is_refused_and_the_old_file_stays(tmp_path):
    result = {"protocol": "a/b", "feature": "x", "metrics": {"mAP": 0.5}}
    evaluate.save_results([result], tmp_path)
    with pytest.raises(ValueError):
        evaluate.save_results([result | {"metrics": {"mAP": float("nan")}}], tmp_path)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["metrics"] == {"mAP": 0.5}


def test_rows_of_other_galleries_and_test_images_do_not_replace_each_other(tmp_path):
    result = {"protocol": "a/b", "feature": "x", "gallery": "agw", "test_set": "0123456789ab"}
    others = [{"gallery": "official"}, {"test_set": "ba9876543210"}, {"flip": True}]
    evaluate.save_results([result | change for change in ({}, *others)], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a-b-official-x-01234567.json",
        "a-b-x-01234567.json",
        "a-b-x-ba987654.json",
        "a-b-x-flip-01234567.json",
    ]


# --- A scorer


@pytest.fixture(scope="module")
def parts():
    return fused.make_parts()


def scorer(parts, tmp_path, should_stop=lambda: False, **changes):
    embed, _, mesh = parts or (None, None, None)
    c = small("pdm", "synthetic", tmp_path)
    c.eval.update({"batch_size": 8, "trials": 2, "baselines": False, **changes})
    return evaluate.Scorer(
        options=evaluate.Options(**c.eval),
        image_size=fused.SIZE,
        mesh=mesh,
        embed=embed,
        fusions=FUSIONS,
        should_stop=should_stop,
    )


def problem():
    """A few people before SYSU-MM01's cameras; noise alone tells their images apart."""
    query = people([(p, c) for p in range(4) for c in (3, 6)])
    gallery = people([(p, c) for p in range(6) for c in (1, 2, 4, 5)])
    rng = np.random.default_rng(0)
    filled = []
    for side in (query, gallery):
        own = rng.integers(0, 256, (6, *fused.SIZE, 3))[side.person]
        images = np.clip(own + rng.normal(0, 60, own.shape), 0, 255).astype(np.uint8)
        filled.append(Records(images, side.person, side.camera, side.modality, side.name))
    return Retrieval(*filled)


def rows(results):
    return {(r["protocol"], r["feature"], bool(r.get("flip")), r.get("rerank")): r for r in results}


def test_accumulated_and_stored_rows_have_the_same_scores(parts, tmp_path):
    protocols = ("sysu/all/single", "sysu/indoor/single")
    found = [
        rows(
            scorer(parts, tmp_path, fuse=fuse, protocols=protocols, baselines=True).test(
                parts[1], problem(), lambda: parts[1]
            )
        )
        for fuse in evaluate.FUSE
    ]
    assert list(found[0]) == list(found[1])
    names = [feature for protocol, feature, *_ in found[0] if protocol == "sysu/indoor/single"]
    assert names == ["sum", "weighted", "plain"]
    for key, result in found[0].items():
        other = found[1][key]
        assert result["metrics"] == pytest.approx(other["metrics"], abs=1e-12), key
        assert result["per_query"]["AP"] == pytest.approx(other["per_query"]["AP"], abs=1e-12)
    untrained = found[0]["sysu/all/single", "untrained network", False, None]
    headline = found[0]["sysu/all/single", "sum", False, None]
    assert untrained["metrics"] == headline["metrics"], "of the headline, with the same weights"
    assert 0.2 < headline["metrics"]["mAP"] < 1


def test_the_other_direction_searches_with_the_other_side(parts, tmp_path):
    """A protocol whose queries are visible ranks the columns of the matrix."""
    images = problem()
    for modality in (images.query, images.gallery):
        modality.camera[:] = 1 + modality.modality
    name = "regdb/v2t"
    s = scorer(parts, tmp_path, protocols=(name,))
    found = rows(s.test(parts[1], images))[name, "sum", False, None]
    query, gallery = map(naive, images)
    similarity = sum(query[p] @ gallery[p].T for p in "ab").T
    assert found["counts"]["queries"] == len(images.gallery)
    for row in range(len(images.gallery)):
        order = np.argsort(-similarity[row], kind="stable")
        hits = np.flatnonzero(images.query.person[order] == images.gallery.person[row])
        expected = np.mean((np.arange(len(hits)) + 1) / (hits + 1)) if len(hits) else None
        assert found["per_query"]["AP"][row] == (
            None if expected is None else pytest.approx(expected)
        )


def test_validation_is_of_the_headline(parts, tmp_path):
    s = scorer(parts, tmp_path)
    results = rows(
        scorer(parts, tmp_path, protocols=("sysu/all/single",)).test(parts[1], problem())
    )
    expected = results["sysu/all/single", "sum", False, None]["metrics"]["mAP"]
    assert s.validate(parts[1], problem())["mAP"] == pytest.approx(expected)


def test_rows_of_mirrored_and_of_corrupted_images(parts, tmp_path):
    protocols = ("sysu/all/single",)
    flipped = rows(
        scorer(parts, tmp_path, flip=True, protocols=protocols).test(parts[1], problem())
    )
    assert [key[1:3] for key in flipped] == [
        (name, flip) for flip in (False, True) for name in ("sum", "weighted", "plain")
    ]
    damaged = {}
    for fuse in evaluate.FUSE:
        s = scorer(
            parts, tmp_path, fuse=fuse, corrupt="visible:gaussian_noise:5", corrupt_repeats=2,
            protocols=protocols,
        )  # fmt: skip
        damaged[fuse] = {r["feature"]: r["metrics"]["mAP"] for r in s.test(parts[1], problem())}
    assert damaged["accumulate"] == pytest.approx(damaged["store"])
    clean = flipped["sysu/all/single", "sum", False, None]["metrics"]["mAP"]
    assert damaged["store"]["sum"] != clean


def test_reranking_needs_stored_vectors(parts, tmp_path):
    s = scorer(parts, tmp_path, rerank="all", protocols=("sysu/all/single",))
    with pytest.raises(ValueError, match=r"eval.rerank is 'all'.*of pdm.*--config.eval.fuse=store"):
        s.options.accumulates(FUSIONS, "pdm")
    assert not s.options.accumulates({}, "smcl")
    s = scorer(parts, tmp_path, rerank="all", fuse="store", protocols=("sysu/all/single",))
    assert not s.options.accumulates(FUSIONS, "pdm")
    assert ("sysu/all/single", "sum", False, "all") in rows(s.test(parts[1], problem()))


def test_a_sum_of_similarities_has_no_distance(parts, tmp_path):
    for fuse in evaluate.FUSE:
        s = scorer(parts, tmp_path, distance="euclidean", fuse=fuse)
        with pytest.raises(ValueError, match=r"eval.distance is 'euclidean', but pdm ranks by a s"):
            s.options.accumulates(FUSIONS, "pdm")
    assert not s.options.accumulates({}, "smcl")


def test_a_protocol_under_which_nobody_can_be_found_is_refused_before_training(tmp_path):
    """Validation people that no indoor camera has seen, or the forbidden one alone."""
    everywhere = Retrieval(people([(1, 3), (2, 6)]), people([(1, 1), (2, 4)]))
    outdoors = Retrieval(people([(1, 3), (2, 6)]), people([(2, 4), (1, 2)]))
    s = scorer(None, tmp_path, protocols=("sysu/all/single",), validation="sysu/indoor/single")
    evaluate.check_protocols(s.options, everywhere, everywhere)
    evaluate.check_protocols(s.options, outdoors, None)
    with pytest.raises(ValueError, match=r"sysu/indoor/single: none .*another eval.validation"):
        evaluate.check_protocols(s.options, everywhere, outdoors)
    strangers = Retrieval(people([(1, 3), (2, 6)]), people([(3, 1), (4, 2)]))
    with pytest.raises(ValueError, match=r"sysu/all/single: none .*out of eval.protocols"):
        evaluate.check_protocols(s.options, strangers, None)


def test_a_stop_is_obeyed_between_corrupted_images(tmp_path):
    polls = iter([False, False, True])
    s = scorer(None, tmp_path, should_stop=lambda: next(polls), batch_size=4)
    records = people([(p, 1) for p in range(6)], size=fused.SIZE)
    with pytest.raises(Stopped):
        s._damage(records, corrupt.parse("visible:fog:1"), 0)
    whole = scorer(None, tmp_path, batch_size=99)._damage(records, corrupt.parse("visible"), 0)
    parted = scorer(None, tmp_path, batch_size=5)._damage(records, corrupt.parse("visible"), 0)
    np.testing.assert_array_equal(whole.images, parted.images)
    assert whole.images.any() and not records.images.any()
    assert s._damage(records, corrupt.parse("infrared"), 0) is records


# --- A folder without a run -----------------------------------------------------------------


@each("step", ["last", "best", "7"])
def test_scoring_a_folder_without_checkpoints_says_what_is_there(step, tmp_path, monkeypatch):
    def load(**options):
        raise AssertionError("data is loaded before the folder is looked at")

    monkeypatch.setattr(datasets, "load", load)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "other").mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError) as error:
        main.score_run(smcl.get_config(), tmp_path, step=step)
    message = str(error.value)
    assert f"{tmp_path} holds notes.txt, other/; train first" in message
    assert f"no checkpoint {'of step 7 ' * (step == '7')}in {tmp_path / 'checkpoints'}" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "other"]


def test_scoring_an_unknown_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'newest', expected 'last', 'best' or a number"):
        main.score_run(smcl.get_config(), tmp_path, step="newest")
