import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from vireid_jax import synthetic
from vireid_jax.data import arrays, datasets, prepared, readers
from vireid_jax.synthetic.layouts import write_tree
from vireid_jax.types import Records, Retrieval, Split, is_decoded


@pytest.fixture
def asked(monkeypatch):
    """The options that the synthetic data is asked for; it has two, and renders nothing."""
    options = {}

    def fake(_check, _progress, *, image_size=(96, 48), seed=0):
        options.update(image_size=image_size, seed=seed)
        return "split"

    monkeypatch.setattr(synthetic, "load", fake)
    return options


def test_synthetic_is_the_default_and_gets_its_options(asked):
    assert datasets.load() == "split"
    assert asked == {"image_size": (96, 48), "seed": 0}
    # A key of another data set may be None.
    assert (
        datasets.load(name="synthetic", image_size=[4, 2], seed=3, trial=None, root=None) == "split"
    )
    assert asked == {"image_size": (4, 2), "seed": 3}


def test_the_options_of_a_data_set_are_those_of_its_reader():
    disk = {"root", "image_size", "images", "filter", "strict", "unreadable", "prepared", "cache"}
    disk |= {"thermal_range"}
    own = {
        "sysu": {"val_ids"},
        "regdb": {"trial", "val_ids"},
        "llcm": {"val_ids"},
        "folders": {"test_share", "seed", "val_ids"},
    }
    assert set(datasets.names()) == {"synthetic", *own}
    for name, options in own.items():
        assert set(datasets.options_of(name)) == disk | options
    assert {"image_size", "seed", "train_ids"} < set(datasets.options_of("synthetic"))


def test_a_data_set_that_is_nowhere_says_where_to_get_it(tmp_path):
    for name, title in (("sysu", "SYSU-MM01"), ("regdb", "RegDB"), ("llcm", "LLCM")):
        with pytest.raises(FileNotFoundError, match=f"{title} is not prepared in {tmp_path}") as e:
            datasets.load(name=name, prepared=str(tmp_path))
        assert "--config.data.root=DIR" in str(e.value) and "http" in str(e.value)


def test_own_folders_need_a_root():
    with pytest.raises(FileNotFoundError, match=r"data.root is not set.*visible"):
        datasets.load(name="folders")
    with pytest.raises(
        FileNotFoundError, match=r"prepared in /none/folders.* data.root is not set"
    ):
        datasets.load(name="folders", prepared="/none")


def test_bad_options_are_refused_before_anything_is_read(tmp_path):
    for options, message in (
        ({"images": "both"}, "data.images is 'both', expected one of cached, memory, encoded"),
        ({"unreadable": "ignore"}, "data.unreadable is 'ignore', expected one of refuse, skip"),
        ({"filter": "nearest"}, "nearest"),
        ({"image_size": (0, 4)}, "size"),
        ({"trial": 11}, "trial"),
        ({"val_ids": -1}, "val_ids"),
        ({"prepared": tmp_path}, "data.root is .*absent and data.prepared is .*, expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.load(name="regdb", root=str(tmp_path / "absent"), **options)


def test_where_images_are_kept_changes_no_pixel(tmp_path, monkeypatch):
    root = write_tree(
        tmp_path / "regdb", "regdb", train_ids=2, test_ids=2, images=2, image_size=(48, 24)
    )
    common = dict(name="regdb", root=root, strict=False, image_size=(32, 16))
    monkeypatch.setenv("VIREID_DATA", str(tmp_path / "default"))
    places = dict(cache=tmp_path / "cache")
    splits = {i: datasets.load(images=i, **common, **places) for i in datasets.IMAGES}
    assert not (tmp_path / "default").exists(), "nothing is prepared without being asked for"
    want = np.asarray(splits["memory"].train.images)
    assert want.dtype == np.uint8 and want.shape == (8, 32, 16, 3)
    np.testing.assert_array_equal(splits["cached"].train.images[np.arange(8)], want)
    np.testing.assert_array_equal(
        arrays.decode(list(splits["encoded"].train.images), (32, 16)), want
    )
    assert {tuple(s.train.name) for s in splits.values()} == {tuple(splits["memory"].train.name)}
    # What is prepared needs no tree any more.
    prepared.prepare(readers.get_reader("regdb").scan(root, strict=False), out=tmp_path / "out")
    for images in datasets.IMAGES:
        options = dict(image_size=(32, 16), images=images, prepared=tmp_path / "out")
        # What was accepted with strict=False is used so, too, and not without a word otherwise.
        with pytest.raises(ValueError, match="accepted with strict=False"):
            datasets.load(name="regdb", **options, **places)
        options["strict"] = False
        again = datasets.load(name="regdb", **options, **places).train
        if images == "encoded":
            again = dataclasses.replace(again, images=arrays.decode(again.images, (32, 16)))
        np.testing.assert_array_equal(again.images[np.arange(8)], want)
    assert any("1" in note for note in splits["cached"].notes), "what a partial tree lacks is said"


def test_own_images_that_cannot_be_decoded(tmp_path):
    """Whichever way images are brought, the same ones are left out, and refused."""
    for side in ("visible", "infrared"):
        for person in "abcd":
            (tmp_path / "own" / side / person).mkdir(parents=True)
            for n in range(3):
                pixels = np.full((8, 4, 3), n, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / side / person / f"{n}.png")
    (tmp_path / "own" / "visible" / "b" / "1.png").write_text("<html>404</html>")
    common = dict(name="folders", root=tmp_path / "own", image_size=(8, 4), cache=tmp_path / "c")
    splits = []
    for images in datasets.IMAGES:
        with pytest.raises(ValueError, match=r"1 of 24 .*: visible/b/1\.png"):
            datasets.load(images=images, **common)
        splits.append(datasets.load(images=images, unreadable="skip", **common))
    for split in splits:
        assert sum("visible/b/1.png" in note for note in split.notes) == 1
        assert len(split.train) + len(split.test.query) + len(split.test.gallery) == 23
        assert split.train.name == splits[0].train.name
        pixels = np.stack(list(split.train.images)) if is_decoded(split.train.images) else (
            arrays.decode(split.train.images, (8, 4)))  # fmt: skip
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], [int(n[-5]) for n in split.train.name])


