"""DEEN and PDM as a whole: sizes, shapes, weights, what a fresh model says, bad options."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import deen as deen_recipe
from configs import pdm as pdm_recipe
from tests.methods import fresh
from tests.methods.fresh import CLASSES, P, shapes, sizes
from tests.support.parity import first_fast
from tests.support.rows import each
from tests.weights import trunk
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.deen import method as deen
from vireid_jax.methods.pdm import method as pdm
from vireid_jax.weights.resnet import fill

SIZE = (64, 32)
SMALL = dict(depth=10, width=8)
FACTS = dict(num_classes=CLASSES, num_ids=P)


def build(preset="code", **changes):
    """PDM by one of its presets, or "deen"."""
    config = deen_recipe.get_config("sysu") if preset == "deen" else None
    options = (config or pdm_recipe.get_config(f"sysu,{preset}")).method.to_dict()
    make = {"deen": deen.build, "pdm": pdm.build}[options.pop("name")]
    return make(**with_backbone({**FACTS, "image_size": SIZE, **options, **SMALL, **changes}))


# --- The networks of the papers ------------------------------------------------------------


@functools.cache
def whole(size=(384, 192), stages=4):
    return pdm.build(**FACTS, image_size=size, stages=stages)


def test_parameters_of_pdm():
    """ResNet-50 at 384 x 192; counted apart from the flax modules, layer by layer."""
    found = sizes(whole())
    stem = 64 * 3 * 7 * 7 + 2 * 64
    assert found["backbone"] == 25_557_032 - 2048 * 1000 - 1000 + stem

    def branch(c):
        q = c // 4
        cbam = 2 * q * (q // 16) + 2 * 49 * 49 + 1
        return 3 * 9 * c * q + cbam + q * c + c

    assert found["expansion"] == 2 * branch(1024)

    def mfa(high, low):
        half = low // 2
        channel = 2 * (low * low + low) + high * low + low + low * high + high + 2 * high
        position = 2 * (low * half + half) + high * half + half + half * high + high + 2 * high
        return channel + position

    pairs = ((256, 64), (512, 256), (1024, 512))
    assert [found[f"mfa_{n}"] for n in range(3)] == [mfa(*pair) for pair in pairs]
    assert found["prototypes"] == (10 + 24 * 12) * 2048
    assert found["classifier_full"] == 11 * 2048 * CLASSES
    assert found["classifier_global"] == 2048 * CLASSES
    assert found["neck_full"] == 11 * 2048 and found["neck_global"] == 2048
    mfas = sum(found[f"mfa_{n}"] for n in range(3))
    # In millions, as the parts of the authors' own network sum up.
    parts = [found["expansion"], mfas, found["prototypes"], found["classifier_full"]]
    np.testing.assert_allclose(np.array(parts) / 1e6, [14.7, 3.0, 0.61, 8.9], atol=0.06)
    assert sum(found.values()) / 1e6 == pytest.approx(51.6, abs=0.1)


def test_parameters_of_deen():
    found = sizes(deen.build(**FACTS, image_size=(384, 144)))
    names = {"backbone", "expansion", "mfa_0", "mfa_1", "mfa_2", "neck_global", "classifier_global"}
    assert set(found) == names
    assert found["expansion"] == 2 * (27 * 1024 * 256 + 256 * 1024 + 1024)


@pytest.mark.parametrize(
    ("size", "stages", "places", "width"),
    first_fast([((384, 192), 4, 24 * 12, 2048), ((384, 192), 3, 24 * 12, 1024)]),
)
def test_shapes_of_features(size, stages, places, width):
    method = whole(size, stages)
    found = shapes(method)
    assert found["prototypes/prototypes"] == (10, width)
    assert found["prototypes/positions"] == (places, width)
    # MFGM before the last stage, at half its channels.
    assert found["expansion/expand_kernel"] == (2, width // 8, width // 2)
    assert ("mfa_2/channel/w/kernel" in found) == (stages == 4)
    variables = jax.eval_shape(method.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((3, *size, 3), jnp.float32)
    features = jax.eval_shape(lambda v, x: method.embed(v, x, 0), variables, image)
    wide = {"globals": 3 * width, "fulls": 3 * 11 * width}  # together 73,728 of four stages
    expected = {k: (3, d) for k, d in {"bn": width, "pool": width, **wide}.items()}
    assert {k: v.shape for k, v in features.items()} == expected
    assert all(v.dtype == jnp.float32 for v in features.values())
    assert set().union(*method.fusions.values()) == set(wide)


def test_a_later_stage_needs_the_size_it_was_made_for():
    """The table of positions has a row for each place of the last map."""
    small, large = build(), build(image_size=(128, 64))
    assert shapes(small)["prototypes/positions"] == (8, 64)
    assert shapes(large)["prototypes/positions"] == (32, 64)


def test_what_is_off_has_no_parameters():
    whole = set(sizes(build()))
    cases = {
        "mfa_0 mfa_1 mfa_2": dict(mfa=False),
        "expansion": dict(branches=0),
        "prototypes neck_full classifier_full": dict(num_prototypes=0),
        "classifier_global": dict(id_global_weight=0.0),
        "": dict(gate=False, dropout=0.0, ort_weight=0.0, cpm_weight=0.0),
    }
    for names, changes in cases.items():
        assert whole - set(sizes(build(**changes))) == set(names.split()), changes
    paper = {f"mfa_{n}" for n in range(3)} | {"classifier_global"}
    assert whole - set(sizes(build("paper"))) == paper


@each("stages", [4, 3])
@each("preset", ["code", "deen"])
def test_imagenet_weights_fill_stems_and_layers(preset, stages):
    variables = jax.eval_shape(build(preset, stages=stages).init, jax.random.key(0))
    arrays = trunk.draw(10, 8)
    filled, report = fill(arrays, variables)
    used = set(report.matched.values())
    left = {k for k in arrays if k.startswith(("fc.", "layer4." if stages == 3 else "fc."))}
    assert set(arrays) - used == left | {k for k in arrays if "num_batches" in k}
    assert not any("backbone" in k for k in report.untouched)
    backbone = filled["params"]["backbone"]
    for stem in ("stem_visible", "stem_infrared"):
        np.testing.assert_array_equal(backbone[stem]["bn1"]["bias"], arrays["bn1.bias"])
    last = f"layer{stages}"
    np.testing.assert_array_equal(
        backbone[f"{last}_0"]["conv2"]["kernel"],
        arrays[f"{last}.0.conv2.weight"].transpose(2, 3, 1, 0),
    )


def test_weights_of_another_depth_are_refused_with_three_stages():
    variables = jax.eval_shape(build(stages=3).init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"--config.method.depth=18"):
        fill(trunk.draw(18, 8), variables)


# --- A fresh model -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fresh_model_knows_nothing_and_every_parameter_gets_a_gradient():
    """Within attention once that has a scale."""
    step, params = fresh.stepper(build(), fresh.batch(SIZE))
    total, aux, first = step(params)
    for name in ("id_full", "id_global"):
        assert float(aux.terms[name]) == pytest.approx(math.log(CLASSES), abs=0.05)
    assert float(aux.metrics["accuracy"]) < 0.2
    assert 0.2 < float(aux.metrics["similarity"]) < 0.8
    # eqs. (11) and (12), and train_pdm_os.py: 0.5 * 0.8 and 0.5 * 0.5.
    weights = dict(id_full=1, id_global=1, tri=1, cpm=0.4, ch=0.25, dcs=1, ort=0.01)
    expected = sum(weights.pop(name) * float(term) for name, term in aux.terms.items())
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert not weights
    _, _, later = step(fresh.with_scales(params, r"^mfa.*bn/scale"))
    assert np.isfinite([*first.values(), *later.values()]).all()
    inside = {k for k in first if re.match(r"mfa_\d/\w+/(theta|phi|g|w)/", k)}
    assert len(inside) == 3 * 2 * 4 * 2
    assert {k for k, v in first.items() if v == 0} == inside
    # A shift in front of a batch normalization has rounding for a gradient.
    shifts = {k for k in later if k.startswith("mfa") and k.endswith("w/bias")}
    assert {k for k, v in later.items() if v == 0} <= shifts
    assert all(later[k] < 1e-3 * later[k.replace("bias", "kernel")] for k in shifts)
    other, again = (float(step(params, key)[0]) for key in (2, 1))  # dropout is the key's
    assert float(total) == again != other == pytest.approx(again, rel=0.2)


# --- Bad options ---------------------------------------------------------------------------


def test_bad_options_of_pdm_are_named():
    for option in (
        *("num_prototypes", "id_global_weight", "tri_margin", "cpm_margin", "cpm_weight"),
        *("ch_weight", "dcs_pull_margin", "dcs_push_margin", "dcs_weight", "ort_weight"),
    ):
        with pytest.raises(ValueError, match=rf"method\.{option} is -1, expected 0 or more"):
            build(**{option: -1})
    for option in ("mfgm", "cpm_form", "ch_form"):
        message = rf"method\.{option} is 'nonsense', expected one of \["
        with pytest.raises(ValueError, match=message):
            build(**{option: "nonsense"})
    with pytest.raises(ValueError, match=r"method.num_prototypes is 1 with a ch_weight of 0.25"):
        build(num_prototypes=1)


@each("preset", ["code", "deen"])
def test_bad_options_are_named(preset):
    for changes, message in (
        (dict(stages=5), r"method.stages is 5, expected 4, or 3"),
        (dict(branches=-1), r"method.branches is -1, expected 0 or more"),
        (dict(dropout=1.0), r"method.dropout is 1.0, expected 0 to below 1"),
        (dict(dropout=float("nan")), r"method.dropout is nan"),
        (dict(num_ids=1), r"sampler.num_ids is 1, expected at least 2"),
        (dict(num_classes=1), r"1 training identities, expected at least 2"),
        (dict(image_size=(48, 48)), r"data.image_size is \(48, 48\), whose map of 3 x 3 places"),
        (dict(tri_margin=float("nan")), r"method.tri_margin is nan"),
        (dict(cpm_weight=-1.0), r"method.cpm_weight is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(preset, **changes)


def test_a_map_of_odd_places_does_without_aggregation():
    assert "mfa_0" not in sizes(build(image_size=(48, 48), mfa=False))
