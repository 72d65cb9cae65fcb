"""The whole SMCL model (Wei et al., ICCV 2021) and its training step in PyTorch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from . import losses
from .resnet import BatchNorm, ResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the standardized images


class SMGM(nn.Module):
    """Sec. 3.1: 1x1 convolution, eq. (1) the product of the two maps, ReLU, 1x1 convolution."""

    def __init__(self, width: int = 16, shared: bool = True, space: str = "standardized") -> None:
        super().__init__()
        if shared:
            self.conv1 = nn.Conv2d(3, width, 1)
        else:
            self.conv1_visible = nn.Conv2d(3, width, 1)
            self.conv1_infrared = nn.Conv2d(3, width, 1)
        self.conv2 = nn.Conv2d(width, 3, 1)
        self.shared, self.space = shared, space

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        mean = visible.new_tensor(MEAN)[:, None, None]
        std = visible.new_tensor(STD)[:, None, None]
        if self.space == "unit":  # the generator works on pixels in 0 .. 1
            visible, infrared = visible * std + mean, infrared * std + mean
        v = (self.conv1 if self.shared else self.conv1_visible)(visible)
        i = (self.conv1 if self.shared else self.conv1_infrared)(infrared)
        s = self.conv2(torch.relu(v * i))
        return (s - mean) / std if self.space == "unit" else s


class GAP(nn.Module):
    """Mean over the map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class GeM(nn.Module):
    """Generalized mean over the map: mean(max(x, eps)^p)^(1/p) with a learnt p."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.clamp(min=1e-6) ** self.p).mean((2, 3)) ** (1 / self.p)


def _sum(values: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).sum()


def adsl(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """Eq. (8): the metric terms, unweighted."""
    return _sum(v for k, v in terms.items() if not k.startswith("id_"))


class SMCL(nn.Module):
    """Generator, trunk, pooling, normalization neck and identity classifier.

    Options have the names and defaults of `vireid_jax.methods.smcl.build`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        width: int = 64,
        last_stride: int = 1,
        specific: int = 0,
        pooling: str = "gap",
        auxiliary: str = "syncretic",
        none_metric: str = "global",
        smgm_width: int = 16,
        smgm_shared: bool = True,
        smgm_input: str = "standardized",
        id_margin: float = 4.0,
        cehl_form: str = "both",
        center_margin: float = 0.3,
        normalize_centers: bool = False,
        metric_weight: float = 0.5,
        bn_running: str = "all",
    ) -> None:
        super().__init__()
        self.syncretic = auxiliary == "syncretic"
        self.kept = 2 if self.syncretic and bn_running == "vi" else None
        if self.syncretic:
            self.smgm = SMGM(smgm_width, smgm_shared, smgm_input)
        self.backbone = ResNet(depth, width, last_stride, specific, self.kept)
        self.pool = GeM() if pooling == "gem" else GAP()
        self.neck = BatchNorm(self.backbone.features, use_bias=False)
        self.classifier = nn.Linear(self.backbone.features, num_classes, bias=False)
        self.id_margin, self.cehl_form = id_margin, cehl_form
        self.center_margin, self.normalize = center_margin, normalize_centers
        self.metric_weight, self.none_metric = metric_weight, none_metric

    def forward(
        self, visible: torch.Tensor, infrared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 3, H, W] twice -> pooled features g [B, M, D] and logits [B, M, C]."""
        images = [visible, infrared]
        if self.syncretic:
            images.append(self.smgm(visible, infrared))
        # The syncretic image has no stem of its own: it takes the visible one if there are two.
        maps = self.backbone(images, stems=(0, 1, 0)[: len(images)])
        g = self.pool(maps)
        kept = None if self.kept is None else (len(images), self.kept)
        logits = self.classifier(self.neck(g, kept))
        return g.unflatten(0, (-1, len(images))), logits.unflatten(0, (-1, len(images)))

    def terms(
        self, visible: torch.Tensor, infrared: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The unweighted terms of eq. (4) and eq. (8)."""
        g, logits = self(visible, infrared)
        terms = {
            "id_visible": losses.cross_entropy(logits[:, 0], labels),
            "id_infrared": losses.cross_entropy(
                logits[:, 1], labels, self.id_margin, self.cehl_form
            ),
        }
        if self.syncretic:
            terms["id_syncretic"] = losses.cross_entropy(logits[:, 2], labels)
            terms["tri_center"] = losses.tri_center(g, labels, self.center_margin, self.normalize)
        elif self.none_metric == "vi_symmetric":  # in the place of eq. (6)
            terms["symmetric_center"] = losses.symmetric_center(
                g, labels, self.center_margin, self.normalize
            )
        terms["global_center"] = losses.global_center(g, labels, self.normalize)
        return terms

    def total(self, terms: dict[str, torch.Tensor], metric: bool) -> torch.Tensor:
        """Eq. (4), or eq. (9) once incremental training has brought the metric losses in."""
        total = _sum(v for k, v in terms.items() if k.startswith("id_"))
        return total + self.metric_weight * adsl(terms) if metric else total

    @torch.no_grad()
    def embed(self, images: torch.Tensor, modality: int) -> dict[str, torch.Tensor]:
        """Test features of one modality: f after the neck ("bn") and g before it ("pool")."""
        training = self.training
        self.eval()
        g = self.pool(self.backbone([images], stems=(modality,)))
        f = self.neck(g)
        self.train(training)
        return {"bn": f, "pool": g}


def make_optimizer(
    model: nn.Module, options: dict[str, Any]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam or SGD as PyTorch has them (weight decay joins the gradient), and MultiStepLR.

    `options`: name, lr, weight_decay, (momentum), milestones in steps, gamma.
    """
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    rest = {k: v for k, v in options.items() if k not in ("name", "milestones", "gamma")}
    optimizer = kinds[options["name"]](model.parameters(), **rest)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, options.get("milestones", ()), options.get("gamma", 0.1)
    )
    return optimizer, schedule


def train_step(
    model: SMCL,
    optimizer: torch.optim.Optimizer,
    images: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    metric: bool,
) -> dict[str, torch.Tensor]:
    """One step on eq. (4) or (9), Algorithm 1 with one update; returns terms and total."""
    optimizer.zero_grad()
    terms = model.terms(*images, labels)
    total = model.total(terms, metric)
    total.backward()
    optimizer.step()
    return {**{k: v.detach() for k, v in terms.items()}, "total": total.detach()}


def metric_step(
    model: SMCL,
    optimizer: torch.optim.Optimizer,
    images: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
) -> torch.Tensor:
    """The second update of Algorithm 1 read literally, on the weighted eq. (8); returns eq. (8).

    It goes through the network again, at the parameters that the first update left. A batch
    counts once for the running statistics: those of the first pass stand. Neck and classifier
    get a zero gradient, not none, as in the PyTorch of the paper's time: their moments and the
    decay move them a second time.
    """
    statistics = {k: v.clone() for k, v in model.named_buffers()}
    optimizer.zero_grad(set_to_none=False)
    terms = model.terms(*images, labels)
    value = adsl(terms)
    (model.metric_weight * value).backward()
    optimizer.step()
    for k, v in model.named_buffers():
        v.copy_(statistics[k])
    return value.detach()
