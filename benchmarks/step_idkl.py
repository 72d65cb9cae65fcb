"""IDKL in the step benchmark: its sizes, and the train step in PyTorch."""

from collections.abc import Callable
from typing import Any

WRITTEN: dict[str, Any] = {}  # the reference has every option
NUM_STEPS = 1000  # of a training; no option of the presets depends on it
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
        "facts": {**batch, "num_steps": NUM_STEPS},
        "optim": {"weight_decay": config.optim.weight_decay},
        "method": candidates.written_options(config, WRITTEN),
    }


def torch_training(s: dict[str, Any], prepare: Callable[[Any], Any], lr: float) -> tuple[Any, Any]:
    """The optimizer, and the loss of standardized images [B, 3, H, W] and labels [B].

    The model and the terms are those of the tests' reference, which are in whole-array form.

    Args:
      s: from `settings`.
      prepare: moves the model to its device and layout.
      lr: learning rate.
    """
    import torch

    from benchmarks.candidates import reference

    idkl = reference("idkl")
    options = {k: v for k, v in s["method"].items() if k in idkl.PAPER}
    sizes = {k: s["method"][k] for k in ("depth", "width", "last_stride")}
    facts = {k: v for k, v in s["facts"].items() if k != "image_size"}
    model: Any = idkl.IDKL(**facts, **sizes, **options)
    reference("running").load(model, "benchmark")
    model = prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, **s["optim"], fused=True)

    def loss(visible: Any, infrared: Any, labels: Any) -> Any:
        return model.total(model.terms([visible, infrared], labels, 0))

    return optimizer, loss
