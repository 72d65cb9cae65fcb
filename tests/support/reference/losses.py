"""The losses of SMCL (Wei et al., ICCV 2021) as sums over identities, one loop per symbol.

Features come as [B, M, D] with the modalities in the order visible, infrared, syncretic.
Everything is slow and literal on purpose: sets, loops and the typeset formulas.
"""

import torch

FLOOR = 1e-12  # below this a squared distance counts as this: its root has a zero gradient


def norm(x: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of a vector [D] that has a (zero) gradient at the origin."""
    return torch.sqrt(torch.clamp((x * x).sum(), min=FLOOR))


def pairwise_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [N, L] of rows a [N, D] and b [L, D], pair by pair."""
    return torch.stack([torch.stack([norm(x - y) for y in b]) for x in a])


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Eq. (2), and eq. (3) when margin > 0; mean over samples.

    The margin lowers the true identity's term of numerator and denominator.
    """
    total = logits.new_zeros(())
    for z, y in zip(logits, labels.tolist(), strict=True):
        z = z - z.detach().max()  # the fraction does not change, the exponentials stay finite
        numerator = torch.exp(z[y] - margin)
        others = sum((torch.exp(z[u]) for u in range(len(z)) if u != y), start=z.new_zeros(()))
        total = total - torch.log(numerator / (numerator + others))
    return total / len(logits)


def centers(
    features: torch.Tensor, labels: torch.Tensor, normalize: bool = False
) -> dict[int, torch.Tensor]:
    """Eq. (5) for every modality: {identity: [M, D]}, means over the identity's images."""
    result = {}
    for p in sorted(set(labels.tolist())):
        rows = [n for n, y in enumerate(labels.tolist()) if y == p]
        center = torch.stack([features[n] for n in rows]).sum(0) / len(rows)  # [M, D]
        if normalize:
            center = torch.stack([c / norm(c) for c in center])
        result[p] = center
    return result


def hinge(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x)


def tri_center(
    features: torch.Tensor, labels: torch.Tensor, margin: float = 0.3, normalize: bool = False
) -> torch.Tensor:
    """Eq. (6): syncretic centers as anchors, summed over identities."""
    c = {
        p: {"v": x[0], "i": x[1], "s": x[2]}
        for p, x in centers(features, labels, normalize).items()
    }
    total = features.new_zeros(())
    for p in c:
        nearest = min((norm(c[p]["s"] - c[j]["s"]) for j in c if j != p), key=torch.Tensor.item)
        total = total + hinge(margin + norm(c[p]["s"] - c[p]["v"]) - nearest)
        total = total + hinge(margin + norm(c[p]["s"] - c[p]["i"]) - nearest)
    return total


def global_center(
    features: torch.Tensor, labels: torch.Tensor, normalize: bool = False
) -> torch.Tensor:
    """Eq. (7): distance of the visible from the infrared center, summed over identities."""
    c = centers(features, labels, normalize)
    return sum((norm(c[p][0] - c[p][1]) for p in c), start=features.new_zeros(()))
