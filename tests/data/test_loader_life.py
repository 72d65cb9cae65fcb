"""How the loaders begin, fail and end: what they read, their errors, threads and exits."""

import gc
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.data.loading import (
    ENCODED,
    LOADERS,
    RECORDS,
    SIZE,
    Lazy,
    array_loader,
    assert_same,
    encode,
    make_records,
    mapped_records,
    naive,
    plan,
)
from vireid_jax.data import arrays

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def mapped(tmp_path):
    return mapped_records(tmp_path)


@pytest.mark.parametrize("loader", LOADERS)
def test_images_on_demand_are_read_when_a_batch_needs_them(loader):
    data = [encode(image, "PNG") for image in RECORDS.images]
    lazy = Lazy(data, rows=list(range(36)))
    batches = loader(make_records(lazy), image_size=SIZE, prefetch=1)
    assert lazy.read == []
    next(batches)
    batches.close()
    # What step 0 needs and no more than step 1 besides, each image once for a step.
    assert set(plan(0)[0].ravel().tolist()) <= set(lazy.read) <= set(plan(0)[:2].ravel().tolist())
    assert len(lazy.read) <= sum(len(np.unique(step)) for step in plan(0)[:2])

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


@pytest.mark.skipif(sys.platform == "win32", reason="files in use cannot be removed there")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("what", ["removed", "made again"])
def test_a_cache_that_goes_away_is_no_matter_to_a_run_that_has_it(loader, mapped, tmp_path, what):
    """As `cache.decode_once` makes a cache again: another file gets its name."""
    batches = loader(mapped, prefetch=1)
    first = next(batches)
    file = tmp_path / "images.npy"
    if what == "removed":
        file.unlink()
    else:
        np.save(tmp_path / "other.npy", np.zeros((3, *SIZE, 3), np.uint8))
        (tmp_path / "other.npy").replace(file)
    assert_same([first, *batches], naive())
    assert_same(loader(mapped, start=2), naive(start=2))


@pytest.mark.parametrize("loader", LOADERS)
def test_dropped_iterators_leave_no_threads(loader, mapped):
    for records in (RECORDS, ENCODED, mapped):
        options = dict(image_size=SIZE, stop=10**6)
        begun, closed = loader(records, **options), loader(records, **options)
        loader(records, **options)  # never begun
        next(begun), next(begun), next(closed)
        closed.close()
        del begun
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
    needed = sum(len(np.unique(step)) for step in plan(0)[:3])  # this batch and two more
    while len(slow.read) < needed:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(slow.read) == needed


def run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_sampler_and_arrays_import_neither_jax_nor_tensorflow():
    done = run(
        "import sys\n"
        "from vireid_jax.data import arrays, sampler\n"
        "print([m for m in ('jax', 'tensorflow', 'PIL') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow  # a process of its own with both loaders
def test_a_process_that_abandons_the_iterators_exits(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.concatenate([RECORDS.images] * 100))
    code = f"""
import numpy as np
from tests.data.loading import ENCODED, RECORDS, SIZE, array_loader, make_records, tf_loader
mapped = make_records(np.load({str(path)!r}, mmap_mode="r")[:36])
live = [
    loader(records, stop=10**6, image_size=SIZE)
    for loader in (array_loader, tf_loader) for records in (RECORDS, ENCODED, mapped)
]
for batches in live:
    for _ in range(3):
        next(batches)
del live[::2], batches  # some are dropped, some live
print("reached", flush=True)
raise SystemExit(7)
"""
    done = run(code)
    assert "reached" in done.stdout, done.stderr
    assert done.returncode == 7, done.stderr
