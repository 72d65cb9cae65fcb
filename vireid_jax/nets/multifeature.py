"""The network of DEEN (Zhang and Wang, CVPR 2023) and of PDM (ICASSP 2025), which extends it.

A ResNet with a stem for each modality. After each of layer1 to layer3 an aggregation block (MFA)
mixes in the map before it. The last stage is entered by the map and by those that an expansion
makes of it: from then on every image is 1 + G rows. PDM adds a gate after the stems, attention in
the expansion, and prototypes that pool parts. On RegDB both end with layer3, and expand after
layer2.

Rows: image n of the shared stages is rows (1 + G) n ... (1 + G) n + G after the expansion, the
image itself first.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init
from vireid_jax.nets.attention import Aggregation
from vireid_jax.nets.expansion import Expansion
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gap
from vireid_jax.nets.prototypes import Prototypes
from vireid_jax.nets.remat import rematerialized
from vireid_jax.nets.resnet import ResNet, block_names, map_size
from vireid_jax.nets.shallow import phase_only, simam
from vireid_jax.types import INFRARED, VISIBLE


class MultiFeatureNet(nn.Module):
    """Backbone, expansion, pooling, and a BN neck with a classifier for each feature.

    Features: "global" F_g [.., D], pooled by average; with prototypes also "full" F
    [.., (m + 1) D], the m parts and then F_g (eq. 8 of PDM).

    Attributes:
      num_classes: C.
      backbone_options: of `ResNet`, with specific 1; remat is that of MFA and expansion too.
      expansion_options: of `Expansion`; None: no expansion, one row an image.
      prototype_options: of `Prototypes`; None: no parts.
      classified: of "global", "full": the features with a classifier.
      aggregates: whether the MFA blocks are there.
      gates: whether `simam` follows the stems.
      phase_residual: how much of `phase_only` is added to images in training.
      dropout: of all entries of the expanded maps, the image's own too.
    """

    num_classes: int
    backbone_options: Mapping[str, Any]
    expansion_options: Mapping[str, Any] | None
    prototype_options: Mapping[str, Any] | None
    classified: tuple[str, ...]
    aggregates: bool
    gates: bool
    phase_residual: float
    dropout: float

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        options = self.backbone_options
        self.backbone = ResNet(**options)
        stages = options.get("stages", 4)
        remat = options.get("remat", False)
        if self.aggregates:  # mfa1 and mfa2, mfa3 where layer4 follows
            block = rematerialized(Aggregation, self, remat, static=(3,))
            self.mfa = [
                block(options.get("dtype"), options.get("groups", 1)) for _ in range(stages - 1)
            ]
        if self.expansion_options is not None:
            self.expansion = rematerialized(Expansion, self, remat)(**self.expansion_options)
        self.drop = nn.Dropout(self.dropout)
        names = ["global"]
        if self.prototype_options is not None:
            self.prototypes = Prototypes(**self.prototype_options)
            names.append("full")
        start = init.normal(0.01, mean=1.0)  # AGW's code and its descendants
        neck = partial(BatchNorm, use_bias=False, scale_init=start, groups=options.get("groups", 1))
        self.neck = {name: neck() for name in names}
        self.classifier = {
            name: nn.Dense(self.num_classes, use_bias=False, kernel_init=init.normal(0.001))
            for name in self.classified
        }

    def __call__(self, visible: jax.Array, infrared: jax.Array) -> dict[str, Any]:
        """The training pass on standardized images [B, H, W, 3].

        Returns:
          "feature": {"global", and "full": [B, 2, R, D]}, visible first, of R = 1 + G rows with the
          image's own first; "logits": the same for `classified`, [2 B R, C], rows in that order;
          with prototypes also "similarity" and "similarity_logits" [2 B R, m, n].
        """
        images = [visible, infrared]
        if self.phase_residual:
            images = [x + self.phase_residual * phase_only(x).astype(x.dtype) for x in images]
        features, parts = self._features(images, [VISIBLE, INFRARED], train=True)
        neck = {name: self.neck[name](x, train=True) for name, x in features.items()}
        count = visible.shape[0]
        out: dict[str, Any] = {
            "feature": {name: x.reshape(count, 2, -1, x.shape[-1]) for name, x in features.items()},
            "logits": {name: self.classifier[name](neck[name]) for name in self.classified},
        }
        if parts is not None:
            out |= {"similarity": parts.similarity, "similarity_logits": parts.logits}
        return out

    def embed(self, images: jax.Array, modality: int) -> dict[str, dict[str, jax.Array]]:
        """{"feature", "neck"}: {"global", and "full": [N, R, D]} before and after the neck."""
        features, _ = self._features([images], [modality], train=False)
        neck = {name: self.neck[name](x, train=False) for name, x in features.items()}
        count = len(images)
        return {
            key: {name: x.reshape(count, -1, x.shape[-1]) for name, x in found.items()}
            for key, found in (("feature", features), ("neck", neck))
        }

    def _features(
        self, images: list[jax.Array], stems: list[int], *, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        """Features by rows, and what the prototypes found."""
        options = self.backbone_options
        depth, stages = options["depth"], options.get("stages", 4)
        ends = {block_names(depth, stage)[-1]: stage for stage in range(1, stages)}
        low: Any = None

        def then(name: str, x: jax.Array) -> jax.Array:
            nonlocal low
            if name == "stem":
                low = simam(x) if self.gates else x
                return low
            if name not in ends:
                return x
            if self.aggregates:
                x = low = self.mfa[ends[name] - 1](x, low, train)
            if ends[name] < stages - 1 or self.expansion_options is None:
                return x
            x = self.expansion(x)
            x = x.reshape(-1, *x.shape[2:])
            return self.drop(x, deterministic=not train or self.is_initializing())

        maps = self.backbone(images, stems=stems, train=train, then=then)
        features, parts = {"global": gap(maps)}, None
        if self.prototype_options is not None:
            parts = self.prototypes(maps)
            flat = parts.features.reshape(len(maps), -1)
            features["full"] = jnp.concatenate([flat, features["global"]], 1)
        return features, parts


def check(
    *,
    last_stride: int,
    image_size: tuple[int, int],
    stages: int,
    mfa: bool,
    branches: int,
    dropout: float,
) -> None:
    """Refuses what a `MultiFeatureNet` cannot be built of, before anything is traced.

    Raises:
      ValueError: naming the option, what it is and what it may be.
    """
    if stages not in (3, 4):
        raise ValueError(f"method.stages is {stages}, expected 4, or 3 to end with layer3")
    if branches < 0:
        raise ValueError(f"method.branches is {branches}, expected 0 or more")
    if not 0 <= dropout < 1:
        raise ValueError(f"method.dropout is {dropout}, expected 0 to below 1")
    for stage in range(stages if mfa else 0):
        height, wide = map_size(image_size, stage, last_stride)
        if height * wide % 2:
            raise ValueError(
                f"data.image_size is {tuple(image_size)}, whose map of {height} x {wide} places "
                "the position attention of method.mfa cannot halve; choose a height or width that "
                "is a multiple of 32, or method.mfa=False"
            )
