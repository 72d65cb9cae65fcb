"""What the references give for losses and modules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import attention, auxiliary, expansion, idkl_net, losses, metric, mun_losses, pairmining
from . import idkl_losses as il
from .case import Arrays, Case
from .inputs import case_inputs
from .pooling import GAP, GeM
from .resnet import BatchNorm, ResNet
from .running import images, loss, module, tensor
from .smcl import SMGM

# --- Losses ----------------------------------------------------------------------------------


def _row_centers(features: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    by_identity = losses.centers(features, labels, **options)
    return torch.stack([by_identity[y] for y in labels.tolist()])


# IDKL's released code has rows in an order of its own.


def _mix(features: torch.Tensor) -> torch.Tensor:
    return il.released_tgsa_mix(il.released_order(features), il.released_labels(len(features)))


def _by_modality(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, t = il.released_order(features), il.released_labels(len(features))
    return rows[t == 0], rows[t == 1]


def _block(features: torch.Tensor) -> torch.Tensor:
    return il.bg_kl(*(il.released_blocks(x, 4) for x in _by_modality(features)))


def _reducing(reduced: torch.Tensor, plain: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    person, t = labels.repeat_interleave(2), il.released_labels(len(labels))
    return il.released_reducing(il.released_order(reduced), il.released_order(plain), person, t)


def _triplet(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows, person = il.released_order(features), labels.repeat_interleave(2)
    return il.released_triplet(rows, person, 1.3)


def _confuser(logits: torch.Tensor) -> torch.Tensor:
    labels = il.confuser_labels(il.released_labels(len(logits)))
    return functional.cross_entropy(il.released_order(logits), labels)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "pairwise_distance": losses.pairwise_distance,
    "cross_entropy": losses.cross_entropy,
    "row_centers": _row_centers,
    "tri_center": losses.tri_center,
    "global_center": losses.global_center,
    "batch_hard_triplet": metric.batch_hard_triplet,
    "weighted_regularized_triplet": metric.weighted_regularized_triplet,
    "bdtr": metric.bdtr,
    "bi_center": metric.bi_center,
    "hetero_center_triplet": metric.hetero_center_triplet,
    "mmd": metric.mmd,
    "mun_alignment": mun_losses.alignment,
    "idkl_tgsa": il.tgsa,
    "idkl_csa": il.csa,
    "idkl_e": il.enhancing,
    "idkl_r": il.reducing,
    "idkl_released_mix": _mix,
    "idkl_released_self": lambda features: il.released_tgsa_self(*_by_modality(features)),
    "idkl_released_csa": lambda logits: il.bg_kl(*_by_modality(logits)),
    "idkl_released_block": _block,
    "idkl_released_e": il.released_enhancing,
    "idkl_released_r": _reducing,
    "idkl_released_tri": _triplet,
    "idkl_released_confuser": _confuser,
    "idkl_reverse": idkl_net.reverse,
    "cpm": pairmining.center_pair_mining,
    "cpm_released": lambda features, labels: pairmining.released_cpm(features, 4),
    "ort": pairmining.orthogonality,
    "ort_released": pairmining.released_ort,
    "dcs": pairmining.dual_center_separation,
    "dcs_released": pairmining.released_dcs,
    "ch": pairmining.heterogeneity,
    "caj": pairmining.squared_difference,
}

# --- Modules ---------------------------------------------------------------------------------


class _Call(nn.Module):
    """A module by the names of `inner`, called as `forward`."""

    def __init__(self, inner: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.forward = inner, forward

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.named_parameters(*args, **kwargs)


def _joined(inner: nn.Module) -> nn.Module:
    """The maps of a module joined along channels."""
    return _Call(inner, lambda *maps: torch.cat(inner(*maps), 1))


def _resnet(stems: tuple[int, ...] | None = None, **options: Any) -> nn.Module:
    """A trunk as a module of M image arguments."""
    trunk = ResNet(**options)
    return _Call(trunk, lambda *arrays: trunk(arrays, stems))


def _width(case: Case) -> tuple[int, ...]:
    """The channels of a case's arrays."""
    return tuple(shape[-1] for shape in case.shape.values())


def _plm(case: Case) -> tuple[int, ...]:
    _, height, width, channels = case.shape["maps"]
    return channels, height * width


def _nothing(case: Case) -> tuple[int, ...]:
    return ()


# kind -> how to make it, and of which sizes.
MODULES: dict[str, tuple[Callable[..., nn.Module], Callable[[Case], tuple[int, ...]]]] = {
    "smgm": (lambda width, input="standardized": SMGM(width, input), _nothing),
    "gap": (GAP, _nothing),
    "gem_fixed": (GeM, _nothing),
    "batch_norm": (BatchNorm, _width),
    "resnet": (_resnet, _nothing),
    "aux_x": (auxiliary.X, _nothing),
    "aux_gray": (auxiliary.Gray, _nothing),
    "aux_mixed": (auxiliary.Mixed, _nothing),
    "aux_intra": (auxiliary.IML, _width),
    "aux_cross": (auxiliary.CML, _width),
    "aux_generator": (lambda *args, **kw: _joined(auxiliary.Unifying(*args, **kw)), _width),
    "idkl_gem": (lambda: _Call(nn.Identity(), idkl_net.gem), _nothing),
    "idkl_purifier": (lambda *args, **kw: _joined(idkl_net.Purifier(*args, **kw)), _width),
    "idkl_modality": (idkl_net.ModalityClassifier, _width),
    "nonlocal": (attention.NonLocal, _width),
    "cnl": (attention.ChannelAttention, _width),
    "pnl": (attention.PositionAttention, _width),
    "mfa": (attention.Aggregation, _width),
    "expansion": (expansion.Expansion, _width),
    "plm": (expansion.Prototypes, _plm),
    "simam": (expansion.SimAM, _nothing),
}


def _loss(case: Case) -> Arrays:
    return loss(case, LOSSES[case.kind])


def _module(case: Case) -> Arrays:
    make, sizes = MODULES[case.kind]
    options = {k: v for k, v in case.options.items() if k not in ("train", "kernels")}
    inputs = {k: images(v) if v.ndim == 4 else tensor(v) for k, v in case_inputs(case.name).items()}
    return module(case, make(*sizes(case), **options), inputs)


COMPUTE: dict[str, Callable[[Case], Arrays]] = {
    **dict.fromkeys(LOSSES, _loss),
    **dict.fromkeys(MODULES, _module),
}
