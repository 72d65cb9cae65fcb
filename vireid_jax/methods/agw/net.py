"""The network of AGW (Ye et al., arXiv 2001.04193) for two modalities, which CAJ trains too."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from vireid_jax.nets import init
from vireid_jax.nets.attention import NonLocal
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gem
from vireid_jax.nets.remat import rematerialized
from vireid_jax.nets.resnet import ResNet, block_names, deinterleave
from vireid_jax.types import INFRARED, VISIBLE

# stage -> after how many of its last blocks a non-local block stands.
NON_LOCAL = {2: 2, 3: 3}
POOL_P = 3.0  # exponent of the generalized mean, fixed


class AGWNet(nn.Module):
    """A ResNet with a stem a modality, non-local blocks, pooling, BN neck and a classifier.

    Non-local blocks stand after the last two blocks of layer2 and the last three of layer3, or
    after all of them where a stage has fewer.

    Attributes:
      num_classes: C.
      backbone_options: of `ResNet`, with specific 1; remat is that of the non-local blocks too.
      non_local: inner channels of these blocks, "one" or "half", see `NonLocal`.
    """

    num_classes: int
    backbone_options: Mapping[str, Any]
    non_local: str = "one"

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        options = self.backbone_options
        groups = options.get("groups", 1)
        self.backbone = ResNet(**options)
        names = [
            name
            for stage, count in NON_LOCAL.items()
            for name in block_names(options["depth"], stage)[-count:]
        ]
        # attention_layer2_2, ...
        block = rematerialized(NonLocal, self, options.get("remat", False), static=(2,))
        how = (options.get("dtype"), groups, options.get("kernels", "xla"))
        self.attention = {n: block(self.non_local, *how) for n in names}
        start = init.normal(0.01, mean=1.0)
        self.neck = BatchNorm(use_bias=False, scale_init=start, groups=groups)
        start = init.normal(0.001)
        self.classifier = nn.Dense(self.num_classes, use_bias=False, kernel_init=start)

    def __call__(
        self, visible: jax.Array, infrared: jax.Array, second: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The training pass on standardized images [B, H, W, 3].

        Args:
          visible, infrared: row b of both shows one identity.
          second: another view of the visible images (CAJ), or None.

        Returns:
          Pooled features [B, M, D] and logits [B, M, C]: visible, infrared, second.
        """
        images, stems = [visible, infrared], [VISIBLE, INFRARED]
        if second is not None:
            images, stems = [*images, second], [*stems, VISIBLE]
        pool = self._pooled(images, stems, train=True)
        logits = self.classifier(self.neck(pool, train=True))
        return deinterleave(pool, len(images)), deinterleave(logits, len(images))

    def embed(self, images: jax.Array, modality: int) -> dict[str, jax.Array]:
        """Features [N, D]: after the neck, and before it."""
        pool = self._pooled([images], [modality], train=False)
        return {"bn": self.neck(pool, train=False), "pool": pool}

    def _pooled(self, images: list[jax.Array], stems: list[int], *, train: bool) -> jax.Array:
        def then(name: str, x: jax.Array) -> jax.Array:
            return self.attention[name](x, train) if name in self.attention else x

        maps = self.backbone(images, stems=stems, train=train, then=then)
        return gem(maps, POOL_P)
