"""Means over results, and the command that prints those of several runs."""

import functools
import json
import os
import re

import numpy as np
import pytest

from vireid_jax.metrics import __main__ as command
from vireid_jax.metrics import combine, evaluate, row_label
from vireid_jax.metrics.results import file_name
from vireid_jax.runtime.files import remove


@functools.cache
def scored(seed):
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(6), 8)
    camera = np.tile([1, 2, 4, 5, 1, 2, 4, 5], 6)
    features = rng.normal(size=(48, 4)) + 2 * np.eye(6, 4)[person]
    return evaluate(
        rng.normal(size=(12, 4)) + 2 * np.eye(6, 4)[np.arange(12) % 6],
        features,
        query_person=np.arange(12) % 6,
        query_camera=np.where(np.arange(12) < 6, 3, 6),
        gallery_person=person,
        gallery_camera=camera,
        gallery_name=[f"cam{c}/{p:04d}/{n:04d}" for n, (p, c) in enumerate(zip(person, camera))],  # noqa: B905
        protocol="sysu/all/single",
        trials=2,
    )


def result(seed, /, **changes):
    """A real result of random features under a SYSU-MM01 protocol."""
    about = {"feature": "bn", "dataset": "mine", "seed": seed, "step": 3, "checkpoint": "last"}
    about |= {"recipe": recipe(seed), "data": {"filter": "lanczos"}}
    return about | scored(seed) | changes


def recipe(seed=0, **changes):
    return {"seed": seed, "method.name": "agw", "optim.lr": 0.1, **changes}


def test_each_result_counts_once():
    results = [result(seed) for seed in range(3)]
    found = combine(results, over="seeds")
    for name, value in found["metrics"].items():
        each = [r["metrics"][name] for r in results]
        assert value == pytest.approx(sum(each) / 3, abs=1e-15)
        assert found["std"][name] == pytest.approx(np.std(each), abs=1e-15)
        assert [t[name] for t in found["trials"]] == each
    assert found["std"]["mAP"] > 0
    for name in ("mAP", "R1", "mAP_sigma"):
        assert found["chance"][name] == pytest.approx(np.mean([r["chance"][name] for r in results]))
    expected = np.mean([r["curves"]["cmc_id"] for r in results], axis=0)
    np.testing.assert_allclose(found["curves"]["cmc_id"], expected, atol=1e-15)
    assert (found["over"], found["results"], found["feature"]) == ("seeds", 3, "bn")
    assert found["counts"]["queries"] == 12
    json.dumps(found, allow_nan=False)
    alone = combine(results[:1], over="splits")
    assert set(alone["std"].values()) == {0.0}
    assert alone["metrics"] == results[0]["metrics"]


def test_results_that_were_measured_otherwise_are_not_averaged():
    first, second = result(0), result(1)
    for key, value in {
        "protocol": "regdb/v2t",
        "feature": "pool",
        "gallery": "official",
        "cmc": "image",
        "flip": True,
        "rerank": "all",
        "corrupt": "visible",
        "dataset": "other",
        "corrupt_seed": 1,
        "test_set": "0123",
        "step": 4,
        "distance": "euclidean",  # whatever a result says of how it was measured
    }.items():
        with pytest.raises(ValueError, match=rf"differ in {key}: .*{json.dumps(value)}"):
            combine([first, {**second, key: value}], over="runs")
    for changes, line in (
        ({"trials": second["trials"][:1]}, "draws: 2, 1"),
        ({"data": {"filter": "bilinear"}}, 'data.filter: "lanczos", "bilinear"'),
        ({"recipe": recipe(1, **{"optim.lr": 0.2})}, "recipe.optim.lr: 0.1, 0.2"),
        ({"recipe": recipe(1, **{"method.name": "smcl"})}, 'recipe.method.name: "agw", "smcl"'),
        ({"recipe": recipe(1, train_set="a")}, 'recipe.train_set: none, "a"'),
        ({"recipe": recipe(1, **{"method.new": 1})}, "recipe.method.new: none, 1"),
        ({"curves": {"cmc_id": [1.0], "cmc_image": [1.0]}}, "ranks: 20, 1"),
    ):
        for over in ("runs", "seeds"):
            with pytest.raises(ValueError, match=f"differ in {re.escape(line)}. Expected"):
                combine([first, {**second, **changes}], over=over)
    with pytest.raises(ValueError, match="no results"):
        combine([], over="runs")
    with pytest.raises(ValueError, match="over is 'models', expected one of runs, seeds"):
        combine([first], over="models")


