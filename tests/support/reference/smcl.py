"""The whole SMCL model (Wei et al., ICCV 2021) in PyTorch."""

import torch
from torch import nn

from . import losses
from . import metric as metrics
from .pooling import GAP
from .resnet import BatchNorm, ResNet

Tensors = dict[str, torch.Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the standardized images


class SMGM(nn.Module):
    """Sec. 3.1: 1x1 convolution, eq. (1) the product of the two maps, ReLU, 1x1 convolution."""

    def __init__(self, width: int = 16, space: str = "standardized") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 1)
        self.conv2 = nn.Conv2d(width, 3, 1)
        self.space = space

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        mean = visible.new_tensor(MEAN)[:, None, None]
        std = visible.new_tensor(STD)[:, None, None]
        if self.space == "unit":  # the generator works on pixels in 0 .. 1
            visible, infrared = visible * std + mean, infrared * std + mean
        s = self.conv2(torch.relu(self.conv1(visible) * self.conv1(infrared)))
        return (s - mean) / std if self.space == "unit" else s


def generator_of(auxiliary: str, smgm: tuple[int, str]) -> nn.Module | None:
    """What makes the third modality, an image."""
    from . import auxiliary as modalities  # which imports this module

    if auxiliary == "syncretic":
        return SMGM(*smgm)
    images = {"x": modalities.X, "gray": modalities.Gray, "mixed": modalities.Mixed}
    return images[auxiliary]() if auxiliary in images else None


METRICS = {
    "bh_tri": metrics.batch_hard_triplet,
    "hc_tri": metrics.hetero_center_triplet,
    "bdtr": metrics.bdtr,
    "bicenter": metrics.bi_center,
}


class SMCL(nn.Module):
    """Generator, trunk, pooling, normalization neck and identity classifier.

    Options have the names and defaults of `vireid_jax.methods.smcl.method.build`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        width: int = 64,
        last_stride: int = 1,
        auxiliary: str = "syncretic",
        smgm_width: int = 16,
        smgm_input: str = "standardized",
        id_margin: float = 4.0,
        metric: str = "adsl",
        center_margin: float = 0.3,
        normalize_centers: bool = False,
        triplet_margin: float = 0.3,
        bicenter_margin: float = 0.5,
        metric_weight: float = 0.5,
        switch: int = 0,
    ) -> None:
        super().__init__()
        self.kind = auxiliary
        self.backbone = ResNet(depth, width, last_stride)
        self.auxiliary = generator_of(auxiliary, (smgm_width, smgm_input))
        self.pool = GAP()
        self.neck = BatchNorm(self.backbone.features, use_bias=False)
        self.classifier = nn.Linear(self.backbone.features, num_classes, bias=False)
        self.id_margin = id_margin
        self.center_margin, self.normalize = center_margin, normalize_centers
        self.metric_weight, self.metric, self.switch = metric_weight, metric, switch
        self.of_metric = {
            "bh_tri": dict(margin=triplet_margin),
            "hc_tri": dict(margin=triplet_margin),
            "bdtr": {},
            "bicenter": dict(margin=bicenter_margin),
        }

    def forward(
        self, visible: torch.Tensor, infrared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 3, H, W] twice -> pooled features g [B, M, D] and logits [B, M, C]."""
        images = [visible, infrared]
        if self.auxiliary is not None:
            images.append(self.auxiliary(visible, infrared))
        g = self.pool(self.backbone(images))
        split = (-1, len(images))
        return g.unflatten(0, split), self.classifier(self.neck(g)).unflatten(0, split)

    def terms(self, batch: Tensors, step: int) -> Tensors:
        """The unweighted terms of eq. (4) and eq. (8)."""
        labels = batch["label"]
        g, logits = self(batch["visible"], batch["infrared"])
        terms = {
            "id_visible": losses.cross_entropy(logits[:, 0], labels),
            "id_infrared": losses.cross_entropy(logits[:, 1], labels, self.id_margin),
        }
        if self.kind != "none":
            terms[f"id_{self.kind}"] = losses.cross_entropy(logits[:, 2], labels)
        return {**terms, **self.metric_terms(g, labels)}

    def metric_terms(self, g: torch.Tensor, labels: torch.Tensor) -> Tensors:
        """The terms of eq. (8), or the one in their place."""
        if self.metric != "adsl":
            pair = g[:, :2]
            if self.normalize:
                pair = torch.stack([x / losses.norm(x) for x in pair.flatten(0, 1)]).view_as(pair)
            return {self.metric: METRICS[self.metric](pair, labels, **self.of_metric[self.metric])}
        terms = {"global_center": losses.global_center(g, labels, self.normalize)}
        if self.kind != "none":
            terms["tri_center"] = losses.tri_center(g, labels, self.center_margin, self.normalize)
        return terms

    def total(self, terms: Tensors, step: int) -> torch.Tensor:
        """Eq. (4), or eq. (9) once incremental training has brought the metric losses in."""
        by_name = [(k.startswith("id_"), v) for k, v in terms.items()]
        total = torch.stack([v for identity, v in by_name if identity]).sum()
        adsl = torch.stack([v for identity, v in by_name if not identity]).sum()  # eq. (8)
        return total + self.metric_weight * adsl if step >= self.switch else total

    def embed(self, images: torch.Tensor, modality: int) -> Tensors:
        """Features of one modality: f after the neck ("bn") and g before it ("pool")."""
        g = self.pool(self.backbone([images]))
        return {"bn": self.neck(g), "pool": g}
