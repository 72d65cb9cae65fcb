"""The command that made the shipped weights, on a short run."""

import hashlib
import pathlib

import numpy as np
import pytest

from tests.support.jobs import REPO
from vireid_jax import main as program
from vireid_jax import weights
from vireid_jax.synthetic import dataset, pretrain
from vireid_jax.weights import shipped

SMALL = {
    "data.train_ids": 6, "data.val_ids": 0, "data.test_ids": 2, "data.test_visible": 1,
    "data.test_infrared": 1, "data.image_size": "(32,16)", "sampler.num_ids": 2,
    "sampler.steps_per_epoch": 2, "train.epochs": 2, "optim.warmup_epochs": 0.5,
    "eval.protocols": ("sysu/all/single",), "eval.baselines": False,
}  # fmt: skip


def test_a_wrong_command_is_refused_before_anything_is_made(tmp_path, capsys):
    out = tmp_path / "out"
    for change, said in (
        ("--config.optim.lr=fast", "fast"),
        ("--config.optim.rate=1", "unknown key --config.optim.rate"),
        ("--config.data.seed", "config.data.seed"),
    ):
        assert pretrain.main([f"--out={out}", f"--workdir={tmp_path / 'run'}", change]) == 2
        assert said in capsys.readouterr().err
    assert not out.exists() and not (tmp_path / "run").exists()


def test_the_recipe_sees_no_infrared_image_and_no_one_else_has_its_people():
    recipe = program.read_recipe("smcl").unlock()
    own = pretrain.RECIPE
    recipe.update_from_flattened_dict(own)  # raises for a key that the recipe lacks
    assert own["data.infrared_light"] is False
    for path in (REPO / "configs").glob("*.py"):
        if path.stem not in ("__init__", "common", "tables"):
            data = program.read_recipe(path.stem).data
            assert data.seed != own["data.seed"] and data.world != own["data.world"], path


@pytest.mark.slow
def test_a_short_run_is_the_same_each_time_and_writes_its_last_state(tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    changes = [f"--config.{key}={value}" for key, value in SMALL.items()]
    for run in ("a", "b"):
        command = [f"--out={run}", f"--workdir=run-{run}", "--width=4", *changes]
        assert pretrain.main(command) == 0
    (first,), (second,) = (list(pathlib.Path(run).iterdir()) for run in ("a", "b"))
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert first.name == f"resnet10x4-{digest[:8]}.safetensors"
    arrays = weights.read(first)
    assert arrays["conv1.weight"].shape == (4, 3, 7, 7)
    # Its moving statistics have moved: it is the end of the training, not its start.
    assert all(
        abs(arrays[f"{name}.running_var"] - 1).max() > 1e-3 for name in ("bn1", "layer4.0.bn2")
    )
    card = shipped.card(first)
    assert card["steps"] == 4 and card["render_version"] == dataset.RENDER_VERSION
    assert card["recipe"]["data.seed"] == 101 and card["recipe"]["method.width"] == 4
    # What the training of this code is, up to the rounding of a processor.
    norms = {name: float(np.linalg.norm(arrays[name])) for name in NORMS}
    assert norms == pytest.approx(NORMS, rel=1e-2)


NORMS = {
    "conv1.weight": 2.54165,
    "bn1.running_var": 2.02336,
    "layer3.0.conv2.weight": 5.41085,
    "layer4.0.bn2.running_mean": 0.43669,
}
