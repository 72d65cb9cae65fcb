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
from typing import Any, NamedTuple

import ml_collections

# The recipe of every method: all other files of this folder.
METHODS = {
    path.stem: importlib.import_module(f"configs.{path.stem}")
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "common", "tables")
}
Numbers = tuple[float, float]  # rank-1 and mAP in percent, as printed


class EpochShare(NamedTuple):
    """A value in epochs that stays this share of train.epochs, also when that is changed."""

    share: float | None = None  # None: the share that the recipe's value has of its epochs


class Row(NamedTuple):
    """One row: its name in the paper, and how its recipe differs from the whole method's."""

    label: str
    changes: dict[str, Any]
    paper: dict[str, Numbers]
    embedded: dict[str, Any] = {}  # noqa: RUF012  changes on the embedded data, after those above
    method: str | None = None  # METHOD or METHOD,PRESET: another one than the table's
    beside: str | None = None  # the row that shows what the difference between them does


class Table(NamedTuple):
    """One table: what it shows, and where its numbers come from."""

    title: str
    method: str
    rows: dict[str, Row]
    # Data set -> protocol of the numbers, where it is not the first of the recipe's.
    protocols: dict[str, str] = {}  # noqa: RUF012
    corrupt: str | None = None  # eval.corrupt: the table is of corrupted test images


_Changes = dict[str, Any]


def _row(
    label: str,
    sysu: Numbers | None = None,
    regdb: Numbers | None = None,
    *,
    method: str | None = None,
    embedded: dict[str, Any] | None = None,
    beside: str | None = None,
    **changes: Any,
) -> Row:
    """A row as printed: label, numbers; then the options of the method that it changes."""
    paper = {name: n for name, n in (("sysu", sysu), ("regdb", regdb)) if n is not None}
    of_method = [
        {f"method.{k}": v for k, v in found.items()} for found in (changes, embedded or {})
    ]
    return Row(label, of_method[0], paper, of_method[1], method, beside)


# SMCL -------------------------------------------------------------------------------------------

# The numbers of tables 1 and 2 on RegDB are those of its table 6 for thermal to visible.
_THERMAL_TO_VISIBLE = {"regdb": "regdb/t2v"}
_SMCL = ((67.39, 61.78), (83.05, 78.57))

# The recipes for real data have IT; the embedded one does without, so it gets the paper's share
# of the epochs.
_IT: _Changes = {
    "metric_from_epoch": EpochShare(),
    "embedded": {"metric_from_epoch": EpochShare(220 / 300)},
}

_SMCL_1 = {
    "b": _row("B", (57.00, 55.49), (75.77, 70.52), id_margin=0.0, metric_weight=0.0),
    "ceh": _row("B + CEHL", (59.97, 56.01), (77.52, 73.40), metric_weight=0.0, beside="b"),
    "ceh_adsl": _row(
        "B + CEHL + ADSL", (63.16, 59.92), (80.63, 73.85), metric_from_epoch=0.0, beside="ceh"
    ),
    "it": _row("B + CEHL + ADSL + IT", *_SMCL, **_IT, beside="ceh_adsl"),
}
_SMCL_2 = {
    "none": _row("Nothing", (57.58, 54.69), (78.49, 76.89), auxiliary="none"),
    "x": _row("X modality", (62.34, 59.33), (79.46, 73.00), auxiliary="x", beside="none"),
    "gray": _row(
        "grayscale modality", (64.23, 60.88), (74.36, 69.41), auxiliary="gray", beside="none"
    ),
    "syncretic": _row("syncretic modality", *_SMCL, auxiliary="syncretic", beside="none"),
}
# The paper does not say what weight and schedule the others had: those of ADSL.
_SMCL_4 = {
    "bh_tri": _row("L_bh.tri", (61.53, 59.13), metric="bh_tri", beside="adsl"),
    "bdtr": _row("L_bdtr", (59.08, 56.63), metric="bdtr", beside="adsl"),
    "bicenter": _row("L_bicenter", (60.50, 57.09), metric="bicenter", beside="adsl"),
    "hc_tri": _row("L_hc.tri", (61.29, 57.86), metric="hc_tri", beside="adsl"),
    "adsl": _row("L_adsl", (67.39, 61.78), metric="adsl"),
}

# MUN --------------------------------------------------------------------------------------------

_MUN = ((76.24, 73.81), (95.19, 87.15))
_NO_IA: _Changes = {"ia_weight": 0.0}
_NO_MA: _Changes = {"ma_weight": 0.0}
_NO_IDC: _Changes = {"idc_weight": 0.0, **_NO_IA, **_NO_MA}
_NO_AUX: _Changes = {"auxiliary": "none", **_NO_IDC}
# The auxiliary features under an identity loss with a classifier of their own.
_AUX: _Changes = {"ida_weight": 1.0, **_NO_IDC}

