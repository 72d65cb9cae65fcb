"""Runs a PyTorch reference on a case: values, gradients, new statistics, in float64."""

from collections.abc import Callable

import numpy as np
import torch

from .case import Arrays, Case, direction, fill
from .convert import flat_from_torch, torch_from_flat
from .inputs import case_inputs

Tensors = dict[str, torch.Tensor]


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64 if x.dtype == np.float32 else torch.int64)


def images(x: np.ndarray) -> torch.Tensor:
    """[..., H, W, 3] -> float64 [..., 3, H, W]."""
    return tensor(x).movedim(-1, -3).contiguous()


def numpy(x: torch.Tensor) -> np.ndarray:
    """A copy: the result must not follow a buffer that training goes on to change."""
    return x.detach().numpy().copy()


def rows_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1) if x.ndim == 4 else x


def load(model: torch.nn.Module, seed: str) -> None:
    """Gives a model the seeded weights of `inputs.fill`."""
    like = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    flat = fill({k: v.shape for k, v in flat_from_torch(like).items()}, seed)
    state = torch_from_flat(flat, like)
    model.load_state_dict({k: torch.tensor(v.copy()) for k, v in state.items()})


def state(model: torch.nn.Module, prefix: str) -> Arrays:
    """The parameters ("params/") or statistics ("batch_stats/") of a model, copied."""
    flat = flat_from_torch({k: numpy(v) for k, v in model.state_dict().items()})
    return {k: v for k, v in flat.items() if k.startswith(prefix)}


def parameter_gradients(model: torch.nn.Module) -> Arrays:
    gradients = {
        k: np.zeros(p.shape) if p.grad is None else numpy(p.grad)
        for k, p in model.named_parameters()
    }
    return {f"grad/{k}": v for k, v in flat_from_torch(gradients).items()}


def loss(case: Case, function: Callable[..., torch.Tensor]) -> Arrays:
    """Value and gradient of a function of the inputs; labels get no gradient."""
    x = {k: tensor(v) for k, v in case_inputs(case.name).items()}
    for k, v in x.items():
        v.requires_grad_(k != "labels")
    value = function(*x.values(), **case.options)
    (value * tensor(direction(case.name, tuple(value.shape)))).sum().backward()
    gradients = {f"grad/{k}": numpy(v.grad) for k, v in x.items() if v.grad is not None}
    return {"value": numpy(value), **gradients}


def module(case: Case, model: torch.nn.Module, inputs: Tensors) -> Arrays:
    """Output, gradients and statistics of a module of the inputs."""
    model.double()
    load(model, case.name)
    model.train(case.options.get("train", True))
    for x in inputs.values():
        x.requires_grad_()
    value = rows_last(model(*inputs.values()))
    (value * tensor(direction(case.name, tuple(value.shape)))).sum().backward()
    return {
        "value": numpy(value),
        **{f"grad/{k}": numpy(rows_last(x.grad)) for k, x in inputs.items() if x.grad is not None},
        **parameter_gradients(model),
        **state(model, "batch_stats/"),
    }
