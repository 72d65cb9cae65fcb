"""SYSU-MM01: a tree of its full size, and trees that are not quite it."""

import os
import pathlib

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.data import sampler
from vireid_jax.data.readers import common, sysu
from vireid_jax.data.readers.common import TreeError
from vireid_jax.metrics.draws import GOLDEN, draw_digest, draw_gallery
from vireid_jax.types import INFRARED, VISIBLE, train_labels

from . import trees

TABLE = "sysu_images_per_camera_and_id.npy"
SHARED = (
    pathlib.Path(os.environ.get("VIREID_SHARED", pathlib.Path(__file__).parents[4] / "shared"))
    / "data"
)


@pytest.fixture(scope="module")
def table():
    if not (SHARED / TABLE).is_file():
        pytest.skip(f"no {TABLE} in {SHARED}; name the folder of data/ with VIREID_SHARED")
    return np.load(SHARED / TABLE).astype(int)


@pytest.fixture(scope="module")
def lists(table):
    seen = [set(np.flatnonzero(table[c].sum(0)) + 1) for c in ([0, 1, 3, 4], [2, 5])]
    both = sorted(seen[0] & seen[1])
    val = [p for p in both if 334 <= p <= 433]
    train = [p for p in both if p not in val and p not in trees.SYSU_TEST]
    return {"train": train, "val": val, "test": trees.SYSU_TEST}


@pytest.fixture(scope="module")
def full(big_folder, table, lists):
    # Everything that a reader who splits paths at "cam", or looks too deep, trips over.
    root = big_folder / "cam1 camille" / "SYSU cam3" / "SYSU-MM01"
    root.mkdir(parents=True)
    trees.sysu(root, table, lists)
    trees.stub(root / "cam1" / "0006" / "Thumbs.db")
    for folder in ("cam1_video_train/0006", "cam3/0006/more", "cam10/0006", "cam2/6"):
        (root / folder).mkdir(parents=True)
        trees.stub(root / folder / "0001.jpg")
    return root


@pytest.fixture(scope="module")
def listing(full):
    return sysu.scan(full)


@pytest.fixture
def small(tmp_path):
    return trees.small_sysu(tmp_path / "s")


def test_every_published_count(listing, table, lists):
    assert all(c.ok for c in listing.checks)
    assert len(listing.records) == 44745
    found = {c.what: c.found for c in listing.checks}
    assert found["queries"] == "3,803" and found["queries with a match indoors"] == "2,208"
    # Counted again from the table, camera by camera.
    camera, part = listing.records.camera, listing.part
    for name, numbers in lists.items():
        mine = [int(((camera == c) & (part == name)).sum()) for c in range(1, 7)]
        assert mine == table[:, [p - 1 for p in numbers]].sum(1).tolist()
    assert listing.problems == ("skipped 1 other files in the camera folders: cam1/0006/Thumbs.db",)
    _, *lines = common.table(listing.checks).splitlines()
    assert len(lines) == len(listing.checks) and all(line.endswith(" ok") for line in lines)
    assert len({len(line) for line in lines}) == 1


def test_records(listing, full):
    records = listing.records
    assert records.modality.dtype == np.int8 and records.name == sorted(set(records.name))
    for n in range(0, len(records), 997):
        camera, person, index = records.name[n].split("/")
        assert records.images[n] == str(full / camera / person / f"{index}.jpg")
        assert records.camera[n] == int(camera[3:]) and records.person[n] == int(person)
        assert records.modality[n] == (INFRARED if camera in ("cam3", "cam6") else VISIBLE)


def test_split(listing, lists):
    split = sysu.split(listing)
    assert split.name == "sysu" and split.val is None and not split.notes
    train = split.train
    assert len(np.unique(train.person)) == 395
    assert [int((train.modality == m).sum()) for m in (0, 1)] == [22258, 11909]
    assert len(split.test.query) == 3803 and len(split.test.gallery) == 6775
    assert set(split.test.query.camera) == {3, 6}
    assert set(split.test.gallery.camera) == {1, 2, 4, 5}
    assert set(split.test.gallery.person) == set(trees.SYSU_TEST)
    held = sysu.split(listing, val_ids=99)
    assert set(held.train.person) == set(lists["train"])
    assert set(held.val.query.person) == set(held.val.gallery.person) == set(lists["val"])
    assert len(held.val.query) == 1980 and len(held.val.gallery) == 1974
    assert len(held.test.query) == 3803
    assert "99 persons of the validation list" in held.notes[0]


@each("cameras", [(1, 2, 4, 5), (1, 2)])
@each("trial", [0, 1, 9])
def test_galleries_of_the_authors_code(listing, cameras, trial):
    gallery = sysu.split(listing).test.gallery
    rows = draw_gallery(
        gallery.person, gallery.camera, gallery.name, cameras=cameras, shots=1, trial=trial
    )
    names = [f"{gallery.name[r]}.jpg" for r in rows]
    assert draw_digest(names) == GOLDEN["agw", cameras, 1, trial]


