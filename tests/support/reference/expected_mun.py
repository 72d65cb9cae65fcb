"""What the references give for the cases of `cases_mun`."""

from collections.abc import Callable

import numpy as np
import torch

from . import mun, mun_losses
from .case import Arrays, Case
from .cases_mun import settled, start, steady
from .inputs import case_inputs
from .running import images, load, loss, numpy, parameter_gradients, state, tensor

VIEWS = ("visible", "infrared")
NOT_OF_THE_MODEL = ("step", "optimizer", "kernels", "generator_form", "generator_remat")


def _model(case: Case) -> mun.MUN:
    options = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    s = case.shape
    facts = {"num_ids": s["ids"], "num_instances": s["instances"]}
    model = mun.MUN(**facts, **options).double()
    load(model, case.name)
    return model.train()


def _embeddings(model: mun.MUN, data: Arrays) -> Arrays:
    """Test features of the first step's images, by modality and kind."""
    return {
        f"embed/{name}/{kind}": numpy(x)
        for m, name in enumerate(("visible", "infrared"))
        for kind, x in model.embed(images(data[name][0]), m).items()
    }


def _remembered(memory: mun.Memory) -> Arrays:
    return {f"memory/{k}": numpy(v) for k, v in memory.items()}


def _mun(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    embeddings = _embeddings(model, data)
    memory = {k: tensor(data[k]) for k in ("prototype",) if k in data}
    batch = [images(data[k][0]) for k in VIEWS]
    label = tensor(data["label"][0])
    terms, later = model.terms(batch, label, case.options["step"], memory)
    total = model.total(terms)
    total.backward()
    return {
        "total": numpy(total),
        **{f"terms/{k}": numpy(v) for k, v in terms.items()},
        **settled(parameter_gradients(model)),
        **state(model, "batch_stats/"),
        **(_remembered(later) if "ma" in terms else {}),
        **embeddings,
    }


def _trajectory(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    begin = start({k: numpy(v) for k, v in model.state_dict().items()})
    model.load_state_dict({k: torch.tensor(v) for k, v in begin.items()})
    memory = model.new_memory()
    optimizer, schedule = mun.make_optimizer(model, case.options["optimizer"])
    history: dict[str, list[np.ndarray]] = {}
    for t, label in enumerate(data["label"]):
        batch = [images(data[k][t]) for k in VIEWS]
        values, memory = mun.train_step(model, optimizer, batch, tensor(label), t, memory)
        schedule.step()
        for k, v in values.items():
            history.setdefault(f"history/{k}", []).append(numpy(v))
    return {
        **{k: np.stack(v) for k, v in history.items()},
        **steady(state(model, "")),
        **_remembered(memory),
        **_embeddings(model, data),
    }


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    "mun_alignment": lambda case: loss(case, mun_losses.alignment, "features", "labels"),
    "mun": _mun,
    "mun_trajectory": _trajectory,
}
