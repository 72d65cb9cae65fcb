"""The contact sheet and its command line."""

import numpy as np
import pytest
from PIL import Image

from vireid_jax.data.corrupt import __main__ as sheet
from vireid_jax.data.corrupt.__main__ import main

from .pictures import picture


def pixels_of(path):
    with Image.open(path) as stored:
        return np.asarray(stored.convert("RGB"))


@pytest.fixture
def person(tmp_path):
    path = tmp_path / "person.png"
    Image.fromarray(picture(0, (200, 90))).save(path)
    return path


def test_the_command_writes_a_sheet(tmp_path, person, capsys):
    out = tmp_path / "sheet.png"
    assert main(["--sheet", str(out), "--image", str(person)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    pixels = pixels_of(out).astype(int)
    x = 8 + 6 * len("gaussian")  # after the longest word of a caption in this half
    clean = np.asarray(Image.fromarray(sheet.read(person)).resize((56, 112), Image.Resampling.BOX))
    found = np.abs(pixels[34 : 34 + 112, x : x + 56] - clean)
    assert found.max() <= 3  # the clean picture, less its two lowest bits
    assert sorted(p.name for p in tmp_path.iterdir()) == ["person.png", "sheet.png"]


def test_a_sheet_is_a_function_of_image_and_seed(tmp_path):
    image = picture(1, (64, 32))
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        sheet.contact_sheet(path, image, seed=seed, shown=(32, 16))
    one, two, other = (pixels_of(p) for p in paths)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_another_picture_format(tmp_path):
    sheet.contact_sheet(tmp_path / "s.jpg", picture(1, (32, 16)), shown=(32, 16))
    with Image.open(tmp_path / "s.jpg") as stored:
        assert stored.format == "JPEG"


def test_without_an_image_one_is_rendered(monkeypatch):
    monkeypatch.setattr(sheet, "IMAGE_SIZE", (48, 24))  # the full size takes long to compile
    image = sheet.person()
    assert image.shape == (48, 24, 3) and image.dtype == np.uint8
    assert np.ptp(image.astype(int), axis=2).max() > 60  # visible: it has colors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sheet", "s.png", "--image", "none.png"], "none.png not found"),
        (["--sheet", "s.txt", "--image", "person.png"], "does not end like a picture"),
        (["--sheet", "no/s.png", "--image", "person.png"], "the folder no does not exist"),
        (["--sheet", "s.png", "--image", "broken.png"], "cannot be read as a picture"),
    ],
)
def test_errors_are_one_line(tmp_path, person, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(person.read_bytes()[:60])
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_left_of_a_sheet_that_failed(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        sheet.contact_sheet(tmp_path / "s.png", picture(0, (32, 16)), shown=(32, 16))
    assert not list(tmp_path.iterdir())


def test_the_sheet_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--sheet" in capsys.readouterr().err
    with pytest.raises(ValueError, match="shown is"):
        sheet.contact_sheet("s.png", picture(0), shown=(8, 4))
