"""What the references give for the cases of `cases_idkl`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from . import idkl, idkl_losses, idkl_net
from .case import Arrays, Case
from .cases_mun import settled
from .inputs import case_inputs
from .running import images, load, loss, module, numpy, parameter_gradients, state, tensor

NOT_OF_THE_MODEL = ("optimizer", "kernels")


# --- The released code's losses, on rows in its order ------------------------------------


def _mix(features: torch.Tensor) -> torch.Tensor:
    rows = idkl_losses.released_order(features)
    return idkl_losses.released_tgsa_mix(rows, idkl_losses.released_labels(len(features)))


def _by_modality(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, t = idkl_losses.released_order(features), idkl_losses.released_labels(len(features))
    return rows[t == 0], rows[t == 1]


def _self(features: torch.Tensor) -> torch.Tensor:
    return idkl_losses.released_tgsa_self(*_by_modality(features))


def _csa(logits: torch.Tensor) -> torch.Tensor:
    return idkl_losses.bg_kl(*_by_modality(logits))


def _block(case: Case) -> Arrays:
    def function(logits: torch.Tensor) -> torch.Tensor:
        v, i = (idkl_losses.released_blocks(x, case.shape["ids"]) for x in _by_modality(logits))
        return idkl_losses.bg_kl(v, i)

    return loss(case, function, "features")


def _reducing(reduced: torch.Tensor, plain: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    order = idkl_losses.released_order
    person, t = labels.repeat_interleave(2), idkl_losses.released_labels(len(labels))
    return idkl_losses.released_reducing(order(reduced), order(plain), person, t)


def _triplet(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows, person = idkl_losses.released_order(features), labels.repeat_interleave(2)
    return idkl_losses.released_triplet(rows, person, 1.3)


def _confuser(logits: torch.Tensor) -> torch.Tensor:
    told = idkl_losses.confuser_labels(idkl_losses.released_labels(len(logits)))
    return functional.cross_entropy(idkl_losses.released_order(logits), told)


# --- Modules -----------------------------------------------------------------------------


class _Joined(idkl_net.Purifier):
    """The four maps of the purifier, joined along channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.cat(super().forward(x), 1)


class _Gem(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return idkl_net.gem(x)


def _purifier(case: Case) -> Arrays:
    maps = images(case_inputs(case.name)["maps"])
    return module(case, _Joined(maps.shape[1], **case.options), {"maps": maps})


def _modality(case: Case) -> Arrays:
    x = tensor(case_inputs(case.name)["x"])
    return module(case, idkl_net.ModalityClassifier(x.shape[1]), {"x": x})


# --- The whole model ---------------------------------------------------------------------


def _model(case: Case) -> idkl.IDKL:
    options: dict[str, Any] = {k: v for k, v in case.options.items() if k not in NOT_OF_THE_MODEL}
    s = case.shape
    model = idkl.IDKL(num_ids=s["ids"], num_instances=s["instances"], **options).double()
    load(model, case.name)
    return model.train()


def _embeddings(model: idkl.IDKL, data: Arrays) -> Arrays:
    """Test features of the first step's images, by modality and kind."""
    return {
        f"embed/{name}/{kind}": numpy(x)
        for name in ("visible", "infrared")
        for kind, x in model.embed(images(data[name][0])).items()
    }


def _batch(data: Arrays, step: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    return [images(data[k][step]) for k in ("visible", "infrared")], tensor(data["label"][step])


def _idkl(case: Case) -> Arrays:
    data = case_inputs(case.name)
    model = _model(case)
    embeddings = _embeddings(model, data)
    terms = model.terms(*_batch(data, 0))
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
    optimizer = torch.optim.Adam(model.parameters(), **case.options["optimizer"])
    history: dict[str, list[np.ndarray]] = {}
    for step in range(len(data["label"])):
        values = idkl.train_step(model, optimizer, *_batch(data, step))
        for k, v in values.items():
            history.setdefault(f"history/{k}", []).append(numpy(v))
    return {
        **{k: np.stack(v) for k, v in history.items()},
        **state(model, ""),
        **_embeddings(model, data),
    }


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    "idkl_tgsa": lambda case: loss(case, idkl_losses.tgsa, "features"),
    "idkl_csa": lambda case: loss(case, idkl_losses.csa, "features"),
    "idkl_e": lambda case: loss(case, idkl_losses.enhancing, "enhanced", "plain"),
    "idkl_r": lambda case: loss(case, idkl_losses.reducing, "reduced", "plain", "labels"),
    "idkl_released_mix": lambda case: loss(case, _mix, "features"),
    "idkl_released_self": lambda case: loss(case, _self, "features"),
    "idkl_released_csa": lambda case: loss(case, _csa, "features"),
    "idkl_released_block": _block,
    "idkl_released_e": lambda case: loss(case, idkl_losses.released_enhancing, "enhanced", "plain"),
    "idkl_released_r": lambda case: loss(case, _reducing, "reduced", "plain", "labels"),
    "idkl_released_tri": lambda case: loss(case, _triplet, "features", "labels"),
    "idkl_released_confuser": lambda case: loss(case, _confuser, "logits"),
    "idkl_gem": lambda case: module(case, _Gem(), {"maps": images(case_inputs(case.name)["maps"])}),
    "idkl_purifier": _purifier,
    "idkl_modality": _modality,
    "idkl_reverse": lambda case: loss(case, idkl_net.reverse, "x"),
    "idkl": _idkl,
    "idkl_trajectory": _trajectory,
}
