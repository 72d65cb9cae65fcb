"""The printed table."""

import copy
import re

import numpy as np
import pytest

from tests.metrics.test_protocols import world
from vireid_jax.metrics import combine, evaluate, format_table, near_chance, row_label, to_markdown


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
    below = {"metrics": {"mAP": 0.0}, "chance": {"mAP": 0.1, "mAP_sigma": 0.01}}
    assert near_chance(below) and not near_chance(below | {"metrics": {"mAP": 0.131}})
    quiet = format_table(results, baselines=("raw pixels",))
    loud = format_table(results)
    assert "CHANCE LEVEL" not in quiet and " !" not in quiet
    assert loud.count("! WARNING: MAP IS AT THE CHANCE LEVEL") == 1
    assert "  sysu/all/single: raw pixels\n" in loud.partition("WARNING")[2]
    flagged = [line for line in loud.splitlines() if line.endswith(" !")]
    assert len(flagged) == 2 and all("raw pixels" in line for line in flagged)


def test_markdown(results):
    lines = to_markdown(results, baselines=("raw pixels",)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.count("|") for line in table} == {9}
    assert table[2].startswith("| sysu/all/single | bn | ")
    assert table[3].startswith("| sysu/all/single | raw pixels | ")


def marked(result, **marks):
    return {**copy.deepcopy(result), **marks}


def shown(text):
    """(heading, feature) of every row of a table."""
    body = text.splitlines()[2:]
    body = body[: next(n for n, line in enumerate(body) if line.startswith("---"))]
    rows, heading = [], ""
    width = text.index("feature")
    for line in filter(None, body):
        heading = line[:width].strip() or heading
        rows.append((heading, re.split(r"  +", line[width:])[0]))
    return rows


def test_rows_with_work_at_test_time_are_labelled_and_never_first(results):
    plain, name = results["sysu/all/single", "bn"], "sysu/all/single"
    rows = {
        (name, "bn "): marked(plain, rerank="queries"),
        (name, "bn"): marked(plain, rerank="all"),
        (name, "pool"): marked(plain, flip=True, rerank=None),
        (name, "raw pixels"): results[name, "raw pixels"],
        (name, "fc"): marked(plain, rerank=None, flip=False),
    }
    text = format_table(rows, baselines=("raw pixels",))
    assert [feature for _, feature in shown(text)] == [
        "fc",
        "pool, flip",
        "bn , re-ranked (queries)",
        "bn, re-ranked",
        "raw pixels",
    ]
    # A label that says so already is left as it is.
    said = {(name, "a"): plain, (name, "bn, flip, re-ranked"): marked(plain, flip=1, rerank="all")}
    assert (name, "bn, flip, re-ranked") in shown(format_table(said))
    far = marked(plain, distance="euclidean")
    said = {(name, "bn"): far, (name, "pool, Euclidean, re-ranked"): marked(far, rerank="all")}
    assert [f for _, f in shown(format_table(said))] == [
        "bn, Euclidean", "pool, Euclidean, re-ranked",
    ]  # fmt: skip


def test_without_a_plain_row_the_first_one_says_so(results):
    rows = {
        ("sysu/all/single", "bn"): marked(results["sysu/all/single", "bn"], rerank="all"),
        ("sysu/all/single", "raw pixels"): results["sysu/all/single", "raw pixels"],
    }
    for table in (format_table, to_markdown):
        text = table(rows, baselines=("raw pixels",))
        assert text.index("(plain: not scored)") < text.index("bn, re-ranked")
    both = shown(format_table(rows, baselines=("raw pixels",)))
    assert [f for _, f in both] == ["(plain: not scored)", "bn, re-ranked", "raw pixels"]


