"""What a data set cannot be used for is told before an image is opened: here, none could be."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.readers import trees
from tests.support.recipes import small
from tests.support.rows import each
from vireid_jax import build, main, train
from vireid_jax.data import datasets
from vireid_jax.runtime import preemption, runfolder
from vireid_jax.types import train_labels

PEOPLE = [f"p{n}" for n in range(8)]


def both(names, images=2, top=""):
    return {f"{top}{side}/{name}": images for side in ("visible", "infrared") for name in names}


def refusal(dataset, root, tmp_path, capsys, **changes):
    """What a start says; nothing has been decoded or written."""
    c = small("smcl", dataset, tmp_path, root)
    c.eval.trials = None
    for key, value in changes.items():
        section, name = key.split("__")
        c[section][name] = value
    assert main.run(c, workdir=tmp_path / "run") == 1
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
    return capsys.readouterr().err


@each("layout, changes, message", [
    (both(PEOPLE[:4]), {}, "num_ids is 4, but only 2 identities have images in both modalities"),
    (both(PEOPLE, images=1), {}, "has too few"),
    (both(PEOPLE), {"data__val_ids": 5}, "give 0 to 3"),
    (both(PEOPLE, top="train/") | {"test/visible/a": 2, "test/infrared/b": 2}, {},
     "folders/i2v: none of the 2 infrared images of the test people"),
])  # fmt: skip
def test_people_that_are_too_few(layout, changes, message, tmp_path_factory, capsys):
    tmp_path = tmp_path_factory.mktemp("few")
    root = trees.people(tmp_path / "own", layout)
    assert message in refusal("folders", root, tmp_path, capsys, **changes)


def test_nobody_to_test_on(tmp_path, capsys):
    """A run of it would end, after training, with nothing to show."""
    root = tmp_path / "own"
    trees.people(root, both(PEOPLE))
    lines = [f"{p.relative_to(root)},{p.parent.name},{p.parts[-3]},train" for p in
             sorted(root.glob("*/*/*"))]  # fmt: skip
    (root / "a.csv").write_text("\n".join(["path,person,modality,split", *lines]))
    said = refusal("folders", root / "a.csv", tmp_path, capsys)
    assert "folders/i2v searches with infrared images, and the test people have none" in said


def test_indoor_search_without_indoor_cameras(tmp_path, capsys):
    root = trees.small_sysu(tmp_path / "sysu", train=(1, 2, 3, 4), val=(5, 6), test=(7, 8))
    for camera in (1, 2):
        for folder in (root / f"cam{camera}").iterdir():
            for image in folder.iterdir():
                image.unlink()
    said = refusal("sysu", root, tmp_path, capsys)
    assert "leave sysu/indoor/single out of eval.protocols" in said and "sysu/all" not in said
    # Only camera 2 is left of the visible ones, and camera 3 does not search it.
    for camera in (4, 5, 6):
        os.rename(root / f"cam{camera}", root / f"was{camera}")
    for folder in (root / "cam2").iterdir():
        trees.stub(folder / "0001.jpg")
    said = refusal("sysu", root, tmp_path, capsys)
    assert "sysu/all/single: none of the 4 infrared images" in said and "one room" in said


def test_scoring_is_refused_as_early(tmp_path):
    root = trees.people(tmp_path / "own", {"visible/a": 2, "infrared/b": 2})
    c = small("smcl", "folders", tmp_path, root)
    c.data.test_share = 1.0
    runfolder.save_run_info(tmp_path / "run", c.to_dict(), ["main"])
    (tmp_path / "run" / runfolder.CLASSES).write_text(
        '{"persons": [77, 78], "names_sha256": "", "files_sha256": []}'
    )
    with pytest.raises(ValueError, match="none of the 2 infrared images"):
        build.build_to_score(c, tmp_path / "run")


def test_the_check_sees_the_split_that_is_returned_too(tmp_path):
    seen = []
    split = datasets.load(
        name="synthetic", image_size=(48, 24), cache=False, train_ids=2, val_ids=0, test_ids=2,
        check=seen.append,
    )  # fmt: skip
    assert [len(s.train) for s in seen] == [len(split.train)] * 2 and seen[1] is split


@each("changes, message", [
    ({"fsdp": 3}, "devices.fsdp is 3, which does not divide 4 devices; choose one of 1, 2, 4"),
    ({"fsdp": 0}, "devices.fsdp is 0, expected a number from 1"),
    ({"bn_groups": 3}, "devices.bn_groups is 3, which does not divide a batch of 8 rows"),
    ({"accumulate": 16}, "devices.accumulate is 16, which does not divide a batch of 8 rows"),
    ({"accumulate": 2, "bn_groups": 8}, "bn_groups is 8, which does not divide a chunk of 4"),
    ({"accumulate": 4}, "chunks of 2 rows do not divide over 4 devices; choose fewer chunks"),
])  # fmt: skip
def test_a_layout_that_the_batch_or_the_devices_cannot_have(changes, message, tmp_path, capsys):
    layout = {f"devices__{key}": value for key, value in changes.items()}
    assert message in refusal("folders", tmp_path / "none", tmp_path, capsys, **layout)


def test_a_batch_that_does_not_divide_over_the_devices(tmp_path, capsys):
    said = refusal("folders", tmp_path / "none", tmp_path, capsys, sampler__num_ids=5)
    assert "5 identities x 2 images, 10 rows, does not divide over 4 devices" in said
    assert "choose --config.sampler.num_ids=4 or 6" in said


def test_a_stop_while_images_are_decoded_leaves_nothing(tmp_path, monkeypatch):
    """SIGTERM in the hour before the first step: nothing half-written, no run folder."""
    image = io.BytesIO()
    Image.new("RGB", (4, 8)).save(image, "png")
    root = trees.people(tmp_path / "own", both(PEOPLE))
    for path in root.rglob("*.*"):
        path.write_bytes(image.getvalue())
    polls = iter([False, True, True])  # before the data set, and at the first images
    monkeypatch.setattr(preemption, "requested", lambda: next(polls))
    c = small("smcl", "folders", tmp_path, root)
    c.eval.trials = None
    with pytest.raises(train.Preempted, match="before the first step"):
        main.train_and_score(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_people_that_were_trained_on_are_known_in_any_folder(tmp_path, monkeypatch):
    """By another spelling, a link and a copy; other people may have the same names."""
    rng = np.random.default_rng(0)

    def own(name):
        root = trees.people(tmp_path / name, both(PEOPLE))
        for path in sorted(root.rglob("*.*")):
            image = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8)).save(image, "png")
            path.write_bytes(image.getvalue())
        return root

    root = own("mine")
    (tmp_path / "link").symlink_to(root)
    shutil.copytree(root, tmp_path / "copy")
    c = small("smcl", "folders", tmp_path, root)
    split = datasets.load(**c.data)
    _, persons = train_labels(split.train)
    runfolder.save_run_info(tmp_path / "run", c.to_dict(), ["main"])
    files = datasets.load(**{**c.data, "images": "encoded"}).train
    runfolder.save_classes(tmp_path / "run", split, persons, files)
    c.data.test_share = 1.0
    monkeypatch.chdir(tmp_path)
    for spelt in (root, f"{root}/", f"{tmp_path}/./mine", "mine", "./mine", "link", "copy"):
        c.data.root = str(spelt)
        with pytest.raises(ValueError, match=f"was trained on {len(persons)} people that it would"):
            build.build_to_score(c, tmp_path / "run")
    person = split.train.name[0].split("/")[1]
    for side in ("visible", "infrared"):  # one person under another name
        shutil.copytree(root / side / person, tmp_path / "part" / side / "someone")
    c.data.root = "part"
    with pytest.raises(ValueError, match=r"was trained on 1 people that it would be tested on \[0"):
        build.build_to_score(c, tmp_path / "run")
    c.data.root = str(own("others"))
    assert build.build_to_score(c, tmp_path / "run").split.test


def test_a_folder_that_is_an_address(capsys):
    assert main.run(None, workdir="gs://bucket/run") == 1
    assert (
        "--workdir is 'gs://bucket/run', expected a folder of the file" in capsys.readouterr().err
    )
