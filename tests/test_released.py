"""From a tree on disk to a table: two steps, then scores, and what can be asked of the run.

A linear method, which compiles at once, stands for all; the slow tier trains every recipe.
"""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import scipy.io
from PIL import Image

from configs import common
from tests.data.readers import trees as stubs
from tests.support.linear_command import build as build_linear
from tests.support.plain import plainly
from tests.support.recipes import RECIPES, ROOT, SIZE, saved, small
from tests.support.rows import each
from tests.weights import author_files
from tests.weights.build import archive_of
from vireid_jax import build, main, methods, optim, train, weights
from vireid_jax.data import prepared
from vireid_jax.data.readers import get_reader
from vireid_jax.metrics.saved import find_fault
from vireid_jax.runtime import checkpoint, devices, runfolder


@pytest.fixture(autouse=True, scope="module")
def quickly(one_device):
    methods.METHODS["linear"] = build_linear
    with plainly():
        yield
    del methods.METHODS["linear"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """{data set: root}, small, of noise around a color of each person, in the released layouts."""
    root = tmp_path_factory.mktemp("trees")
    everybody = [f"{side}/person {n}" for side in ("visible", "infrared") for n in range(12)]
    found = {
        "sysu": stubs.small_sysu(root / "sysu", range(1, 7), range(7, 11), range(11, 17)),
        "regdb": stubs.regdb(root / "regdb", persons=12, images=3),
        "llcm": stubs.llcm(root / "llcm", train=6, test=6, counts=(48,) * 4),
        "folders": stubs.people(root / "own", dict.fromkeys(everybody, 3)),
    }
    rng = np.random.default_rng(0)
    for path in sorted(p for p in root.rglob("*.*") if p.is_file() and not p.stat().st_size):
        color = np.random.default_rng(list(path.parent.name.encode())).uniform(60, 190, 3)
        image = rng.normal(color, 40, (*SIZE, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(path)
    return found


def done(config, workdir, **options):
    """Runs a command; an error comes with its traceback."""
    assert main.run(config, workdir=workdir, debug=True, **options) == 0
    return workdir


def refused(capsys, config, workdir, **options):
    """What a command says that is refused."""
    capsys.readouterr()
    assert main.run(config, workdir=workdir, **options) == 1
    return capsys.readouterr().err


def train_and_score(recipe, dataset, preset, trees, tmp_path, capsys):
    c = small(recipe, dataset, tmp_path, trees.get(dataset), preset)
    if dataset != "synthetic":
        c.data.val_ids = 4 if dataset == "sysu" else 2
    workdir = done(c, tmp_path / "run")
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


@pytest.mark.parametrize("dataset", common.DATASETS)
def test_a_method_trains_and_scores_on_every_data_set(dataset, trees, tmp_path, capsys):
    train_and_score("linear", dataset, "", trees, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_and_scores(recipe, trees, tmp_path, capsys):
    dataset, preset = ("regdb", "official") if recipe == "idkl" else ("sysu", "")
    train_and_score(recipe, dataset, preset, trees, tmp_path, capsys)


@each("recipe, preset", [*((recipe, "") for recipe in RECIPES), ("idkl", "official")])
def test_terms_and_features_of_every_recipe_have_their_shapes(recipe, preset, trees, tmp_path):
    c = small(recipe, "sysu", tmp_path, trees["sysu"], preset)
    parts, feed = build.build(c)
    transform, _ = optim.make(steps_per_epoch=2, epochs=1.0, **c.optim)
    state = train.abstract_state(parts.method, transform)
    key = jax.random.key(0)

    def outputs(variables, batch, step):
        total, aux = parts.method.loss(variables, feed.augment(key, batch), key, step)
        return total, aux.terms, parts.method.embed(variables, batch["visible"] / 255, 0)

    total, terms, features = jax.eval_shape(outputs, state.variables, feed.batch, state.step)
    assert {x.shape for x in (total, *terms.values())} == {()}
    assert features and all(len(x.shape) == 2 and len(x) == 8 for x in features.values())


# One trained run of SYSU-MM01's layout, and what can be asked of it -----------------------------


@pytest.fixture(scope="module")
def trained(trees, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("trained")
    c = small("linear", "sysu", tmp_path, trees["sysu"])
    c.eval.protocols = ("sysu/all/single",)
    return done(c, tmp_path / "run"), c


def copied(workdir, tmp_path):
    """A copy of a run that was not scored."""
    return shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))


def scored(trained, workdir, **changes):
    """The rows of --mode=eval with values of the recipe changed."""
    c = trained[1].copy_and_resolve_references()
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    c.update_from_flattened_dict(overrides)
    return saved(done(c, workdir, mode="eval", overrides=overrides))


def test_flip_and_reranking_are_rows_of_their_own(trained, tmp_path, capsys):
    plain = {r["feature"]: r for r in saved(trained[0])}
    own = copied(trained[0], tmp_path)
    rows = scored(trained, own, eval__flip=True, eval__rerank="all")
    labels = [(r["feature"], bool(r.get("flip")), r.get("rerank")) for r in rows]
    features = [(name, flip, None) for name in ("bn", "pool") for flip in (False, True)]
    assert set(labels) == {*features, ("bn", False, "all")} and len(labels) == 5
    for r in rows:
        changed = r.get("flip") or r.get("rerank")
        same = r["metrics"] == plain[r["feature"]]["metrics"]
        assert same is not bool(changed), "the headline is what it was"
    table = capsys.readouterr().out
    assert table.rindex("bn, re-ranked") > table.rindex("pool  ")


def test_corruption_is_repeated_and_averaged(trained, tmp_path, capsys):
    asked = {"eval__corrupt": "visible:gaussian_noise:5", "eval__corrupt_repeats": 3}
    (row, *others) = scored(trained, copied(trained[0], tmp_path), **asked)
    assert [r["feature"] for r in (row, *others)] == ["bn", "pool"]
    assert row["corrupt"] == "visible:gaussian_noise:5"
    assert (row["over"], row["results"], len(row["trials"])) == ("repeats", 3, 3)
    assert row["metrics"]["mAP"] == pytest.approx(np.mean([t["mAP"] for t in row["trials"]]))
    assert len({t["mAP"] for t in row["trials"]}) > 1, "each repeat has noise of its own"
    assert "-C (vireid)" in capsys.readouterr().out


def test_a_model_is_scored_on_another_data_set(trained, trees, tmp_path):
    c = small("linear", "folders", tmp_path, trees["folders"])
    c.data.test_share = 1.0  # everybody is unknown to this model
    rows = saved(done(c, copied(trained[0], tmp_path), mode="eval"))
    assert {r["protocol"] for r in rows} == {"folders/i2v", "folders/v2i"}
    assert {r["counts"]["gallery_ids"] for r in rows} == {12}


def test_a_run_without_a_list_of_its_people_is_refused(trained, tmp_path, capsys):
    own = copied(trained[0], tmp_path)
    (own / "classes.json").unlink()
    assert "holds no classes.json" in refused(capsys, None, own, mode="eval")


@each("changes, message", [
    ({"method.from_step": 18}, "method.from_step is 0 in the run in"),
    ({"seed": 7}, "seed is 0 in the run in"),
    ({"seed": 0, "eval.corrupt": "visible", "eval.flip": True},
     "score flip and re-ranking by another command"),
])  # fmt: skip
def test_what_eval_cannot_change_is_refused(changes, message, trained, capsys):
    c = trained[1].copy_and_resolve_references()
    c.update_from_flattened_dict(changes)
    assert message in refused(capsys, c, trained[0], mode="eval", overrides=changes)


def test_protocols_of_another_data_set_are_refused_before_training(trees, tmp_path, capsys):
    c = small("linear", "regdb", tmp_path, trees["regdb"])
    c.eval.protocols = ("regdb/v2t", "sysu/all/single")
    said = refused(capsys, c, tmp_path / "run")
    assert "images of camera [2], expected only [3, 6]" in said
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
    own = copied(trained[0], tmp_path)
    rows = scored(trained, own, eval__gallery="official", eval__rand_perm=str(file))
    assert {r["gallery"] for r in rows} == {"official"}
    assert {r["counts"]["gallery_images"] for r in rows} == {24}
    assert "sysu/all/single, official" in capsys.readouterr().out
    beside = scored(trained, own, eval__trials=3)
    found = sorted((r["gallery"], len(r["trials"])) for r in beside)
    assert found == [("agw", 3), ("agw", 3), ("official", 2), ("official", 2)]
    # A quick evaluation replaces nothing, and every result says how it came about.
    rows = scored(trained, own, eval__trials=1)
    found = sorted((r["gallery"], len(r["trials"])) for r in rows)
    assert found == [("agw", 1)] * 2 + [("agw", 3)] * 2 + [("official", 2)] * 2
    assert [find_fault(r) for r in rows] == [None] * 6
    assert {(r["recipe"]["method.name"], r["data"]["filter"]) for r in rows} == {
        ("linear", "lanczos")
    }
    assert {len(r.get("permutations", "")) for r in rows} == {0, 12}
    c = trained[1].copy_and_resolve_references()
    c.eval.update(gallery="official", rand_perm=str(file), trials=11)
    assert "there is no trial 10" in refused(capsys, c, own, mode="eval")
    c.eval.trials = 2
    c.data.strict, c.eval.gallery, c.eval.rand_perm = True, "official", str(tmp_path / "absent")
    # What was prepared with strict=False is refused as the tree is; without checks, it is whole.
    listing = get_reader("sysu").scan(trees["sysu"], strict=False)
    c.data.root, c.data.prepared = None, str(tmp_path / "prepared")
    prepared.prepare(listing, out=tmp_path / "prepared")
    assert "no file" in refused(capsys, c, own, mode="eval")
    c.eval.rand_perm = str(file)
    assert "accepted with strict=False" in refused(capsys, c, own, mode="eval")
    prepared.prepare(dataclasses.replace(listing, checks=()), out=tmp_path / "prepared")
    said = refused(capsys, c, own, mode="eval")
    assert "this is not SYSU-MM01's rand_perm_cam.mat" in said


def test_a_model_of_one_trial_is_not_tested_on_another(trees, tmp_path, capsys):
    c = small("linear", "regdb", tmp_path, trees["regdb"])
    runfolder.save_run_info(tmp_path / "run", c.to_dict(), ["x"])
    c.data.trial = 2
    said = refused(capsys, c, tmp_path / "run", mode="eval", overrides={"data.trial": 2})
    assert "trained on trial 1 of RegDB" in said


def test_a_model_is_not_tested_on_people_it_was_trained_on(trees, tmp_path, capsys, monkeypatch):
    """One's own images, divided another way than for the training."""
    monkeypatch.setattr(checkpoint, "find_step", lambda *_, **__: 2)
    others = shutil.copytree(trees["folders"], tmp_path / "others")
    workdir = tmp_path / "run"
    for change in ({"seed": 5}, {"test_share": 1.0}):
        c = small("linear", "folders", tmp_path, trees["folders"])
        runfolder.save_run_info(workdir, c.to_dict(), ["x"])
        built, _ = build.build(c)
        runfolder.save_classes(workdir, built.split, built.persons)
        c.data.update(change)
        said = refused(capsys, c, workdir, mode="eval")
        assert re.search(r"trained on \d people that it would be tested on", said), change
        c.data.root = str(others)
        said = refused(capsys, c, workdir, mode="eval")
        assert "checkpoint" in said, "others may have the same numbers"


def test_training_on_other_people_or_nobody_is_refused(trees, tmp_path, capsys):
    c = small("linear", "folders", tmp_path, trees["folders"])
    workdir = tmp_path / "run"
    runfolder.save_run_info(workdir, c.to_dict(), ["main"])
    classes = {"persons": [1, 2, 77], "names_sha256": "", "files_sha256": []}
    (workdir / "classes.json").write_text(json.dumps(classes))
    assert "was trained on 3 people" in refused(capsys, c, workdir)
    c.data.test_share = 1.0
    assert "no images to train on" in refused(capsys, c, tmp_path / "other")


# Starting from a file of weights ------------------------------------------------------------------

FIXTURE = ROOT / "tests" / "weights" / "fixtures" / "archive.pth"  # a ResNet-10


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_a_file_and_goes_on_without_it(tmp_path, capsys):
    c = small("smcl", "synthetic", tmp_path)
    c.method.width, c.eval.protocols = 2, ("sysu/all/single",)
    c.init.weights = str(shutil.copy(FIXTURE, tmp_path / "weights.pth"))
    c.optim.lr = 1e-30  # the last state is the first one
    workdir = done(c, tmp_path / "begun")
    out = capsys.readouterr().out
    assert "arrays of the backbone" in out and "unused in the file: fc.weight" in out
    assert "weights of the file alone" in out, "the baseline is named after what it is"
    lines = (workdir / "weights.txt").read_text().splitlines()
    assert "params/backbone/stem/conv1/kernel <- conv1.weight" in lines
    assert "unused in the file: fc.bias" in lines
    assert "not from the file: params/classifier/kernel" in lines
    parts, _ = build.build(c)
    shapes = dict(jax.eval_shape(parts.method.init, jax.random.key(0)))
    target = devices.abstract(shapes, parts.mesh)
    variables, _ = checkpoint.restore_variables(workdir / "checkpoints", target)
    stem = np.asarray(variables["params"]["backbone"]["stem"]["conv1"]["kernel"])
    file = weights.read(FIXTURE)
    np.testing.assert_array_equal(stem, file["conv1.weight"].transpose(2, 3, 1, 0))

    (tmp_path / "weights.pth").unlink()
    own = done(c, copied(workdir, tmp_path))
    assert "weights   the run's checkpoint" in capsys.readouterr().out
    rows = {r["feature"]: r for r in saved(own)}
    assert set(rows) == {"bn", "pool", "raw pixels"}, "nobody knows what the file alone would give"
    before = {r["feature"]: r for r in saved(workdir)}
    assert set(before) == {*rows, "weights of the file alone"}
    assert rows["bn"]["metrics"] == before["bn"]["metrics"]
    assert (own / "weights.txt").read_text() == (workdir / "weights.txt").read_text()
    # Nor does scoring call random weights by the file's name.
    shutil.rmtree(own / "eval")
    assert {r["feature"] for r in saved(done(c, own, mode="eval"))} == set(rows)


@each("path, depth, message", [("absent.pth", 10, "absent.pth"), (FIXTURE, 18, "ResNet-10.*depth")])
def test_weights_that_do_not_fit_are_refused_before_a_run_begins(
    path, depth, message, tmp_path, capsys
):
    c = small("smcl", "synthetic", tmp_path)
    c.init.weights, c.method.depth, c.method.width = str(path), depth, 2
    assert re.search(message, refused(capsys, c, tmp_path / "run"), re.DOTALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_checkpoint_of_the_authors_code_is_scored_as_it_is(trees, tmp_path, capsys):
    """With its own people in the classifier; the rows are those of the filled model."""
    kind = "deen_regdb"
    arrays = author_files.draw(author_files.shapes(kind))
    file = tmp_path / "regdb_deen.t"
    file.write_bytes(archive_of(arrays))
    c = small("deen", "regdb", tmp_path, trees["regdb"])
    c.method.width, c.data.image_size = author_files.WIDTH, author_files.SIZE
    c.init.weights = str(file)
    workdir = done(c, tmp_path / "scored", mode="eval")
    out = capsys.readouterr().out
    assert "arrays of the model from" in out and "test identities, step 0" in out
    lines = (workdir / "weights.txt").read_text().splitlines()
    assert "params/classifier_global/kernel <- classifier.weight" in lines
    rows = saved(workdir)
    assert {r["checkpoint"] for r in rows} == {"file"} and {r["step"] for r in rows} == {0}
    assert "weights of the file alone" not in {r["feature"] for r in rows}
    parts = build.build_file_to_score(c)
    filled = parts.method.init(jax.random.key(1))
    for result in parts.scorer.test(filled, parts.split.test, None):
        same = [
            r
            for r in rows
            if (r["protocol"], r["feature"]) == (result["protocol"], result["feature"])
        ]
        assert [r["metrics"] for r in same] == [result["metrics"]]
    done(c, workdir)  # a run that starts from it, in the same folder
    assert "arrays of the model" in capsys.readouterr().out
    assert {p.name for p in (workdir / "eval").iterdir()} == {"0", "2"}


def test_only_a_checkpoint_of_the_authors_code_is_scored_as_it_is(tmp_path, capsys):
    c = small("smcl", "synthetic", tmp_path)
    c.method.width = 2
    c.init.weights = str(FIXTURE)
    said = refused(capsys, c, tmp_path / "run", mode="eval")
    assert re.search(r"archive\.pth is no checkpoint of the authors' code .*--workdir", said)
    assert not (tmp_path / "run").exists()
    c.init.unused = "keep"
    assert "init.unused is 'keep'" in refused(capsys, c, tmp_path / "run")


def test_a_run_without_a_readable_checkpoint_does_not_go_on_without_its_file(
    trained, tmp_path, capsys
):
    c = trained[1].copy_and_resolve_references()
    c.init.weights = str(tmp_path / "weights.pth")  # which was there when the run began
    own = copied(trained[0], tmp_path)
    runfolder.save_run_info(own, c.to_dict(), ["x"])
    for manifest in (own / "checkpoints").glob("*/manifest/metadata"):
        manifest.write_text("{")
    assert "weights.pth, is gone; bring it back" in refused(capsys, c, own)


# A try, a repeated command, another version ------------------------------------------------------


def test_a_try_has_a_table_and_the_run_goes_on_from_it(trained, tmp_path, capsys):
    """And a command that is repeated at the end says so, and shows the table again."""
    c = trained[1].copy_and_resolve_references()
    c.data.cache = str(tmp_path / "cache")
    workdir = tmp_path / "run"
    for options, said in (
        ({"max_steps": 1}, ["trained 1 steps in", "1 steps are left for another start",
                            "test identities, step 1"]),
        ({}, ["resumed at step 1 of 2", "trained 1 steps in", "test identities, step 2"]),
        ({}, ["already finished: step 2 of 2", "test identities, step 2"]),
    ):  # fmt: skip
        done(c, workdir, **options)
        out = capsys.readouterr().out
        assert all(text in out for text in said), out
        assert (workdir / "eval" / ("1" if options else "2")).is_dir()
    manifests = [checkpoint.read_manifest(w / "checkpoints" / "2") for w in (workdir, trained[0])]
    assert manifests[0] == manifests[1], "to the bit the run without a try"
    said = refused(capsys, c, workdir, max_steps=0)
    assert "max_steps is 0, expected at least 1" in said


def test_a_run_of_another_version_is_not_scored(trained, tmp_path, capsys):
    own = copied(trained[0], tmp_path)
    config = json.loads((own / "config.json").read_text())
    config["init"] = {"from": None}
    config["method"]["updates"] = "joint"
    (own / "config.json").write_text(json.dumps(config))
    said = refused(capsys, None, own, mode="eval")
    for what in ("method.updates: unknown", "init.from: unknown", "init.weights: absent"):
        assert what in said
    # A resumed run says what differs.
    assert "init.from: null -> (absent)" in refused(capsys, trained[1], own)
