"""Metric losses and the MMD against the formulas written in PyTorch."""

import functools
from functools import partial

import numpy as np
import pytest

from tests.parity import loss_outputs, reference, sources
from tests.reference import store
from tests.reference.inputs import CASES, cases
from vireid_jax.losses.center import bi_center, hetero_center, hetero_center_triplet
from vireid_jax.losses.mmd import mmd
from vireid_jax.losses.triplet import batch_hard_triplet, bdtr, weighted_regularized_triplet

FUNCTIONS = {
    "batch_hard_triplet": (batch_hard_triplet, "features labels"),
    "weighted_regularized_triplet": (weighted_regularized_triplet, "features labels"),
    "bdtr": (bdtr, "features labels"),
    "bi_center": (bi_center, "features labels"),
    "hetero_center_triplet": (hetero_center_triplet, "features labels"),
    "hetero_center": (hetero_center, "features labels"),
    "mmd": (mmd, "x y"),
}


@functools.cache
def _ours(name, dtype):
    """Once for both sources."""
    function, arguments = FUNCTIONS[CASES[name].kind]
    return loss_outputs(name, partial(function, **CASES[name].options), arguments, dtype)


@sources
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("name", cases(*FUNCTIONS))
def test_value_and_gradient(name, dtype, rtol, source):
    actual = _ours(name, dtype)
    assert {str(x.dtype) for x in actual.values()} == {dtype}
    store.compare(actual, reference(name, source), rtol=rtol)


@pytest.mark.parametrize("name", cases(*FUNCTIONS))
def test_the_cases_test_something(name):
    """A hinge that no row is in would agree with anything that is 0."""
    stored = store.load(name)
    assert all(np.abs(x).max() > 1e-3 for x in stored.values())
