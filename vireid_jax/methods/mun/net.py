"""The network of MUN: Modality Unifying Network (Yu et al., ICCV 2023), fig. 2.

Each modality has first stages of its own, the others are shared; a generator between them
makes the maps of the auxiliary modality, or a third image joins the first two.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.nets import auxiliary as aux
from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import GeM, gem
from vireid_jax.nets.resnet import ResNet, deinterleave, feature_width
from vireid_jax.types import INFRARED, STEMS, VISIBLE


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
            remat = self.backbone_options.get("remat", False) and not self.is_initializing()
            self.auxiliary: Any = aux.make(
                self.auxiliary_kind, **self.auxiliary_options, remat=remat
            )
        self.backbone = ResNet(**self.backbone_options)
        if self.gem_learned:
            self.pool = GeM(self.gem_p)
        if self.with_neck:
            self.neck = BatchNorm(
                use_bias=False,
                running=self.neck_running,
                groups=self.backbone_options.get("groups", 1),
            )
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
          "second", "auxiliary"; "logits": {(classifier, modality): [B, C]}.
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
        if self.prototype_map is not None and self.is_initializing():
            self.mapped(pool)
        return {"pool": pool, "logits": self._logits(neck)}

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

    def mapped(self, pool: Mapping[str, jax.Array]) -> jax.Array:
        """W_m Z_m of the three modalities (eq. 13), [B, 3, D], for all rows of a batch."""
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

        def refine(maps: list[jax.Array]) -> list[jax.Array]:
            # The same map twice: of the three results only this modality's is computed.
            return [self.auxiliary(maps[0], maps[0], train=False)[1 + modality]]

        maps = self.backbone(
            [images],
            stems=[modality],
            train=False,
            generate=refine if self.refined else None,
            after=self.backbone_options["specific"],
        )
        z = self._pool(maps)
        return {"bn": self.neck(z, train=False), "pool": z} if self.with_neck else {"pool": z}


def _identity(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.eye(*shape, dtype=dtype))
