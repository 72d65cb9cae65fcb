import gc
import io
import itertools
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import encode, make_records, smooth
from vireid_jax.data import arrays, sampler
from vireid_jax.types import Pixels, check_batch, train_labels

ROOT = pathlib.Path(__file__).parents[2]
SIZE = (20, 12)
P, K = 4, 2

RECORDS = make_records(np.random.default_rng(0).integers(0, 256, (36, *SIZE, 3), np.uint8))
LABEL, PERSONS = train_labels(RECORDS)
STEPS = 3


def plan(epoch):
    return sampler.plan(
        LABEL,
        RECORDS.modality,
        num_ids=P,
        num_instances=K,
        seed=5,
        epoch=epoch,
        steps_per_epoch=STEPS,
    )


def array_loader(records, **options):
    return arrays.batches(records, LABEL, plan, **{"start": 0, "stop": 7} | options)


def tf_loader(records, **options):
    from vireid_jax.data import tfdata

    return tfdata.batches(records, LABEL, plan, **{"start": 0, "stop": 7} | options)


LOADERS = [pytest.param(array_loader, id="arrays"), pytest.param(tf_loader, id="tfdata")]


def assert_same(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected) > 0
    for got, want in zip(batches, expected, strict=True):
        assert set(got) == set(want) == {"visible", "infrared", "label", "camera"}
        for key in want:
            assert got[key].dtype == want[key].dtype
            np.testing.assert_array_equal(got[key], want[key])


