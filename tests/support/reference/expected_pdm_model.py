"""What the references give for the cases of `cases_pdm_model`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from . import agw, pdm
from .case import Arrays, Case
from .cases_mun import settled
from .cases_pdm_model import calm
from .inputs import case_inputs
from .running import images, load, numpy, parameter_gradients, state, tensor

Model = agw.AGW | pdm.MultiFeature

NOT_OF_THE_MODEL = ("optimizer", "kernels")
VIEWS = ("visible", "visible_second")


def _model(case: Case) -> Model:
    options: dict[str, Any] = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    if case.kind.startswith("agw"):
        model: Model = agw.AGW(**options)
    else:
        facts = {"num_ids": case.shape["ids"], "image_size": case.shape["size"]}
        model = pdm.MultiFeature(**facts, **options)
    load(model.double(), case.name)
    model.load_state_dict(calm(model.state_dict()))
    return model.train()


def _terms(model: Model, data: Arrays, step: int) -> dict[str, torch.Tensor]:
    views = [images(data[k][step]) for k in VIEWS if k in data]
    infrared, label = images(data["infrared"][step]), tensor(data["label"][step])
    if isinstance(model, agw.AGW):
        return model.terms(views, infrared, label)
    return model.terms({"visible": views[0], "infrared": infrared}, label, label)


def _embeddings(model: Model, data: Arrays) -> Arrays:
    """Test features of the first step's images, and similarities of infrared to visible ones."""
    found = {
        name: model.embed(images(data[name][0]), m)
        for m, name in enumerate(("visible", "infrared"))
    }
    result = {f"embed/{k}/{kind}": numpy(x) for k, v in found.items() for kind, x in v.items()}
    if isinstance(model, pdm.MultiFeature):
        rows = 1 + model.o["branches"]
        fused = pdm.similarities(found["infrared"], found["visible"], rows)
        result |= {f"similarity/{k}": numpy(v) for k, v in fused.items()}
    return result


def _step(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    embeddings = _embeddings(model, data)
    terms = _terms(model, data, 0)
    total = model.total(terms)
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
    options = case.options["optimizer"]
    sgd = agw.optimizer(model, options)
    history: dict[str, list[np.ndarray]] = {}
    for step in range(len(data["label"])):
        agw.adjust(sgd, options["lr"] * (0.125, 1.0, 0.125)[step // 2])
        sgd.zero_grad()
        terms = _terms(model, data, step)
        total = model.total(terms)
        total.backward()
        sgd.step()
        for k, v in {**terms, "total": total}.items():
            history.setdefault(f"history/{k}", []).append(numpy(v))
    return {
        **{k: np.stack(v) for k, v in history.items()},
        **state(model, ""),
    }


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    **dict.fromkeys(("agw", "multi_feature"), _step),
    **dict.fromkeys(("agw_trajectory", "multi_feature_trajectory"), _trajectory),
}
