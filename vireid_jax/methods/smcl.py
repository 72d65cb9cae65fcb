"""SMCL: Syncretic Modality Collaborative Learning (Wei et al., ICCV 2021).

A generator (SMGM) merges a visible and an infrared image of one identity into a third,
"syncretic" image. One ResNet, shared by all three modalities, is trained with a softmax
loss that is made harder for infrared (CEHL) and, from a late epoch on (incremental
training, IT), with distances between the identity centers of the modalities (ADSL). At
test time an image of either modality passes the backbone alone.

  term             equation  function                 weight in the total (eq. 9)
  id_visible       2         losses.cross_entropy     1
  id_syncretic     2         losses.cross_entropy     1
  id_infrared      3         losses.cross_entropy     1, with the margin m on the true logit
  tri_center       6         tri_center_loss          lambda, from epoch Q on
  global_center    7         global_center_loss       lambda, from epoch Q on

No code was released. What the paper leaves open is an option of `build`, named in its
docstring with the default that docs/fidelity.md argues for.

Symbols: g pooled features, f features after the BN neck, v / i / s the modalities.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance, safe_norm, wide
from vireid_jax.losses.identity import FORMS, accuracy, cross_entropy
from vireid_jax.nets import init, options
from vireid_jax.nets.auxiliary import SMGM
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import GeM, gap
from vireid_jax.nets.resnet import ResNet, deinterleave, feature_width
from vireid_jax.types import (
    INFRARED,
    VISIBLE,
    Aux,
    Batch,
    LaterLoss,
    Method,
    Variables,
    epochs_to_steps,
)

# Terms in the order of the modalities of a batch: v, i and, with a generator, s.
ID_TERMS = ("id_visible", "id_infrared", "id_syncretic")


# --- Losses -----------------------------------------------------------------------------


def tri_center_loss(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.3, normalize: bool = False
) -> jax.Array:
    """Tri-directional center loss, eq. 6.

    sum_p [rho + d(c_s^p, c_v^p) - h_p]_+ + sum_p [rho + d(c_s^p, c_i^p) - h_p]_+,
    h_p = min_{j != p} d(c_s^p, c_s^j): the negatives are syncretic centers alone. A sum
    over identities, not a mean, so the batch's P scales it.

    Args:
      features: [B, 3, D] in the order visible, infrared, syncretic.
      labels: int [B], shared by the modalities.
      margin: rho.
      normalize: scale centers to unit length first (the paper states none).

    Returns:
      Scalar, float32 or wider; 0 when the batch has one identity.

    Raises:
      ValueError: for shapes that do not fit.
    """
    _check_modalities(features, 3, "visible, infrared, syncretic")
    centers, weight = row_centers(features, labels, normalize=normalize)
    visible, infrared, syncretic = centers[:, 0], centers[:, 1], centers[:, 2]
    nearest = _nearest_other(syncretic, syncretic, labels)  # h_p, [B]
    pulls = (safe_norm(syncretic - visible), safe_norm(syncretic - infrared))
    return sum((weight * jax.nn.relu(margin + pull - nearest)).sum() for pull in pulls)  # type: ignore[return-value]


def global_center_loss(
    features: jax.Array, labels: jax.Array, *, normalize: bool = False
) -> jax.Array:
    """Global center loss, eq. 7: sum_p ||c_v^p - c_i^p||, plain norms, not squared.

    Args:
      features: [B, M, D] with visible first and infrared second, M >= 2.
      labels: int [B].
      normalize: scale centers to unit length first.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(
            f"features {features.shape}, expected [B, M, D] with visible, infrared first"
        )
    centers, weight = row_centers(features, labels, normalize=normalize)
    return (weight * safe_norm(centers[:, 0] - centers[:, 1])).sum()


def symmetric_center_loss(
    features: jax.Array, labels: jax.Array, *, margin: float = 0.3, normalize: bool = False
) -> jax.Array:
    """Eq. 6 without a syncretic modality: each modality's centers anchor the other's.

    sum_p [rho + d(c_v^p, c_i^p) - min_{j != p} d(c_v^p, c_v^j)]_+ + the same with v, i
    exchanged. The paper does not say what its row "nothing" of table 2 trains; this is
    one reading, the global center loss alone the other.

    Args:
      features: [B, 2, D] in the order visible, infrared.
      labels: int [B].
      margin: rho.
      normalize: scale centers to unit length first.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit.
    """
    _check_modalities(features, 2, "visible, infrared")
    centers, weight = row_centers(features, labels, normalize=normalize)
    visible, infrared = centers[:, 0], centers[:, 1]
    pull = safe_norm(visible - infrared)
    nearest = [_nearest_other(c, c, labels) for c in (visible, infrared)]
    return sum((weight * jax.nn.relu(margin + pull - h)).sum() for h in nearest)  # type: ignore[return-value]


