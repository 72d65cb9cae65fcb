"""Files that are whole or not there, locks that wait, and the user's folder."""

import errno
import logging
import os
import pathlib
import re
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


def test_a_file_in_the_making_is_opened_through_no_link(tmp_path, monkeypatch):
    """Even where its name can be guessed."""
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    (tmp_path / "other").write_text("kept")
    files.temporary(tmp_path, "a").symlink_to(tmp_path / "other")
    with pytest.raises(FileExistsError):
        files.write_whole(tmp_path / "a.json", "x")
    assert (tmp_path / "other").read_text() == "kept" and not (tmp_path / "a.json").exists()


def test_files_follow_the_umask(tmp_path):
    for mask in (0o002, 0o077):
        was = os.umask(mask)
        try:
            files.write_whole(tmp_path / "a.json", "x")
        finally:
            os.umask(was)
        assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~mask


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


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1]}')
    assert files.read_json(path) == {"a": [1]}
    for content in (b"", b"\xff\xfe", b"{", b"[" * 200_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json cannot be read: "):
            files.read_json(path)
    path.unlink()
    os.mkfifo(path)  # to read it would wait for ever
    with pytest.raises(ValueError, match=r"a\.json cannot be read: it is a FIFO"):
        files.read_json(path)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none.json")


def test_what_is_set_aside_replaces_nothing(tmp_path):
    for n, name in enumerate(("a.damaged", "a.damaged-2", "a.damaged-3")):
        (tmp_path / "a").write_text(str(n))
        assert files.set_aside(tmp_path / "a") == tmp_path / name
        assert (tmp_path / name).read_text() == str(n)


def test_a_full_disk_is_explained_once(tmp_path):
    options = dict(what="a checkpoint", hint="name another --workdir")
    for raised in (OSError(errno.ENOSPC, "x"), RuntimeError("Error: No space left on device [y]")):
        with pytest.raises(files.FullDiskError) as error:
            with files.explain_full_disk(tmp_path, what="the run", hint="pray"):
                with files.explain_full_disk(tmp_path, needed=12_345, **options):
                    raise raised
        said = str(error.value)
        assert f"a checkpoint needs 12,345 bytes (12.3 kB), and did not fit in {tmp_path}" in said
        assert "are free" in said and said.endswith("or name another --workdir")
    with pytest.raises(KeyError), files.explain_full_disk(tmp_path, **options):
        raise KeyError


def test_paths_that_no_shell_has_expanded(monkeypatch):
    """As in --workdir=~/runs, which a shell leaves alone, and in a container's file."""
    monkeypatch.setenv("HOME", "/h")
    for text, path in (("~/a", "/h/a"), ("~", "/h"), ("a/~", "a/~"), ("c$t", "c$t"), ("$", "$")):
        assert files.expanded(text, "--workdir") == pathlib.Path(path)
    for text in ("$HOME/a", "${HOME}/a", "a/${B}"):
        message = re.escape(f"--workdir is {text!r}, and no shell has expanded it")
        with pytest.raises(ValueError, match=message):
            files.expanded(text, "--workdir")
    with pytest.raises(ValueError, match="is '~nobody-at-all/a', and there is no home folder"):
        files.expanded("~nobody-at-all/a", "--workdir")
    monkeypatch.setenv("VIREID_CACHE", "~/c")
    assert files.user_folder("VIREID_CACHE") == "/h/c"
    monkeypatch.setenv("VIREID_CACHE", "$HOME/c")
    with pytest.raises(ValueError, match="VIREID_CACHE is '\\$HOME/c'"):
        files.user_folder("VIREID_CACHE")


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
