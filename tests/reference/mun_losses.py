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
    c = {
        i: {"v": x[0], "r": x[1], "a": x[2]}
        for i, x in losses.centers(features, labels, normalize).items()
    }
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


def _flat(f, labels):
    rows = [f[b, m] for b in range(f.shape[0]) for m in range(f.shape[1])]
    who = [y for y in labels.tolist() for _ in range(f.shape[1])]
    return rows, who


def batch_hard_triplet(f, labels, margin=0.3):
    rows, who = _flat(f, labels)
    total = 0
    for a in range(len(rows)):
        pos = max(
            (norm(rows[a] - rows[j]) for j in range(len(rows)) if j != a and who[j] == who[a]),
            key=torch.Tensor.item,
        )
        neg = min(
            (norm(rows[a] - rows[j]) for j in range(len(rows)) if who[j] != who[a]),
            key=torch.Tensor.item,
        )
        total = total + torch.relu(margin + pos - neg)
    return total / len(rows)


def weighted_regularized_triplet(f, labels):
    rows, who = _flat(f, labels)
    total = 0
    for a in range(len(rows)):
        dp = torch.stack(
            [norm(rows[a] - rows[j]) for j in range(len(rows)) if j != a and who[j] == who[a]]
        )
        dn = torch.stack([norm(rows[a] - rows[j]) for j in range(len(rows)) if who[j] != who[a]])
        x = (torch.softmax(dp, 0) * dp).sum() - (torch.softmax(-dn, 0) * dn).sum()
        total = total + torch.nn.functional.softplus(x)
    return total / len(rows)


def mmd(x, y, bandwidth="adaptive", sigma=1.0):
    rows = [*x, *y]
    n, k = len(rows), len(x)
    d = torch.stack([torch.stack([((a - b) ** 2).sum() for b in rows]) for a in rows])
    b = d.sum().detach() / (n * n - n) / 4
    g = sum(torch.exp(-d / (b * 2**j + 1e-9)) for j in range(5))
    return (g[:k, :k] + g[k:, k:] - g[:k, k:] - g[k:, :k]).mean()
