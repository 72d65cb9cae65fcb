"""The whole MUN model (Yu et al., ICCV 2023) and its training step in PyTorch.

Visible, infrared and auxiliary are v, r and a in the paper; Z are pooled features. The memory
of the prototypes is an argument and a result, never a state of the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import losses
from .auxiliary import Gray, Mixed, Unifying, X
from .metric import batch_hard_triplet, weighted_regularized_triplet
from .mun_losses import accumulate, alignment, beta, modality_alignment
from .pooling import GeM, LearnedGeM
from .resnet import BatchNorm, ResNet
from .smcl import SMGM

Features = dict[str, torch.Tensor]  # by modality, [B, D] each
Memory = dict[str, torch.Tensor]
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
        image_size: Sequence[int],
        second_view: bool = False,
        depth: int = 50,
        width: int = 64,
        last_stride: int = 1,
        specific: int = 2,
        auxiliary: str = "mun",
        aux_stem: str = "own",
        smgm_width: int = 16,
        smgm_shared: bool = True,
        smgm_input: str = "standardized",
        x_width: int = 1,
        x_input: str = "unit",
        generator: Mapping[str, Any] | None = None,
        shared_input: str = "raw",
        gem_p: float = 3.0,
        gem_learned: bool = False,
        neck: str = "shared",
        tri: str = "vr",
        tri_form: str = "hard",
        tri_margin: float = 0.3,
        tri_normalize: bool = False,
        idc_weight: float = 0.25,
        ida_weight: float = 0.0,
        ia_weight: float = 0.5,
        ma_weight: float = 0.008,
        ia_margin: float = 0.55,
        ia_form: str = "hinge",
        ia_normalize: bool = False,
        prototypes: str = "slot",
        prototype_map: str = "linear",
        beta_schedule: str = "linear",
        beta_role: str = "new",
        beta_first: str = "full",
        bridge: bool = True,
        mmd_bandwidth: str = "adaptive",
        mmd_sigma: float = 1.0,
        bn_running: str = "all",
    ) -> None:
        super().__init__()
        self.kind, self.specific = auxiliary, specific
        if auxiliary == "none":  # the baseline
            idc_weight = ida_weight = ia_weight = ma_weight = 0.0
            tri = "vr"
        self.refined = shared_input == "refined"
        self.third_stem = 2 if aux_stem == "own" else 0
        real = 3 if second_view else 2
        self.kept = real if bn_running == "vi" and auxiliary != "none" else None
        own_copy = auxiliary not in ("none", "mun") and aux_stem == "own"
        copies = 3 if own_copy else 2
        self.backbone = ResNet(depth, width, last_stride, specific, self.kept, copies)
        if auxiliary == "mun":
            channels = width if specific == 1 or depth in (10, 18, 34) else 4 * width
            size = tuple((side + 3) // 4 for side in image_size)  # of stage 1, rounded up twice
            self.auxiliary = Unifying(channels, size, **(generator or {}))
        elif auxiliary == "syncretic":
            self.auxiliary = SMGM(smgm_width, smgm_shared, smgm_input)
        elif auxiliary == "x":
            self.auxiliary = X(x_width, x_input)
        elif auxiliary in ("gray", "mixed"):
            self.auxiliary = {"gray": Gray, "mixed": Mixed}[auxiliary]()
        d = self.backbone.features
        self.pool = LearnedGeM(gem_p) if gem_learned else GeM(gem_p)
        self.neck = BatchNorm(d, use_bias=False) if neck == "shared" else None
        self.classifier_visible = nn.Linear(d, num_classes, bias=False)
        self.classifier_infrared = nn.Linear(d, num_classes, bias=False)
        if ida_weight:
            self.classifier_auxiliary = nn.Linear(d, num_classes, bias=False)
        if ma_weight and prototypes != "none" and prototype_map != "frozen":
            side = num_ids * num_instances if prototype_map == "slot" else d
            for name in ("shared",) if prototype_map == "shared" else NAMES:
                self.add_module(f"prototype_{name}", nn.Linear(side, side, bias=False))
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
        self.tri, self.tri_form, self.tri_margin = tri, tri_form, tri_margin
        self.tri_normalize = tri_normalize
        self.ia = dict(margin=ia_margin, form=ia_form, normalize=ia_normalize)
        self.prototypes, self.prototype_map = prototypes, prototype_map
        self.schedule, self.role, self.first = beta_schedule, beta_role, beta_first
        self.ma = dict(bridge=bridge, bandwidth=mmd_bandwidth, sigma=mmd_sigma)

    # --- From images to features ---

    def features(
        self, visible: torch.Tensor, infrared: torch.Tensor, second: torch.Tensor | None = None
    ) -> Features:
        """The training pass: [B, 3, H, W] for each modality -> Z [B, D] for each."""
        images = {"visible": visible, "infrared": infrared}
        stems = [0, 1]
        if second is not None:  # another view of the visible images
            images["second"] = second
            stems.append(0)
        names, generate = list(images), None
        if self.kind == "mun":
            generate = self.generate
        elif self.kind != "none":
            images["auxiliary"] = self.auxiliary(visible, infrared)
            stems.append(self.third_stem)
        if self.kind != "none":
            names.append("auxiliary")
        z = self.pool(self.backbone(list(images.values()), stems, generate, self.specific))
        return dict(zip(names, z.unflatten(0, (-1, len(names))).unbind(1), strict=True))

    def generate(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """F^v, F^r (and of a second view) -> what enters the shared stages: these and F^a."""
        visible, infrared, *second = maps
        made, refined_visible, refined_infrared = self.auxiliary(visible, infrared)
        if self.refined:
            return [refined_visible, refined_infrared, made]
        return [visible, infrared, *second, made]

    def normalized(self, z: Features) -> Features:
        """Z after the neck, which all modalities pass together."""
        if self.neck is None:
            return z
        kept = None if self.kept is None else (len(z), self.kept)
        f = self.neck(torch.stack(list(z.values()), 1).flatten(0, 1), kept)
        return dict(zip(z, f.unflatten(0, (-1, len(z))).unbind(1), strict=True))

    @torch.no_grad()
    def embed(self, images: torch.Tensor, modality: int) -> dict[str, torch.Tensor]:
        """Test features of one modality: after the neck ("bn"), where there is one, and Z."""
        training = self.training
        self.eval()
        learn = None
        if self.kind == "mun" and self.refined:
            intra = self.auxiliary.get_submodule(f"intra_{NAMES[modality]}")

            def learn(maps: list[torch.Tensor]) -> list[torch.Tensor]:
                return [intra(maps[0])]

        z = self.pool(self.backbone([images], [modality], generate=learn, after=self.specific))
        result = {"pool": z}
        if self.neck is not None:
            result = {"bn": self.neck(z), "pool": z}
        self.train(training)
        return result

    # --- Prototypes ---

    def mapped(self, z: torch.Tensor) -> torch.Tensor:
        """W_p^m Z^m for every modality: [B, M, D] -> [B, M, D]."""
        result = []
        for m in range(z.shape[1]):
            rows = z[:, m]
            if self.prototype_map == "frozen":
                result.append(rows)
                continue
            name = "shared" if self.prototype_map == "shared" else NAMES[m]
            w = self.get_submodule(f"prototype_{name}").weight
            if self.prototype_map == "slot":  # eq. (13) as typeset: W is B x B and mixes rows
                result.append(w @ rows)
            else:
                result.append(torch.stack([w @ row for row in rows]))
        return torch.stack(result, 1)

    def new_memory(self, num_classes: int, num_ids: int, num_instances: int) -> Memory:
        """What the memory is before the first step; nothing of it is used there."""
        d = self.backbone.features
        if self.prototypes == "slot":
            return {"prototype": torch.zeros(num_ids * num_instances, 3, d).double()}
        if self.prototypes == "identity":
            return {
                "prototype": torch.zeros(num_classes, num_instances, 3, d).double(),
                "seen": torch.zeros(num_classes).double(),
            }
        return {}

    def remembered(
        self, z: torch.Tensor, labels: torch.Tensor, step: int, memory: Memory
    ) -> tuple[torch.Tensor, Memory]:
        """Eqs. (13) and (14): T [B, 3, D] of this step, and the memory for the next."""
        if self.prototypes == "none":
            return z, {}
        new = self.mapped(z)
        weight = beta(step, self.num_steps, self.schedule)
        if self.role == "memory":
            weight = 1 - weight
        if step == 0:  # eq. (13)
            weight = 1.0
            if self.first == "stop":
                new = new.detach()
        return accumulate(new, labels, weight, memory)

    # --- Objective ---

    def terms(
        self,
        images: Sequence[torch.Tensor],
        labels: torch.Tensor,
        step: int,
        memory: Memory,
    ) -> tuple[dict[str, torch.Tensor], Memory]:
        """The unweighted terms of eq. (17) whose weight is not 0, and the new memory.

        images: visible, infrared and, with `second_view`, visible ones again.
        """
        z = self.features(*images)
        f = self.normalized(z)
        views = ["visible", "second"] if "second" in z else ["visible"]

        def classify(head: str, modality: str) -> torch.Tensor:
            logits = self.get_submodule(f"classifier_{head}")(f[modality])
            return losses.cross_entropy(logits, labels)

        terms = {
            "id_visible": torch.stack([classify("visible", m) for m in views]).mean(),
            "id_infrared": classify("infrared", "infrared"),
        }
        compared = [*views, "infrared", *(["auxiliary"] if self.tri == "vra" else [])]
        terms["tri"] = self.triplet(torch.stack([z[m] for m in compared], 1), labels)
        if self.weights["idc"]:
            terms["idc"] = classify("visible", "auxiliary") + classify("infrared", "auxiliary")
        if self.weights["ida"]:
            terms["ida"] = classify("auxiliary", "auxiliary")
        if self.weights["ia"]:
            # The center of a modality is that of the rows of all its views.
            rows = [torch.stack([z[m], z["infrared"], z["auxiliary"]], 1) for m in views]
            terms["ia"] = alignment(torch.cat(rows), labels.repeat(len(views)), **self.ia)
        if self.weights["ma"]:
            t, memory = self.remembered(torch.stack([z[m] for m in NAMES], 1), labels, step, memory)
            terms["ma"] = modality_alignment(t, labels, **self.ma)
        return terms, memory

    def triplet(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """L_tri over the rows [B, M, D] of some modalities."""
        if self.tri_normalize:
            rows = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        if self.tri_form == "weighted":
            return weighted_regularized_triplet(rows, labels)
        return batch_hard_triplet(rows, labels, self.tri_margin)

    def total(self, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Eq. (17)."""
        return torch.stack([self.weights[k] * v for k, v in terms.items()]).sum()


