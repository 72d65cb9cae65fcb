"""Every loss and building block against the equations written in PyTorch."""

from functools import partial

import pytest

from tests.support.parity import loss_outputs, loss_tests
from tests.support.reference import store
from tests.support.reference.inputs import CASES
from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance
from vireid_jax.losses.identity import cross_entropy
from vireid_jax.methods.smcl import losses


def _row_centers(features, labels, **options):
    return row_centers(features, labels, **options)[0]


FUNCTIONS = {
    "pairwise_distance": (pairwise_distance, "a b"),
    "cross_entropy": (cross_entropy, "logits labels"),
    "row_centers": (_row_centers, "features labels"),
    "tri_center": (losses.tri_center_loss, "features labels"),
    "global_center": (losses.global_center_loss, "features labels"),
}


test_value_and_gradient, _ = loss_tests(FUNCTIONS, rtol64=1e-12)


def test_every_case_has_stored_outputs_and_none_is_left_over():
    assert store.stored_names() == sorted(CASES)


def test_a_wrong_value_does_not_pass():
    expected = store.load("tri_wide")
    name = next(k for k in expected if k.startswith("digest:"))
    actual = loss_outputs(
        "tri_wide", partial(losses.tri_center_loss, margin=3.0), "features labels", "float64"
    )
    key = name.removeprefix("digest:")
    actual[key] = actual[key] * (1 + 1e-3)  # every entry off by 0.1 %
    with pytest.raises(AssertionError, match="grad/features"):
        store.compare(actual, expected, rtol=1e-5)
    actual[key] = actual[key].copy()
    actual[key][0, 0, 0] += actual[key].std()  # one entry off
    with pytest.raises(AssertionError, match="grad/features"):
        store.compare(actual, expected, rtol=1e-3)
