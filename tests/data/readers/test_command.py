"""The command line on rendered trees, and what looking into the images tells."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tests.support.rows import each
from vireid_jax.data import __main__ as command
from vireid_jax.data import cache, datasets, prepared, sheet
from vireid_jax.data.readers import READERS, common, get_reader, sysu
from vireid_jax.synthetic.layouts import write_tree

from . import trees

REPO = pathlib.Path(__file__).parents[3]
SIZE = (48, 24)  # the size of most rendered images in the tests: one program


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Rendered trees; "folders" reads RegDB's two folders."""
    top = tmp_path_factory.mktemp("released")
    found = {
        layout: write_tree(top / layout, layout, train_ids=3, test_ids=3, images=2, image_size=SIZE)
        for layout in ("sysu", "regdb", "llcm")
    }
    found["folders"] = top / "own"
    found["folders"].mkdir()
    for folder in ("Visible", "Thermal"):
        shutil.copytree(found["regdb"] / folder, found["folders"] / folder)
    return found


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def run(capsys, *arguments):
    status = command.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_help_needs_nothing_heavy():
    code = (
        "import sys, vireid_jax.data.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('scipy', 'PIL', 'jax', 'tensorflow') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    for name in ("check", "prepare", "show"):
        assert name in done.stdout


# --- check ----------------------------------------------------------------------------------


def test_escape_sequences_in_names_are_shown_not_obeyed(tmp_path, capsys):
    root = trees.people(tmp_path / "a\x1b[2J", {"visible/anna": 2, "infrared/anna": 2})
    trees.stub(f"{root}/visible/anna/\x1b]0;title\x07.txt")
    trees.stub(f"{root}/visible/anna/\x9b31m.txt")
    _, out, err = run(capsys, "check", "folders", "--root", root)
    assert r"a\x1b[2J: 4 images" in out and r"\x1b]0;title\x07.txt" in out and r"\x9b31m" in out
    status, _, none = run(capsys, "check", "folders", "--root", tmp_path / "\x1b[31mnone")
    assert status == 1 and r"\x1b[31mnone" in none
    assert not set("\x1b\x07\x9b") & set(out + err + none)


@each("name", ["sysu", "regdb", "llcm"])
def test_check_a_small_tree(released, capsys, name):
    status, out, _ = run(capsys, "check", name, "--root", released[name], "--decode")
    assert status == 1
    assert "expected" in out and "DIFFERS" in out and " ok" in out
    assert "0 of " in out and "cannot be decoded" in out
    assert "exchanged" not in out and "looked at" not in out
    assert get_reader(name).AGREEMENT in out


def test_check_names_unreadable_images(released, tmp_path, capsys):
    root = shutil.copytree(released["folders"], tmp_path / "own")
    first, second, third = sorted((root / "Visible" / "1").iterdir())[:1] + sorted(
        (root / "Thermal" / "2").iterdir()
    )
    for decode in ([], ["--decode"]):
        status, out, _ = run(capsys, "check", "folders", "--root", root, *decode)
        assert status == 0 and "own folders in" in out and "note:" not in out
    first.write_bytes(b"no image")
    second.write_bytes(b"")
    third.write_bytes(third.read_bytes()[:200])
    status, out, _ = run(capsys, "check", "folders", "--root", root, "--decode")
    assert status == 1 and "3 of 24 images cannot be decoded" in out
    for path in (first, second, third):
        assert path.name in out
    assert run(capsys, "check", "folders", "--root", root)[0] == 0  # names alone are all right


def test_check_with_another_root(released, tmp_path, capsys):
    for name, root in (("sysu", released["regdb"]), ("regdb", tmp_path / "nowhere")):
        status, out, err = run(capsys, "check", name, "--root", root)
        assert status == 1 and not out and err.startswith("error: ")
    for wrong in (["market", "--root", "x"], ["regdb", "--root", "x", "--rand-perm", "y"]):
        with pytest.raises(SystemExit):
            command.main(["check", *wrong])


# --- modalities the wrong way round ---------------------------------------------------------


def swap(root, a, b):
    os.rename(root / a, root / "x")
    os.rename(root / b, root / a)
    os.rename(root / "x", root / b)


@each("name", READERS)
def test_rendered_trees_are_the_right_way_round(released, name):
    assert common.exchanged(get_reader(name).scan(released[name], strict=False)) == []


def test_exchanged_folders(released, tmp_path, capsys):
    root = shutil.copytree(released["folders"], tmp_path / "own")
    swap(root, "Visible", "Thermal")
    status, out, _ = run(capsys, "check", "folders", "--root", root)
    assert status == 0 and "visible and infrared images look exchanged" in out


def test_exchanged_cameras(released, tmp_path):
    root = shutil.copytree(released["sysu"], tmp_path / "sysu")
    swap(root, "cam2", "cam3")
    lines = common.exchanged(sysu.scan(root, strict=False))
    assert lines == [
        "camera 2 is visible, but 8 of 8 images looked at are without color: infrared images, or "
        "very dark ones?",
        "camera 3 is infrared, but 8 of 8 images looked at are in color: visible images, or false "
        "colors?",
    ]


def test_stubs_tell_nothing(tmp_path):
    root = trees.people(tmp_path / "p", {"visible/a": 2, "infrared/a": 2})
    assert common.exchanged(READERS["folders"].scan(root)) == []


# --- the permutation file -------------------------------------------------------------------


def permutations(path, counts):
    """rand_perm_cam.mat for {(camera, person): images}."""
    rng = np.random.default_rng(0)
    cell = np.empty((6, 1), object)
    for camera in range(1, 7):
        cell[camera - 1, 0] = people = np.empty((1, 12), object)
        for person in range(1, 13):
            n = counts.get((camera, person), 0)
            people[0, person - 1] = np.array(
                [rng.permutation(n) + 1 for _ in range(10)], np.uint8
            ).reshape(10, n)
    scipy.io.savemat(path, {"rand_perm_cam": cell})
    return path


def test_permutations(released, tmp_path, capsys):
    listing = sysu.scan(released["sysu"], strict=False)
    people = set(listing.records.person[listing.part == "test"].tolist())
    counts = {(c, p): 2 for c in range(1, 7) for p in people}
    others = {(1, p): 9 for p in set(range(1, 11)) - people}  # not tested on: no matter
    file = permutations(tmp_path / "rand_perm_cam.mat", counts | others)
    checks = sysu.permutations(listing, file)
    assert checks[0].ok and checks[0].found == "all 18"
    assert not checks[1].ok and "digest" in checks[1].found  # not the released galleries
    person = min(people)
    file = permutations(tmp_path / "rand_perm_cam.mat", counts | {(6, person): 3})
    _, out, _ = run(capsys, "check", "sysu", "--root", released["sysu"], "--rand-perm", file)
    assert f"all but 1: cam6/{person:04d} (2 images, 3 in the file)" in out
    status, _, err = run(
        capsys, "check", "sysu", "--root", released["sysu"], "--rand-perm", tmp_path / "none.mat"
    )
    assert status == 1 and "none.mat" in err
    with pytest.raises(ValueError, match="permutations are SYSU-MM01's alone"):
        sysu.permutations(READERS["regdb"].scan(released["regdb"], strict=False), file)


# --- prepare --------------------------------------------------------------------------------


def test_prepare_refuses_another_tree(released, tmp_path, capsys):
    status, out, err = run(capsys, "prepare", "sysu", "--root", released["sysu"])
    assert status == 1 and "checks differ" in err and not out
    assert not (tmp_path / "data").exists()


@each("name", READERS)
def test_prepare_then_split(released, tmp_path, capsys, name):
    """What is prepared and decoded divides as the tree itself does."""
    status, out, err = run(
        capsys, "prepare", name, "--root", released[name], "--no-strict", "--size", "24x12",
        "--filter", "bilinear", "--out", tmp_path / "data",
    )  # fmt: skip
    assert status == 0, err
    assert "prepared " in out and str(tmp_path / "data") in out and "decoded to 24 x 12" in out
    reader = get_reader(name)
    ready = prepared.find(name)
    decoded = cache.decode_once(ready, image_size=(24, 12), filter="bilinear")
    want = reader.split(reader.scan(released[name], strict=False))
    for listing in (ready, decoded):
        split = reader.split(listing)
        for a, b in ((split.train, want.train), (split.test.query, want.test.query),
                     (split.test.gallery, want.test.gallery)):  # fmt: skip
            assert list(a.name) == list(b.name)
            assert (a.person == b.person).all() and (a.camera == b.camera).all()
    assert split.train.images.array is decoded.records.images.array
    first = split.test.query.images[np.array([0])]
    assert first.shape == (1, 24, 12, 3)
    assert abs(first.mean() - pixels(want.test.query.images[0]).mean()) < 5


def test_prepare_with_an_unreadable_image(released, tmp_path, capsys):
    root = shutil.copytree(released["folders"], tmp_path / "own")
    path = sorted((root / "Visible" / "1").iterdir())[0]
    path.write_bytes(b"no image")
    status, _, err = run(capsys, "prepare", "folders", "--root", root)
    assert status == 1 and path.name in err and "unreadable" in err
    status, out, _ = run(capsys, "prepare", "folders", "--root", root, "--unreadable", "skip",
                         "--out", tmp_path / "elsewhere")  # fmt: skip
    assert status == 0 and "prepared 23 images" in out and path.name in out
    listing = prepared.find("folders", out=tmp_path / "elsewhere")
    assert len(READERS["folders"].split(listing).train) + 1 < 24


def test_preparing_without_tfds_is_one_line(released, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    status, _, err = run(capsys, "prepare", "folders", "--root", released["folders"])
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "pip install 'vireid_jax[data]'" in err


def test_trees_are_decoded_where_training_looks(released, tmp_path, capsys):
    name = "regdb"
    arguments = ("prepare", name, "--root", released[name], "--size", "24x12", "--no-strict")
    status, out, err = run(capsys, *arguments)
    assert status == 0 and "decoded to 24 x 12" in out, err
    assert "prepared" not in out and not (tmp_path / "data").exists()
    made = sorted((tmp_path / "cache").iterdir())
    common = dict(name=name, image_size=(24, 12))
    split = datasets.load(root=released[name], strict=False, **common)
    assert sorted((tmp_path / "cache").iterdir()) == made
    # Prepared, they need no tree any more, and the same people are tested on.
    status, out, err = run(capsys, *arguments, "--out", tmp_path / "data")
    flags = f"--config.data.prepared={tmp_path / 'data'} --config.data.strict=False "
    assert status == 0 and flags in out, err
    again = datasets.load(prepared=tmp_path / "data", strict=False, **common)
    assert len(sorted((tmp_path / "cache").iterdir())) == len(made) + 2
    assert again.train.name == split.train.name
    rows = np.arange(len(split.train))
    assert (again.train.images[rows] == split.train.images[rows]).all()


def test_prepare_options(capsys):
    for wrong in ("288", "x144", "0x4", "2.5x3", "axb"):
        with pytest.raises(SystemExit):
            command.main(["prepare", "sysu", "--root", "x", "--size", wrong])
        assert "is not HEIGHTxWIDTH" in capsys.readouterr().err


# --- show -----------------------------------------------------------------------------------


@each("name", READERS)
def test_show(released, tmp_path, capsys, name):
    picture = tmp_path / "sheet.png"
    status, out, err = run(
        capsys, "show", name, "--root", released[name], "--sheet", picture, "--persons", 3
    )
    assert status == 0, err
    assert f"wrote {picture}" in out and "identities" in out and "gallery" not in err
    assert pixels(picture).shape[0] > 3 * 144
    assert list(tmp_path.glob("*.png")) == [picture]  # and nothing half-written
    picture.unlink()


def test_the_sheet_shows_who_is_where(tmp_path):
    """Every person and camera has a color of its own; look them up in the sheet."""
    color = {("visible", "anna"): (255, 0, 255), ("visible", "bob"): (0, 255, 0),
             ("infrared", "anna"): (0, 0, 255), ("infrared", "bob"): (0, 255, 255)}  # fmt: skip
    for (side, person), rgb in color.items():
        (tmp_path / side / person).mkdir(parents=True)
        Image.new("RGB", (8, 16), rgb).save(tmp_path / side / person / "0.png")
    (tmp_path / "visible" / "bob" / "1.png").write_bytes(b"broken")
    listing = READERS["folders"].scan(tmp_path)
    crossed = sheet.contact_sheet(listing, tmp_path / "s.png", image_size=(40, 20))
    assert len(crossed) == 1 and crossed[0].startswith("visible/bob/1.png cannot be opened")
    drawn = pixels(tmp_path / "s.png")
    where = {k: np.argwhere((drawn == rgb).all(-1)).mean(0) for k, rgb in color.items()}  # [y, x]
    assert where["visible", "anna"][0] < where["visible", "bob"][0]
    assert where["visible", "anna"][0] == where["infrared", "anna"][0]
    assert where["visible", "anna"][1] == where["visible", "bob"][1]
    assert where["visible", "anna"][1] < where["infrared", "anna"][1]
    area = {key: int((drawn == rgb).all(-1).sum()) for key, rgb in color.items()}
    assert set(area.values()) == {800}


def test_the_sheet_keeps_proportions(tmp_path):
    for side, size in (("visible", (30, 10)), ("infrared", (5, 50))):
        (tmp_path / side / "1").mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", size, (255, 0, 255)).save(tmp_path / side / "1" / f"{n}.png")
    listing = READERS["folders"].scan(tmp_path)
    sheet.contact_sheet(listing, tmp_path / "s.png", shots=1, image_size=(60, 30))
    found = (pixels(tmp_path / "s.png") == (255, 0, 255)).all(-1)
    assert found.sum() == 30 * 10 + 60 * 6


@each(
    ("options", "message"),
    [
        ({"path": "sheet.txt"}, "does not end like a picture"),
        ({"persons": 0}, "persons is 0"),
        ({"shots": 99}, "shots is 99"),
    ],
)
def test_sheet_options(released, tmp_path, options, message):
    listing = READERS["folders"].scan(released["folders"])
    with pytest.raises(ValueError, match=message):
        sheet.contact_sheet(listing, **{"path": tmp_path / "s.png", **options})
    with pytest.raises(FileNotFoundError, match="make it first"):
        sheet.contact_sheet(listing, tmp_path / "no" / "s.png")
    one = listing.take(listing.records.modality == 0)
    with pytest.raises(ValueError, match="nobody of 'folders' has images of both modalities"):
        sheet.contact_sheet(one, tmp_path / "s.png")
