"""The printed table."""

import copy
import re

import numpy as np
import pytest

from tests.metrics.test_protocols import world
from vireid_jax.metrics import evaluate, format_table, near_chance, to_markdown


@pytest.fixture(scope="module")
def results():
    good, lost = world(people=20, noise=1.0), world(people=20, noise=1e6)
    return {
        (protocol, feature): evaluate(**w, protocol=protocol, trials=4)
        for protocol in ("sysu/all/single", "sysu/indoor/multi")
        for feature, w in (("raw pixels", lost), ("bn", good))
    }


def test_table_shows_the_numbers(results):
    text = format_table(results, baselines=("raw pixels",))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert re.fullmatch(r"protocol +feature +R1 +R10 +R20 +mAP +mINP +chance mAP", lines[0])
    rows = [line for line in lines[2:] if re.search(r"±.*\d", line) and "percent" not in line]
    assert [line.split("  ")[0] for line in rows] == [
        "sysu/all/single",
        "",
        "sysu/indoor/multi",
        "",
    ]
    assert ["raw pixels" in line for line in rows] == [False, True, False, True]
    for line, key in zip(rows, sorted(results, key=lambda k: (k[0], k[1] != "bn")), strict=True):
        metrics = results[key]["metrics"]
        expected = [100 * metrics[name] for name in ("R1", "R10", "R20", "mAP")]
        expected += [100 * results[key]["std"]["mAP"], 100 * metrics["mINP"]]
        expected += [100 * results[key]["chance"]["mAP"]]
        shown = re.findall(r"\d+\.\d", line)
        np.testing.assert_allclose([float(v) for v in shown], expected, atol=0.0501)
    # Numbers stand below one another.
    assert len({line.index("±") for line in rows}) == 1
    counts = results["sysu/all/single", "bn"]["counts"]
    assert (
        f"sysu/all/single: {counts['queries']} infrared queries, 78 visible images of 20 people"
        in text
    )
    counts = results["sysu/indoor/multi", "bn"]["counts"]  # person 0 is not in its gallery
    assert counts["valid_queries"] < counts["queries"]
    assert f"multi: {counts['valid_queries']} of {counts['queries']} infrared queries" in text


def test_chance_is_flagged_but_not_for_baselines(results):
    assert near_chance(results["sysu/all/single", "raw pixels"])
    assert not near_chance(results["sysu/all/single", "bn"])
    quiet = format_table(results, baselines=("raw pixels",))
    loud = format_table(results)
    assert "CHANCE LEVEL" not in quiet and " !" not in quiet
    assert "! WARNING: sysu/all/single raw pixels: MAP IS AT THE CHANCE LEVEL" in loud
    flagged = [line for line in loud.splitlines() if line.endswith(" !")]
    assert len(flagged) == 2 and all("raw pixels" in line for line in flagged)


def test_below_chance_is_flagged():
    result = {"metrics": {"mAP": 0.0}, "chance": {"mAP": 0.1, "mAP_sigma": 0.01}}
    assert near_chance(result)
    result["metrics"]["mAP"] = 0.131
    assert not near_chance(result)


def test_markdown(results):
    lines = to_markdown(results, baselines=("raw pixels",)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.count("|") for line in table} == {9}
    assert table[2].startswith("| sysu/all/single | bn | ")
    assert table[3].startswith("| sysu/all/single | raw pixels | ")


def test_refuses_to_mix(results):
    mixed = copy.deepcopy(results)
    mixed["sysu/all/single", "bn"]["trials"].pop()
    with pytest.raises(ValueError, match="'raw pixels' and 'bn' of sysu/all/single were not"):
        format_table(mixed)
    with pytest.raises(ValueError, match="no rows"):
        format_table({})
