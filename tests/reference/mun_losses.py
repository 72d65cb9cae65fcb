"""The losses of MUN (Yu et al., ICCV 2023) as sums over identities, one loop per symbol."""

import torch

from . import losses
from .losses import hinge, norm


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


def _rows(features: torch.Tensor, labels: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
    """All B * M rows of features [B, M, D] and whom each of them shows."""
    rows = [z for slot in features for z in slot]
    return rows, [y for y in labels.tolist() for _ in range(features.shape[1])]


def batch_hard_triplet(
    features: torch.Tensor, labels: torch.Tensor, margin: float = 0.3
) -> torch.Tensor:
    """Hermans et al. (arXiv 1703.07737), eq. (5), as a mean over anchors."""
    rows, who = _rows(features, labels)
    total = features.new_zeros(())
    for a, x in enumerate(rows):
        positive = max(
            (norm(x - z) for j, z in enumerate(rows) if who[j] == who[a] and j != a),
            key=torch.Tensor.item,
        )
        negative = min(
            (norm(x - z) for j, z in enumerate(rows) if who[j] != who[a]), key=torch.Tensor.item
        )
        total = total + hinge(margin + positive - negative)
    return total / len(rows)


def weighted_regularized_triplet(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """AGW's loss (arXiv 2001.04193); an anchor is among its own positives, at distance 0."""
    rows, who = _rows(features, labels)
    total = features.new_zeros(())
    for a, x in enumerate(rows):
        pull, push = (
            torch.stack([norm(x - z) for j, z in enumerate(rows) if (who[j] == who[a]) == same])
            for same in (True, False)
        )
        inner = (torch.softmax(pull, 0) * pull).sum() - (torch.softmax(-push, 0) * push).sum()
        total = total + torch.log(1 + torch.exp(inner))
    return total / len(rows)


def mmd(
    x: torch.Tensor, y: torch.Tensor, bandwidth: str = "adaptive", sigma: float = 1.0
) -> torch.Tensor:
    """The squared MMD of rows x [K, D] and y [K, D], a mean over pairs, diagonals included."""
    rows = [*x, *y]
    pairs = [((a - b) ** 2).sum() for n, a in enumerate(rows) for m, b in enumerate(rows) if n != m]
    if bandwidth == "adaptive":
        b = sum(d.item() for d in pairs) / len(pairs)
    elif bandwidth == "median":
        ordered = sorted(d.item() for d in pairs)
        b = (ordered[(len(pairs) - 1) // 2] + ordered[len(pairs) // 2]) / 2
    else:
        b = sigma

    def kernel(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        d = ((first - second) ** 2).sum()
        if bandwidth == "median":
            return torch.exp(-d / (b + 1e-9))
        return torch.stack([torch.exp(-d / (b / 4 * 2**j + 1e-9)) for j in range(5)]).sum()

    total = x.new_zeros(())
    for j in range(len(x)):
        for k in range(len(y)):
            total = total + kernel(x[j], x[k]) + kernel(y[j], y[k])
            total = total - kernel(x[j], y[k]) - kernel(y[j], x[k])
    return total / len(x) ** 2
