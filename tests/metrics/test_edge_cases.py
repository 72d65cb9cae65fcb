"""Where the released evaluators stop, or return a wrong number without a word."""

import functools
import subprocess
import sys

import numpy as np
import pytest

from tests.metrics.problems import check_refusals, peak_bytes
from vireid_jax.metrics import evaluate, rank_features


def problem(query, gallery, *, width=40, noise=0.0):
    """Arguments of `evaluate` from lists of (person, camera); a person's feature is an axis."""
    out = {}
    for what, rows in (("query", query), ("gallery", gallery)):
        rng = np.random.default_rng(len(what))
        person = [p for p, _ in rows]
        features = np.eye(width)[person] if rows else np.zeros((0, width))
        out[f"{what}_features"] = features + noise * rng.normal(size=features.shape)
        out[f"{what}_person"] = person
        out[f"{what}_camera"] = [c for _, c in rows]
        out[f"{what}_name"] = [f"{what}{n:04d}" for n in range(len(rows))]
    return out


def run(query, gallery, *, protocol="sysu/all/single", noise=0.0, **options):
    return evaluate(**problem(query, gallery, noise=noise), protocol=protocol, **options)


EVERYONE = [(p, c) for p in range(25) for c in (1, 4)]  # a gallery of 25 people
PROTOCOLS = ("sysu/all/single", "regdb/t2v", "llcm/i2v", "llcm/idkl_i2v", "folders/i2v")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_queries_without_a_match_count_as_if_they_were_dropped(protocol):
    known = [(p, 6) for p in range(10)]
    options = {"protocol": protocol, "noise": 0.4}
    without = run(known, EVERYONE, **options)
    with_strangers = run([*known, (30, 6), (31, 6)], EVERYONE, **options)
    assert with_strangers["metrics"] == without["metrics"]
    assert 0.05 < without["metrics"]["mAP"] < 0.95
    counts = with_strangers["counts"]
    assert (counts["queries"], counts["valid_queries"], counts["invalid_queries"]) == (12, 10, 2)
    assert with_strangers["per_query"]["AP"][10:] == [None, None]
    assert with_strangers["per_query"]["valid_trials"][10:] == [0, 0]


def test_no_query_has_a_match():
    rows = [
        ({"query": query, "gallery": gallery, "protocol": protocol}, message)
        for protocol in PROTOCOLS
        for query, gallery, message in (
            ([(30, 6), (31, 6)], EVERYONE, r"2 people \(30\.\.31\).*one split and number people"),
            ([], EVERYONE, "there are no queries"),
            ([(1, 6)], [], r"no gallery images|no gallery image is from a camera"),
        )
    ]
    excluded = r"every true image is excluded .*check the camera numbers"
    rows += [
        ({"query": [(1, 3), (2, 3)], "gallery": [(1, 2), (2, 2)]}, excluded),
        (
            {"query": [(1, 5), (2, 6)], "gallery": [(1, 5), (2, 6)], "protocol": "llcm/i2v"},
            excluded,
        ),
    ]
    check_refusals(run, rows)


def test_a_query_that_sees_nothing_at_all():
    """One query of camera 3 and a gallery of camera 2; the query of camera 6 is fine."""
    result = run([(1, 3), (1, 6)], [(1, 2), (2, 2)])
    assert result["per_query"]["AP"] == [None, 1.0]
    assert result["counts"]["invalid_queries"] == 1
    gallery = [(p, c) for p in range(22) for c in (1, 2)] + [(30, 2)]
    result = run([(30, 3), (30, 6), (1, 3)], gallery)
    assert result["per_query"]["valid_trials"] == [0, 10, 10]
    assert result["counts"]["gallery_ids"] == 23


def test_a_query_that_loses_its_own_images_alone():
    for people in (20, 21, 25):
        gallery = [(p, c) for p in range(people) for c in (5, 7)][1:]  # person 0: camera 7 only
        query = [(0, 7), *((p, 6) for p in range(people))]
        result = run(query, gallery, protocol="llcm/i2v")
        assert result["per_query"]["valid_trials"] == [0] + [10] * people
        assert result["metrics"]["R1"] == result["metrics"]["mAP"] == 1.0


