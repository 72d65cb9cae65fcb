"""Similarities that are sums: accumulated, stored and by loops they are the same."""

import numpy as np
import pytest

from tests.test_released import small
from tests.test_scoring import people
from vireid_jax import embedding, evaluate
from vireid_jax.data.augment import MEAN, STD
from vireid_jax.metrics import PROTOCOLS
from vireid_jax.runtime import devices
from vireid_jax.types import INFRARED, Method, Records, Retrieval

SIZE = (16, 16)  # the least that can be corrupted
PIXELS = SIZE[0] * SIZE[1] * 3
FUSIONS = {"sum": {"a": 1.0, "b": 1.0}, "weighted": {"a": 0.1, "b": 0.9}}
VARIABLES = {
    name: np.random.default_rng(n).normal(size=(PIXELS, width)).astype(np.float32)
    for n, (name, width) in enumerate({"plain": 3, "a": 4, "b": 7}.items())
}


def embed_images(variables, images, modality):
    """Three features; a and b are of length 1, as those of the methods are."""
    flat = images.reshape(len(images), -1)
    found = {name: flat @ w + modality for name, w in variables.items()}
    for name in ("a", "b"):
        found[name] = found[name] / ((found[name] ** 2).sum(1, keepdims=True)) ** 0.5
    return found


def naive(records, mirror=False):
    """The same of each image by itself, in float64."""
    images = records.images[:, :, ::-1] if mirror else records.images
    flat = ((images / 255.0 - MEAN) / STD).reshape(len(images), -1)
    found = {n: flat @ w + records.modality[:, None] for n, w in VARIABLES.items()}
    for name in ("a", "b"):
        found[name] /= np.linalg.norm(found[name], axis=1, keepdims=True)
    return found


def records(count, modality, seed):
    rng = np.random.default_rng(seed)
    return Records(
        rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8),
        (np.arange(count) % 5).astype(np.int32),
        np.full(count, 3 if modality == INFRARED else 1, np.int32),
        np.full(count, modality, np.int8),
        [f"cam{modality}/{n % 5:04d}/{n:04d}" for n in range(count)],
    )


@pytest.fixture(scope="module")
def parts():
    mesh = devices.make_mesh()
    method = Method(lambda key: VARIABLES, None, embed_images, fusions=FUSIONS)
    return embedding.make_embed(method, mesh), devices.place(VARIABLES, mesh), mesh


def sides(queries=11, images=17):
    return Retrieval(records(queries, 1, 0), records(images, 0, 1))


def options(mesh, **changes):
    return dict(mesh=mesh, image_size=SIZE, batch_size=8) | changes


@pytest.mark.parametrize("memory_bytes", [1, 300, 1 << 30])  # one row, some, all
@pytest.mark.parametrize("shape", [(11, 17), (17, 11), (5, 5)])
def test_accumulated_sums_are_those_of_loops(parts, shape, memory_bytes):
    embed, variables, mesh = parts
    retrieval = sides(*shape)
    found = embedding.accumulate(
        embed, variables, retrieval, FUSIONS, memory_bytes=memory_bytes, **options(mesh)
    )
    query, gallery = map(naive, retrieval)
    assert list(found.similarity) == list(FUSIONS), "the headline comes first"
    for row, weights in FUSIONS.items():
        expected = sum(w * query[p] @ gallery[p].T for p, w in weights.items())
        assert found.similarity[row].shape == shape and found.similarity[row].dtype == np.float32
        np.testing.assert_allclose(found.similarity[row], expected, atol=2e-6)
    for side, features in ((query, found.query), (gallery, found.gallery)):
        assert list(features) == ["plain"], "what is summed over is not kept"
        np.testing.assert_allclose(features["plain"], side["plain"], rtol=1e-4, atol=1e-4)


def test_both_sides_may_hold_both_modalities(parts):
    embed, variables, mesh = parts
    mixed = records(9, 0, 2)
    mixed.modality[[1, 4, 5]] = INFRARED
    retrieval = Retrieval(mixed, records(12, 1, 3))
    found = embedding.accumulate(embed, variables, retrieval, FUSIONS, **options(mesh))
    query, gallery = map(naive, retrieval)
    expected = query["a"] @ gallery["a"].T + query["b"] @ gallery["b"].T
    np.testing.assert_allclose(found.similarity["sum"], expected, atol=2e-6)


def test_with_mirror_images_vectors_are_added_and_not_scaled_again(parts):
    embed, variables, mesh = parts
    retrieval = sides()
    found = embedding.accumulate(embed, variables, retrieval, FUSIONS, flip=True, **options(mesh))
    both = [
        {
            n: (x + m) / 2
            for (n, x), m in zip(naive(r).items(), naive(r, True).values(), strict=True)
        }
        for r in retrieval
    ]
    expected = sum(w * both[0][p] @ both[1][p].T for p, w in FUSIONS["weighted"].items())
    np.testing.assert_allclose(found.similarity["weighted"], expected, atol=2e-6)
    plain, mirrored = naive(retrieval.query)["plain"], naive(retrieval.query, True)["plain"]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (plain, mirrored)]
    np.testing.assert_allclose(found.query["plain"], sum(unit) / 2, rtol=1e-4, atol=1e-5)


def test_stored_vectors_have_the_sums_as_inner_products():
    found = [embedding.join(naive(side), FUSIONS) for side in sides()]
    assert list(found[0]) == ["sum", "weighted", "plain"]
    query, gallery = map(naive, sides())
    for row, weights in FUSIONS.items():
        expected = sum(w * query[p] @ gallery[p].T for p, w in weights.items())
        np.testing.assert_allclose(found[0][row] @ found[1][row].T, expected, atol=1e-6)


def test_without_fusions_nothing_changes():
    features = naive(records(4, 0, 0))
    assert embedding.join(features, {}) == features
    assert embedding.join({}, FUSIONS) == {}, "of no images"


# --- Scores -------------------------------------------------------------------------------


def scorer(parts, tmp_path, fusions=FUSIONS, **changes):
    embed, _, mesh = parts
    c = small("pdm", "synthetic", tmp_path)
    c.eval.update({"batch_size": 8, "trials": 2, "baselines": False, **changes})
    return evaluate.Scorer(
        options=evaluate.Options(**c.eval),
        image_size=SIZE,
        mesh=mesh,
        embed=embed,
        fusions=fusions,
    )


def problem():
    """A few people before SYSU-MM01's cameras; noise alone tells their images apart."""
    query = people([(p, c) for p in range(4) for c in (3, 6)])
    gallery = people([(p, c) for p in range(6) for c in (1, 2, 4, 5)])
    rng = np.random.default_rng(0)
    filled = []
    for side in (query, gallery):
        own = rng.integers(0, 256, (6, *SIZE, 3))[side.person]
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
    name = next(n for n, p in PROTOCOLS.items() if p.query == "visible" and n == "regdb/v2t")
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
