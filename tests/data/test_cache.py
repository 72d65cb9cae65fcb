"""The pixel cache: the pixels of arrays.decode, once."""

import os
import pathlib

import numpy as np
import pytest

from tests.data.mixed_tree import never, suffixes, tree
from vireid_jax.data import arrays, cache, prepared
from vireid_jax.types import Pixels

SIZE = (16, 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("tree") / "tree", 40)


@pytest.fixture(scope="module")
def pixels(source):
    return arrays.decode(source.records.images, SIZE)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks that divide neither the checksum blocks nor the images."""
    monkeypatch.setattr(cache, "_CHUNK", 7)


# --- Pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", arrays.FILTERS)
def test_the_pixels_are_those_of_decode(source, tmp_path, small_chunks, filter):
    calls = []
    cached = cache.decode_once(
        source,
        image_size=SIZE,
        filter=filter,
        folder=tmp_path,
        progress=lambda *x: calls.append(x),
    )
    assert calls == [(n, 40) for n in (7, 14, 21, 28, 35, 40)]
    images = cached.records.images
    assert isinstance(images, Pixels) and images.shape == (40, *SIZE, 3)
    assert not images.array.flags.writeable
    expected = arrays.decode(source.records.images, SIZE, filter=filter)
    assert (images[np.arange(40)] == expected).all()
    for field in ("person", "camera", "modality", "name"):
        assert getattr(cached.records, field) is getattr(source.records, field)
    # It is a plain file for anyone else.
    (path,) = tmp_path.glob("*.npy")
    assert (np.load(path) == expected).all()
    again = cache.decode_once(
        source, image_size=SIZE, filter=filter, folder=tmp_path, progress=never
    )
    assert (again.records.images[:] == expected).all()


def test_a_prepared_set_gives_the_same_pixels(source, pixels, tmp_path):
    ready = prepared.prepare(source, out=tmp_path / "out")
    cached = cache.decode_once(ready, image_size=SIZE, folder=tmp_path)
    assert (cached.records.images[:] == pixels).all()
    cache.decode_once(ready, image_size=SIZE, folder=tmp_path, progress=never)


def test_in_memory(source, pixels, tmp_path):
    held = cache.in_memory(cache.decode_once(source, image_size=SIZE, folder=tmp_path))
    assert type(held.records.images) is np.ndarray and (held.records.images == pixels).all()
    assert held.records.images.flags.owndata


def test_what_the_file_is_known_by(source, tmp_path, monkeypatch):
    def stem(listing=source, size=SIZE, filter="lanczos"):
        return cache._stem(listing, size, filter)

    first = stem()
    assert first == stem() and first.startswith("regdb-16x8-lanczos-")
    others = [
        stem(size=(8, 16)),
        stem(filter="bilinear"),
        stem(source.take(np.arange(39))),
        stem(source.take(np.arange(39, -1, -1))),
    ]
    monkeypatch.setattr(cache, "DECODER_VERSION", 0)
    others.append(stem())
    monkeypatch.undo()
    monkeypatch.setattr("PIL.__version__", "1.0")
    others.append(stem())
    monkeypatch.undo()
    path = pathlib.Path(source.records.images[5])
    was = path.stat()
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1_000_000))
    others.append(stem())
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert first == stem()
    assert len({first, *others}) == len(others) + 1


def test_where_it_is_kept(source, tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "own"))
    cache.decode_once(source, image_size=SIZE)
    assert suffixes(tmp_path / "own") == [".json", ".npy"]
    monkeypatch.setenv("VIREID_CACHE", "gs://bucket/folder")
    with pytest.raises(ValueError, match="set VIREID_CACHE"):
        cache.decode_once(source, image_size=SIZE)


def test_bad_options(source, tmp_path):
    for options, message in (
        ({"image_size": (0, 8)}, r"expected .height, width."),
        ({"filter": "nearest"}, "lanczos, bilinear"),
        ({"unreadable": "maybe"}, "refuse or skip"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.decode_once(source, **{"image_size": SIZE, "folder": tmp_path} | options)
    assert list(tmp_path.iterdir()) == []
