"""The losses of MUN (Yu et al., ICCV 2023) as sums over identities, one loop per symbol."""

import torch

from . import losses
from .losses import hinge, norm
from .metric import mmd


def rows_of(labels: torch.Tensor) -> dict[int, list[int]]:
    """{identity: its rows in the batch}, in the batch's order."""
    result: dict[int, list[int]] = {}
    for row, y in enumerate(labels.tolist()):
        result.setdefault(y, []).append(row)
    return result


def alignment(
    features: torch.Tensor,
    labels: torch.Tensor,
    margin: float = 0.55,
    form: str = "hinge",
    normalize: bool = False,
) -> torch.Tensor:
    """Eq. (12): auxiliary centers against visible and infrared ones, summed over identities."""
    if normalize:
        features = torch.stack([torch.stack([z / norm(z) for z in row]) for row in features])
    c = {i: {"v": x[0], "r": x[1], "a": x[2]} for i, x in losses.centers(features, labels).items()}
    total = features.new_zeros(())
    for i in c:
        positive = max((norm(c[i]["a"] - c[i][m]) for m in "vr"), key=torch.Tensor.item)
        negative = min(
            (norm(c[i]["a"] - c[q][m]) for q in c if q != i for m in "vr"), key=torch.Tensor.item
        )
        value = margin + positive - negative
        if form == "hinge":
            value = hinge(value)
        elif form == "softplus":
            value = torch.log(1 + torch.exp(value))
        total = total + value
    return total


def beta(step: int, num_steps: int, schedule: str) -> float:
    """The updating ratio of eq. (14), from 1e-8 at the first step to 1 at the last."""
    part = step / max(num_steps - 1, 1)
    if schedule == "linear":
        return 1e-8 + (1 - 1e-8) * part
    return 1e-8 * 1e8**part


def accumulate(
    new: torch.Tensor, labels: torch.Tensor, weight: float, memory: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Eq. (14) row by row, with new = W Z [B, 3, D]: T [B, 3, D] and the memory that it leaves.

    memory: "prototype" [B, 3, D] by row; or [C, K, 3, D] by identity and, "seen" [C], which of
    these have a past.
    """
    old = memory["prototype"].detach()
    later = {k: v.clone() for k, v in memory.items()}
    t: list[torch.Tensor] = [new[0]] * len(new)
    for identity, rows in rows_of(labels).items():
        for k, row in enumerate(rows):
            place, own = (row,), weight
            if "seen" in memory:
                place = (identity, k)
                own = weight if memory["seen"][identity] else 1.0
            t[row] = own * new[row] + (1 - own) * old[place]
            later["prototype"][place] = t[row].detach()
        if "seen" in memory:
            later["seen"][identity] = 1
    return torch.stack(t), later


def modality_alignment(
    prototypes: torch.Tensor,
    labels: torch.Tensor,
    bridge: bool = True,
    bandwidth: str = "adaptive",
    sigma: float = 1.0,
) -> torch.Tensor:
    """Eqs. (15) and (16) over the identities of a batch; prototypes [B, M, D]."""
    total = prototypes.new_zeros(())
    identities = rows_of(labels)
    for rows in identities.values():
        v, r = (torch.stack([prototypes[n, m] for n in rows]) for m in (0, 1))
        if bridge:
            a = torch.stack([prototypes[n, 2] for n in rows])
            total = total + mmd(v, a, bandwidth, sigma) + mmd(a, r, bandwidth, sigma)
        else:
            total = total + mmd(v, r, bandwidth, sigma)
    return total / len(identities)
