"""DEEN and PDM as a whole against PyTorch with the same weights, in float64.

The reference sees every batch in the released codes' order: a modality after the other, and the
batch once more for each branch. Ours are the presets as configs/deen.py and configs/pdm.py give
them.
"""

import numpy as np
import pytest

from tests.methods.whole import idle_terms, model, trajectory, without_gradient
from tests.support.parity import first_fast, reference, sources
from tests.support.reference import store
from tests.support.reference.inputs import CASES, case_inputs, cases


@sources
@pytest.mark.parametrize("name", ["pdm", *first_fast(sorted({*cases("multi_feature")} - {"pdm"}))])
def test_model(name, source):
    """The first cases of both methods, "pdm" and "deen", are in the fast tier."""
    store.compare(model(name), reference(name, source), rtol=1e-10)
    _has_its_features_and_fused_rows(name)


def _has_its_features_and_fused_rows(name):
    """Which features there are, and that the rows are sums over 1 + G unit vectors."""
    found = model(name)
    case = CASES[name]
    kinds = {k.split("/")[2] for k in found if k.startswith("embed/")}
    deen = case.options["preset"] == "deen"
    assert kinds == {"bn", "pool"} | ({"pools", "necks"} if deen else {"globals", "fulls"})
    rows = 1 + case.options.get("branches", 2)
    for modality in ("visible", "infrared"):
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
        assert without_gradient(name) == expected, name
        assert not idle_terms(name), name


def test_the_released_order_of_labels_is_harmless():
    """Labels are repeated by modality, rows by branch; it would matter if modalities differed."""
    label = case_inputs("pdm")["label"][0]

    def orders(visible, infrared):
        released = [visible] * 3 + [infrared] * 3
        rows = [visible, infrared] * 3
        return np.concatenate(released), np.concatenate(rows)

    np.testing.assert_array_equal(*orders(label, label))
    assert not np.array_equal(*orders(label, label[::-1]))


@pytest.mark.slow
@sources
def test_training_trajectory(source):
    """Six steps of Nesterov's SGD with the recipe's rates: a staircase, and a milestone."""
    for name in cases("multi_feature_trajectory"):
        store.compare(trajectory(name), reference(name, source), rtol=1e-8, row=name)
