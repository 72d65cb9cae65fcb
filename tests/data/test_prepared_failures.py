"""Preparing from broken trees, on full disks, and killed half-way."""

import dataclasses
import errno
import shutil

import numpy as np
import pytest

from tests.data.mixed_tree import broken_tree, copy_of, files_of, never, prepared_in, python, tree
from vireid_jax.data import cache, prepared


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("tree") / "RegDB")


@pytest.fixture(scope="module")
def out(source, tmp_path_factory):
    return prepared_in(tmp_path_factory.mktemp("out"), source)


# --- Images that cannot be read -------------------------------------------------------------


def test_unreadable_images_are_named_and_refused(tmp_path):
    listing, rows = broken_tree(tmp_path / "tree")
    with pytest.raises(cache.UnreadableError, match="4 of 20 images") as caught:
        prepared.prepare(listing, out=tmp_path, shards=4)
    for row in rows:
        assert listing.records.images[row] in str(caught.value)
        assert any(listing.records.name[row] in line for line in caught.value.problems)
    assert "unreadable='skip'" in str(caught.value) and "does not exist" in str(caught.value)
    assert files_of(tmp_path / "regdb") == []
    assert prepared.find("regdb", out=tmp_path) is None


def test_one_unreadable_image_at_the_end_is_refused(tmp_path):
    listing = tree(tmp_path / "tree", 8)
    with open(listing.records.images[-1], "w") as file:
        file.write("no image")
    with pytest.raises(cache.UnreadableError, match="1 of 8 images"):
        prepared.prepare(listing, out=tmp_path, shards=4)
    assert files_of(tmp_path / "regdb") == []


def test_unreadable_images_are_named_and_skipped(tmp_path):
    listing, rows = broken_tree(tmp_path / "tree")
    ready = prepared.prepare(listing, out=tmp_path, shards=20, unreadable="skip")
    left = [n for n in range(20) if n not in rows]
    assert ready.records.name == [listing.records.name[n] for n in left]
    assert (ready.part == listing.part[left]).all()
    expected = prepared._encoded(listing.take(np.array(left)))[0]
    assert list(ready.records.images) == expected
    assert len(ready.problems) == 1 + 4
    for row in rows:
        assert sum(listing.records.images[row] in line for line in ready.problems) == 1
    # The tree is the same; who refuses is still told.
    assert ready.records.images.fingerprint == cache.fingerprint(listing)
    with pytest.raises(cache.UnreadableError, match="4 of 20"):
        prepared.prepare(listing, out=tmp_path, progress=never)
    prepared.prepare(listing, out=tmp_path, unreadable="skip", progress=never)

    with pytest.raises(cache.UnreadableError, match="4 of 4"):
        prepared.prepare(listing.take(np.array(rows)), out=tmp_path, unreadable="skip")


def test_a_long_list_of_unreadable_images_is_cut():
    error = cache.UnreadableError("sysu", [f"image{n}: bad" for n in range(900)], 1000)
    assert "900 of 1,000" in str(error) and "and 895 more" in str(error)
    assert len(error.problems) == 900 and len(str(error)) < 300


@pytest.mark.parametrize(
    "options, message",
    [
        ({"unreadable": "ignore"}, "'ignore', expected refuse or skip"),
        ({"shards": 0}, "expected 1 to 24"),
        ({"shards": 25}, "expected 1 to 24"),
    ],
)
def test_bad_options(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepared.prepare(source, out=tmp_path, **options)
    assert files_of(tmp_path) == []


def test_bad_listings(source, tmp_path):
    with pytest.raises(ValueError, match="sysu, regdb"):
        prepared.prepare(dataclasses.replace(source, name="mars"), out=tmp_path)
    with pytest.raises(ValueError, match="sysu, regdb"):
        prepared.find("mars", out=tmp_path)
    with pytest.raises(ValueError, match="no images"):
        prepared.prepare(source.take(np.arange(0)), out=tmp_path)


# --- Interruptions and full disks -----------------------------------------------------------


def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path):
    code = """
    def kill(done, total):
        if done > 3:
            os.kill(os.getpid(), signal.SIGKILL)
    out = pathlib.Path(sys.argv[1])
    prepared.prepare(tree(out / "tree", 12), out=out, shards=4, progress=kill)
    """
    python(code, tmp_path, expected=-9)
    assert any("array_record" in f for f in files_of(tmp_path / "regdb"))  # it was under way
    assert prepared.find("regdb", out=tmp_path) is None
    shutil.rmtree(tmp_path / "tree")
    ready = prepared.prepare(tree(tmp_path / "tree", 12), out=tmp_path, shards=4)
    assert len(list(ready.records.images)) == 12
    assert [p.name for p in (tmp_path / "regdb").iterdir()] == ["1.0.0"]


def test_an_interrupted_replacement_keeps_the_old_set(source, out, tmp_path):
    folder = copy_of(out, tmp_path)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared.prepare(source.take(np.arange(4)), out=folder, progress=interrupt)
    assert [p.name for p in (folder / "regdb").iterdir()] == ["1.0.0"]
    assert len(prepared.find("regdb", out=folder).records) == 24


def test_a_disk_that_fills_up(out, tmp_path):
    """A limit on the size of files stands for the disk: the writer is told the same way."""
    code = """
    import resource
    out = pathlib.Path(sys.argv[1])
    listing = tree(out / "tree", 6)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        prepared.prepare(listing, out=out)
    except OSError as error:
        print(error.errno, error)
    """
    folder = copy_of(out, tmp_path)
    told = python(code, folder)
    assert told.startswith(f"{errno.ENOSPC} ") and "preparing regdb did not fit" in told
    assert "VIREID_DATA" in told and str(folder / "regdb") in told
    assert [p.name for p in (folder / "regdb").iterdir()] == ["1.0.0"]
    assert len(prepared.find("regdb", out=folder).records) == 24


def test_a_disk_that_is_too_small_is_not_begun_with(source, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1234})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"needs [\d,]+ bytes .* 1\.2 kB are free") as caught:
        prepared.prepare(source, out=tmp_path, progress=never)
    assert caught.value.errno == errno.ENOSPC
    assert files_of(tmp_path / "regdb") == []