def _nearest_other(anchors: jax.Array, centers: jax.Array, labels: jax.Array) -> jax.Array:
    """Distance [B] from each anchor [B, D] to the nearest center [B, D] of another identity."""
    same = labels[:, None] == labels[None, :]
    return jnp.where(same, jnp.inf, pairwise_distance(anchors, centers)).min(1)


def _check_modalities(features: jax.Array, modalities: int, order: str) -> None:
    if features.ndim != 3 or features.shape[1] != modalities:
        raise ValueError(f"features {features.shape}, expected [B, {modalities}, D]: {order}")


# --- Network ----------------------------------------------------------------------


class SMCLNet(nn.Module):
    """Generator, shared backbone, pooling, BN neck without shift, classifier without bias."""

    num_classes: int
    backbone_options: dict[str, Any]
    smgm_options: dict[str, Any] | None  # None: no auxiliary modality
    pooling: str
    gem_p: float
    neck_running: tuple[int, int] | None

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        if self.smgm_options is not None:
            self.smgm = SMGM(**self.smgm_options)
        self.backbone = ResNet(**self.backbone_options)
        if self.pooling == "gem":
            self.pool = GeM(self.gem_p)
        self.neck = BatchNorm(use_bias=False, running=self.neck_running)
        self.classifier = nn.Dense(self.num_classes, use_bias=False, kernel_init=init.normal(0.001))

    def __call__(self, visible: jax.Array, infrared: jax.Array) -> dict[str, jax.Array]:
        """The training pass: g [B, M, D], logits [B, M, C], images [B, M, H, W, 3]."""
        images, stems = [visible, infrared], [VISIBLE, INFRARED]
        if self.smgm_options is not None:
            images.append(self.smgm(visible, infrared))
            # With two stems the syncretic image, a colored one, takes the visible stem.
            stems.append(VISIBLE)
        maps = self.backbone(images, stems=stems, train=True)
        g = gap(maps) if self.pooling == "gap" else self.pool(maps)  # [B * M, D]
        f = self.neck(g, train=True)
        split = partial(deinterleave, modalities=len(images))
        return {
            "pool": split(g),
            "logits": split(self.classifier(f)),
            "images": jnp.stack(images, 1),
        }

    def embed(self, images: jax.Array, modality: int) -> dict[str, jax.Array]:
        """Features of one modality: f ("bn") and g ("pool"), each [N, D] float32 or wider."""
        maps = self.backbone([images], stems=[modality], train=False)
        g = gap(maps) if self.pooling == "gap" else self.pool(maps)
        return {"bn": self.neck(g, train=False), "pool": g}


