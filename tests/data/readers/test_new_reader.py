"""CONTRIBUTING's "add a data set", followed to the letter with a toy."""

import importlib
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from vireid_jax.data import __main__ as command
from vireid_jax.data import arrays, datasets, prepared, sampler
from vireid_jax.data.readers import READERS, common
from vireid_jax.types import check_batch, train_labels

REPO = pathlib.Path(__file__).parents[3]

# Step 1: a reader. `day/<person>_<n>.png` and `night/<person>_<n>.png`; odd people are tested on.
TOY = '''
"""Toy: four people by day and by night."""

import os

from vireid_jax.data.readers import common
from vireid_jax.data.readers.common import Image, Listing
from vireid_jax.types import INFRARED, VISIBLE, Split

TITLE = "Toy-4"
DESCRIPTION = "four people by day and by night"
LAYOUT = "day and night/<person>_<n>.png"
ENTRIES = ("day", "night")
AGREEMENT = "https://example.org/toy"
PUBLISHED = (2, 6, 6)


def looks_like(root: str, folders: list[str]) -> bool:
    return {"day", "night"} <= set(folders)


def scan(root, *, strict: bool = True) -> Listing:
    root = common.open_tree(root, "toy")
    images = []
    for folder, modality in (("day", VISIBLE), ("night", INFRARED)):
        for file in common.entries(os.path.join(root, folder))[1]:
            person = int(file.split("_")[0])
            name, part = f"{folder}/{file}", "test" if person % 2 else "train"
            path = os.path.join(root, folder, file)
            images.append(Image(path, name, person, 1 + modality, modality, part))
    checks = [common.count("people", 4, len({i.person for i in images}))]
    return common.finish("toy", images, root=root, strict=strict, checks=checks, cure=AGREEMENT)


def check_options(*, evening: bool = False) -> None:
    if not isinstance(evening, bool):
        raise ValueError(f"evening is {evening!r}, expected True or False")


def split(listing: Listing, *, evening: bool = False) -> Split:
    check_options(evening=evening)
    train, test = listing.part == "train", listing.part == "test"
    notes = ("by evening",) if evening else ()
    return common.divide(listing, train=train, test=test, notes=notes)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    # Step 2: one line in READERS.
    monkeypatch.setitem(READERS, "toy", importlib.import_module("toy"))
    # Step 3: one line in configs/common.py, from which its data sets follow.
    from configs import common as recipes

    monkeypatch.setitem(recipes.PROTOCOLS, "toy", ("folders/i2v",))
    monkeypatch.setattr(recipes, "DATASETS", tuple(recipes.PROTOCOLS))
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "Toy"
    for folder, person, n in np.ndindex(2, 4, 3):
        path = root / ("day", "night")[folder] / f"{person}_{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (60 * person, 40 * n, 200 * folder)).save(path)
    return root


def test_it_is_loaded_sampled_and_batched(toy):
    split = datasets.load(name="toy", root=toy, image_size=(16, 8), evening=True)
    assert split.name == "toy" and split.notes == ("by evening",)
    assert len(split.train) == 12 and len(split.test.query) == len(split.test.gallery) == 6
    label, persons = train_labels(split.train)
    assert persons.tolist() == [0, 2]
    pk = dict(num_ids=2, num_instances=2)
    (batch,) = arrays.batches(
        split.train, label, start=0, stop=1,
        plan=lambda e: sampler.plan(label, split.train.modality, seed=0, epoch=e, **pk),
    )  # fmt: skip
    check_batch(batch, **pk)
    assert (batch["visible"][..., 0] == 60 * persons[batch["label"]][:, None, None]).all()
    for wrong, message in (
        ({"evning": True}, "evning would have no effect on the data set 'toy', .* evening"),
        ({"evening": 3}, "evening is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.load(name="toy", root=toy, **wrong)
    with pytest.raises(common.TreeError, match="this looks like Toy-4: name the data set toy"):
        datasets.load(name="regdb", root=toy)


def test_commands_recipes_and_lists_know_it(toy, tmp_path, capsys):
    arguments = ["toy", "--root", str(toy)]
    assert command.main(["check", *arguments, "--decode"]) == 0
    sheet = tmp_path / "sheet.png"
    assert command.main(["show", *arguments, "--sheet", str(sheet)]) == 0 and sheet.exists()
    assert command.main(["prepare", *arguments, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "Toy-4 in" in out and "0 of 24 images cannot be decoded" in out and "error" not in err
    assert len(prepared.find("toy", out=tmp_path / "out").records) == 24
    from configs import smcl
    from launch.ahead import programs
    from vireid_jax.ablation import __main__ as ablation

    config = smcl.get_config("toy")
    assert config.eval.protocols == ("folders/i2v",)
    config.sampler.num_ids = 2
    assert programs.facts(config) == (2, 6, 6)
    assert ablation._parser().parse_args(["--dataset", "toy"]).dataset == "toy"


def test_no_other_file_names_the_data_sets():
    """A second list of them would be forgotten: "llcm" as a word of its own stands nowhere else."""
    known = {
        "vireid_jax/data/readers/__init__.py",
        "vireid_jax/data/readers/llcm.py",
        "vireid_jax/synthetic/layouts.py",  # whose folders are written
        "vireid_jax/synthetic/__main__.py",
    }
    found = {
        str(path.relative_to(REPO))
        for folder in ("vireid_jax", "launch")
        for path in (REPO / folder).rglob("*.py")
        if re.search(r"[\"']llcm[\"']", path.read_text())
    }
    assert found == known
