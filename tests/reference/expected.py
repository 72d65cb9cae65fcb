"""What the references give for a case: values, gradients, new statistics, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from . import losses, smcl
from .convert import flat_from_torch, torch_from_flat
from .inputs import CASES, Arrays, Case, case_inputs, direction, fill
from .resnet import BatchNorm, ResNet

Tensors = dict[str, torch.Tensor]


def _tensor(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64 if x.dtype == np.float32 else torch.int64)


def _images(x: np.ndarray) -> torch.Tensor:
    """[..., H, W, 3] -> float64 [..., 3, H, W]."""
    return _tensor(x).movedim(-1, -3).contiguous()


def _numpy(x: torch.Tensor) -> np.ndarray:
    """A copy: the result must not follow a buffer that training goes on to change."""
    return x.detach().numpy().copy()


def _rows_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1) if x.ndim == 4 else x


def load(model: torch.nn.Module, seed: str) -> None:
    """Gives a model the seeded weights of `inputs.fill`."""
    like = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    flat = fill({k: v.shape for k, v in flat_from_torch(like).items()}, seed)
    state = torch_from_flat(flat, like)
    model.load_state_dict({k: torch.tensor(v.copy()) for k, v in state.items()})


def _state(model: torch.nn.Module, prefix: str) -> Arrays:
    """The parameters ("params/") or statistics ("batch_stats/") of a model, copied."""
    flat = flat_from_torch({k: _numpy(v) for k, v in model.state_dict().items()})
    return {k: v for k, v in flat.items() if k.startswith(prefix)}


def _parameter_gradients(model: torch.nn.Module) -> Arrays:
    gradients = {
        k: np.zeros(p.shape) if p.grad is None else _numpy(p.grad)
        for k, p in model.named_parameters()
    }
    return {f"grad/{k}": v for k, v in flat_from_torch(gradients).items()}


def _loss(case: Case, function: Callable[..., torch.Tensor], *names: str) -> Arrays:
    """Value and gradient of a function of the named inputs; labels get no gradient."""
    x = {k: _tensor(case_inputs(case.name)[k]) for k in names}
    for k, v in x.items():
        v.requires_grad_(k != "labels")
    value = function(*x.values(), **case.options)
    (value * _tensor(direction(case.name, tuple(value.shape)))).sum().backward()
    gradients = {f"grad/{k}": _numpy(v.grad) for k, v in x.items() if v.grad is not None}
    return {"value": _numpy(value), **gradients}


def _row_centers(features: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    by_identity = losses.centers(features, labels, **options)
    return torch.stack([by_identity[y] for y in labels.tolist()])


def _module(case: Case, model: torch.nn.Module, images: Tensors, *args: Any) -> Arrays:
    """Output, gradients and statistics of a module that takes the images, then `args`."""
    model.double()
    load(model, case.name)
    model.train(case.options.get("train", True))
    for x in images.values():
        x.requires_grad_()
    value = _rows_last(model(*images.values(), *args))
    (value * _tensor(direction(case.name, tuple(value.shape)))).sum().backward()
    return {
        "value": _numpy(value),
        **{
            f"grad/{k}": _numpy(_rows_last(x.grad)) for k, x in images.items() if x.grad is not None
        },
        **_parameter_gradients(model),
        **_state(model, "batch_stats/"),
    }


def _smgm(case: Case) -> Arrays:
    o = case.options
    model = smcl.SMGM(o["width"], o.get("shared", True), o.get("input", "standardized"))
    return _module(case, model, {k: _images(v) for k, v in case_inputs(case.name).items()})


def _batch_norm(case: Case) -> Arrays:
    x = case_inputs(case.name)["x"]
    model = BatchNorm(x.shape[-1], case.options.get("use_bias", True))
    image = _images(x) if x.ndim == 4 else _tensor(x)
    return _module(case, model, {"x": image}, case.options.get("running"))


class _Images(torch.nn.Module):
    """A trunk as a module of M image arguments."""

    def __init__(self, trunk: ResNet, stems: tuple[int, ...] | None) -> None:
        super().__init__()
        self.trunk, self.stems = trunk, stems

    def forward(self, *images: torch.Tensor) -> torch.Tensor:
        return self.trunk(images, self.stems)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.trunk.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.trunk.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.trunk.named_parameters(*args, **kwargs)


def _resnet(case: Case) -> Arrays:
    o = case.options
    running = o.get("running")
    trunk = ResNet(
        o["depth"],
        o["width"],
        o.get("last_stride", 1),
        o.get("specific", 0),
        None if running is None else running[1],
    )
    images = {k: _images(v) for k, v in case_inputs(case.name).items()}
    return _module(case, _Images(trunk, o.get("stems")), images)


NOT_OF_THE_MODEL = ("metric", "optimizer", "switch", "updates", "kernels")


def _model(case: Case) -> smcl.SMCL:
    options = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    model = smcl.SMCL(**options).double()
    load(model, case.name)
    return model.train()


def _embeddings(model: smcl.SMCL, data: Arrays) -> Arrays:
    """Test features of the first step's images, by modality and kind."""
    return {
        f"embed/{name}/{kind}": _numpy(x)
        for m, name in enumerate(("visible", "infrared"))
        for kind, x in model.embed(_images(data[name][0]), m).items()
    }


