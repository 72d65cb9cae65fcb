"""The pixel cache: the pixels of `decode`, once; nothing broken is ever believed."""

import dataclasses
import errno
import logging
import os
import pathlib
import pwd
import shutil
import threading
import time

import numpy as np
import pytest

from tests.data.mixed_tree import at_once, broken_tree, never, python, suffixes, tree
from tests.support.rows import each
from vireid_jax.data import arrays, cache, contents, prepared
from vireid_jax.runtime import files
from vireid_jax.types import Pixels

SIZE = (16, 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("tree") / "tree", 40)


@pytest.fixture(scope="module")
def pixels(source):
    return arrays.decode(source.records.images, SIZE)


@pytest.fixture(autouse=True)
def no_digests(monkeypatch):
    """Digests of files are not kept beside the caches, whatever the age of the files."""
    monkeypatch.setattr(contents, "_RECENT_NS", 10**18)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks that divide neither the checksum blocks nor the images."""
    monkeypatch.setattr(cache, "_CHUNK", 7)


@pytest.fixture
def decode(source, tmp_path):
    """`decode_once` of the source, with other options where they are given."""
    return lambda listing=source, **options: cache.decode_once(
        listing, **{"image_size": SIZE, "folder": tmp_path} | options
    )


# --- Pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", arrays.FILTERS)
def test_the_pixels_are_those_of_decode(source, decode, tmp_path, small_chunks, filter):
    calls = []
    cached = decode(filter=filter, progress=lambda *x: calls.append(x))
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
    assert (decode(filter=filter, progress=never).records.images[:] == expected).all()


def test_a_prepared_set_gives_the_same_pixels(source, pixels, decode, tmp_path):
    ready = prepared.prepare(source, out=tmp_path / "out")
    assert (decode(ready).records.images[:] == pixels).all()
    decode(ready, progress=never)


def test_in_memory(decode, pixels):
    images = cache.in_memory(decode()).records.images
    assert type(images) is np.ndarray and (images == pixels).all() and images.flags.owndata


def test_what_the_file_is_known_by(source, monkeypatch, tmp_path):
    def stem(listing=source, size=SIZE, filter="lanczos"):
        return cache._stem(listing, size, filter, tmp_path, None)

    first = stem()
    assert first == stem() and first.startswith("regdb-16x8-lanczos-")
    others = [
        stem(size=(8, 16)),
        stem(filter="bilinear"),
        stem(source.take(np.arange(39))),
        stem(source.take(np.arange(39, -1, -1))),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(cache, "DECODER_VERSION", 0)
        others.append(stem())
    with monkeypatch.context() as patch:
        patch.setattr("PIL.__version__", "1.0")
        others.append(stem())
    others.append(stem(dataclasses.replace(source, checks=source.checks[1:])))
    # Where a file is and when it was written is nothing to the pixels.
    images = [shutil.copy(path, tmp_path) for path in source.records.images]
    copied = dataclasses.replace(source, records=dataclasses.replace(source.records, images=images))
    assert first == stem() == stem(copied)
    assert len({first, *others}) == len(others) + 1


def test_an_image_that_changed_in_place_is_decoded_again(decode, tmp_path):
    """Of the same size, its time set back, as some programs do it."""
    listing = tree(tmp_path / "tree", 6)
    before = decode(listing).records.images[:]
    row = next(n for n, p in enumerate(listing.records.images) if p.endswith("bmp"))
    path = pathlib.Path(listing.records.images[row])
    was = path.stat()
    flip(path)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    after = decode(listing).records.images[:]
    assert (after == arrays.decode(listing.records.images, SIZE)).all()
    assert np.flatnonzero((after != before).any(axis=(1, 2, 3))).tolist() == [row]


def test_where_it_is_kept(decode, tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "own"))
    decode(folder=None)
    assert suffixes(tmp_path / "own") == [".json", ".npy"]
    monkeypatch.setenv("VIREID_CACHE", "gs://bucket/folder")
    with pytest.raises(ValueError, match="set VIREID_CACHE"):
        decode(folder=None)


@each(
    "options, message",
    [
        ({"image_size": (0, 8)}, r"expected .height, width."),
        ({"filter": "nearest"}, "lanczos, bilinear"),
        ({"unreadable": "maybe"}, "refuse or skip"),
    ],
)
def test_bad_options(decode, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        decode(**options)
    assert list(tmp_path.iterdir()) == []


# --- Broken images --------------------------------------------------------------------------


def test_unreadable_images_are_named_and_refused_or_skipped(decode, tmp_path, small_chunks):
    listing, rows = broken_tree(tmp_path / "tree")
    folder = tmp_path / "cache"
    with pytest.raises(cache.UnreadableError, match="4 of 20 images") as caught:
        decode(listing, folder=folder)
    for row in rows:
        assert sum(listing.records.images[row] in line for line in caught.value.problems) == 1
    assert list(folder.iterdir()) == []

    left = np.setdiff1d(np.arange(20), rows)
    expected = arrays.decode([listing.records.images[n] for n in left], SIZE)
    for progress in (None, never):
        cached = decode(listing, folder=folder, unreadable="skip", progress=progress)
        assert (cached.records.images[:] == expected).all()
        assert cached.records.name == [listing.records.name[n] for n in left]
        assert (cached.part == listing.part[left]).all()
        assert len(cached.problems) == 1 + 4
    held = cache.in_memory(cached)
    assert (held.records.images == expected).all() and held.problems == cached.problems
    with pytest.raises(cache.UnreadableError, match="4 of 20"):
        decode(listing, folder=folder, progress=never)
    with pytest.raises(cache.UnreadableError, match="4 of 4"):
        decode(listing.take(np.array(rows)), folder=folder, unreadable="skip")


# --- Broken caches --------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def zeros(path):
    """A file of the right size whose content never reached the disk."""
    path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128))


DAMAGES = {
    "cut": lambda npy, side: npy.write_bytes(npy.read_bytes()[:-1]),
    "longer": lambda npy, side: npy.write_bytes(npy.read_bytes() + b"\0"),
    "one bit": lambda npy, side: flip(npy),
    "zeros": lambda npy, side: zeros(npy),
    "no header": lambda npy, side: npy.write_bytes(bytes(npy.stat().st_size)),
    "other shape": lambda npy, side: npy.write_bytes(npy.read_bytes().replace(b"16, 8", b"8, 16")),
    "no checksums": lambda npy, side: side.unlink(),
    "cut checksums": lambda npy, side: side.write_bytes(side.read_bytes()[:-9]),
    "other json": lambda npy, side: side.write_text("[]"),
    "deep json": lambda npy, side: side.write_text("[" * 200_000),
    "pipes": lambda npy, side: [(p.unlink(), os.mkfifo(p)) for p in (npy, side)],
    "a pipe": lambda npy, side: (npy.unlink(), os.mkfifo(npy)),
    "more left out": lambda npy, side: side.write_text(
        side.read_text().replace('"left_out": []', '"left_out": [[90, "x"]]')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(decode, pixels, tmp_path, damage, caplog):
    decode()
    (npy,), (side,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    before = npy.read_bytes(), side.read_bytes()
    DAMAGES[damage](npy, side)
    if npy.is_file() and side.is_file():
        assert (npy.read_bytes(), side.read_bytes()) != before
    with caplog.at_level(logging.WARNING, "vireid_jax"):
        cached = decode()
    assert damage == "no checksums" or "decoding the images again" in caplog.text
    assert (cached.records.images[:] == pixels).all()
    assert (npy.read_bytes(), side.read_bytes()) == before
    assert suffixes(tmp_path) == [".json", ".npy"]


# --- Interruptions, other processes, full disks ---------------------------------------------


def test_a_killed_decoding_leaves_nothing_that_counts(decode, tmp_path):
    code = """
    out = pathlib.Path(sys.argv[1])
    def kill(done, total):
        if done > 20:
            os.kill(os.getpid(), signal.SIGKILL)
    cache._CHUNK = 7
    cache.decode_once(tree(out / "tree", 40), image_size=(16, 8), folder=out / "c", progress=kill)
    """
    python(code, tmp_path, expected=-9)
    folder = tmp_path / "c"
    assert suffixes(folder) == [".lock", ".part"]  # it was under way
    # The tree is the same, with its times: the clean run is of the same file.
    listing = tree(tmp_path / "copy", 40)
    images = [p.replace("/copy/", "/tree/") for p in listing.records.images]
    assert all(map(os.path.exists, images))
    records = dataclasses.replace(listing.records, images=images)
    calls = []
    cached = decode(
        dataclasses.replace(listing, records=records),
        folder=folder,
        progress=lambda *x: calls.append(x),
    )
    assert calls == [(40, 40)]
    assert (cached.records.images[:] == arrays.decode(images, SIZE)).all()
    assert suffixes(folder) == [".json", ".npy"]


def test_an_interrupt_leaves_nothing(decode, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_when_nobody_can_own_them(source, decode, tmp_path):
    stem = cache._stem(source, SIZE, "lanczos", tmp_path, None)
    kept = {
        # Another machine may be decoding the same, and another process something else.
        "other-machine": tmp_path / f".{stem}.elsewhere.7.abcd.part",
        "other-work": tmp_path / f".regdb-1x1-lanczos-0.{files._host()}.7.abcd.part",
        "not-ours": tmp_path / "notes.txt",
    }
    gone = [files.temporary(tmp_path, stem), tmp_path / ".regdb-9x9.elsewhere.7.ef.part"]
    for path in (*kept.values(), *gone):
        path.write_text("x")
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (gone[1], kept["not-ours"]):
        os.utime(path, (two_days_ago, two_days_ago))
    decode()
    assert all(path.exists() for path in kept.values())
    assert not any(path.exists() for path in gone)


def test_threads_and_processes_wait_and_decode_once(decode, pixels, tmp_path):
    calls = []
    for cached in at_once(4, lambda: decode(progress=lambda *x: calls.append(x))):
        assert (cached.records.images[:] == pixels).all()
    assert calls == [(40, 40)]
    assert suffixes(tmp_path) == [".json", ".npy"]


def test_without_locks_the_last_one_stays(decode, pixels, tmp_path, monkeypatch):
    """As on a file system that several machines share."""
    monkeypatch.setattr(files, "locked", lambda path: open(os.devnull))
    monkeypatch.setattr(files, "clear_temporaries", lambda folder, prefix: None)
    barrier = threading.Barrier(3)
    for cached in at_once(3, lambda: decode(progress=lambda *x: barrier.wait(20))):
        assert (cached.records.images[:] == pixels).all()
    assert suffixes(tmp_path) == [".json", ".npy"]


def test_a_cache_can_be_read_where_nothing_can_be_written(decode, pixels, monkeypatch):
    decode()
    for forbidden in ("locked", "temporary", "clear_temporaries"):
        monkeypatch.setattr(files, forbidden, None)
    assert (decode().records.images[:] == pixels).all()


def test_a_disk_that_is_too_small_is_not_begun_with(decode, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("usage", (), {"free": 15_000}))
    needed = 128 + 40 * 16 * 8 * 3
    with pytest.raises(OSError, match=f"needs {needed:,} bytes .*15.0 kB are free") as caught:
        decode(progress=never)
    assert caught.value.errno == errno.ENOSPC and "VIREID_CACHE" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_up_or_breaks(decode, tmp_path, monkeypatch, code):
    def broken(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError) as caught:
        decode()
    full = "pixel cache of regdb at 16 x 8 needs 15,488 bytes (15.5 kB), and" in str(caught.value)
    assert full == (code != errno.EIO) == ("VIREID_CACHE" in str(caught.value))
    assert caught.value.errno == (errno.ENOSPC if full else code)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_says_what_to_do(source, decode, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"decoded images of \w+ cannot be kept in .*data\.cache"):
            decode(folder=folder, progress=never)
        with pytest.raises(OSError, match=r"prepared \w+ cannot be kept in .*data\.prepared"):
            prepared.prepare(source, out=folder, progress=never)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="VIREID_CACHE"):
        decode(folder=tmp_path / "new", progress=never)


def test_no_home_folder(monkeypatch):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("VIREID_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileNotFoundError, match="set VIREID_CACHE to a folder"):
        files.user_folder("VIREID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert files.user_folder("VIREID_CACHE", "x") == "/c/vireid_jax/x"
