"""The network of MUN: Modality Unifying Network (Yu et al., ICCV 2023), fig. 2."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.methods.mun.generator import ModalityUnifying
from vireid_jax.nets import auxiliary, init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gem
from vireid_jax.nets.resnet import ResNet, deinterleave
from vireid_jax.types import AUXILIARY, INFRARED, STEMS, VISIBLE

GEM_P = 3.0  # as in AGW; the paper does not say how maps are pooled


class MUNNet(nn.Module):
    """Two first stages, generator, shared stages, GeM, BN neck, one classifier a modality.

    Attributes:
      num_classes: C.
      features: D.
      backbone_options: of `ResNet`; each modality has `specific` first stages of its own.
      auxiliary_kind: the third modality: "mun" is generated from the maps after the first stages;
        one of `nets.auxiliary.IMAGE_KINDS`, which has first stages of its own, too; or "none".
      auxiliary_options: of `ModalityUnifying` or `nets.auxiliary.make`.
      auxiliary_classifier: whether auxiliary features have a classifier (table 1, "+ Aux").
      prototypes: whether there are maps W_p of eq. 13.
    """

    num_classes: int
    features: int
    backbone_options: Mapping[str, Any]
    auxiliary_kind: str
    auxiliary_options: Mapping[str, Any]
    auxiliary_classifier: bool
    prototypes: bool

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        options = self.backbone_options
        common = {name: options[name] for name in ("kernels", "dtype")}
        again = options["remat"] and not self.is_initializing()
        own = dict(self.auxiliary_options)
        if self.auxiliary_kind == "mun":
            own["remat"] = own["remat"] or again
            self.auxiliary: Any = ModalityUnifying(**own, groups=options["groups"], **common)
        elif self.auxiliary_kind != "none":
            self.auxiliary = auxiliary.make(self.auxiliary_kind, **own, remat=again, **common)
        self.backbone = ResNet(**options)
        self.neck = BatchNorm(use_bias=False, groups=options["groups"])
        classifier = partial(
            nn.Dense, self.num_classes, use_bias=False, kernel_init=init.normal(0.001)
        )
        self.classifier_visible, self.classifier_infrared = classifier(), classifier()
        if self.auxiliary_classifier:
            self.classifier_auxiliary = classifier()
        if self.prototypes:
            w_p = partial(
                nn.Dense,
                self.features,
                use_bias=False,
                kernel_init=_identity,
                precision=jax.lax.Precision.HIGHEST,  # the start is T = Z, also on a TPU
            )
            self.prototype_visible, self.prototype_infrared = w_p(), w_p()
            self.prototype_auxiliary = w_p()

    def __call__(self, visible: jax.Array, infrared: jax.Array) -> dict[str, Any]:
        """The training pass on standardized images [B, H, W, 3], row b of both of one identity.

        Returns:
          "pool": {modality: Z [B, D]} for "visible", "infrared" and, if there is one, "auxiliary";
          "logits": {(classifier, modality): [B, C]}.
        """
        images, stems, generate = [visible, infrared], [VISIBLE, INFRARED], None
        if self.auxiliary_kind == "mun":
            generate = self._generate
        elif self.auxiliary_kind != "none":
            images.append(self.auxiliary(visible, infrared))
            stems.append(AUXILIARY)
        names = STEMS[:2] if self.auxiliary_kind == "none" else STEMS
        maps = self.backbone(images, stems=stems, train=True, generate=generate)
        z = gem(maps, GEM_P)  # [B * M, D]
        f = self.neck(z, train=True)
        pool, neck = (
            {name: split[:, m] for m, name in enumerate(names)}
            for split in (deinterleave(x, len(names)) for x in (z, f))
        )
        if self.prototypes and self.is_initializing():
            self.mapped(pool)
        return {"pool": pool, "logits": self._logits(neck)}

    def _generate(self, maps: list[jax.Array]) -> list[jax.Array]:
        """The maps of both modalities as they come, and F^a of eq. 9."""
        auxiliary, _, _ = self.auxiliary(maps[VISIBLE], maps[INFRARED], train=True)
        return [*maps, auxiliary]

    def _logits(self, features: Mapping[str, jax.Array]) -> dict[tuple[str, str], jax.Array]:
        """Each classifier on the modalities that it is trained with (eqs. 10 and 11)."""
        pairs = [("visible", name) for name in features if name != "infrared"]
        pairs += [("infrared", name) for name in features if name != "visible"]
        if self.auxiliary_classifier:
            pairs.append(("auxiliary", "auxiliary"))
        return {(c, m): getattr(self, f"classifier_{c}")(features[m]) for c, m in pairs}

    def mapped(self, pool: Mapping[str, jax.Array]) -> jax.Array:
        """W_m Z_m of the three modalities (eq. 13), [B, 3, D]."""
        return jnp.stack([getattr(self, f"prototype_{m}")(pool[m]) for m in STEMS], 1)

    def embed(self, images: jax.Array, modality: int) -> dict[str, jax.Array]:
        """Features of one modality, [N, D] float32 or wider: after the neck, and Z before it."""
        z = gem(self.backbone([images], stems=[modality], train=False), GEM_P)
        return {"bn": self.neck(z, train=False), "pool": z}


def _identity(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.eye(*shape, dtype=dtype))
