"""AGW (Ye et al., arXiv 2001.04193) for two modalities and CAJ's joint learning, in PyTorch.

Rows are in the order of the authors' code: a modality after the other, visible images first, and
with CAJ's second view [visible; the same in other channels; infrared].
"""

from typing import Any

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
        tri_form: str = "weighted",
        tri_weight: float = 1.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.second_view, self.tri_form = second_view, tri_form
        self.normalize, self.tri_weight = normalize, tri_weight
        self.backbone = ResNet(depth, width, last_stride, specific=1)
        bottleneck, blocks = LAYOUTS[depth]
        for stage, last in LAST.items():
            channels = width * 2 ** (stage - 1) * (4 if bottleneck else 1)
            for block in range(max(blocks[stage - 1] - last, 0), blocks[stage - 1]):
                self.add_module(f"attention_layer{stage}_{block}", NonLocal(channels))
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

    def terms(self, visible: list[torch.Tensor], infrared: torch.Tensor, t: torch.Tensor) -> Any:
        """The unweighted terms; `visible` are one or two views, t the labels of a modality."""
        pool = self.pooled({"visible": torch.cat(visible), "infrared": infrared})
        person = t.repeat(len(visible) + 1)
        terms = {"id": functional.cross_entropy(self.classifier(self.neck(pool)), person)}
        if self.tri_weight:
            rows = functional.normalize(pool) if self.normalize else pool
            if self.tri_form == "weighted":
                terms["tri"] = weighted_regularized_triplet(rows[:, None], person)
            else:
                terms["tri"] = squared_difference(rows[:, None], person)
        return terms

    def total(self, terms: Tensors) -> torch.Tensor:
        """What is minimized."""
        return terms["id"] + self.tri_weight * terms["tri"] if "tri" in terms else terms["id"]

    @torch.no_grad()
    def embed(self, images: torch.Tensor, modality: int) -> Tensors:
        """Test features."""
        training = self.training
        self.eval()
        pool = self.pooled({NAMES[modality]: images})
        neck = self.neck(pool)
        self.train(training)
        return {"bn": neck, "pool": pool}


def optimizer(model: nn.Module, options: dict[str, Any]) -> torch.optim.SGD:
    """SGD as in the authors' code: necks and classifiers at the rate, all else at a tenth."""
    heads = [p for k, p in model.named_parameters() if k.startswith(("neck", "classifier"))]
    ids = {id(p) for p in heads}
    rest = [p for p in model.parameters() if id(p) not in ids]
    lr = options["lr"]
    groups: Any = [{"params": rest, "lr": 0.1 * lr}, {"params": heads, "lr": lr}]
    return torch.optim.SGD(groups, **{"momentum": 0.9, "nesterov": True, **options})


def adjust(optimizer: torch.optim.SGD, lr: float) -> None:
    """Gives the groups of `optimizer` their rates."""
    for group, factor in zip(optimizer.param_groups, (0.1, 1.0), strict=True):
        group["lr"] = factor * lr
