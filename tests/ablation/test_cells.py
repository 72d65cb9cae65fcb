"""Which cells tables consist of, and how settings tell them apart."""

import pathlib

import pytest

from vireid_jax.ablation import cells, page

TABLES = cells.load_tables()
SMALL = ["--config.train.epochs=2"]
IDKL = ["idkl/4", "idkl/5a", "idkl/5b", "idkl/5c", "idkl/presets"]


def planned(names, tmp_path=pathlib.Path("runs"), *, changes=SMALL, seeds=(0,), **options):
    options = {"dataset": "synthetic", **options}
    return cells.resolve_tables(
        names, tables=TABLES, seeds=seeds, folder=tmp_path, changes=changes, **options
    )


def one(name, *changes, dataset="sysu", **options):
    """One table; changes are KEY=VALUE."""
    words = [f"--config.{change}" for change in changes]
    (table,) = planned([name], changes=words, dataset=dataset, **options)
    return table


def folders(table):
    return {name: row.cells[0].folder for name, row in table.rows.items()}


def test_rows_that_are_one_training_are_one_cell():
    mun1, mun2, mun3, mun5, smcl2 = planned(["mun/1", "mun/2", "mun/3", "mun/5", "smcl/2"])
    whole = {folders(mun1)["all"], folders(mun2)["mun"]}
    whole |= {folders(mun3)["both"], folders(mun5)["ma"]}
    assert len(whole) == 1
    for corrupted, clean in {"b": "b", "aux": "aux", "idc": "idc", "ia": "idc_ia"}.items():
        assert folders(mun5)[corrupted] == folders(mun1)[clean]
    assert folders(mun5)["smcl"] == folders(smcl2)["syncretic"]
    found = cells.cells_of([mun1, mun2, mun3, mun5, smcl2])
    # Of 24 rows, three are the whole MUN once more, five are table 1's and one is SMCL's table 2's.
    assert len(found) == len({cell.folder for cell in found}) == 24 - 3 - 4 - 1
    (cell,) = [cell for cell in found if cell.folder in whole]
    assert [score.corrupt for score in cell.scores] == [None, "visible"]


@pytest.mark.parametrize("dataset", ["synthetic", "sysu"])
def test_the_best_points_of_idkls_sweeps_are_the_whole_method(dataset):
    tables = planned(IDKL, dataset=dataset, changes=[])
    four, a, b, c, presets = map(folders, tables)
    whole = {four["all"], a["0.1"], b["0.6"], c["0.8"], presets["paper"]}
    assert len(whole) == 1
    # Of 29 rows those five are one; nothing else is shared.
    assert len(cells.cells_of(tables)) == 29 - 4
    # A preset is a recipe of the method's, whose folder has the method's name.
    assert presets["official"].parent.name.startswith(f"idkl_{dataset}-")
    assert presets["official"] not in whole


def test_incremental_training_is_the_recipe_on_real_data_and_its_share_on_the_embedded():
    one, two = planned(["smcl/1", "smcl/2"], dataset="sysu", changes=[])
    assert folders(one)["it"] == folders(two)["syncretic"] != folders(one)["ceh_adsl"]
    one, two = planned(["smcl/1", "smcl/2"])
    assert folders(one)["ceh_adsl"] == folders(two)["syncretic"] != folders(one)["it"]
    cell = one.rows["it"].cells[0]
    assert cell.config["method.metric_from_epoch"] == pytest.approx(2 * 220 / 300)


def test_what_another_setting_makes_of_the_cells():
    def found(*changes):
        return set(folders(one("smcl/1", "train.epochs=2", *changes, dataset="synthetic")).values())

    before = found()
    others = ("optim.lr=0.5", "train.epochs=3", "data.train_ids=30", "init.weights=weights.npz")
    for change in others:
        assert not before & found(change), change
    for change in ("eval.trials=2", "loader.prefetch=1", "train.log_every=5"):
        assert before == found(change), change


