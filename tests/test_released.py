"""Every recipe on every data set, from a tree on disk to a table: two steps, then scores."""

import importlib
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import scipy.io
from PIL import Image

from configs import common
from tests.support.plain import plainly
from tests.test_configs import RECIPES
from vireid_jax import build, main, weights
from vireid_jax.data import prepared
from vireid_jax.data.readers import get_reader
from vireid_jax.runtime import checkpoint, devices, runfolder
from vireid_jax.synthetic.layouts import write_tree

SIZE = (48, 24)


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    with plainly():
        yield


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """{data set: root}, small, rendered, in the released layouts."""
    root = tmp_path_factory.mktemp("trees")
    few = dict(train_ids=6, test_ids=6, images=3, image_size=SIZE)
    found = {name: write_tree(root / name, name, **few) for name in ("sysu", "regdb", "llcm")}
    found["folders"] = _own_folders(root / "own", found["regdb"])
    return found


def _own_folders(root, regdb):
    """RegDB's images as a user might have them: two folders, named people."""
    for ours, theirs in (("visible", "Visible"), ("infrared", "Thermal")):
        for person in sorted((regdb / theirs).iterdir()):
            folder = root / ours / f"person {person.name}"
            folder.mkdir(parents=True)
            for n, image in enumerate(sorted(person.iterdir())):
                Image.open(image).save(folder / f"{n}.png")
    return root


def small(recipe, dataset, tmp_path, root=None, preset=""):
    """The recipe with a tiny network, two steps, and nothing outside `tmp_path`."""
    arg = ",".join(filter(None, (dataset, preset)))
    c = importlib.import_module(f"configs.{recipe}").get_config(arg)
    c.data.image_size = SIZE
    if root is None:
        for part in ("train", "val", "test"):
            c.data[f"{part}_ids"] = 8
        c.data.test_visible = c.data.test_infrared = 2
    else:
        c.data.root, c.data.strict = str(root), False
    c.data.cache = str(tmp_path / "cache")
    if dataset == "folders":
        c.data.test_share = 0.4
    c.sampler.num_ids, c.sampler.num_instances, c.sampler.steps_per_epoch = 4, 2, 2
    c.method.depth, c.method.width = 10, 8
    if "metric_from_epoch" in c.method:
        c.method.metric_from_epoch = 0.0
    if "generator_ratios" in c.method:
        c.method.generator_ratios = (2, 3, 6)  # of maps of 12 x 6
    c.optim.schedule, c.optim.milestones, c.optim.warmup_epochs = "constant", (), 0.0
    c.augment.pad = 2
    c.train.epochs, c.train.tensorboard = 1.0, False
    c.eval.batch_size = 32
    c.eval.trials = 2 if dataset in ("synthetic", "sysu", "llcm") else None
    return c


def saved(workdir):
    (step,) = (workdir / "eval").iterdir()
    return [json.loads(p.read_text()) for p in sorted(step.iterdir())]


# What is special on a data set is so with every method, and a step of the larger ones compiles for
# half a minute: they are trained on one. tests/test_configs.py builds all of them on all data sets.
RUNS = [("smcl", "sysu", "")]
SLOW = [("smcl", dataset, "") for dataset in common.DATASETS if dataset != "sysu"]
SLOW += [(recipe, "sysu", "") for recipe in RECIPES if recipe != "smcl"]
SLOW += [("idkl", "regdb", "official")]
RUNS += [pytest.param(*row, marks=pytest.mark.slow) for row in SLOW]