def _smcl(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    embeddings = _embeddings(model, data)
    terms = model.terms(
        _images(data["visible"][0]), _images(data["infrared"][0]), _tensor(data["label"][0])
    )
    total = model.total(terms, metric=case.options.get("metric", True))
    total.backward()
    return {
        "total": _numpy(total),
        **{f"terms/{k}": _numpy(v) for k, v in terms.items()},
        **_parameter_gradients(model),
        **_state(model, "batch_stats/"),
        **embeddings,
    }


def _trajectory(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    optimizer, schedule = smcl.make_optimizer(model, case.options["optimizer"])
    two_step = case.options.get("updates") == "two_step"
    history: dict[str, list[np.ndarray]] = {}
    for t, label in enumerate(data["label"]):
        batch = (_images(data["visible"][t]), _images(data["infrared"][t])), _tensor(label)
        metric = t >= case.options["switch"]
        values = smcl.train_step(model, optimizer, *batch, metric and not two_step)
        if metric and two_step:
            smcl.metric_step(model, optimizer, *batch)
        schedule.step()
        for k, v in values.items():
            history.setdefault(f"history/{k}", []).append(_numpy(v))
    return {
        **{k: np.stack(v) for k, v in history.items()},
        **_state(model, ""),
        **_embeddings(model, data),
    }


def compute(name: str) -> Arrays:
    """Runs the reference of one case.

    Returns:
      float64 arrays: "value" or "total" and "terms/...", "grad/..." by input or parameter
      path, "batch_stats/..." after the step, "embed/..."; trajectories have "history/..."
      [steps] and final "params/...".
    """
    case = CASES[name]
    match case.kind:
        case "pairwise_distance":
            return _loss(case, losses.pairwise_distance, "a", "b")
        case "cross_entropy":
            return _loss(case, losses.cross_entropy, "logits", "labels")
        case "row_centers":
            return _loss(case, _row_centers, "features", "labels")
        case "tri_center":
            return _loss(case, losses.tri_center, "features", "labels")
        case "global_center":
            return _loss(case, losses.global_center, "features", "labels")
        case "symmetric_center":
            return _loss(case, losses.symmetric_center, "features", "labels")
        case "smgm":
            return _smgm(case)
        case "gap" | "gem":
            pool = smcl.GAP() if case.kind == "gap" else smcl.GeM()
            return _module(case, pool, {"maps": _images(case_inputs(name)["maps"])})
        case "batch_norm":
            return _batch_norm(case)
        case "resnet":
            return _resnet(case)
        case "smcl":
            return _smcl(case)
        case "trajectory":
            return _trajectory(case)
    raise ValueError(f"no reference for kind {case.kind!r}")
