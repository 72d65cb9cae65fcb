"""SMCL: Syncretic Modality Collaborative Learning (Wei et al., ICCV 2021).

A generator (SMGM) merges a visible and an infrared image of one identity into a third,
"syncretic" image. One ResNet, shared by all three modalities, is trained with a softmax
loss that is made harder for infrared (CEHL) and, from a late epoch on (incremental
training, IT), with distances between the identity centers of the modalities (ADSL). At
test time an image of either modality passes the backbone alone.

    term             equation  function              weight in the total (eq. 9)
    id_visible       2         cross_entropy         1
    id_infrared      3         cross_entropy         1, margin m on the true logit
    id_syncretic     2         cross_entropy         1
    tri_center       6         tri_center_loss       lambda, from epoch Q on
    global_center    7         global_center_loss    lambda, from epoch Q on

What the paper compares these with are options. `auxiliary` (table 2) takes another third
modality: id_syncretic is then id_x, id_gray, ..., and eq. 6 has its centers. `metric` puts a loss
of `TABLE_4`, of visible and infrared features, in the place of eqs. 6 and 7.

No code was released. docs/fidelity.md says how the paper is read where it leaves something open.

Symbols: g pooled features, f features after the BN neck, v / i / s the modalities.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vireid_jax.losses.distance import unit, wide
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.smcl import losses
from vireid_jax.methods.smcl.net import SMCLNet
from vireid_jax.nets import auxiliary as images_of
from vireid_jax.types import (
    AUXILIARY,
    INFRARED,
    VISIBLE,
    Aux,
    Batch,
    Method,
    Variables,
    epochs_to_steps,
)

KINDS = ("none", *images_of.IMAGE_KINDS)
TABLE_4: dict[str, Callable[..., Any]] = {
    "bh_tri": batch_hard_triplet,
    "bdtr": losses.bdtr,
    "bicenter": losses.bi_center,
    "hc_tri": losses.hetero_center_triplet,
}
METRICS = ("adsl", *TABLE_4)


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    steps_per_epoch: int,
    backbone: Backbone = Backbone(),
    auxiliary: str = "syncretic",
    smgm_width: int = 16,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    id_margin: float = 4.0,
    metric: str = "adsl",
    center_margin: float = 0.3,
    normalize_centers: bool = False,
    triplet_margin: float = 0.3,
    bicenter_margin: float = 0.5,
    metric_weight: float = 0.5,
    metric_from_epoch: float = 220.0,
) -> Method:
    """SMCL as a `Method`; the defaults are the paper's recipe for SYSU-MM01.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width).
      steps_per_epoch: turns `metric_from_epoch` into a step.
      backbone: see `common.Backbone`.
      auxiliary: the third modality (table 2), see `nets.auxiliary`: "syncretic", "x", "gray" or
        "mixed" images; or "none", where eq. 7 alone is left of eq. 8.
      smgm_width, smgm_init, smgm_input: of "syncretic", see `nets.auxiliary.SMGM`.
      id_margin: m of eq. 3, in logits: 4 on SYSU-MM01, 1 on RegDB, 0 is plain softmax.
      metric: "adsl" (eq. 8), or what table 4 compares it with: "bh_tri", "bdtr", "bicenter" or
        "hc_tri" of the features g of v and i. The paper does not give their weight and epoch;
        here they are those of eq. 8.
      center_margin: rho of eq. 6.
      normalize_centers: unit-length centers in eqs. 6 and 7, unit-length features in the other
        metric losses; the paper states none.
      triplet_margin: of "bh_tri" and "hc_tri".
      bicenter_margin: of "bicenter".
      metric_weight: lambda of eq. 9.
      metric_from_epoch: Q of Algorithm 1, counted from 0: 220 of 300 epochs on SYSU-MM01,
        120 of 200 on RegDB; 0 trains with the metric losses from the start (no IT).

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    margins = ("id_margin", "center_margin", "triplet_margin", "bicenter_margin")
    numbers = (*margins, "metric_weight", "metric_from_epoch")
    common.check(locals(), choices={"metric": METRICS}, not_negative=numbers)
    smgm: dict[str, Any] = dict(smgm_width=smgm_width, smgm_init=smgm_init, smgm_input=smgm_input)
    images_of.check(auxiliary, KINDS, **smgm)
    net = SMCLNet(num_classes, backbone.resnet_options(), auxiliary, smgm)
    start = epochs_to_steps(metric_from_epoch, steps_per_epoch)  # Q
    of_metric = {
        "bh_tri": dict(margin=triplet_margin),
        "hc_tri": dict(margin=triplet_margin),
        "bicenter": dict(margin=bicenter_margin),
    }.get(metric, {})

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        images = [batch["visible"], batch["infrared"]]
        out, updates = common.train_pass(net, backbone, variables, images, key)
        g, logits, labels = out["pool"], out["logits"], batch["label"]
        names = {"visible": VISIBLE, "infrared": INFRARED}
        identity = {
            "id_visible": cross_entropy(logits[:, VISIBLE], labels),  # eq. 2
            "id_infrared": cross_entropy(logits[:, INFRARED], labels, margin=id_margin),  # eq. 3
        }
        if auxiliary != "none":
            names[auxiliary] = AUXILIARY
            identity[f"id_{auxiliary}"] = cross_entropy(logits[:, AUXILIARY], labels)  # eq. 2
        metrics = {}
        if metric == "adsl":  # eq. 8
            if auxiliary != "none":
                metrics["tri_center"] = losses.tri_center_loss(  # eq. 6
                    g, labels, margin=center_margin, normalize=normalize_centers
                )
            metrics["global_center"] = losses.global_center_loss(  # eq. 7
                g, labels, normalize=normalize_centers
            )
        else:  # table 4
            pair = unit(g[:, :2]) if normalize_centers else wide(g[:, :2])
            metrics[metric] = TABLE_4[metric](pair, labels, **of_metric)
        # Algorithm 1: eq. 4 before epoch Q, eq. 9 from it on.
        total = sum(identity.values())
        later: Any = sum(metric_weight * term for term in metrics.values())
        total += jnp.where(step >= start, later, 0.0)
        scalars = {f"accuracy_{name}": accuracy(logits[:, m], labels) for name, m in names.items()}
        if "auxiliary" in out:
            scalars["auxiliary_std"] = wide(out["auxiliary"]).std()
        return total, Aux({**identity, **metrics}, dict(updates), scalars)

    return Method(common.initialize(net, image_size), loss, common.embed(net))