def test_the_root_tells_own_images_apart_and_no_released_ones():
    for dataset, apart in (("folders", True), ("sysu", False)):
        a, b = (folders(one("smcl/1", f"data.root={r}", dataset=dataset)) for r in "ab")
        assert (a != b) == apart, dataset


def test_seeds_of_a_configuration_are_together_and_seeds_come_first():
    (table,) = planned(["smcl/1"], seeds=(0, 3))
    first, second = table.rows["b"].cells
    assert first.folder.parent == second.folder.parent
    assert (first.folder.name, second.folder.name) == ("seed0", "seed3")
    assert [cell.seed for cell in cells.cells_of([table])] == [0] * 4 + [3] * 4
    assert [cell.name for cell in cells.cells_of([table], ["it", "b"])] == [
        "smcl/1/b, seed 0", "smcl/1/it, seed 0", "smcl/1/b, seed 3", "smcl/1/it, seed 3",
    ]  # fmt: skip


def test_the_commands_say_all():
    cell = planned(["mun/5"], seeds=(7,))[0].rows["b"].cells[0]
    train = cell.command(None)
    assert train[1:3] == ["-m", "vireid_jax.main"]
    assert train[3].endswith("configs/tables.py:mun/5/b:synthetic")
    assert {"--config.seed=7", "--config.train.epochs=2", "--config.eval.baselines=False"} < set(
        train
    )
    assert sum("train.epochs" in word for word in train) == 1
    score = cell.command(cell.scores[0])
    assert set(train) < set(score)
    assert {"--mode=eval", "--config.eval.corrupt=visible"} < set(score)
    for words in (train, score):
        assert [w for w in words if "protocols" in w] == [
            "--config.eval.protocols=('sysu/all/single',)"
        ]


def test_real_data_keep_the_recipes_length():
    cell = one("mun/1").rows["b"].cells[0]
    assert cell.values == ("--config.seed=0",) and cell.config["train.epochs"] == 90


def test_a_training_that_ends_before_its_losses_begin_is_refused():
    def starts(name, *changes):
        rows = one(name, "train.epochs=10", *changes).rows.values()
        return [r.cells[0].config["method.metric_from_epoch"] for r in rows]

    message = (
        r"^smcl/4/bh_tri:sysu: method.metric_from_epoch is 220 and train.epochs 10, so .* never "
        r"enter; give --config.method.metric_from_epoch=... below 10"
    )
    with pytest.raises(ValueError, match=message):
        starts("smcl/4")
    with pytest.raises(ValueError, match="metric_from_epoch is 10 and"):  # the end is too late
        starts("smcl/4", "method.metric_from_epoch=10")
    assert set(starts("smcl/4", "method.metric_from_epoch=7")) == {7}
    # Rows of table 1 differ in that value; its own row for it keeps the recipe's share.
    assert starts("smcl/1")[2:] == [0, pytest.approx(10 * 220 / 300)]


def test_a_training_that_ends_before_the_learning_rate_is_there_is_refused():
    with pytest.raises(ValueError, match=r"mun/3/neither:sysu: optim.warmup_epochs is 15 and"):
        one("mun/3", "train.epochs=15")
    one("mun/3", "train.epochs=16")


def test_regdb_is_searched_as_in_the_papers_tables():
    for table, own in (("smcl/1", "t2v"), ("mun/1", "v2t"), ("mun/5", "v2t")):
        found = one(table, dataset="regdb")
        assert {r.score.protocol for r in found.rows.values()} == {found.protocol}, table
        assert found.protocol == f"regdb/{own}", table
        assert one(table, dataset="regdb", protocol="regdb/t2v").protocol == "regdb/t2v", table


