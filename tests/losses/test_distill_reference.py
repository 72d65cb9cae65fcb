"""IDKL's losses against the paper's formulas and the released code's, written in PyTorch.

The released code's run on rows in that code's order with its modality labels, so that agreement
is also that of our layout with it.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import loss_tests
from vireid_jax.losses.identity import cross_entropy
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods.idkl import distill, purify
from vireid_jax.methods.idkl.method import half_flipped


def _alignment(features, **options):
    return distill.graph_alignment(features[:, 0], features[:, 1], **options)


def _semantic(logits, *, num_instances=None, **options):
    first, second = logits[:, 0], logits[:, 1]
    if num_instances is not None:
        first, second = (distill.by_instance(z, num_instances) for z in (first, second))
    return distill.divergence(first, second, **options)


def _confusing(logits):
    told = half_flipped(len(logits))
    return cross_entropy(logits.reshape(-1, 2), told)


FUNCTIONS = {
    "idkl_tgsa": (_alignment, "features"),
    "idkl_csa": (_semantic, "features"),
    "idkl_e": (purify.enhancing_loss, "enhanced plain"),
    "idkl_r": (purify.reducing_loss, "reduced plain labels"),
    # Ours with the options of the preset "official".
    "idkl_released_mix": (partial(_alignment, cross="mix"), "features"),
    "idkl_released_self": (partial(_alignment, pairs="self"), "features"),
    "idkl_released_csa": (_semantic, "features"),
    "idkl_released_block": (partial(_semantic, num_instances=3), "features"),
    "idkl_released_e": (partial(purify.enhancing_loss, form="exponential"), "enhanced plain"),
    "idkl_released_r": (partial(purify.reducing_loss, form="relu"), "reduced plain labels"),
    "idkl_released_tri": (partial(batch_hard_triplet, margin=1.3), "features labels"),
    "idkl_released_confuser": (_confusing, "logits"),
}


test_value_and_gradient, test_the_cases_test_something = loss_tests(FUNCTIONS, rtol64=1e-12)


@pytest.mark.parametrize("num_ids, num_instances", [(12, 5), (4, 3), (3, 2), (8, 4), (3, 3)])
def test_half_flipped_labels_are_the_released_ones(num_ids, num_instances):
    """Of its sampler's order: 1, 0, 0, 1 and again; half of each modality, for an even number."""
    n = num_ids * num_instances
    t = [1, 0] * n  # infrared, visible, ...
    released = np.roll(np.repeat(t[:n], 2), -1).reshape(n, 2)
    ours = np.asarray(half_flipped(n)).reshape(n, 2)
    np.testing.assert_array_equal(ours, released[:, ::-1])
    if n % 2 == 0:
        np.testing.assert_array_equal(ours.mean(0), [0.5, 0.5])


def test_released_confuser_labels_depend_on_the_order():
    """On a batch of one modality after the other they would all be of the visible one."""
    t = np.repeat([0, 1], 6)
    assert not np.roll(np.repeat(t[:6], 2), -1).any()


def test_the_code_s_two_calls_are_one_symmetric_divergence():
    """J = sum (p - q)(log p - log q), whichever comes first; so is the sum of ours."""
    x = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in x)
    expected = ((p - q) * (np.log(p) - np.log(q))).sum(1).mean()
    for first, second in (x, x[::-1]):
        np.testing.assert_allclose(distill.divergence(first, second), expected, rtol=1e-5)
        one_way = [
            distill.divergence(first, second, direction=way) for way in ("forward", "reverse")
        ]
        np.testing.assert_allclose(jnp.stack(one_way).sum(), expected, rtol=1e-5)
