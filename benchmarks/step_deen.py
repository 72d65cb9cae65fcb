"""DEEN in the step benchmark: its sizes, and the train step in PyTorch."""

from collections.abc import Callable
from typing import Any

WRITTEN = {"stages": 4}


def settings(size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Batch, facts of the run, optimizer and options of a size, from configs/deen.py.

    "modalities" counts the images of a slot: after the expansion each image is three rows. The
    dropout of those maps is left out: two frameworks draw different masks, and the losses are
    compared.

    Args:
      size: "main", or "paper": ResNet-50 at 384 x 144, 48 images as in the recipe.
      num_ids: P instead of the config's.

    Raises:
      ValueError: the config has options that the PyTorch step is not written for.
    """
    from benchmarks import candidates
    from configs import deen

    config = deen.get_config("synthetic" if size == "main" else "sysu")
    config.method.dropout = 0.0
    return candidates.of_pairs(config, size, num_ids, WRITTEN)


def torch_training(s: dict[str, Any], prepare: Callable[[Any], Any], lr: float) -> tuple[Any, Any]:
    """The optimizer, and the loss of standardized images [B, 3, H, W] and labels [B].

    The network is that of `benchmarks.step_pdm` without what PDM adds.

    Args:
      s: from `settings`.
      prepare: moves the model to its device and layout.
      lr: learning rate.
    """
    from torch.nn import functional

    from benchmarks import step_pdm, step_torch
    from benchmarks.candidates import reference

    pdm = reference("pdm")
    known = {**pdm.DEEN, **dict.fromkeys(("depth", "width", "last_stride"))}
    o = s["method"]
    options = {k: v for k, v in o.items() if k in known}
    model: Any = pdm.MultiFeature(**s["facts"], **options, preset="deen")
    reference("running").load(model, "benchmark")
    model = prepare(model)
    features = step_pdm.network(model)

    def loss(visible: Any, infrared: Any, labels: Any) -> Any:
        f = features(visible, infrared)[0]["global"]
        who = labels.repeat(len(f) // len(labels))
        total = functional.cross_entropy(model.classifier_global(model.neck_global(f)), who)
        f = functional.normalize(f) if o["normalize"] else f
        total = total + step_torch.batch_hard(f, who, o["tri_margin"])
        f = f.view(-1, 2, len(labels), f.shape[-1])
        mined = step_torch.pair_mining(f, s["num_ids"], o["cpm_margin"])
        return total + o["cpm_weight"] * mined + o["ort_weight"] * step_torch.orthogonality(f)

    return step_torch.optimizer(model, s["optim"], lr), loss
