"""Both loaders give the batches that the plan says, from images in every form."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tests.data.loading import (
    ENCODED,
    LABEL,
    LOADERS,
    RECORDS,
    SIZE,
    STEPS,
    K,
    Lazy,
    P,
    assert_same,
    encode,
    make_records,
    mapped_records,
    naive,
    plan,
    smooth,
)
from tests.support.rows import each
from vireid_jax.data import arrays
from vireid_jax.types import check_batch


@pytest.mark.parametrize("loader", LOADERS)
def test_resuming_gives_the_rest_of_the_run(loader):
    for start in (1, STEPS, 5):
        assert_same(loader(RECORDS, start=start), naive(start))
    assert list(loader(RECORDS, start=4, stop=4)) == []


@pytest.mark.parametrize("loader", LOADERS)
@each("processes", [1, 2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(loader, processes):
    size = P * K // processes
    parts = [list(loader(RECORDS, rows=slice(i * size, (i + 1) * size))) for i in range(processes)]
    for part in parts[0]:
        check_batch(part, num_ids=P // processes, num_instances=K)
    joined = [
        {key: np.concatenate([p[key] for p in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, naive())


@each("prefetch", [1, 2])
def test_resuming_late_costs_no_earlier_epoch(prefetch):
    asked = []

    def counting(epoch):
        asked.append(epoch)
        return plan(epoch)

    batches = arrays.batches(RECORDS, LABEL, counting, start=3001, stop=9000, prefetch=prefetch)
    np.testing.assert_array_equal(next(batches)["label"], LABEL[plan(1000)[1, 0]])
    # Step 3003, the third from the start, is the first of epoch 1001.
    assert set(asked) == {0, 1000} | ({1001} if prefetch == 2 else set())


@pytest.fixture
def mapped(tmp_path):
    return mapped_records(tmp_path)


@pytest.mark.parametrize("loader", LOADERS)
def test_memory_mapped_images_load_alike(loader, mapped, tmp_path):
    assert_same(loader(mapped), naive())
    assert_same(loader(mapped, image_size=SIZE, start=2, rows=slice(0, 8)), naive(2))
    np.save(tmp_path / "all.npy", RECORDS.images)
    whole = np.load(tmp_path / "all.npy", mmap_mode="r")
    assert_same(loader(make_records(whole)), naive())
    # Memory that starts and steps where TensorFlow cannot use it.
    odd = np.lib.stride_tricks.as_strided(
        np.zeros(37 * 720 + 1, np.uint8)[1:], (36, *SIZE, 3), (721, 36, 3, 1)
    )
    odd[:] = RECORDS.images
    assert_same(loader(make_records(odd)), naive())


def as_pillow(data, filter):
    """The pixels of encoded images at SIZE, one direction of resizing at a time."""
    resample = getattr(Image.Resampling, filter.upper())
    pictures = [Image.open(io.BytesIO(x)).convert("RGB") for x in data]
    # Resizing to the size that it has is what Pillow leaves out, too.
    wide = [x.resize((SIZE[1], x.height), resample) for x in pictures]
    return np.stack([np.asarray(x.resize(SIZE[::-1], resample)) for x in wide])


@pytest.mark.parametrize("loader", LOADERS)
@each("kind, filter", [("PNG", "bilinear"), ("JPEG", "lanczos")])
def test_stored_images_give_the_batches_of_decoded_ones(loader, kind, filter, tmp_path):
    # At their final size, larger and smaller; noise fills the range, so that filters overshoot.
    noise = np.random.default_rng(1).integers(0, 256, (9, 53, 31, 3), np.uint8)
    images = [*smooth(SIZE, 9), *smooth((40, 19), 9), *smooth((9, 11), 9), *noise]
    data = [encode(image, kind) for image in images]
    paths = [tmp_path / f"{n}.img" for n in range(36)]
    for path, encoded in zip(paths, data, strict=True):
        path.write_bytes(encoded)
    want = as_pillow(data, filter)
    for images in (data, paths, Lazy(data)):
        records = make_records(images)
        assert_same(loader(records, image_size=SIZE, filter=filter), naive(images=want))
        np.testing.assert_array_equal(arrays.decode(images, SIZE, filter=filter), want)


@pytest.mark.parametrize("loader", LOADERS)
@each(
    "records, options, message",
    [
        (RECORDS, {"start": 4, "stop": 3}, "4 .. 3"),
        (RECORDS, {"start": -1}, "-1 .. 7"),
        (RECORDS, {"rows": slice(0, 8, 2)}, "contiguous"),
        (RECORDS, {"rows": slice(8, 9)}, "of the 8 rows"),
        (ENCODED, {}, "image_size is None"),
        (ENCODED, {"image_size": (20,)}, "height, width"),
        (ENCODED, {"image_size": SIZE, "filter": "cubic"}, "lanczos, bilinear"),
        (ENCODED, {"image_size": SIZE, "prefetch": 0}, "prefetch is 0"),
        (RECORDS, {"image_size": (12, 20)}, "decoded images are"),
        (make_records(RECORDS.images.astype(np.float32)), {}, "expected uint8"),
        (make_records(RECORDS.images[..., 0]), {}, "expected uint8"),
    ],
)
def test_bad_options_are_refused_at_once(loader, records, options, message):
    with pytest.raises(ValueError, match=message):
        loader(records, **options)


@each(
    "broken, message",
    [
        (lambda p: p[:, :, 0], "expected int32"),
        (lambda p: p.astype(float), "expected int32"),
        (lambda p: p + 36, "there are 36 records"),
        (lambda p: p[:, ::-1], "wrong modality"),
        (lambda p: np.roll(p, [0, 2], axis=[1, 2]) * [[[1], [0]]] + p * [[[0], [1]]], "different"),
    ],
)
def test_a_plan_for_other_records_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        list(arrays.batches(RECORDS, LABEL, lambda e: broken(plan(e)), start=0, stop=2))


def test_a_plan_that_changes_its_shape_or_its_labels_is_refused():
    def shrinking(epoch):
        return plan(epoch)[: STEPS - epoch]

    with pytest.raises(ValueError, match="plan of epoch 1"):
        list(arrays.batches(RECORDS, LABEL, shrinking, start=0, stop=5))
    with pytest.raises(ValueError, match="one label for each"):
        arrays.batches(RECORDS, LABEL[:-1], plan, start=0, stop=1)
    with pytest.raises(ValueError, match="labeled -1"):
        list(arrays.batches(RECORDS, np.full_like(LABEL, -1), plan, start=0, stop=1))


@pytest.mark.parametrize("loader", LOADERS)
def test_two_iterators_do_not_disturb_each_other(loader, mapped):
    pairs = list(itertools.zip_longest(loader(mapped), loader(mapped, start=1)))
    assert_same([a for a, _ in pairs], naive())
    assert_same([b for _, b in pairs[:-1]], naive(1))
