"""The rows of the ablation tables of the papers: the recipe with a few values changed.

  python -m vireid_jax.main --config configs/tables.py:smcl/1/ceh_adsl        embedded data
  python -m vireid_jax.main --config configs/tables.py:mun/3/both:sysu        SYSU-MM01
  python -m vireid_jax.main --config configs/tables.py:idkl/5a/0.1            a point of a sweep
  python -m vireid_jax.ablation --list                                          all rows
  python -m vireid_jax.ablation smcl/1 mun/3 --seeds 0 1 2                      whole tables

SMCL: Wei et al., ICCV 2021, tables 1, 2 and 4. MUN: ICCV 2023, arXiv 2309.06262, tables 1, 2, 3
and 5. Rows of MUN's table 5 that are other methods (X-Modality, CIL, AGW+J) are left out. IDKL:
CVPR 2024, table 4 and the three sweeps of figure 5, whose axes were not at hand: their values are
ours, and only the best ones, which the text gives, have printed numbers. PDM: ICASSP 2025, tables
II and III. "idkl/presets" and "pdm/presets" are the paper's method beside the released code's,
"methods/1" is every method by its own recipe. "paper" holds rank-1 and mAP in percent as printed,
{"sysu": ..., "regdb": ...}.
"""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

Recipe = Callable[[str | None], ml_collections.ConfigDict]


def _preset(recipe: Recipe, preset: str) -> Recipe:
    return lambda dataset: recipe(f"{dataset},{preset}" if dataset else preset)


def _methods() -> dict[str, Recipe]:
    """The recipes of this folder, each by its name and with each further preset: "pdm,paper"."""
    found: dict[str, Recipe] = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        if path.stem in ("__init__", "common", "tables"):
            continue
        module = importlib.import_module(f"configs.{path.stem}")
        found[path.stem] = module.get_config
        for preset in getattr(module, "PRESETS", ())[1:]:
            found[f"{path.stem},{preset}"] = _preset(module.get_config, preset)
    return found


METHODS: dict[str, Recipe] = _methods()

Paper = dict[str, tuple[float, float]]


class EpochShare(NamedTuple):
    """A value in epochs that stays this share of train.epochs, also when that is changed."""

    share: float | None = None  # None: the share that the recipe's value has of its epochs


class Row(NamedTuple):
    """One row: its name in the paper, and how its recipe differs from the whole method's."""

    label: str
    changes: dict[str, Any]
    paper: Paper
    embedded: dict[str, Any] = {}  # noqa: RUF012  changes on the embedded data, after those above
    method: str | None = None  # of METHODS, another one than the table's


class Table(NamedTuple):
    """One table: what it shows, and where its numbers come from."""

    title: str
    method: str
    rows: dict[str, Row]
    # Data set -> protocol of the numbers, where it is not the first of the recipe's.
    protocols: dict[str, str] = {}  # noqa: RUF012
    corrupt: str | None = None  # eval.corrupt: the table is of corrupted test images


# SMCL -------------------------------------------------------------------------------------------

# The numbers of tables 1 and 2 on RegDB are those of its table 6 for thermal to visible.
_THERMAL_TO_VISIBLE = {"regdb": "regdb/t2v"}
_SMCL = {"sysu": (67.39, 61.78), "regdb": (83.05, 78.57)}

_SMCL_COMPONENTS = {
    "b": Row(
        "B",
        {"method.id_margin": 0.0, "method.metric_weight": 0.0},
        {"sysu": (57.00, 55.49), "regdb": (75.77, 70.52)},
    ),
    "ceh": Row(
        "B + CEHL",
        {"method.metric_weight": 0.0},
        {"sysu": (59.97, 56.01), "regdb": (77.52, 73.40)},
    ),
    "ceh_adsl": Row(
        "B + CEHL + ADSL",
        {"method.metric_from_epoch": 0.0},
        {"sysu": (63.16, 59.92), "regdb": (80.63, 73.85)},
    ),
    # The recipes for real data have Q; the embedded one does without, so it gets the paper's
    # share of the epochs.
    "it": Row(
        "B + CEHL + ADSL + IT",
        {"method.metric_from_epoch": EpochShare()},
        _SMCL,
        embedded={"method.metric_from_epoch": EpochShare(220 / 300)},
    ),
}
_SMCL_AUXILIARY = {
    "none": Row(
        "Nothing",
        {"method.auxiliary": "none"},
        {"sysu": (57.58, 54.69), "regdb": (78.49, 76.89)},
    ),
    "x": Row(
        "X modality",
        {"method.auxiliary": "x"},
        {"sysu": (62.34, 59.33), "regdb": (79.46, 73.00)},
    ),
    "gray": Row(
        "grayscale modality",
        {"method.auxiliary": "gray"},
        {"sysu": (64.23, 60.88), "regdb": (74.36, 69.41)},
    ),
    "syncretic": Row("syncretic modality", {"method.auxiliary": "syncretic"}, _SMCL),
}
# The paper does not say what weight and schedule the others had: those of ADSL.
_SMCL_METRIC = {
    name: Row(label, {"method.metric": name}, {"sysu": numbers})
    for name, label, numbers in (
        ("bh_tri", "L_bh.tri", (61.53, 59.13)),
        ("bdtr", "L_bdtr", (59.08, 56.63)),
        ("bicenter", "L_bicenter", (60.50, 57.09)),
        ("hc_tri", "L_hc.tri", (61.29, 57.86)),
        ("adsl", "L_adsl", (67.39, 61.78)),
    )
}

