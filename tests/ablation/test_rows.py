"""Every row of the papers' tables is a configuration that its method can be built from."""

import functools
import inspect
import itertools
import json

import jax
import jax.numpy as jnp
import pytest

from configs import common, tables
from vireid_jax.ablation import cells
from vireid_jax.methods import get_build
from vireid_jax.methods.common import with_backbone

FACTS = dict(
    num_classes=7, steps_per_epoch=10, num_steps=100, num_ids=4, num_instances=2, second_view=False
)


@pytest.mark.parametrize("table", tables.TABLES)
def test_a_row_is_its_recipe_with_its_changes(table):
    for row, dataset in itertools.product(tables.TABLES[table].rows, common.DATASETS):
        spec = tables.TABLES[table].rows[row]
        where = f"{table}/{row}:{dataset}"
        config = tables.get_config(where).to_dict()
        recipe = tables.recipe(spec.method or tables.TABLES[table].method, dataset).to_dict()
        assert config.pop("run_name") == f"{table.replace('/', '-')}-{row}-{dataset}"
        del recipe["run_name"]
        changes = {**spec.changes, **(spec.embedded if dataset == "synthetic" else {})}
        for key, value in changes.items():
            section, option = key.split(".")
            assert option in recipe[section], (where, key)
            if isinstance(value, tables.EpochShare):
                share = value.share or recipe[section][option] / recipe["train"]["epochs"]
                value = pytest.approx(share * recipe["train"]["epochs"])
            recipe[section][option] = value
        assert config == recipe, where


@pytest.mark.parametrize("table", tables.TABLES)
def test_the_method_of_a_row_can_be_built(table):
    for row, dataset in itertools.product(tables.TABLES[table].rows, common.DATASETS[:3]):
        config = tables.get_config(f"{table}/{row}:{dataset}")
        options = config.method.to_dict()
        build = get_build(options.pop("name"))
        named = inspect.signature(build).parameters
        facts = {key: value for key, value in FACTS.items() if key in named}
        try:
            build(image_size=config.data.image_size, **facts, **with_backbone(options))
        except Exception as error:
            raise AssertionError(f"{table}/{row}:{dataset}") from error


# Of a table: options of the method, then what each of its rows has of them on SYSU-MM01.
SETTINGS = {
    ("smcl/1", "auxiliary id_margin metric_weight"): {
        "b": ("syncretic", 0.0, 0.0),
        "ceh": ("syncretic", 4.0, 0.0),
        "ceh_adsl": ("syncretic", 4.0, 0.5),
        "it": ("syncretic", 4.0, 0.5),
    },
    ("smcl/2", "auxiliary"): {k: (k,) for k in ("none", "x", "gray", "syncretic")},
    ("smcl/4", "metric metric_weight metric_from_epoch"): {
        k: (k, 0.5, 220.0) for k in ("bh_tri", "bdtr", "bicenter", "hc_tri", "adsl")
    },
    ("mun/1", "auxiliary ida_weight idc_weight ia_weight ma_weight"): {
        "b": ("none", 0, 0, 0, 0),
        "aux": ("mun", 1, 0, 0, 0),
        "idc": ("mun", 0, 0.25, 0, 0),
        "idc_ia": ("mun", 0, 0.25, 0.5, 0),
        "idc_ma": ("mun", 0, 0.25, 0, 0.008),
        "all": ("mun", 0, 0.25, 0.5, 0.008),
    },
    ("mun/2", "auxiliary"): {k: (k,) for k in ("x", "mixed", "syncretic", "mun")},
    ("mun/3", "prototypes bridge"): {
        "neither": (False, False),
        "prototype": (True, False),
        "bridge": (False, True),
        "both": (True, True),
    },
    # Table 4: what each row has of L_ip, L_tgsa, L_csa and the two parts of L_mdr.
    ("idkl/4", "purifier tgsa_weight csa_weight mdr_tgsa_weight mdr_csa_weight"): {
        "b": (False, 0, 0, 0, 0),
        "tgsa": (False, 0.6, 0, 0, 0),
        "ip_tgsa": (True, 0.6, 0, 0, 0),
        "ip_csa": (True, 0, 0.8, 0, 0),
        "ip_mdr": (True, 0, 0, 1, 1),
        "all": (True, 0.6, 0.8, 1, 1),
    },
    # Table II: PLM, MFGM, L_ch and L_dcs; table III: the number of prototypes.
    ("pdm/2", "num_prototypes branches ch_weight dcs_weight"): {
        "b": (0, 0, 0, 0),
        "plm": (10, 0, 0, 0),
        "plm_mfgm": (10, 2, 0, 0),
        "plm_mfgm_ch": (10, 2, 0.25, 0),
        "plm_mfgm_dcs": (10, 2, 0, 1),
        "mfgm": (0, 2, 0, 0),
        "all": (10, 2, 0.25, 1),
    },
    ("pdm/3", "num_prototypes branches ch_weight dcs_weight"): {
        n: (int(n), 2, 0.25, 1) for n in ("6", "8", "10", "12")
    },
}


