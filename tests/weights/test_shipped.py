"""The weights that come with the package, and recipes that start from them."""

import numpy as np
import pytest
import safetensors

from tests.support.recipes import recipe_of, small
from vireid_jax import build, evaluate, main, options, weights
from vireid_jax.synthetic import pretrain
from vireid_jax.weights import shipped


@pytest.mark.parametrize("network", sorted(shipped.paths()))
def test_a_shipped_file(network):
    """What the card says, in half precision, by torchvision's names, and small."""
    path = shipped.path_of(*network)
    assert path.stat().st_size < 3e6
    with safetensors.safe_open(path, "numpy") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {np.dtype("float16")}
    arrays, card = weights.read(path), shipped.card(path)
    assert all(np.isfinite(x).all() for x in arrays.values())
    assert "layer4.0.bn2.running_var" in arrays
    recipe = card["recipe"]
    assert (recipe["method.depth"], recipe["method.width"]) == network
    assert recipe["data.infrared_light"] is False
    assert {k: recipe[k] for k in pretrain.RECIPE} == pretrain.RECIPE


def test_what_is_not_shipped_is_refused():
    with pytest.raises(ValueError, match=r"ResNet-50 of width 64; take .*init\.weights=None"):
        shipped.path_of(50, 64)


def started(name):
    config = recipe_of(name)
    config.init.weights = "rendered"
    return build.make_method(config, 5, 1, build._pretrained(config))


@pytest.mark.parametrize("name", ["smcl", "agw"])
def test_a_recipe_starts_from_it(name):
    import jax

    method, report = started(name)
    assert report.source == "rendered" and not report.unused
    arrays = weights.read(shipped.path_of(10, 32))
    backbone = method.init(jax.random.key(0))["params"]["backbone"]
    for stem in {"smcl": ["stem"], "agw": ["stem_visible", "stem_infrared"]}[name]:
        kernel = backbone[stem]["conv1"]["kernel"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(kernel, arrays["conv1.weight"])
    kernel = backbone["layer4_0"]["conv2"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(kernel, arrays["layer4.0.conv2.weight"])


def test_it_is_a_name_and_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = options.full_paths({"init": {"weights": "rendered"}, "data": {"root": "rendered"}})
    assert found["init"]["weights"] == "rendered"
    assert found["data"]["root"] == str(tmp_path / "rendered")


def test_another_network_is_refused_before_anything_is_written(tmp_path, capsys):
    config = small("smcl", "synthetic", tmp_path)
    config.init.weights, config.method.width = "rendered", 64
    assert main.run(config, workdir=tmp_path / "run") == 1
    assert "ResNet-10 of width 64; take such a network" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_is_not_scored_as_an_authors_file(tmp_path, capsys):
    config = small("smcl", "synthetic", tmp_path)
    config.init.weights, config.method.width = "rendered", 32
    assert main.run(config, workdir=tmp_path / "run", mode="eval") == 1
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_tables_have_a_row_of_the_start(tmp_path):
    config = small("smcl", "synthetic", tmp_path)
    config.init.weights, config.method.width = "rendered", 32
    config.eval.baselines = True
    rows = main.train_and_score(config, tmp_path / "run", max_steps=1)
    again = main.score_run(config, tmp_path / "run")
    for results in (rows, again):
        start = [r for r in results if r["feature"] == evaluate.STARTED]
        assert len(start) == 1 and evaluate.UNTRAINED not in {r["feature"] for r in results}
    assert rows[-1]["metrics"] == again[-1]["metrics"]