def test_one_image_is_missing(full):
    path = full / "cam3" / "0010" / "0003.jpg"
    path.unlink()
    try:
        with pytest.raises(TreeError) as error:
            sysu.scan(full)
        lenient = sysu.scan(full, strict=False)
    finally:
        trees.stub(path)
    for line in (
        r"folders numbered 0001 .. n +all [\d,]+ +all but 1: cam3/0010 \(no 0003\) +DIFFERS",
        r"queries +3,803 +3,802 +DIFFERS",
        r"test images of camera 3 +1,883 +1,882 +DIFFERS",
        r"https://github.com/wuancong/SYSU-MM01",
        r"data.strict=False",
        r"4 of 29 checks differ",
    ):
        error.match(line)
    assert "test images of camera 6" not in str(error.value)  # what agrees is not shown
    assert len(lenient.records) == 44744
    assert "this is not SYSU-MM01 as released" in lenient.problems[0]
    assert sum(not c.ok for c in lenient.checks) == 4
    assert len(sysu.split(lenient).test.query) == 3802


def test_agws_own_batches_are_made_of_the_images_that_agw_drew(listing):
    """The released sampler's stream depends on the order of a person's images, too."""
    train = sysu.split(listing).train
    label, persons = train_labels(train)
    plan = sampler.plan(
        label, train.modality, num_ids=8, num_instances=4, seed=0, epoch=0, rule="agw_legacy"
    )
    names = np.array(train.name)
    order = {  # AGW's arrays: by person, then camera, then file
        m: sorted(names[train.modality == m], key=lambda n: (n.split("/")[1], n))
        for m in (VISIBLE, INFRARED)
    }
    first = [names[plan[0, m, :5]].tolist() for m in (VISIBLE, INFRARED)]
    assert first[0] == [order[VISIBLE][n] for n in (20927, 20945, 20945, 20933, 20710)]
    assert first[1] == [order[INFRARED][n] for n in (10597, 10605, 10597, 10588, 10348)]
    assert len(persons) == 395


# --- small trees ----------------------------------------------------------------------------


@each("val_ids", [1, 98, 100])
def test_another_number_of_validation_persons(small, val_ids):
    with pytest.raises(ValueError, match=rf"val_ids is {val_ids}, expected 0 .* or 2 \(hold"):
        sysu.split(sysu.scan(small, strict=False), val_ids=val_ids)


@each("val_ids", [-1, 1.0, True, "99", None])
def test_options_that_no_tree_could_honor(val_ids):
    with pytest.raises(ValueError, match="val_ids is"):
        sysu.check_options(val_ids=val_ids)


def test_a_camera_folder_is_missing(small):
    os.rename(small / "cam5", small / "cam7")
    with pytest.raises(TreeError, match=r"camera folders missing +0 +1: cam5"):
        sysu.scan(small)
    assert 5 not in sysu.scan(small, strict=False).records.camera


@each(
    ("text", "message"),
    [
        ("1\n2\n3\n", "has 3 lines, expected one line"),
        ("1,two,3\n", "holds 'two', expected numbers"),
        ("", "has 0 lines"),
        ("1,,2", "holds '', expected numbers"),
        ("PK\x03\x04\x00\xff", "expected numbers"),
    ],
)
def test_an_id_file_is_something_else(small, text, message):
    (small / "exp" / "train_id.txt").write_text(text, encoding="latin-1")
    with pytest.raises(TreeError, match=message):
        sysu.scan(small, strict=False)


@each("text", ["\ufeff1, 2,3,\r\n", "3,2,1", "1 ,2 ,3\n\n"])
def test_an_id_file_in_another_hand(small, text):
    (small / "exp" / "train_id.txt").write_text(text, encoding="utf-8")
    listing = sysu.scan(small, strict=False)
    assert set(listing.records.person[listing.part == "train"]) == {1, 2, 3}


def test_identities_without_a_modality_and_without_images(small):
    for path in (small / f"cam{c}" / p for c in (3, 6) for p in ("0002", "0007")):
        for file in path.iterdir():
            file.unlink()
    trees.ids(small / "exp" / "val_id.txt", [4, 5, 99])
    listing = sysu.scan(small, strict=False)
    lines = "\n".join(listing.problems)
    assert "1 train persons have no infrared image, so they are left out of training: 0002" in lines
    assert "1 test persons have no infrared image, so they are without a match" in lines
    assert "1 val persons have no visible image, so they are left out of training: 0099" in lines
    split = sysu.split(listing)
    assert 7 in split.test.gallery.person and 7 not in split.test.query.person
    assert 2 in split.train.person  # types.train_labels leaves it out


def test_a_person_on_two_lists_is_not_trained_on(tmp_path):
    root = trees.small_sysu(tmp_path / "s", train=(1, 2, 3, 6), val=(4, 6), test=(6, 7, 8))
    with pytest.raises(TreeError, match=r"identities on two lists +0 +1: 6"):
        sysu.scan(root)
    for val_ids in (0, 99):
        split = sysu.split(sysu.scan(root, strict=False), val_ids=val_ids)
        assert 6 not in split.train.person and 6 in split.test.query.person


def test_other_persons_and_files_and_the_order_of_the_disk_do_not_matter(small, monkeypatch):
    want = sysu.scan(small, strict=False).records.name
    (small / "cam1" / "0009").mkdir()
    trees.stub(small / "cam1" / "0009" / "0001.jpg")
    for name in ("._0001.jpg", "0001.png", "a.jpg", "\u0663.jpg"):
        trees.stub(small / "cam1" / "0001" / name)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as found:
                self.found = sorted(found, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.found)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(common.os, "scandir", Reversed)
    listing = sysu.scan(small, strict=False)
    assert listing.records.name == want
    assert "skipped 4 other files" in listing.problems[-1]
