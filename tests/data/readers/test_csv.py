"""One's own images by a CSV file."""

import os

import pytest

from tests.support.rows import each
from vireid_jax.data.readers import folders
from vireid_jax.data.readers.common import TreeError

from . import trees
from .test_folders import PEOPLE


def table(root, rows, *, header="path,person,modality", name="people.csv", make=True):
    root.mkdir(exist_ok=True)
    for row in rows if make else ():
        path = root / row.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        trees.stub(path)
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root / name


def rows(names=PEOPLE, extra=""):
    return [
        f"{side}_{name}_{i}.jpg,{name},{side}{extra}"
        for side in ("rgb", "ir") for name in names for i in range(2)
    ]  # fmt: skip


def test_csv(tmp_path):
    file = table(tmp_path / "x", rows())
    for root in (file, tmp_path / "x"):
        listing = folders.scan(root)
        assert len(listing.records) == 32 and listing.persons == PEOPLE
        assert listing.records.name[0] == "rgb_anna_0.jpg"
        assert listing.records.images[0] == str(tmp_path / "x" / "rgb_anna_0.jpg")
        assert "no camera numbers" in folders.split(listing).notes[0]
    want = folders.scan(file)
    text = file.read_text()
    for other in (
        text.replace(",", ";"),
        text.replace(",", "\t"),
        "\ufeff" + text,
        text.replace("\n", "\r\n"),
        text.replace("path,person", " Path , PERSON "),
    ):
        file.write_text(other, encoding="utf-8")
        assert folders.scan(file).records.name == want.records.name


def test_csv_with_cameras_and_a_split(tmp_path):
    lines = rows(PEOPLE[:4], ",2,train") + rows(PEOPLE[4:], ",7,test")
    listing = folders.scan(table(tmp_path / "x", lines, header="path,person,modality,camera,split"))
    split = folders.split(listing)
    assert set(split.train.camera) == {2} and set(split.test.query.camera) == {7}
    assert not split.notes
    names = [line.replace(",2,", ",lobby,").replace(",7,", ",,") for line in lines]
    (tmp_path / "x" / "people.csv").write_text(
        "\n".join(["path,person,modality,camera,split", *names])
    )
    listing = folders.scan(tmp_path / "x")
    assert set(listing.records.camera) == {0, 1}
    assert "cameras are numbered 1 = lobby" in listing.problems


def test_csv_beside_absolute_paths_and_other_folders(tmp_path):
    away = tmp_path / "away"
    lines = [f"../away/{line}" for line in rows()[:16]]
    lines += [f"{away}/{line}" for line in rows()[16:]]
    away.mkdir()
    for line in rows():
        trees.stub(away / line.split(",")[0])
    listing = folders.scan(table(tmp_path / "x", lines, make=False))
    assert len(listing.records) == 32
    assert listing.records.name[0] == "../away/rgb_anna_0.jpg"


@each(
    ("line", "what"),
    [
        ("gone.jpg,anna,rgb", r"listed images that are not there +0 +1: gone.jpg"),
        ("rgb_anna_0.jpg,anna,rgb", r"listed twice +0 +1: rgb_anna_0.jpg \(line 34\)"),
        ("../x/./rgb_anna_0.jpg,bob,rgb", r"(?s)listed twice.*anna_0.jpg \(line 34\)"),
        ("{here}/rgb_anna_0.jpg,bob,rgb", r"(?s)listed twice.*anna_0.jpg \(line 34\)"),
        ("a.jpg,,rgb", r"line 34 lacks a path or a person"),
        ("a.jpg", r"line 34 lacks a path or a person"),
        ("a.jpg,anna,radar", r"line 34 has the modality 'radar'"),
        ("a.txt,anna,rgb", r"line 34 names 'a.txt', no image"),
    ],
)
def test_csv_lines_that_cannot_be_used(tmp_path, line, what):
    file = table(tmp_path / "x", rows())
    file.write_text(file.read_text() + line.format(here=tmp_path / "x") + "\n")
    with pytest.raises(TreeError, match=what):
        folders.scan(file)
    listing = folders.scan(file, strict=False)
    assert len(listing.records) == 32 and "without faults" in listing.problems[0]


def test_csv_with_half_a_split(tmp_path):
    lines = [f"{line},train" for line in rows(PEOPLE[:4])] + rows(PEOPLE[4:])
    file = table(tmp_path / "x", lines, header="path,person,modality,split")
    with pytest.raises(TreeError, match=r"lines that cannot be used +0 +16: line 18 has the split"):
        folders.scan(file)


@each(
    ("text", "message"),
    [
        ("", "lacks path, person, modality"),
        ("file,id\na.jpg,1\n", "'file,id' and lacks path, person, modality"),
        ("path,person\n", "lacks modality; expected a header"),
        ("path,person,modality\n", "holds no image"),
        ("path,person,modality\n" + "x" * 200_000 + ",a,rgb\n", "is it text"),
    ],
)
def test_csv_that_is_none(tmp_path, text, message):
    file = tmp_path / "people.csv"
    file.write_text(text)
    with pytest.raises(TreeError, match=message):
        folders.scan(file)


def test_a_list_that_is_no_file_of_a_sane_size_is_not_read(tmp_path):
    trees.people(tmp_path, {"images": 1})
    os.mkfifo(tmp_path / "people.csv")
    with pytest.raises(TreeError, match=r"people\.csv is not read .* it is a FIFO"):
        folders.scan(tmp_path)
    os.remove(tmp_path / "people.csv")
    with open(tmp_path / "people.csv", "wb") as file:
        file.truncate(200 * 10**9)
    with pytest.raises(TreeError, match=r"people\.csv is not read .* expected at most 268\.4 MB"):
        folders.scan(tmp_path / "people.csv")


def test_two_csv_files(tmp_path):
    table(tmp_path / "x", rows())
    table(tmp_path / "x", rows(), name="other.csv")
    with pytest.raises(TreeError, match=r"2 CSV files; name one of other.csv, people.csv"):
        folders.scan(tmp_path / "x")


def test_row_numbers_of_pandas_are_no_column(tmp_path):
    file = table(tmp_path / "x", rows())
    want = folders.scan(file).records.name
    lines = [f"{n},{line}" for n, line in enumerate(rows())]
    file.write_text("\n".join([",path,person,modality", *lines]))
    listing = folders.scan(file)
    assert listing.records.name == want and set(listing.part) == {"all"}
    assert not listing.records.camera.any() and not listing.problems


@each(("encoding", "line"), [("latin-1", 34), ("utf-16", 1)])
def test_other_encodings_are_refused(tmp_path, encoding, line):
    """Read with marks for what is unknown, Müller and Möller would be one person."""
    lines = [*rows(), "a.jpg,Müller,rgb", "b.jpg,Möller,rgb"]
    file = table(tmp_path / "x", lines)
    assert {"Müller", "Möller"} <= set(folders.scan(file, strict=False).persons)
    file.write_bytes(file.read_text("utf-8").encode(encoding))
    with pytest.raises(TreeError, match=f"line {line} of .*people.csv is not in UTF-8"):
        folders.scan(file)
