"""SMCL: Syncretic Modality Collaborative Learning (Wei et al., ICCV 2021).

A generator (SMGM) merges a visible and an infrared image of one identity into a third,
"syncretic" image. One ResNet, shared by all three modalities, is trained with a softmax
loss that is made harder for infrared (CEHL) and, from a late epoch on (incremental
training, IT), with distances between the identity centers of the modalities (ADSL). At
test time an image of either modality passes the backbone alone.

  term             equation  function                      weight in the total (eq. 9)
  id_visible       2         losses.cross_entropy          1
  id_syncretic     2         losses.cross_entropy          1
  id_infrared      3         losses.cross_entropy          1, margin m on the true logit
  tri_center       6         losses.tri_center_loss        lambda, from epoch Q on
  global_center    7         losses.global_center_loss     lambda, from epoch Q on

What the paper compares these with are options. `auxiliary` (table 2) takes another third
modality: id_syncretic is then id_x, id_gray, ..., and eq. 6 has its centers. `metric`
(table 4) puts another loss of visible and infrared features in the place of eqs. 6 and 7:

  bh_tri           table 4   losses.batch_hard_triplet     lambda, from epoch Q on
  bdtr             table 4   losses.bdtr                   lambda, from epoch Q on
  bicenter         table 4   losses.bi_center              lambda, from epoch Q on
  hc_tri           table 4   losses.hetero_center_triplet  lambda, from epoch Q on

No code was released. What the paper leaves open is an option of `build`, named in its
docstring with the default that docs/fidelity.md argues for.

Symbols: g pooled features, f features after the BN neck, v / i / s the modalities.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.losses.center import bi_center, hetero_center_triplet
from vireid_jax.losses.distance import unit, wide
from vireid_jax.losses.identity import FORMS, accuracy, cross_entropy
from vireid_jax.losses.triplet import BDTR_FORMS, batch_hard_triplet, bdtr
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.smcl.adsl import global_center_loss, symmetric_center_loss, tri_center_loss
from vireid_jax.nets import auxiliary as aux
from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import GeM, gap
from vireid_jax.nets.resnet import ResNet, deinterleave
from vireid_jax.types import (
    INFRARED,
    MODALITIES,
    VISIBLE,
    Aux,
    Batch,
    LaterLoss,
    Method,
    Variables,
    epochs_to_steps,
)

METRICS = ("adsl", "bh_tri", "bdtr", "bicenter", "hc_tri")


# --- Network ----------------------------------------------------------------------


class SMCLNet(nn.Module):
    """Generator, shared backbone, pooling, BN neck without shift, classifier without bias."""

    num_classes: int
    backbone_options: Mapping[str, Any]
    auxiliary_kind: str
    auxiliary_options: Mapping[str, Any]
    pooling: str
    gem_p: float
    neck_running: tuple[int, int] | None

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        if self.auxiliary_kind != "none":
            remat = self.backbone_options.get("remat", False) and not self.is_initializing()
            self.auxiliary: Any = aux.make(
                self.auxiliary_kind, **self.auxiliary_options, remat=remat
            )
        self.backbone = ResNet(**self.backbone_options)
        if self.pooling == "gem":
            self.pool = GeM(self.gem_p)
        self.neck = BatchNorm(
            use_bias=False,
            running=self.neck_running,
            groups=self.backbone_options.get("groups", 1),
        )
        self.classifier = nn.Dense(self.num_classes, use_bias=False, kernel_init=init.normal(0.001))

    def __call__(self, visible: jax.Array, infrared: jax.Array) -> dict[str, jax.Array]:
        """The training pass on standardized images [B, H, W, 3], slot by slot of one identity.

        Returns:
          "pool": g [B, M, D]; "logits": [B, M, C]; and "auxiliary": the auxiliary images
          [B, H, W, 3], where it is images that are made.
        """
        images, stems = [visible, infrared], [VISIBLE, INFRARED]
        out, generate = {}, None
        if self.auxiliary_kind == "mun":
            generate = self._generate
        elif self.auxiliary_kind != "none":
            out["auxiliary"] = self.auxiliary(visible, infrared)
            images.append(out["auxiliary"])
            # With two stems an auxiliary image, a colored one, takes the visible stem.
            stems.append(VISIBLE)
        maps = self.backbone(images, stems=stems, train=True, generate=generate)
        g = self._pool(maps)  # [B * M, D]
        f = self.neck(g, train=True)
        modalities = 2 if self.auxiliary_kind == "none" else 3
        split = partial(deinterleave, modalities=modalities)
        return {**out, "pool": split(g), "logits": split(self.classifier(f))}

    def _generate(self, maps: list[jax.Array]) -> list[jax.Array]:
        """The maps of both modalities after layer1, and the one made from them."""
        auxiliary, _, _ = self.auxiliary(maps[VISIBLE], maps[INFRARED], train=True)
        return [*maps, auxiliary]

    def _pool(self, maps: jax.Array) -> jax.Array:
        return gap(maps) if self.pooling == "gap" else self.pool(maps)

    def embed(self, images: jax.Array, modality: int) -> dict[str, jax.Array]:
        """Features of one modality: f ("bn") and g ("pool"), each [N, D] float32 or wider."""
        maps = self.backbone([images], stems=[modality], train=False)
        g = self._pool(maps)
        return {"bn": self.neck(g, train=False), "pool": g}


# --- Method -----------------------------------------------------------------------------


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    steps_per_epoch: int,
    backbone: Backbone = Backbone(),
    specific: int = 0,
    pooling: str = "gap",
    gem_p: float = 3.0,
    auxiliary: str = "syncretic",
    none_metric: str = "global",
    smgm_width: int = 16,
    smgm_shared: bool = True,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    x_width: int = 1,
    x_input: str = "unit",
    mix: str = "half",
    generator: Mapping[str, Any] = MappingProxyType({}),
    id_margin: float = 4.0,
    cehl_form: str = "both",
    metric: str = "adsl",
    center_margin: float = 0.3,
    normalize_centers: bool = False,
    triplet_margin: float = 0.3,
    bdtr_form: str = "orig",
    bicenter_margin: float = 0.5,
    bicenter_joint: bool = False,
    metric_weight: float = 0.5,
    metric_from_epoch: float = 220.0,
    updates: str = "joint",
    bn_running: str = "all",
) -> Method:
    """SMCL as a `Method`; the defaults are the paper's recipe for SYSU-MM01.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width).
      steps_per_epoch: turns `metric_from_epoch` into a step.
      backbone: see `common.Backbone`.
      specific: see `ResNet`; 1 gives two stems, and auxiliary images take the visible one.
      pooling: "gap" (the paper) or "gem", with start exponent gem_p.
      auxiliary: the third modality (table 2), see `nets.auxiliary`: "syncretic"; "x", "gray" or
        "mixed" images; "mun", made from the maps after layer1; or "none".
      none_metric: what replaces eq. 6 without one: "global" (eq. 7 alone) or "vi_symmetric".
      smgm_width, smgm_shared, smgm_init, smgm_input, x_width, x_input, mix, generator: see
        `nets.auxiliary.make`; `generator` holds the options of "mun".
      id_margin: m of eq. 3, in logits: 4 on SYSU-MM01, 1 on RegDB, 0 is plain softmax.
      cehl_form: "both" or "literal", see `cross_entropy`.
      metric: "adsl" (eq. 8), or what table 4 compares it with: "bh_tri", "bdtr", "bicenter" or
        "hc_tri" of the features g of v and i. The paper does not give their weight and epoch;
        here they are those of eq. 8.
      center_margin: rho of eq. 6.
      normalize_centers: unit-length centers in eqs. 6 and 7, unit-length features in the other
        metric losses; the paper states none.
      triplet_margin: of "bh_tri" and "hc_tri".
      bdtr_form: "orig" or "counted", see `losses.triplet.bdtr`.
      bicenter_margin, bicenter_joint: see `losses.center.bi_center`.
      metric_weight: lambda of eq. 9.
      metric_from_epoch: Q of Algorithm 1, counted from 0: 220 of 300 epochs on SYSU-MM01,
        120 of 200 on RegDB; 0 trains with the metric losses from the start (no IT).
      updates: "joint" minimizes eq. 9 in one optimizer step; "two_step" takes one step on
        eq. 4 and then one on lambda times eq. 8, with the statistics of the first pass.
      bn_running: "all" or "vi": running statistics from v, i and s, or from v and i, which
        alone occur at test time. Batches are normalized over all modalities either way.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    common.check(
        choices={
            "pooling": (pooling, ("gap", "gem")),
            "auxiliary": (auxiliary, aux.KINDS),
            "none_metric": (none_metric, ("global", "vi_symmetric")),
            "cehl_form": (cehl_form, FORMS),
            "metric": (metric, METRICS),
            "bdtr_form": (bdtr_form, BDTR_FORMS),
            "updates": (updates, ("joint", "two_step")),
            "bn_running": (bn_running, ("all", "vi")),
        },
        not_negative=dict(
            id_margin=id_margin,
            center_margin=center_margin,
            triplet_margin=triplet_margin,
            bicenter_margin=bicenter_margin,
            metric_weight=metric_weight,
            metric_from_epoch=metric_from_epoch,
        ),
        num_classes=num_classes,
        backbone=backbone,
    )
    # Maps are generated after layer1, up to which modalities may have stages of their own.
    most = 2 if auxiliary == "mun" else 5
    if not 0 <= specific <= most:
        raise ValueError(
            f"method.specific is {specific}, expected 0 to {most} with auxiliary={auxiliary!r}"
        )
    auxiliary_options: dict[str, Any] = dict(
        smgm_width=smgm_width,
        smgm_shared=smgm_shared,
        smgm_init=smgm_init,
        smgm_input=smgm_input,
        x_width=x_width,
        x_input=x_input,
        mix=mix,
        generator=dict(generator),
    )
    aux.check(
        auxiliary, image_size=image_size, channels=backbone.features // 8, **auxiliary_options
    )
    with_auxiliary = auxiliary != "none"
    running = (3, 2) if with_auxiliary and bn_running == "vi" else None
    net = SMCLNet(
        num_classes=num_classes,
        backbone_options={**backbone.resnet_options(), "specific": specific, "running": running},
        auxiliary_kind=auxiliary,
        auxiliary_options={**auxiliary_options, **backbone.module_options()},
        pooling=pooling,
        gem_p=gem_p,
        neck_running=running,
    )
    modalities = (*MODALITIES, auxiliary) if with_auxiliary else MODALITIES
    metrics: dict[str, Callable[..., jax.Array]]
    if metric == "adsl":  # eq. 8
        metrics = {"global_center": partial(global_center_loss, normalize=normalize_centers)}
        eq6: dict[str, Any] = dict(margin=center_margin, normalize=normalize_centers)
        if with_auxiliary:
            metrics["tri_center"] = partial(tri_center_loss, **eq6)
        elif none_metric == "vi_symmetric":
            metrics["symmetric_center"] = partial(symmetric_center_loss, **eq6)
    else:
        of_pair = {
            "bh_tri": partial(batch_hard_triplet, margin=triplet_margin),
            "bdtr": partial(bdtr, form=bdtr_form),
            "bicenter": partial(bi_center, margin=bicenter_margin, joint=bicenter_joint),
            "hc_tri": partial(hetero_center_triplet, margin=triplet_margin),
        }[metric]
        scaled = unit if normalize_centers else wide
        metrics = {metric: lambda g, labels: of_pair(scaled(g[:, :2]), labels)}
    start = epochs_to_steps(metric_from_epoch, steps_per_epoch)
    weights = {f"id_{name}": 1.0 for name in modalities}  # eq. 4
    weights |= {name: metric_weight for name in metrics}  # eq. 9
    projects = auxiliary == "mun" and generator.get("scale_form", "project") == "project"

    def compared(variables: Variables, batch: Batch, key: Any) -> tuple[dict[str, Any], Aux]:
        images = (batch["visible"], batch["infrared"])
        out, updates = common.train_pass(net, backbone, variables, images, key, stream="auxiliary")
        labels, logits = batch["label"], out["logits"]
        terms, scalars = {}, {}
        for m, name in enumerate(modalities):
            margin = id_margin if m == INFRARED else 0.0
            loss_of = partial(cross_entropy, margin=margin, form=cehl_form)
            terms[f"id_{name}"] = loss_of(logits[:, m], labels)
            scalars[f"accuracy_{name}"] = accuracy(logits[:, m], labels)
        for name, term in metrics.items():
            terms[name] = term(out["pool"], labels)
        if "auxiliary" in out:
            scalars["auxiliary_std"] = wide(out["auxiliary"]).std()
        return terms, Aux(terms, dict(updates), scalars)

    def weighted(terms: dict[str, Any], names: Any) -> Any:
        return sum(weights[name] * terms[name] for name in names)

    id_terms = [name for name in weights if name not in metrics]

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        terms, rest = compared(variables, batch, key)
        total = weighted(terms, id_terms)
        if updates == "joint":  # Algorithm 1: eq. 4 before epoch Q, eq. 9 from it on
            total += jnp.where(step >= start, weighted(terms, metrics), 0.0)
        return total, rest

    def metric_loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        terms, rest = compared(variables, batch, key)
        return weighted(terms, metrics), rest._replace(updates={})

    later = (LaterLoss(start, metric_loss),) if updates == "two_step" else ()
    project = aux.project_scales if projects else None
    return Method(common.initialize(net, image_size), loss, common.embed(net), later, project)