# MUN --------------------------------------------------------------------------------------------

_MUN = {"sysu": (76.24, 73.81), "regdb": (95.19, 87.15)}
_BASELINE = {
    "method.auxiliary": "none",
    "method.idc_weight": 0.0,
    "method.ia_weight": 0.0,
    "method.ma_weight": 0.0,
}
# The auxiliary features under an identity loss with a classifier of their own.
_AUX = {
    "method.ida_weight": 1.0,
    "method.idc_weight": 0.0,
    "method.ia_weight": 0.0,
    "method.ma_weight": 0.0,
}
_IDC = {"method.ia_weight": 0.0, "method.ma_weight": 0.0}
_IDC_IA = {"method.ma_weight": 0.0}
_IDC_MA = {"method.ia_weight": 0.0}

_MUN_COMPONENTS = {
    "b": Row("B", _BASELINE, {"sysu": (57.49, 55.83), "regdb": (75.42, 71.93)}),
    "aux": Row("B + Aux", _AUX, {"sysu": (62.55, 58.42), "regdb": (79.26, 73.81)}),
    "idc": Row("B + Aux + L_idc", _IDC, {"sysu": (66.58, 61.29), "regdb": (83.51, 79.79)}),
    "idc_ia": Row(
        "B + Aux + L_idc + L_ia", _IDC_IA, {"sysu": (71.35, 65.54), "regdb": (89.42, 84.66)}
    ),
    "idc_ma": Row(
        "B + Aux + L_idc + L_ma", _IDC_MA, {"sysu": (69.77, 66.96), "regdb": (89.93, 84.02)}
    ),
    "all": Row("B + Aux + L_idc + L_ia + L_ma", {}, _MUN),
}
_MUN_AUXILIARY = {
    "x": Row(
        "X-modality",
        {"method.auxiliary": "x"},
        {"sysu": (66.17, 63.06), "regdb": (79.95, 74.28)},
    ),
    "mixed": Row(
        "Mixed modality",
        {"method.auxiliary": "mixed"},
        {"sysu": (66.42, 62.85), "regdb": (79.43, 73.09)},
    ),
    "syncretic": Row(
        "Syncretic modality",
        {"method.auxiliary": "syncretic"},
        {"sysu": (72.95, 68.74), "regdb": (84.59, 79.11)},
    ),
    "mun": Row("Auxiliary modality (MUN)", {"method.auxiliary": "mun"}, _MUN),
}
_MUN_ALIGNMENT = {
    "neither": Row(
        "neither",
        {"method.prototypes": "none", "method.bridge": False},
        {"sysu": (69.02, 65.83), "regdb": (80.09, 73.97)},
    ),
    "prototype": Row(
        "prototype",
        {"method.bridge": False},
        {"sysu": (74.15, 72.10), "regdb": (86.73, 77.24)},
    ),
    "bridge": Row(
        "auxiliary bridge",
        {"method.prototypes": "none"},
        {"sysu": (71.66, 68.35), "regdb": (83.92, 75.54)},
    ),
    "both": Row("prototype + auxiliary bridge", {}, _MUN),
}
_MUN_CORRUPTED = {
    "smcl": Row("SMCL", {}, {"sysu": (37.08, 36.12), "regdb": (51.93, 49.22)}, method="smcl"),
    "b": Row("B", _BASELINE, {"sysu": (25.92, 23.13), "regdb": (32.05, 29.64)}),
    "aux": Row("B + Aux + L_id^a", _AUX, {"sysu": (30.85, 26.54), "regdb": (36.40, 31.21)}),
    "idc": Row("B + Aux + L_idc", _IDC, {"sysu": (31.12, 27.44), "regdb": (38.13, 32.29)}),
    "ia": Row("B + Aux + L_idc + L_ia", _IDC_IA, {"sysu": (36.78, 32.32), "regdb": (45.44, 42.89)}),
    "ma": Row(
        "B + Aux + L_idc + L_ia + L_ma", {}, {"sysu": (41.17, 38.63), "regdb": (52.69, 50.18)}
    ),
}

