"""IDKL's recipe: every value of both presets on every data set, and how they are asked for."""

import inspect

import numpy as np
import pytest

from configs import common, idkl
from vireid_jax import optim
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.idkl import method as method

# Where the released code differs from the paper; docs/idkl.md has the same list in words.
PAPER = dict(
    specific_weight=1.0,
    confuser="reversal",
    discriminator_input="sp",
    mask="channel",
    enhance_form="softplus",
    enhance_head="raw",
    reduce_form="softplus",
    tgsa_pairs="all",
    tgsa_cross="true",
    block_weight=0.0,
)
OFFICIAL = dict(
    specific_weight=0.0,
    confuser="half_flip",
    discriminator_input="purified",
    mask="map",
    enhance_form="exponential",
    enhance_head="own",
    reduce_form="relu",
    tgsa_pairs="self",
    tgsa_cross="mix",
    block_weight=1.0,
)
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


def test_every_option_of_the_method():
    for dataset in REAL:
        for preset, own in (("paper", PAPER), ("official", OFFICIAL)):
            expected = {"name": "idkl", **BOTH, **own}
            if (dataset, preset) == ("regdb", "official"):
                expected |= OFFICIAL_REGDB
            found = idkl.get_config(f"{dataset},{preset}").method.to_dict()
            assert found == expected, (dataset, preset)


def test_the_defaults_of_the_method_are_the_preset_paper():
    named = inspect.signature(method.build).parameters
    defaults = {k: p.default for k, p in named.items() if p.default is not p.empty}
    assert defaults == with_backbone(BOTH | PAPER)


RECIPES = {
    "sysu": ((384, 128), 12, (60, 100)),
    "llcm": ((384, 128), 12, (60, 100)),
    "folders": ((384, 128), 12, (60, 100)),
    "regdb": ((256, 128), 6, (60, 100)),
    "sysu,official": ((384, 144), 12, (55, 95)),
    "llcm,official": ((384, 144), 12, (55, 95)),
    "folders,official": ((384, 144), 12, (55, 95)),
    "regdb,official": ((256, 128), 6, (55, 95)),
}


def test_the_recipe_is_the_papers_and_the_codes():
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
    for arg, (size, people, milestones) in RECIPES.items():
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


def test_a_preset_changes_the_method_the_size_and_the_milestones_alone():
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
            expected |= {"data.image_size"} if dataset != "regdb" else set()
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
