"""The whole SMCL model (Wei et al., ICCV 2021) and its training step in PyTorch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import losses
from . import metric as metrics
from .pooling import GAP, LearnedGeM
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


def _sum(values: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).sum()


def adsl(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """Eq. (8): the metric terms, unweighted."""
    return _sum(v for k, v in terms.items() if not k.startswith("id_"))


def generator_of(
    auxiliary: str,
    smgm: tuple[int, bool, str],
    x: tuple[int, str],
    channels: int,
    size: tuple[int, int],
    options: Mapping[str, Any],
) -> nn.Module | None:
    """What makes the third modality; `channels` and `size` are of the maps after layer1."""
    from . import auxiliary as modalities  # which imports this module

    if auxiliary == "syncretic":
        return SMGM(*smgm)
    if auxiliary == "x":
        return modalities.X(*x)
    if auxiliary == "gray":
        return modalities.Gray()
    if auxiliary == "mixed":
        return modalities.Mixed()
    if auxiliary == "mun":
        return modalities.Unifying(channels, size, **options)
    return None


class SMCL(nn.Module):
    """Generator, trunk, pooling, normalization neck and identity classifier.

    Options have the names and defaults of `vireid_jax.methods.smcl.method.build`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: Sequence[int] = (0, 0),
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
        x_width: int = 1,
        x_input: str = "unit",
        generator: Mapping[str, Any] | None = None,
        id_margin: float = 4.0,
        cehl_form: str = "both",
        metric: str = "adsl",
        center_margin: float = 0.3,
        normalize_centers: bool = False,
        triplet_margin: float = 0.3,
        bdtr_form: str = "orig",
        bicenter_margin: float = 0.5,
        bicenter_joint: bool = False,
        metric_weight: float = 0.5,
        bn_running: str = "all",
    ) -> None:
        super().__init__()
        self.kind = auxiliary
        self.kept = 2 if auxiliary != "none" and bn_running == "vi" else None
        self.backbone = ResNet(depth, width, last_stride, specific, self.kept)
        self.auxiliary = generator_of(
            auxiliary,
            (smgm_width, smgm_shared, smgm_input),
            (x_width, x_input),
            self.backbone.features // 8,
            ((image_size[0] + 3) // 4, (image_size[1] + 3) // 4),
            generator or {},
        )
        self.pool = LearnedGeM() if pooling == "gem" else GAP()
        self.neck = BatchNorm(self.backbone.features, use_bias=False)
        self.classifier = nn.Linear(self.backbone.features, num_classes, bias=False)
        self.id_margin, self.cehl_form = id_margin, cehl_form
        self.center_margin, self.normalize = center_margin, normalize_centers
        self.metric_weight, self.none_metric = metric_weight, none_metric
        self.metric = metric
        self.of_metric = {
            "bh_tri": dict(margin=triplet_margin),
            "hc_tri": dict(margin=triplet_margin),
            "bdtr": dict(form=bdtr_form),
            "bicenter": dict(margin=bicenter_margin, joint=bicenter_joint),
        }

    def forward(
        self, visible: torch.Tensor, infrared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 3, H, W] twice -> pooled features g [B, M, D] and logits [B, M, C]."""
        images, generate = [visible, infrared], None
        if self.kind == "mun":  # a third map after layer1

            def generate(maps: list[torch.Tensor]) -> list[torch.Tensor]:
                return [*maps, self.auxiliary(*maps)[0]]

        elif self.auxiliary is not None:
            images.append(self.auxiliary(visible, infrared))
        # A third image has no stem of its own: it takes the visible one if there are two.
        maps = self.backbone(images, stems=(0, 1, 0)[: len(images)], generate=generate)
        g = self.pool(maps)
        modalities = 2 if self.kind == "none" else 3
        logits = self.classifier(self.neck(g, self.kept and (modalities, self.kept)))
        return g.unflatten(0, (-1, modalities)), logits.unflatten(0, (-1, modalities))

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
        if self.kind != "none":
            terms[f"id_{self.kind}"] = losses.cross_entropy(logits[:, 2], labels)
        return {**terms, **self.metric_terms(g, labels)}

    def metric_terms(self, g: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of eq. (8), or the one in their place."""
        if self.metric != "adsl":
            function = {
                "bh_tri": metrics.batch_hard_triplet,
                "hc_tri": metrics.hetero_center_triplet,
                "bdtr": metrics.bdtr,
                "bicenter": metrics.bi_center,
            }[self.metric]
            pair = g[:, :2]
            if self.normalize:
                pair = torch.stack([x / losses.norm(x) for x in pair.flatten(0, 1)]).view_as(pair)
            return {self.metric: function(pair, labels, **self.of_metric[self.metric])}
        terms = {"global_center": losses.global_center(g, labels, self.normalize)}
        if self.kind != "none":
            terms["tri_center"] = losses.tri_center(g, labels, self.center_margin, self.normalize)
        elif self.none_metric == "vi_symmetric":  # in the place of eq. (6)
            terms["symmetric_center"] = losses.symmetric_center(
                g, labels, self.center_margin, self.normalize
            )
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


@torch.no_grad()
def project(model: SMCL) -> None:
    """Brings the layer scales of MUN's generator back into (0, 1]."""
    for name, p in model.named_parameters():
        if name.endswith("layer_scale"):
            p.copy_(functional.hardtanh(p, 1e-6, 1.0))


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
    project(model)
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
    project(model)
    for k, v in model.named_buffers():
        v.copy_(statistics[k])
    return value.detach()
