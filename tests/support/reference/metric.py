"""Metric losses that SMCL and MUN are compared with, and the MMD: one loop per symbol.

Features come as [B, M, D]. Everything is slow and literal on purpose: lists of images or
centers that know their person and modality, loops over them, and the formulas.
"""

import dataclasses
import math

import torch

from .losses import centers, hinge, norm


@dataclasses.dataclass
class Item:
    """An image's feature, or a center."""

    person: int
    modality: int
    x: torch.Tensor


def _images(features: torch.Tensor, labels: torch.Tensor) -> list[Item]:
    return [
        Item(y, m, features[n, m])
        for n, y in enumerate(labels.tolist())
        for m in range(features.shape[1])
    ]


def _centers(features: torch.Tensor, labels: torch.Tensor) -> list[Item]:
    by_person = centers(features, labels)
    return [Item(p, m, c[m]) for p, c in by_person.items() for m in range(len(c))]


def _d(a: Item, b: Item) -> torch.Tensor:
    return norm(a.x - b.x)


def _far(a: Item, others: list[Item]) -> Item:
    return max(others, key=lambda b: _d(a, b).item())


def _near(a: Item, others: list[Item]) -> Item:
    return min(others, key=lambda b: _d(a, b).item())


def _mean(terms: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(terms).mean()


def batch_hard_triplet(
    features: torch.Tensor, labels: torch.Tensor, margin: float = 0.3
) -> torch.Tensor:
    """Hermans et al., eq. (5): every image an anchor, modalities not told apart."""
    images = _images(features, labels)
    terms = []
    for a in images:
        p = _far(a, [b for b in images if b.person == a.person and b is not a])
        n = _near(a, [b for b in images if b.person != a.person])
        terms.append(hinge(margin + _d(a, p) - _d(a, n)))
    return _mean(terms)


def _far_in_effect(
    own: list[torch.Tensor], foreign: list[torch.Tensor], weights: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted distances of an anchor to its people and to the others.

    The released code weighs a row of distances of which one kind is kept and the others are 0,
    and takes the largest of these: the farthest positive, and for negatives, whose distances it
    has turned negative, the 0 of the anchor's own people. It adds 1e-6 to both sums.
    """
    d_p, d_n = torch.stack(own), torch.stack(foreign)
    if weights == "softmax":
        return torch.softmax(d_p, 0) @ d_p, torch.softmax(-d_n, 0) @ d_n
    pull, push = torch.exp(d_p - d_p.max()), torch.exp(-d_n)
    return (pull / (pull.sum() + 1e-6)) @ d_p, (push / (push.sum() + 1e-6)) @ d_n


def weighted_gaps(features: torch.Tensor, labels: torch.Tensor, weights: str) -> list[torch.Tensor]:
    """For each image as anchor, one of its own positives, how much farther these are."""
    images = _images(features, labels)
    gaps = []
    for a in images:
        own = [_d(a, b) for b in images if b.person == a.person]
        foreign = [_d(a, b) for b in images if b.person != a.person]
        pull, push = _far_in_effect(own, foreign, weights)
        gaps.append(pull - push)
    return gaps


def weighted_regularized_triplet(
    features: torch.Tensor, labels: torch.Tensor, weights: str = "released"
) -> torch.Tensor:
    """Ye et al. (AGW): log(1 + exp(gap)), which at a gap beyond 50 is the gap in float64."""
    gaps = weighted_gaps(features, labels, weights)
    return _mean([g if g > 50 else torch.log(1 + torch.exp(g)) for g in gaps])


def bdtr(
    features: torch.Tensor,
    labels: torch.Tensor,
    cross_margin: float = 0.5,
    intra_margin: float = 0.1,
    intra_weight: float = 0.1,
) -> torch.Tensor:
    """Ye et al. (BDTR) on unit vectors, in the author's form."""
    images = [Item(a.person, a.modality, a.x / norm(a.x)) for a in _images(features, labels)]
    total = features.new_zeros(())
    for m in (0, 1):
        cross, intra = [], []
        for a in (b for b in images if b.modality == m):
            other = [b for b in images if b.modality != m]
            p = _far(a, [b for b in other if b.person == a.person])
            n = _near(a, [b for b in other if b.person != a.person])
            cross.append(hinge(cross_margin + _d(a, p) - _d(a, n)))
            intra.append(hinge(intra_margin - _d(p, n)))
        total = total + _mean(cross) + intra_weight * _mean(intra)
    return total


def bi_center(features: torch.Tensor, labels: torch.Tensor, margin: float = 0.5) -> torch.Tensor:
    """Images against the centers of the other modality."""
    of_modality = _centers(features, labels)
    total = features.new_zeros(())
    for m in (0, 1):
        terms = []
        for a in (b for b in _images(features, labels) if b.modality == m):
            other = [c for c in of_modality if c.modality != m]
            (own,) = [c for c in other if c.person == a.person]
            n = _near(a, [c for c in other if c.person != a.person])
            terms.append(hinge(margin + _d(a, own) - _d(a, n)))
        total = total + _mean(terms)
    return total


def hetero_center_triplet(
    features: torch.Tensor, labels: torch.Tensor, margin: float = 0.3
) -> torch.Tensor:
    """Liu et al.: batch-hard over the centers of all modalities."""
    items = _centers(features, labels)
    terms = []
    for c in items:
        p = _far(c, [b for b in items if b.person == c.person and b.modality != c.modality])
        n = _near(c, [b for b in items if b.person != c.person])
        terms.append(hinge(margin + _d(c, p) - _d(c, n)))
    return _mean(terms)


def _mmd_of_two(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = [*x, *y]
    n = len(rows)

    def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((a - b) ** 2).sum()

    pairs = [squared(rows[j], rows[k]).item() for j in range(n) for k in range(n) if j < k]
    b = math.fsum(pairs) / len(pairs)
    widths = [b / 4 * s + 1e-9 for s in (1, 2, 4, 8, 16)]

    def kernel(a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return sum((torch.exp(-squared(a, c) / w) for w in widths), start=a.new_zeros(()))

    total = x.new_zeros(())
    for j in range(len(x)):
        for k in range(len(x)):
            total = total + kernel(x[j], x[k]) + kernel(y[j], y[k])
            total = total - kernel(x[j], y[k]) - kernel(y[j], x[k])
    return total / len(x) ** 2


def mmd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """MMD-ReID's estimate for each pair of sets [..., K, D]; its bandwidth is a constant."""
    if x.ndim == 2:
        return _mmd_of_two(x, y)
    return torch.stack([mmd(a, b) for a, b in zip(x, y, strict=True)])
