"""What the references give for the cases of `cases_core`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from . import losses, pooling, smcl
from .case import Arrays, Case
from .cases_mun import settled, start
from .inputs import case_inputs
from .resnet import BatchNorm, ResNet
from .running import images, load, loss, module, numpy, parameter_gradients, state, tensor


def _row_centers(features: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    by_identity = losses.centers(features, labels, **options)
    return torch.stack([by_identity[y] for y in labels.tolist()])


def _smgm(case: Case) -> Arrays:
    o = case.options
    model = smcl.SMGM(o["width"], o.get("input", "standardized"))
    return module(case, model, {k: images(v) for k, v in case_inputs(case.name).items()})


def _batch_norm(case: Case) -> Arrays:
    x = case_inputs(case.name)["x"]
    model = BatchNorm(x.shape[-1], case.options.get("use_bias", True))
    image = images(x) if x.ndim == 4 else tensor(x)
    return module(case, model, {"x": image})


class _Images(torch.nn.Module):
    """A trunk as a module of M image arguments."""

    def __init__(self, trunk: ResNet, stems: tuple[int, ...] | None) -> None:
        super().__init__()
        self.trunk, self.stems = trunk, stems

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        return self.trunk(arrays, self.stems)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.trunk.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.trunk.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.trunk.named_parameters(*args, **kwargs)


def _resnet(case: Case) -> Arrays:
    o = case.options
    trunk = ResNet(
        o["depth"],
        o["width"],
        o.get("last_stride", 1),
        o.get("specific", 0),
    )
    inputs = {k: images(v) for k, v in case_inputs(case.name).items()}
    return module(case, _Images(trunk, o.get("stems")), inputs)


NOT_OF_THE_MODEL = ("optimizer", "switch", "kernels")


def _model(case: Case) -> smcl.SMCL:
    options = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    model = smcl.SMCL(**options).double()
    load(model, case.name)
    return model.train()


def _embeddings(model: smcl.SMCL, data: Arrays) -> Arrays:
    """Test features of the first step's images, by modality and kind."""
    return {
        f"embed/{name}/{kind}": numpy(x)
        for m, name in enumerate(("visible", "infrared"))
        for kind, x in model.embed(images(data[name][0]), m).items()
    }


def _smcl(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    embeddings = _embeddings(model, data)
    terms = model.terms(
        images(data["visible"][0]), images(data["infrared"][0]), tensor(data["label"][0])
    )
    total = model.total(terms, metric=True)
    total.backward()
    return {
        "total": numpy(total),
        **{f"terms/{k}": numpy(v) for k, v in terms.items()},
        **settled(parameter_gradients(model)),
        **state(model, "batch_stats/"),
        **embeddings,
    }


def _trajectory(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    begin = start({k: numpy(v) for k, v in model.state_dict().items()})
    model.load_state_dict({k: torch.tensor(v) for k, v in begin.items()})
    optimizer, schedule = smcl.make_optimizer(model, case.options["optimizer"])
    history: dict[str, list[np.ndarray]] = {}
    for t, label in enumerate(data["label"]):
        batch = (images(data["visible"][t]), images(data["infrared"][t])), tensor(label)
        metric = t >= case.options["switch"]
        values = smcl.train_step(model, optimizer, *batch, metric)
        schedule.step()
        for k, v in values.items():
            history.setdefault(f"history/{k}", []).append(numpy(v))
    return {
        **{k: np.stack(v) for k, v in history.items()},
        **state(model, ""),
        **_embeddings(model, data),
    }


def _pool(case: Case) -> Arrays:
    pool = pooling.GAP() if case.kind == "gap" else pooling.GeM()
    return module(case, pool, {"maps": images(case_inputs(case.name)["maps"])})


def _of_features(function: Callable[..., torch.Tensor], case: Case) -> Arrays:
    return loss(case, function, "features", "labels")


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    "pairwise_distance": lambda case: loss(case, losses.pairwise_distance, "a", "b"),
    "cross_entropy": lambda case: loss(case, losses.cross_entropy, "logits", "labels"),
    "row_centers": partial(_of_features, _row_centers),
    "tri_center": partial(_of_features, losses.tri_center),
    "global_center": partial(_of_features, losses.global_center),
    "smgm": _smgm,
    "gap": _pool,
    "gem_fixed": _pool,
    "batch_norm": _batch_norm,
    "resnet": _resnet,
    "smcl": _smcl,
    "trajectory": _trajectory,
}