def naive(start=0, stop=7, images=RECORDS.images):
    """The batches, one image at a time."""
    for s in range(start, stop):
        visible, infrared = plan(s // STEPS)[s % STEPS].tolist()
        yield {
            "visible": np.stack([images[i] for i in visible]),
            "infrared": np.stack([images[i] for i in infrared]),
            "label": np.array(
                [PERSONS.tolist().index(RECORDS.person[i]) for i in visible], np.int32
            ),
            "camera": np.array(
                [
                    [RECORDS.camera[i], RECORDS.camera[j]]
                    for i, j in zip(visible, infrared, strict=True)
                ],
                np.int32,
            ),
        }


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_are_what_the_plan_says_and_keep_the_contract(loader):
    batches = list(loader(RECORDS))
    assert_same(batches, naive())
    for batch in batches:
        check_batch(batch, num_ids=P, num_instances=K)


@pytest.mark.parametrize("loader", LOADERS)
def test_resuming_gives_the_rest_of_the_run(loader):
    for start in (1, STEPS, 5):
        assert_same(loader(RECORDS, start=start), naive(start))
    assert list(loader(RECORDS, start=4, stop=4)) == []


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("processes", [1, 2, 4])
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


@pytest.mark.parametrize("prefetch", [1, 2])
def test_resuming_late_costs_no_earlier_epoch(prefetch):
    asked = []

    def counting(epoch):
        asked.append(epoch)
        return plan(epoch)

    batches = arrays.batches(RECORDS, LABEL, counting, start=3001, stop=9000, prefetch=prefetch)
    np.testing.assert_array_equal(next(batches)["label"], LABEL[plan(1000)[1, 0]])
    # Step 3003, the third from the start, is the first of epoch 1001.
    assert set(asked) == {0, 1000} | ({1001} if prefetch == 2 else set())


class Lazy:
    """Encoded images that are read when asked for, and count how often that was."""

    def __init__(self, data, rows=None, read=None):
        self.data, self.rows = data, list(range(len(data))) if rows is None else rows
        self.read = [] if read is None else read

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if not isinstance(index, int):
            raise TypeError(f"one image at a time, got {index!r}")
        self.read.append(self.rows[index])
        return self.data[self.rows[index]]

    def take(self, rows):
        return Lazy(self.data, [self.rows[r] for r in rows.tolist()], self.read)


@pytest.fixture
def mapped(tmp_path):
    """RECORDS as rows of a memory-mapped file that holds other images, too."""
    place = np.random.default_rng(3).permutation(50)[:36]
    stored = np.full((50, *SIZE, 3), 99, np.uint8)
    stored[place] = RECORDS.images
    np.save(tmp_path / "images.npy", stored)
    return make_records(Pixels(np.load(tmp_path / "images.npy", mmap_mode="r"), place))


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
    wide = [
        x if x.size == SIZE[::-1] else x.resize((SIZE[1], x.height), resample) for x in pictures
    ]
    return np.stack(
        [np.asarray(x if x.size == SIZE[::-1] else x.resize(SIZE[::-1], resample)) for x in wide]
    )


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("form", ["bytes", "paths", "on demand"])
@pytest.mark.parametrize("kind, filter", [("PNG", "bilinear"), ("JPEG", "lanczos")])
def test_stored_images_give_the_batches_of_decoded_ones(loader, form, kind, filter, tmp_path):
    # At their final size, larger and smaller; noise fills the range, so that filters overshoot.
    noise = np.random.default_rng(1).integers(0, 256, (9, 53, 31, 3), np.uint8)
    images = [*smooth(SIZE, 9), *smooth((40, 19), 9), *smooth((9, 11), 9), *noise]
    data = [encode(image, kind) for image in images]
    stored = {"bytes": data, "paths": [tmp_path / f"{n}.img" for n in range(36)]}.get(form)
    if form == "paths":
        for path, encoded in zip(stored, data, strict=True):
            path.write_bytes(encoded)
    records = make_records(Lazy(data) if stored is None else stored)
    want = as_pillow(data, filter)
    assert_same(loader(records, image_size=SIZE, filter=filter), naive(images=want))
    decoded = arrays.decode(records.images, SIZE, filter=filter)
    assert_same(loader(make_records(decoded)), naive(images=want))


@pytest.mark.parametrize("loader", LOADERS)
def test_images_on_demand_are_read_when_a_batch_needs_them(loader):
    data = [encode(image, "PNG") for image in RECORDS.images]
    lazy = Lazy(data, rows=list(range(36)))
    batches = loader(make_records(lazy), image_size=SIZE, prefetch=1)
    assert lazy.read == []
    next(batches)
    batches.close()
    # What step 0 needs, and no more than step 1 besides.
    needed = plan(0)[0].ravel().tolist()
    assert set(needed) <= set(lazy.read)
    assert len(lazy.read) <= 2 * len(needed)
    assert set(lazy.read) <= set(plan(0)[:2].ravel().tolist())

    some = make_records(lazy).take(np.arange(36)[::-1])
    assert isinstance(some.images, Lazy)
    np.testing.assert_array_equal(arrays.decode(some.images, SIZE), RECORDS.images[::-1])


@pytest.mark.parametrize("loader", LOADERS)
def test_an_image_that_cannot_be_loaded_is_named(loader, tmp_path):
    good = [encode(image, "PNG") for image in RECORDS.images]
    bad = int(np.setdiff1d(plan(0)[1], plan(0)[0])[0])  # first used in the second batch
    name = f"cam/{bad:04d}"

    class Failing(Lazy):
        def __getitem__(self, index):
            if index == bad:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    paths = [tmp_path / f"{n}.png" for n in range(36)]
    for n, path in enumerate(paths):
        if n != bad:
            path.write_bytes(good[n])
    for images, error, message in (
        ([x[:60] if n == bad else x for n, x in enumerate(good)], ValueError, f"decode {name} "),
        (Failing(good), ValueError, f"read {name} .*the disk is gone"),
        (paths, FileNotFoundError, rf"{name} .*{bad}\.png.* does not exist"),
    ):
        batches = loader(make_records(images), image_size=SIZE)
        next(batches)
        with pytest.raises(error, match=message):
            next(batches)
        assert next(batches, None) is None  # an error ends the iterator
    settle()


def settle():
    """Waits until the loaders' threads have ended."""
    gc.collect()
    end = time.monotonic() + 20
    while names := [t.name for t in threading.enumerate() if t.name.startswith("vireid-loader")]:
        assert time.monotonic() < end, f"still there: {names}"
        time.sleep(0.01)


@pytest.mark.parametrize("loader", LOADERS)
def test_dropped_iterators_leave_no_threads(loader, mapped):
    for records in (RECORDS, ENCODED, mapped):
        batches = loader(records, image_size=SIZE, stop=10**6)
        del batches  # never begun
        batches = loader(records, image_size=SIZE, stop=10**6)
        next(batches), next(batches)
        del batches
        batches = loader(records, image_size=SIZE, stop=10**6)
        next(batches)
        batches.close()
        settle()


def test_loading_goes_on_while_a_batch_is_used():
    class Slow(Lazy):
        def __getitem__(self, index):
            time.sleep(0.002)
            return super().__getitem__(index)

    slow = Slow([encode(image, "PNG") for image in RECORDS.images])
    batches = array_loader(make_records(slow), image_size=SIZE, prefetch=2)
    next(batches)
    end = time.monotonic() + 20
    while len(slow.read) < 3 * 2 * P * K:  # this batch and two more
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(slow.read) == 3 * 2 * P * K


ENCODED = make_records([encode(image, "PNG") for image in RECORDS.images])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"start": 4, "stop": 3}, "4 .. 3"),
        ({"start": -1}, "-1 .. 7"),
        ({"rows": slice(0, 8, 2)}, "contiguous"),
        ({"rows": slice(8, 9)}, "of the 8 rows"),
    ],
)
def test_bad_steps_and_rows_are_refused_at_once(loader, options, message):
    with pytest.raises(ValueError, match=message):
        loader(RECORDS, **options)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "records, options, message",
    [
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


@pytest.mark.parametrize(
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


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_sampler_and_arrays_import_neither_jax_nor_tensorflow():
    done = run(
        "import sys\n"
        "from vireid_jax.data import arrays, sampler\n"
        "print([m for m in ('jax', 'tensorflow', 'PIL') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("how", ["live", "dropped", "error"])
def test_a_process_that_abandons_the_iterators_exits(how, tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.concatenate([RECORDS.images] * 100))
    code = f"""
import numpy as np
from tests.data.test_loaders import ENCODED, RECORDS, SIZE, array_loader, make_records, tf_loader
mapped = make_records(np.load({str(path)!r}, mmap_mode="r")[:36])
live = [
    loader(records, stop=10**6, image_size=SIZE)
    for loader in (array_loader, tf_loader) for records in (RECORDS, ENCODED, mapped)
]
for batches in live:
    for _ in range(3):
        next(batches)
if {how!r} == "dropped":
    del live, batches
print("reached", flush=True)
if {how!r} == "error":
    raise SystemExit(7)
"""
    done = run(code)
    assert "reached" in done.stdout, done.stderr
    assert done.returncode == (7 if how == "error" else 0), done.stderr


def test_tfdata_keeps_tensorflow_off_accelerators(mapped):
    import tensorflow as tf

    next(tf_loader(mapped))
    assert tf.config.get_visible_devices("GPU") == []


def test_tfdata_gathers_mapped_images_itself_and_copies_no_others(tmp_path, monkeypatch):
    # A file of 400 MB, most of it a hole: a copy of it would show.
    size, count = (200, 100), 6720
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (count, *size, 3))
    rows = np.arange(36) * 185
    images[rows] = RECORDS.images[:, :1, :1]
    images.flush()
    del images
    mapped = Pixels(np.load(tmp_path / "images.npy", mmap_mode="r"), rows)
    next(tf_loader(RECORDS))
    monkeypatch.setattr(arrays, "batches", None)
    before = resident()
    batches = list(tf_loader(make_records(mapped)))
    grown = resident() - before
    for got, want in zip(batches, naive(), strict=True):
        assert got["visible"].shape == (P * K, *size, 3)
        np.testing.assert_array_equal(got["visible"][:, -1, -1], want["visible"][:, 0, 0])
        np.testing.assert_array_equal(got["infrared"][:, 7, 9], want["infrared"][:, 0, 0])
    assert grown < 200 * 2**20


def resident():
    """Bytes of this process in memory, mapped files included."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_long_runs_are_loaded_in_segments_without_a_seam(monkeypatch, mapped):
    from vireid_jax.data import tfdata

    monkeypatch.setattr(tfdata, "_SEGMENT", 2)
    assert_same(tf_loader(mapped), naive())
    assert_same(tf_loader(mapped, stop=4), naive(stop=4))


@pytest.mark.parametrize("loader", LOADERS)
def test_two_iterators_do_not_disturb_each_other(loader, mapped):
    pairs = list(itertools.zip_longest(loader(mapped), loader(mapped, start=1)))
    assert_same([a for a, _ in pairs], naive())
    assert_same([b for _, b in pairs[:-1]], naive(1))
