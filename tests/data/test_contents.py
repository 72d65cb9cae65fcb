"""Digests of files: content decides, and only files that may have changed are read."""

import os
import pathlib
import time

import numpy as np
import pytest

from vireid_jax.data import contents


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{n}.bmp" for n in range(5)]
    for n, path in enumerate(found):
        path.write_bytes(bytes([n % 3]) * 100)
    return found


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read."""
    names, digest = [], contents._digest
    monkeypatch.setattr(
        contents, "_digest", lambda path: names.append(pathlib.Path(path).stem) or digest(path)
    )
    return names


def settle(monkeypatch):
    """As if everything that is there was written long ago."""
    now = time.time_ns
    monkeypatch.setattr(contents.time, "time_ns", lambda: now() + 10 * contents._RECENT_NS)


def test_equal_content_has_equal_digests(paths):
    got = contents.digests(paths)
    assert got[0] == got[3] and got[1] == got[4] and len(set(got)) == 3
    assert contents.digests(list(map(str, reversed(paths)))) == got[::-1]
    assert contents.digests([]) == []


def test_what_cannot_be_read_has_none_and_is_tried_again(paths, tmp_path, monkeypatch):
    settle(monkeypatch)
    paths[0].unlink()
    paths[1].unlink()
    os.mkfifo(paths[1])  # opened, it would be waited for without end
    monkeypatch.setattr(contents, "_MOST_BYTES", 100)
    paths[2].write_bytes(bytes(101))
    got = contents.digests(paths, folder=tmp_path / "kept")
    assert got[:3] == ["", "", ""] and all(got[3:])
    paths[0].write_bytes(b"there")
    monkeypatch.setattr(contents, "_MOST_BYTES", 101)
    again = contents.digests(paths, folder=tmp_path / "kept")
    assert all(again[0::2]) and again[1] == "" and again[3:] == got[3:]


def test_only_what_may_have_changed_is_read(paths, tmp_path, read, monkeypatch):
    folder = tmp_path / "kept"

    def again():
        read.clear()
        return contents.digests(paths, folder=folder)

    first = again()
    assert len(read) == 5 and not folder.exists(), "just written: they may change at once again"
    settle(monkeypatch)
    assert again() == first and len(read) == 5
    assert again() == first and read == []
    was = paths[1].stat()
    paths[1].write_bytes(bytes([9]) * 100)
    os.utime(paths[1], ns=(was.st_atime_ns, was.st_mtime_ns))
    os.utime(paths[2])
    now = again()
    assert sorted(read) == ["1", "2"] and [n for n in range(5) if now[n] != first[n]] == [1]
    assert again() == now and read == []
    assert contents.digests(paths[::-1], folder=folder) == now[::-1] and len(read) == 5
    assert len(list(folder.iterdir())) == 2, "a file for each list of paths"


def test_damaged_digests_are_not_believed(paths, tmp_path, read, monkeypatch):
    settle(monkeypatch)
    first = contents.digests(paths, folder=tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    content = kept.read_bytes()

    def other(**arrays):
        np.savez(kept, **arrays)

    fifo = lambda: (kept.unlink(), os.mkfifo(kept))  # noqa: E731
    stats = np.zeros((5, 3), np.int64)
    for damage in (
        lambda: kept.write_bytes(content[:-60]),
        lambda: kept.write_bytes(b""),
        lambda: other(status=stats[:4], digest=np.zeros(4, "S32")),
        lambda: other(status=stats, digest=np.zeros(5, "S7")),
        fifo,
    ):
        damage()
        read.clear()
        assert contents.digests(paths, folder=tmp_path / "kept") == first and len(read) == 5
    assert contents.digests(paths, folder=tmp_path / "kept") == first and len(read) == 5


def test_a_folder_that_cannot_be_written_to_keeps_nothing(paths, tmp_path, monkeypatch):
    settle(monkeypatch)
    (tmp_path / "file").write_text("")
    assert contents.digests(paths, folder=tmp_path / "file") == contents.digests(paths)


def test_progress_is_reported_while_files_are_read(paths, monkeypatch):
    monkeypatch.setattr(contents, "_CHUNK", 2)
    calls = []
    contents.digests(paths, progress=lambda *x: calls.append(x))
    assert calls == [(0, 5), (0, 5)]
