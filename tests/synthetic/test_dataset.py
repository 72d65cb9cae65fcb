"""The embedded data set: what images there are, that they are a pure function, the cache."""

import errno
import os
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax import synthetic
from vireid_jax.runtime import files
from vireid_jax.synthetic import dataset, figure, identity, scene
from vireid_jax.types import INFRARED, VISIBLE

SIZE = (48, 24)
SMALL = {
    "image_size": SIZE, "train_ids": 3, "train_visible": 2, "train_infrared": 3,
    "val_ids": 2, "val_visible": 1, "val_infrared": 1,
    "test_ids": 3, "test_visible": 2, "test_infrared": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def split():
    return synthetic.load(**SMALL, cache=False)


def parts(split):
    return {"train": split.train, "val query": split.val.query, "val gallery": split.val.gallery,
            "test query": split.test.query, "test gallery": split.test.gallery}  # fmt: skip


def one(person, camera, index=1, size=SIZE, **options):
    rows = [np.array([x]) for x in (person, camera, index)]
    return synthetic.render_images(0, *rows, image_size=size, **options)[0]


def test_records_keep_the_contract(split):
    assert split.name == "synthetic"
    for records in parts(split).values():
        n = len(records)
        assert records.images.shape == (n, *SIZE, 3) and records.images.dtype == np.uint8
        assert records.person.dtype == records.camera.dtype == np.int32
        assert records.modality.dtype == np.int8 and len(records.name) == n
        infrared = np.isin(records.camera, (3, 6))
        np.testing.assert_array_equal(records.modality == INFRARED, infrared)
        for person, camera, name in zip(records.person, records.camera, records.name, strict=True):
            folder, number, index = name.split("/")
            assert (folder, number) == (f"cam{camera}", f"{person:04d}") and len(index) == 4


def test_counts_per_person_and_camera(split):
    for name, visible, infrared in (("train", 2, 3), ("test", 2, 1), ("val", 1, 1)):
        records = [r for key, r in parts(split).items() if key.startswith(name)]
        person = np.concatenate([r.person for r in records])
        camera = np.concatenate([r.camera for r in records])
        assert len(np.unique(person)) == SMALL[f"{name}_ids"]
        for p in np.unique(person):
            for c in range(1, 7):
                expected = infrared if c in (3, 6) else visible
                assert np.sum((person == p) & (camera == c)) == expected
        index = {int(n[-4:]) for r in records for n in r.name if n.startswith("cam1/")}
        assert index == set(range(1, visible + 1))


def test_people_of_the_splits_are_disjoint_and_roles_are_right(split):
    people = [set(split.train.person), set(split.val.query.person), set(split.test.query.person)]
    assert len(set.union(*people)) == sum(map(len, people))
    for retrieval in (split.val, split.test):
        assert set(retrieval.query.camera) == {3, 6}
        assert set(retrieval.gallery.camera) == {1, 2, 4, 5}
        assert set(retrieval.query.person) == set(retrieval.gallery.person)


def test_cameras_2_and_3_share_a_place():
    place = {c.number: c.place for c in scene.CAMERAS}
    assert place[2] == place[3] and len(set(place.values())) == 5
    assert [c.modality for c in scene.CAMERAS] == [0, 0, 1, 0, 0, 1]


def test_other_worlds_have_the_same_people_before_other_cameras():
    for world in (1, 2, 77):
        found = scene.cameras(world)
        assert [(c.number, c.modality, c.place) for c in found] == [
            (c.number, c.modality, c.place) for c in scene.CAMERAS
        ]
        assert not set(found) & set(scene.CAMERAS) and found == scene.cameras(world)
        # The light reaches the person, and nothing is out of what the standard cameras have by far.
        assert all(c.light[2] > 0 and 0.4 < c.exposure[0] < c.exposure[1] < 1.6 for c in found)
    standard, other = one(1, 4), one(1, 4, world=1)
    np.testing.assert_array_equal(standard, one(1, 4, world=0))
    assert (standard != other).mean() > 0.5


def test_without_infrared_light_all_images_are_in_color(split):
    plain = synthetic.load(**SMALL, infrared_light=False, cache=False)
    for a, b in zip(parts(split).values(), parts(plain).values(), strict=True):
        assert a.name == b.name and (a.modality == b.modality).all()
        visible = a.modality == VISIBLE
        np.testing.assert_array_equal(a.images[visible], b.images[visible])
        lit = b.images[~visible].astype(int)
        assert all(np.ptp(image, axis=-1).mean() > 4 for image in lit)


def test_infrared_is_grey_visible_is_not_and_none_is_flat_or_clipped(split):
    for records in parts(split).values():
        dark = records.images[records.modality == INFRARED]
        assert (dark == dark[..., :1]).all()
        light = records.images[records.modality == VISIBLE].astype(int)
        assert all(np.ptp(image, axis=-1).mean() > 4 for image in light)
    images = np.concatenate([r.images for r in parts(split).values()])
    assert (images.std(axis=(1, 2, 3)) > 8).all()
    assert np.mean((images == 0) | (images == 255)) < 0.12


def test_more_people_or_images_change_none_of_the_others(split):
    more = {**SMALL, "train_ids": 5, "train_visible": 3, "val_ids": 0, "test_ids": 4,
            "test_infrared": 2}  # fmt: skip
    larger = synthetic.load(**more, cache=False)
    assert larger.val is None
    for small, large in ((split.train, larger.train), (split.test.query, larger.test.query),
                         (split.test.gallery, larger.test.gallery)):  # fmt: skip
        at = {name: n for n, name in enumerate(large.name)}
        rows = np.array([at[name] for name in small.name])
        assert len(large) > len(small)
        np.testing.assert_array_equal(large.images[rows], small.images)
        np.testing.assert_array_equal(large.person[rows], small.person)


def test_an_image_alone_and_of_another_seed(split):
    row = len(split.train) // 2
    _, person, index = split.train.name[row].split("/")
    alone = one(int(person), split.train.camera[row], int(index))
    np.testing.assert_array_equal(alone, split.train.images[row])
    rows = split.train.person, split.train.camera, np.array([int(n[-4:]) for n in split.train.name])
    other = synthetic.render_images(1, *rows, image_size=SIZE)
    assert (other != split.train.images).mean() > 0.5


def test_a_person_is_drawn_from_seed_and_number():
    a, b = identity.draw_person(0, 5), identity.draw_person(0, 5)
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    for other in (identity.draw_person(0, 6), identity.draw_person(1, 5)):
        assert sum(not np.array_equal(a[k], other[k]) for k in a) > len(a) / 2


def test_infrared_reflectance_does_not_follow_the_dye():
    people = [identity.draw_person(0, p) for p in range(400)]
    for name in ("top_color", "bottom_color", "hat_color", "bag_color"):
        color = np.array([who[name] for who in people])
        brightness, infrared = np.sqrt(color[:, :3].mean(1)), color[:, 3]
        assert abs(np.corrcoef(brightness, infrared)[0, 1]) < 0.15
        assert infrared.min() >= 0 and infrared.std() > 0.15


@pytest.mark.slow
def test_an_aligned_pair_shows_the_same_silhouette():
    # The same shot in both modalities: edges fall on the same pixels, unlike another shot's.
    def edges(image):
        grey = image.astype(float).mean(-1)
        return np.abs(np.diff(grey, axis=1))[5:45].ravel()

    same, other = [], []
    for p in range(1, 9):
        visible = edges(one(p, 4))
        for found, index in ((same, 1), (other, 2)):
            infrared = edges(one(p, 4, index, infrared=True))
            found.append(np.corrcoef(visible, infrared)[0, 1])
    assert np.mean(same) > np.mean(other) + 0.1


@pytest.mark.slow  # a program for each size
@each("size", [(384, 128), (17, 9), (96, 48)])
def test_other_sizes_and_twice_the_size_shows_the_same_scene(size):
    large = one(2, 1, size=size)
    assert large.shape == (*size, 3) and large.std() > 10
    if size == (96, 48):  # averaged down, a large image is the small one but for its noise
        pooled = large.astype(float).reshape(48, 2, 24, 2, 3).mean((1, 3))
        assert np.corrcoef(pooled.ravel(), one(2, 1).ravel())[0, 1] > 0.93


def test_tubes_are_sorted_and_complete():
    people = identity.draw_people(0, np.arange(1, 5))
    shot = scene.shots(0, np.arange(1, 5), np.full(4, 4), np.ones(4, int))
    tubes = figure.build(people, scene.gaits(shot, people))
    rows, frame = scene.project(tubes, shot, False)
    assert rows.shape == (4, figure.TUBES, figure.WIDTH) and np.isfinite(rows).all()
    assert all(np.isfinite(v).all() for v in frame.values())
    # Feet in the lower part, head in the upper part of the crop.
    assert (frame["feet"] > 0.8).all() and (rows[..., 1].min(1) < 0.25).all()


@each(
    ("options", "match"),
    [
        ({"image_size": 96}, "image_size 96"),
        ({"image_size": (96, 48, 3)}, "expected \\(height, width\\)"),
        ({"image_size": (96.5, 48)}, "whole numbers"),
        ({"image_size": (8, 4)}, "height 16 to 2048"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"world": -1}, "world is -1"),
        ({"train_ids": 0}, "train_ids is 0, expected a whole number, 1 to 4000"),
        ({"val_ids": -1}, "val_ids is -1, expected a whole number, 0 to 2000"),
        ({"test_ids": "64"}, "test_ids is '64'"),
        ({"test_ids": True}, "test_ids is True"),
        ({"train_visible": 0}, "train_visible is 0"),
        ({"test_infrared": 10000}, "test_infrared is 10000"),
        ({"cache": 3}, "cache is 3"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, match, monkeypatch):
    monkeypatch.setattr(dataset, "render_images", lambda *a, **k: pytest.fail("rendered"))
    with pytest.raises(ValueError, match=match):
        synthetic.load(**{"cache": False, **options})
    with pytest.raises(TypeError, match="train_id"):
        synthetic.load(train_id=3)


def test_default_sizes_serve_the_protocol():
    plan = synthetic.load.__kwdefaults__
    # Multi-shot draws ten images per person and camera; a class needs both modalities.
    assert plan["test_visible"] >= 10 and plan["test_ids"] >= 48
    assert plan["train_ids"] >= 64 and plan["val_ids"] >= 8
    assert dataset.FIRST_PERSON["val"] - dataset.FIRST_PERSON["train"] >= plan["train_ids"]


# --- the cache ---


@pytest.fixture
def fake_render(monkeypatch):
    """Counts calls and paints each image with its person's number: these tests need no pixels."""
    calls = []

    def render(seed, person, camera, index, *, image_size, rendered, world, infrared):
        rendered(len(person))
        calls.append(len(person))
        value = (person + camera + index + seed).astype(np.uint8)
        return np.broadcast_to(value[:, None, None, None], (len(person), *image_size, 3)).copy()

    monkeypatch.setattr(dataset, "render_images", render)
    return calls


def test_the_second_load_reads_the_cache(tmp_path, fake_render, caplog):
    first = synthetic.load(**SMALL, cache=tmp_path)
    assert len(fake_render) == 3 and len(list(tmp_path.iterdir())) == 1
    second = synthetic.load(**SMALL, cache=str(tmp_path))
    assert len(fake_render) == 3 and not caplog.records
    for key, records in parts(second).items():
        np.testing.assert_array_equal(records.images, parts(first)[key].images)
        assert records.name == parts(first)[key].name


def test_every_option_has_its_own_cache_file(tmp_path, fake_render, monkeypatch):
    changed = {key: (32, 16) if key == "image_size" else SMALL[key] + 1 for key in SMALL}
    for options in ({}, {"seed": 7}, *({key: value} for key, value in changed.items())):
        synthetic.load(**{**SMALL, **options}, cache=tmp_path)
    monkeypatch.setattr(dataset, "RENDER_VERSION", dataset.RENDER_VERSION + 1)
    synthetic.load(**SMALL, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 + len(SMALL) + 2


def test_the_cache_folder_follows_the_environment(tmp_path, fake_render, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("VIREID_CACHE", raising=False)
    synthetic.load(**SMALL)
    assert len(list((tmp_path / "xdg" / "vireid_jax").glob("*.npz"))) == 1
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "own"))
    synthetic.load(**SMALL)
    assert len(list((tmp_path / "own").glob("*.npz"))) == 1
    synthetic.load(**SMALL, cache=False)
    assert len(fake_render) == 9


def other_arrays(path):
    np.savez(path, **{name: np.zeros((1, 2), np.uint8) for name in ("train", "val", "test")})


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def bomb(path):
    """A small archive that would fill the memory."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", bytes(2**20))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        flip,
        lambda path: path.write_bytes(b""),
        other_arrays,
        fifo,
        bomb,
    ],
    ids=["truncated", "flipped", "empty", "other", "fifo", "bomb"],
)
def test_a_damaged_cache_file_is_rendered_again(tmp_path, fake_render, damage, caplog):
    first = synthetic.load(**SMALL, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    again = synthetic.load(**SMALL, cache=tmp_path)
    assert f"cannot use {path}" in caplog.text and "rendered again" in caplog.text
    np.testing.assert_array_equal(again.train.images, first.train.images)
    assert len(fake_render) == 6
    synthetic.load(**SMALL, cache=tmp_path)  # it has been replaced
    assert len(fake_render) == 6


def test_a_folder_that_cannot_be_written_is_only_a_warning(tmp_path, fake_render, caplog):
    (tmp_path / "file").write_text("not a folder")
    split = synthetic.load(**SMALL, cache=tmp_path / "file")
    assert len(split.train) == 3 * (4 * 2 + 2 * 3)
    assert "VIREID_CACHE" in caplog.text and len(caplog.records) == 1


def test_a_full_disk_is_only_a_warning(tmp_path, fake_render, caplog, monkeypatch):
    """In one line, with the folder and both numbers of bytes, before and during writing."""
    calls = []

    def full(file, **arrays):
        calls.append(file.write(b"half"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dataset.np, "savez", full)
    for free, needs in ((10**9, "bytes .*, and did not fit in"), (1234, r"bytes \(.*\) in")):
        usage = type("usage", (), {"free": free})
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, usage=usage: usage)
        caplog.clear()
        assert len(synthetic.load(**SMALL, cache=tmp_path).train) == 3 * (4 * 2 + 2 * 3)
        (record,) = caplog.records
        said = record.getMessage()
        assert re.match(rf"the rendered data set needs [\d,]+ {needs} {tmp_path}, where", said)
        assert files.size_text(free) + " are free" in said and "\n" not in said
        assert os.listdir(tmp_path) == []
    assert calls == [4] and len(fake_render) == 6, "rendered once each time"


def test_threads_render_once_and_clear_what_a_killed_process_left(tmp_path, fake_render):
    synthetic.load(**SMALL, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    files.temporary(tmp_path, path.stem).write_text("half")
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(lambda n: synthetic.load(**SMALL, cache=tmp_path), range(3)))
    assert len(fake_render) == 6 and os.listdir(tmp_path) == [path.name]
    assert all((split.train.images == loaded[0].train.images).all() for split in loaded)


def test_an_interruption_leaves_no_half_written_file(tmp_path, fake_render, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.load(**SMALL, cache=tmp_path)
    assert os.listdir(tmp_path) == []
