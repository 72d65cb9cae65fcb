"""What the references give for whole models: a step, and a short training, in float64."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from . import agw, idkl, mun, pdm, smcl
from .case import Arrays, Case
from .cases_models import calm, settled, start, steady
from .inputs import case_inputs
from .running import images, load, numpy, parameter_gradients, state, tensor

Optimizer = torch.optim.Optimizer
MODELS: dict[str, type[nn.Module]] = {
    "smcl": smcl.SMCL,
    "mun": mun.MUN,
    "idkl": idkl.IDKL,
    "agw": agw.AGW,
    "multi_feature": pdm.MultiFeature,
}
NOT_OF_THE_MODEL = ("step", "optimizer", "kernels", "generator_form", "generator_remat")


def _model(case: Case) -> Any:
    make, s = MODELS[case.kind.removesuffix("_trajectory")], case.shape
    facts = {"num_ids": s["ids"], "num_instances": s["instances"], "image_size": s["size"]}
    facts = {k: v for k, v in facts.items() if k in inspect.signature(make).parameters}
    options = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    model = make(**facts, **options).double()
    load(model, case.name)
    model.load_state_dict(calm(model.state_dict()))
    return model.train()


def _batch(data: Arrays, step: int) -> dict[str, torch.Tensor]:
    """Images by view [B, 3, H, W] and "label"."""
    views = {k: images(v[step]) for k, v in data.items() if k not in ("label", "prototype")}
    return {**views, "label": tensor(data["label"][step])}


@torch.no_grad()
def _embeddings(model: Any, data: Arrays) -> Arrays:
    """Test features of the first step's images, by modality and kind; and fused similarities."""
    model.eval()
    found = {
        name: model.embed(images(data[name][0]), m)
        for m, name in enumerate(("visible", "infrared"))
    }
    model.train()
    result = {f"embed/{k}/{kind}": numpy(x) for k, v in found.items() for kind, x in v.items()}
    if isinstance(model, pdm.MultiFeature):
        rows = 1 + model.o["branches"]
        fused = pdm.similarities(found["infrared"], found["visible"], rows)
        result |= {f"similarity/{k}": numpy(v) for k, v in fused.items()}
    return result


def _memory(model: Any) -> Arrays:
    return {f"memory/{k}": numpy(v) for k, v in getattr(model, "memory", {}).items()}


def _step(case: Case) -> Arrays:
    data, model, step = case_inputs(case.name), _model(case), case.options.get("step", 0)
    if getattr(model, "memory", {}):
        model.memory = {"prototype": tensor(data["prototype"])}
    embeddings = _embeddings(model, data)
    terms = model.terms(_batch(data, 0), step)
    total = model.total(terms, step)
    total.backward()
    return {
        "total": numpy(total),
        **{f"terms/{k}": numpy(v) for k, v in terms.items()},
        **settled(parameter_gradients(model)),
        **state(model, "batch_stats/"),
        **_memory(model),
        **embeddings,
    }


# --- Trainings -------------------------------------------------------------------------------


def _milestones(optimizer: Optimizer, options: dict[str, Any]) -> tuple[Optimizer, LRScheduler]:
    milestones, gamma = options.get("milestones", ()), options.get("gamma", 0.1)
    return optimizer, MultiStepLR(optimizer, milestones, gamma)


def _adam(model: nn.Module, options: dict[str, Any]) -> tuple[Optimizer, LRScheduler]:
    """As PyTorch has it: weight decay joins the gradient."""
    lr, decay = options["lr"], options["weight_decay"]
    return _milestones(torch.optim.Adam(model.parameters(), lr, weight_decay=decay), options)


def _adamw(model: nn.Module, options: dict[str, Any]) -> tuple[Optimizer, LRScheduler]:
    """MUN's: a lower rate for the trunk.

    Normalization layers, biases and layer scales, all that is not a matrix or a kernel, do
    not decay.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": [p],
            "lr": options["lr"] * (options["backbone"] if name.startswith("backbone.") else 1.0),
            "weight_decay": options["weight_decay"] if p.ndim > 1 else 0.0,
        }
        for name, p in model.named_parameters()
    ]
    return _milestones(torch.optim.AdamW(groups), options)


def _sgd(model: nn.Module, options: dict[str, Any]) -> tuple[Optimizer, LRScheduler]:
    """As in AGW's code: necks and classifiers at the rate, all else at a tenth."""
    groups: list[dict[str, Any]] = [
        {"params": [p], "lr": (1 if k.startswith(("neck", "classifier")) else 0.1) * options["lr"]}
        for k, p in model.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, **{"momentum": 0.9, "nesterov": True, **options})
    return optimizer, LambdaLR(optimizer, lambda t: 1.0 if t in (2, 3) else 0.125)


OPTIMIZERS = {"smcl": _adam, "mun": _adamw, "idkl": _adam, "agw": _sgd, "multi_feature": _sgd}


def _trajectory(case: Case) -> Arrays:
    data, model = case_inputs(case.name), _model(case)
    model.load_state_dict(start(model.state_dict()))
    kind = case.kind.removesuffix("_trajectory")
    optimizer, schedule = OPTIMIZERS[kind](model, case.options["optimizer"])
    history: dict[str, list[np.ndarray]] = {}
    for step in range(case.shape["steps"]):
        optimizer.zero_grad()
        terms = model.terms(_batch(data, step), step)
        total = model.total(terms, step)
        total.backward()
        optimizer.step()
        schedule.step()
        mun.project(model)
        for k, v in {**terms, "total": total}.items():
            history.setdefault(f"history/{k}", []).append(numpy(v))
    return {
        **{k: np.stack(v) for k, v in history.items()},
        **steady(state(model, "")),
        **_memory(model),
        **(_embeddings(model, data) if kind in ("smcl", "mun", "idkl") else {}),
    }


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    **dict.fromkeys(MODELS, _step),
    **dict.fromkeys((f"{kind}_trajectory" for kind in MODELS), _trajectory),
}
