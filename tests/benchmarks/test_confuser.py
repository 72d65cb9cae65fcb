"""What IDKL's two confusers do to the modality in features, by a short training of each."""

import math

import numpy as np
import pytest

from benchmarks import confuser


@pytest.fixture(scope="module")
def found():
    return {arm: confuser.run(arm, 0, steps=600, batches=16) for arm in confuser.STRENGTH}


@pytest.mark.slow
def test_flipped_labels_look_confused_and_hide_nothing(found):
    flipped = found["half_flip"]
    assert flipped["cross_entropy"] == pytest.approx(math.log(2), abs=0.02)
    assert flipped["probe"] > 0.95
    assert found["none"]["probe"] > 0.95 and found["none"]["confuser"] > 0.95


@pytest.mark.slow
def test_the_reversal_hides_the_modality(found):
    reversed_ = found["reversal"]
    assert reversed_["probe"] < 0.75
    assert reversed_["cross_entropy"] == pytest.approx(math.log(2), abs=0.1)


def test_the_probe_finds_what_is_there_and_nothing_else():
    r = np.random.default_rng(0)
    fit, test = r.normal(size=(2, 2000, 5))
    assert confuser.probe(fit, test) == pytest.approx(0.5, abs=0.05)
    for x in (fit, test):
        x[1::2, 2] += 2.0
    # Two normal distributions two deviations apart: Phi(1).
    assert confuser.probe(fit, test) == pytest.approx(0.841, abs=0.03)


def test_the_table_has_a_row_for_each_way():
    runs = {"none": [dict.fromkeys(confuser.COLUMNS, v) for v in (0.25, 0.75)]}
    assert confuser.table(runs).splitlines()[2] == (
        "| none | 0.500 ± 0.354 | 50.0 ± 35.4 | 50.0 ± 35.4 |"
    )


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match=r"arm is 'grl', expected one of \['half_flip'"):
        confuser.run("grl", 0)