def test_a_wrong_change_is_refused():
    for change, message in {
        "seed=3": "seed is decided by --seeds",
        "eval.corrupt=visible": "a table of corrupted images",
        "eval.protocols=()": "eval.protocols is decided by --protocol",
        "data.name=sysu": "data.name is decided by --dataset",
        "method.id_margin=2": "rows of smcl/1 differ in method.id_margin",
        "method.metric_from_epoch=2": "differ in method.metric_from_epoch",
        "train.epochs": "has no value",
        "train.epoch=3": "Did you mean .*epochs",
        "train.epochs=many": "many",
        "nothing.epochs=3": "nothing",
    }.items():
        with pytest.raises(ValueError, match=message):
            planned(["smcl/1"], changes=[f"--config.{change}"])


def test_another_score_than_the_tables_own_is_named():
    def names(dataset="synthetic", **options):
        table = one("smcl/1", dataset=dataset, **options)
        return table.other, page.file_name(table)

    assert names() == ((), "smcl-1")
    assert names(protocol="sysu/all/single", feature="bn") == ((), "smcl-1")
    assert names(feature="pool") == (("pool",), "smcl-1_pool")
    both = names("sysu", protocol="sysu/all/multi", feature="pool")
    assert both == (("sysu/all/multi", "pool"), "smcl-1_sysu_sysu-all-multi_pool")
    assert names("regdb") == ((), "smcl-1_regdb_trial1"), "its own is t2v"
    assert names("regdb", protocol="regdb/v2t")[0] == ("regdb/v2t",)
    three = one("smcl/1", "data.trial=3", dataset="regdb")
    assert page.file_name(three) == "smcl-1_regdb_trial3"
    assert "regdb (split 3), 200 epochs" in page.to_markdown(three)


def test_without_a_feature_every_row_has_its_methods_headline():
    table = one("methods/1", dataset="synthetic")
    found = {name: row.score.feature for name, row in table.rows.items()}
    assert found.pop("deen") == found.pop("pdm") == "sum" and set(found.values()) == {"bn"}
    assert table.other == ()
    table = one("methods/1", dataset="synthetic", feature="pool")
    assert {row.score.feature for row in table.rows.values()} == {"pool"}
    assert table.other == ("pool",)


def test_rows_that_are_not_asked_for_need_not_take_the_settings():
    """SMCL's row of MUN's table 5 has no margin of L_tri."""
    change = ["--config.method.tri_margin=0.1"]
    with pytest.raises(
        ValueError, match=r"mun/5/smcl:synthetic: unknown key --config.method.tri_margin"
    ):
        planned(["mun/5"], changes=change)
    (table,) = planned(["mun/5"], changes=change, rows=["b"])
    assert list(table.rows) == ["b", "aux", "idc", "ia", "ma"] and table.left_out == ("SMCL",)
    assert "Not with these settings: SMCL." in page.to_markdown(table)
    assert [cell.name for cell in cells.cells_of([table], ["b"])] == ["mun/5/b, seed 0"]


def test_a_file_is_one_by_whatever_path(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for key in cells.PATHS:
        found = [
            planned(["smcl/1"], dataset="folders", changes=[f"--config.{key}={path}"])[0]
            for path in ("x.npz", "../a/x.npz", str(tmp_path / "a" / "x.npz"))
        ]
        assert folders(found[0]) == folders(found[1]) == folders(found[2]), key
        given = found[0].rows["b"].cells[0].command(None)
        assert f"--config.{key}={tmp_path.resolve()}/a/x.npz" in given, "a resumed run is the same"


def test_tables_are_chosen_by_name_or_method():
    assert cells.choose(["mun/3", "smcl", "mun/3"], TABLES) == [
        "mun/3", "smcl/1", "smcl/2", "smcl/4",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no table 'mun/4'; expected of smcl/1, .*mun/5.*mun"):
        cells.choose(["mun/4"], TABLES)


def test_the_tables_are_needed(monkeypatch):
    monkeypatch.setattr(cells, "RECIPES", None)
    with pytest.raises(FileNotFoundError, match=r"no configs/tables\.py here"):
        cells.load_tables()
