"""Files that are whole or not there, locks that wait, and the user's folder."""

import errno
import logging
import os
import pathlib
import threading
import time

import filelock
import pytest

from vireid_jax.runtime import files


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a.json"
    for data, content in (("naïve\n", "naïve\n".encode()), (b"\0\1", b"\0\1")):
        files.write_whole(path, data)
        assert path.read_bytes() == content
    files.write_whole(str(path), lambda file: file.write(b"x") + file.write(b"y"))
    assert path.read_bytes() == b"xy"
    files.write_whole(tmp_path / ("n" * 250), "a name as long as names can be")
    assert len(list(tmp_path.iterdir())) == 2


def test_only_regular_files_of_a_sane_size_are_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert files.read_regular(path, 5) == files.read_regular(str(tmp_path / "link"), 5) == b"12345"
    with pytest.raises(ValueError, match=r"it has 5 bytes .*, expected at most 4 bytes"):
        files.read_regular(path, 4)
    os.mkfifo(tmp_path / "fifo")
    for other, kind in ((tmp_path / "fifo", "FIFO"), (tmp_path, "folder"), ("/dev/null", "device")):
        with pytest.raises(ValueError, match=f"it is a {kind}.*, expected a regular file"):
            files.read_regular(other, 5)
    with pytest.raises(FileNotFoundError):
        files.read_regular(tmp_path / "none", 5)


def test_what_fails_halfway_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.json"
    files.write_whole(path, "old")
    seen = []

    def fail(file):
        file.write(b"half")
        seen.extend(tmp_path.iterdir())
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        files.write_whole(path, fail)
    assert len(seen) == 2, "a sibling, while it is written"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        files.write_whole(tmp_path / "absent" / "a.json", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.write_whole(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "folder"]


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path, caplog):
    """Waiters meet a file that its last holder removes, again and again."""
    inside, most = [], []

    def work():
        for _ in range(20):
            with files.locked(tmp_path / "a.lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    with caplog.at_level(logging.INFO, "vireid_jax"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 80
    assert f"waiting for the process that holds {tmp_path / 'a.lock'}" in caplog.text
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), files.locked(tmp_path / "a.lock"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_holds_nothing(tmp_path, monkeypatch):
    codes = {errno.ENOLCK: True, errno.EOPNOTSUPP: True, errno.EACCES: False}
    for code, passes in codes.items():

        def refuse(lock, timeout=None, code=code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
        done = []
        try:
            with files.locked(tmp_path / "a.lock"):
                done.append(code)
        except OSError as error:
            assert error.errno == code
        assert bool(done) == passes, code


def test_the_users_folder(monkeypatch):
    """As it has always been on Linux, and where the variable says before that."""
    monkeypatch.setenv("VIREID_CACHE", "mine")
    assert files.user_folder("VIREID_CACHE", "part") == "mine"
    monkeypatch.delenv("VIREID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    if os.name == "posix":
        assert files.user_folder("VIREID_CACHE") == "/c/vireid_jax"
        assert files.user_folder("VIREID_CACHE", "x") == "/c/vireid_jax/x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    if os.uname().sysname == "Linux":
        expected = pathlib.Path.home() / ".cache" / "vireid_jax" / "data"
        assert files.user_folder("VIREID_DATA", "data") == str(expected)
