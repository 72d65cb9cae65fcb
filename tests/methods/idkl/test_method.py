"""IDKL as a whole: what inference needs, which heads there are, bad options."""

import jax
import numpy as np
import pytest

from configs import idkl as recipe
from tests.methods import fresh
from tests.methods.fresh import CLASSES, K, P
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.idkl import method as idkl
from vireid_jax.nets.pooling import gem_above
from vireid_jax.nets.resnet import ResNet

SIZE, SMALL = (32, 16), dict(depth=10, width=8)


def build(preset="paper", *, num_ids=P, num_instances=K, **changes):
    options = recipe.get_config(f"sysu,{preset}").method.to_dict()
    options.pop("name")
    facts = dict(num_classes=CLASSES, image_size=SIZE, num_ids=num_ids, num_instances=num_instances)
    return idkl.build(**facts, **with_backbone({**options, **SMALL, **changes}))


@pytest.mark.slow
def test_embedding_needs_the_shared_branch_alone():
    method, images = build(), fresh.batch(SIZE)["visible"]
    variables = method.init(jax.random.key(0))
    embed = jax.jit(lambda v, x: method.embed(v, x, 0))
    whole = embed(variables, images)

    def shared(tree):
        kept = {"neck_sh": tree["neck_sh"]}
        kept["backbone"] = {k: v for k, v in tree["backbone"].items() if "specific" not in k}
        return kept

    parts = {k: shared(v) for k, v in variables.items()}
    alone = embed(parts, images)
    assert list(whole) == ["bn", "pool"]
    for name in whole:
        np.testing.assert_array_equal(alone[name], whole[name])

    def plain(v, x):
        backbone = {k: tree["backbone"] for k, tree in v.items()}
        net = ResNet(**SMALL, last_stride=1, kernels="cpu")
        return gem_above(net.apply(backbone, [x], train=False))

    def flops(function, v):
        return jax.jit(function).lower(v, images).compile().cost_analysis()["flops"]

    ratio = flops(lambda v, x: method.embed(v, x, 0), variables) / flops(plain, parts)
    assert 1 <= ratio < 1.02
    np.testing.assert_allclose(jax.jit(plain)(parts, images), whole["pool"], rtol=1e-5)


def test_heads_are_there_for_what_needs_them():
    def parts(**options):
        return set(jax.eval_shape(build(**options).init, jax.random.key(0))["params"])

    def heads(*names):
        return {f"{k}_{f}" for k in ("neck", "classifier") for f in names}

    common = {"backbone", "confuser_neck", "discriminator_neck", *heads("sh")}
    assert parts() == {*common, "purifier", *heads("sp", "purified")}
    assert parts(purifier=False) == {*common, *heads("sp")}
    own = {*common, "purifier", "classifier_entropy", *heads("purified")}
    assert parts(preset="official") == own
    assert parts(enhance_head="own", specific_weight=0.0) == own | heads("sp")


def test_bad_options_are_named():
    for changes, message in (
        (dict(confuser="grl"), r"method.confuser is 'grl', expected one of \['reversal'"),
        (dict(mask="spatial"), r"method.mask is 'spatial'"),
        (dict(discriminator_input="sh"), r"method.discriminator_input is 'sh'"),
        (dict(enhance_head="sp"), r"method.enhance_head is 'sp'"),
        (dict(reduce_form="exponential"), r"method.reduce_form is 'exponential'"),
        (dict(tgsa_scale="max"), r"method.tgsa_scale is 'max'"),
        (dict(tgsa_weight=-1.0), r"method.tgsa_weight is -1.0, expected 0 or more"),
        (dict(ip_weight=float("nan")), r"method.ip_weight is nan"),
        (dict(modality_dropout=1.0), r"method.modality_dropout is 1.0, expected 0 to below 1"),
        (dict(specific_weight=0.0), r"choose enhance_head=own, or a weight"),
        (dict(purifier=False, discriminator_input="purified"), r"needs method.purifier=True"),
        (dict(tgsa_cross="mix", num_ids=3, num_instances=1), r"the two halves need an even number"),
        (dict(num_ids=1), r"sampler.num_ids is 1, expected at least 2"),
        (dict(depth=11), r"no ResNet of depth 11"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)