# --- Method -----------------------------------------------------------------------------


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    steps_per_epoch: int,
    depth: int = 50,
    width: int = 64,
    last_stride: int = 1,
    specific: int = 0,
    pooling: str = "gap",
    gem_p: float = 3.0,
    kernels: str = "auto",
    dtype: str = "float32",
    auxiliary: str = "syncretic",
    none_metric: str = "global",
    smgm_width: int = 16,
    smgm_shared: bool = True,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    id_margin: float = 4.0,
    cehl_form: str = "both",
    center_margin: float = 0.3,
    normalize_centers: bool = False,
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
      depth, width, last_stride, specific, kernels: see `ResNet`; "auto" takes "cpu"
        kernels on CPU and "xla" elsewhere. `specific` 1 gives two stems.
      pooling: "gap" (the paper) or "gem", with start exponent gem_p.
      dtype: "float32" or "bfloat16" compute; parameters, statistics and losses stay float32.
      auxiliary: "syncretic", or "none": table 2's row without auxiliary modality.
      none_metric: what replaces eq. 6 then: "global" (eq. 7 alone) or "vi_symmetric".
      smgm_width, smgm_shared, smgm_init, smgm_input: see `SMGM`.
      id_margin: m of eq. 3, in logits: 4 on SYSU-MM01, 1 on RegDB, 0 is plain softmax.
      cehl_form: "both" or "literal", see `cross_entropy`.
      center_margin: rho of eq. 6.
      normalize_centers: unit-length centers; the paper states none.
      metric_weight: lambda of eq. 9.
      metric_from_epoch: Q of Algorithm 1, counted from 0: 220 of 300 epochs on SYSU-MM01,
        120 of 200 on RegDB; 0 trains with the center losses from the start (no IT).
      updates: "joint" minimizes eq. 9 in one optimizer step; "two_step" takes one step on
        eq. 4 and then one on lambda times eq. 8, with the statistics of the first pass.
      bn_running: "all" or "vi": running statistics from v, i and s, or from v and i, which
        alone occur at test time. Batches are normalized over all modalities either way.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    options.check(
        choices={
            "pooling": (pooling, ("gap", "gem")),
            "dtype": (dtype, options.DTYPES),
            "kernels": (kernels, options.KERNELS),
            "auxiliary": (auxiliary, ("syncretic", "none")),
            "none_metric": (none_metric, ("global", "vi_symmetric")),
            "smgm_init": (smgm_init, ("kaiming", "identity")),
            "smgm_input": (smgm_input, ("standardized", "unit")),
            "cehl_form": (cehl_form, FORMS),
            "updates": (updates, ("joint", "two_step")),
            "bn_running": (bn_running, ("all", "vi")),
        },
        not_negative=dict(
            id_margin=id_margin,
            center_margin=center_margin,
            metric_weight=metric_weight,
            metric_from_epoch=metric_from_epoch,
        ),
        num_classes=num_classes,
    )
    feature_width(depth, width)  # refuses an unknown depth before anything is traced
    with_syncretic = auxiliary == "syncretic"
    if with_syncretic and smgm_init == "identity" and smgm_width != 3:
        raise ValueError(f"smgm_init='identity' needs smgm_width=3, got {smgm_width}")
    running = (3, 2) if with_syncretic and bn_running == "vi" else None
    common = {
        "kernels": options.resolve_kernels(kernels),
        "dtype": options.compute_dtype(dtype),
    }
    smgm = dict(width=smgm_width, shared=smgm_shared, initial=smgm_init, input=smgm_input, **common)
    backbone = dict(depth=depth, width=width, last_stride=last_stride, specific=specific)
    net = SMCLNet(
        num_classes=num_classes,
        backbone_options={**backbone, **common, "running": running},
        smgm_options=smgm if with_syncretic else None,
        pooling=pooling,
        gem_p=gem_p,
        neck_running=running,
    )
    start = epochs_to_steps(metric_from_epoch, steps_per_epoch)
    weights = {name: 1.0 for name in ID_TERMS[: 3 if with_syncretic else 2]}  # eq. 4
    metrics: dict[str, Any] = {"global_center": global_center_loss}
    if with_syncretic:
        metrics["tri_center"] = partial(tri_center_loss, margin=center_margin)
    elif none_metric == "vi_symmetric":
        metrics["symmetric_center"] = partial(symmetric_center_loss, margin=center_margin)
    weights |= {name: metric_weight for name in metrics}  # eq. 9

    def initialize(key: Any) -> Variables:
        shape = jax.ShapeDtypeStruct((2, *image_size, 3), jnp.float32)
        return net.lazy_init(key, shape, shape)

    def forward(variables: Variables, batch: Batch) -> tuple[dict[str, Any], Aux]:
        images = (batch["visible"], batch["infrared"])
        out, updates = net.apply(variables, *images, mutable=["batch_stats"])
        labels, logits = batch["label"], out["logits"]
        terms, scalars = {}, {}
        for m, name in enumerate(ID_TERMS[: logits.shape[1]]):
            margin = id_margin if m == INFRARED else 0.0
            terms[name] = cross_entropy(logits[:, m], labels, margin=margin, form=cehl_form)
            scalars["accuracy_" + name.removeprefix("id_")] = accuracy(logits[:, m], labels)
        for name, metric in metrics.items():
            terms[name] = metric(out["pool"], labels, normalize=normalize_centers)
        if with_syncretic:
            scalars["syncretic_std"] = wide(out["images"][:, 2]).std()
        return terms, Aux(terms, dict(updates), scalars)

    def weighted(terms: dict[str, Any], names: Any) -> Any:
        return sum(weights[name] * terms[name] for name in names)

    id_terms = [name for name in weights if name not in metrics]

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        terms, aux = forward(variables, batch)
        total = weighted(terms, id_terms)
        if updates == "joint":  # Algorithm 1: eq. 4 before epoch Q, eq. 9 from it on
            total += jnp.where(step >= start, weighted(terms, metrics), 0.0)
        return total, aux

    def metric_loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        terms, aux = forward(variables, batch)
        return weighted(terms, metrics), aux._replace(updates={})

    def embed(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        return net.apply(variables, images, modality, method="embed")  # type: ignore[return-value]

    later = (LaterLoss(start, metric_loss),) if updates == "two_step" else ()
    return Method(initialize, loss, embed, later)