def test_what_a_mean_is_over_may_differ_and_counts_once():
    split = {"test_set": "b", "trial": 2, "data": {"filter": "lanczos", "trial": 2}}
    split["recipe"] = recipe(**{"data.trial": 2, "train_set": "c"})
    two = [result(0, test_set="a"), result(1, seed=0, **split)]
    assert combine(two, over="splits")["results"] == 2
    for over in ("runs", "seeds"):
        with pytest.raises(ValueError, match=r"differ in .*for a mean over splits"):
            combine(two, over=over)
    with pytest.raises(ValueError, match="differ in seed: 0, 1"):
        combine([two[0], two[1] | {"seed": 1}], over="splits")
    with pytest.raises(ValueError, match="for a mean over seeds add --over seeds"):
        combine([result(0), result(1)], over="splits")
    same = [result(0), result(1, seed=0, recipe=recipe())]
    assert combine(same, over="runs")["results"] == 2
    for over in ("seeds", "splits"):
        with pytest.raises(ValueError, match=f"one of the {over} in common .*count double"):
            combine([r | {"test_set": "a"} for r in same], over=over)
    # The best checkpoints of several runs lie at different steps.
    best = [result(0, checkpoint="best"), result(1, checkpoint="best", step=9)]
    assert combine(best, over="seeds")["results"] == 2


def test_labels():
    for marks, label in (
        ({}, "bn"),
        ({"flip": False, "rerank": None, "corrupt": None}, "bn"),
        ({"flip": True}, "bn, flip"),
        ({"rerank": "all", "distance": "cosine"}, "bn, re-ranked"),
        ({"rerank": "all", "distance": "euclidean"}, "bn, Euclidean, re-ranked"),
        ({"rerank": "queries"}, "bn, re-ranked (queries)"),
        ({"flip": True, "corrupt": "visible:fog"}, "bn, flip, visible:fog -C (vireid)"),
    ):
        assert row_label({"feature": "bn", **marks}) == label


# --- The command ------------------------------------------------------------------------------


def save(run, results, step=3):
    folder = run / "eval" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    for n, r in enumerate(results):
        (folder / f"{n}.json").write_text(json.dumps(r))