def test_queries_that_see_few_and_many_people():
    """Camera 3 sees 5 people of camera 1, camera 6 those and 25 of camera 2."""
    gallery = [(p, 1) for p in range(5)] + [(p, 2) for p in range(30)]
    query = [(p, c) for p in range(5) for c in (3, 6)]
    result = run(query, gallery, noise=0.5)
    assert result["counts"]["valid_queries"] == 10
    assert result["curves"]["cmc_id"][-1] <= 1.0
    by_camera = {
        c: [r for r, k in zip(result["per_query"]["best_rank_id"], query, strict=True) if k[1] == c]
        for c in (3, 6)
    }
    assert max(by_camera[3]) <= 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_small_galleries_have_curves_of_full_length(protocol):
    gallery = [(p, 1) for p in range(5)]
    result = run([(p, 6) for p in range(5)], gallery, protocol=protocol, noise=0.9, max_rank=30)
    for curve in result["curves"].values():
        assert len(curve) == 30
        assert curve[4:] == [1.0] * 26  # of 5 images, the last known value goes on
        assert curve[0] < 1
    assert result["metrics"]["R20"] == 1.0
    assert result["counts"]["gallery_ids"] == 5


def test_features_that_collapsed_are_at_chance_and_say_so():
    """All features alike: the released code reads anything from 0 to 1 here."""
    query, gallery = [(p, 6) for p in range(25)], EVERYONE
    complete = problem(query, gallery)
    for side in ("query", "gallery"):
        complete[f"{side}_features"] = np.ones_like(complete[f"{side}_features"])
    found = {
        ties: evaluate(**complete, protocol="regdb/t2v", ties=ties)
        for ties in ("stable", "pessimistic", "optimistic")
    }
    assert found["stable"]["counts"]["tied_true_images"] == 50  # both images of every query
    assert found["optimistic"]["metrics"]["mAP"] == 1.0
    worst = (1 / 49 + 2 / 50) / 2
    assert found["pessimistic"]["metrics"]["mAP"] == pytest.approx(worst)
    # Lower gallery index first: person p's images are 2p and 2p + 1.
    stable = np.mean([(1 / (2 * p + 1) + 2 / (2 * p + 2)) / 2 for p in range(25)])
    assert found["stable"]["metrics"]["mAP"] == pytest.approx(stable)
    assert found["stable"]["metrics"]["R1"] == pytest.approx(1 / 25)


def test_features_that_are_not_finite_are_named():
    query = [(p, 6) for p in range(4)]
    gallery = [(p, 4) for p in range(4)]
    for side, row, value in (("query", 2, np.nan), ("gallery", 3, np.inf)):
        broken = problem(query, gallery)
        broken[f"{side}_features"][row, 5] = value
        for protocol in (*PROTOCOLS, "llcm/v2i_released"):
            with pytest.raises(ValueError, match=rf"{side} features row {row} \({side}000{row}\)"):
                evaluate(**broken, protocol=protocol)
        # A gallery that is not normalized in memory.
        with pytest.raises(ValueError, match=rf"{side} features row {row} \({side}000{row}\)"):
            evaluate(**broken, protocol="folders/i2v", block_bytes=1 << 8)


def test_other_kinds_of_arguments():
    """Lists, narrow integers, float16, memory-mapped files and integers as features."""
    rng = np.random.default_rng(3)
    query, gallery = [(p, 6) for p in range(8)], EVERYONE[:20]
    complete = problem(query, gallery)
    for side in ("query", "gallery"):
        shape = complete[f"{side}_features"].shape
        complete[f"{side}_features"] = rng.integers(-3, 4, shape).astype(np.float64)
    expected = evaluate(**complete)
    for change in (
        lambda key, v: np.asarray(v, np.float16) if "features" in key else v,
        lambda key, v: np.asarray(v, np.int8) if "features" in key else v,
        lambda key, v: v.tolist() if "features" in key else v,
        lambda key, v: np.asarray(v, np.uint8) if key.endswith(("person", "camera")) else v,
        lambda key, v: tuple(v) if not key.endswith("features") else v,
        lambda key, v: np.array(v) if key.endswith("name") else v,
        lambda key, v: np.asfortranarray(v) if "features" in key else v,
    ):
        other = evaluate(**{key: change(key, value) for key, value in complete.items()})
        assert other["metrics"] == pytest.approx(expected["metrics"], abs=1e-12)
        assert other["per_query"]["name"] == expected["per_query"]["name"]


