"""AGW in the step benchmark: its sizes, and the train step in PyTorch."""

from collections.abc import Callable
from typing import Any

WRITTEN = {"tri_form": "weighted", "tri_weights": "released"}


def settings(size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Batch, facts of the run, optimizer and options of a size, from configs/agw.py.

    Args:
      size: "main", or "paper": ResNet-50 at 288 x 144, 64 images as in the recipe.
      num_ids: P instead of the config's.

    Raises:
      ValueError: the config has options that the PyTorch step is not written for.
    """
    from benchmarks import candidates
    from configs import agw

    config = agw.get_config("synthetic" if size == "main" else "sysu")
    return candidates.of_pairs(config, size, num_ids, WRITTEN)


def torch_training(s: dict[str, Any], prepare: Callable[[Any], Any], lr: float) -> tuple[Any, Any]:
    """The optimizer, and the loss of standardized images [B, 3, H, W] and labels [B].

    The modules are those of the tests' reference. Non-local blocks keep the layout of their map,
    and have the matrix of energies of the released code.

    Args:
      s: from `settings`.
      prepare: moves the model to its device and layout.
      lr: learning rate.
    """
    import inspect

    import torch
    from torch.nn import functional

    from benchmarks import step_torch
    from benchmarks.candidates import reference

    agw = reference("agw").AGW
    known = inspect.signature(agw).parameters
    options = {k: v for k, v in {**s["facts"], **s["method"]}.items() if k in known}
    model: Any = agw(**options)
    reference("running").load(model, "benchmark")
    model = prepare(model)

    def attend(block: Any, x: Any) -> Any:
        theta, phi, g = (layer(x).flatten(2) for layer in (block.theta, block.phi, block.g))
        energy = theta.transpose(1, 2) @ phi / phi.shape[2]  # [N, n, n]
        y = (energy @ g.transpose(1, 2)).transpose(1, 2)
        y = step_torch.like(y.reshape(*g.shape[:2], *x.shape[2:]), x)
        return x + block.bn(block.w(y))

    def loss(visible: Any, infrared: Any, labels: Any) -> Any:
        images = {"visible": visible, "infrared": infrared}
        x = torch.cat([model.backbone.get_submodule(k)["stem"](v) for k, v in images.items()])
        for stage, blocks in model.backbone.shared.items():
            for n, block in enumerate(blocks):
                x = block(x)
                attention = getattr(model, f"attention_{stage}_{n}", None)
                x = x if attention is None else attend(attention, x)
        pool, who = model.pool(x), labels.repeat(2)
        identity = functional.cross_entropy(model.classifier(model.neck(pool)), who)
        rows = functional.normalize(pool) if model.normalize else pool
        return identity + model.tri_weight * step_torch.weighted_triplet(rows, who)

    return step_torch.optimizer(model, s["optim"], lr), loss
