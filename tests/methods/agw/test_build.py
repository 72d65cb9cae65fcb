"""AGW as a whole: rates, weights, what a fresh model says; and rates of its descendants."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import agw as recipe
from configs import deen as deen_recipe
from configs import pdm as pdm_recipe
from tests.methods import fresh
from tests.methods.fresh import CLASSES, P
from tests.support.rows import each
from tests.weights import trunk
from vireid_jax import optim
from vireid_jax.methods import get_build
from vireid_jax.methods.agw import method as agw
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.deen import method as deen
from vireid_jax.methods.pdm import method as pdm
from vireid_jax.weights.resnet import fill

SIZE, SMALL = (32, 16), dict(depth=10, width=8)
FACTS = dict(num_classes=CLASSES, num_ids=P)


def build(preset="agw", **changes):
    options = recipe.get_config(f"sysu,{preset}").method.to_dict()
    del options["name"]
    facts = dict(FACTS, image_size=SIZE, second_view=preset == "caj")
    return agw.build(**with_backbone({**facts, **options, **SMALL, **changes}))


# --- Rates ---------------------------------------------------------------------------------


def authors_rate(epoch, second, third=None):
    """`adjust_learning_rate` of the authors' codes, whose rate is 0.1."""
    if epoch < 10:
        return 0.1 * (epoch + 1) / 10
    if epoch < 20:
        return 0.1
    if epoch < second:
        return 0.01
    return 0.001 if third is None or epoch < third else 0.0001


@each(
    ("config", "drops", "epochs"),
    [
        (recipe.get_config("sysu"), (50,), 81),
        (recipe.get_config("regdb,caj"), (50,), 100),
        (deen_recipe.get_config("llcm"), (80,), 151),
        (pdm_recipe.get_config("sysu"), (80,), 200),
        (pdm_recipe.get_config("sysu,paper"), (80, 120), 150),
    ],
)
def test_rates_are_those_of_adjust_learning_rate(config, drops, epochs):
    """In every epoch, at its first, a middle and its last step."""
    assert config.train.epochs == epochs
    steps = 7
    options = config.optim.to_dict()
    _, rate = optim.make(steps_per_epoch=steps, epochs=epochs, **options)
    at = jnp.arange(epochs * steps)
    actual = np.asarray(jax.jit(jax.vmap(rate))(at)).reshape(epochs, steps)
    expected = [authors_rate(epoch, *drops) for epoch in range(epochs)]
    np.testing.assert_allclose(actual, np.repeat(expected, steps).reshape(epochs, -1), rtol=1e-5)


@each("config", [recipe.get_config("sysu"), pdm_recipe.get_config("sysu")])
def test_necks_and_classifiers_learn_at_the_whole_rate(config):
    options = config.method.to_dict()
    facts = dict(FACTS, image_size=(64, 32))
    method = get_build(options.pop("name"))(**facts, **with_backbone(options | SMALL))
    multipliers = config.optim.to_dict()["multipliers"]
    tx, _ = optim.make(
        steps_per_epoch=1, epochs=1, name="sgd", momentum=0.0, multipliers=multipliers
    )
    params = jax.eval_shape(method.init, jax.random.key(0))["params"]
    ones = jax.tree.map(lambda x: jnp.ones(()), params)
    updates, _ = tx.update(ones, tx.init(ones), ones)
    factors = {k: float(v) for k, v in fresh.by_path(updates).items()}
    whole = {k for k, v in factors.items() if v == 1}
    assert whole == {k for k in factors if k.split("/")[0].split("_")[0] in ("neck", "classifier")}
    assert len(whole) in (2, 4)
    np.testing.assert_allclose([v for k, v in factors.items() if k not in whole], 0.1)


# --- The network ---------------------------------------------------------------------------


@each(
    ("method", "config", "facts"),
    [(agw, recipe, {"second_view"}), (deen, deen_recipe, set()), (pdm, pdm_recipe, set())],
)
def test_defaults_are_the_recipe(method, config, facts):
    """For PDM the preset "code"."""
    defaults = {k: v.default for k, v in inspect.signature(method.build).parameters.items()}
    options = config.get_config("sysu").method.to_dict()
    del options["name"]
    required = {k for k, v in defaults.items() if v is inspect.Parameter.empty}
    assert required == {"num_classes", "image_size", "num_ids"}
    given = {k: v for k, v in defaults.items() if k not in required | facts}
    assert given == with_backbone(options)


