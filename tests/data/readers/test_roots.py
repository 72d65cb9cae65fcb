"""A root that is not the data set, or not quite the right folder."""

import dataclasses
import os

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.data.readers import READERS, get_reader
from vireid_jax.data.readers.common import TreeError
from vireid_jax.types import Pixels

from . import trees


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    top = tmp_path_factory.mktemp("four")
    layout = {"rgb/1": 2, "rgb/2": 2, "ir/1": 2, "ir/2": 2}
    return {
        "sysu": trees.small_sysu(top / "a" / "sysu"),
        "regdb": trees.regdb(top / "b" / "regdb", persons=6, images=2),
        "llcm": trees.llcm(top / "c" / "llcm", train=4, test=3, counts=(16, 16, 12, 12)),
        "folders": trees.people(top / "d" / "folders", layout),
    }


@each("name", READERS)
def test_a_wrong_root(four, tmp_path, name):
    reader = get_reader(name)
    (tmp_path / "a.txt").write_text("hello")
    below = next(p for p in sorted(four[name].iterdir()) if p.is_dir())
    for root, error, message in (
        (four[name] / "nowhere" / "at all", FileNotFoundError,
         r"at all does not exist.*does exist and holds"),
        ("gs://bucket/tree", FileNotFoundError, r"gs://bucket/tree is an address"),
        (tmp_path, TreeError, r"(?s)is not .*it holds a.txt"),
        (tmp_path / "a.txt", TreeError, "is a file, expected the folder"),
        (four[name].parent, TreeError, rf"{four[name]} looks like"),
        (below, TreeError, rf"{four[name]} looks like"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            reader.scan(root)


@each("name", READERS)
@each("other", READERS)
def test_another_data_set(four, name, other):
    reader = get_reader(name)
    if name == other or (name == "folders" and other in ("regdb", "llcm")):
        # Both have a folder for each modality, with a folder for each person.
        assert reader.scan(four[other], strict=False).name == name
        return
    with pytest.raises(TreeError, match=rf"this looks like .*: name the data set {other}") as error:
        reader.scan(four[other], strict=False)
    assert "and lacks" in str(error.value)


def test_the_registry():
    with pytest.raises(ValueError, match="no reader for 'market', expected one of sysu, regdb"):
        get_reader("market")
    for name, reader in READERS.items():
        assert get_reader(name) is reader
        assert reader.TITLE and reader.LAYOUT and reader.AGREEMENT


@each(
    ("name", "listed"),
    [
        *(("sysu", f"exp/{part}_id.txt") for part in ("train", "val", "test")),
        *(("llcm", f"idx/{part}.txt") for part in ("train_vis", "train_nir", "test_id")),
        *(("regdb", f"idx/{part}.txt") for part in ("train_visible_1", "test_thermal_10")),
    ],
)
def test_a_list_is_missing(four, tmp_path, name, listed):
    reader, path = get_reader(name), four[name] / listed
    for lost, message in (
        (path, rf"{path.name} does not exist; {reader.TITLE} is released with it. In .*: "),
        (path.parent, "no such folder"),
    ):
        lost.rename(tmp_path / "lost")
        for strict in (True, False):
            with pytest.raises(FileNotFoundError, match=message):
                reader.scan(four[name], strict=strict)
        (tmp_path / "lost").rename(lost)


def test_a_listing_of_another_data_set(four):
    listing = READERS["regdb"].scan(four["regdb"], strict=False)
    for name in ("sysu", "llcm", "folders"):
        with pytest.raises(ValueError, match="listing is of 'regdb'"):
            READERS[name].split(listing)


def test_persons_with_the_modalities_inside(tmp_path):
    layout = {f"{name}/{side}": 1 for name in "abc" for side in ("visible", "infrared")}
    root = trees.people(tmp_path / "own", layout)
    with pytest.raises(TreeError, match=r"3 folders there, such as a, .*not <person>/visible"):
        READERS["folders"].scan(root)


def test_small_trees_are_divided_as_their_lists_say(four):
    """The readers' own tests do it with trees of full size."""
    want = {"sysu": ({1, 2, 3, 4, 5}, {6, 7, 8}), "folders": ({1}, {2})}
    for name, reader in READERS.items():
        listing = reader.scan(four[name], strict=False)
        records = listing.records
        assert len(set(records.name)) == len(records) == len(listing.part), name
        assert records.person.dtype == records.camera.dtype == np.int32, name
        assert all(os.path.isfile(path) for path in records.images), name
        split = reader.split(listing)
        train, query, gallery = split.train, split.test.query, split.test.gallery
        assert split.name == name and split.val is None
        assert len(train) + len(query) + len(gallery) == len(records), name
        assert set(train.modality) == {0, 1}, name
        assert set(query.modality) == {1} and set(gallery.modality) == {0}, name
        people = [set(r.person.tolist()) for r in (train, query, gallery)]
        assert people[1] == people[2] and not people[0] & people[1], name
        assert (people[0], people[1]) == want.get(name, (people[0], people[1])), name
        pixels = dataclasses.replace(
            records, images=Pixels(np.zeros((len(records), 1, 1, 3), "u1"))
        )
        taken = reader.split(dataclasses.replace(listing, records=pixels)).test.query
        assert taken.images.array is pixels.images.array, f"{name} copies pixels"
        assert [records.name[n] for n in taken.images.rows] == list(query.name), name
