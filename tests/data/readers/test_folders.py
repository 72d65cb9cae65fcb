"""One's own images: folders, CSV files, and who is divided into what."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rows import each
from vireid_jax.data.readers import folders
from vireid_jax.data.readers.common import Listing, TreeError
from vireid_jax.types import INFRARED, VISIBLE, Records, train_labels

from . import trees

PEOPLE = ("anna", "bob", "carl", "dora", "emil", "fay", "gus", "hana")


def both(names=PEOPLE, visible="visible", infrared="infrared", n=3):
    return {f"{side}/{name}": n for side in (visible, infrared) for name in names}


# --- folders --------------------------------------------------------------------------------


@each(
    ("visible", "infrared"),
    [("visible", "infrared"), ("vis", "nir"), ("RGB", "Thermal"), ("Visible", "ir")],
)
def test_names_of_the_modalities(tmp_path, visible, infrared):
    root = tmp_path / f"my visible ir {visible}"
    listing = folders.scan(trees.people(root, both(visible=visible, infrared=infrared)))
    records = listing.records
    assert len(records) == 48 and set(listing.part) == {"all"} and not listing.problems
    assert listing.persons == PEOPLE
    for n, name in enumerate(records.name):
        side, person, _ = name.split("/")
        assert records.images[n] == str(root / name)
        assert listing.persons[records.person[n]] == person
        assert records.modality[n] == (VISIBLE if side == visible else INFRARED)
    assert not records.camera.any()


def test_numbers_stay_numbers(tmp_path):
    root = trees.people(tmp_path / "p", both(("7", "10", "0042")))
    listing = folders.scan(root)
    assert set(listing.records.person) == {7, 10, 42} and not listing.persons
    # One camera's software pads, the other's does not.
    other = trees.people(tmp_path / "q", {"visible/0007": 2, "infrared/7": 2})
    listing = folders.scan(other)
    assert set(listing.records.person) == {7}
    assert listing.problems == ("names of one number are one person: 0007 = 7",)


def test_a_few_numbers_among_names_are_names(tmp_path):
    listing = folders.scan(trees.people(tmp_path / "p", both(("10", "9", "x", "²", "Ж", "0" * 30))))
    assert listing.persons == ("000000000000000000000000000000", "10", "9", "x", "²", "Ж")


def parts(**people):
    """A layout with folders of parts."""
    return {f"{part}/{k}": n for part, names in people.items() for k, n in both(names).items()}


def test_given_parts(tmp_path):
    layout = parts(train=PEOPLE[:4], val=PEOPLE[4:6], test=PEOPLE[6:])
    listing = folders.scan(trees.people(tmp_path / "p", layout))
    split = folders.split(listing, seed=3)
    people = [r.person for r in (split.train, split.val.query, split.test.gallery)]
    assert [{listing.persons[p] for p in set(x.tolist())} for x in people] == [
        set(PEOPLE[:4]), set(PEOPLE[4:6]), set(PEOPLE[6:]),
    ]  # fmt: skip
    assert folders.split(listing, val_ids=2).val is not None
    with pytest.raises(ValueError, match="val_ids is 1, but the people of the validation are"):
        folders.split(listing, val_ids=1)


def test_given_parts_without_validation_or_without_one_of_the_others(tmp_path):
    root = trees.people(tmp_path / "p", parts(train=PEOPLE[:5], test=PEOPLE[5:]))
    listing = folders.scan(root)
    assert folders.split(listing).val is None
    split = folders.split(listing, val_ids=2)
    assert len(set(split.val.query.person)) == 2 and len(set(split.train.person)) == 3
    (root / "train").rename(tmp_path / "train")
    split = folders.split(folders.scan(root))
    assert len(split.train) == 0 and len(split.test.query) == 9
    (tmp_path / "train").rename(root / "train")
    (root / "test").rename(tmp_path / "test")
    with pytest.raises(TreeError, match=r"no test/visible and test/infrared.*name .*train as"):
        folders.scan(root)
    assert len(folders.scan(root / "train").records) == 30


def test_people_on_both_sides(tmp_path):
    root = trees.people(tmp_path / "p", parts(train=PEOPLE[:3], test=PEOPLE[2:]))
    with pytest.raises(TreeError, match=r"persons trained and tested on +0 +1: carl"):
        folders.scan(root)
    split = folders.split(folders.scan(root, strict=False))
    assert not set(split.train.person) & set(split.test.query.person)
    assert len(set(split.train.person)) == 2


def test_two_folders_of_one_modality(tmp_path):
    root = trees.people(tmp_path / "p", {**both(), "rgb/anna": 1})
    with pytest.raises(TreeError, match="2 folders of visible images: rgb, visible; leave one"):
        folders.scan(root)


def test_files_that_are_no_images(tmp_path):
    hidden = {"infrared/.ipynb_checkpoints": 3}
    root = trees.people(tmp_path / "p", {**both(), **hidden})
    for name in ("anna/._0.jpg", "anna/Thumbs.db", "bob/clip.mp4", "readme.txt", "bob/x.JPEG.part"):
        trees.stub(root / "visible" / name)
    (root / "visible" / "anna" / "older").mkdir()
    for name in ("9.PNG", "9.webp", "9.tif", "9.jpeg", "9.BMP"):
        trees.stub(root / "visible" / "carl" / name)
    listing = folders.scan(root)
    assert len(listing.records) == 53 and len(set(listing.records.name)) == 53
    (line,) = listing.problems
    assert "skipped 7 files or folders" in line and "and 2 more" in line
    assert "visible/anna/older/" in line and "visible/anna/Thumbs.db" in line
    assert listing.persons == PEOPLE


def test_one_name_in_two_spellings_of_unicode(tmp_path):
    """macOS writes an umlaut as letter and mark; a copy of one side keeps it so."""
    root = trees.people(tmp_path / "p", {"visible/Mu\u0308ller": 2, "infrared/M\u00fcller": 2})
    if len({p.name for p in root.glob("*/*")}) == 1:
        pytest.skip("this file system spells them alike")
    listing = folders.scan(root)
    assert listing.persons == ("Müller",) and not listing.problems
    assert all(os.path.exists(path) for path in listing.records.images)


def test_names_that_are_no_text(tmp_path):
    root = trees.people(tmp_path / "p", both(PEOPLE[:2]))
    folder = os.fsencode(root) + b"/visible/m\xfcller"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    trees.stub(folder + b"/\xe4.jpg")
    trees.stub(folder + b"/\xe4.txt")
    listing = folders.scan(root)
    row = listing.records.name.index(r"visible/m\xfcller/\xe4.jpg")
    assert os.fsencode(listing.records.images[row]) == folder + b"/\xe4.jpg"
    assert listing.persons[listing.records.person[row]] == r"m\xfcller"
    "\n".join([*listing.records.name, *listing.persons, *listing.problems]).encode()


def test_different_names_in_the_two_modalities(tmp_path):
    root = trees.people(tmp_path / "p", {"visible/a1": 3, "visible/a2": 3, "infrared/b1": 3})
    with pytest.raises(TreeError, match=r"(?s)persons with both modalities +some +0.*same name"):
        folders.scan(root)
    split = folders.split(folders.scan(root, strict=False))
    assert len(split.train) == 0 and len(split.test.query) == 3


def test_empty_folders(tmp_path):
    root = trees.people(tmp_path / "p", both(n=0))
    for strict in (True, False):
        with pytest.raises(TreeError, match="holds no image of a set of people"):
            folders.scan(root, strict=strict)


# --- who cannot be trained on ---------------------------------------------------------------


@pytest.fixture
def uneven(tmp_path):
    layout = both(PEOPLE)
    del layout["infrared/anna"], layout["visible/bob"]
    layout["infrared/carl"] = 1
    return folders.scan(trees.people(tmp_path / "p", layout))


def test_one_modality_or_too_few_images(uneven, monkeypatch):
    assert uneven.problems == (
        "person anna has 0 infrared images: not usable for training, kept for search",
        "person bob has 0 visible images: not usable for training, kept for search",
        "person carl has 1 infrared image (fewer than 2): not usable for training, kept for search",
    )
    for seed in range(20):
        split = folders.split(uneven, seed=seed)
        assert not {0, 1, 2} & set(split.train.person)
        assert {0, 2} <= set(split.test.gallery.person) and 1 not in split.test.gallery.person
        assert {1, 2} <= set(split.test.query.person) and 0 not in split.test.query.person
    label, persons = train_labels(split.train)
    assert (label >= 0).all() and len(persons) == 4  # of five, one is tested on
    monkeypatch.setattr(folders, "MIN_IMAGES", 1)
    assert any(2 in folders.split(uneven, seed=s).train.person for s in range(5))


def test_many_of_them_are_counted(tmp_path):
    layout = {**both(), **{f"visible/p{n:02d}": 1 for n in range(30)}}
    listing = folders.scan(trees.people(tmp_path / "p", layout))
    assert len(listing.problems) == 11 and listing.problems[-1].endswith("20 more persons")


def test_given_parts_are_not_changed_for_them(tmp_path):
    layout = parts(train=PEOPLE[:4], test=PEOPLE[4:])
    del layout["train/infrared/anna"]
    split = folders.split(folders.scan(trees.people(tmp_path / "p", layout)))
    assert 0 not in split.train.person and 0 not in split.test.gallery.person
    assert "left out of training, as given above: 1 persons" in split.notes


# --- the lot --------------------------------------------------------------------------------


def listing_of(persons, images=2):
    person = np.repeat(np.array(persons, np.int32), 2 * images)
    modality = np.tile(np.repeat(np.array([VISIBLE, INFRARED], np.int8), images), len(persons))
    n = len(person)
    records = Records(
        [f"{i}.jpg" for i in range(n)], person, np.zeros(n, np.int32), modality,
        [str(i) for i in range(n)],
    )  # fmt: skip
    return Listing("folders", records, np.full(n, "all"))


@settings(deadline=None, max_examples=60)
@given(
    persons=st.lists(st.integers(0, 10**6), min_size=5, max_size=40, unique=True),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_the_lot(persons, share, seed, data):
    listing = listing_of(persons)
    tests = min(len(persons), max(1, round(share * len(persons))))
    val_ids = data.draw(st.integers(0, max(0, len(persons) - tests - 2)))
    split = folders.split(listing, test_share=share, seed=seed, val_ids=val_ids)
    train, test = set(split.train.person.tolist()), set(split.test.query.person.tolist())
    val = set(split.val.query.person.tolist()) if split.val else set()
    assert train | val | test == set(persons)
    assert len(train) + len(val) + len(test) == len(persons)
    assert len(test) == tests and len(val) == val_ids
    assert set(split.test.gallery.person.tolist()) == test
    # The order of the rows is no part of the lot.
    shuffled = listing.take(np.random.default_rng(0).permutation(len(listing.records)))
    other = folders.split(shuffled, test_share=share, seed=seed, val_ids=val_ids)
    assert set(other.test.query.person.tolist()) == test
    # Nor is who else is there, but for how many are taken.
    if tests > 1:
        fewer = listing.take(listing.records.person != max(train | val, default=-1))
        again = folders.split(fewer, test_share=tests / len(set(fewer.records.person)), seed=seed)
        assert set(again.test.query.person.tolist()) == test


def test_the_lot_depends_on_the_seed():
    listing = listing_of(range(40))
    draws = {frozenset(folders.split(listing, seed=s).test.query.person) for s in range(10)}
    assert len(draws) == 10
    # Golden: whoever trained yesterday must be tested on the same people tomorrow.
    # printf "0:$p" | sha256sum for p in 0 .. 39, sorted, the first ten.
    golden = [4, 7, 9, 15, 18, 20, 25, 33, 36, 37]
    assert sorted(set(folders.split(listing, seed=0).test.query.person.tolist())) == golden


def test_the_lot_of_named_people_does_not_change_with_a_newcomer(tmp_path):
    def tested(names):
        listing = folders.scan(trees.people(tmp_path / "p", both(names)))
        split = folders.split(listing, test_share=0.5)
        return {listing.persons[p] for p in split.test.query.person}

    before = tested(PEOPLE)
    after = tested(("aaron", *PEOPLE))  # whose number is 0: all others move up
    assert len(before) == len(after) == 4
    assert after - before <= {"aaron"}


def test_everybody_is_tested_on():
    split = folders.split(listing_of(range(6)), test_share=1.0)
    assert len(split.train) == 0 and split.val is None and len(split.test.query) == 12
    with pytest.raises(ValueError, match="no person has images in both modalities"):
        train_labels(split.train)
    with pytest.raises(ValueError, match=r"val_ids is 1, .* give 0 to 0"):
        folders.split(listing_of(range(6)), test_share=1, val_ids=1)


@each(
    ("options", "message"),
    [
        ({"test_share": 0}, "test_share is 0, expected above 0"),
        ({"test_share": 1.5}, "test_share is 1.5"),
        ({"test_share": float("nan")}, "test_share is nan"),
        ({"test_share": "half"}, "test_share is 'half'"),
        ({"test_share": True}, "test_share is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"val_ids": 29}, r"val_ids is 29, .* give 0 to 28"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        folders.split(listing_of(range(40)), **options)
