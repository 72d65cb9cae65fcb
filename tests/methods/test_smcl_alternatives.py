"""What SMCL is compared with: other auxiliary modalities, none, and other metric losses."""

import jax
import jax.numpy as jnp
import pytest

from tests.methods.small_smcl import BATCH, IMAGES, KEY, SMALL, SWITCH, traced
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.smcl import method as smcl
from vireid_jax.types import INFRARED, VISIBLE

FACTS = with_backbone(SMALL)


def test_without_auxiliary_modality_two_modalities_are_trained():
    names = {"global": {"global_center"}, "vi_symmetric": {"global_center", "symmetric_center"}}
    for metric, expected in names.items():
        _, variables, aux = traced(auxiliary="none", none_metric=metric)
        assert set(variables["params"]) == {"backbone", "neck", "classifier"}
        assert set(aux.terms) == {"id_visible", "id_infrared"} | expected
        assert set(aux.metrics) == {"accuracy_visible", "accuracy_infrared"}


@pytest.mark.parametrize("kind", ["x", "gray", "mixed", "syncretic", "mun"])
def test_any_auxiliary_modality_is_trained_and_left_out_at_test_time(kind):
    method, variables, aux = traced(auxiliary=kind, generator={"ratios": (2, 4)})
    assert set(aux.terms) == {
        *("id_visible", "id_infrared", f"id_{kind}"),
        *("global_center", "tri_center"),
    }
    images = kind != "mun"
    assert ("auxiliary_std" in aux.metrics) == images and f"accuracy_{kind}" in aux.metrics
    assert ("auxiliary" in variables["params"]) == (kind not in ("gray", "mixed"))
    bare = {
        name: {k: v for k, v in tree.items() if k in ("backbone", "neck")}
        for name, tree in variables.items()
    }
    for modality in (VISIBLE, INFRARED):
        shapes = jax.eval_shape(lambda v, x, m=modality: method.embed(v, x, m), bare, IMAGES)
        assert {k: v.shape for k, v in shapes.items()} == dict.fromkeys(("bn", "pool"), (8, 64))


@pytest.mark.parametrize("form", ["project", "clip"])
def test_layer_scales_of_the_generator_of_maps_are_projected_if_asked_to(form):
    generator = {"ratios": (2, 4), "scale_form": form}
    method = smcl.build(**FACTS, auxiliary="mun", generator=generator)
    assert (method.project is not None) == (form == "project")
    for other in ("none", "syncretic"):
        assert smcl.build(**FACTS, auxiliary=other, generator=generator).project is None


@pytest.mark.parametrize("metric", ["bh_tri", "bdtr", "bicenter", "hc_tri"])
@pytest.mark.parametrize("auxiliary", ["none", "syncretic"])
def test_another_metric_takes_the_place_of_adsl(metric, auxiliary):
    method, _, aux = traced(
        auxiliary=auxiliary, none_metric="vi_symmetric", metric=metric, updates="two_step"
    )
    assert {k for k in aux.terms if not k.startswith("id_")} == {metric}
    assert method.later[0].start_step == SWITCH


def test_a_mixture_is_drawn_anew_from_each_key():
    method = smcl.build(**FACTS, auxiliary="mixed", mix="beta")
    value = jax.jit(lambda v, key: method.loss(v, BATCH, key, jnp.asarray(0))[1].terms)
    variables = method.init(KEY)
    one, again, other = (value(variables, jax.random.key(n)) for n in (1, 1, 2))
    assert float(one["id_mixed"]) == float(again["id_mixed"])
    assert float(one["tri_center"]) == float(again["tri_center"]) != float(other["tri_center"])


def test_a_generator_of_maps_needs_maps_that_its_ratios_divide():
    with pytest.raises(ValueError, match="image_size"):
        smcl.build(**FACTS, auxiliary="mun")  # maps of 8 x 4 and a ratio of 6
    with pytest.raises(ValueError, match=r"method.specific is 3, expected 0 to 2"):
        smcl.build(**FACTS, auxiliary="mun", generator={"ratios": (2, 4)}, specific=3)
