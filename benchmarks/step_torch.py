"""What the PyTorch steps of several methods share, in whole-array form, as one writes for speed."""

import re
from typing import Any

import torch
from torch.nn import functional


def cdist(x: Any, y: Any) -> Any:
    """Distances of rows, exact ones."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def other(n: int, like: Any) -> Any:
    """Pairs [n, n] of two different things, on the device of a tensor."""
    return ~torch.eye(n, dtype=torch.bool, device=like.device)


def batch_hard(x: Any, who: Any, margin: float) -> Any:
    """Batch-hard triplet loss of rows x [N, D] of the people `who` [N]."""
    distance, same = cdist(x, x), who[:, None] == who[None]
    farthest = distance.masked_fill(~same, -torch.inf).amax(1)
    nearest = distance.masked_fill(same, torch.inf).amin(1)
    return torch.relu(margin + farthest - nearest).mean()


def pair_mining(rows: Any, identities: int, margin: float) -> Any:
    """L_cpm of DEEN's code, over all branches and both modalities at once.

    Args:
      rows: [1 + G, 2, P * K, D], the images' own first.
      identities: P.
      margin: of the hinges.
    """
    centers = rows.unflatten(2, (identities, -1)).mean(3)  # [1 + G, 2, P, D]
    c, g = centers[0], centers[1:]
    pull = (c.flip(0) - g).norm(dim=-1)  # [G, 2, P]
    own = (c - g).norm(dim=-1).detach()
    mask = ~other(identities, c)
    nearest = [cdist(x, x).masked_fill(mask, torch.inf).amin(-1) for x in (g, c)]
    hinges = [torch.relu(pull - far + margin) for far in (own, *nearest)]
    return (hinges[0] + (hinges[1] + hinges[2]) / 2).mean(-1).sum() / 2


def orthogonality(rows: Any) -> Any:
    """L_ort of DEEN's code, of rows [1 + G, 2, B, D]."""
    made = rows[1:]
    pairs = (made.sum(0).square().sum() - made.square().sum()) / 2
    return pairs / rows[..., 0].numel()


def weighted_triplet(x: Any, who: Any) -> Any:
    """Weighted regularized triplet loss of AGW's code, of rows x [N, D]."""
    distance, same = cdist(x, x), who[:, None] == who[None]

    def mean(logits: Any, mask: Any) -> Any:
        logits = logits * mask  # as the code, whose largest is 0 or more
        e = (logits - logits.amax(1, keepdim=True)).exp() * mask
        return (distance * e).sum(1) / (e.sum(1) + 1e-6)

    return functional.softplus(mean(distance, same) - mean(-distance, ~same)).mean()


def like(y: Any, x: Any) -> Any:
    """Map y in the layout of map x: a copy once, instead of mixed layouts from here on."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def optimizer(model: Any, optim: dict[str, Any], lr: float) -> Any:
    """The recipe's: Adam, or SGD with momentum, and rates by parameter."""
    groups: dict[float, list[Any]] = {}
    for name, p in model.named_parameters():
        path = name.replace(".", "/")
        factor = next((f for pattern, f in optim["multipliers"] if re.match(pattern, path)), 1.0)
        groups.setdefault(factor, []).append(p)
    of_rates = [{"params": p, "lr": lr * factor} for factor, p in groups.items()]
    decay = optim["weight_decay"]
    if optim["name"] == "adam":
        return torch.optim.Adam(of_rates, weight_decay=decay, fused=True)
    momentum = {k: optim[k] for k in ("momentum", "nesterov")}
    return torch.optim.SGD(of_rates, lr=lr, weight_decay=decay, **momentum, fused=True)