def test_what_looks_like_a_tensor_is_taken_off_its_graph_and_device():
    class Tensor:
        dtype = "torch.float32"

        def __init__(self, values, steps=("detach", "cpu")):
            self.values, self.steps = values, steps

        def detach(self):
            assert self.steps[0] == "detach"
            return Tensor(self.values, self.steps[1:])

        def cpu(self):
            assert self.steps == ("cpu",)
            return self.values

    complete = problem([(p, 6) for p in range(8)], EVERYONE[:20], noise=0.4)
    tensors = {k: v if k.endswith("name") else Tensor(np.asarray(v)) for k, v in complete.items()}
    assert evaluate(**tensors) == evaluate(**complete)


@pytest.mark.slow
@pytest.mark.torch
def test_tensors_of_pytorch():
    """As a model leaves them: with a gradient, in half precision; and labels."""
    torch = pytest.importorskip("torch")
    complete = problem([(p, 6) for p in range(8)], EVERYONE[:20], noise=0.4)
    features = [k for k in complete if k.endswith("features")]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensors = {k: torch.tensor(complete[k]).to(dtype).requires_grad_() for k in features}
        labels = {k: torch.tensor(v) for k, v in complete.items() if "name" not in k}
        names = {k: v for k, v in complete.items() if "name" in k}
        kept = {k: v.detach().clone() for k, v in tensors.items()}
        same = {k: v.detach().float().numpy() for k, v in tensors.items()}
        for protocol in PROTOCOLS:
            found = evaluate(**labels | names | tensors, protocol=protocol)
            assert found == evaluate(**complete | same, protocol=protocol)
        assert all(torch.equal(kept[k], v) and v.requires_grad for k, v in tensors.items())
        sides = (tensors["query_features"], tensors["gallery_features"])
        people = (labels["query_person"], labels["gallery_person"])
        assert rank_features(*sides, *people).ranking.mAP == pytest.approx(
            found["metrics"]["mAP"], abs=1e-6
        )


def test_neither_jax_nor_tensorflow_is_imported():
    """A user of PyTorch gets the metrics without either."""
    code = """
import sys
from vireid_jax.metrics import evaluate, format_table
import numpy as np
for protocol in ("regdb/v2t", "llcm/i2v"):
    result = evaluate(
        np.eye(3), np.eye(3), query_person=[1, 2, 3], gallery_person=[1, 2, 3],
        query_camera=[1, 1, 1], gallery_camera=[2, 2, 2], gallery_name=["a", "b", "c"],
        protocol=protocol,
    )
    assert result["metrics"]["R1"] == 1.0
    format_table({(protocol, "bn"): result})
heavy = {"jax", "jaxlib", "flax", "tensorflow", "tensorflow_datasets", "torch", "scipy"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.parametrize("protocol", ["folders/i2v", "llcm/v2i_released"])
def test_a_whole_gallery_needs_no_copy(protocol, tmp_path):
    """Beyond the features, `block_bytes` of memory; the same numbers whatever it is."""
    rng = np.random.default_rng(0)
    people, width, size = 300, 64, 6000
    person = rng.integers(0, people, size)
    center = rng.normal(size=(people, width))
    query_person = np.arange(people)
    path = tmp_path / "gallery.npy"
    np.save(path, (center[person] + 1.5 * rng.normal(size=(size, width))).astype(np.float32))
    query = center + 1.5 * rng.normal(size=(people, width))
    gallery = np.load(path, mmap_mode="r")

    def score(block_bytes, found):
        result = evaluate(
            query,
            gallery,
            query_person=query_person,
            gallery_person=person,
            query_camera=[1] * people,
            gallery_camera=[2] * size,
            query_name=[str(n) for n in range(people)],
            protocol=protocol,
            block_bytes=block_bytes,
        )
        found.append(result)

    whole, parts = [], []
    score(1 << 30, whole)
    expected = whole[0]
    assert 0.05 < expected["metrics"]["mAP"] < 0.95
    labels = 8 * 12 * size  # a few integers for each image
    # Too little for the normalized features, and enough for them but not for all distances.
    for block_bytes in (1_500_000, 3_500_000):
        assert 4 * people * size > 2 * block_bytes
        peak = peak_bytes(functools.partial(score, block_bytes, parts))
        assert peak < block_bytes + labels
    for result in parts:
        for name, value in expected["metrics"].items():
            assert result["metrics"][name] == pytest.approx(value, abs=1e-6)
        assert result["counts"] == expected["counts"]
