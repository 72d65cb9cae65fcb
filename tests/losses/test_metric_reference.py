"""Metric losses and the MMD against the formulas written in PyTorch."""

from tests.support.parity import loss_tests
from vireid_jax.losses.center import bi_center, hetero_center, hetero_center_triplet
from vireid_jax.losses.triplet import batch_hard_triplet, bdtr, weighted_regularized_triplet
from vireid_jax.methods.mun.mmd import mmd

FUNCTIONS = {
    "batch_hard_triplet": (batch_hard_triplet, "features labels"),
    "weighted_regularized_triplet": (weighted_regularized_triplet, "features labels"),
    "bdtr": (bdtr, "features labels"),
    "bi_center": (bi_center, "features labels"),
    "hetero_center_triplet": (hetero_center_triplet, "features labels"),
    "hetero_center": (hetero_center, "features labels"),
    "mmd": (mmd, "x y"),
}


test_value_and_gradient, test_the_cases_test_something = loss_tests(FUNCTIONS, rtol64=1e-12)
