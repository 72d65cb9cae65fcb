"""AGW and CAJ's joint learning as a whole against PyTorch with the same weights, in float64."""

import numpy as np

from tests.methods import whole
from tests.support.reference import store
from tests.support.reference.inputs import CASES, cases

# Six steps of Nesterov's SGD with the recipe's rates: a staircase, and a milestone.
# The non-local blocks have one inner channel: a factor of it is taken out by the normalization.
test_model, test_training_trajectory = whole.tests("agw", fast=("agw_caj",), faint=("w/kernel",))


def test_every_parameter_gets_a_gradient_and_every_term_counts():
    """But the shifts in front of a batch normalization, a 1x1 convolution between them or not."""
    for name in cases("agw"):
        gradients = [k for k in store.load(name) if "grad/" in k]
        blocks = {k.split("/")[2] for k in gradients if "attention_layer" in k}
        assert len(blocks) == (4 if name == "agw" else 2), name
        shifts = ("w/bias", "bn/bias") if CASES[name].options["depth"] == 14 else ("w/bias",)
        expected = {f"{block}/{k}" for block in blocks for k in shifts}
        assert whole.without_gradient(name) == expected, name
        assert not whole.idle_terms(name), name


def test_a_trajectory_goes_somewhere():
    """Weights move by more than the tolerance; the last total differs from the first."""
    for name in cases("agw_trajectory", "multi_feature_trajectory"):
        total = store.load(name)["history/total"]
        assert np.isfinite(total).all() and np.ptp(total) > 1e-2 * total.max(), name
