"""IDKL in the step benchmark: its sizes, and the train step in PyTorch."""

from collections.abc import Callable
from typing import Any

WRITTEN = {
    "confuser": "reversal",
    "reversal_strength": 1.0,
    "discriminator_input": "sp",
    "specific_weight": 1.0,
    "purifier": True,
    "purified_weight": 1.0,
    "enhance_form": "softplus",
    "reduce_form": "softplus",
    "tgsa_pairs": "all",
    "tgsa_cross": "true",
    "block_weight": 0.0,
}
# The recipe has 12, 120 images, for machines with memory for it (about three times as much).
PAPER_IDS = 4


def settings(size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Batch, facts of the run, optimizer and options of a size, from configs/idkl.py.

    The preset is "paper", without the dropout of the modality heads: two frameworks draw
    different masks, and the losses are compared.

    Args:
      size: "main", or "paper": ResNet-50 at 384 x 128.
      num_ids: P instead of the config's at "main", or of `PAPER_IDS`.
    """
    from benchmarks import candidates
    from configs import idkl

    config = idkl.get_config("synthetic" if size == "main" else "sysu")
    config.method.modality_dropout = 0.0
    batch = {
        "num_classes": config.data.train_ids if size == "main" else 395,
        "image_size": tuple(config.data.image_size),
        "num_ids": num_ids or (config.sampler.num_ids if size == "main" else PAPER_IDS),
        "num_instances": config.sampler.num_instances,
    }
    return {
        **batch,
        "modalities": 2,
        "facts": batch,
        "optim": {"weight_decay": config.optim.weight_decay},
        "method": candidates.written_options(config, WRITTEN),
    }


def torch_training(s: dict[str, Any], prepare: Callable[[Any], Any], lr: float) -> tuple[Any, Any]:
    """The optimizer, and the loss of standardized images [B, 3, H, W] and labels [B].

    The model is that of the tests' reference; the terms are those of the preset "paper", in
    whole-array form, as one would write them for speed.

    Args:
      s: from `settings`.
      prepare: moves the model to its device and layout.
      lr: learning rate.
    """
    import torch
    from torch.nn import functional

    from benchmarks.candidates import reference
    from benchmarks.step_torch import batch_hard, cdist

    idkl = reference("idkl")
    options = {k: v for k, v in s["method"].items() if k in idkl.PAPER}
    sizes = {k: s["method"][k] for k in ("depth", "width", "last_stride")}
    facts = {k: v for k, v in s["facts"].items() if k != "image_size"}
    model: Any = idkl.IDKL(**facts, **sizes, **options)
    reference("running").load(model, "benchmark")
    model = prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, **s["optim"], fused=True)
    margin, scale = s["method"]["tri_margin"], s["method"]["tgsa_scale"]

    def entropy(z: Any) -> Any:
        return -(functional.softmax(z, 1) * functional.log_softmax(z, 1)).sum(1)

    def gap(x: Any) -> Any:
        """Distances between the visible and infrared centers of x [B, 2, D]."""
        centers = x.unflatten(0, (s["num_ids"], -1)).mean(1)
        return (centers[:, 0] - centers[:, 1] + 1e-6).norm(dim=1)

    def divergence(a: Any, b: Any) -> Any:
        a, b = functional.log_softmax(a, 1), functional.log_softmax(b, 1)
        return ((a.exp() - b.exp()) * (a - b)).sum(1).mean()

    def affinity(a: Any, b: Any) -> Any:
        distance, n = cdist(a, b).clamp(min=1e-3), len(a)
        distance = distance.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
        return distance / distance.mean().detach() if scale == "mean" else distance

    def graphs(a: Any, b: Any) -> Any:
        of_a, of_b, between = affinity(a, a), affinity(b, b), affinity(a, b)
        return divergence(of_a, of_b) + divergence(of_a, between) + divergence(between, of_b)

    def loss(visible: Any, infrared: Any, labels: Any) -> Any:
        out = model(torch.stack([visible, infrared], 1).flatten(0, 1))
        who = labels.repeat_interleave(2)
        modality = torch.arange(2, device=who.device).repeat(len(labels))
        pool, logits = out["pool"], out["logits"]
        total = sum(
            functional.cross_entropy(logits[k], who) + batch_hard(pool[k], who, margin)
            for k in logits
        )
        for x in (out["confuser"], out["discriminator"]):
            total = total + functional.cross_entropy(x, modality)
        f, z = ({k: x.unflatten(0, (-1, 2)) for k, x in part.items()} for part in (pool, logits))
        more = entropy(out["enhanced"]) - entropy(out["plain"])
        pair = [out[k].unflatten(0, (-1, 2)) for k in ("reduced", "normalized")]
        total = total + model.weight("enhance") * functional.softplus(more).mean()
        total = (
            total + model.weight("reduce") * functional.softplus(gap(pair[0]) - gap(pair[1])).mean()
        )
        for m in range(2):
            sp, sh = "purified", "sh"
            total = total + model.weight("tgsa") * graphs(f[sp][:, m], f[sh][:, m])
            total = total + model.weight("csa") * divergence(z[sh][:, m], z[sp][:, m])
        total = total + model.weight("mdr_tgsa") * graphs(f["sh"][:, 0], f["sh"][:, 1])
        return total + model.weight("mdr_csa") * divergence(z["sh"][:, 0], z["sh"][:, 1])

    return optimizer, loss
