"""The pixel cache: no broken file is ever believed, and nothing half-written is left."""

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

from tests.data.mixed_tree import broken_tree, never, python, suffixes, tree
from vireid_jax.data import arrays, cache, prepared
from vireid_jax.runtime import files

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


# --- Broken images --------------------------------------------------------------------------


def test_unreadable_images_are_named_and_refused(tmp_path, small_chunks):
    listing, rows = broken_tree(tmp_path / "tree")
    folder = tmp_path / "cache"
    with pytest.raises(cache.UnreadableError, match="4 of 20 images") as caught:
        cache.decode_once(listing, image_size=SIZE, folder=folder)
    for row in rows:
        assert sum(listing.records.images[row] in line for line in caught.value.problems) == 1
    assert list(folder.iterdir()) == []


def test_unreadable_images_are_named_and_skipped(tmp_path, small_chunks):
    listing, rows = broken_tree(tmp_path / "tree")
    left = np.setdiff1d(np.arange(20), rows)
    expected = arrays.decode([listing.records.images[n] for n in left], SIZE)
    folder = tmp_path / "cache"
    for progress in (None, never):
        cached = cache.decode_once(
            listing, image_size=SIZE, folder=folder, unreadable="skip", progress=progress
        )
        assert (cached.records.images[:] == expected).all()
        assert cached.records.name == [listing.records.name[n] for n in left]
        assert (cached.part == listing.part[left]).all()
        assert len(cached.problems) == 1 + 4
    held = cache.in_memory(cached)
    assert (held.records.images == expected).all() and held.problems == cached.problems
    with pytest.raises(cache.UnreadableError, match="4 of 20"):
        cache.decode_once(listing, image_size=SIZE, folder=folder, progress=never)
    with pytest.raises(cache.UnreadableError, match="4 of 4"):
        none = listing.take(np.array(rows))
        cache.decode_once(none, image_size=SIZE, folder=folder, unreadable="skip")


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
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(source, pixels, tmp_path, damage, caplog):
    cache.decode_once(source, image_size=SIZE, folder=tmp_path)
    (npy,), (side,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    before = npy.read_bytes(), side.read_bytes()
    DAMAGES[damage](npy, side)
    assert (npy.read_bytes(), side.read_bytes() if side.exists() else b"") != before
    with caplog.at_level(logging.WARNING, "vireid_jax"):
        cached = cache.decode_once(source, image_size=SIZE, folder=tmp_path)
    assert damage == "no checksums" or "decoding the images again" in caplog.text
    assert (cached.records.images[:] == pixels).all()
    assert (npy.read_bytes(), side.read_bytes()) == before
    assert suffixes(tmp_path) == [".json", ".npy"]


# --- Interruptions, other processes, full disks ---------------------------------------------


def test_a_killed_decoding_leaves_nothing_that_counts(tmp_path):
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
    paths = sorted(str(p) for p in (tmp_path / "tree").iterdir())
    listing = tree(tmp_path / "copy", 40)
    assert [pathlib.Path(p).name for p in sorted(listing.records.images)] == [
        pathlib.Path(p).name for p in paths
    ]
    images = [p.replace("/copy/", "/tree/") for p in listing.records.images]
    listing = dataclasses.replace(
        listing, records=dataclasses.replace(listing.records, images=images)
    )
    calls = []
    cached = cache.decode_once(
        listing, image_size=SIZE, folder=folder, progress=lambda *x: calls.append(x)
    )
    assert calls == [(40, 40)]
    assert (cached.records.images[:] == arrays.decode(images, SIZE)).all()
    assert suffixes(folder) == [".json", ".npy"]


def test_an_interrupt_leaves_nothing(source, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.decode_once(source, image_size=SIZE, folder=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_when_nobody_can_own_them(source, tmp_path):
    stem = cache._stem(source, SIZE, "lanczos")
    kept = {
        # Another machine may be decoding the same, and another process something else.
        "other-machine": tmp_path / f"{stem}.elsewhere.7.abcd.part",
        "other-work": tmp_path / f"regdb-1x1-lanczos-0.{files._host()}.7.abcd.part",
        "not-ours": tmp_path / "notes.txt",
    }
    gone = [tmp_path / files.temporary_name(stem), tmp_path / "regdb-9x9.elsewhere.7.ef.part"]
    for path in (*kept.values(), *gone):
        path.write_text("x")
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (gone[1], kept["not-ours"]):
        os.utime(path, (two_days_ago, two_days_ago))
    cache.decode_once(source, image_size=SIZE, folder=tmp_path)
    assert all(path.exists() for path in kept.values())
    assert not any(path.exists() for path in gone)


def test_threads_and_processes_wait_and_decode_once(source, pixels, tmp_path):
    results, calls = [], []

    def one():
        cached = cache.decode_once(
            source, image_size=SIZE, folder=tmp_path, progress=lambda *x: calls.append(x)
        )
        results.append((cached.records.images[:] == pixels).all())

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4 and calls == [(40, 40)]
    assert suffixes(tmp_path) == [".json", ".npy"]


def test_without_locks_the_last_one_stays(source, pixels, tmp_path, monkeypatch):
    """As on a file system that several machines share."""
    monkeypatch.setattr(files, "locked", lambda path: open(os.devnull))
    monkeypatch.setattr(files, "clear_temporaries", lambda folder, prefix: None)
    barrier = threading.Barrier(3)
    results = []

    def one():
        cached = cache.decode_once(
            source, image_size=SIZE, folder=tmp_path, progress=lambda *x: barrier.wait(20)
        )
        results.append((cached.records.images[:] == pixels).all())

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 3
    assert suffixes(tmp_path) == [".json", ".npy"]


def test_a_cache_can_be_read_where_nothing_can_be_written(source, pixels, tmp_path, monkeypatch):
    cache.decode_once(source, image_size=SIZE, folder=tmp_path)
    for forbidden in ("locked", "temporary_name", "clear_temporaries"):
        monkeypatch.setattr(files, forbidden, None)
    cached = cache.decode_once(source, image_size=SIZE, folder=tmp_path)
    assert (cached.records.images[:] == pixels).all()


def test_a_disk_that_is_too_small_is_not_begun_with(source, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 15_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    needed = 128 + 40 * 16 * 8 * 3
    with pytest.raises(OSError, match=f"needs {needed:,} bytes .*15.0 kB are free") as caught:
        cache.decode_once(source, image_size=SIZE, folder=tmp_path, progress=never)
    assert caught.value.errno == errno.ENOSPC and "VIREID_CACHE" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(source, tmp_path, monkeypatch, code):
    def full(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="pixel cache of regdb at 16 x 8 did not fit") as caught:
        cache.decode_once(source, image_size=SIZE, folder=tmp_path)
    assert caught.value.errno == errno.ENOSPC and "VIREID_CACHE" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_a_disk_are_not_called_full(source, tmp_path, monkeypatch):
    def broken(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError) as caught:
        cache.decode_once(source, image_size=SIZE, folder=tmp_path)
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told_with_what_to_do(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"decoded images of \w+ cannot be kept in .*data\.cache"):
            cache.decode_once(source, image_size=SIZE, folder=folder, progress=never)
        with pytest.raises(OSError, match=r"prepared \w+ cannot be kept in .*data\.prepared"):
            prepared.prepare(source, out=folder, progress=never)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="VIREID_CACHE"):
        cache.decode_once(source, image_size=SIZE, folder=tmp_path / "new", progress=never)


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