# --- Training ---------------------------------------------------------------------------


def make_optimizer(
    model: MUN, options: Mapping[str, Any]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a lower rate for the trunk, and MultiStepLR.

    Normalization layers, biases and layer scales, all that is not a matrix or a kernel, do
    not decay.

    `options`: lr, weight_decay, backbone (factor of the rate), milestones in steps, gamma.
    """
    groups = []
    for in_trunk in (True, False):
        for decays in (True, False):
            members = [
                p
                for name, p in model.named_parameters()
                if name.startswith("backbone.") == in_trunk and (p.ndim > 1) == decays
            ]
            groups.append(
                {
                    "params": members,
                    "lr": options["lr"] * (options["backbone"] if in_trunk else 1.0),
                    "weight_decay": options["weight_decay"] if decays else 0.0,
                }
            )
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, options.get("milestones", ()), options.get("gamma", 0.1)
    )
    return optimizer, schedule


@torch.no_grad()
def project(model: MUN) -> None:
    """Brings the layer scales back into (0, 1]."""
    for name, p in model.named_parameters():
        if name.endswith("layer_scale"):
            p.copy_(functional.hardtanh(p, 1e-6, 1.0))


def train_step(
    model: MUN,
    optimizer: torch.optim.Optimizer,
    images: Sequence[torch.Tensor],
    labels: torch.Tensor,
    step: int,
    memory: Memory,
) -> tuple[dict[str, torch.Tensor], Memory]:
    """One step on eq. (17), then the projection; returns terms and total, and the memory."""
    optimizer.zero_grad()
    terms, memory = model.terms(images, labels, step, memory)
    total = model.total(terms)
    total.backward()
    optimizer.step()
    project(model)
    return {**{k: v.detach() for k, v in terms.items()}, "total": total.detach()}, memory
