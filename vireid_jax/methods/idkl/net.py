"""The network of IDKL: Implicit Discriminative Knowledge Learning (CVPR 2024), fig. 2.

Stem, layer1 and layer2 (Theta) are common; layer3 and layer4 are there twice: those of the
shared branch (Phi), which with the common ones are a plain ResNet and all of inference, and
those of the specific branch (Psi). Both modalities go through every parameter. The names:

  sh        f_sh, pooled features of the shared branch
  sp        f_sp, of the specific branch as they come
  purified  f~_sp, of the specific branch after the information purifier
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from vireid_jax.methods.idkl.modality import ModalityClassifier
from vireid_jax.methods.idkl.purifier import Purifier
from vireid_jax.methods.idkl.reversal import reverse_gradient
from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gem_above
from vireid_jax.nets.remat import rematerialized
from vireid_jax.nets.resnet import ResNet, deinterleave
from vireid_jax.types import SPECIFIC, VISIBLE


class IDKLNet(nn.Module):
    """Two branches, purifier, GeM, a BN neck and a classifier for each feature, modality heads.

    Attributes:
      num_classes: C.
      backbone_options: of `ResNet`; its remat is that of the purifier too.
      purifier_options: of `Purifier`; None: no purifier, and no "purified".
      classified: of "sh", "sp", "purified": the features with a neck and a classifier.
      entropy_head: what judges f^d+ against f_sp in L_e: "raw" the neck and classifier of "sp",
        "own" a classifier of pooled features; None: neither L_e nor L_r.
      discriminated: "sp" or "purified", what the discriminator sees; None: no discriminator.
      confused: whether there is a confuser of "sh".
      modality_stages: of those two: ("neck",), or stages whose pooled maps each get a head.
      reverses: whether the gradient is reversed before the confuser.
      dropout: of the modality heads.
    """

    num_classes: int
    backbone_options: Mapping[str, Any]
    purifier_options: Mapping[str, Any] | None
    classified: Sequence[str]
    entropy_head: str | None
    discriminated: str | None
    confused: bool
    modality_stages: Sequence[str]
    reverses: bool
    dropout: float

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        self.backbone = ResNet(**self.backbone_options)
        if self.purifier_options is not None:
            remat = self.backbone_options.get("remat", False)
            self.purifier = rematerialized(Purifier, self, remat)(**self.purifier_options)
        groups = self.backbone_options.get("groups", 1)
        neck = partial(BatchNorm, use_bias=False, groups=groups)
        classifier = partial(
            nn.Dense, self.num_classes, use_bias=False, kernel_init=init.torch_uniform()
        )
        self.neck = {name: neck() for name in self.classified}  # neck_sh, ...
        self.classifier = {name: classifier() for name in self.classified}
        if self.entropy_head == "own":
            self.classifier_entropy = classifier()
        head = partial(ModalityClassifier, dropout=self.dropout, groups=groups)
        if self.discriminated is not None:
            self.discriminator = {stage: head() for stage in self.modality_stages}
        if self.confused:
            self.confuser = {stage: head() for stage in self.modality_stages}

    def __call__(
        self, visible: jax.Array, infrared: jax.Array, strength: Any = 1.0
    ) -> dict[str, Any]:
        """The training pass on standardized images [B, H, W, 3].

        Args:
          visible, infrared: row b of both shows one identity.
          strength: of the gradient reversal before the confuser.

        Returns:
          "pool": {"sh", "sp", and "purified": [B, 2, D]}, visible first; "logits": the same
          for `classified`, [B, 2, C]; "enhanced", "plain": logits [2B, C] of f^d+ and f_sp for
          L_e; "reduced", "normalized": [B, 2, D] for L_r;
          "discriminator", "confuser": a list of logits [2B, 2], row 2b + m of modality m. Each
          as far as it is asked for.
        """
        shared, specific = self.backbone(
            [visible, infrared], train=True, branches=("", SPECIFIC), fork=3
        )
        maps = {"sh": shared[-1], "sp": specific[-1]}
        purified: Any = None
        if self.purifier_options is not None:
            purified = self.purifier(specific[-1])
            maps["purified"] = purified.purified
        pool = {name: gem_above(x) for name, x in maps.items()}  # [2B, D], as all below
        neck = {name: self.neck[name](pool[name], train=True) for name in self.classified}
        logits = {name: self.classifier[name](neck[name]) for name in self.classified}
        out: dict[str, Any] = {
            key: {name: deinterleave(x, 2) for name, x in features.items()}
            for key, features in (("pool", pool), ("logits", logits))
        }
        if self.entropy_head is not None:
            enhanced = gem_above(purified.enhanced)
            if self.entropy_head == "own":
                out["enhanced"], out["plain"] = map(self.classifier_entropy, (enhanced, pool["sp"]))
            else:
                out["enhanced"] = self.classifier["sp"](self.neck["sp"](enhanced, train=True))
                out["plain"] = logits["sp"]
            out["reduced"], out["normalized"] = (
                deinterleave(gem_above(x), 2) for x in (purified.reduced, purified.normalized)
            )
        stages = {"layer3": -2, "layer4": -1}

        def seen(name: str, stage: str, branch: list[jax.Array]) -> jax.Array:
            return neck[name] if stage == "neck" else gem_above(branch[stages[stage]])

        if self.discriminated is not None:
            out["discriminator"] = [
                head(seen(self.discriminated, stage, specific), train=True)
                for stage, head in self.discriminator.items()
            ]
        if self.confused:
            out["confuser"] = []
            for stage, head in self.confuser.items():
                x = seen("sh", stage, shared)
                x = reverse_gradient(x, strength) if self.reverses else x
                out["confuser"].append(head(x, train=True))
        return out

    def embed(self, images: jax.Array, modality: int = VISIBLE) -> dict[str, jax.Array]:
        """Features of the shared branch alone, [N, D]: after the neck, and before it.

        Both modalities go through the same parameters.
        """
        del modality
        pool = gem_above(self.backbone([images], train=False))
        return {"bn": self.neck["sh"](pool, train=False), "pool": pool}
