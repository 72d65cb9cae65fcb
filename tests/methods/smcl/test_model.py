"""SMCL as a method: the generator, incremental training, what each option changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.small_smcl import BATCH, KEY, SMALL, SWITCH, Built, K, P
from tests.support.parity import relative_error
from tests.support.reference.convert import flatten
from vireid_jax.data.augment import MEAN, STD
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.smcl import method as smcl
from vireid_jax.nets.auxiliary import SMGM
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


@pytest.mark.parametrize("bn_running", ["all", "vi"])
def test_running_statistics_can_leave_the_syncretic_images_out(bn_running):
    built = Built(bn_running=bn_running)
    one, two = (
        np.asarray(
            built.forward(factor)[1].updates["batch_stats"]["backbone"]["stem"]["bn1"]["mean"]
        )
        for factor in (1.0, 3.0)
    )
    if bn_running == "vi":
        np.testing.assert_array_equal(one, two)
    else:
        assert relative_error(one, two) > 0.01


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


def test_two_step_updates_come_as_a_later_loss(built):
    method = smcl.build(**with_backbone(SMALL), updates="two_step")
    (later,) = method.later
    assert later.start_step == SWITCH and not built.method.later

    @jax.jit
    def totals(variables, step):
        return [loss(variables, BATCH, KEY, step)[0] for loss in (method.loss, later.loss)]

    first, second = totals(built.variables, jnp.asarray(SWITCH))
    assert float(first) == pytest.approx(built.run(SWITCH - 1)[0], rel=1e-5)
    assert float(first + second) == pytest.approx(built.run(SWITCH)[0], rel=1e-5)


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


def test_one_stream_embeds_both_modalities_alike_and_two_stems_do_not(built):
    def gap(method, variables):
        v, i = (_embed(method, variables, "visible", m)["pool"] for m in (VISIBLE, INFRARED))
        return relative_error(v, i)

    assert gap(built.method, built.variables) == 0
    two = Built(specific=1)
    assert {"stem_visible", "stem_infrared"} <= set(two.variables["params"]["backbone"])
    assert gap(two.method, two.variables) > 0.1


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
    default = {k: v for k, v in SMALL.items() if k != "metric_from_epoch"} | {
        "steps_per_epoch": 1392
    }
    (later,) = smcl.build(**default, updates="two_step").later
    assert later.start_step == 220 * 1392


# --- Generator --------------------------------------------------------------------------


def _generate(options, visible, infrared, seed=0):
    smgm = SMGM(**options)
    variables = smgm.init(jax.random.key(seed), visible, infrared)
    return smgm.apply(variables, visible, infrared), variables["params"]


@pytest.mark.parametrize("space", ["standardized", "unit"])
def test_generator_is_symmetric_when_it_is_shared(space):
    v, i = BATCH["visible"], BATCH["infrared"]
    one, _ = _generate({"input": space}, v, i)
    two, _ = _generate({"input": space}, i, v)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    apart = [_generate({"input": space, "shared": False}, *pair)[0] for pair in ((v, i), (i, v))]
    assert relative_error(*apart) > 0.01


@pytest.mark.parametrize("space", ["standardized", "unit"])
def test_every_pixel_depends_on_its_two_parents_and_on_no_other_pixel(space):
    # Positive parents and many maps: no ReLU is shut for all of them.
    v, i = (np.abs(BATCH[k][:1, :3, :2]) + 0.5 for k in ("visible", "infrared"))
    smgm = SMGM(width=64, input=space)
    variables = smgm.init(KEY, v, i)
    for parent in (0, 1):
        jacobian = jax.jacobian(lambda *x: smgm.apply(variables, *x), parent)(v, i)
        size = np.abs(np.asarray(jacobian)).max((0, 3, 4, 7))  # [h, w, h, w]
        for y, x in np.ndindex(3, 2):
            assert size[y, x, y, x] > 1e-3
            assert np.delete(size[y, x].ravel(), 2 * y + x).max() == 0


def test_generator_of_identity_is_the_rectified_product():
    v, i = BATCH["visible"], BATCH["infrared"]
    s, _ = _generate({"width": 3, "initial": "identity"}, v, i)
    np.testing.assert_allclose(s, np.maximum(v * i, 0), rtol=1e-5, atol=1e-6)


def test_generator_on_unit_pixels_returns_a_standardized_image():
    black, white = (
        np.broadcast_to((x - np.array(MEAN)) / np.array(STD), (1, 2, 2, 3)) for x in (0, 1)
    )
    black, white = black.astype(np.float32), white.astype(np.float32)
    options = {"width": 3, "initial": "identity", "input": "unit"}
    for v, i, expected in ((white, white, white), (white, black, black), (black, black, black)):
        np.testing.assert_allclose(_generate(options, v, i)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width, count", [(1, 10), (3, 24), (16, 115), (64, 451)])
def test_generator_has_7_width_plus_3_parameters(width, count):
    _, params = _generate({"width": width}, BATCH["visible"], BATCH["infrared"])
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    assert all(not np.any(x) for k, x in flatten(params).items() if k.endswith("bias"))


# --- Errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value",
    [
        ("pooling", "max"),
        ("metric", "triplet"),
        ("bdtr_form", "literal"),
        ("triplet_margin", -0.3),
        ("bicenter_margin", -0.5),
        ("specific", 6),
        ("x_width", 0),
        ("x_input", "uint8"),
        ("mix", "cut"),
        ("generator", {"ratio": (2, 4)}),
        ("auxiliary", "thermal"),
        ("none_metric", "triplet"),
        ("smgm_init", "zeros"),
        ("smgm_input", "uint8"),
        ("cehl_form", "numerator"),
        ("updates", "three_step"),
        ("bn_running", "visible"),
        ("dtype", "float16"),
        ("kernels", "einsum"),
        ("id_margin", -1.0),
        ("center_margin", -0.1),
        ("metric_weight", -0.5),
        ("metric_from_epoch", -1.0),
        ("depth", 101),
        ("num_classes", 1),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(option, value):
    value_of = "'ratio'" if option == "generator" else str(value)
    with pytest.raises(ValueError, match=value_of) as refused:
        smcl.build(**with_backbone(SMALL | {option: value}))
    assert option in str(refused.value) or option == "num_classes"


def test_identity_start_needs_three_channels():
    with pytest.raises(ValueError, match="smgm_width=3"):
        smcl.build(**with_backbone(SMALL | {"smgm_init": "identity", "smgm_width": 16}))


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="id_margn"):
        smcl.build(**with_backbone(SMALL), id_margn=4.0)
