"""The network of SMCL: Syncretic Modality Collaborative Learning (Wei et al., ICCV 2021)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from vireid_jax.nets import auxiliary, init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gap
from vireid_jax.nets.resnet import ResNet, deinterleave


class SMCLNet(nn.Module):
    """Generator, shared backbone, pooling, BN neck without shift, classifier without bias.

    Attributes:
      num_classes: C.
      backbone_options: of `ResNet`.
      auxiliary_kind: the third modality: one of `nets.auxiliary.IMAGE_KINDS`, or "none".
      smgm_options: of `nets.auxiliary.make`.
    """

    num_classes: int
    backbone_options: Mapping[str, Any]
    auxiliary_kind: str
    smgm_options: Mapping[str, Any]

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        options = self.backbone_options
        if self.auxiliary_kind != "none":
            self.auxiliary: Any = auxiliary.make(
                self.auxiliary_kind,
                **self.smgm_options,
                kernels=options["kernels"],
                dtype=options["dtype"],
                remat=options["remat"] and not self.is_initializing(),
            )
        self.backbone = ResNet(**options)
        self.neck = BatchNorm(use_bias=False, groups=options["groups"])
        self.classifier = nn.Dense(self.num_classes, use_bias=False, kernel_init=init.normal(0.001))

    def __call__(self, visible: jax.Array, infrared: jax.Array) -> dict[str, jax.Array]:
        """The training pass on standardized images [B, H, W, 3], row b of both of one identity.

        Returns:
          "pool": g [B, M, D]; "logits": [B, M, C]; and "auxiliary": the generated images
          [B, H, W, 3], if there are any.
        """
        images, generated = [visible, infrared], {}
        if self.auxiliary_kind != "none":
            generated["auxiliary"] = self.auxiliary(visible, infrared)  # eq. 1
            images.append(generated["auxiliary"])
        g = gap(self.backbone(images, train=True))  # [B * M, D]
        f = self.neck(g, train=True)
        split = partial(deinterleave, modalities=len(images))
        return {**generated, "pool": split(g), "logits": split(self.classifier(f))}

    def embed(self, images: jax.Array, modality: int) -> dict[str, jax.Array]:
        """Features of one modality: f ("bn") and g ("pool"), each [N, D] float32 or wider."""
        del modality  # one stream for all
        g = gap(self.backbone([images], train=False))
        return {"bn": self.neck(g, train=False), "pool": g}
