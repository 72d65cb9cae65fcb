"""MUN in the step benchmark: its sizes, and the train step in PyTorch."""

import re
from collections.abc import Callable
from typing import Any

WRITTEN = {"auxiliary": "mun", "ida_weight": 0.0, "prototypes": True, "bridge": True}
NUM_STEPS = 1000  # of a training; what beta is counted from
# The recipe has 8, for which XLA plans 15 GB of temporary memory, and twice the time.
PAPER_IDS = 4


def settings(size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Batch, facts of the run, optimizer and options of a size, from configs/mun.py.

    Args:
      size: "main", or "paper": ResNet-50 at 288 x 144.
      num_ids: P instead of the config's at "main", or of `PAPER_IDS`.

    Raises:
      ValueError: the config has options that the PyTorch step is not written for.
    """
    from benchmarks import candidates
    from configs import mun

    config = mun.get_config("synthetic" if size == "main" else "sysu")
    method = candidates.written_options(config, WRITTEN)
    method["generator_form"] = "direct"  # cheaper at these batches
    batch = {
        "num_classes": config.data.train_ids if size == "main" else 395,
        "image_size": tuple(config.data.image_size),
        "num_ids": num_ids or (config.sampler.num_ids if size == "main" else PAPER_IDS),
        "num_instances": config.sampler.num_instances,
    }
    optim = config.optim
    return {
        **batch,
        "modalities": 3,
        "facts": {**batch, "num_steps": NUM_STEPS},
        "optim": {
            "weight_decay": optim.weight_decay,
            "decay": optim.decay,
            "no_decay": tuple(optim.no_decay),
            "multipliers": tuple(tuple(pair) for pair in optim.multipliers),
        },
        "method": method,
    }


def torch_training(s: dict[str, Any], prepare: Callable[[Any], Any], lr: float) -> tuple[Any, Any]:
    """The optimizer, and the loss of standardized images [B, 3, H, W] and labels [B].

    The modules are those of the tests' reference: torch's own transposed and grouped
    convolutions. Maps of the three modalities are concatenated once and pass the shared stages
    together; the losses are whole-array forms. A step of the optimizer projects layer scales.

    Args:
      s: from `settings`.
      prepare: moves the model to its device and layout.
      lr: learning rate.
    """
    import inspect

    import torch
    from torch.nn import functional

    from benchmarks.candidates import reference
    from benchmarks.step_torch import batch_hard, cdist, other

    mun = reference("mun")
    known = inspect.signature(mun.MUN).parameters
    options = {k: v for k, v in {**s["facts"], **s["method"]}.items() if k in known}
    model: Any = mun.MUN(**options)
    reference("running").load(model, "benchmark")
    identities, instances = s["num_ids"], s["num_instances"]
    num_steps = s["facts"]["num_steps"]
    past = torch.zeros(3, identities * instances, model.backbone.features)
    model.register_buffer("prototypes_before", past, persistent=False)
    model = prepare(model)
    optimizer = torch.optim.AdamW(_groups(model, s["optim"], lr), fused=True)
    optimizer.register_step_post_hook(lambda *_: mun.project(model))
    taken = [0]

    def features(visible: Any, infrared: Any) -> Any:
        """Z [3, B, D]."""
        maps = []
        for name, x in (("visible", visible), ("infrared", infrared)):
            for stage in model.backbone.get_submodule(name).children():
                x = stage(x)
            maps.append(x)
        x = torch.cat([*maps, model.auxiliary(*maps)[0]])
        for stage in model.backbone.shared.values():
            x = stage(x)
        return model.pool(x).unflatten(0, (3, -1))

    def identity(z: Any, labels: Any) -> Any:
        """L_id and gamma L_idc, eqs. 10 and 11."""
        f = model.neck(z.flatten(0, 1)).unflatten(0, (3, -1))

        def classify(head: Any, m: int) -> Any:
            return functional.cross_entropy(head(f[m]), labels)

        heads = (model.classifier_visible, model.classifier_infrared)
        own = sum(classify(head, m) for m, head in enumerate(heads))
        return own + model.weights["idc"] * sum(classify(head, 2) for head in heads)

    def triplet(z: Any, labels: Any) -> Any:
        """Batch-hard over visible and infrared rows."""
        rows, who = z[:2].flatten(0, 1), labels.repeat(2)
        rows = functional.normalize(rows) if s["method"]["normalize"] else rows
        return batch_hard(rows, who, model.tri_margin)

    def alignment(z: Any) -> Any:
        """Eq. 12."""
        z = functional.normalize(z, dim=2) if s["method"]["normalize"] else z
        v, r, a = z.unflatten(1, (identities, instances)).mean(2)
        distance = torch.stack([cdist(a, v), cdist(a, r)])  # [2, P, P]
        farthest = distance.diagonal(dim1=1, dim2=2).amax(0)
        nearest = distance.masked_fill(~other(identities, z), torch.inf).amin((0, 2))
        return torch.relu(model.ia_margin + farthest - nearest).sum()

    def prototypes(z: Any) -> Any:
        """Eqs. 13 and 14: T [3, B, D]."""
        new = torch.stack(
            [getattr(model, f"prototype_{name}")(x) for name, x in zip(mun.NAMES, z, strict=True)]
        )
        beta = 1e-8 + (1 - 1e-8) * taken[0] / (num_steps - 1) if taken[0] else 1.0
        new = beta * new + (1 - beta) * model.prototypes_before
        model.prototypes_before.copy_(new.detach())
        return new

    def mmd(x: Any, y: Any) -> Any:
        """Eq. 15 for sets [P, K, D]: [P]."""
        rows = torch.cat([x, y], 1)
        squared = (rows[:, :, None] - rows[:, None]).square().sum(-1)
        n = rows.shape[1]
        width = squared.detach().sum((1, 2), keepdim=True) / (n * n - n)
        scales = torch.stack([width / 4 * 2**j + 1e-9 for j in range(5)])
        kernel = torch.exp(-squared / scales).sum(0)
        first, second = slice(None, n // 2), slice(n // 2, None)
        within = kernel[:, first, first] + kernel[:, second, second]
        across = kernel[:, first, second] + kernel[:, second, first]
        return (within - across).mean((1, 2))

    def loss(visible: Any, infrared: Any, labels: Any) -> Any:
        z = features(visible, infrared)
        total = identity(z, labels) + triplet(z, labels) + model.weights["ia"] * alignment(z)
        v, r, a = prototypes(z).unflatten(1, (identities, instances))
        total = total + model.weights["ma"] * (mmd(v, a) + mmd(a, r)).mean()
        taken[0] += 1
        return total

    return optimizer, loss


def _groups(model: Any, optim: dict[str, Any], lr: float) -> list[dict[str, Any]]:
    """Parameter groups: rates by the recipe's multipliers, no decay of what is not a matrix."""
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, p in model.named_parameters():
        path = name.replace(".", "/")
        factor = next((f for pattern, f in optim["multipliers"] if re.match(pattern, path)), 1.0)
        decay = optim["weight_decay"] if p.ndim > 1 else 0.0
        groups.setdefault((lr * factor, decay), []).append(p)
    return [{"params": p, "lr": r, "weight_decay": d} for (r, d), p in groups.items()]
