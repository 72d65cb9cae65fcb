"""LLCM: a tree of its full size, and trees that are not quite it."""

import numpy as np
import pytest

from vireid_jax.data.readers import llcm
from vireid_jax.data.readers.common import TreeError
from vireid_jax.types import INFRARED, VISIBLE

from . import trees


@pytest.fixture(scope="module")
def full(big_folder):
    root = trees.llcm(big_folder / "cam2 vis" / "nir cam9" / "LLCM")
    trees.stub(root / "test_vis" / "cam1" / "Thumbs.db")
    (root / "test_vis" / "cam1_old" / "0001").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def listing(full):
    return llcm.scan(full)


@pytest.fixture
def small(tmp_path):
    return trees.llcm(tmp_path / "LLCM", train=6, test=4, counts=(24, 18, 16, 12))


def test_every_published_count(listing):
    assert all(c.ok for c in listing.checks) and not listing.problems
    assert len(listing.records) == 46767
    for m, train, test in ((VISIBLE, 16946, 8680), (INFRARED, 13975, 7166)):
        mine = listing.records.modality == m
        assert (mine & (listing.part == "train")).sum() == train
        assert (mine & (listing.part == "test")).sum() == test


def test_records(listing, full):
    records = listing.records
    assert len(set(records.name)) == len(records)
    for n in range(0, len(records), 1009):
        side, *_, person, file = records.name[n].split("/")
        assert records.images[n] == str(full / f"{records.name[n]}.jpg")
        assert records.person[n] == int(person) == int(file.split("_")[0])
        assert f"_c{records.camera[n]:02d}_" in file
        assert records.modality[n] == (INFRARED if "nir" in side else VISIBLE)
    assert 3 not in records.camera[records.modality == INFRARED]


def test_galleries_are_the_folders_that_hold_images(listing, full):
    found = {c.what: c.found for c in listing.checks}
    for what, side in (("i2v (vis)", "vis"), ("v2i (nir)", "nir")):
        folders = [p for p in (full / f"test_{side}").glob("cam?/*") if p.is_dir()]
        assert found[f"gallery of a trial, {what}"] == f"{len(folders):,}"


def test_split(listing, full):
    split = llcm.split(listing)
    assert len(np.unique(split.train.person)) == 713 and split.val is None and not split.notes
    want = set(map(int, (full / "idx" / "test_id.txt").read_text().split(",")))
    assert set(split.test.query.person) == set(split.test.gallery.person) == want
    assert set(split.test.query.modality) == {INFRARED}
    # Labels of the list are the ranks of the persons.
    rows = (full / "idx" / "train_vis.txt").read_text().splitlines()
    label = {int(x.split("/")[1]): int(x.split(" ")[1]) for x in rows}
    assert label == {p: k for k, p in enumerate(np.unique(split.train.person).tolist())}
    held = llcm.split(listing, val_ids=71)
    assert len(np.unique(held.train.person)) == 642
    assert len(np.unique(held.val.query.person)) == 71
    assert not set(held.val.query.person) & set(held.train.person)
    with pytest.raises(ValueError, match=r"val_ids is 712, .* give 0 to 711"):
        llcm.split(listing, val_ids=712)


def test_other_image_counts_are_told_not_refused(full):
    path = next((full / "test_nir" / "cam1").glob("*/*.jpg"))
    path.unlink()
    try:
        listing = llcm.scan(full)
    finally:
        trees.stub(path)
    assert listing.problems == (
        "differs from what is known of LLCM: test nir images 7,165 instead of 7,166",
    )


def test_other_identities_are_refused(small):
    with pytest.raises(TreeError, match=r"(?s)test identities +351 +4 +DIFFERS.*ZYK100/LLCM"):
        llcm.scan(small)
    assert "3 of 15 checks differ" in llcm.scan(small, strict=False).problems[0]


def test_listed_images_that_are_not_there(small):
    first, *others = (small / "nir").glob("*/*.jpg")
    first.unlink()
    with pytest.raises(TreeError, match=rf"listed images that are not there +0 +1: .*{first.name}"):
        llcm.scan(small)
    assert len(llcm.scan(small, strict=False).records) == 69
    for path in others:  # a partial copy is trained on by nobody, and said so
        path.unlink()
    with pytest.raises(TreeError, match=r"not there +0 +18: nir/"):
        llcm.scan(small)
    listing = llcm.scan(small, strict=False)
    assert any("6 train persons have no infrared image" in p for p in listing.problems)


def test_names_that_tell_no_camera(small):
    for side in ("vis", "nir"):
        path = small / "idx" / f"train_{side}.txt"
        path.write_text(path.read_text().replace("_c0", "_x0"))
        for image in list((small / side).glob("*/*.jpg")):
            image.rename(str(image).replace("_c0", "_x0"))
    listing = llcm.scan(small, strict=False)
    train = llcm.split(listing).train
    assert len(train) == 42 and not train.camera.any()
    assert any("42 training images tell no person or camera" in p for p in listing.problems)


def test_persons_trained_and_tested_on(small):
    ids = (small / "idx" / "test_id.txt").read_text().strip()
    train = (small / "idx" / "train_vis.txt").read_text().split("/")[1]
    (small / "idx" / "test_id.txt").write_text(f"{ids},{int(train)}")
    folder = small / "test_vis" / "cam1" / train
    folder.mkdir()
    trees.stub(folder / f"{train}_c01_s1_f1_vis.jpg")
    with pytest.raises(TreeError, match=rf"persons trained and tested on +0 +1: {int(train)}"):
        llcm.scan(small)
    split = llcm.split(llcm.scan(small, strict=False))
    assert int(train) not in split.train.person
    assert "left out of training" in split.notes[-1]


def test_persons_outside_the_list_and_other_files(small):
    want = llcm.scan(small, strict=False).records.name
    (small / "test_vis" / "cam1" / "9999").mkdir()
    trees.stub(small / "test_vis" / "cam1" / "9999" / "9999_c01_s1_f1_vis.jpg")
    person = next((small / "test_vis").glob("cam?/????"))
    trees.stub(person / "Thumbs.db")
    trees.stub(person / "._0001_c01_s1_f1_vis.jpg")
    listing = llcm.scan(small, strict=False)
    assert listing.records.name == want
    assert any("skipped 2 other files in test_vis and test_nir" in p for p in listing.problems)


def test_labels_that_differ(small):
    path = small / "idx" / "train_nir.txt"
    path.write_text("\n".join(f"{x[:-1]}{5 - int(x[-1])}" for x in path.read_text().splitlines()))
    checks = {c.what: c for c in llcm.scan(small, strict=False).checks}
    assert not checks["labels that differ between the lists"].ok
    assert checks["lists labeled 0 .. n-1, a label a person"].ok
