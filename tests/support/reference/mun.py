"""The whole MUN model (Yu et al., ICCV 2023) in PyTorch.

Visible, infrared and auxiliary are v, r and a in the paper; Z are pooled features.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from . import losses
from .auxiliary import Unifying
from .metric import batch_hard_triplet
from .mun_losses import accumulate, alignment, beta, modality_alignment
from .pooling import GeM
from .resnet import BatchNorm, ResNet
from .smcl import generator_of

Tensors = dict[str, torch.Tensor]
NAMES = ("visible", "infrared", "auxiliary")


# --- Model ------------------------------------------------------------------------------


class MUN(nn.Module):
    """Generator, trunk, pooling, neck, classifiers and prototype maps.

    Options have the names and defaults of `vireid_jax.methods.mun.method.build`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_ids: int,
        num_instances: int,
        num_steps: int,
        depth: int = 50,
        width: int = 64,
        last_stride: int = 1,
        specific: int = 2,
        auxiliary: str = "mun",
        smgm_width: int = 16,
        smgm_input: str = "standardized",
        generator_ratios: Sequence[int] = (2, 4, 6, 12),
        normalize: bool = False,
        tri_margin: float = 0.3,
        idc_weight: float = 0.25,
        ida_weight: float = 0.0,
        ia_weight: float = 0.5,
        ia_margin: float = 0.55,
        ma_weight: float = 0.008,
        prototypes: bool = True,
        bridge: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.specific = auxiliary, specific
        if auxiliary == "none":  # the baseline
            idc_weight = ida_weight = ia_weight = ma_weight = 0.0
        copies = 2 if auxiliary in ("none", "mun") else 3  # other images have one of their own
        self.backbone = ResNet(depth, width, last_stride, specific, copies=copies)
        if auxiliary == "mun":
            channels = width if specific == 1 or depth in (10, 18, 34) else 4 * width
            self.auxiliary = Unifying(channels, tuple(generator_ratios))
        else:
            self.auxiliary = generator_of(auxiliary, (smgm_width, smgm_input))
        d = self.backbone.features
        self.pool = GeM(3.0)
        self.neck = BatchNorm(d, use_bias=False)
        self.classifier_visible = nn.Linear(d, num_classes, bias=False)
        self.classifier_infrared = nn.Linear(d, num_classes, bias=False)
        if ida_weight:
            self.classifier_auxiliary = nn.Linear(d, num_classes, bias=False)
        self.prototypes = bool(ma_weight) and prototypes
        if self.prototypes:
            for name in NAMES:
                self.add_module(f"prototype_{name}", nn.Linear(d, d, bias=False))
        self.weights = {
            "id_visible": 1.0,
            "id_infrared": 1.0,
            "tri": 1.0,
            "idc": idc_weight,
            "ida": ida_weight,
            "ia": ia_weight,
            "ma": ma_weight,
        }
        self.num_steps = num_steps
        self.normalize, self.tri_margin, self.ia_margin = normalize, tri_margin, ia_margin
        self.bridge = bridge
        # The prototypes of the step before; nothing of them is used in the first one.
        self.memory: Tensors = {}
        if self.prototypes:
            self.memory = {"prototype": torch.zeros(num_ids * num_instances, 3, d).double()}

    # --- From images to features ---

    def features(self, visible: torch.Tensor, infrared: torch.Tensor) -> Tensors:
        """The training pass: [B, 3, H, W] for each modality -> Z [B, D] for each."""
        images, stems, generate = [visible, infrared], [0, 1], None
        names = NAMES[:2] if self.kind == "none" else NAMES
        if self.kind == "mun":

            def generate(maps: list[torch.Tensor]) -> list[torch.Tensor]:
                return [*maps, self.auxiliary(*maps)[0]]

        elif self.kind != "none":
            images.append(self.auxiliary(visible, infrared))
            stems.append(2)
        z = self.pool(self.backbone(images, stems, generate, self.specific))
        return dict(zip(names, z.unflatten(0, (-1, len(names))).unbind(1), strict=True))

    def normalized(self, z: Tensors) -> Tensors:
        """Z after the neck, which all modalities pass together."""
        f = self.neck(torch.stack(list(z.values()), 1).flatten(0, 1))
        return dict(zip(z, f.unflatten(0, (-1, len(z))).unbind(1), strict=True))

    def embed(self, images: torch.Tensor, modality: int) -> Tensors:
        """Features of one modality: after the neck ("bn"), and Z."""
        z = self.pool(self.backbone([images], [modality], after=self.specific))
        return {"bn": self.neck(z), "pool": z}

    # --- Prototypes ---

    def mapped(self, z: torch.Tensor) -> torch.Tensor:
        """W_p^m Z^m for every modality: [B, 3, D] -> [B, 3, D]."""
        result = []
        for m, name in enumerate(NAMES):
            w = self.get_submodule(f"prototype_{name}").weight
            result.append(torch.stack([w @ row for row in z[:, m]]))
        return torch.stack(result, 1)

    def remembered(self, z: torch.Tensor, step: int) -> torch.Tensor:
        """T of eqs. (13) and (14), which the memory then has, or Z itself."""
        if not self.prototypes:
            return z
        weight = beta(step, self.num_steps) if step else 1.0  # eq. (13)
        t = accumulate(self.mapped(z), weight, self.memory["prototype"])
        self.memory = {"prototype": t.detach()}
        return t

    # --- Objective ---

    def terms(self, batch: Tensors, step: int) -> Tensors:
        """The unweighted terms of eq. (17) whose weight is not 0."""
        labels = batch["label"]
        z = self.features(batch["visible"], batch["infrared"])
        f = self.normalized(z)

        def classify(head: str, modality: str) -> torch.Tensor:
            logits = self.get_submodule(f"classifier_{head}")(f[modality])
            return losses.cross_entropy(logits, labels)

        def unit(rows: torch.Tensor) -> torch.Tensor:
            if not self.normalize:
                return rows
            return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)

        pair = torch.stack([z["visible"], z["infrared"]], 1)
        terms = {
            "id_visible": classify("visible", "visible"),
            "id_infrared": classify("infrared", "infrared"),
            "tri": batch_hard_triplet(unit(pair), labels, self.tri_margin),
        }
        if self.weights["idc"]:
            terms["idc"] = classify("visible", "auxiliary") + classify("infrared", "auxiliary")
        if self.weights["ida"]:
            terms["ida"] = classify("auxiliary", "auxiliary")
        if self.weights["ia"]:
            rows = unit(torch.stack([z[m] for m in NAMES], 1))
            terms["ia"] = alignment(rows, labels, self.ia_margin)
        if self.weights["ma"]:
            t = self.remembered(torch.stack([z[m] for m in NAMES], 1), step)
            terms["ma"] = modality_alignment(t, labels, self.bridge)
        return terms

    def total(self, terms: Tensors, step: int) -> torch.Tensor:
        """Eq. (17)."""
        return torch.stack([self.weights[k] * v for k, v in terms.items()]).sum()


@torch.no_grad()
def project(model: MUN) -> None:
    """Brings the layer scales back into (0, 1]."""
    for name, p in model.named_parameters():
        if name.endswith("layer_scale"):
            p.copy_(functional.hardtanh(p, 1e-6, 1.0))
