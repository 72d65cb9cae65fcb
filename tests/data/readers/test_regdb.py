"""RegDB: a tree of its full size, and lists that are not as they should be."""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rows import each
from vireid_jax.data.readers import common, regdb
from vireid_jax.data.readers.common import TreeError
from vireid_jax.types import INFRARED, VISIBLE

from . import trees


@pytest.fixture(scope="module")
def full(big_folder):
    return trees.regdb(big_folder / "Visible camera" / "Reg DB" / "x")


@pytest.fixture(scope="module")
def listing(full):
    (full / "Visible" / "notes").mkdir()
    trees.stub(full / "Visible" / "Thumbs.db")
    return regdb.scan(full)


@pytest.fixture
def small(tmp_path):
    return trees.regdb(tmp_path / "RegDB", persons=12, images=2)


def edit(root, name, change):
    path = pathlib.Path(root, "idx", name)
    path.write_text("\n".join(change(path.read_text().splitlines())))


def test_every_published_count(listing):
    assert all(c.ok for c in listing.checks) and not listing.problems
    assert len(listing.records) == 8240
    person, camera, modality = (
        getattr(listing.records, k) for k in ("person", "camera", "modality")
    )
    assert set(person) == set(range(1, 413))
    assert ((camera == 1) == (modality == VISIBLE)).all()
    assert ((camera == 2) == (modality == INFRARED)).all()
    assert {len(p) for p in listing.part} == {10}
    assert set("".join(listing.part)) == {"r", "e"}
    assert listing.records.name[0] == "Visible/1/front_v_00010_1"
    assert listing.records.images[0].endswith("Reg DB/x/Visible/1/front_v_00010_1.bmp")
    people = {frozenset(regdb.split(listing, trial=t).train.person) for t in range(1, 11)}
    assert len(people) == 10


@each("trial", [1, 2, 10])
def test_a_trial_is_what_its_lists_say(listing, full, trial):
    split = regdb.split(listing, trial=trial)
    for records, name in (
        (split.train.take(split.train.modality == VISIBLE), f"train_visible_{trial}"),
        (split.train.take(split.train.modality == INFRARED), f"train_thermal_{trial}"),
        (split.test.query, f"test_thermal_{trial}"),
        (split.test.gallery, f"test_visible_{trial}"),
    ):
        rows = [line.rsplit(" ", 1) for line in (full / f"idx/{name}.txt").read_text().splitlines()]
        assert sorted(f"{n}.bmp" for n in records.name) == sorted(path for path, _ in rows)
        # Ascending persons are the labels of the list.
        labels = {int(path.split("/")[1]): int(label) for path, label in rows}
        assert labels == {p: k for k, p in enumerate(np.unique(records.person).tolist())}
    assert split.val is None and split.name == "regdb"
    assert f"trial {trial} of 10" in split.notes[0]


@each("val_ids", [1, np.int64(20), 204])
def test_validation_persons_are_spread_and_disjoint(listing, val_ids):
    split = regdb.split(listing, trial=3, val_ids=val_ids)
    halves = [set(split.train.person), set(split.val.query.person), set(split.test.query.person)]
    assert [len(h) for h in halves] == [206 - val_ids, val_ids, 206]
    assert not halves[0] & halves[1] and not (halves[0] | halves[1]) & halves[2]
    assert set(split.val.gallery.person) == halves[1]
    assert f"without {val_ids} persons" in split.notes[-1]


@each(
    ("options", "message"),
    [
        ({"trial": 0}, "trial is 0, expected a whole number, 1 to 10"),
        ({"trial": 11}, "trial is 11"),
        ({"trial": "1"}, "trial is '1'"),
        ({"trial": True}, "trial is True"),
        ({"val_ids": -1}, "val_ids is -1"),
        ({"val_ids": 205}, "val_ids is 205, .* give 0 to 204"),
    ],
)
def test_options_out_of_range(listing, options, message):
    with pytest.raises(ValueError, match=message):
        regdb.split(listing, **options)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_spread(case):
    n, count = case
    chosen = common.spread(np.arange(n), count)
    assert len(set(chosen)) == count and (np.diff(chosen) > 0).all()
    # As far from one end as from the other, and in steps of two neighboring sizes.
    assert abs(chosen[0] - (n - 1 - chosen[-1])) <= 1
    if count > 1:
        assert np.ptp(np.diff(chosen)) <= 1