def test_the_command_prints_the_mean_over_runs(tmp_path, capsys):
    runs = [tmp_path / name for name in ("a", "b")]
    for seed, run in enumerate(runs):
        save(run, [result(seed), result(seed, feature="pool")], step=1)
        pool = result(seed, **scored(seed + 7), feature="pool")
        save(run, [result(seed), pool], step=10)
    out = tmp_path / "out.json"
    assert command.main([*map(str, runs), "--over", "seeds", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    mean = np.mean([result(s)["metrics"]["mAP"] for s in (0, 1)])
    assert f"{100 * mean:.1f}" in text and "seeds" in text
    rows = json.loads(out.read_text())
    assert [row["feature"] for row in rows] == ["bn", "pool"]
    assert rows[0]["metrics"]["mAP"] == pytest.approx(mean)
    assert command.main([*map(str, runs), "--markdown", "--step", "1"]) == 0
    assert "| --- |" in capsys.readouterr().out


def test_the_command_leaves_out_what_a_run_lacks_and_says_so(tmp_path, capsys):
    runs = [tmp_path / name for name in ("a", "b")]
    save(runs[0], [result(0), result(0, feature="pool")])
    save(runs[1], [result(1)])
    assert command.main([*map(str, runs)]) == 0
    out, err = capsys.readouterr()
    assert "bn" in out and "pool" not in out
    assert "pool (gallery agw) was scored in 1 of 2 runs" in err and str(runs[1]) in err
    save(runs[1], [result(1, feature="fc")])
    save(runs[0], [result(1, feature="pool"), result(1, feature="pool", gallery="official")])
    assert command.main([*map(str, runs)]) == 1
    assert "no row was scored in all runs" in capsys.readouterr().err


def test_rows_of_other_galleries_and_data_sets_have_tables_of_their_own(tmp_path, capsys):
    runs = [tmp_path / name for name in ("a", "b")]
    for seed, run in enumerate(runs):
        official = result(seed, **scored(seed + 10) | {"gallery": "official"})
        save(run, [result(seed), official, result(seed, **scored(seed + 20), dataset="other")])
    out = tmp_path / "out.json"
    assert command.main([*map(str, runs), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line.startswith(("mine", "other"))]
    assert titles == ["mine", "mine, official gallery", "other"]
    for n, row in enumerate(json.loads(out.read_text())):
        mean = np.mean([result(seed + 10 * n)["metrics"]["mAP"] for seed in (0, 1)])
        assert row["metrics"]["mAP"] == pytest.approx(mean), row["dataset"]
        assert f"{100 * mean:.1f}" in text


def test_rows_of_other_numbers_of_draws_have_a_table_of_their_own(tmp_path, capsys):
    """What an earlier evaluation left behind, when the plain row was scored again."""
    once = {"trials": result(0)["trials"][:1]}
    save(tmp_path, [result(0), result(1, flip=True, **once), result(2, feature="pool", **once)])
    assert command.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line.startswith("mine")]
    assert titles == ["mine", "mine (draws: 1)"]
    assert text.index("mine (draws: 1)") < text.index("bn, flip")
    assert text.index("mine (draws: 1)") < text.index("pool")


def test_splits_may_be_spread_over_runs_or_lie_in_one(tmp_path, capsys):
    """A model of another data set, say, that was scored on several of RegDB's trials."""
    rows = [
        result(t, seed=0, recipe=recipe(), trial=t, test_set=f"set{t}", data={"trial": t})
        for t in range(3)
    ]
    save(tmp_path / "a", rows)
    assert command.main([str(tmp_path / "a"), "--over", "splits"]) == 0
    assert "mean over 3 splits" in capsys.readouterr().out
    assert command.main([str(tmp_path / "a")]) == 1
    assert 'test_set: "set0", "set1", "set2"' in capsys.readouterr().err
    save(tmp_path / "a", [*rows, rows[0] | {"test_set": "set9"}])
    assert command.main([str(tmp_path / "a"), "--over", "splits"]) == 1
    err = capsys.readouterr().err
    assert "holds 2 results of mine sysu/all/single" in err and '"set0", "set9"' in err


def test_the_folder_of_a_step_is_a_run_too(tmp_path, capsys):
    """The best checkpoints of several runs lie at different steps."""
    for n, step in enumerate((4, 12)):
        best = {"feature": "best", "step": step, "checkpoint": "best"}
        save(tmp_path / str(n), [result(n, **best)], step=step)
        save(tmp_path / str(n), [result(n)], step=20)
    folders = [str(tmp_path / "0" / "eval" / "4"), str(tmp_path / "1" / "eval" / "12")]
    assert command.main(folders) == 0
    assert "best" in capsys.readouterr().out
    # Another spelling, another step, or the run itself.
    for again in (folders[0] + "/", str(tmp_path / "0/eval/20"), str(tmp_path / "1/../0")):
        assert command.main([folders[0], again]) == 1
        assert "a run is named twice" in capsys.readouterr().err


def test_the_command_refuses_what_cannot_be_averaged(tmp_path, capsys):
    runs = [str(tmp_path / name) for name in ("a", "b")]
    save(tmp_path / "a", [result(0)])
    for other, arguments, message in (
        ({"trials": result(1)["trials"][:1]}, runs, "differ in draws: 2, 1"),
        ({"ties": "pessimistic"}, runs, "differ in ties"),
        ({"recipe": recipe(1, **{"method.name": "smcl"})}, runs, 'method.name: "agw", "smcl"'),
        ({"recipe": None}, runs, "of an earlier version"),
        ({}, [str(tmp_path / "c")], "no step"),
        ({}, [runs[0], "--step", "9"], "holds results of 3, expected step 9"),
    ):
        save(tmp_path / "b", [result(1, **other)])
        assert command.main(arguments) == 1
        assert message in capsys.readouterr().err


# --- Files ------------------------------------------------------------------------------------


def test_a_quick_evaluation_stands_beside_the_full_one(tmp_path, capsys):
    quick = {"trials": result(0)["trials"][:1]}
    for n, run in enumerate((tmp_path / "a", tmp_path / "b")):
        folder = run / "eval" / "3"
        folder.mkdir(parents=True)
        for row in (result(n), result(n, **quick), result(n, data={"filter": "bilinear"})):
            (folder / file_name(row)).write_text(json.dumps(row))
        assert len(list(folder.iterdir())) == 3
    assert command.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("mine")]
    # The full evaluations come first.
    assert titles == ["mine", "mine (data.filter: lanczos)", "mine (draws: 1)"]
    save(tmp_path / "c", [result(2)])
    assert command.main([str(tmp_path / name) for name in "abc"]) == 0
    assert "bn (gallery agw, draws: 1) was scored in 2 of 3 runs" in capsys.readouterr().err


def test_the_name_of_a_file_goes_by_all_that_changes_a_number():
    """Whatever key a result has: only what it found, and the name of its step, are left out."""
    names = {file_name(result(0))}
    for changes in (
        {"trials": result(0)["trials"][:1]},
        {"gallery": "official"},
        {"test_set": "b"},
        {"flip": True},
        {"rerank": "all"},
        {"rerank": "queries"},
        {"corrupt": "visible", "corrupt_seed": 1},
        {"corrupt": "visible", "corrupt_seed": 2},
        {"corrupt": "visible", "corrupt_seed": 2, "results": 3},
        {"data": {"filter": "bilinear"}},
        {"recipe": recipe(**{"optim.lr": 0.2})},
        {"distance": "euclidean"},
    ):
        names.add(file_name(result(0, **changes)))
    assert len(names) == 13
    again = {"checkpoint": "best", "metrics": scored(1)["metrics"], "flip": False, "corrupt": None}
    assert file_name(result(0, **again)) in names
    assert re.fullmatch(r"sysu-all-single-bn-[0-9a-f]{8}\.json", file_name(result(0)))


def changed(result, path, value):
    result = json.loads(json.dumps(result))
    *groups, last = path
    group = result
    for key in groups:
        group = group[key]
    if value is None:
        del group[last]
    else:
        group[last] = value
    return result


DAMAGED = [
    *((key, None) for key in "protocol feature direction gallery cmc trials metrics".split()),
    *((key, None) for key in "std chance counts curves".split()),
    *((f"metrics.{name}", None) for name in ("R1", "R5", "R10", "R20", "mAP", "mINP")),
    ("metrics.mAP", 7.0),
    ("metrics.mAP", -0.1),
    ("metrics.mAP", float("nan")),
    ("metrics.mAP", float("inf")),
    ("metrics.mAP", "high"),
    ("metrics.mAP", True),
    ("metrics.mAP", 10**400),
    ("std.mAP", 2),
    ("trials.0.R1", 3.0),
    ("trials.0", []),
    ("trials", 5),
    ("trials", []),
    ("chance.mAP_sigma", "x"),
    ("curves.cmc_id", 1),
    ("curves.cmc_id", [0.1, 2]),
    ("curves.cmc_id", []),
    ("curves.cmc_id", [0.1]),
    ("counts.queries", "x"),
    ("counts.queries", -1),
    ("counts.queries", 1.5),
    ("counts.gallery_ids", 10**30),
    ("protocol", ["a"]),
    ("feature", {}),
    ("feature", "a\nb"),
    ("feature", "a" * 1000),
    ("direction", "x"),
    ("gallery", "mine"),
    ("gallery", []),
    ("dataset", 5),
    ("flip", "no"),
    ("corrupt", ["fog"]),
    ("step", "x"),
    ("recipe", []),
    ("data", "x"),
    ("checkpoint", {}),
    ("draws", 1e9),
]


def test_a_damaged_result_is_named_in_one_line(tmp_path, capsys):
    path = tmp_path / "run" / "eval" / "3" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result(0)))
    assert command.main([str(tmp_path / "run")]) == 0
    capsys.readouterr()
    texts = {f"{key} {value}": changed(result(0), _path(key), value) for key, value in DAMAGED}
    texts = {name: json.dumps(value).encode() for name, value in texts.items()}
    texts |= {"empty": b"", "binary": b"\xff\xfe", "list": b"[]", "null": b"null", "{}": b"{}"}
    texts |= {"deep": b"[" * 200_000, "cut": json.dumps(result(0)).encode()[:-9]}
    for name, text in texts.items():
        path.write_bytes(text)
        assert command.main([str(tmp_path / "run")]) == 1, name
        out, err = capsys.readouterr()
        assert not out and str(path) in err and err.count("\n") == 1 and len(err) < 500, (name, err)
    assert len(texts) > 50


