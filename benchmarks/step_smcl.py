"""SMCL in the step benchmark: its sizes, and the train step in PyTorch."""

from collections.abc import Callable
from typing import Any

WRITTEN = {"auxiliary": "syncretic", "metric": "adsl"}


def settings(size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Batch, facts of the run, optimizer and options of a size, from configs/smcl.py.

    Args:
      size: "main" or "paper".
      num_ids: P instead of the config's.

    Raises:
      ValueError: the config has options that the PyTorch step is not written for.
    """
    from benchmarks import candidates
    from configs import smcl

    config = smcl.get_config("synthetic" if size == "main" else "sysu")
    method = candidates.written_options(config, WRITTEN)
    image_size = tuple(config.data.image_size)
    classes = config.data.train_ids if size == "main" else 395
    return {
        "image_size": image_size,
        "num_ids": num_ids or config.sampler.num_ids,
        "num_instances": config.sampler.num_instances,
        "num_classes": classes,
        "modalities": 3,
        "facts": {"num_classes": classes, "image_size": image_size, "steps_per_epoch": 1},
        "optim": {"weight_decay": config.optim.weight_decay},
        # From the first step, so that the metric terms are part of what is timed.
        "method": {**method, "metric_from_epoch": 0.0},
    }


def torch_training(s: dict[str, Any], prepare: Callable[[Any], Any], lr: float) -> tuple[Any, Any]:
    """The optimizer, and the loss of standardized images [B, 3, H, W] and labels [B].

    The terms are written in whole-array form, as one would for speed.

    Args:
      s: from `settings`.
      prepare: moves the model to its device and layout.
      lr: learning rate.
    """
    import inspect

    import torch
    from torch.nn import functional

    from benchmarks.candidates import reference

    smcl = reference("smcl").SMCL
    options = {k: v for k, v in s["method"].items() if k in inspect.signature(smcl).parameters}
    model: Any = smcl(num_classes=s["num_classes"], **options)
    reference("running").load(model, "benchmark")
    model = prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, **s["optim"])

    def loss(visible: Any, infrared: Any, labels: Any) -> Any:
        g, logits = model(visible, infrared)
        margin = model.id_margin * functional.one_hot(labels, s["num_classes"])
        harder = logits[:, 1] - margin
        identity = sum(
            functional.cross_entropy(z, labels) for z in (logits[:, 0], harder, logits[:, 2])
        )
        centers = g.unflatten(0, (-1, s["num_instances"])).mean(1)  # [P, 3, D]
        centers = functional.normalize(centers, dim=2) if model.normalize else centers
        v, i, anchor = centers.unbind(1)
        others = (anchor[:, None] - anchor[None]).square().sum(-1).clamp(min=1e-12).sqrt()
        nearest = (others + torch.diag(others.new_full((len(others),), torch.inf))).amin(1)
        pulls = torch.stack([(anchor - c).norm(dim=1) for c in (v, i)])
        tri = torch.relu(model.center_margin + pulls - nearest).sum()
        return identity + model.metric_weight * (tri + (v - i).norm(dim=1).sum())

    return optimizer, loss
