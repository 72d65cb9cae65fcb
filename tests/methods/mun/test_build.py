"""What MUN's build makes of its options: sizes of the paper, table rows, test time, refusals.

Everything here is traced, nothing is compiled or run.
"""

import inspect

import jax
import jax.numpy as jnp
import pytest

from configs import tables
from tests.support.parity import first_fast
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.mun import method as mun
from vireid_jax.types import INFRARED, VISIBLE

P, K, CLASSES, SIZE = 2, 2, 5, (16, 8)  # maps of 4 x 2
TINY = dict(num_classes=CLASSES, image_size=SIZE, num_steps=7, num_ids=P, num_instances=K)
TINY |= dict(depth=10, width=4, kernels="xla", generator_ratios=(2,))
BASELINE = {"id_visible", "id_infrared", "tri"}


def build(**options):
    return mun.build(**with_backbone({**TINY, **options}))


def batch():
    image = jax.ShapeDtypeStruct((P * K, *SIZE, 3), jnp.float32)
    label = jax.ShapeDtypeStruct((P * K,), jnp.int32)
    camera = jax.ShapeDtypeStruct((P * K, 2), jnp.int32)
    return {"visible": image, "infrared": image, "label": label, "camera": camera}


def traced(**options):
    """Shapes of the variables, the gradient and the terms of one step."""
    method = build(**options)
    variables = jax.eval_shape(method.init, jax.random.key(0))

    def step(variables, batch, at):
        def objective(params):
            return method.loss({**variables, "params": params}, batch, jax.random.key(1), at)

        return jax.grad(objective, has_aux=True)(variables["params"])

    at = jax.ShapeDtypeStruct((), jnp.int32)
    gradient, aux = jax.eval_shape(step, variables, batch(), at)
    return variables, gradient, aux.terms


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- Sizes of the paper -----------------------------------------------------------------------


def test_parameters_of_the_paper():
    """ResNet-50 with a second stage 1, the generator, a neck, two classifiers, three W_p."""
    method = mun.build(
        num_classes=395, image_size=(288, 144), num_steps=100, num_ids=8, num_instances=4
    )
    variables = jax.eval_shape(method.init, jax.random.key(0))
    params, d, c = variables["params"], 2048, 256
    stem = 7 * 7 * 3 * 64 + 2 * 64
    first = 64 * 64 + 9 * 64 * 64 + 64 * c + 2 * (64 + 64 + c) + 64 * c + 2 * c
    further = c * 64 + 9 * 64 * 64 + 64 * c + 2 * (64 + 64 + c)
    assert count(params["backbone"]) == 23_508_032 + stem + first + 2 * further
    stems = {n for n in params["backbone"] if n.startswith("stem")}
    assert stems == {"stem_visible", "stem_infrared"}
    assert "layer1_2_infrared" in params["backbone"] and "layer2_0" in params["backbone"]
    taps, groups, wide = 4 + 16 + 36 + 144, 2 * 4, 4 * c
    intra = (25 + 49) * c // 2 + 2 * c + c * wide + wide  # depthwise, bn, expand
    intra += 9 * wide + wide + 2 * wide + wide * c + c + c  # depthwise, bn, reduce, scale
    cross = taps * c * c + 2 * groups * c + groups * c * c + c + c  # kernels, bn, project, scale
    assert {name: count(part) for name, part in params["auxiliary"].items()} == {
        "intra_visible": intra,
        "intra_infrared": intra,
        "cross": cross,
    }
    assert count(params["neck"]) == d
    for m in ("visible", "infrared"):
        assert params[f"classifier_{m}"]["kernel"].shape == (d, 395)
    for m in ("visible", "infrared", "auxiliary"):
        assert params[f"prototype_{m}"]["kernel"].shape == (d, d)
    assert "classifier_auxiliary" not in params
    (memory,) = jax.tree.leaves(variables["memory"])
    assert memory.shape == (32, 3, d) and memory.dtype == jnp.float32


# --- Rows of the tables -----------------------------------------------------------------------


PROTOTYPES = {f"prototype_{m}" for m in ("visible", "infrared", "auxiliary")}