@pytest.mark.parametrize(("recipe", "dataset", "preset"), RUNS)
def test_recipes_train_and_score_on_the_data_sets(recipe, dataset, preset, trees, tmp_path, capsys):
    c = small(recipe, dataset, tmp_path, trees.get(dataset), preset)
    if dataset in ("regdb", "llcm", "folders"):
        c.data.val_ids = 2
    elif dataset == "sysu":
        c.data.val_ids = 4
    workdir = tmp_path / "run"
    assert main.run(c, workdir=workdir, debug=True) == 0
    out = capsys.readouterr().out
    for said in ("compiling the training step", "validation at step 2: mAP 0.", "best mAP 0."):
        assert said in out, out
    assert re.search(r"^\d+ images embedded in \d+ s$", out, re.M), out
    validated = checkpoint.read_scores(workdir / "checkpoints")
    assert validated.keys() == {2} and 0 < validated[2]["mAP"] <= 1, "to choose the best by"
    results = saved(workdir)
    assert {r["protocol"] for r in results} == set(c.eval.protocols)
    for result in results:
        assert 0 < result["metrics"]["mAP"] <= 1 and result["dataset"] == dataset
        assert result["protocol"] in out
    if dataset == "regdb":
        assert {r["trial"] for r in results} == {1}
    persons = json.loads((workdir / "classes.json").read_text())["persons"]
    assert persons == sorted(set(persons))


# One trained run of SYSU-MM01's layout, and what can be asked of it -----------------------------


@pytest.fixture(scope="module")
def trained(trees, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("trained")
    c = small("smcl", "sysu", tmp_path, trees["sysu"])
    c.eval.protocols = ("sysu/all/single",)
    assert main.run(c, workdir=tmp_path / "run", debug=True) == 0
    return tmp_path / "run", c


def scored(trained, tmp_path, **changes):
    """The rows of --mode=eval with values of the recipe changed."""
    shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "eval")
    return scored_again(trained, tmp_path, **changes)


def scored_again(trained, tmp_path, **changes):
    """The same, in the folder of an earlier evaluation."""
    c = trained[1].copy_and_resolve_references()
    keys = []
    for key, value in changes.items():
        section, name = key.split("__")
        c[section][name] = value
        keys.append(f"{section}.{name}")
    overrides = dict.fromkeys(keys)
    assert main.run(c, workdir=tmp_path / "run", mode="eval", overrides=overrides, debug=True) == 0
    return saved(tmp_path / "run")


@pytest.mark.slow
def test_flip_and_reranking_are_rows_of_their_own(trained, tmp_path, capsys):
    plain = {r["feature"]: r for r in scored(trained, tmp_path / "a")}
    rows = scored(trained, tmp_path / "b", eval__flip=True, eval__rerank="all")
    labels = [(r["feature"], bool(r.get("flip")), r.get("rerank")) for r in rows]
    features = [
        ("bn", False, None),
        ("pool", False, None),
        ("bn", True, None),
        ("pool", True, None),
    ]
    assert set(labels) == {*features, ("bn", False, "all")} and len(labels) == 5
    for r in rows:
        if not r.get("flip") and not r.get("rerank"):
            assert r["metrics"] == plain[r["feature"]]["metrics"], "the headline is what it was"
        else:
            assert r["metrics"] != plain[r["feature"]]["metrics"]
    table = capsys.readouterr().out
    assert table.rindex("bn, re-ranked") > table.rindex("pool")


def test_corruption_is_repeated_and_averaged(trained, tmp_path, capsys):
    (row, *others) = scored(
        trained, tmp_path, eval__corrupt="visible:gaussian_noise:5", eval__corrupt_repeats=3
    )
    assert [r["feature"] for r in (row, *others)] == ["bn", "pool"]
    assert row["corrupt"] == "visible:gaussian_noise:5"
    assert (row["over"], row["results"], len(row["trials"])) == ("repeats", 3, 3)
    assert row["metrics"]["mAP"] == pytest.approx(np.mean([t["mAP"] for t in row["trials"]]))
    assert len({t["mAP"] for t in row["trials"]}) > 1, "each repeat has noise of its own"
    assert "-C (vireid)" in capsys.readouterr().out


def test_a_model_is_scored_on_another_data_set(trained, trees, tmp_path):
    workdir, _ = trained
    c = small("smcl", "folders", tmp_path, trees["folders"])
    c.data.test_share = 1.0  # everybody is unknown to this model
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "eval")
    assert main.run(c, workdir=tmp_path / "run", mode="eval", debug=True) == 0
    rows = saved(tmp_path / "run")
    assert {r["protocol"] for r in rows} == {"folders/i2v", "folders/v2i"}
    assert {r["counts"]["gallery_ids"] for r in rows} == {12}


