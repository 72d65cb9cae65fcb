"""What is tf.data's own: the batches themselves are compared in test_loaders.py."""

import gc
import os
import pathlib
import sys
import time

import numpy as np
import pytest

from tests.data.loading import (
    RECORDS,
    K,
    P,
    assert_same,
    make_records,
    mapped_records,
    naive,
    tf_loader,
)
from vireid_jax import build
from vireid_jax.data import arrays
from vireid_jax.types import Pixels


@pytest.fixture
def mapped(tmp_path):
    return mapped_records(tmp_path)


def test_tfdata_keeps_tensorflow_off_accelerators(mapped):
    import tensorflow as tf

    next(tf_loader(mapped))
    assert tf.config.get_visible_devices("GPU") == []


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc")
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
    monkeypatch.setattr(arrays, "gathered", None)
    before = resident()
    batches = list(tf_loader(make_records(mapped)))
    grown = resident() - before
    for got, want in zip(batches, naive(), strict=True):
        assert got["visible"].shape == (P * K, *size, 3)
        np.testing.assert_array_equal(got["visible"][:, -1, -1], want["visible"][:, 0, 0])
        np.testing.assert_array_equal(got["infrared"][:, 7, 9], want["infrared"][:, 0, 0])
    assert grown < 200 * 2**20


@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_dropped_iterator_lets_go_of_the_file(mapped, tmp_path):
    path = str(tmp_path / "images.npy")
    batches = tf_loader(mapped, stop=10**6)
    next(batches)
    del mapped.images.array  # what is left is TensorFlow's
    gc.collect()
    assert path in pathlib.Path("/proc/self/maps").read_text()
    del batches
    end = time.monotonic() + 20
    while path in pathlib.Path("/proc/self/maps").read_text():
        gc.collect()
        assert time.monotonic() < end
        time.sleep(0.01)


def resident():
    """Bytes of this process in memory, mapped files included."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_long_runs_are_loaded_in_segments_without_a_seam(monkeypatch, mapped):
    from vireid_jax.data import tfdata

    monkeypatch.setattr(tfdata, "_SEGMENT", 2)
    assert_same(tf_loader(mapped), naive())
    assert_same(tf_loader(mapped, stop=4), naive(stop=4))


def test_without_tensorflow_the_loader_is_refused_early(monkeypatch):
    build._loader(name="tfdata", prefetch=2)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    build._loader(name="arrays", prefetch=2)
    with pytest.raises(ValueError, match=r"pip install 'vireid_jax\[data\]', or use .*=arrays"):
        build._loader(name="tfdata", prefetch=2)
    with pytest.raises(
        ValueError, match=r"no loader 'grain'; expected one of .*'arrays', 'tfdata'"
    ):
        build._loader(name="grain", prefetch=2)
