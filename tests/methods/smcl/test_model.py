"""SMCL as a method: incremental training, what each option changes, test time, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.smcl.small import BATCH, IMAGES, KEY, SMALL, SWITCH, Built, K, P, traced
from tests.support.parity import relative_error
from tests.support.reference.convert import flatten
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.smcl import method as smcl
from vireid_jax.types import INFRARED, VISIBLE


@pytest.fixture(scope="module")
def built():
    return Built()


def _embed(method, variables, name, modality):
    return jax.jit(method.embed, static_argnums=2)(variables, BATCH[name], modality)


# --- Training ---------------------------------------------------------------------------


def test_first_losses_are_those_of_a_fresh_classifier(built):
    terms = built.run()[1].terms
    assert float(terms["id_visible"]) == pytest.approx(math.log(395), abs=0.02)
    assert float(terms["id_syncretic"]) == pytest.approx(math.log(395), abs=0.02)
    assert float(terms["id_infrared"]) == pytest.approx(math.log(1 + 394 * math.e**4), abs=0.02)


def test_total_is_the_identity_terms_until_the_metric_terms_come_in(built):
    for step, metric in ((0, 0), (SWITCH - 1, 0), (SWITCH, 0.5), (10**6, 0.5)):
        total, aux, _ = built.run(step)
        t = {k: float(v) for k, v in aux.terms.items()}
        identity = t["id_visible"] + t["id_infrared"] + t["id_syncretic"]
        adsl = t["tri_center"] + t["global_center"]
        assert total == pytest.approx(identity + metric * adsl, rel=1e-5)
        assert len(t) == 5 and adsl > 0.1  # the terms are reported before they count


def test_metric_terms_train_the_generator_and_the_trunk_but_not_neck_and_classifier(built):
    before, after = built.run(SWITCH - 1)[2], built.run(SWITCH)[2]
    changed = {k.split("/")[0] for k in after if relative_error(before[k], after[k]) > 1e-3}
    assert changed == {"auxiliary", "backbone"}


def test_every_parameter_gets_a_gradient(built):
    _, _, gradient = built.run()
    assert not [k for k, g in gradient.items() if not np.any(g)]
    assert all(np.isfinite(g).all() for g in gradient.values())


def test_identities_may_be_permuted_jointly(built):
    order = np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel()
    moved = built.run(batch={k: v[order] for k, v in BATCH.items()})
    total, aux, gradient = built.run()
    assert moved[0] == pytest.approx(total, rel=1e-4)
    for k, v in aux.terms.items():
        assert float(moved[1].terms[k]) == pytest.approx(float(v), rel=1e-3)
    kernel = "classifier/kernel"
    assert relative_error(moved[2][kernel], gradient[kernel]) < 1e-2


def test_the_margin_makes_infrared_alone_harder(built):
    _, plain = Built(id_margin=0.0).forward()
    _, aux, _ = built.run()
    for name in ("id_visible", "id_syncretic", "tri_center", "global_center"):
        np.testing.assert_allclose(aux.terms[name], plain.terms[name], rtol=1e-5)
    assert float(aux.terms["id_infrared"]) > float(plain.terms["id_infrared"]) + 3.5
    for name in ("visible", "infrared"):  # accuracy is counted without the margin
        assert aux.metrics[f"accuracy_{name}"] == plain.metrics[f"accuracy_{name}"]


def test_bfloat16_keeps_losses_parameters_and_statistics_in_float32(built):
    half = Built(dtype="bfloat16")
    variables = half.variables
    shapes = jax.eval_shape(half.gradient, variables["params"], variables, BATCH, jnp.asarray(0))
    assert {str(x.dtype) for x in jax.tree.leaves(shapes)} == {"float32"}
    total, aux = half.forward()
    exact, exact_aux, _ = built.run()
    assert float(total) == pytest.approx(exact, rel=0.05)
    for name in ("id_visible", "id_infrared", "id_syncretic"):
        assert float(aux.terms[name]) == pytest.approx(float(exact_aux.terms[name]), rel=0.01)
    features = jax.eval_shape(lambda v, x: half.method.embed(v, x, 0), variables, BATCH["visible"])
    assert {str(x.dtype) for x in features.values()} == {"float32"}


# --- Test time --------------------------------------------------------------------------


def test_embedding_needs_no_generator_and_no_classifier(built):
    params = {k: v for k, v in built.variables["params"].items() if k in ("backbone", "neck")}
    bare = {**built.variables, "params": params}
    for modality, name in ((VISIBLE, "visible"), (INFRARED, "infrared")):
        whole = _embed(built.method, built.variables, name, modality)
        parts = _embed(built.method, bare, name, modality)
        assert list(whole) == ["bn", "pool"]  # the first is the headline
        for kind, x in whole.items():
            assert x.shape == (P * K, 64) and x.dtype == jnp.float32
            np.testing.assert_array_equal(x, parts[kind])


def test_an_image_is_embedded_the_same_in_any_company(built):
    together = _embed(built.method, built.variables, "visible", VISIBLE)["bn"]
    embed = jax.jit(built.method.embed, static_argnums=2)
    alone = embed(built.variables, BATCH["visible"][:1], VISIBLE)["bn"]
    np.testing.assert_allclose(alone, together[:1], rtol=1e-4, atol=1e-5)


def test_one_stream_embeds_both_modalities_alike(built):
    v, i = (
        _embed(built.method, built.variables, "visible", m)["pool"] for m in (VISIBLE, INFRARED)
    )
    np.testing.assert_array_equal(v, i)


# --- What SMCL is compared with, tables 2 and 4 ----------------------------------------------


def test_without_auxiliary_modality_two_modalities_are_trained():
    _, variables, aux = traced(auxiliary="none")
    assert set(variables["params"]) == {"backbone", "neck", "classifier"}
    assert set(aux.terms) == {"id_visible", "id_infrared", "global_center"}
    assert set(aux.metrics) == {"accuracy_visible", "accuracy_infrared"}


def test_any_auxiliary_modality_is_trained_and_left_out_at_test_time():
    for kind in ("x", "gray", "mixed", "syncretic"):
        method, variables, aux = traced(auxiliary=kind)
        terms = {"id_visible", "id_infrared", f"id_{kind}", "global_center", "tri_center"}
        assert set(aux.terms) == terms
        assert {"auxiliary_std", f"accuracy_{kind}"} <= set(aux.metrics), kind
        assert ("auxiliary" in variables["params"]) == (kind not in ("gray", "mixed")), kind
        bare = {
            name: {k: v for k, v in tree.items() if k in ("backbone", "neck")}
            for name, tree in variables.items()
        }
        for modality in (VISIBLE, INFRARED):
            shapes = jax.eval_shape(
                lambda v, x, e=method.embed, m=modality: e(v, x, m), bare, IMAGES
            )
            assert {k: v.shape for k, v in shapes.items()} == dict.fromkeys(("bn", "pool"), (8, 64))


def test_another_metric_takes_the_place_of_adsl():
    for metric in ("bh_tri", "bdtr", "bicenter", "hc_tri"):
        for auxiliary in ("none", "syncretic"):
            _, _, aux = traced(auxiliary=auxiliary, metric=metric)
            assert {k for k in aux.terms if not k.startswith("id_")} == {metric}, auxiliary


# --- Sizes of the paper -----------------------------------------------------------------


def test_shapes_and_sizes_at_the_paper_s_scale():
    method = smcl.build(num_classes=395, image_size=(384, 128), steps_per_epoch=1392)
    variables = jax.eval_shape(method.init, KEY)
    sizes = {k: math.prod(x.shape) for k, x in flatten(variables["params"]).items()}
    part = {}
    for k, n in sizes.items():
        part[k.split("/")[0]] = part.get(k.split("/")[0], 0) + n
    # A ResNet-50 has 25,557,032 parameters, of which 2,049,000 are its 1000-way classifier.
    assert part == {
        "backbone": 25_557_032 - 2_049_000,
        "auxiliary": 7 * 16 + 3,
        "neck": 2048,
        "classifier": 2048 * 395,
    }
    images = jax.ShapeDtypeStruct((16, 384, 128, 3), jnp.float32)
    batch = {"visible": images, "infrared": images, "label": jax.ShapeDtypeStruct((16,), jnp.int32)}
    total, aux = jax.eval_shape(method.loss, variables, batch, KEY, jnp.asarray(0))
    assert total.shape == () and all(v.shape == () for v in aux.terms.values())
    features = jax.eval_shape(lambda v, x: method.embed(v, x, 0), variables, images)
    assert {k: v.shape for k, v in features.items()} == {"bn": (16, 2048), "pool": (16, 2048)}


def test_default_switch_is_epoch_220():
    """Traced with the step: the only number of that size in the program is Q."""
    options = {k: v for k, v in SMALL.items() if k != "metric_from_epoch"}
    method = smcl.build(**with_backbone({**options, "steps_per_epoch": 1392}))
    variables = jax.eval_shape(method.init, KEY)
    text = str(jax.make_jaxpr(method.loss)(variables, BATCH, KEY, jnp.asarray(0)))
    assert f"{220 * 1392}" in text


# --- Errors -----------------------------------------------------------------------------


def test_a_wrong_option_is_refused_with_its_value():
    for option, value in (
        ("metric", "triplet"),
        ("triplet_margin", -0.3),
        ("bicenter_margin", -0.5),
        ("auxiliary", "thermal"),
        ("auxiliary", "mun"),
        ("smgm_init", "zeros"),
        ("smgm_input", "uint8"),
        ("smgm_width", 0),
        ("dtype", "float16"),
        ("kernels", "einsum"),
        ("id_margin", -1.0),
        ("center_margin", -0.1),
        ("metric_weight", -0.5),
        ("metric_from_epoch", -1.0),
        ("depth", 101),
        ("num_classes", 1),
    ):
        with pytest.raises(ValueError, match=str(value)) as refused:
            smcl.build(**with_backbone(SMALL | {option: value}))
        assert option in str(refused.value) or option == "num_classes", refused.value


def test_identity_start_needs_three_channels():
    with pytest.raises(ValueError, match="smgm_width=3"):
        smcl.build(**with_backbone(SMALL | {"smgm_init": "identity", "smgm_width": 16}))


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="id_margn"):
        smcl.build(**with_backbone(SMALL), id_margn=4.0)
