"""Every recipe builds for every data set, has no dead key, and says what its paper says."""

import ast
import importlib
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from vireid_jax import build, optim, train
from vireid_jax.data import augment, datasets, sampler
from vireid_jax.methods import get_build
from vireid_jax.methods.common import with_backbone
from vireid_jax.metrics import PROTOCOLS
from vireid_jax.runtime import runfolder

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("common", "tables")
)
# A recipe and what follows its name; IDKL's has a second preset.
ALL = [(recipe, dataset) for recipe in RECIPES for dataset in common.DATASETS]
ALL += [("idkl", f"{dataset},official") for dataset in common.DATASETS]
SECTIONS = (
    *("data", "init", "sampler", "loader", "augment", "method", "optim", "train", "devices"),
    "eval",
)
RUN_KEYS = ("keep", "tensorboard")  # of the train section, for run.py and not for train.train


def recipe_of(name, dataset=None):
    return importlib.import_module(f"configs.{name}").get_config(dataset)


def accepts(function, options, *, partial=False):
    """Raises TypeError for an option that a function does not have."""
    signature = inspect.signature(function)
    assert not [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    (signature.bind_partial if partial else signature.bind)(**options)


@pytest.fixture(params=ALL, ids=":".join)
def recipe(request):
    return recipe_of(*request.param)


@pytest.fixture
def run_name(request):
    """The folder of a run of `recipe`: its method and data set, and a preset in between."""
    name, arg = request.node.callspec.params["recipe"]
    dataset, *preset = arg.split(",")
    return "_".join([name, *preset, dataset])


def test_there_are_recipes():
    assert "smcl" in RECIPES and common.DATASETS == datasets.names()


def test_every_recipe_has_the_sections(recipe, run_name):
    assert {key for key, value in recipe.items() if hasattr(value, "items")} == set(SECTIONS)
    assert recipe.run_name == run_name
    assert run_name.split("_")[0] == recipe.method.name
    assert run_name.split("_")[-1] == recipe.data.name


def test_data(recipe):
    assert set(recipe.data) - {"name"} <= set(datasets.options_of(recipe.data.name))


def test_devices(recipe):
    accepts(build._check_devices, {**recipe.devices, "rows": 8})
    assert recipe.devices.to_dict() == {
        **dict.fromkeys(("fsdp", "bn_groups", "accumulate"), 1),
        "remat": False,
    }


def test_sampler_and_loader(recipe):
    ids, modality = recipe.sampler.num_ids + 3, np.array([0, 1, 0, 1], np.int8)
    label = np.repeat(np.arange(ids, dtype=np.int32), len(modality))
    plan = sampler.plan(label, np.tile(modality, ids), seed=0, epoch=0, **recipe.sampler)
    assert plan.shape[2] == recipe.sampler.num_ids * recipe.sampler.num_instances
    loader = recipe.loader.to_dict()
    image = {"image_size": recipe.data.image_size, "filter": "lanczos"}
    accepts(build.LOADERS[loader.pop("name")], loader | image)


# The chains at the top of data/augment.py that ask for most.
CHAINS = {
    "own": {},
    "CAJ+": dict(
        erase=(0.6, 0.5),
        luma=0.6,
        infrared_channel="adapt_gray",
        grayscale=(0.1, 0.0),
        second_view="exchange",
    ),
    "IDKL": dict(
        pad_value=127, erase_form="log_uniform", erase_attempts=10, erase_aspect=(0.3, 3.3)
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_augment(recipe, chain):
    recipe.augment.update(CHAINS[chain])
    rows = recipe.sampler.num_ids * recipe.sampler.num_instances
    image = jax.ShapeDtypeStruct((rows, *recipe.data.image_size, 3), jnp.uint8)
    batch = {
        "visible": image,
        "infrared": image,
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "camera": jax.ShapeDtypeStruct((rows, 2), jnp.int32),
    }
    out = jax.eval_shape(lambda b: augment.augment(jax.random.key(0), b, **recipe.augment), batch)
    assert out["visible"].shape == out["infrared"].shape == image.shape
    assert out["visible"].dtype == jnp.float32


def test_method(recipe):
    options = with_backbone({k: v for k, v in recipe.method.items() if k != "name"})
    build = get_build(recipe.method.name)
    named = set(inspect.signature(build).parameters)
    facts = dict(  # of a run, see build.py
        num_classes=7,
        image_size=tuple(recipe.data.image_size),
        steps_per_epoch=10,
        num_steps=20,
        num_ids=recipe.sampler.num_ids,
        num_instances=recipe.sampler.num_instances,
        second_view=False,
    )
    method = build(**{k: v for k, v in facts.items() if k in named}, **options)
    assert all(callable(f) for f in (method.init, method.loss, method.embed))
    # The recipe names every option, so that its file shows all there is to change.
    assert set(options) == named - set(facts)


def test_optim(recipe):
    _, rate = optim.make(steps_per_epoch=10, epochs=recipe.train.epochs, **recipe.optim)
    end = round(10 * recipe.train.epochs) - 1
    assert recipe.optim.lr >= rate(10 * recipe.optim.warmup_epochs) > rate(end) >= 0
    assert all(m < recipe.train.epochs for m in recipe.optim.milestones)


def test_train(recipe):
    options = {k: v for k, v in recipe.train.items() if k not in RUN_KEYS}
    accepts(train.train, options, partial=True)
    assert set(RUN_KEYS) < set(recipe.train)
    assert 0 < recipe.train.checkpoint_every <= recipe.train.epochs
    assert recipe.method.get("metric_from_epoch", 0) < recipe.train.epochs


def test_eval(recipe):
    assert recipe.eval.protocols and set(recipe.eval.protocols) <= set(PROTOCOLS)
    assert recipe.eval.validation in PROTOCOLS
    assert recipe.eval.trials is None, "each protocol has the benchmark's number"
    assert recipe.eval.validation in recipe.eval.protocols
    build.check_eval(recipe)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("protocols", ("sysu/outdoor",), "unknown protocol 'sysu/outdoor'"),
        ("validation", "x", "unknown protocol 'x'"),
        ("trials", 0, "eval.trials is 0, expected at least 1"),
        ("batch_size", 0, "eval.batch_size is 0"),
        ("corrupt_repeats", 0, "eval.corrupt_repeats is 0"),
        ("memory_mb", 0, "eval.memory_mb is 0"),
        ("protocols", (), r"eval.protocols is \(\), expected names without repetition in a tuple"),
        ("protocols", ("sysu/all/single",) * 2, "expected names without repetition in a tuple"),
        ("gallery", "random", "eval.gallery is 'random', expected one of agw, official"),
        ("gallery", "official", "rand_perm_cam.mat.*--config.eval.rand_perm=FILE"),
        ("rerank", "yes", "eval.rerank is 'yes', expected one of none, all, queries"),
        ("corrupt", "visible:hail", "hail"),
    ],
)
def test_an_eval_section_that_cannot_be_carried_out_is_refused(key, value, message):
    c = recipe_of("smcl", "sysu")
    c.eval[key] = value
    with pytest.raises(ValueError, match=message):
        build.check_eval(c)


@pytest.mark.parametrize("also", [{"flip": True}, {"rerank": "queries"}], ids=str)
def test_corruption_is_not_combined_with_work_at_test_time(also):
    c = recipe_of("smcl", "sysu")
    c.eval.corrupt = "visible"
    build.check_eval(c)
    c.eval.update(also)
    with pytest.raises(ValueError, match=r"eval.corrupt is 'visible' with .*by another command"):
        build.check_eval(c)


def test_a_run_reads_every_key_that_it_does_not_splat(recipe):
    """A key that nothing reads would look like a switch and do nothing."""
    files = (ROOT / "vireid_jax" / name for name in ("build.py", "run.py", "scoring.py"))
    tree = ast.parse("\n".join(file.read_text() for file in files))
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # Some go by a shorter name: section = self.config.eval; and config["init"]: "from" is a word
    # of Python's.
    paths = {p.removeprefix("self.").replace("section.", "config.eval.") for p in attributes}
    read = [path.split(".")[1:] for path in paths if path.startswith("config.")]
    for name in ("sampler", "loader", "eval"):
        assert set(recipe[name]) == {path[1] for path in read if path[0] == name and path[1:]}
    known = {path[0] for path in read} - set(dir(ml_collections.ConfigDict)) - {"get"}
    assert set(recipe) == known | {"init"}
    assert set(recipe.init) == {"from"} and 'config["init"]["from"]' in ast.unparse(tree).replace(
        "'", '"'
    )


def test_free_keys_are_keys():
    """The keys that a resumed run may change exist, but for those that a recipe leaves out."""
    flat = {f"{section}.{key}" for section in SECTIONS for key in recipe_of("smcl")[section]} | set(
        recipe_of("smcl")
    )
    unknown = {k for k in runfolder.FREE_KEYS if not k.endswith("*") and k not in flat}
    assert unknown <= {"data.cache", "data.images", "data.prepared", "data.root"}


def test_a_recipe_survives_its_config_json(recipe, tmp_path):
    runfolder.save_run_info(tmp_path, recipe.to_dict(), ["x"])
    assert runfolder.load_config(tmp_path).to_dict() == recipe.to_dict()


# What a wrong key or data set does -----------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_a_misspelt_key_is_refused_by_a_locked_recipe(section):
    config = recipe_of("smcl").lock()
    key = next(iter(config[section]))
    with pytest.raises(AttributeError, match=f"Did you mean .*{key}"):
        setattr(config[section], key + "x", 1)


def test_a_misspelt_key_of_the_data_section_is_refused():
    for key, value in recipe_of("smcl", "regdb").data.items():
        with pytest.raises(ValueError, match=f"{key}x would have no effect"):
            datasets.load(name="regdb", **{key + "x": value})


@pytest.mark.parametrize(
    ("section", "function"),
    [
        ("augment", augment.augment),
        ("optim", optim.make),
        ("sampler", sampler.plan),
        ("method", get_build("smcl")),
        ("train", train.train),
    ],
)
def test_a_misspelt_key_in_a_recipe_is_refused_by_what_takes_the_section(section, function):
    options = recipe_of("smcl")[section].to_dict()
    options = {k: v for k, v in options.items() if k not in RUN_KEYS}
    if section == "method":
        del options["name"]
        options = with_backbone(options)
    accepts(function, options, partial=True)
    key = next(iter(options))
    with pytest.raises(TypeError, match=f"{key}x"):
        accepts(function, options | {key + "x": options[key]}, partial=True)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_data_set_is_refused(name):
    with pytest.raises(ValueError, match=r"'market'.*synthetic, sysu, regdb, llcm, folders"):
        recipe_of(name, "market")
    assert recipe_of(name).data.name == recipe_of(name, "").data.name == "synthetic"


# What the papers say ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "epochs", "q", "m", "images", "steps"),
    [
        # Images: visible and infrared ones of the training identities, as released.
        ("sysu", 300, 220, 4.0, (22258, 11909), 417_600),
        ("regdb", 200, 120, 1.0, (2060, 2060), 25_800),
    ],
)
def test_smcl_is_the_papers(dataset, epochs, q, m, images, steps):
    """Wei et al., ICCV 2021, section 4.2."""
    c = recipe_of("smcl", dataset)
    assert c.data.image_size == (384, 128)
    assert (c.sampler.num_ids, c.sampler.num_instances) == (4, 4)
    assert (c.method.depth, c.method.width, c.method.last_stride) == (50, 64, 1)
    assert c.method.auxiliary == "syncretic" and c.method.metric == "adsl"
    assert (c.method.id_margin, c.method.center_margin, c.method.metric_weight) == (m, 0.3, 0.5)
    assert (c.train.epochs, c.method.metric_from_epoch) == (epochs, q)
    _, rate = optim.make(steps_per_epoch=10, epochs=c.train.epochs, **c.optim)
    values = [float(rate(s)) for s in (0, 399, 400, 699, 700, 10 * epochs - 1)]
    np.testing.assert_allclose(values, [3.5e-4] * 2 + [3.5e-5] * 2 + [3.5e-6] * 2, rtol=1e-6)
    assert c.optim.name == "adam" and c.optim.decay == "coupled"

    # The number of steps that the docstring gives, by the rule of the sampler.
    modality = np.repeat(np.array([0, 1], np.int8), images)
    label = np.arange(len(modality), dtype=np.int32) % 200
    pk = dict(num_ids=c.sampler.num_ids, num_instances=c.sampler.num_instances)
    assert c.sampler.steps_per_epoch is None
    assert sampler.steps_per_epoch(label, modality, **pk) * c.train.epochs == steps
    assert f"{steps:,}" in importlib.import_module("configs.smcl").__doc__