def test_a_run_without_a_list_of_its_people_is_refused(trained, tmp_path, capsys):
    own = shutil.copytree(trained[0], tmp_path / "run")
    (own / "classes.json").unlink()
    assert main.run(None, workdir=own, mode="eval") == 1
    assert "holds no classes.json" in capsys.readouterr().err


def test_what_eval_cannot_change_is_refused(trained, trees, tmp_path, capsys):
    workdir, own = trained
    c = own.copy_and_resolve_references()
    c.method.depth = 18
    assert main.run(c, workdir=workdir, mode="eval", overrides={"method.depth": 18}) == 1
    assert "method.depth is 10 in the run in" in capsys.readouterr().err
    c = own.copy_and_resolve_references()
    c.seed = 7
    assert main.run(c, workdir=workdir, mode="eval", overrides={"seed": 7}) == 1
    assert "seed is 0 in the run in" in capsys.readouterr().err
    c.seed, c.eval.corrupt, c.eval.flip = 0, "visible", True
    overrides = {"seed": 0, "eval.corrupt": "visible", "eval.flip": True}
    assert main.run(c, workdir=workdir, mode="eval", overrides=overrides) == 1
    assert "score flip and re-ranking by another command" in capsys.readouterr().err


def test_protocols_of_another_data_set_are_refused_before_training(trees, tmp_path, capsys):
    c = small("smcl", "regdb", tmp_path, trees["regdb"])
    c.eval.protocols = ("regdb/v2t", "sysu/all/single")
    assert main.run(c, workdir=tmp_path / "run") == 1
    assert "images of camera [2], expected only [3, 6]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_official_gallery(trees, trained, tmp_path, capsys):
    """Permutations made for this tree; those of the release do not fit it, and are refused."""
    cells = np.empty((6, 1), object)
    rng = np.random.default_rng(0)
    for camera in range(6):
        cells[camera, 0] = people = np.empty((40, 1), object)
        for person in range(40):
            folder = trees["sysu"] / f"cam{camera + 1}" / f"{person + 1:04d}"
            n = len(list(folder.iterdir())) if folder.exists() else 0
            rows = [rng.permutation(n) + 1 for _ in range(10)] if n else np.zeros((10, 0))
            people[person, 0] = np.array(rows, np.uint8)
    file = tmp_path / "rand_perm_cam.mat"
    scipy.io.savemat(file, {"rand_perm_cam": cells})
    changes = {"eval__gallery": "official", "eval__rand_perm": str(file)}
    rows = scored(trained, tmp_path / "a", **changes)
    assert {r["gallery"] for r in rows} == {"official"}
    assert {r["counts"]["gallery_images"] for r in rows} == {24}
    assert "sysu/all/single, official" in capsys.readouterr().out
    beside = scored_again(trained, tmp_path / "a", eval__trials=3)
    assert sorted((r["gallery"], len(r["trials"])) for r in beside) == [
        ("agw", 3),
        ("agw", 3),
        ("official", 2),
        ("official", 2),
    ]
    c = trained[1].copy_and_resolve_references()
    c.eval.update(gallery="official", rand_perm=str(file), trials=11)
    assert main.run(c, workdir=trained[0], mode="eval") == 1
    assert "there is no trial 10" in capsys.readouterr().err
    c.eval.trials = 2
    c.data.strict, c.eval.gallery, c.eval.rand_perm = True, "official", str(tmp_path / "absent")
    # What is prepared is not compared with the release.
    listing = get_reader("sysu").scan(trees["sysu"], strict=False)
    prepared.prepare(listing, out=tmp_path / "prepared")
    c.data.root, c.data.prepared = None, str(tmp_path / "prepared")
    assert main.run(c, workdir=trained[0], mode="eval") == 1
    assert "no file" in capsys.readouterr().err
    c.eval.rand_perm = str(file)
    assert main.run(c, workdir=trained[0], mode="eval") == 1
    assert "this is not SYSU-MM01's rand_perm_cam.mat" in capsys.readouterr().err


