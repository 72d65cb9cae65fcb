"""Features of records, and similarities that are sums: accumulated, stored and by loops."""

import dataclasses
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.support import fused
from tests.support.fused import FUSIONS, naive
from tests.support.rows import each
from vireid_jax import embedding
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


def by_hand(these):
    """The features of each image by itself, in float64."""
    rows = []
    for image, modality in zip(these.images, these.modality, strict=True):
        x = ((image / 255.0 - MEAN) / STD).ravel()
        rows.append(x @ VARIABLES["w"] + VARIABLES["shift"][modality])
    return np.array(rows)


@each("batch_size", [4, 8, 256])
def test_rows_are_those_of_the_records_whatever_the_batch(batch_size):
    these = records()
    found = Embedder().of(these, batch_size=batch_size)
    assert list(found) == ["last", "before"], "the headline comes first"
    assert {f.dtype for f in found.values()} == {np.dtype(np.float32)}
    expected = by_hand(these)
    np.testing.assert_allclose(found["last"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["before"], expected[:, :2] ** 2, rtol=1e-4, atol=1e-3)


def test_one_modality_alone():
    visible = records().take(records().modality == VISIBLE)
    embedder = Embedder()
    np.testing.assert_allclose(embedder.of(visible)["last"], by_hand(visible), rtol=1e-4, atol=1e-4)
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
        other = dataclasses.replace(these, images=images)
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


@each("size", [(288, 144), (100, 201)])
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


# --- Similarities that are sums


@pytest.fixture(scope="module")
def parts():
    return fused.make_parts()


def sides(queries=11, images=17):
    return Retrieval(fused.records(queries, 1, 0), fused.records(images, 0, 1))


def options(mesh, **changes):
    return dict(mesh=mesh, image_size=fused.SIZE, batch_size=8) | changes


@each("memory_bytes", [1, 300, 1 << 30])  # one row, some, all
@each("shape", [(11, 17), (17, 11), (5, 5)])
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
    mixed = fused.records(9, 0, 2)
    mixed.modality[[1, 4, 5]] = INFRARED
    retrieval = Retrieval(mixed, fused.records(12, 1, 3))
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
    features = naive(fused.records(4, 0, 0))
    assert embedding.join(features, {}) == features
    assert embedding.join({}, FUSIONS) == {}, "of no images"
