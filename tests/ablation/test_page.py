"""Means and spread over seeds, worked by hand, and what is said of cells that are missing."""

import csv
import dataclasses
import io
import json
import pathlib
import re

import pytest

from configs import tables
from vireid_jax.ablation import page
from vireid_jax.ablation.cells import TRAINED, Cell, Row, Score, Table

CONFIG = {
    "eval.gallery": "agw", "eval.trials": None, "eval.corrupt_repeats": 10, "eval.corrupt_seed": 0,
    "train.epochs": 25.0,
}  # fmt: skip
SCORE = Score("sysu/all/single", None, "bn")


def result_of(score=SCORE, **changes):
    """What the main command saves, made up."""
    plain = {
        "protocol": score.protocol,
        "feature": score.feature,
        "gallery": "agw",
        "rerank": None,
        "checkpoint": "last",
        "metrics": {"R1": 0.5, "R10": 0.75, "mAP": 0.25, "mINP": 0.125},
        "trials": [{}] * 10,
    }
    if score.corrupt:
        plain |= {"corrupt": score.corrupt, "corrupt_seed": 0, "results": 10, "trials": [{}] * 10}
    return plain | changes


def save(cell, result, *, name="one", step=50, trained=True):
    folder = cell.folder / "eval" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result))
    if trained:
        cell.mark_trained()


def cell_of(tmp_path, row="b", seed=0, score=SCORE, **config):
    folder = pathlib.Path(tmp_path) / "cells" / row / f"seed{seed}"
    return Cell(f"smcl/1/{row}", seed, folder, CONFIG | config, (), "", (), (score,))


def table_of(tmp_path, rows, *, dataset="synthetic", corrupt=None):
    """A table with {row: {seed: metrics or None}} on disk."""
    score = SCORE._replace(corrupt=corrupt)
    made = {}
    for row, seeds in rows.items():
        cells = tuple(cell_of(tmp_path, row, seed, score) for seed in seeds)
        for cell, metrics in zip(cells, seeds.values(), strict=True):
            if metrics is not None:
                save(cell, result_of(score, metrics=metrics))
        made[row] = Row(
            f"row {row}", {"sysu": (57.0, 55.49), "regdb": (75.77, 70.52)}, score, cells
        )
    return Table("smcl/1", "components", dataset, corrupt, SCORE.protocol, made)


def metrics(r1, m_ap):
    return {"R1": r1, "R10": 0.75, "mAP": m_ap, "mINP": 0.125}