def test_a_model_of_one_trial_is_not_tested_on_another(trees, tmp_path, capsys):
    c = small("smcl", "regdb", tmp_path, trees["regdb"])
    workdir = tmp_path / "run"
    pathlib.Path(workdir).mkdir()
    runfolder.save_run_info(workdir, c.to_dict(), ["x"])
    c.data.trial = 2
    assert main.run(c, workdir=workdir, mode="eval", overrides={"data.trial": 2}) == 1
    assert "trained on trial 1 of RegDB" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"seed": 5}, {"test_share": 1.0}], ids=str)
def test_a_model_is_not_tested_on_people_it_was_trained_on(
    change, trees, tmp_path, capsys, monkeypatch
):
    """One's own images, divided another way than for the training."""
    monkeypatch.setattr(checkpoint, "find_step", lambda *_, **__: 2)
    c = small("smcl", "folders", tmp_path, trees["folders"])
    workdir = tmp_path / "run"
    runfolder.save_run_info(workdir, c.to_dict(), ["x"])
    built, _ = build.build(c)
    runfolder.save_classes(workdir, built.split, built.persons)
    c.data.update(change)
    assert main.run(c, workdir=workdir, mode="eval") == 1
    assert re.search(r"trained on \d people that it would be tested on", capsys.readouterr().err)
    c.data.root = str(shutil.copytree(trees["folders"], tmp_path / "others"))
    assert main.run(c, workdir=workdir, mode="eval") == 1
    assert "checkpoint" in capsys.readouterr().err, "others may have the same numbers"


def test_training_on_people_that_are_all_for_testing_is_refused(trees, tmp_path, capsys):
    c = small("smcl", "folders", tmp_path, trees["folders"])
    c.data.test_share = 1.0
    assert main.run(c, workdir=tmp_path / "run") == 1
    assert "no images to train on" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_other_people(trees, tmp_path, capsys):
    c = small("smcl", "folders", tmp_path, trees["folders"])
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "classes.json").write_text('{"dataset": "folders", "persons": [1, 2, 77]}')
    assert main.run(c, workdir=workdir) == 1
    assert "was trained on 3 people" in capsys.readouterr().err


# Starting from a file of weights ------------------------------------------------------------------

FIXTURE = pathlib.Path(__file__).parent / "weights" / "fixtures" / "archive.pth"  # a ResNet-10


