"""What the references give for the cases of `cases_metric`."""

from collections.abc import Callable
from functools import partial

import torch

from . import metric
from .case import Arrays, Case
from .running import loss


def _of_features(function: Callable[..., torch.Tensor], case: Case) -> Arrays:
    return loss(case, function, "features", "labels")


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    "batch_hard_triplet": partial(_of_features, metric.batch_hard_triplet),
    "weighted_regularized_triplet": partial(_of_features, metric.weighted_regularized_triplet),
    "bdtr": partial(_of_features, metric.bdtr),
    "bi_center": partial(_of_features, metric.bi_center),
    "hetero_center_triplet": partial(_of_features, metric.hetero_center_triplet),
    "mmd": lambda case: loss(case, metric.mmd, "x", "y"),
}
