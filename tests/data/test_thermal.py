"""16-bit gray images by their range of values, wherever they are read."""

import numpy as np
import pytest
from PIL import Image

from tests.support.rows import each
from vireid_jax.data import __main__ as command
from vireid_jax.data import arrays, cache, datasets, prepared, readers, survey, thermal

# A person of 96 values, such as a radiometric camera's.
VALUES = np.linspace(29_000, 31_500, 96).astype(np.uint16).reshape(12, 8)
RANGE = "29000:31500"


@pytest.fixture
def mine(tmp_path):
    """Four people; infrared images have 16 bits."""
    for person in "abcd":
        for side, image in (("visible", np.full((12, 8, 3), 90, np.uint8)), ("thermal", VALUES)):
            folder = tmp_path / "mine" / side / person
            folder.mkdir(parents=True)
            for n in range(2):
                Image.fromarray(image + np.uint8(n)).save(folder / f"{n}.tif")
    return tmp_path / "mine"


@each(
    "thermal_range, values, levels",
    [
        ("full", [0, 255, 256, 29_000, 65_535], [0, 0, 1, 113, 255]),
        ("image", [7_000, 7_750, 8_500], [0, 128, 255]),
        ("image", [7, 7], [0, 0]),
        ("29000:31500", [0, 29_000, 29_004, 29_005, 30_250, 31_500, 65_535],
         [0, 0, 0, 1, 128, 255, 255]),
        ("0:65535", [0, 128, 129, 65_535], [0, 0, 1, 255]),
        ("0:16383", [0, 8_192, 16_383, 16_384], [0, 128, 255, 255]),
    ],
)  # fmt: skip
def test_levels_by_hand(thermal_range, values, levels):
    got = thermal.stretch(np.array([values], np.uint16), thermal_range)
    assert got.dtype == np.uint8 and got.tolist() == [levels]


@each("wrong", ["wide", "", "1:1", "2:1", "0:65536", "-1:5", "1.5:9", "1:2:3", "1 : 2", None])
def test_other_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match="expected full, image or LOW:HIGH within 0:65535"):
        thermal.check_range(wrong)


@each("thermal_range, left", [(None, 11), ("full", 11), ("image", 96), (RANGE, 96)])
def test_every_way_to_bring_images_keeps_as_many_levels(mine, tmp_path, thermal_range, left):
    common = dict(name="folders", image_size=(12, 8), test_share=0.5)
    common |= dict(cache=tmp_path / "c", thermal_range=thermal_range)
    listing = readers.get_reader("folders").scan(mine)
    listing = thermal.ranged(listing, thermal_range or "full")
    prepared.prepare(listing, out=tmp_path / "p")
    want = None
    for place in ({"root": mine}, {"prepared": tmp_path / "p"}):
        for images in datasets.IMAGES:
            query = datasets.load(images=images, **place, **common).test.query
            got = query.images
            if images == "encoded":
                got = arrays.decode(got, (12, 8))
                some = query.take(np.array([0, 1]))  # as a batch has them
                assert (arrays.decode(some.images, (12, 8)) == got[:2]).all()
            got = got[np.arange(len(query))]
            assert len(np.unique(got[0])) == left, (place, images)
            want = got if want is None else want
            np.testing.assert_array_equal(got, want)


def test_the_range_belongs_to_what_is_kept(mine, tmp_path):
    listing = readers.get_reader("folders").scan(mine)
    others = [thermal.ranged(listing, r) for r in ("image", RANGE, "29000:31501")]
    stems = {cache._stem(x, (12, 8), "lanczos", tmp_path, None) for x in (listing, *others)}
    assert len(stems) == 4
    assert thermal.ranged(listing, "full") is listing
    prepared.prepare(listing, out=tmp_path)
    ready = prepared.prepare(others[1], out=tmp_path)
    assert ready.records.images.thermal_range == RANGE
    assert ready.take(np.array([1])).records.images.thermal_range == RANGE
    datasets.load(name="folders", prepared=tmp_path, images="encoded")
    with pytest.raises(ValueError, match=f"image, but .* prepared with {RANGE}.*--thermal-range"):
        datasets.load(name="folders", prepared=tmp_path, thermal_range="image")


def test_lines_on_images_of_few_levels(mine, tmp_path, monkeypatch):
    listing = readers.get_reader("folders").scan(mine)
    (line,) = survey.survey(listing)
    assert line.startswith(
        "8 of 16 images have 16 bits, values 29,000 to 31,501: the 96 values of an image (median) "
        "become 11 gray levels with data.thermal_range=full; to keep more, name the range"
    )
    assert "data.thermal_range=29000:31501" in line
    (line,) = survey.survey(thermal.ranged(listing, RANGE))
    assert line.endswith(f"become 96 gray levels with data.thermal_range={RANGE}")
    split = datasets.load(name="folders", root=mine, images="encoded")
    assert any("11 gray levels" in note for note in split.notes), "and training says it, too"
    eight = listing.take(listing.records.modality == 0)
    assert survey.survey(eight) == []
    # Images of the full range beside them hide nothing.
    for person in "abc":
        for n in range(2):
            wide = np.arange(96, dtype=np.uint16).reshape(12, 8) * 600
            Image.fromarray(wide).save(mine / "thermal" / person / f"{n}.tif")
    (line,) = survey.survey(listing)
    assert "8 of 16 images have 16 bits; 2 of them keep few levels, values 29,000 to" in line
    assert "11 gray levels" in line
    monkeypatch.setattr(survey, "_SAMPLE", 4)
    assert "2 of 4 images looked at have" in survey.survey(listing)[0]
    assert "8 of 16 images have" in survey.survey(listing, every=True)[0]


def test_check_counts_turned_and_deep_images(mine, capsys):
    note = Image.Exif()
    note[0x0112] = 6
    path = mine / "visible" / "c" / "1.tif"
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(path, exif=note)
    path.with_name("2.jpg").write_bytes(b"no image")
    command.main(["check", "folders", "--root", str(mine), "--decode"])
    out = capsys.readouterr().out
    assert "note: 1 of 17 images are marked as turned (EXIF), such as visible/c/1.tif" in out
    assert "note: 8 of 17 images have 16 bits" in out and "11 gray levels" in out
    command.main(["check", "folders", "--root", str(mine), "--thermal-range", "image"])
    assert "96 gray levels with data.thermal_range=image" in capsys.readouterr().out
    assert command.main(["check", "folders", "--root", str(mine), "--thermal-range", "x"]) == 1
    assert "thermal_range is 'x', expected full" in capsys.readouterr().err


def test_a_prepared_set_has_its_range(mine, tmp_path, capsys):
    arguments = ["--root", str(mine), "--out", str(tmp_path), "--thermal-range", RANGE]
    assert command.main(["prepare", "folders", *arguments]) == 0
    assert "96 gray levels" in capsys.readouterr().out
    assert prepared.find("folders", out=tmp_path).records.images.thermal_range == RANGE
    sheet = tmp_path / "sheet.png"
    arguments = ["--root", str(mine), "--sheet", str(sheet), "--thermal-range", RANGE]
    assert command.main(["show", "folders", *arguments]) == 0
    assert len(np.unique(np.asarray(Image.open(sheet)))) > 96