# --- small trees that are not right ---------------------------------------------------------


def test_a_list_is_something_else(small):
    edit(small, "train_visible_4.txt", lambda lines: [lines[0], "Visible/1/a.bmp", *lines[2:]])
    with pytest.raises(TreeError, match=r"line 2 of idx/train_visible_4.txt .* expected a path"):
        regdb.scan(small, strict=False)


def test_listed_images_that_are_not_there(small):
    lost = sorted((small / "Thermal" / "3").iterdir())
    for path in lost:
        path.unlink()
    relative = f"Thermal/3/{lost[0].name}"
    with pytest.raises(TreeError, match=rf"listed images that are not there +0 +2: {relative}"):
        regdb.scan(small)
    listing = regdb.scan(small, strict=False)
    assert len(listing.records) == 46
    assert any("1 persons have images in one modality only" in p for p in listing.problems)
    trials = [t for t in range(1, 11) if 3 in regdb.split(listing, trial=t).test.gallery.person]
    assert trials
    assert 3 not in regdb.split(listing, trial=trials[0]).test.query.person


def test_images_on_no_list(small):
    trees.stub(small / "Visible" / "3" / "more.bmp")
    listing = regdb.scan(small, strict=False)
    assert "Visible/3/more" not in listing.records.name
    assert any("1 images are on no list" in p for p in listing.problems)


@each("write", ["{}", "./{}"])
def test_paths_in_another_hand(small, write):
    want = regdb.scan(small, strict=False)
    for path in (small / "idx").iterdir():
        lines = [write.format(line).replace("/", "\\") for line in path.read_text().splitlines()]
        path.write_bytes("\r\n".join(lines).encode())
    got = regdb.scan(small, strict=False)
    assert got.records.name == want.records.name
    assert (got.part == want.part).all()


def failing(root):
    """What differs, besides the counts of a small tree."""
    counts = ("identities", "images", "persons and sides", "lists of")
    checks = regdb.scan(root, strict=False).checks
    return {c.what: c.found for c in checks if not c.ok and not c.what.startswith(counts)
            and "images" not in c.what.split(" ")[:2]}  # fmt: skip


def relabel(change):
    return lambda lines: [f"{x.rsplit(' ')[0]} {change(int(x.rsplit(' ')[1]))}" for x in lines]


def test_labels_that_differ_between_the_sides_or_have_a_gap(small):
    assert failing(small) == {}
    edit(small, "train_thermal_2.txt", relabel(lambda label: 5 - label))
    assert failing(small) == {"halves labeled alike on both sides": "all but 1: 2/train"}
    edit(small, "train_thermal_2.txt", relabel(lambda label: 5 - label))
    for side in ("visible", "thermal"):
        edit(small, f"test_{side}_7.txt", relabel(lambda label: label + 1))
    ((what, found),) = failing(small).items()
    assert what == "lists labeled 0 .. n-1, a label a person" and "7/test_visible" in found


def test_a_person_on_both_sides_of_a_trial(small):
    lines = (small / "idx" / "test_visible_5.txt").read_text().splitlines()
    edit(small, "train_visible_5.txt", lambda own: own[:-2] + [f"{x[:-2]} 5" for x in lines[:2]])
    person = int(lines[0].split("/")[1])
    found = failing(small)
    assert (
        found["trials that test on others than they train on"] == f"all but 1: 5 (person {person})"
    )
    split = regdb.split(regdb.scan(small, strict=False), trial=5)
    assert person not in split.train.person and person in split.test.gallery.person
