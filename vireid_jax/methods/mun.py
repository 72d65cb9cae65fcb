"""MUN: Modality Unifying Network (Yu et al., ICCV 2023).

Each modality has the first stage of a ResNet of its own. From the two maps of a pair a
generator makes a third, the auxiliary modality: intra-modality learners (IML, eqs. 1-5)
refine each map, a cross-modality learner (CML, eqs. 6-9) merges them over several scales.
All three pass the shared stages. At test time an image passes its own first stage and the
shared ones; generator and prototypes are there in training alone.

  term          equation  function                  weight in the total (eq. 17)
  id_visible    10        losses.cross_entropy      1
  id_infrared   10        losses.cross_entropy      1
  tri           -         losses.triplet            1
  idc           11        losses.cross_entropy      gamma, idc_weight
  ia            12        losses.alignment          theta, ia_weight
  ma            13-16     losses.alignment          sigma, ma_weight
  ida           table 1   losses.cross_entropy      ida_weight; the row "+Aux" alone

No code was released. What the paper leaves open is an option of `build`, named in its
docstring with the default that docs/fidelity.md argues for.

Symbols: Z pooled features, C centers of an identity, T prototypes; v / r / a the
modalities visible, infrared and auxiliary, in this order wherever features are [B, 3, D].
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.losses import alignment, triplet
from vireid_jax.losses.distance import safe_norm
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.nets import auxiliary as aux
from vireid_jax.nets import init, options
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import GeM, gem
from vireid_jax.nets.resnet import ResNet, deinterleave, feature_width
from vireid_jax.types import AUXILIARY, INFRARED, STEMS, VISIBLE, Aux, Batch, Method, Variables

# --- Network ----------------------------------------------------------------------------


class MUNNet(nn.Module):
    """Two first stages, generator, shared stages, GeM, BN neck, one classifier a modality."""

    num_classes: int
    rows: int  # B
    backbone_options: Mapping[str, Any]
    auxiliary_kind: str
    auxiliary_options: Mapping[str, Any]
    auxiliary_stem: int
    auxiliary_classifier: bool
    refined: bool
    gem_p: float
    gem_learned: bool
    with_neck: bool
    neck_running: tuple[int, int] | None
    prototype_map: str | None  # None: no prototypes are asked for

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        if self.auxiliary_kind != "none":
            self.auxiliary = aux.make(self.auxiliary_kind, **self.auxiliary_options)
        self.backbone = ResNet(**self.backbone_options)
        if self.gem_learned:
            self.pool = GeM(self.gem_p)
        if self.with_neck:
            self.neck = BatchNorm(use_bias=False, running=self.neck_running)
        classifier = partial(
            nn.Dense, self.num_classes, use_bias=False, kernel_init=init.normal(0.001)
        )
        self.classifier_visible, self.classifier_infrared = classifier(), classifier()
        if self.auxiliary_classifier:
            self.classifier_auxiliary = classifier()
        options = self.backbone_options
        width = feature_width(options["depth"], options["width"])
        dense = partial(
            nn.Dense,
            self.rows if self.prototype_map == "slot" else width,
            use_bias=False,
            kernel_init=_identity,
            precision=jax.lax.Precision.HIGHEST,  # the start is T = Z, also on a TPU
        )
        if self.prototype_map == "shared":
            self.prototype_shared = dense()
        elif self.prototype_map in ("linear", "slot"):
            self.prototype_visible, self.prototype_infrared = dense(), dense()
            self.prototype_auxiliary = dense()

    def __call__(
        self, visible: jax.Array, infrared: jax.Array, second: jax.Array | None = None
    ) -> dict[str, Any]:
        """The training pass on standardized images [B, H, W, 3].

        Args:
          visible, infrared: row b of both shows one identity.
          second: another view of the visible images, or None.

        Returns:
          "pool": {modality: Z [B, D]} for "visible", "infrared", and as they are there
          "second", "auxiliary"; "logits": {(classifier, modality): [B, C]};
          "mapped": W Z [B, 3, D], if prototypes are asked for.
        """
        images, stems, names = [visible, infrared], [VISIBLE, INFRARED], ["visible", "infrared"]
        if second is not None:
            images, stems, names = [*images, second], [*stems, VISIBLE], [*names, "second"]
        generate = None
        if self.auxiliary_kind == "mun":
            generate = self._generate
        elif self.auxiliary_kind != "none":
            images.append(self.auxiliary(visible, infrared))
            stems.append(self.auxiliary_stem)
        if self.auxiliary_kind != "none":
            names.append("auxiliary")
        after = self.backbone_options["specific"]
        maps = self.backbone(images, stems=stems, train=True, generate=generate, after=after)
        z = self._pool(maps)  # [B * M, D]
        f = self.neck(z, train=True) if self.with_neck else z
        pool, neck = (
            {name: split[:, m] for m, name in enumerate(names)}
            for split in (deinterleave(x, len(names)) for x in (z, f))
        )
        out: dict[str, Any] = {"pool": pool, "logits": self._logits(neck)}
        if self.prototype_map is not None:
            out["mapped"] = self._mapped(pool)
        return out

    def _generate(self, maps: list[jax.Array]) -> list[jax.Array]:
        auxiliary, *refined = self.auxiliary(maps[VISIBLE], maps[INFRARED], train=True)
        return [*(refined if self.refined else maps), auxiliary]

    def _pool(self, maps: jax.Array) -> jax.Array:
        return self.pool(maps) if self.gem_learned else gem(maps, self.gem_p)

    def _logits(self, features: Mapping[str, jax.Array]) -> dict[tuple[str, str], jax.Array]:
        """Each classifier on the modalities that it is trained with (eqs. 10 and 11)."""
        pairs = [("visible", name) for name in features if name != "infrared"]
        pairs += [("infrared", name) for name in features if name in ("infrared", "auxiliary")]
        if self.auxiliary_classifier:
            pairs.append(("auxiliary", "auxiliary"))
        return {(c, m): getattr(self, f"classifier_{c}")(features[m]) for c, m in pairs}

    def _mapped(self, pool: Mapping[str, jax.Array]) -> jax.Array:
        """W_m Z_m of the three modalities (eq. 13), [B, 3, D]."""
        if self.prototype_map == "frozen":
            return jnp.stack([pool[m] for m in STEMS], 1)
        if self.prototype_map == "shared":
            return self.prototype_shared(jnp.stack([pool[m] for m in STEMS], 1))
        maps = {m: getattr(self, f"prototype_{m}") for m in STEMS}
        if self.prototype_map == "slot":
            return jnp.stack([maps[m](pool[m].T).T for m in STEMS], 1)
        return jnp.stack([maps[m](pool[m]) for m in STEMS], 1)

    def embed(self, images: jax.Array, modality: int) -> dict[str, jax.Array]:
        """Features of one modality, [N, D] float32 or wider: after the neck, and Z before it."""
        generate = None
        if self.refined:
            generate = lambda maps: [self.auxiliary.refine(maps[0], modality)]  # noqa: E731
        maps = self.backbone(
            [images],
            stems=[modality],
            train=False,
            generate=generate,
            after=self.backbone_options["specific"],
        )
        z = self._pool(maps)
        return {"bn": self.neck(z, train=False), "pool": z} if self.with_neck else {"pool": z}


def _identity(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.eye(*shape, dtype=dtype))


# --- Method -----------------------------------------------------------------------------


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_steps: int,
    num_ids: int,
    num_instances: int,
    depth: int = 50,
    width: int = 64,
    last_stride: int = 1,
    specific: int = 2,
    kernels: str = "auto",
    dtype: str = "float32",
    auxiliary: str = "mun",
    aux_stem: str = "own",
    smgm_width: int = 16,
    smgm_shared: bool = True,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    x_width: int = 1,
    x_input: str = "unit",
    mix: str = "half",
    generator: Mapping[str, Any] = MappingProxyType({}),
    shared_input: str = "raw",
    gem_p: float = 3.0,
    gem_learned: bool = False,
    neck: str = "shared",
    tri: str = "vr",
    tri_form: str = "hard",
    tri_margin: float = 0.3,
    idc_weight: float = 0.25,
    ida_weight: float = 0.0,
    ia_weight: float = 0.5,
    ma_weight: float = 0.008,
    ia_margin: float = 0.55,
    ia_form: str = "hinge",
    ia_normalize: bool = False,
    prototypes: str = "slot",
    prototype_map: str = "linear",
    beta_schedule: str = "linear",
    beta_role: str = "new",
    beta_first: str = "full",
    bridge: bool = True,
    mmd_bandwidth: str = "adaptive",
    mmd_sigma: float = 1.0,
    bn_running: str = "all",
    second_view: bool = False,
) -> Method:
    """MUN as a `Method`; the defaults are the paper's recipe.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width).
      num_steps: of the whole training; beta reaches 1 at the last one.
      num_ids, num_instances: P and K of a batch; the prototypes are tied to them.
      depth, width, last_stride, kernels: see `ResNet`.
      specific: leading stages of each modality: 2 is the stem and layer1, 1 the stem alone.
        The paper says that the first stage is made of residual blocks.
      dtype: "float32" or "bfloat16" compute; parameters, statistics and losses stay float32.
      auxiliary: source of the auxiliary modality (table 2), see `nets.auxiliary`: "mun", the
        generator; the images "x", "gray", "mixed", "syncretic"; or "none": the baseline of
        table 1, without the terms idc, ida, ia and ma.
      aux_stem: the first stage of an auxiliary image: its "own" copy or the "visible" one.
      smgm_width, smgm_shared, smgm_init, smgm_input, x_width, x_input, mix, generator: see
        `nets.auxiliary.make`; `generator` holds the options of the paper's own one.
      shared_input: what enters the shared stages for v and r: "raw" maps of the first stage,
        or those "refined" by the intra-modality learners, at test time too.
      gem_p, gem_learned: the exponent of GeM pooling, fixed or learned.
      neck: one BN neck "shared" by the modalities before the classifiers, or "none".
      tri: rows of the triplet loss: "vr", or "vra" with the auxiliary modality.
      tri_form: "hard" (batch-hard, tri_margin) or "weighted" (AGW's, without margin).
      idc_weight, ia_weight, ma_weight: gamma, theta and sigma of eq. 17; a term of weight 0 is
        left out, and so are its parameters.
      ida_weight: of a classifier of auxiliary features alone, table 1's row "+Aux".
      ia_margin, ia_form, ia_normalize: see `losses.alignment.alignment_loss`.
      prototypes: "slot" (as printed), "identity" (a memory for each identity) or "none":
        ma compares the features themselves (table 3).
      prototype_map: W_p of eq. 13: "linear" maps of features, one a modality; one "shared";
        "frozen", the identity; or "slot": maps of the batch's rows, as eq. 13 reads literally.
      beta_schedule, beta_role: see `losses.alignment.new_weight`.
      beta_first: "full" lets the first step, whose beta is 1, teach; "stop" does not.
      bridge: compare v and r with the auxiliary modality, not with each other (table 3).
      mmd_bandwidth, mmd_sigma: see `losses.mmd.mmd`.
      bn_running: "all" or "vi": running statistics of the shared stages from v, r and a, or from
        v and r, which alone occur at test time. Batches are normalized over all either way.
      second_view: train on a second view of the visible images too, as in CAJ's joint learning;
        it joins id_visible, tri and the visible centers of ia.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    options.check(
        choices={
            "specific": (specific, (1, 2)),
            "dtype": (dtype, options.DTYPES),
            "kernels": (kernels, options.KERNELS),
            "auxiliary": (auxiliary, aux.KINDS),
            "aux_stem": (aux_stem, ("own", "visible")),
            "shared_input": (shared_input, ("raw", "refined")),
            "neck": (neck, ("shared", "none")),
            "tri": (tri, ("vr", "vra")),
            "tri_form": (tri_form, ("hard", "weighted")),
            "ia_form": (ia_form, alignment.FORMS),
            "prototypes": (prototypes, ("slot", "identity", "none")),
            "prototype_map": (prototype_map, ("linear", "shared", "frozen", "slot")),
            "beta_schedule": (beta_schedule, ("linear", "geometric")),
            "beta_role": (beta_role, ("new", "memory")),
            "beta_first": (beta_first, ("full", "stop")),
            "mmd_bandwidth": (mmd_bandwidth, mmd.BANDWIDTHS),
            "bn_running": (bn_running, ("all", "vi")),
        },
        not_negative=dict(
            tri_margin=tri_margin,
            idc_weight=idc_weight,
            ida_weight=ida_weight,
            ia_weight=ia_weight,
            ma_weight=ma_weight,
            ia_margin=ia_margin,
        ),
        num_classes=num_classes,
    )