def last_variables(config, workdir):
    parts, _ = build.build(config)
    shapes = jax.eval_shape(parts.method.init, jax.random.key(0))
    target = devices.abstract(dict(shapes), parts.mesh)
    return checkpoint.restore_variables(workdir / "checkpoints", target)[0]


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_a_file(tmp_path, capsys):
    c = small("smcl", "synthetic", tmp_path)
    c.method.width = 2
    c.init.weights = str(FIXTURE)
    c.optim.lr = 1e-30  # the last state is the first one
    assert main.run(c, workdir=tmp_path / "run", debug=True) == 0
    out = capsys.readouterr().out
    assert "arrays of the backbone" in out and "unused in the file: fc.weight" in out
    assert "weights of the file alone" in out, "the baseline is named after what it is"
    lines = (tmp_path / "run" / "weights.txt").read_text().splitlines()
    assert "params/backbone/stem/conv1/kernel <- conv1.weight" in lines
    assert "unused in the file: fc.bias" in lines
    assert "not from the file: params/classifier/kernel" in lines
    variables = last_variables(c, tmp_path / "run")
    stem = np.asarray(variables["params"]["backbone"]["stem"]["conv1"]["kernel"])
    file = weights.read(FIXTURE)
    np.testing.assert_array_equal(stem, file["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("path", "depth", "message"),
    [
        ("absent.pth", 10, "absent.pth"),
        (FIXTURE, 18, "ResNet-10.*depth"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_run_begins(
    path, depth, message, tmp_path, capsys
):
    c = small("smcl", "synthetic", tmp_path)
    c.init.weights, c.method.depth, c.method.width = str(path), depth, 2
    assert main.run(c, workdir=tmp_path / "run") == 1
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished run that began with a file, which is gone."""
    tmp_path = tmp_path_factory.mktemp("begun")
    c = small("smcl", "synthetic", tmp_path)
    c.method.width, c.eval.protocols = 2, ("sysu/all/single",)
    c.init.weights = str(shutil.copy(FIXTURE, tmp_path / "weights.pth"))
    assert main.run(c, workdir=tmp_path / "run", debug=True) == 0
    (tmp_path / "weights.pth").unlink()
    return tmp_path / "run", c


@pytest.mark.slow
def test_a_run_is_resumed_although_its_file_of_weights_is_gone(begun, tmp_path, capsys):
    workdir, c = begun
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "eval")
    assert main.run(c, workdir=tmp_path / "run", debug=True) == 0
    assert "weights   the run's checkpoint" in capsys.readouterr().out
    rows = {r["feature"]: r for r in saved(tmp_path / "run")}
    assert set(rows) == {"bn", "pool", "raw pixels"}, "nobody knows what the file alone would give"
    before = {r["feature"]: r for r in saved(workdir)}
    assert set(before) == {*rows, "weights of the file alone"}
    assert rows["bn"]["metrics"] == before["bn"]["metrics"]
    listed = (tmp_path / "run" / "weights.txt").read_text()
    assert listed == (workdir / "weights.txt").read_text()


def test_random_weights_are_not_called_those_of_a_file(begun, tmp_path):
    workdir, c = begun
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "eval")
    assert main.run(c, workdir=tmp_path / "run", mode="eval", debug=True) == 0
    assert {r["feature"] for r in saved(tmp_path / "run")} == {"bn", "pool", "raw pixels"}


def test_a_run_without_a_readable_checkpoint_does_not_go_on_without_its_file(
    begun, tmp_path, capsys
):
    workdir, c = begun
    shutil.copytree(workdir, tmp_path / "run")
    for manifest in (tmp_path / "run" / "checkpoints").glob("*/manifest/metadata"):
        manifest.write_text("{")
    assert main.run(c, workdir=tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "weights.pth, is gone; bring it back" in err


# A try, a repeated command, another version ------------------------------------------------------


def test_a_try_has_a_table_and_the_run_goes_on_from_it(trained, tmp_path, capsys):
    """And a command that is repeated at the end says so, and shows the table again."""
    c = trained[1].copy_and_resolve_references()
    c.data.cache = str(tmp_path / "cache")
    workdir = tmp_path / "run"
    assert main.run(c, workdir=workdir, max_steps=1, debug=True) == 0
    out = capsys.readouterr().out
    assert "trained 1 steps in" in out and "1 steps are left for another start" in out
    assert "test identities, step 1" in out and {p.name for p in (workdir / "eval").iterdir()} == {
        "1"
    }
    assert main.run(c, workdir=workdir, debug=True) == 0
    out = capsys.readouterr().out
    assert "resumed at step 1 of 2" in out and "trained 1 steps in" in out
    assert "test identities, step 2" in out

    def last(folder):
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(last_variables(c, folder))]

    assert last(workdir) == last(trained[0]), "to the bit the run without a try"
    assert main.run(c, workdir=workdir, debug=True) == 0
    out = capsys.readouterr().out
    assert "already finished: step 2 of 2" in out and "test identities, step 2" in out
    assert main.run(c, workdir=workdir, max_steps=0) == 1
    assert "max_steps is 0, expected at least 1" in capsys.readouterr().err


def test_a_run_of_another_version_is_not_scored(trained, tmp_path, capsys):
    own = shutil.copytree(trained[0], tmp_path / "run")
    config = json.loads((own / "config.json").read_text())
    config["init"] = {"from": None}
    config["method"]["updates"] = "joint"
    (own / "config.json").write_text(json.dumps(config))
    assert main.run(None, workdir=own, mode="eval") == 1
    err = capsys.readouterr().err
    assert "method.updates: unknown" in err
    assert "init.from: unknown" in err and "init.weights: absent" in err
    # A resumed run says what differs.
    assert main.run(trained[1], workdir=own) == 1
    assert "init.from: null -> (absent)" in capsys.readouterr().err
