"""AGW (Ye et al., arXiv 2001.04193) for two modalities and CAJ's joint learning, in PyTorch.

Rows are in the order of the authors' code: a modality after the other, visible images first, and
with CAJ's second view [visible; the same in other channels; infrared].
"""

import torch
from torch import nn
from torch.nn import functional

from .attention import NonLocal
from .metric import weighted_regularized_triplet
from .pairmining import squared_difference
from .pooling import GeM
from .resnet import LAYOUTS, BatchNorm, ResNet

Tensors = dict[str, torch.Tensor]

NAMES = ("visible", "infrared")
# Of ResNet-50's four and six blocks the last two and three; here of any depth's.
LAST = {2: 2, 3: 3}


class AGW(nn.Module):
    """Options have the names and defaults of `vireid_jax.methods.agw.method.build`."""

    def __init__(
        self,
        *,
        num_classes: int,
        second_view: bool = False,
        depth: int = 50,
        width: int = 64,
        last_stride: int = 1,
        non_local: str = "one",
        tri_form: str = "weighted",
        tri_weights: str = "released",
        tri_weight: float = 1.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.second_view, self.tri_form, self.tri_weights = second_view, tri_form, tri_weights
        self.normalize, self.tri_weight = normalize, tri_weight
        self.backbone = ResNet(depth, width, last_stride, specific=1)
        bottleneck, blocks = LAYOUTS[depth]
        for stage, last in LAST.items():
            channels = width * 2 ** (stage - 1) * (4 if bottleneck else 1)
            for block in range(max(blocks[stage - 1] - last, 0), blocks[stage - 1]):
                self.add_module(f"attention_layer{stage}_{block}", NonLocal(channels, non_local))
        self.pool = GeM(3.0)
        self.neck = BatchNorm(self.backbone.features, use_bias=False)
        self.classifier = nn.Linear(self.backbone.features, num_classes, bias=False)

    def pooled(self, images: Tensors) -> torch.Tensor:
        """Images [N, 3, H, W] by stem to features of all, one stem after the other."""
        x = torch.cat([self.backbone.get_submodule(k)["stem"](v) for k, v in images.items()])
        for stage, blocks in self.backbone.shared.items():
            for n, block in enumerate(blocks):
                x = block(x)
                attention = getattr(self, f"attention_{stage}_{n}", None)
                x = x if attention is None else attention(x)
        return self.pool(x)

    def terms(self, batch: Tensors, step: int) -> Tensors:
        """The unweighted terms."""
        visible = [batch[k] for k in ("visible", "visible_second") if k in batch]
        pool = self.pooled({"visible": torch.cat(visible), "infrared": batch["infrared"]})
        person = batch["label"].repeat(len(visible) + 1)
        terms = {"id": functional.cross_entropy(self.classifier(self.neck(pool)), person)}
        if self.tri_weight:
            rows = functional.normalize(pool) if self.normalize else pool
            of = weighted_regularized_triplet if self.tri_form == "weighted" else squared_difference
            terms["tri"] = of(rows[:, None], person, weights=self.tri_weights)
        return terms

    def total(self, terms: Tensors, step: int) -> torch.Tensor:
        """What is minimized."""
        return terms["id"] + self.tri_weight * terms["tri"] if "tri" in terms else terms["id"]

    def embed(self, images: torch.Tensor, modality: int) -> Tensors:
        """Features after the neck, and before it."""
        pool = self.pooled({NAMES[modality]: images})
        return {"bn": self.neck(pool), "pool": pool}