def values(arg, keys):
    method = tables.get_config(arg).method
    return tuple(method[key] for key in keys.split())


def test_rows_are_what_the_papers_say():
    for (table, keys), rows in SETTINGS.items():
        found = {row: values(f"{table}/{row}:sysu", keys) for row in tables.TABLES[table].rows}
        assert found == rows, (table, keys)
    starts = {"smcl/1/ceh_adsl:sysu": 0.0, "smcl/1/it:sysu": 220.0, "smcl/1/it:regdb": 120.0}
    assert {row: values(row, "metric_from_epoch")[0] for row in starts} == starts
    assert values("smcl/1/it:regdb", "id_margin") == (1.0,)
    # Table 5 of MUN has rows of table 1.
    ((_, keys),) = [key for key in SETTINGS if key[0] == "mun/1"]
    same = {"b": "b", "aux": "aux", "idc": "idc", "ia": "idc_ia", "ma": "all"}
    for row, clean in same.items():
        assert values(f"mun/5/{row}:sysu", keys) == SETTINGS["mun/1", keys][clean]


def test_the_sweeps_of_figure_5():
    """One weight runs, the others stay at their best."""
    for place, (table, best) in enumerate({"idkl/5a": 0.1, "idkl/5b": 0.6, "idkl/5c": 0.8}.items()):
        for row, spec in tables.TABLES[table].rows.items():
            expected = [0.1, 0.6, 0.8]
            expected[place] = float(row)
            found = values(f"{table}/{row}:sysu", "ip_weight tgsa_weight csa_weight")
            assert found == tuple(expected)
            assert bool(spec.paper) == (float(row) == best)


# As printed: rank-1 and mAP on SYSU-MM01, then on RegDB; of sweeps the best value's alone.
PRINTED = {
    "smcl/1": """
        b 57.00 55.49 75.77 70.52, ceh 59.97 56.01 77.52 73.40,
        ceh_adsl 63.16 59.92 80.63 73.85, it 67.39 61.78 83.05 78.57
    """,
    "smcl/2": """
        none 57.58 54.69 78.49 76.89, x 62.34 59.33 79.46 73.00, gray 64.23 60.88 74.36 69.41,
        syncretic 67.39 61.78 83.05 78.57
    """,
    "smcl/4": """
        bh_tri 61.53 59.13, bdtr 59.08 56.63, bicenter 60.50 57.09, hc_tri 61.29 57.86,
        adsl 67.39 61.78
    """,
    "mun/1": """
        b 57.49 55.83 75.42 71.93, aux 62.55 58.42 79.26 73.81, idc 66.58 61.29 83.51 79.79,
        idc_ia 71.35 65.54 89.42 84.66, idc_ma 69.77 66.96 89.93 84.02,
        all 76.24 73.81 95.19 87.15
    """,
    "mun/2": """
        x 66.17 63.06 79.95 74.28, mixed 66.42 62.85 79.43 73.09,
        syncretic 72.95 68.74 84.59 79.11, mun 76.24 73.81 95.19 87.15
    """,
    "mun/3": """
        neither 69.02 65.83 80.09 73.97, prototype 74.15 72.10 86.73 77.24,
        bridge 71.66 68.35 83.92 75.54, both 76.24 73.81 95.19 87.15
    """,
    "mun/5": """
        smcl 37.08 36.12 51.93 49.22, b 25.92 23.13 32.05 29.64, aux 30.85 26.54 36.40 31.21,
        idc 31.12 27.44 38.13 32.29, ia 36.78 32.32 45.44 42.89, ma 41.17 38.63 52.69 50.18
    """,
    "idkl/4": """
        b 67.60 66.47, tgsa 68.38 67.30, ip_tgsa 76.40 74.83, ip_csa 76.28 74.34,
        ip_mdr 77.04 75.66, all 81.42 79.85
    """,
    "idkl/5a": "0, 0.1 81.42 79.85, 0.2, 0.4, 0.6, 0.8, 1",
    "idkl/5b": "0, 0.1, 0.2, 0.4, 0.6 81.42 79.85, 0.8, 1",
    "idkl/5c": "0, 0.1, 0.2, 0.4, 0.6, 0.8 81.42 79.85, 1",
    "idkl/presets": "paper, official",
    "pdm/2": """
        b 64.7 62.0, plm 71.6 66.9, plm_mfgm 73.0 70.2, plm_mfgm_ch 75.7 72.2,
        plm_mfgm_dcs 75.6 71.4, mfgm 74.2 70.9, all 79.3 76.3
    """,
    "pdm/3": "6 78.4 75.2, 8 78.6 75.6, 10 79.3 76.3, 12 78.1 75.8",
    "pdm/presets": "code, paper",
    "methods/1": """
        agw 47.50 47.65 70.05 66.37, caj 69.88 66.89 85.03 79.14, deen 74.7 71.8 91.1 85.1,
        smcl 67.39 61.78 83.93 79.83, mun 76.24 73.81 95.19 87.15, idkl 81.42 79.85 94.72 90.19,
        pdm 79.3 76.3
    """,
}