# IDKL -------------------------------------------------------------------------------------------

_IDKL = {"sysu": (81.42, 79.85)}
# What the rows of table 4 do without. Without L_ip there is no purifier: F~ = F.
_NO_IP = {"method.purify_form": "none"}
_NO_TGSA = {"method.tgsa_weight": 0.0}
_NO_CSA = {"method.csa_weight": 0.0}
_NO_MDR = {"method.mdr_tgsa_weight": 0.0, "method.mdr_csa_weight": 0.0}

_IDKL_COMPONENTS = {
    "b": Row("L_b", _NO_IP | _NO_TGSA | _NO_CSA | _NO_MDR, {"sysu": (67.60, 66.47)}),
    "tgsa": Row("L_b + L_tgsa", _NO_IP | _NO_CSA | _NO_MDR, {"sysu": (68.38, 67.30)}),
    "ip_tgsa": Row("L_b + L_ip + L_tgsa", _NO_CSA | _NO_MDR, {"sysu": (76.40, 74.83)}),
    "ip_csa": Row("L_b + L_ip + L_csa", _NO_TGSA | _NO_MDR, {"sysu": (76.28, 74.34)}),
    "ip_mdr": Row("L_b + L_ip + L_mdr", _NO_TGSA | _NO_CSA, {"sysu": (77.04, 75.66)}),
    "all": Row("L_b + L_ip + L_tgsa + L_csa + L_mdr", {}, _IDKL),
}


def _sweep(symbol: str, option: str, best: float) -> dict[str, Row]:
    """One row for each value of one weight; at the paper's best the numbers of the whole method."""
    return {
        f"{value:g}": Row(
            f"{symbol} = {value:g}", {f"method.{option}": value}, _IDKL if value == best else {}
        )
        for value in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    }


# No printed numbers: the paper's are of neither preset for certain (docs/idkl.md).
_IDKL_PRESETS = {
    "paper": Row("paper", {}, {}),
    "official": Row("released code", {}, {}, method="idkl,official"),
}

# PDM --------------------------------------------------------------------------------------------

_PDM = {"sysu": (79.3, 76.3)}
# The paper does not say what its baseline has; here it is all that table II does not name: both
# stems, aggregation blocks, gate, and the identity and triplet losses.
_NO_MFGM = {"method.branches": 0}
_NO_PLM = {"method.num_prototypes": 0}
_NO_CH = {"method.ch_weight": 0.0}
_NO_DCS = {"method.dcs_weight": 0.0}

_PDM_COMPONENTS = {
    "b": Row("baseline", _NO_MFGM | _NO_PLM | _NO_CH | _NO_DCS, {"sysu": (64.7, 62.0)}),
    "plm": Row("PLM", _NO_MFGM | _NO_CH | _NO_DCS, {"sysu": (71.6, 66.9)}),
    "plm_mfgm": Row("PLM + MFGM", _NO_CH | _NO_DCS, {"sysu": (73.0, 70.2)}),
    "plm_mfgm_ch": Row("PLM + MFGM + L_ch", _NO_DCS, {"sysu": (75.7, 72.2)}),
    "plm_mfgm_dcs": Row("PLM + MFGM + L_dcs", _NO_CH, {"sysu": (75.6, 71.4)}),
    "mfgm": Row("MFGM", _NO_PLM | _NO_CH | _NO_DCS, {"sysu": (74.2, 70.9)}),
    "all": Row("PLM + MFGM + L_ch + L_dcs", {}, _PDM),
}
_PDM_PROTOTYPES = {
    str(m): Row(f"m = {m}", {"method.num_prototypes": m}, {"sysu": numbers})
    for m, numbers in ((6, (78.4, 75.2)), (8, (78.6, 75.6)), (10, (79.3, 76.3)), (12, (78.1, 75.8)))
}
# As of idkl/presets; the code's is presumably what was measured, which nobody has shown.
_PDM_PRESETS = {
    "code": Row("released code", {}, {}),
    "paper": Row("paper", {}, {}, method="pdm,paper"),
}

# All ------------------------------------------------------------------------------------------

