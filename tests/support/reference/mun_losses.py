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


def alignment(features: torch.Tensor, labels: torch.Tensor, margin: float = 0.55) -> torch.Tensor:
    """Eq. (12): auxiliary centers against visible and infrared ones, summed over identities."""
    c = {i: {"v": x[0], "r": x[1], "a": x[2]} for i, x in losses.centers(features, labels).items()}
    total = features.new_zeros(())
    for i in c:
        positive = max((norm(c[i]["a"] - c[i][m]) for m in "vr"), key=torch.Tensor.item)
        negative = min(
            (norm(c[i]["a"] - c[q][m]) for q in c if q != i for m in "vr"), key=torch.Tensor.item
        )
        total = total + hinge(margin + positive - negative)
    return total


def beta(step: int, num_steps: int) -> float:
    """The updating ratio of eq. (14), from 1e-8 at the first step to 1 at the last."""
    return 1e-8 + (1 - 1e-8) * step / max(num_steps - 1, 1)


def accumulate(new: torch.Tensor, weight: float, old: torch.Tensor) -> torch.Tensor:
    """Eq. (14) row by row: T [B, 3, D], with new = W Z and old = T of the step before."""
    return torch.stack(
        [weight * z + (1 - weight) * t.detach() for z, t in zip(new, old, strict=True)]
    )


def modality_alignment(
    prototypes: torch.Tensor, labels: torch.Tensor, bridge: bool = True
) -> torch.Tensor:
    """Eqs. (15) and (16) over the identities of a batch; prototypes [B, M, D]."""
    total = prototypes.new_zeros(())
    identities = rows_of(labels)
    for rows in identities.values():
        v, r = (torch.stack([prototypes[n, m] for n in rows]) for m in (0, 1))
        if bridge:
            a = torch.stack([prototypes[n, 2] for n in rows])
            total = total + mmd(v, a) + mmd(a, r)
        else:
            total = total + mmd(v, r)
    return total / len(identities)
