"""IDKL (Ren and Zhang, CVPR 2024) in PyTorch: network and terms.

Written from the paper's equations, and for what it calls "official" from what the released code
(1KK077/IDKL at 8676b62) computes. The network always sees a batch in that code's order, infrared
and visible images in turn, infrared first; see `idkl_losses`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import idkl_losses as losses
from .idkl_net import ModalityClassifier, Purifier, gem, reverse
from .metric import batch_hard_triplet
from .resnet import BatchNorm, ForkedResNet

Tensors = dict[str, torch.Tensor]

PAPER: dict[str, Any] = dict(tri_margin=1.3, specific_weight=1.0, confuser="reversal")
PAPER |= dict(reversal_strength=1.0, discriminator_input="sp", purifier=True, mask="channel")
PAPER |= dict(ip_weight=0.1, purified_weight=1.0, enhance_form="softplus", enhance_head="raw")
PAPER |= dict(reduce_form="softplus", tgsa_weight=0.6, tgsa_pairs="all", tgsa_cross="true")
PAPER |= dict(tgsa_scale="none", csa_weight=0.8, mdr_tgsa_weight=1.0, mdr_csa_weight=1.0)
PAPER |= dict(block_weight=0.0)
# What of it decides on the parts of the network in the released code, and on weights. Its terms are
# coded apart, in `released_terms`.
OFFICIAL = PAPER | dict(specific_weight=0.0, confuser="half_flip", block_weight=1.0)
OFFICIAL |= dict(discriminator_input="purified", mask="map", enhance_head="own")
PRESETS = {"paper": PAPER, "official": OFFICIAL}


# --- Network -----------------------------------------------------------------------------


class IDKL(nn.Module):
    """The model and what it is taught.

    preset "official" has `released_terms`, with all loss weights as options; anything else has
    the equations under `options`, which are those of `PAPER`.
    """

    def __init__(
        self,
        num_classes: int,
        num_ids: int,
        num_instances: int,
        depth: int = 50,
        width: int = 64,
        last_stride: int = 1,
        preset: str = "paper",
        **options: Any,
    ) -> None:
        super().__init__()
        if set(options) - set(PAPER):
            raise ValueError(f"unknown options {set(options) - set(PAPER)}")
        self.o = {**PRESETS[preset], **options}
        self.official = preset == "official"
        self.num_ids, self.num_instances = num_ids, num_instances
        o = self.o
        self.purifies = o["purifier"]
        self.teacher = "purified" if self.purifies else "sp"
        self.backbone = ForkedResNet(depth, width, last_stride)
        d = self.backbone.features
        if self.purifies:
            self.purifier = Purifier(d, o["mask"])
        self.heads = ["sh"]
        if o["specific_weight"] or o["discriminator_input"] == "sp":
            self.heads.append("sp")
        if self.purifies:
            self.heads.append("purified")
        for name in self.heads:
            self.add_module(f"neck_{name}", BatchNorm(d, use_bias=False))
            self.add_module(f"classifier_{name}", nn.Linear(d, num_classes, bias=False))
        if self.purifies and o["enhance_head"] == "own":
            self.classifier_entropy = nn.Linear(d, num_classes, bias=False)
        self.discriminator_neck = ModalityClassifier(d)
        self.confuser_neck = ModalityClassifier(d)

    def head(self, name: str, f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled features to those after the neck, and logits."""
        z = self.get_submodule(f"neck_{name}")(f)
        return z, self.get_submodule(f"classifier_{name}")(z)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Images [2N, 3, H, W] in any order to all that the terms are made of, row by row."""
        shared, specific = self.backbone(images)
        pool = {"sh": gem(shared[-1]), "sp": gem(specific[-1])}
        neck: Tensors = {}
        logits: Tensors = {}
        out: dict[str, Any] = {"pool": pool, "logits": logits}
        if self.purifies:
            normalized, enhanced, reduced, purified = self.purifier(specific[-1])
            pool["purified"] = gem(purified)
            out["reduced"], out["normalized"] = gem(reduced), gem(normalized)
        for name in self.heads:
            neck[name], logits[name] = self.head(name, pool[name])
        if self.purifies:
            f = gem(enhanced)
            if self.o["enhance_head"] == "own":
                out["enhanced"], out["plain"] = map(self.classifier_entropy, (f, pool["sp"]))
            else:
                out["enhanced"], out["plain"] = self.head("sp", f)[1], logits["sp"]
        out["discriminator"] = self.discriminator_neck(neck[self.o["discriminator_input"]])
        x = neck["sh"]
        if self.o["confuser"] == "reversal":
            x = reverse(x, self.o["reversal_strength"])
        out["confuser"] = self.confuser_neck(x)
        return out

    def embed(self, images: torch.Tensor, modality: int) -> Tensors:
        """Features of the shared branch, after its neck ("bn") and before."""
        f = gem(self.backbone(images)[0][-1])
        return {"bn": self.head("sh", f)[0], "pool": f}

    # --- Objective -----------------------------------------------------------------------

    def terms(self, batch: Tensors, step: int) -> Tensors:
        """The unweighted terms whose weight is not 0; images visible and infrared [N, 3, H, W]."""
        images, labels = [batch["visible"], batch["infrared"]], batch["label"]
        out = self(losses.released_order(torch.stack(images, 1)))
        person, t = labels.repeat_interleave(2), losses.released_labels(len(labels))
        found = (released_terms if self.official else paper_terms)(self, out, person, t)
        return {k: v for k, v in found.items() if self.weight(k)}

    def weight(self, term: str) -> float:
        """Of a term in eq. (21)."""
        o = self.o
        kind, _, of = term.partition("_")
        if kind in ("id", "tri"):
            weight: float = {
                "sh": 1.0,
                "sp": o["specific_weight"],
                "purified": o["purified_weight"] * self.purifies,
            }[of]
        elif term in ("enhance", "reduce"):
            weight = o["ip_weight"] * self.purifies
        elif term in ("confuser", "discriminator"):
            weight = 1.0
        elif term.endswith("_block"):
            weight = o[term.replace("block", "weight")] * o["block_weight"]
        else:
            weight = o[f"{term}_weight"]
        return weight

    def total(self, terms: Tensors, step: int) -> torch.Tensor:
        """Eq. (21)."""
        return torch.stack([self.weight(k) * v for k, v in terms.items()]).sum()


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms)).sum()


def paper_terms(
    model: IDKL, out: Mapping[str, Any], person: torch.Tensor, t: torch.Tensor
) -> Tensors:
    """The equations; `person` and t label the rows of `out`."""
    o, labels = model.o, person[::2]
    pool = {k: losses.our_order(x) for k, x in out["pool"].items()}
    logits = {k: losses.our_order(x) for k, x in out["logits"].items()}
    terms = {}
    for name in model.heads:
        terms[f"id_{name}"] = functional.cross_entropy(out["logits"][name], person)
        terms[f"tri_{name}"] = batch_hard_triplet(pool[name], labels, o["tri_margin"])
    told = losses.confuser_labels(t) if o["confuser"] == "half_flip" else t
    terms["confuser"] = functional.cross_entropy(out["confuser"], told)
    terms["discriminator"] = functional.cross_entropy(out["discriminator"], t)
    if model.purifies:
        terms["enhance"] = losses.enhancing(out["enhanced"], out["plain"], o["enhance_form"])
        reduced, normalized = (losses.our_order(out[k]) for k in ("reduced", "normalized"))
        terms["reduce"] = losses.reducing(reduced, normalized, labels, o["reduce_form"])
    graph = {k: o[f"tgsa_{k}"] for k in ("cross", "scale")}
    sp, sh = pool[model.teacher], pool["sh"]
    terms["tgsa"] = _sum(  # eq. (17): a is the specific branch, b the shared one
        losses.tgsa(torch.stack([sp[:, m], sh[:, m]], 1), o["tgsa_pairs"], **graph) for m in (0, 1)
    )
    terms["mdr_tgsa"] = losses.tgsa(sh, **graph)
    z_sp, z_sh = logits[model.teacher], logits["sh"]
    for suffix, k in (("", None), ("_block", model.num_instances)):
        terms[f"csa{suffix}"] = _sum(
            losses.csa(torch.stack([z_sh[:, m], z_sp[:, m]], 1), num_instances=k) for m in (0, 1)
        )
        terms[f"mdr_csa{suffix}"] = losses.csa(z_sh, num_instances=k)
    return terms


def released_terms(
    model: IDKL, out: Mapping[str, Any], labels: torch.Tensor, t: torch.Tensor
) -> Tensors:
    """What the released code adds up, on rows in its order."""
    pool, logits = out["pool"], out["logits"]
    feat, feat_p = pool["sh"], pool["purified"]
    v, i = t == 0, t == 1
    z, z_p = logits["sh"], logits["purified"]

    def block(x: torch.Tensor) -> torch.Tensor:
        return losses.released_blocks(x, model.num_ids)

    return {
        "id_sh": functional.cross_entropy(z, labels),
        "tri_sh": losses.released_triplet(feat, labels, 1.3),
        "id_purified": functional.cross_entropy(z_p, labels),
        "tri_purified": losses.released_triplet(feat_p, labels, 1.3),
        "discriminator": functional.cross_entropy(out["discriminator"], t),
        "confuser": functional.cross_entropy(out["confuser"], losses.confuser_labels(t)),
        "enhance": losses.released_enhancing(out["enhanced"], out["plain"]),
        "reduce": losses.released_reducing(out["reduced"], out["normalized"], labels, t),
        "tgsa": losses.released_tgsa_self(feat[v], feat_p[v])
        + losses.released_tgsa_self(feat[i], feat_p[i]),
        "mdr_tgsa": losses.released_tgsa_mix(feat, t),
        "csa": losses.bg_kl(z[v], z_p[v]) + losses.bg_kl(z[i], z_p[i]),
        "mdr_csa": losses.bg_kl(z[v], z[i]),
        "csa_block": losses.bg_kl(block(z[v]), block(z_p[v]))
        + losses.bg_kl(block(z[i]), block(z_p[i])),
        "mdr_csa_block": losses.bg_kl(block(z[v]), block(z[i])),
    }