@pytest.mark.parametrize("dataset", ["sysu", "regdb", "llcm"])
def test_mun_is_the_papers(dataset):
    """Yu et al., ICCV 2023, section 4.2; one recipe for all data sets."""
    c = recipe_of("mun", dataset)
    assert c.data.image_size == (288, 144)
    assert (c.sampler.num_ids, c.sampler.num_instances) == (8, 4)
    m = c.method
    assert (m.depth, m.width, m.last_stride, m.specific) == (50, 64, 1, 2)
    assert (m.idc_weight, m.ia_weight, m.ma_weight) == (0.25, 0.5, 0.008)
    assert (m.ia_margin, m.tri_margin) == (0.55, 0.3)
    assert m.generator_ratios == (2, 4, 6, 12) and m.auxiliary == "mun"
    assert (c.augment.flip, c.augment.erase, c.augment.visible_channel) == (
        0.5,
        (0.5, 0.5),
        "adapt",
    )
    assert c.train.epochs == 90
    assert (c.optim.name, c.optim.decay, c.optim.weight_decay) == ("adam", "decoupled", 0.01)
    _, rate = optim.make(steps_per_epoch=10, epochs=c.train.epochs, **c.optim)
    values = [float(rate(s)) for s in (0, 75, 150, 299, 300, 599, 600, 899)]
    expected = [1e-8, 1e-3, *[2e-3] * 2, *[2e-4] * 2, *[2e-5] * 2]
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    method = build.make_method(c, 5, 10)[0]
    params = jax.eval_shape(method.init, jax.random.key(0))["params"]
    paths = [optim.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    (pattern, factor), *more = c.optim.multipliers
    slow = [path for path in paths if re.match(pattern, path)]
    assert factor == 0.1 and not more and all(path.startswith("backbone/") for path in slow)
    assert len(slow) == sum(path.startswith("backbone/") for path in paths) > 150
    kept = {p.rsplit("/", 1)[1] for p in paths if not any(re.match(n, p) for n in c.optim.no_decay)}
    assert kept == {"kernel"}, "weights alone decay"


def test_smcl_on_llcm_is_the_recipe_for_sysu():
    llcm, sysu = (recipe_of("smcl", d).to_dict() for d in ("llcm", "sysu"))
    for section in set(SECTIONS) - {"data", "eval"}:
        assert llcm[section] == sysu[section], section
