"""Features of records, their scores and files, and what a folder without a run says."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import smcl
from vireid_jax import embedding, evaluate, main
from vireid_jax.data import datasets
from vireid_jax.data.augment import MEAN, STD
from vireid_jax.runtime import devices
from vireid_jax.types import INFRARED, VISIBLE, Method, Records, Retrieval, Stopped

SIZE = (6, 4)
PIXELS = SIZE[0] * SIZE[1] * 3
WIDTH = 5
VARIABLES = {
    "w": np.random.default_rng(0).normal(size=(PIXELS, WIDTH)).astype(np.float32),
    "shift": np.array([10.0, 20.0], np.float32),  # by modality
}


class Embedder:
    """A linear embedding on the mesh that remembers what it was traced and called with."""

    def __init__(self):
        self.traced, self.called = [], []
        self.mesh = devices.make_mesh()
        method = Method(lambda key: VARIABLES, None, self._embed)
        self._jitted = embedding.make_embed(method, self.mesh)
        self.variables = devices.place(VARIABLES, self.mesh)

    def _embed(self, variables, images, modality):
        self.traced.append((images.shape, images.dtype, modality))
        flat = images.reshape(len(images), -1)
        first = flat @ variables["w"] + variables["shift"][modality]
        return {"last": first, "before": first[:, :2] ** 2}

    def __call__(self, variables, images, modality):
        assert not images.is_fully_replicated and len(images.addressable_shards) == 4
        self.called.append(modality)
        return self._jitted(variables, images, modality)

    def of(self, records, **options):
        options = dict(mesh=self.mesh, image_size=SIZE) | options
        return embedding.embed_records(self, self.variables, records, **options)


def records(count=23, seed=1):
    """Both modalities, mixed."""
    rng = np.random.default_rng(seed)
    modality = rng.permutation(np.arange(count) % 3 == 0).astype(np.int8)
    return Records(
        images=rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8),
        person=np.arange(count, dtype=np.int32),
        camera=np.where(modality == INFRARED, 3, 1).astype(np.int32),
        modality=modality,
        name=[f"image {n}" for n in range(count)],
    )


def naive(these):
    """The features of each image by itself, in float64."""
    rows = []
    for image, modality in zip(these.images, these.modality, strict=True):
        x = ((image / 255.0 - MEAN) / STD).ravel()
        rows.append(x @ VARIABLES["w"] + VARIABLES["shift"][modality])
    return np.array(rows)


# --- Features -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 8, 256])
def test_rows_are_those_of_the_records_whatever_the_batch(batch_size):
    these = records()
    found = Embedder().of(these, batch_size=batch_size)
    assert list(found) == ["last", "before"], "the headline comes first"
    assert {f.dtype for f in found.values()} == {np.dtype(np.float32)}
    expected = naive(these)
    np.testing.assert_allclose(found["last"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["before"], expected[:, :2] ** 2, rtol=1e-4, atol=1e-3)


def test_one_modality_alone():
    visible = records().take(records().modality == VISIBLE)
    embedder = Embedder()
    np.testing.assert_allclose(embedder.of(visible)["last"], naive(visible), rtol=1e-4, atol=1e-4)
    assert embedder.called == [VISIBLE]


def test_padding_changes_no_bit_of_a_feature():
    these = records().take(np.flatnonzero(records().modality == VISIBLE)[:13])
    embedder = Embedder()
    padded = embedder.of(these, batch_size=8)["last"]  # 8 and 5, padded to 8
    images = np.concatenate([these.images, np.zeros((3, *SIZE, 3), np.uint8)])  # other padding
    for at in (0, 8):
        batch = devices.to_global({"x": images[at : at + 8]}, embedder.mesh)["x"]
        whole = np.asarray(embedder(embedder.variables, batch, VISIBLE)["last"])
        expected = padded[at : at + 8]
        assert whole[: len(expected)].tobytes() == expected.tobytes()


def test_one_program_per_modality_and_a_batch_that_the_devices_divide():
    embedder = Embedder()
    embedder.of(records(31), batch_size=6)  # 6 on 4 devices: 8
    shape = (8, *SIZE, 3)
    assert embedder.traced == [(shape, np.float32, VISIBLE), (shape, np.float32, INFRARED)]
    visible, infrared = (int((records(31).modality == m).sum()) for m in (VISIBLE, INFRARED))
    assert embedder.called.count(VISIBLE) == -(-visible // 8)
    assert embedder.called.count(INFRARED) == -(-infrared // 8)


def _png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def test_encoded_images_and_paths_embed_like_decoded_ones(tmp_path):
    these = records(9)
    encoded = [_png(image) for image in these.images]
    paths = [str(tmp_path / f"{n}.png") for n in range(9)]
    for path, data in zip(paths, encoded, strict=True):
        pathlib.Path(path).write_bytes(data)
    embedder = Embedder()
    expected = embedder.of(these)["last"]
    for images in (encoded, paths):
        other = Records(images, these.person, these.camera, these.modality, these.name)
        np.testing.assert_array_equal(embedder.of(other)["last"], expected)
        np.testing.assert_array_equal(
            embedding.pixel_features(other, SIZE)[embedding.RAW_PIXELS],
            embedding.pixel_features(these, SIZE)[embedding.RAW_PIXELS],
        )


def test_large_encoded_images_are_resized():
    image = np.full((20, 30, 3), 77, np.uint8)
    large = Records([_png(image)] * 2, *(np.zeros(2, np.int32),) * 3, ["a", "b"])
    small = records(2)
    small = Records(np.full_like(small.images, 77), *(np.zeros(2, np.int32),) * 3, ["a", "b"])
    embedder = Embedder()
    np.testing.assert_array_equal(embedder.of(large)["last"], embedder.of(small)["last"])


def test_a_stop_is_obeyed_between_batches():
    embedder, polls = Embedder(), iter([False, False, True])
    with pytest.raises(Stopped):
        embedder.of(records(), batch_size=4, should_stop=lambda: next(polls))
    assert len(embedder.called) == 2


def test_pixel_features_are_images_less_their_own_mean():
    these = records(5)
    (name, found), *rest = embedding.pixel_features(these, SIZE).items()
    assert name == embedding.RAW_PIXELS and not rest and found.shape == (5, PIXELS)
    for row, image in zip(found, these.images, strict=True):
        np.testing.assert_allclose(row, image.ravel() - image.mean(), atol=1e-3)
    # Brightness alone is no feature; order of the axes is height, width, channel.
    assert found[1].argmax() == these.images[1].ravel().argmax()


@pytest.mark.parametrize("size", [(288, 144), (100, 201)])
def test_pixel_features_of_large_images_are_means_of_squares(size):
    """A test set of 10,000 images of 288 x 144 would take 5 GB otherwise."""
    side = {288: 3, 100: 2}[size[0]]
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    these = Records(images, *(np.zeros(2, np.int32),) * 3, ["a", "b"])
    found = embedding.pixel_features(these, size)[embedding.RAW_PIXELS]
    height, width = size[0] // side, size[1] // side
    small = np.empty((height, width, 3))
    for y, x in np.ndindex(height, width):
        square = images[1, side * y : side * (y + 1), side * x : side * (x + 1)]
        small[y, x] = square.mean(axis=(0, 1))
    np.testing.assert_allclose(found[1], (small - small.mean()).ravel(), atol=1e-3)


# --- Scores -------------------------------------------------------------------------------

PROTOCOLS = ("sysu/all/single", "sysu/indoor/single")


def _retrieval(people=5):
    """Queries of cameras 3 and 6, a gallery of cameras 1, 2, 4 and 5."""
    sides = []
    for cameras, modality in (((3, 6), INFRARED), ((1, 2, 4, 5), VISIBLE)):
        person, camera = (x.ravel() for x in np.meshgrid(np.arange(people), cameras))
        names = [f"cam{c}/{p:04d}/0001" for p, c in zip(person, camera, strict=True)]
        sides.append(
            Records(
                np.zeros((len(person), *SIZE, 3), np.uint8),
                person.astype(np.int32),
                camera.astype(np.int32),
                np.full(len(person), modality, np.int8),
                names,
            )
        )
    return Retrieval(*sides)


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


# --- A folder without a run -----------------------------------------------------------------


@pytest.mark.parametrize("step", ["last", "best", "7"])
def test_scoring_a_folder_without_checkpoints_says_what_is_there(tmp_path, monkeypatch, step):
    def load(**options):
        raise AssertionError("data is loaded before the folder is looked at")

    monkeypatch.setattr(datasets, "load", load)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        main.score_run(smcl.get_config(), tmp_path, step=step)
    message = str(error.value)
    assert f"{tmp_path} holds notes.txt, other/; train first" in message
    assert f"no checkpoint {'of step 7 ' * (step == '7')}in {tmp_path / 'checkpoints'}" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "other"]


def test_scoring_an_unknown_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'newest', expected 'last', 'best' or a number"):
        main.score_run(smcl.get_config(), tmp_path, step="newest")