def rows_of(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    split = [[field.strip() for field in line.strip("|").split("|")] for line in lines]
    return split[0], {fields[0]: fields[1:] for fields in split[2:]}


def test_mean_and_sample_standard_deviation(tmp_path):
    """Of 0.1, 0.2 and 0.6: mean 0.3; squares 0.04 + 0.01 + 0.09 = 0.14, over two 0.07."""
    seeds = {0: metrics(0.1, 0.2), 1: metrics(0.2, 0.2), 2: metrics(0.6, 0.2)}
    table = table_of(tmp_path, {"b": seeds})
    header, rows = rows_of(page.to_markdown(table))
    assert header == ["", "R1", "R10", "mAP", "mINP", "seeds", "paper: R1", "mAP"]
    assert rows["row b"] == [
        "30.0 ± 26.5", "75.0 ± 0.0", "20.0 ± 0.0", "12.5 ± 0.0", "3", "57.00", "55.49",
    ]  # fmt: skip
    lines = {line["metric"]: line for line in csv.DictReader(io.StringIO(page.to_csv(table)))}
    assert list(lines) == ["R1", "R10", "mAP", "mINP"]
    r1 = lines["R1"]
    assert float(r1["mean"]) == pytest.approx(0.3) and len(r1["mean"]) >= 8
    assert float(r1["std"]) == pytest.approx(0.07**0.5, abs=1e-6)
    assert (r1["n"], r1["seeds"], r1["row"], r1["label"]) == ("3", "0 1 2", "b", "row b")
    assert (r1["table"], r1["dataset"], r1["protocol"]) == ("smcl/1", "synthetic", SCORE.protocol)
    assert (r1["corrupt"], r1["feature"], r1["folder"]) == ("", "bn", "b")


def test_a_row_is_compared_with_another(tmp_path):
    def result(ap, person=(7, 8)):
        rows = {"name": ["a", "b"], "person": list(person), "AP": [ap, ap]}
        return result_of(metrics=metrics(0.5, ap), per_query=rows)

    table = table_of(tmp_path, {"b": {0: None, 1: None}, "c": {0: None, 1: None}})
    table.rows["c"] = dataclasses.replace(table.rows["c"], beside="b")
    header, rows = rows_of(page.to_markdown(table))
    assert header[5:9] == ["seeds", "compared with", "difference of mAP", "seen"]
    assert rows["row c"][5:8] == ["row b", "-", "-"] and rows["row b"][5:8] == ["", "", ""]
    for row, ap in (("b", 0.25), ("c", 0.5)):
        for cell in table.rows[row].cells:
            save(cell, result(ap))
    _, rows = rows_of(page.to_markdown(table))
    assert rows["row c"][5:8] == ["row b", "+25.0 [+25.0, +25.0]", "helps"]
    lines = {(x["row"], x["metric"]): x for x in csv.DictReader(io.StringIO(page.to_csv(table)))}
    line = lines["c", "mAP"]
    assert (line["beside"], line["verdict"], float(line["low"])) == ("b", "helps", 0.25)
    assert lines["b", "mAP"]["verdict"] == lines["c", "R1"]["verdict"] == ""
    save(table.rows["c"].cells[0], result(0.0))
    verdict = rows_of(page.to_markdown(table))[1]["row c"][7]
    assert re.fullmatch(r"no difference seen \(smallest: \d+\.\d\)", verdict)


def test_one_seed_has_no_spread(tmp_path):
    table = table_of(tmp_path, {"b": {4: metrics(0.5, 0.25)}})
    assert rows_of(page.to_markdown(table))[1]["row b"][:5] == ["50.0", "75.0", "25.0", "12.5", "1"]
    for line in csv.DictReader(io.StringIO(page.to_csv(table))):
        assert line["std"] == "" and (line["n"], line["seeds"]) == ("1", "4")


def test_what_is_missing_is_shown_and_not_averaged(tmp_path):
    table = table_of(
        tmp_path,
        {
            "some": {0: metrics(0.1, 0.2), 1: None, 2: metrics(0.3, 0.2)},
            "none": {0: None, 1: None, 2: None},
            "broken": {
                0: metrics(0.1, 0.2),
                1: metrics(0.1, float("nan")),
                2: metrics(float("inf"), 0.1),
            },
        },
    )
    _, rows = rows_of(page.to_markdown(table))
    assert rows["row some"][0] == "20.0 ± 14.1" and rows["row some"][4] == "2 of 3: 0 2"
    assert rows["row none"] == ["-", "-", "-", "-", "0", "57.00", "55.49"]
    assert rows["row broken"][0] == "10.0" and rows["row broken"][4] == "1 of 3: 0"
    lines = list(csv.DictReader(io.StringIO(page.to_csv(table))))
    absent = [line for line in lines if line["row"] == "none"]
    assert len(absent) == 4
    assert all((a["mean"], a["std"], a["n"], a["seeds"]) == ("", "", "0", "") for a in absent)


def test_the_papers_numbers_are_of_the_data_set_or_said_to_be_of_another(tmp_path):
    rows = {"b": {0: metrics(0.5, 0.25)}}
    table = table_of(tmp_path, rows)
    markdown = page.to_markdown(table)
    assert "synthetic, 25 epochs" in markdown
    assert "the paper's own, measured by its authors on SYSU-MM01." in markdown
    assert "57.0" not in page.to_csv(table)
    other = page.to_markdown(dataclasses.replace(table, feature="pool", other=("pool",)))
    assert "`sysu/all/single`, feature `pool`, in percent" in other and "authors" not in other
    assert rows_of(other)[1]["row b"][-2:] == ["-", "-"]
    regdb = table_of(tmp_path, rows, dataset="regdb")
    markdown = page.to_markdown(regdb)
    assert rows_of(markdown)[1]["row b"][-2:] == ["75.77", "70.52"] and "on RegDB." in markdown
    regdb.rows["b"].paper.pop("regdb")  # which its paper lacks
    assert rows_of(page.to_markdown(regdb))[1]["row b"][-2:] == ["-", "-"]
    markdown = page.to_markdown(table_of(tmp_path / "c", rows, corrupt="visible"))
    assert "visible images corrupted by code of ours" in markdown and "SYSU-MM01-C." in markdown
    assert rows_of(markdown)[1]["row b"][0] == "50.0"


def test_files_and_pages(tmp_path):
    table = table_of(tmp_path, {"b": {0: metrics(0.5, 0.25)}})
    page.write([table], tmp_path / "out", "python -m it smcl/1")
    assert "Made by `python -m it smcl/1`." in (tmp_path / "out" / "smcl-1.md").read_text()
    assert (tmp_path / "out" / "smcl-1.csv").read_text() == page.to_csv(table)
    real = table_of(tmp_path, {"b": {0: metrics(0.5, 0.25)}}, dataset="sysu")
    assert page.file_name(real) == "smcl-1_sysu"
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table: smcl-1 -->\nold\n<!-- end -->\nafter\n<!-- end -->\n")
    for _ in range(2):  # it can be filled again
        assert page.fill(path, [table, real], "it") == ["smcl-1_sysu"]
        text = path.read_text()
        assert text.startswith("before\n<!-- table: smcl-1 -->\nsmcl/1, components")
        assert text.endswith("Made by `it`.\n<!-- end -->\nafter\n<!-- end -->\n")
        assert "old" not in text and text.count("row b") == 1


# Results that count -------------------------------------------------------------------------------


def test_results_count_once_the_training_has_ended(tmp_path):
    cell = cell_of(tmp_path)
    assert cell.metrics(SCORE) is None and cell.trained_at() is None
    with pytest.raises(ValueError, match="holds no results"):
        cell.mark_trained()
    save(cell, result_of(), trained=False)  # of any checkpoint, by --mode=eval
    assert cell.metrics(SCORE) is None
    cell.mark_trained()
    assert cell.metrics(SCORE) == result_of()["metrics"]
    assert cell.missing() == []


def test_the_end_is_the_last_step(tmp_path):
    cell = cell_of(tmp_path)
    save(cell, result_of(metrics={"R1": 0.0}), step=9, trained=False)
    save(cell, result_of(checkpoint="best", metrics={"R1": 1.0}), step=70, trained=False)
    save(cell, result_of(), step=50)
    assert cell.trained_at() == 50
    assert cell.metrics(SCORE) == result_of()["metrics"]


def test_a_result_of_another_kind_does_not_count(tmp_path):
    for n, other in enumerate(
        (
            *({"feature": "pool"}, {"flip": True}, {"rerank": "all"}, {"gallery": "official"}),
            *({"protocol": "sysu/indoor/single"}, {"checkpoint": "best"}, {"trials": [{}] * 2}),
            {"corrupt": "visible", "corrupt_seed": 0, "results": 10},
        )
    ):
        cell = cell_of(tmp_path / str(n))
        save(cell, result_of(**other, metrics={"R1": 0.0}), name="other", trained=False)
        save(cell, result_of(metrics={"R1": 0.0}), step=1)  # so that it is trained
        (cell.folder / TRAINED).write_text('{"step": 50}')
        assert cell.metrics(SCORE) is None and cell.missing() == [SCORE], other
        save(cell, result_of())
        assert cell.metrics(SCORE) == result_of()["metrics"], other


def test_the_number_of_draws_and_repeats_is_that_of_the_settings(tmp_path):
    two = cell_of(tmp_path, **{"eval.trials": 2})
    save(two, result_of())
    assert two.metrics(SCORE) is None
    save(two, result_of(trials=[{}] * 2))
    assert two.metrics(SCORE) is not None

    corrupted = SCORE._replace(corrupt="visible")
    cell = cell_of(tmp_path, "c", score=corrupted)
    save(cell, result_of(corrupted))
    assert cell.metrics(corrupted) is not None
    for key, value in (("eval.corrupt_repeats", 3), ("eval.corrupt_seed", 1)):
        other = cell_of(tmp_path, "c", score=corrupted, **{key: value})
        assert other.metrics(corrupted) is None, key


def test_a_gallery_that_is_not_drawn(tmp_path):
    score = Score("regdb/v2t", None, "bn")
    cell = cell_of(tmp_path, score=score, **{"eval.trials": 4})
    save(cell, result_of(score, gallery="all", trials=[{}]))
    assert cell.metrics(score) is not None


def test_two_test_sets_are_not_mixed(tmp_path):
    cell = cell_of(tmp_path)
    save(cell, result_of(test_set="a"))
    save(cell, result_of(test_set="b"), name="two")
    with pytest.raises(ValueError, match="2 results of sysu/all/single, bn: of several test sets"):
        cell.metrics(SCORE)
    row = Row("row", {}, SCORE, (cell,))
    assert page.measured(row) == {}


def test_the_names_of_scores_are_the_evaluators(tmp_path):
    """The keys that are asked for are those that the evaluator writes."""
    import numpy as np

    from vireid_jax import evaluate
    from vireid_jax.types import INFRARED, VISIBLE, Records, Retrieval

    rng = np.random.default_rng(0)

    def records(modality, camera):
        rows = 6
        return Records(
            images=np.zeros((rows, 4, 2, 3), np.uint8),
            person=np.arange(rows, dtype=np.int32) % 3,
            camera=np.full(rows, camera, np.int32),
            modality=np.full(rows, modality, np.int8),
            name=np.array([f"cam{camera}/{n % 3:04}/{n:04}" for n in range(rows)]),
        )

    retrieval = Retrieval(records(INFRARED, 3), records(VISIBLE, 1))
    features = [{"bn": rng.normal(size=(6, 4)).astype(np.float32)} for _ in range(2)]
    found = list(
        evaluate.score(*features, retrieval, protocol_names=["sysu/all/single"], trials=None)
    )
    cell = cell_of(tmp_path)
    folder = cell.folder / "eval" / "50"
    evaluate.save_results([r | {"checkpoint": "last", "test_set": "0123"} for r in found], folder)
    cell.mark_trained()
    assert cell.metrics(SCORE) == found[0]["metrics"]


# docs/ablations.md --------------------------------------------------------------------------------

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "ablations.md"


def test_the_page_has_a_place_for_every_table():
    text = PAGE.read_text()
    places = re.findall(r"^<!-- table: (\S+) -->$", text, re.M)
    assert places == [name.replace("/", "-") for name in tables.TABLES]
    assert len(re.findall(r"^<!-- end -->$", text, re.M)) == len(places)


def test_the_counts_on_the_page():
    """Table 3 of SMCL: distances to positives and to negatives, for P = K = 4."""
    counts = {"adsl": (12, 12), "bh_tri": (224, 768), "bdtr": (224, 768)}
    counts |= {"bicenter": (32, 96), "hc_tri": (8, 48)}
    assert set(counts) == set(tables.TABLES["smcl/4"].rows)
    for name, count in counts.items():
        (line,) = re.findall(rf"^\| `{name}` \|.*\| (\d+), (\d+) \|$", PAGE.read_text(), re.M)
        assert tuple(map(int, line)) == count, name
