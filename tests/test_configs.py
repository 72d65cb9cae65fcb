"""Every recipe builds for every data set, has no dead key, and says what its paper says."""

import importlib
import inspect
import itertools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, idkl
from tests.support.recipes import RECIPES, recipe_of
from tests.support.rows import each as rows
from vireid_jax import build, evaluate, optim, train
from vireid_jax.data import augment, datasets, sampler
from vireid_jax.methods import get_build
from vireid_jax.methods.common import Backbone, with_backbone
from vireid_jax.methods.idkl import method as idkl_method
from vireid_jax.metrics import PROTOCOLS
from vireid_jax.runtime import runfolder

# A recipe and what follows its name; IDKL's has a second preset.
ALL = [(recipe, dataset) for recipe in RECIPES for dataset in common.DATASETS]
ALL += [("idkl", f"{dataset},official") for dataset in common.DATASETS]
SECTIONS = (
    *("data", "init", "sampler", "loader", "augment", "method", "optim", "train", "devices"),
    "eval",
)


def accepts(function, options, *, partial=False):
    """Raises TypeError for an option that a function does not have."""
    signature = inspect.signature(function)
    assert not [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    (signature.bind_partial if partial else signature.bind)(**options)


# The data sets' sections differ alike whatever the method: a full check of two of them is enough.
ROWS = [(recipe, arg) for recipe, arg in ALL if arg.split(",")[0] in ("synthetic", "sysu")]


def each(rows=ROWS):
    """Recipes with a label for the message of a failed assertion."""
    for name, arg in rows:
        yield f"configs/{name}.py:{arg}", recipe_of(name, arg)


def test_there_are_recipes():
    assert "smcl" in RECIPES and common.DATASETS == datasets.names()
    assert len(ROWS) == 14 and len(ALL) == 35


def test_every_recipe_has_the_sections_and_a_name():
    """The folder of a run says its method, its preset and its data set."""
    for (name, arg), (label, c) in zip(ALL, each(ALL), strict=True):
        sections = {key for key, value in c.items() if hasattr(value, "items")}
        assert sections == set(SECTIONS), label
        dataset, *preset = arg.split(",")
        assert c.run_name == "-".join([name, *preset, dataset]), label
        assert (c.method.name, c.data.name) == (name, dataset), label


def test_data():
    for label, c in each(ALL):
        assert set(c.data) - {"name"} <= set(datasets.options_of(c.data.name)), label


def test_sections_are_what_takes_them():
    """Each is one callable without **kwargs; a key that it lacks, or has and no recipe, fails."""
    for label, c in each(ALL):
        assert set(c.eval) == set(evaluate.Options(**c.eval)._fields), label
        assert set(c.devices) == set(build.Devices(**c.devices)._fields), label
        assert set(c.train) == set(train.Options(**c.train)._fields), label
        assert c.devices.to_dict() == {
            **dict.fromkeys(("fsdp", "bn_groups", "accumulate"), 1),
            "remat": False,
        }, label
        assert build._pretrained(c) is None, label
        network = {key: c.method[key] for key in ("depth", "width")}
        accepts(build._read_weights, {**c.init, **network, "resuming": False})
        build._loader(**c.loader)
        accepts(build._loader, c.loader)


def test_sampler():
    for label, c in each():
        ids, modality = c.sampler.num_ids + 3, np.array([0, 1, 0, 1], np.int8)
        person = np.repeat(np.arange(ids, dtype=np.int32), len(modality))
        plan = sampler.plan(person, np.tile(modality, ids), seed=0, epoch=0, **c.sampler)
        assert plan.shape[2] == c.sampler.num_ids * c.sampler.num_instances, label


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


def test_augment():
    for (label, c), (chain, changes) in itertools.product(list(each()), CHAINS.items()):
        if changes and c.method.name != "smcl":
            continue  # the chains are the same whatever the recipe
        options = c.augment.to_dict() | changes
        images = c.sampler.num_ids * c.sampler.num_instances
        image = jax.ShapeDtypeStruct((images, *c.data.image_size, 3), jnp.uint8)
        batch = {
            "visible": image,
            "infrared": image,
            "label": jax.ShapeDtypeStruct((images,), jnp.int32),
            "camera": jax.ShapeDtypeStruct((images, 2), jnp.int32),
        }
        of = partial(augment.augment, jax.random.key(0), **options)
        out = jax.eval_shape(of, batch)
        assert out["visible"].shape == out["infrared"].shape == image.shape, (label, chain)
        assert out["visible"].dtype == jnp.float32, (label, chain)


def test_method():
    """The recipe names every option, so that its file shows all there is to change."""
    for label, c in each(ALL):
        named = set(inspect.signature(get_build(c.method.name)).parameters)
        facts = {"num_classes", "image_size", "steps_per_epoch", "num_steps", "num_ids"}
        facts |= {"num_instances", "second_view"}  # of a run, see build.py
        backbone = set(Backbone._fields) - set(c.devices)
        assert set(c.method) == {"name", *(named - facts - {"backbone"}), *backbone}, label
        method, report = build.make_method(c, 13, 10)
        assert all(callable(f) for f in (method.init, method.loss, method.embed)), label
        assert report is None


def test_optim():
    for label, c in each(ALL):
        _, rate = optim.make(steps_per_epoch=10, epochs=c.train.epochs, **c.optim)
        end = round(10 * c.train.epochs) - 1
        assert c.optim.lr >= rate(10 * c.optim.warmup_epochs) > rate(end) >= 0, label
        assert all(m < c.train.epochs for m in c.optim.milestones), label
        assert 0 < c.train.checkpoint_every <= c.train.epochs, label
        assert c.method.get("metric_from_epoch", 0) < c.train.epochs, label


def test_eval():
    for label, c in each(ALL):
        assert c.eval.protocols and set(c.eval.protocols) <= set(PROTOCOLS), label
        assert c.eval.validation in PROTOCOLS, label
        assert c.eval.trials is None, "each protocol has the benchmark's number"
        assert c.eval.validation in c.eval.protocols, label
        evaluate.Options(**c.eval).check()


def test_a_section_that_cannot_be_carried_out_is_refused():
    for section, key, value, message in (
        ("eval", "protocols", ("sysu/outdoor",), "unknown protocol 'sysu/outdoor'"),
        ("eval", "validation", "x", "unknown protocol 'x'"),
        ("eval", "trials", 0, "eval.trials is 0, expected a number from 1 to 10,000"),
        ("eval", "batch_size", 0, "eval.batch_size is 0"),
        ("eval", "corrupt_repeats", 0, "eval.corrupt_repeats is 0"),
        ("eval", "memory_mb", 0, "eval.memory_mb is 0"),
        ("eval", "protocols", (), r"protocols is \(\), expected names without repetition in a tup"),
        ("eval", "protocols", ("sysu/all/single",) * 2, "expected names without repetition in a"),
        ("eval", "gallery", "random", "eval.gallery is 'random', expected one of agw, official"),
        ("eval", "gallery", "official", "rand_perm_cam.mat.*--config.eval.rand_perm=FILE"),
        ("eval", "rerank", "yes", "eval.rerank is 'yes', expected one of none, all, queries"),
        ("eval", "cmc", "people", "eval.cmc is 'people', expected one of protocol, id, image"),
        ("eval", "distance", "l2", "eval.distance is 'l2', expected one of cosine, euclidean"),
        ("eval", "fuse", "add", "eval.fuse is 'add', expected one of accumulate, store"),
        ("eval", "corrupt", "visible:hail", "hail"),
        (
            "train",
            "epochs",
            0.0,
            "train.epochs is 0.0, expected a number above 0 and up to 1,000,000",
        ),
        ("train", "log_every", -1, "train.log_every is -1, expected a number from 0"),
        ("train", "eval_every", math.nan, "train.eval_every is nan, expected a number from 0"),
        ("train", "checkpoint_every", -0.5, "train.checkpoint_every is -0.5"),
        ("train", "keep", 0, "train.keep is 0, expected a number from 1 to 10,000; resuming needs"),
    ):
        c = recipe_of("smcl", "sysu")
        c[section][key] = value
        with pytest.raises(ValueError, match=message):
            build.check(c, train=train.Options)
    c = recipe_of("smcl", "sysu")
    c.loader.name = "torch"
    with pytest.raises(ValueError, match=r"no loader 'torch'; expected one of .*arrays.*tfdata"):
        build._loader(**c.loader)


def test_a_flip_test_is_of_cosines():
    c = recipe_of("smcl", "sysu")
    c.eval.update(distance="euclidean", flip=True)
    with pytest.raises(ValueError, match=r"eval.distance is 'euclidean' with eval.flip=True"):
        evaluate.Options(**c.eval).check()


def test_corruption_is_not_combined_with_work_at_test_time():
    for also in ({"flip": True}, {"rerank": "queries"}):
        c = recipe_of("smcl", "sysu")
        c.eval.corrupt = "visible"
        evaluate.Options(**c.eval).check()
        c.eval.update(also)
        with pytest.raises(ValueError, match=r"eval.corrupt is 'visible'.*by another command"):
            evaluate.Options(**c.eval).check()


def test_free_keys_are_keys():
    """The keys that a resumed run may change exist, but for those that a recipe leaves out."""
    flat = {f"{section}.{key}" for section in SECTIONS for key in recipe_of("smcl")[section]} | set(
        recipe_of("smcl")
    )
    unknown = {k for k in runfolder.FREE_KEYS if not k.endswith("*") and k not in flat}
    assert unknown <= {"data.cache", "data.images", "data.prepared", "data.root"}


def test_a_recipe_survives_its_config_json(tmp_path):
    for label, c in each(ALL):
        folder = tmp_path / label
        runfolder.save_run_info(folder, c.to_dict(), ["x"])
        assert runfolder.load_config(folder).to_dict() == c.to_dict(), label
        build.check_known(runfolder.load_config(folder), folder)


def test_a_run_of_another_version_is_refused_with_a_reason(tmp_path):
    """Its config.json has a key that is gone, or lacks one that is new."""
    for section in ("init", "devices", "eval", "method", "data"):
        c = recipe_of("smcl", "sysu")
        c[section]["gone"] = 3
        with pytest.raises(ValueError, match=rf"{section}\.gone: unknown"):
            build.check_known(c, tmp_path)
        if section in ("method", "data"):
            continue
        c = recipe_of("smcl", "sysu")
        key = next(iter(c[section]))
        del c[section][key]
        with pytest.raises(ValueError, match=rf"{section}\.{key}: absent"):
            build.check_known(c, tmp_path)


# What a wrong key or data set does -----------------------------------------------------------


def test_a_misspelt_key_is_refused():
    config = recipe_of("smcl").lock()
    for section in SECTIONS:
        key = next(iter(config[section]))
        with pytest.raises(AttributeError, match=f"Did you mean .*{key}"):
            setattr(config[section], key + "x", 1)
    for key, value in recipe_of("smcl", "regdb").data.items():
        with pytest.raises(ValueError, match=f"{key}x would have no effect"):
            datasets.load(name="regdb", **{key + "x": value})


def test_a_misspelt_key_in_a_recipe_is_refused_by_what_takes_the_section():
    taken_by = {
        "init": build._read_weights,
        "sampler": sampler.plan,
        "loader": build._loader,
        "augment": augment.augment,
        "optim": optim.make,
        "train": train.Options,
        "devices": build.Devices,
        "eval": evaluate.Options,
    }
    assert set(taken_by) == set(SECTIONS) - {"method", "data"}
    for section, function in taken_by.items():
        options = recipe_of("smcl")[section].to_dict()
        accepts(function, options, partial=True)
        key = next(iter(options))
        with pytest.raises(TypeError, match=f"{key}x"):
            accepts(function, options | {key + "x": options[key]}, partial=True)


def test_an_unknown_data_set_is_refused():
    for name in RECIPES:
        with pytest.raises(ValueError, match=r"'market'.*synthetic, sysu, regdb, llcm, folders"):
            recipe_of(name, "market")
        assert recipe_of(name).data.name == recipe_of(name, "").data.name == "synthetic"


# What the papers say ---------------------------------------------------------------------------


@rows(
    "dataset, epochs, q, m, images, steps",
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


@rows("dataset", ["sysu", "regdb", "llcm"])
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
    if dataset != "sysu":
        return  # the same parameters
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


# IDKL: every value of both presets, and how they are asked for ------------------------------------

# Option: the paper's value and the released code's; docs/idkl.md has the same list in words.
DIFFERING = dict(
    specific_weight=(1.0, 0.0),
    confuser=("reversal", "half_flip"),
    discriminator_input=("sp", "purified"),
    mask=("channel", "map"),
    enhance_form=("softplus", "exponential"),
    enhance_head=("raw", "own"),
    reduce_form=("softplus", "relu"),
    tgsa_pairs=("all", "self"),
    tgsa_cross=("true", "mix"),
    block_weight=(0.0, 1.0),
)
PAPER, OFFICIAL = ({k: v[n] for k, v in DIFFERING.items()} for n in (0, 1))
# Of both, the code's where the paper is silent.
BOTH = dict(
    depth=50,
    width=64,
    last_stride=1,
    kernels="auto",
    dtype="float32",
    tri_margin=1.3,
    reversal_strength=1.0,
    modality_dropout=0.5,
    purifier=True,
    purified_weight=1.0,
    ip_weight=0.1,
    tgsa_weight=0.6,
    tgsa_scale="none",
    csa_weight=0.8,
    mdr_tgsa_weight=1.0,
    mdr_csa_weight=1.0,
)
# RegDB.yml has no TGSA, and its batch is not 120, so that the weight of CSA is another.
OFFICIAL_REGDB = dict(tgsa_weight=0.0, mdr_tgsa_weight=0.0, csa_weight=0.3)
REAL = ("sysu", "regdb", "llcm", "folders")


def test_every_option_of_idkl():
    for dataset in REAL:
        for preset, own in (("paper", PAPER), ("official", OFFICIAL)):
            expected = {"name": "idkl", **BOTH, **own}
            if (dataset, preset) == ("regdb", "official"):
                expected |= OFFICIAL_REGDB
            found = idkl.get_config(f"{dataset},{preset}").method.to_dict()
            assert found == expected, (dataset, preset)


def test_idkl_as_released_is_scored_as_released():
    """By Euclidean distance where its code does not normalize; its CMC counts people on RegDB."""
    for preset, found in (("paper", []), ("official", [("regdb", "id"), ("llcm", "protocol")])):
        configs = {d: idkl.get_config(f"{d},{preset}").eval for d in common.DATASETS}
        euclidean = [(d, c.cmc) for d, c in configs.items() if c.distance == "euclidean"]
        assert sorted(euclidean) == sorted(found)
        assert all(c.cmc == "protocol" for d, c in configs.items() if d not in dict(found))


def test_the_defaults_of_idkl_are_the_preset_paper():
    named = inspect.signature(idkl_method.build).parameters
    defaults = {k: p.default for k, p in named.items() if p.default is not p.empty}
    assert defaults == with_backbone(BOTH | PAPER)


IDKL = {
    "sysu": ((384, 128), 12, (60, 100)),
    "llcm": ((384, 128), 12, (60, 100)),
    "folders": ((384, 128), 12, (60, 100)),
    "regdb": ((256, 128), 6, (60, 100)),
    "sysu,official": ((384, 144), 12, (55, 95)),
    "llcm,official": ((384, 144), 12, (55, 95)),
    "folders,official": ((384, 144), 12, (55, 95)),
    "regdb,official": ((256, 128), 6, (55, 95)),
}


def test_idkl_is_the_papers_and_the_codes():
    """Sec. 4.1 (size, batch, milestones, lambdas); SYSU.yml, LLCM.yml, RegDB.yml of the code."""
    augment = common.base("x", "sysu").augment.to_dict() | dict(
        flip=0.5,
        pad=10,
        pad_value=127,
        erase=(0.5, 0.5),
        erase_area=(0.02, 0.33),
        erase_aspect=(0.3, 3.3),
        erase_form="log_uniform",
        erase_attempts=10,
        erase_value=(0.0, 0.0, 0.0),
        grayscale=(0.0, 0.0),
        visible_channel="none",
        infrared_channel="none",
        second_view="none",
    )
    for arg, (size, people, milestones) in IDKL.items():
        c = idkl.get_config(arg)
        assert (c.data.image_size, c.data.filter) == (size, "bilinear"), arg
        # 10 images of a person are 5 of each modality.
        assert (c.sampler.num_ids, c.sampler.num_instances) == (people, 5), arg
        assert 2 * people * 5 == {12: 120, 6: 60}[people]
        assert (c.sampler.rule, c.sampler.steps_per_epoch) == ("exhaust", None), arg
        assert c.augment.to_dict() == augment, arg
        o = c.optim
        assert (o.name, o.lr, o.weight_decay, o.decay) == ("adam", 3.5e-4, 5e-3, "coupled"), arg
        # On everything, at one rate, without a warm-up.
        plain = (o.no_decay, o.multipliers, o.warmup_epochs, o.clip_norm)
        assert plain == ((), (), 0.0, None), arg
        assert c.train.epochs == 160, arg
        _, rate = optim.make(steps_per_epoch=10, epochs=c.train.epochs, **o)
        first, second = (10 * m for m in milestones)
        found = [float(rate(s)) for s in (0, first - 1, first, second - 1, second, 1599)]
        expected = [3.5e-4] * 2 + [3.5e-5] * 2 + [3.5e-6] * 2
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=arg)
        assert (c.eval.rerank, c.eval.flip) == ("none", False), arg


def test_a_preset_of_idkl_changes_the_method_the_size_and_the_milestones_alone():
    for dataset in common.DATASETS:
        paper, official = (idkl.get_config(f"{dataset},{p}").to_dict() for p in idkl.PRESETS)
        for c in (paper, official):
            del c["run_name"]
        differing = {
            f"{section}.{key}"
            for section, values in paper.items()
            if isinstance(values, dict)
            for key in values
            if values[key] != official[section][key]
        }
        expected = {f"method.{key}" for key in PAPER}
        if dataset != "synthetic":  # there sizes and schedule are ours
            expected |= {"optim.milestones"}
            expected |= {"data.image_size"} if dataset != "regdb" else {"eval.cmc"}
            expected |= {"eval.distance"} if dataset in ("regdb", "llcm") else set()
        if dataset == "regdb":
            expected |= {f"method.{key}" for key in OFFICIAL_REGDB}
        assert differing == expected, dataset
        flat = [{k: v for k, v in c.items() if not isinstance(v, dict)} for c in (paper, official)]
        assert flat[0] == flat[1], dataset


def test_data_set_and_preset_are_words_in_any_order():
    for arg, dataset, preset in (
        (None, "synthetic", "paper"),
        ("", "synthetic", "paper"),
        ("paper", "synthetic", "paper"),
        ("official", "synthetic", "official"),
        ("llcm", "llcm", "paper"),
        ("llcm,paper", "llcm", "paper"),
        ("llcm,official", "llcm", "official"),
        ("official,llcm", "llcm", "official"),
    ):
        c = idkl.get_config(arg)
        assert c.data.name == dataset, arg
        assert c.method.confuser == {"paper": "reversal", "official": "half_flip"}[preset], arg
        # The folder says which it was, as does the command in it.
        name = {"paper": "idkl", "official": "idkl-official"}[preset]
        assert c.run_name == f"{name}-{dataset}", arg


def test_other_words_are_refused():
    for arg, message in (
        ("market", "'market'; expected .*:DATASET,PRESET .*synthetic, .*paper, official"),
        ("sysu,offical", "'offical'"),
        ("sysu,", "''"),
        ("Official", "'Official'"),
        ("sysu official", "'sysu official'"),
        ("sysu,llcm", "names a data set twice, sysu and llcm"),
        ("sysu,sysu", "names a data set twice"),
        ("official,paper", "names a preset twice, official and paper"),
    ):
        with pytest.raises(ValueError, match=message):
            idkl.get_config(arg)


def test_what_is_commented_out_in_the_code_is_within_reach():
    """Its linear warm-up and its channel operator; see docs/idkl.md for the commands."""
    c = idkl.get_config("sysu,official")
    c.optim.warmup_epochs, c.optim.warmup_factor = 20.0, 0.0
    _, rate = optim.make(steps_per_epoch=10, epochs=160.0, **c.optim)
    found = [float(rate(s)) for s in (0, 50, 100, 200, 549, 550)]
    np.testing.assert_allclose(found, [0, 8.75e-5, 1.75e-4, 3.5e-4, 3.5e-4, 3.5e-5], atol=1e-10)