_MUN_1 = {
    "b": _row("B", (57.49, 55.83), (75.42, 71.93), **_NO_AUX),
    "aux": _row("B + Aux", (62.55, 58.42), (79.26, 73.81), **_AUX, beside="b"),
    "idc": _row(
        "B + Aux + L_idc", (66.58, 61.29), (83.51, 79.79), **_NO_IA, **_NO_MA, beside="aux"
    ),
    "idc_ia": _row(
        "B + Aux + L_idc + L_ia", (71.35, 65.54), (89.42, 84.66), **_NO_MA, beside="idc"
    ),
    "idc_ma": _row(
        "B + Aux + L_idc + L_ma", (69.77, 66.96), (89.93, 84.02), **_NO_IA, beside="idc"
    ),
    "all": _row("B + Aux + L_idc + L_ia + L_ma", *_MUN, beside="b"),
}
_MUN_2 = {
    "x": _row("X-modality", (66.17, 63.06), (79.95, 74.28), auxiliary="x", beside="mun"),
    "mixed": _row(
        "Mixed modality", (66.42, 62.85), (79.43, 73.09), auxiliary="mixed", beside="mun"
    ),
    "syncretic": _row(
        "Syncretic modality", (72.95, 68.74), (84.59, 79.11), auxiliary="syncretic", beside="mun"
    ),
    "mun": _row("Auxiliary modality (MUN)", *_MUN, auxiliary="mun"),
}
# Its rows of one scheme are taken to stand in the order of the two columns.
_MUN_3 = {
    "neither": _row("neither", (69.02, 65.83), (80.09, 73.97), prototypes=False, bridge=False),
    "prototype": _row("prototype", (74.15, 72.10), (86.73, 77.24), bridge=False, beside="neither"),
    "bridge": _row(
        "auxiliary bridge", (71.66, 68.35), (83.92, 75.54), prototypes=False, beside="neither"
    ),
    "both": _row("prototype + auxiliary bridge", *_MUN, beside="neither"),
}
_MUN_5 = {
    "smcl": _row("SMCL", (37.08, 36.12), (51.93, 49.22), method="smcl", beside="b"),
    "b": _row("B", (25.92, 23.13), (32.05, 29.64), **_NO_AUX),
    "aux": _row("B + Aux + L_id^a", (30.85, 26.54), (36.40, 31.21), **_AUX, beside="b"),
    "idc": _row(
        "B + Aux + L_idc", (31.12, 27.44), (38.13, 32.29), **_NO_IA, **_NO_MA, beside="aux"
    ),
    "ia": _row("B + Aux + L_idc + L_ia", (36.78, 32.32), (45.44, 42.89), **_NO_MA, beside="idc"),
    "ma": _row("B + Aux + L_idc + L_ia + L_ma", (41.17, 38.63), (52.69, 50.18), beside="b"),
}

# IDKL -------------------------------------------------------------------------------------------

_IDKL = (81.42, 79.85)
# What the rows of table 4 do without. Without L_ip there is no purifier: F~ = F.
_NO_IP: _Changes = {"purifier": False}
_NO_TGSA: _Changes = {"tgsa_weight": 0.0}
_NO_CSA: _Changes = {"csa_weight": 0.0}
_NO_MDR: _Changes = {"mdr_tgsa_weight": 0.0, "mdr_csa_weight": 0.0}

_IDKL_4 = {
    "b": _row("L_b", (67.60, 66.47), **_NO_IP, **_NO_TGSA, **_NO_CSA, **_NO_MDR),
    "tgsa": _row("L_b + L_tgsa", (68.38, 67.30), **_NO_IP, **_NO_CSA, **_NO_MDR, beside="b"),
    "ip_tgsa": _row("L_b + L_ip + L_tgsa", (76.40, 74.83), **_NO_CSA, **_NO_MDR, beside="tgsa"),
    "ip_csa": _row("L_b + L_ip + L_csa", (76.28, 74.34), **_NO_TGSA, **_NO_MDR, beside="b"),
    "ip_mdr": _row("L_b + L_ip + L_mdr", (77.04, 75.66), **_NO_TGSA, **_NO_CSA, beside="b"),
    "all": _row("L_b + L_ip + L_tgsa + L_csa + L_mdr", _IDKL, beside="b"),
}


def _sweep(symbol: str, option: str, best: float) -> dict[str, Row]:
    """One row for each value of one weight; at the paper's best the numbers of the whole method."""
    rows = {}
    for value in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0):
        change: _Changes = {option: value}
        printed = _IDKL if value == best else None
        beside = "0" if value else None
        rows[f"{value:g}"] = _row(f"{symbol} = {value:g}", printed, beside=beside, **change)
    return rows


# No printed numbers: the paper's are of neither preset for certain (docs/idkl.md).
_IDKL_PRESETS = {
    "paper": _row("paper"),
    "official": _row("released code", method="idkl,official", beside="paper"),
}