def test_the_tables_have_the_rows_and_numbers_of_the_papers():
    found = {
        (name, row): [n for data in ("sysu", "regdb") for n in spec.paper.get(data, ())]
        for name, table in tables.TABLES.items()
        for row, spec in table.rows.items()
    }
    rows = [(table, row.split()) for table, text in PRINTED.items() for row in text.split(",")]
    expected = {(table, row): [*map(float, numbers)] for table, (row, *numbers) in rows}
    assert found == expected and list(found) == list(expected), "in the papers' order"


def test_the_share_of_the_epochs_follows_their_number():
    for epochs in (10, 300):
        config = tables.get_config("smcl/1/it")
        config.train.epochs = float(epochs)
        assert config.method.metric_from_epoch == pytest.approx(epochs * 220 / 300)
        flat = cells.resolve(f"{cells.RECIPES}:smcl/1/it", [f"--config.train.epochs={epochs}"])
        assert flat["method.metric_from_epoch"] == pytest.approx(epochs * 220 / 300)
    # On real data it is the recipe's own.
    for dataset, start, epochs in (("sysu", 220, 300), ("regdb", 120, 200)):
        config = tables.get_config(f"smcl/1/it:{dataset}")
        assert config.method.metric_from_epoch == start, "to the bit"
        config.train.epochs = 10.0
        assert config.method.metric_from_epoch == pytest.approx(10 * start / epochs)


