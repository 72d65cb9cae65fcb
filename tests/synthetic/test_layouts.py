"""Trees on disk in the released layouts, the contact sheet and the command line."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.rows import each
from vireid_jax.synthetic import layouts
from vireid_jax.synthetic.__main__ import contact_sheet, main
from vireid_jax.synthetic.layouts import write_tree

SIZE = (48, 24)
ONE = {"train_ids": 1, "test_ids": 1, "images": 1, "image_size": SIZE}


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def numbers(path):
    (line,) = path.read_text().splitlines()
    return [int(n) for n in line.split(",")]


def listed(path):
    paths, labels = zip(*(line.split(" ") for line in path.read_text().splitlines()), strict=True)
    return list(paths), [int(label) for label in labels]


def test_sysu(tmp_path):
    root = write_tree(
        tmp_path / "SYSU-MM01", "sysu", train_ids=3, val_ids=2, test_ids=2, images=2,
        image_size=SIZE,
    )  # fmt: skip
    ids = {s: numbers(root / "exp" / f"{s}_id.txt") for s in ("train", "val", "test", "available")}
    assert [len(ids[s]) for s in ("train", "val", "test")] == [3, 2, 2]
    assert sorted(ids["train"] + ids["val"] + ids["test"]) == ids["available"] == list(range(1, 8))
    images = [f for f in files(root) if f.startswith("cam")]
    assert images == sorted(
        f"cam{c}/{p:04d}/{i:04d}.jpg" for c in range(1, 7) for p in range(1, 8) for i in (1, 2)
    )
    for name in images:
        pixels = np.asarray(Image.open(root / name)).astype(int)
        assert pixels.shape == (*SIZE, 3)
        grey = np.ptp(pixels, axis=-1).mean() < 2
        assert grey == name.startswith(("cam3", "cam6"))


def test_regdb(tmp_path):
    root = write_tree(
        tmp_path / "RegDB", "regdb", train_ids=3, test_ids=3, images=2, image_size=SIZE
    )
    assert len(list((root / "idx").iterdir())) == 40
    for folder in ("Visible", "Thermal"):
        assert sorted(p.name for p in (root / folder).iterdir()) == list("123456")
        assert all(len(list(p.glob("*.bmp"))) == 2 for p in (root / folder).iterdir())
    halves = set()
    for trial in range(1, 11):
        people = {}
        for part in ("train", "test"):
            labels = {}
            for side in ("visible", "thermal"):
                paths, label = listed(root / "idx" / f"{part}_{side}_{trial}.txt")
                assert len(paths) == 6 and all((root / p).is_file() for p in paths)
                assert all(p.startswith(side.capitalize()) for p in paths)
                assert sorted(set(label)) == [0, 1, 2]
                person = [int(p.split("/")[1]) for p in paths]
                labels[side] = dict(zip(person, label, strict=True))
                people[part] = set(person)
            assert labels["visible"] == labels["thermal"]
        assert people["train"] | people["test"] == set(range(1, 7))
        assert not people["train"] & people["test"]
        halves.add(tuple(sorted(people["train"])))
    assert len(halves) > 3


def test_llcm(tmp_path):
    root = write_tree(tmp_path / "LLCM", "llcm", train_ids=3, test_ids=2, images=2, image_size=SIZE)
    test_ids = numbers(root / "idx" / "test_id.txt")
    train_ids = sorted(int(p.name) for p in (root / "vis").iterdir())
    assert sorted(train_ids + test_ids) == [1, 2, 3, 4, 5]
    for suffix in ("vis", "nir"):
        paths, label = listed(root / "idx" / f"train_{suffix}.txt")
        assert sorted(set(label)) == [0, 1, 2] and len(paths) == 3 * 4 * 2
        test_paths, test_label = listed(root / "idx" / f"test_{suffix}.txt")
        assert len(test_paths) == len(test_label) == 2 * 4 * 2
        on_disk = [f for f in files(root) if f.endswith(f"_{suffix}.jpg")]
        assert on_disk == sorted(paths + test_paths)
        for path, number in zip(paths, label, strict=True):
            folder, person, name = path.split("/")
            assert folder == suffix and int(person) == train_ids[number]
            assert name.startswith(f"{person}_c0")
        for path in test_paths:
            folder, camera, person, name = path.split("/")
            assert folder == f"test_{suffix}" and int(person) in test_ids
            # Two readers must agree: the folder's camera and the digit after "c0".
            assert camera.removeprefix("cam") == name.split("_c0")[1][0]
    cameras = {p.name for p in (root / "test_nir").iterdir()}
    assert "cam3" not in cameras and cameras <= {f"cam{c}" for c in range(1, 10)}


def test_same_seed_same_bytes_in_a_new_or_empty_folder(tmp_path):
    (tmp_path / "b" / "data").mkdir(parents=True)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        target = tmp_path / name / "data"  # parents are made
        assert write_tree(target, "regdb", **ONE, seed=seed) == target
    a, b, c = (tmp_path / n / "data" for n in "abc")
    assert files(a) == files(b)
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files(a))
    assert any((a / f).read_bytes() != (c / f).read_bytes() for f in set(files(a)) & set(files(c)))
    assert (b.stat().st_mode & 0o777) == 0o755


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    for name in ("data/mine.txt", "file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("keep")
        with pytest.raises(FileExistsError, match="not an empty folder"):
            write_tree(tmp_path / name.split("/")[0], "sysu")
    assert files(tmp_path) == ["data/mine.txt", "file"]


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    saved = []

    def full_disk(path, image):
        saved.append(path)
        if len(saved) > 2:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    monkeypatch.setattr(layouts, "_save", full_disk)
    monkeypatch.setattr(layouts, "render_images", lambda *a, **k: np.zeros((20, 1, 1, 3), np.uint8))
    with pytest.raises(OSError, match="No space"):
        write_tree(tmp_path / "data", "sysu", train_ids=2, test_ids=2)
    assert len(saved) == 3 and os.listdir(tmp_path) == []


@each(
    ("layout", "options", "match"),
    [
        ("market", {}, "'market' is unknown, expected one of"),
        ("regdb", {"train_ids": 3, "test_ids": 4}, "same number for both"),
        ("regdb", {"val_ids": 2}, "no validation list"),
        ("llcm", {"images": 100}, "images is 100, expected a whole number, 1 to 99"),
        ("sysu", {"train_ids": 0}, "train_ids is 0"),
        ("sysu", {"image_size": (4, 4)}, "image_size"),
        ("sysu", {"seed": -1}, "seed is -1"),
    ],
)
def test_bad_options(tmp_path, layout, options, match):
    with pytest.raises(ValueError, match=match):
        write_tree(tmp_path / "data", layout, **options)
    assert os.listdir(tmp_path) == []


# --- the contact sheet and the command line ---


@each(
    ("name", "options", "error", "match"),
    [
        ("sheet.xyz", {}, ValueError, "does not end like a picture"),
        ("sheet.png", {"ids": 0}, ValueError, "ids is 0"),
        ("sheet.png", {"split": "all"}, ValueError, "split 'all'"),
        ("none/sheet.png", {"ids": 1}, FileNotFoundError, "does not exist"),
    ],
)
def test_contact_sheet_refuses(tmp_path, name, options, error, match):
    with pytest.raises(error, match=match):
        contact_sheet(tmp_path / name, **{"image_size": SIZE, **options})
    assert os.listdir(tmp_path) == []


def test_command_line_writes_sheet_and_tree(tmp_path, capsys):
    sheet, tree = tmp_path / "s.png", tmp_path / "tree"
    common = ["--ids", "1", "--images", "1", "--image-size", "48x24", "--seed", "2"]
    assert main(["--sheet", str(sheet), "--out", str(tree), "--layout", "regdb", *common]) == 0
    assert sorted(os.listdir(tmp_path)) == ["s.png", "tree"]
    assert (tree / "idx" / "test_thermal_10.txt").is_file()
    assert str(sheet) in capsys.readouterr().out
    height, width = SIZE
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape[0] > height and pixels.shape[1] > 6 * width
    dark = pixels[-height:, -2 * width - 3 :].astype(int)  # the infrared cameras come last
    assert np.ptp(dark, axis=-1).max() == 0 and dark.std() > 5
    assert main(["--out", str(tree), "--layout", "regdb", *common]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "not an empty folder" in captured.err


@each(
    ("argv", "match"),
    [
        ([], "nothing to do"),
        (["--out", "x"], "--out and --layout go together"),
        (["--layout", "sysu", "--sheet", "x.png"], "--out and --layout go together"),
        (["--out", "x", "--layout", "market"], "invalid choice"),
        (["--out", "x", "--layout", "llcm", "--val-ids", "3"], "--val-ids goes with"),
        (["--sheet", "x.png", "--image-size", "96"], "HEIGHTxWIDTH"),
    ],
)
def test_command_line_refuses(argv, match, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2 and match in capsys.readouterr().err


@each("argv", [("s.png", "--ids", "0"), ("s.png", "--image-size", "4x4"), ("no/s.png",)])
def test_command_line_reports_bad_values_without_a_traceback(tmp_path, capsys, argv):
    assert main(["--sheet", str(tmp_path / argv[0]), *argv[1:]]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("module", ["vireid_jax.synthetic", "vireid_jax.data.synthetic"])
def test_help_as_a_module_is_quick_and_needs_no_jax(module):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['synthetic', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as e: print('exit', e.code, 'jax' in sys.modules)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert "--sheet" in done.stdout and done.stdout.endswith("exit 0 False\n")