# PDM --------------------------------------------------------------------------------------------

_PDM = (79.3, 76.3)
# The paper does not say what its baseline has; here it is all that table II does not name: both
# stems, aggregation blocks, gate, and the identity and triplet losses.
_NO_MFGM: _Changes = {"branches": 0}
_NO_PLM: _Changes = {"num_prototypes": 0}
_NO_CH: _Changes = {"ch_weight": 0.0}
_NO_DCS: _Changes = {"dcs_weight": 0.0}

_PDM_2 = {
    "b": _row("baseline", (64.7, 62.0), **_NO_MFGM, **_NO_PLM, **_NO_CH, **_NO_DCS),
    "plm": _row("PLM", (71.6, 66.9), **_NO_MFGM, **_NO_CH, **_NO_DCS, beside="b"),
    "plm_mfgm": _row("PLM + MFGM", (73.0, 70.2), **_NO_CH, **_NO_DCS, beside="plm"),
    "plm_mfgm_ch": _row("PLM + MFGM + L_ch", (75.7, 72.2), **_NO_DCS, beside="plm_mfgm"),
    "plm_mfgm_dcs": _row("PLM + MFGM + L_dcs", (75.6, 71.4), **_NO_CH, beside="plm_mfgm"),
    "mfgm": _row("MFGM", (74.2, 70.9), **_NO_PLM, **_NO_CH, **_NO_DCS, beside="b"),
    "all": _row("PLM + MFGM + L_ch + L_dcs", _PDM, beside="b"),
}
_PDM_3 = {
    "6": _row("m = 6", (78.4, 75.2), num_prototypes=6, beside="10"),
    "8": _row("m = 8", (78.6, 75.6), num_prototypes=8, beside="10"),
    "10": _row("m = 10", (79.3, 76.3), num_prototypes=10),
    "12": _row("m = 12", (78.1, 75.8), num_prototypes=12, beside="10"),
}
# As of idkl/presets; the code's is presumably what was measured, which nobody has shown.
_PDM_PRESETS = {
    "code": _row("released code"),
    "paper": _row("paper", method="pdm,paper", beside="code"),
}

# All --------------------------------------------------------------------------------------------

# Each paper's own numbers, of recipes, sizes and batches that differ. DEEN's are those that other
# papers cite, AGW's and CAJ's of their authors' code; RegDB's are visible to infrared.
_METHODS = {
    "agw": _row("AGW", (47.50, 47.65), (70.05, 66.37), method="agw"),
    "caj": _row("CAJ", (69.88, 66.89), (85.03, 79.14), method="agw,caj", beside="agw"),
    "deen": _row("DEEN", (74.7, 71.8), (91.1, 85.1), method="deen", beside="agw"),
    "smcl": _row("SMCL", (67.39, 61.78), (83.93, 79.83), method="smcl", beside="agw"),
    "mun": _row("MUN", *_MUN, method="mun", beside="agw"),
    "idkl": _row("IDKL", (81.42, 79.85), (94.72, 90.19), method="idkl", beside="agw"),
    "pdm": _row("PDM", _PDM, method="pdm", beside="agw"),
}

TABLES = {
    "smcl/1": Table("components of SMCL", "smcl", _SMCL_1, _THERMAL_TO_VISIBLE),
    "smcl/2": Table("auxiliary modalities in SMCL", "smcl", _SMCL_2, _THERMAL_TO_VISIBLE),
    "smcl/4": Table("metric losses in SMCL", "smcl", _SMCL_4, _THERMAL_TO_VISIBLE),
    "mun/1": Table("components of MUN", "mun", _MUN_1),
    "mun/2": Table("intermediate modalities in MUN", "mun", _MUN_2),
    "mun/3": Table("prototypes and auxiliary bridge in MUN's L_ma", "mun", _MUN_3),
    # The benchmark corrupts RegDB's visible queries, SYSU-MM01's visible gallery.
    "mun/5": Table("corrupted visible test images", "mun", _MUN_5, corrupt="visible"),
    "idkl/4": Table("components of IDKL", "idkl", _IDKL_4),
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
    "pdm/2": Table("components of PDM", "pdm", _PDM_2),
    "pdm/3": Table("number of prototypes in PDM", "pdm", _PDM_3),
    "pdm/presets": Table("PDM as released and as printed", "pdm", _PDM_PRESETS),
    "methods/1": Table("all methods, each by its own recipe", "agw", _METHODS),
}


def recipe(method: str, dataset: str | None) -> ml_collections.ConfigDict:
    """The recipe of METHOD or METHOD,PRESET for a data set."""
    name, _, preset = method.partition(",")
    return METHODS[name].get_config(",".join(filter(None, (dataset, preset))) or None)


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
    config = recipe(row.method or table.method, dataset)
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
    config.run_name = f"{name.replace('/', '-')}-{config.data.name}"
    return config