def _path(key):
    return [int(part) if part.isdigit() else part for part in key.split(".")]


def sparse(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


def test_what_is_no_regular_file_or_too_large_is_not_opened(tmp_path, capsys):
    path = tmp_path / "run" / "eval" / "3" / "a.json"
    path.parent.mkdir(parents=True)
    for make, what in (
        (lambda: os.mkfifo(path), "a FIFO"),
        (lambda: path.mkdir(), "a folder"),
        (lambda: path.symlink_to("/dev/zero"), "a device"),
        (lambda: sparse(path), "1,099,511,627,776 bytes"),
    ):
        make()
        assert command.main([str(tmp_path / "run")]) == 1
        err = capsys.readouterr().err
        assert what in err and str(path) in err
        remove(path)


def test_escape_sequences_are_shown_not_obeyed(tmp_path, capsys):
    run = tmp_path / "a\x1b[31mb"
    save(run, [result(0, feature="bn\x1b]0;x\x07", dataset="mine\x9b2J")])
    assert command.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert r"bn\x1b]0;x\x07" in out and r"mine\x9b2J" in out
    assert command.main([str(run), str(tmp_path / "\x1b[2Jno")]) == 1
    err = capsys.readouterr().err
    assert r"\x1b[2Jno" in err and not set("\x1b\x07\x9b") & set(out + err)