# Each paper's own numbers, of recipes, sizes and batches that differ. DEEN's are those that other
# papers cite, AGW's and CAJ's of their authors' code; RegDB's are visible to infrared.
_METHODS = {
    "agw": Row("AGW", {}, {"sysu": (47.50, 47.65), "regdb": (70.05, 66.37)}, method="agw"),
    "caj": Row("CAJ", {}, {"sysu": (69.88, 66.89), "regdb": (85.03, 79.14)}, method="agw,caj"),
    "deen": Row("DEEN", {}, {"sysu": (74.7, 71.8), "regdb": (91.1, 85.1)}, method="deen"),
    "smcl": Row("SMCL", {}, {"sysu": (67.39, 61.78), "regdb": (83.93, 79.83)}, method="smcl"),
    "mun": Row("MUN", {}, _MUN, method="mun"),
    "idkl": Row("IDKL", {}, {"sysu": (81.42, 79.85), "regdb": (94.72, 90.19)}, method="idkl"),
    "pdm": Row("PDM", {}, _PDM, method="pdm"),
}

TABLES = {
    "smcl/1": Table("components of SMCL", "smcl", _SMCL_COMPONENTS, _THERMAL_TO_VISIBLE),
    "smcl/2": Table("auxiliary modalities in SMCL", "smcl", _SMCL_AUXILIARY, _THERMAL_TO_VISIBLE),
    "smcl/4": Table("metric losses in SMCL", "smcl", _SMCL_METRIC, _THERMAL_TO_VISIBLE),
    "mun/1": Table("components of MUN", "mun", _MUN_COMPONENTS),
    "mun/2": Table("intermediate modalities in MUN", "mun", _MUN_AUXILIARY),
    # Its rows of one scheme are taken to stand in the order of the two columns.
    "mun/3": Table("prototypes and auxiliary bridge in MUN's L_ma", "mun", _MUN_ALIGNMENT),
    # The benchmark corrupts RegDB's visible queries, SYSU-MM01's visible gallery.
    "mun/5": Table("corrupted visible test images", "mun", _MUN_CORRUPTED, corrupt="visible"),
    "idkl/4": Table("components of IDKL", "idkl", _IDKL_COMPONENTS),
    # L_reid(f~), which eq. 21 has under lambda_1 too, keeps its weight, method.purified_weight.
    "idkl/5a": Table(
        "lambda_1 of IDKL, weight of L_e and L_r", "idkl", _sweep("lambda_1", "ip_weight", 0.1)
    ),
    "idkl/5b": Table(
        "lambda_2 of IDKL, weight of L_tgsa", "idkl", _sweep("lambda_2", "tgsa_weight", 0.6)
    ),
    "idkl/5c": Table(
        "lambda_3 of IDKL, weight of L_csa", "idkl", _sweep("lambda_3", "csa_weight", 0.8)
    ),
    "idkl/presets": Table("IDKL as printed and as released", "idkl", _IDKL_PRESETS),
    "pdm/2": Table("components of PDM", "pdm", _PDM_COMPONENTS),
    "pdm/3": Table("number of prototypes in PDM", "pdm", _PDM_PROTOTYPES),
    "pdm/presets": Table("PDM as released and as printed", "pdm", _PDM_PRESETS),
    "methods/1": Table("all methods, each by its own recipe", "agw", _METHODS),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The recipe of TABLE/ROW or TABLE/ROW:DATASET, such as "smcl/1/b" or "mun/3/both:sysu".

    Raises:
      ValueError: no such table, row or data set; the message lists what there is.
      KeyError: a row changes a value that the recipe does not have.
    """
    name, _, dataset = (arg or "").partition(":")
    table_name, _, row_name = name.rpartition("/")
    if table_name not in TABLES:
        raise ValueError(
            f"no table for {name!r}; expected --config configs/tables.py:TABLE/ROW or "
            f"TABLE/ROW:DATASET with TABLE one of {', '.join(TABLES)}"
        )
    table = TABLES[table_name]
    if row_name not in table.rows:
        raise ValueError(
            f"no row {row_name!r} in {table_name}; expected one of {', '.join(table.rows)}"
        )
    row = table.rows[row_name]
    config = METHODS[row.method or table.method](dataset)
    laptop = config.data.name == "synthetic"
    for key, value in {**row.changes, **(row.embedded if laptop else {})}.items():
        section, option = key.split(".")
        if option not in config[section]:
            raise KeyError(f"{name} changes {key}, which the recipe does not have")
        if isinstance(value, EpochShare):
            epochs = config.train.get_ref("epochs")
            if value.share is None:  # in this order, which leaves the recipe's value as it is
                value = epochs / config.train.epochs * config[section][option]
            else:
                value = epochs * value.share
        config[section][option] = value
    config.run_name = f"{name.replace('/', '-')}_{config.data.name}"
    return config