@pytest.mark.parametrize(
    ("row", "terms", "parts"),
    first_fast(
        [
            ("mun/3/both", {"idc", "ia", "ma"}, {"auxiliary", *PROTOTYPES}),
            ("mun/1/b", set(), set()),
            ("mun/1/aux", {"ida"}, {"auxiliary", "classifier_auxiliary"}),
            ("mun/1/idc_ia", {"idc", "ia"}, {"auxiliary"}),
            ("mun/3/bridge", {"idc", "ia", "ma"}, {"auxiliary"}),
        ]
    ),
)
def test_a_row_has_its_terms_and_no_other_parameters(row, terms, parts):
    options = tables.get_config(f"{row}:sysu").method.to_dict()
    named = inspect.signature(mun.build).parameters
    options = {k: v for k, v in options.items() if k in named and k not in TINY}
    variables, gradient, found = traced(**options)
    assert set(found) == BASELINE | terms
    always = {"backbone", "neck", "classifier_visible", "classifier_infrared"}
    assert set(gradient) == set(variables["params"]) == always | parts
    assert set(variables) - {"params", "batch_stats"} == ({"memory"} if len(parts) == 4 else set())


# --- Test time --------------------------------------------------------------------------------


def test_embedding_needs_neither_generator_nor_prototypes_nor_classifiers():
    method = build()
    variables = {
        name: {part: leaves for part, leaves in tree.items() if part in ("backbone", "neck")}
        for name, tree in jax.eval_shape(method.init, jax.random.key(0)).items()
    }
    image = jax.ShapeDtypeStruct((3, *SIZE, 3), jnp.float32)
    for m in (VISIBLE, INFRARED):
        features = jax.eval_shape(lambda v, x, m=m: method.embed(v, x, m), variables, image)
        found = {k: (v.shape, v.dtype) for k, v in features.items()}
        assert found == dict.fromkeys(("bn", "pool"), ((3, 32), jnp.float32))


# --- Every source of the auxiliary modality ----------------------------------------------------


@pytest.mark.slow
def test_every_source_of_the_auxiliary_modality_has_its_parameters():
    for kind in ("x", "gray", "mixed", "syncretic", "mun"):
        variables, gradient, terms = traced(auxiliary=kind)
        assert set(terms) == BASELINE | {"idc", "ia", "ma"}, kind
        assert set(gradient) == set(variables["params"]), kind
        own = "stem_auxiliary" in variables["params"]["backbone"]
        assert own == (kind != "mun"), kind
        assert ("auxiliary" in gradient) == (kind not in ("gray", "mixed")), kind


# --- Refusals ---------------------------------------------------------------------------------


def test_a_bad_option_is_refused_by_name_before_anything_is_traced():
    for options, message in (
        ({"num_ids": 1}, "sampler.num_ids is 1"),
        ({"num_classes": 1}, "1 training identities"),
        ({"specific": 3}, "method.specific is 3"),
        ({"depth": 51}, "51"),
        ({"dtype": "float16"}, "method.dtype is 'float16'"),
        ({"kernels": "gpu"}, "method.kernels"),
        ({"auxiliary": "y"}, "method.auxiliary is 'y'"),
        ({"auxiliary": "syncretic", "smgm_width": 0}, "method.smgm_width is 0"),
        ({"ma_weight": -0.1}, "method.ma_weight is -0.1"),
        ({"ia_margin": -1}, "method.ia_margin"),
        ({"tri_margin": float("nan")}, "method.tri_margin is nan"),
        ({"generator_ratios": (2, 2)}, "method.generator_ratios is"),
        ({"generator_ratios": (4,)}, "map of 4 x 2 does not divide"),
        ({"generator_form": "auto"}, "method.generator_form is 'auto'"),
        ({"generator_form": "folded", "bn_groups": 2}, "devices.bn_groups=2"),
        ({"generator_remat": "yes"}, "method.generator_remat is 'yes'"),
        ({"image_size": (20, 8)}, "data.image_size is .20, 8."),
        ({"width": 5, "specific": 1}, "halves"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)