def test_what_was_measured_otherwise_has_a_heading_of_its_own(results):
    plain, name = results["sysu/all/single", "bn"], "sysu/all/single"
    rows = {
        (name, "bn"): plain,
        ("sysu/indoor/multi", "bn"): results["sysu/indoor/multi", "bn"],
        (name, "bn, official"): marked(plain, gallery="official"),
        (name, "bn, images"): marked(plain, cmc="image"),
        (name, "bn, pessimistic"): marked(plain, ties="pessimistic"),
        (name, "bn, fog -C (vireid)"): marked(plain, corrupt="visible:fog:3"),
    }
    text = format_table(rows)
    assert shown(text) == [
        (name, "bn"),
        (f"{name}, official", "bn, official"),
        (f"{name}, CMC by images", "bn, images"),
        (f"{name}, pessimistic ties", "bn, pessimistic"),
        (f"{name} -C (vireid)", "bn, fog"),
        ("sysu/indoor/multi", "bn"),
    ]
    assert f"{name}, official: " in text and "people, 4 draws\n" in text
    assert "4 agw draws, ranks count images" in " ".join(text.split())


def test_what_a_run_scores_fits_into_a_terminal(results):
    plain = results["sysu/all/single", "bn"] | {"feature": "pool"}
    corrupted = [plain | {"corrupt": "infrared"}] * 2
    for kinds in (
        [plain, plain | {"flip": True}, plain | {"rerank": "queries"}],
        [plain | {"gallery": "official", **mark} for mark in ({}, {"flip": 1}, {"rerank": "all"})],
        [combine(corrupted, over="repeats")],
    ):
        rows = {("sysu/indoor/single", row_label(row)): row for row in kinds}
        text = format_table(rows)
        assert max(map(len, text.splitlines())) <= 100
    assert shown(text) == [("sysu/indoor/single -C (vireid)", "pool, infrared")]
    assert "infrared queries" in text and "mean over 2 repeats" in " ".join(text.split())


def test_the_notes_say_who_searched_where():
    query = [(1, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 1)]
    gallery = [(1, 3), (1, 3), (1, 4), (2, 3), (2, 3), (3, 4), (3, 4), (3, 4)]
    arguments = {}
    for side, images in (("query", query), ("gallery", gallery)):
        person, camera = zip(*images, strict=True)
        arguments[f"{side}_features"] = np.eye(4)[list(person)]
        arguments |= {f"{side}_person": person, f"{side}_camera": camera}
        arguments[f"{side}_name"] = [f"{side}{n}" for n in range(len(images))]
    for protocol, who in (
        ("regdb/v2t", "6 visible queries, 8 infrared images of 3 people, all images, ranks"),
        ("llcm/i2v", "6 infrared queries, 4 visible images of 3 people, 10 agw draws"),
        ("llcm/v2i_released", "4 infrared queries, 8 visible images of 3 people, 10 agw draws"),
    ):
        text = format_table({(protocol, "bn"): evaluate(**arguments, protocol=protocol)})
        assert f"{protocol}: {who}" in text
        assert ("±" in text) == ("all images" not in text)  # one evaluation has no spread


def test_a_mean_over_splits_says_so(results):
    runs = [
        marked(results[key], feature="bn", protocol="regdb/v2t", gallery="all", cmc="image")
        for key in (("sysu/all/single", "bn"), ("sysu/all/single", "raw pixels"))
    ]
    result = combine(runs, over="splits")
    text = format_table({("regdb/v2t", "bn"): result})
    assert "mean over 2 splits" in text and "± its standard deviation over splits" in text
    with pytest.raises(ValueError, match="not measured alike"):
        format_table({("regdb/v2t", "bn"): result, ("regdb/v2t", "fc"): runs[0]})


def test_refuses_to_mix(results):
    mixed = copy.deepcopy(results)
    mixed["sysu/all/single", "bn"]["trials"].pop()
    with pytest.raises(ValueError, match="'raw pixels' and 'bn' of sysu/all/single were not"):
        format_table(mixed)
    with pytest.raises(ValueError, match="no rows"):
        format_table({})
