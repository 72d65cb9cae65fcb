"""Cases of the metric losses and the MMD."""

from collections.abc import Callable

from .case import Arrays, Case, features, labels, normal

_KINDS = (
    "batch_hard_triplet",
    "weighted_regularized_triplet",
    "bdtr",
    "bi_center",
    "hetero_center_triplet",
)


def _batch(case: Case) -> Arrays:
    """Rows [B, M, D]; with `uneven` the persons have 3, 2, 4, ... rows, not adjacent."""
    s = case.shape
    x = features(case.name, s["ids"], s["instances"], s["modalities"], s["width"])
    y = labels(s["ids"], s["instances"])
    if s.get("uneven"):
        order = normal(case.name, "order", (len(y),)).argsort()[: len(y) - 3]
        x, y = x[order], y[order]
    return {"features": x, "labels": y}


def _sets(case: Case) -> Arrays:
    """Two stacks of sets of rows, of unequal means and spreads."""
    x = normal(case.name, "x", case.shape["rows"])
    y = normal(case.name, "y", case.shape["rows"], 1.5) + normal(
        case.name, "mean", case.shape["rows"][-1:]
    )
    return {"x": x, "y": y}


_TWO = {"ids": 4, "instances": 3, "modalities": 2, "width": 16}
_THREE = {**_TWO, "modalities": 3}
_UNEVEN = {**_TWO, "uneven": True}
_SINGLE = {**_TWO, "instances": 1}

CASES = [
    Case("metric_hard", "batch_hard_triplet", shape=_TWO),
    Case("metric_hard_three", "batch_hard_triplet", {"margin": 2.0}, _THREE),
    Case("metric_hard_uneven", "batch_hard_triplet", shape=_UNEVEN),
    Case("metric_weighted", "weighted_regularized_triplet", shape=_TWO),
    Case("metric_weighted_three", "weighted_regularized_triplet", shape=_THREE),
    Case("metric_weighted_uneven", "weighted_regularized_triplet", shape=_UNEVEN),
    Case("metric_bdtr", "bdtr", shape=_TWO),
    Case("metric_bdtr_active", "bdtr", {"intra_margin": 1.5, "intra_weight": 0.7}, _UNEVEN),
    Case("metric_bdtr_single", "bdtr", {"intra_margin": 1.3}, _SINGLE),
    Case("metric_bicenter", "bi_center", shape=_TWO),
    Case("metric_bicenter_uneven", "bi_center", {"margin": 2.0}, _UNEVEN),
    Case("metric_hc_tri", "hetero_center_triplet", shape=_TWO),
    Case("metric_hc_tri_three", "hetero_center_triplet", {"margin": 1.0}, _THREE),
    Case("metric_hc_tri_uneven", "hetero_center_triplet", {"margin": 2.0}, _UNEVEN),
    Case("metric_mmd", "mmd", shape={"rows": (3, 4, 16)}),
    Case("metric_mmd_one", "mmd", shape={"rows": (1, 16)}),
]

INPUTS: dict[str, Callable[[Case], Arrays]] = {**dict.fromkeys(_KINDS, _batch), "mmd": _sets}
