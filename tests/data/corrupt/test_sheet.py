"""The contact sheet and its command line."""

import os
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from tests.support.rows import each
from vireid_jax.data.corrupt import __main__ as sheet
from vireid_jax.data.corrupt.__main__ import main
from vireid_jax.data.sheet import write_picture

from .pictures import picture


@pytest.fixture
def person(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "IMAGE_SIZE", (96, 48))  # the full size takes long
    path = tmp_path / "person.png"
    Image.fromarray(picture(0, (200, 90))).save(path)
    return path


def test_the_command_writes_a_sheet(tmp_path, person, capsys):
    out = tmp_path / "sheet.png"
    assert main(["--sheet", str(out), "--image", str(person)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    with Image.open(out) as stored:
        pixels = np.asarray(stored.convert("RGB")).astype(int)
    x = 8 + 6 * len("gaussian")  # after the longest word of a caption in this half
    clean = np.asarray(Image.fromarray(sheet.read(person)).resize((56, 112), Image.Resampling.BOX))
    found = np.abs(pixels[34 : 34 + 112, x : x + 56] - clean)
    assert found.max() <= 3  # the clean picture, less its two lowest bits
    assert sorted(p.name for p in tmp_path.iterdir()) == ["person.png", "sheet.png"]


def test_nothing_is_left_of_a_sheet_that_failed(tmp_path, monkeypatch):
    def full(self, file, *args, **options):
        with open(file, "wb") if isinstance(file, str | os.PathLike) else nullcontext(file) as out:
            out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    (tmp_path / "s.png").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_picture(Image.new("RGB", (4, 4)), tmp_path / "s.png")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.slow
def test_a_sheet_is_a_function_of_image_and_seed(tmp_path):
    paths = [tmp_path / name for name in ("0.png", "1.png", "2.png", "jpeg.jpg")]
    for path, seed in zip(paths, (0, 0, 1, 0), strict=True):
        sheet.contact_sheet(path, picture(1, (32, 16)), seed=seed)
    one, two, other, jpeg = (path.read_bytes() for path in paths)
    assert one == two != other
    assert jpeg[:2] == b"\xff\xd8"


def test_without_an_image_one_is_rendered(monkeypatch):
    monkeypatch.setattr(sheet, "IMAGE_SIZE", (48, 24))
    image = sheet.person()
    assert image.shape == (48, 24, 3) and image.dtype == np.uint8
    assert np.ptp(image.astype(int), axis=2).max() > 60  # visible: it has colors


@each(
    ("path", "image", "message"),
    [
        ("s.png", "none.png", "none.png not found"),
        ("s.txt", "person.png", "does not end like a picture"),
        ("no/s.png", "person.png", "the folder no does not exist"),
        ("s.png", "broken.png", "cannot be read as a picture"),
    ],
)
def test_errors_are_one_line(tmp_path, person, monkeypatch, capsys, path, image, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(person.read_bytes()[:60])
    assert main(["--sheet", path, "--image", image]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.png", "person.png"]


def test_the_sheet_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--sheet" in capsys.readouterr().err
