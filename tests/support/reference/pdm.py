"""DEEN (Zhang and Wang, CVPR 2023) and PDM (ICASSP 2025) in PyTorch: network, terms, features.

Written from what the released codes compute (ZYK100/LLCM, folder DEEN, at 886e27c;
mmunhappy/ICASSP2025-PDM at b668901) and, for PDM's preset "paper", from its equations. Rows are in
the order of those codes: [visible; infrared], and after the expansion all of them again for every
branch, with the labels as the codes repeat them.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import pairmining
from .attention import Aggregation
from .expansion import Expansion, Prototypes, SimAM
from .metric import batch_hard_triplet
from .resnet import LAYOUTS, BatchNorm, ResNet

Tensors = dict[str, torch.Tensor]

NAMES = ("visible", "infrared")
# Both codes' and the paper's methods. lambda_1 and lambda_2 are the codes' 0.8 and 0.01.
# DEEN's expansion is the mean of the convolutions, without attention.
DEEN: dict[str, Any] = dict(mfa=True, gate=False, branches=2, mfgm="none", num_prototypes=0)
DEEN |= dict(id_global_weight=0.0, tri_margin=0.3, normalize=False)
DEEN |= dict(cpm_form="three", cpm_margin=0.2, cpm_weight=0.8, ort_weight=0.01)
DEEN |= dict(ch_form="code_rms", ch_weight=0.0)
DEEN |= dict(dcs_pull_margin=0.01, dcs_push_margin=0.7, dcs_weight=0.0)
CODE = DEEN | dict(gate=True, mfgm="code", num_prototypes=10, id_global_weight=1.0)
CODE |= dict(cpm_weight=0.5 * 0.8, dcs_weight=1.0)
CODE |= dict(ch_weight=0.5 * 0.5)  # once in the model, once in the sum
# eqs. (1) to (4), and (9) with its sign turned.
PAPER = CODE | dict(mfa=False, gate=False, mfgm="paper", id_global_weight=0.0, ort_weight=0.0)
PAPER |= dict(cpm_form="single", cpm_weight=1.0, ch_form="cos_min", ch_weight=1.0)
PRESETS = {"deen": DEEN, "code": CODE, "paper": PAPER}


class MultiFeature(nn.Module):
    """The network and what it is taught; options are those of `DEEN`."""

    def __init__(
        self,
        *,
        num_classes: int,
        num_ids: int,
        image_size: tuple[int, int],
        preset: str,
        depth: int = 50,
        width: int = 64,
        last_stride: int = 1,
        stages: int = 4,
        **options: Any,
    ) -> None:
        super().__init__()
        if set(options) - set(DEEN):
            raise ValueError(f"unknown options {set(options) - set(DEEN)}")
        self.o = o = {**PRESETS[preset], **options}
        self.preset, self.num_ids, self.stages = preset, num_ids, stages
        self.backbone = ResNet(depth, width, last_stride, specific=1)
        if stages == 3:
            del self.backbone.shared["layer4"]
        growth = 4 if LAYOUTS[depth][0] else 1
        channels = [width, *(growth * width * 2**n for n in range(4))]  # after each stage
        d = channels[stages]
        if o["mfa"]:
            for n in range(1, stages):  # from layer2 on the map before is twice as large
                block = Aggregation(channels[n], channels[n - 1], 1 if n == 1 else 2)
                self.add_module(f"mfa_{n - 1}", block)
        if o["branches"]:
            form = {"fuse": "sum" if o["mfgm"] == "paper" else "mean"}
            form["attention"] = {"code": "sequential", "paper": "concat"}.get(o["mfgm"], "none")
            self.expansion = Expansion(channels[stages - 1], o["branches"], **form)
        m = o["num_prototypes"]
        heads = {"global": d, "full": (m + 1) * d} if m else {"global": d}
        if m:
            halvings = 2 + 2 + (stages == 4 and last_stride == 2)
            h, w = (-(-side // 2**halvings) for side in image_size)
            self.prototypes = Prototypes(d, h * w, m)
            self.m = m
        for name, inputs in heads.items():
            self.add_module(f"neck_{name}", BatchNorm(inputs, use_bias=False))
        # The paper's identity loss is that of F alone.
        self.classified = [k for k in heads if k == "full" or not m or o["id_global_weight"]]
        for name in self.classified:
            head = nn.Linear(heads[name], num_classes, bias=False)
            self.add_module(f"classifier_{name}", head)
        self.simam = SimAM()

    # --- Network -------------------------------------------------------------------------

    def features(self, images: Tensors) -> tuple[Tensors, torch.Tensor | None]:
        """Images by stem to F_g and F of all rows, and logits [rows, m, n] of the prototypes."""
        x = torch.cat([self.backbone.get_submodule(k)["stem"](v) for k, v in images.items()])
        low = self.simam(x) if self.o["gate"] else x
        x = low
        for n in range(1, self.stages + 1):
            x = self.backbone.shared[f"layer{n}"](x)
            if n < self.stages and self.o["mfa"]:
                x = low = self.get_submodule(f"mfa_{n - 1}")(x, low)
            if n == self.stages - 1 and self.o["branches"]:
                made = self.expansion(x).unflatten(0, (len(x), -1))
                x = torch.cat(list(made.unbind(1)))  # branch after branch
        found, logits = {"global": x.mean((2, 3))}, None
        if self.o["num_prototypes"]:
            d, places = x.shape[1], x.shape[2] * x.shape[3]
            parts, _, logits = self.prototypes(x).split([d, places, places], 2)
            found["full"] = torch.cat([parts.flatten(1), found["global"]], 1)
        return found, logits

    def embed(self, images: torch.Tensor, modality: int) -> Tensors:
        """Features of one modality, those of the branches side by side."""
        pool, _ = self.features({NAMES[modality]: images})
        neck = {k: self.get_submodule(f"neck_{k}")(x) for k, x in pool.items()}
        first = slice(len(images))
        last = list(pool)[-1]
        kinds = {"pools": pool["global"], "necks": neck["global"]}
        if self.preset != "deen":
            kinds = {"globals": neck["global"], "fulls": neck[last]}
        return {
            "bn": neck["global"][first],
            "pool": pool["global"][first],
            **{k: torch.cat(_unit(x).split(len(images)), 1) for k, x in kinds.items()},
        }

    # --- Terms ---------------------------------------------------------------------------

    def terms(self, batch: Tensors, step: int) -> Tensors:
        """The unweighted terms whose weight is not 0, of visible and infrared [B, 3, H, W]."""
        o, label = self.o, batch["label"]
        rows = 1 + o["branches"]
        found, prototypes = self.features({k: batch[k] for k in NAMES})
        # The order of the released labels is not that of the rows; it does no harm.
        labels = torch.cat([label] * rows + [label] * rows)
        last = list(found)[-1]
        terms = {}
        for name in found:
            z = self.get_submodule(f"neck_{name}")(found[name])  # for its statistics, all of them
            if name not in self.classified:
                continue
            logits = self.get_submodule(f"classifier_{name}")(z)
            key = "id" if self.preset == "deen" else "id_full" if name == last else "id_global"
            terms[key] = functional.cross_entropy(logits, labels)
        found = {k: _unit(x) if o["normalize"] else x for k, x in found.items()}
        terms["tri"] = batch_hard_triplet(found["global"][:, None], labels, o["tri_margin"])
        f = {k: self._of_images(x) for k, x in found.items()}
        if o["branches"]:
            code = self.preset != "deen" and o["cpm_form"] == "three"
            names = dict.fromkeys(("global", last)) if code else ["global"]
            terms["cpm"] = _sum(
                self._cpm(f[k][:, :, [0, 1 + b]]) for k in names for b in range(o["branches"])
            )
            ours = f["global"].flatten(0, 1)
            if o["branches"] == 2:
                terms["ort"] = pairmining.released_ort(ours)
            else:
                terms["ort"] = pairmining.orthogonality(ours[:, 1:])
        if prototypes is not None:
            terms["ch"] = pairmining.heterogeneity(prototypes, o["ch_form"])
        x = f[last]
        if (o["dcs_pull_margin"], o["dcs_push_margin"]) == (0.01, 0.7):
            terms["dcs"] = pairmining.released_dcs(x, label)
        else:
            terms["dcs"] = pairmining.dual_center_separation(
                x.reshape(self.num_ids, -1, x.shape[-1]), o["dcs_pull_margin"], o["dcs_push_margin"]
            )
        return {k: v for k, v in terms.items() if self.weight(k)}

    def _of_images(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in the released order as [B, 2, 1 + G, D]."""
        branches = rows.view(1 + self.o["branches"], 2, -1, rows.shape[-1])
        return branches.permute(2, 1, 0, 3)

    def _cpm(self, f: torch.Tensor) -> torch.Tensor:
        """Of images [P * K, 2, 2, D]: themselves, and what one branch made of them."""
        if self.o["cpm_form"] == "three":
            return pairmining.released_cpm(f, self.num_ids, self.o["cpm_margin"])
        centers = f.unflatten(0, (self.num_ids, -1)).mean(1)
        margin, form = self.o["cpm_margin"], self.o["cpm_form"]
        return pairmining.center_pair_mining(centers[:, :, 0], centers[:, :, 1], margin, form)

    def weight(self, term: str) -> float:
        """Of a term in the total."""
        return 1.0 if term in ("id", "id_full", "tri") else self.o[f"{term}_weight"]

    def total(self, terms: Tensors, step: int) -> torch.Tensor:
        """What is minimized."""
        return _sum(self.weight(k) * v for k, v in terms.items())


def similarities(query: Tensors, gallery: Tensors, rows: int) -> Tensors:
    """Both fused similarities of the released tests, from six products of matrices.

    Args:
      query, gallery: two features [N, rows * D] by name, as `MultiFeature.embed` gives them last.
      rows: 1 + G, the vectors that each of them is made of.
    """
    first, second = list(query)[-2:]
    shallow, deep = (
        [a @ b.T for a, b in zip(query[k].chunk(rows, 1), gallery[k].chunk(rows, 1), strict=True)]
        for k in (first, second)
    )
    a = 0.1
    return {
        "sum": _sum(shallow) + _sum(deep),
        "weighted": a * _sum(shallow) + (1 - a) * _sum(deep),
    }


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.pow(2).sum(1, keepdim=True).sqrt()


def _sum(terms: Any) -> torch.Tensor:
    return torch.stack(list(terms)).sum(0)