def test_unknown_names_and_dead_options_are_refused():
    with pytest.raises(ValueError, match="folders, llcm, regdb, synthetic, sysu"):
        datasets.load(name="market")
    with pytest.raises(ValueError, match=r"root, trial would have no effect .*'synthetic'"):
        datasets.load(root="/data", trial=1)
    with pytest.raises(ValueError, match=r"seed would have no effect .*options are root"):
        datasets.load(name="sysu", seed=0)
    # A misspelt key fails whatever its value.
    for value in (0, None):
        with pytest.raises(ValueError, match=r"sed would have no effect .*'synthetic'"):
            datasets.load(sed=value)
        with pytest.raises(ValueError, match=r"trail would have no effect .*'regdb'"):
            datasets.load(name="regdb", trail=value)


def records(person, camera, modality):
    n = len(person)
    return Records(
        np.zeros((n, 2, 1, 3), np.uint8),
        np.array(person, np.int32),
        np.array(camera, np.int32),
        np.array(modality, np.int8),
        [str(i) for i in range(n)],
    )


def columns(text):
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_the_summary_counts_identities_images_and_cameras():
    train = records([1, 1, 1, 2, 2, 5], [1, 4, 1, 1, 3, 6], [0, 0, 0, 0, 1, 1])
    query, gallery = records([7, 7, 8], [3, 6, 6], [1] * 3), records([7, 9], [1, 2], [0] * 2)
    text = datasets.records_summary(Split("mine", train, Retrieval(query, gallery)))
    assert columns(text) == [
        ["data", "mine"],
        ["part", "modality", "identities", "images", "by camera"],
        ["train", "visible", "2", "4", "1: 3", "4: 1"],
        ["infrared", "2", "2", "3: 1", "6: 1"],
        ["test", "visible", "2", "2", "1: 1", "2: 1"],
        ["infrared", "2", "3", "3: 1", "6: 2"],
        ["left out of training, for lack of a modality: 2 (1, 5)"],
    ]


def test_the_summary_has_validation_and_folds_many_cameras():
    n = 1300
    many = records([1] * n, np.arange(n) % 13, [0] * n)
    infrared = records([1], [1], [1])
    split = Split("s", many, Retrieval(infrared, many), Retrieval(infrared, infrared))
    lines = columns(datasets.records_summary(split))
    assert lines[2] == ["train", "visible", "1", "1,300", "13 cameras, 100 to 100 images each"]
    assert [line[0] for line in lines[2:]] == [
        *("train", "infrared", "val", "infrared", "test", "infrared"),
        "left out of training, for lack of a modality: 1 (1)",
    ]
    assert lines[4] == ["val", "visible", "0", "0"]


def test_a_summary_of_many_notes_is_cut():
    both = records([0, 0], [0, 0], [0, 1])
    split = Split("sysu", both, Retrieval(both, both))
    head = len(datasets.records_summary(split).splitlines())
    for count, shown in ((30, 30), (31, 31), (1000, 31)):
        notes = tuple(f"note {n}" for n in range(count))
        lines = datasets.records_summary(split._replace(notes=notes)).splitlines()[head:]
        assert len(lines) == shown and lines[0].strip() == "note 0"
        assert lines[-1].strip() == f"note {count - 1}"
    assert lines[25].strip().startswith("and 970 more notes")