def test_parameters_of_the_network_of_the_paper():
    method = agw.build(**FACTS, image_size=(288, 144))
    blocks = {k.split("/")[0] for k in fresh.shapes(method) if k.startswith("attention")}
    assert blocks == {f"attention_layer{n}" for n in ("2_2", "2_3", "3_3", "3_4", "3_5")}
    found = fresh.sizes(method)
    stem = 64 * 3 * 7 * 7 + 2 * 64
    # torchvision's ResNet-50 has 25,557,032 with its classifier of 1000.
    assert found["backbone"] == 25_557_032 - 2048 * 1000 - 1000 + stem

    def blocks(inner):  # four 1x1 convolutions with biases, and a normalization
        return sum(
            n * (4 * c * inner(c) + 3 * inner(c) + c + 2 * c) for n, c in ((2, 512), (3, 1024))
        )

    assert found["attention"] == blocks(lambda c: 1)
    half = agw.build(**FACTS, image_size=(288, 144), non_local="half")
    assert fresh.sizes(half)["attention"] == blocks(lambda c: c // 2)
    assert found["neck"] == 2048 and found["classifier"] == 2048 * CLASSES


def test_imagenet_weights_fill_both_stems_and_all_layers():
    method = build()
    variables = jax.eval_shape(method.init, jax.random.key(0))
    arrays = trunk.draw(10, 8)
    filled, report = fill(arrays, variables)
    assert {k for k in arrays if k not in report.matched.values()} == set(report.unused)
    assert all(k.startswith("fc.") or "num_batches" in k for k in report.unused)
    assert {k.split("/")[1].split("_")[0] for k in report.untouched} == {
        *("attention", "neck", "classifier")
    }
    kernel = arrays["conv1.weight"].transpose(2, 3, 1, 0)
    for stem in ("stem_visible", "stem_infrared"):
        np.testing.assert_array_equal(filled["params"]["backbone"][stem]["conv1"]["kernel"], kernel)


@pytest.mark.slow
def test_a_fresh_model_knows_nothing_and_every_parameter_gets_a_gradient():
    """Of CAJ; within attention once that has a scale."""
    views = ("visible", "infrared", "visible_second")
    step, params = fresh.stepper(build("caj"), fresh.batch(SIZE, views))
    total, aux, first = step(params)
    assert float(aux.terms["id"]) == pytest.approx(math.log(CLASSES), abs=0.05)
    assert aux.metrics["accuracy"] < 0.2 and float(aux.metrics["feature_norm"]) > 0
    expected = float(aux.terms["id"]) + float(aux.terms["tri"])
    assert float(total) == pytest.approx(expected, rel=1e-6)
    _, _, later = step(fresh.with_scales(params, r"attention.*bn/scale"))
    assert np.isfinite([*first.values(), *later.values()]).all()
    inside = {k for k in first if re.search(r"attention_layer\w+/(theta|phi|g|w)/", k)}
    assert len(inside) == 2 * 4 * 2
    assert {k for k, v in first.items() if v == 0} == inside
    # A shift in front of a batch normalization has rounding for a gradient.
    shifts = {k for k in later if k.endswith("w/bias")}
    assert all(later[k] < 1e-3 * later[k.replace("bias", "kernel")] for k in shifts)
    assert min(v for k, v in later.items() if k not in shifts) > 0


def test_bad_options_are_named():
    for changes, message in (
        (dict(non_local="C/2"), r"method.non_local is 'C/2', expected one of \['one', 'half'\]"),
        (dict(tri_weights="exp"), r"method.tri_weights is 'exp', expected one of \['released'"),
        (dict(tri_form="soft"), r"method.tri_form is 'soft', expected one of \['weighted'"),
        (dict(tri_weight=-0.1), r"method.tri_weight is -0.1, expected 0 or more"),
        (dict(tri_weight=float("nan")), r"method.tri_weight is nan"),
        (dict(num_ids=1), r"sampler.num_ids is 1, expected at least 2"),
        (dict(num_classes=1), r"1 training identities, expected at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)
