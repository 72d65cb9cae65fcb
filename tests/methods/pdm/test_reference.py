"""PDM as a whole against PyTorch with the same weights, in float64; and what DEEN shares.

The reference sees every batch in the released codes' order: a modality after the other, and the
batch once more for each branch.
"""

import numpy as np
import pytest

from tests.methods import whole
from tests.support.reference import store
from tests.support.reference.inputs import CASES, case_inputs, cases

# Six steps of Nesterov's SGD with the recipe's rates: a staircase, and a milestone.
# The fast tier has a step of either method; together they have all parts of the network.
FAST = ("pdm_paper", "deen_regdb")
test_model, test_training_trajectory = whole.tests("multi_feature", fast=FAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases("multi_feature"))
def test_features_and_fused_rows(name):
    """Which features there are, and that the rows are sums over 1 + G unit vectors."""
    found, case = whole.model(name), CASES[name]
    kinds = {k.split("/")[2] for k in found if k.startswith("embed/")}
    deen = case.options["preset"] == "deen"
    assert kinds == {"bn", "pool"} | ({"pools", "necks"} if deen else {"globals", "fulls"})
    rows = 1 + case.options.get("branches", 2)
    for modality in whole.MODALITIES:
        for kind in kinds - {"bn", "pool"}:
            x = found[f"embed/{modality}/{kind}"]
            vectors = x.reshape(len(x), rows, -1)
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-12)
    largest = {k: np.abs(found[f"similarity/{k}"]).max() for k in ("sum", "weighted")}
    assert largest["sum"] <= 2 * rows + 1e-9 and largest["weighted"] <= rows + 1e-9


def test_every_parameter_gets_a_gradient_and_every_term_counts():
    """But the biases of convolutions in front of a batch normalization."""
    for name in cases("multi_feature"):
        gradients = [k.split("params/")[1] for k in store.load(name) if "grad/" in k]
        expected = {k for k in gradients if k.startswith("mfa") and k.endswith("w/bias")}
        stages = CASES[name].options.get("stages", 4)
        without_mfa = name in ("pdm_paper", "pdm_options", "pdm_plain")
        assert len(expected) == (0 if without_mfa else 2 * (stages - 1)), name
        if CASES[name].options["preset"] == "paper":
            expected.add("neck_global/scale")  # no classifier follows
        assert whole.without_gradient(name) == expected, name
        assert not whole.idle_terms(name), name


def test_the_released_order_of_labels_is_harmless():
    """Labels are repeated by modality, rows by branch; it would matter if modalities differed."""
    label = case_inputs("pdm")["label"][0]

    def orders(visible, infrared):
        released = [visible] * 3 + [infrared] * 3
        rows = [visible, infrared] * 3
        return np.concatenate(released), np.concatenate(rows)

    np.testing.assert_array_equal(*orders(label, label))
    assert not np.array_equal(*orders(label, label[::-1]))