def test_what_is_not_there_is_refused_with_what_is(monkeypatch):
    for arg, message in (
        (None, r"no table for ''; .* one of smcl/1, .*mun/5, idkl/4"),
        ("smcl/3/b", r"no table for 'smcl/3/b'"),
        ("smcl/1/adsl", r"no row 'adsl' in smcl/1; expected one of b, ceh, ceh_adsl, it"),
        ("smcl/1/b:market", r"no recipe for the data set 'market'"),
        ("idkl/presets/official:market", r"neither a data set nor a preset 'market'"),
        ("idkl/5a/0.3", r"no row '0.3' in idkl/5a; expected one of 0, 0.1, 0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.get_config(arg)
    row = tables.Row("typo", {"method.id_margn": 0.0}, {})
    table = tables.TABLES["smcl/1"]._replace(rows={"typo": row})
    monkeypatch.setitem(tables.TABLES, "smcl/1", table)
    with pytest.raises(KeyError, match="id_margn"):  # a value that the recipe lacks
        tables.get_config("smcl/1/typo")


# Terms of the loss beside those that all rows of a method have.
ALWAYS = {
    "smcl": {"id_visible", "id_infrared"},
    "mun": {"id_visible", "id_infrared"},
    "idkl": {"id_sh", "tri_sh", "confuser", "discriminator"},
    "pdm": {"id_full", "tri"},
}
ADSL, MUN = {"tri_center", "global_center"}, {"tri", "idc", "ia", "ma"}
RAW, IP, MDR = (
    {"id_sp", "tri_sp"},
    {"id_purified", "tri_purified", "enhance", "reduce"},
    {"mdr_tgsa", "mdr_csa"},
)
MFGM = {"cpm", "ort"}
_SYNCRETIC = {"id_syncretic"}
TERMS = {
    # Of weight 0: see SETTINGS.
    "smcl/1": dict.fromkeys(("b", "ceh", "ceh_adsl", "it"), _SYNCRETIC | ADSL),
    "smcl/2": {
        "none": {"global_center"},
        **{kind: {f"id_{kind}", *ADSL} for kind in ("x", "gray", "syncretic")},
    },
    "smcl/4": {
        **{metric: {*_SYNCRETIC, metric} for metric in ("bh_tri", "bdtr", "bicenter", "hc_tri")},
        "adsl": _SYNCRETIC | ADSL,
    },
    "mun/1": {
        "b": {"tri"},
        "aux": {"tri", "ida"},
        "idc": {"tri", "idc"},
        "idc_ia": {"tri", "idc", "ia"},
        "idc_ma": {"tri", "idc", "ma"},
        "all": MUN,
    },
    "mun/2": dict.fromkeys(("x", "mixed", "syncretic", "mun"), MUN),
    "mun/3": dict.fromkeys(("neither", "prototype", "bridge", "both"), MUN),
    "idkl/4": {
        "b": RAW,
        "tgsa": {*RAW, "tgsa"},
        "ip_tgsa": {*RAW, *IP, "tgsa"},
        "ip_csa": {*RAW, *IP, "csa"},
        "ip_mdr": {*RAW, *IP, *MDR},
        "all": {*RAW, *IP, "tgsa", "csa", *MDR},
    },
    "idkl/presets": {
        "paper": {*RAW, *IP, "tgsa", "csa", *MDR},
        "official": {*IP, "tgsa", "csa", *MDR, "csa_block", "mdr_csa_block"},
    },
    "pdm/2": {
        "b": set(),
        "plm": {"id_global"},
        "plm_mfgm": {"id_global", *MFGM},
        "plm_mfgm_ch": {"id_global", *MFGM, "ch"},
        "plm_mfgm_dcs": {"id_global", *MFGM, "dcs"},
        "mfgm": MFGM,
        "all": {"id_global", *MFGM, "ch", "dcs"},
    },
    "pdm/presets": {"code": {"id_global", *MFGM, "ch", "dcs"}, "paper": {"cpm", "ch", "dcs"}},
}


@functools.cache
def traced_terms(options):
    """The terms of a method, {section: value} as JSON so that equal rows are traced once."""
    config = json.loads(options)
    build = get_build(config.pop("name"))
    named = inspect.signature(build).parameters
    facts = {key: value for key, value in FACTS.items() if key in named}
    if "generator_ratios" in config:
        config["generator_ratios"] = tuple(config["generator_ratios"])
    method = build(image_size=(96, 48), **facts, **with_backbone({**config, "width": 2}))
    rows = FACTS["num_ids"] * FACTS["num_instances"]
    image = jax.ShapeDtypeStruct((rows, 96, 48, 3), jnp.float32)
    label = jax.ShapeDtypeStruct((rows,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    _, aux = jax.eval_shape(
        method.loss,
        jax.eval_shape(method.init, key),
        {"visible": image, "infrared": image, "label": label},
        key,
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return set(aux.terms)


@pytest.mark.slow
@pytest.mark.parametrize("table", TERMS)
def test_a_row_trains_with_the_terms_of_the_paper(table):
    for row, terms in TERMS[table].items():
        method = tables.get_config(f"{table}/{row}").method.to_dict()
        found = traced_terms(json.dumps(method, sort_keys=True))
        assert found == ALWAYS[table.split("/")[0]] | terms, f"{table}/{row}"
    assert set(TERMS[table]) == set(tables.TABLES[table].rows)


def test_a_row_is_compared_with_another_of_its_table():
    """Every row but the first of comparison, and never with itself."""
    for name, table in tables.TABLES.items():
        alone = [row for row, spec in table.rows.items() if spec.beside is None]
        assert len(alone) == 1, name
        for row, spec in table.rows.items():
            assert spec.beside is None or (spec.beside in table.rows and spec.beside != row), name
