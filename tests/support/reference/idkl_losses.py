"""The losses of IDKL (Ren and Zhang, CVPR 2024): by symbol, and as the released code has them.

The first part has the equations as we read them, one loop per symbol. The second, from
`released_order` on, has the formulas of 1KK077/IDKL at 8676b62 on batches in that code's own
order: identity by identity, infrared and visible images in turn, infrared first; modality label 1
for infrared. Everything comes in our order, [B, 2, ...] with visible first, and is translated here.
"""

import torch
from torch.nn import functional

from .losses import centers, norm

NEAREST = 1e-3  # a distance in an affinity matrix is at least this


# --- The paper ---------------------------------------------------------------------------


def _distribution(logits: torch.Tensor) -> torch.Tensor:
    """softmax of a row, shifted so that exponentials stay finite."""
    e = torch.exp(logits - logits.detach().max())
    return e / e.sum()


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL of the rows of two logit matrices [N, L] in both directions, mean over rows."""
    total = first.new_zeros(())
    for row_p, row_q in zip(first, second, strict=True):
        p, q = _distribution(row_p), _distribution(row_q)
        total = total + (p * torch.log(p / q)).sum() + (q * torch.log(q / p)).sum()
    return total / len(first)


def affinity(a: torch.Tensor, b: torch.Tensor, scale: str) -> torch.Tensor:
    """Eq. (15) before its softmax, without the entries (i, i): [N, N - 1]."""
    rows = []
    for i, x in enumerate(a):
        row = [norm(x - y).clamp(min=NEAREST) for j, y in enumerate(b) if j != i]
        rows.append(torch.stack(row))
    distances = torch.stack(rows)
    return distances / distances.detach().mean() if scale == "mean" else distances


def tgsa(
    features: torch.Tensor, pairs: str = "all", cross: str = "true", scale: str = "none"
) -> torch.Tensor:
    """Eq. (16) of features [N, 2, D]: kind a is [:, 0], kind b is [:, 1]."""
    a, b = features[:, 0], features[:, 1]
    aa, bb = affinity(a, a, scale), affinity(b, b, scale)
    total = divergence(aa, bb)
    if pairs == "self":
        return total
    if cross == "true":
        ab = affinity(a, b, scale)
    else:
        half = len(a) // 2
        mixed = torch.cat([a[:half], b[:half]])
        ab = affinity(mixed, mixed, scale)
    return total + divergence(aa, ab) + divergence(ab, bb)


def csa(logits: torch.Tensor, num_instances: int | None = None) -> torch.Tensor:
    """One KL of eqs. (19) and (20), of logits [N, 2, C].

    num_instances: K; then of the code's blocks, whose row k has the logits of image k of all
    identities.
    """
    first, second = logits[:, 0], logits[:, 1]
    if num_instances is not None:
        first, second = blocks(first, num_instances), blocks(second, num_instances)
    return divergence(first, second)


def blocks(logits: torch.Tensor, num_instances: int) -> torch.Tensor:
    """[P * K, C] -> [K, P * C]: every K-th row from row k on, side by side."""
    return torch.stack([torch.cat(list(logits[k::num_instances])) for k in range(num_instances)])


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """h(.) of rows [N, C], in nats."""
    probabilities = torch.stack([_distribution(row) for row in logits])
    return -(probabilities * torch.log(probabilities)).sum(1)


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log(1 + torch.exp(x))


def enhancing(enhanced: torch.Tensor, plain: torch.Tensor, form: str = "softplus") -> torch.Tensor:
    """Eq. (10) as a mean over rows of logits [N, C], or the released code's L_e."""
    more = entropy(enhanced) - entropy(plain)
    if form == "softplus":
        return _softplus(more).mean()
    return (torch.exp(torch.relu(more)) - 1).mean()


def reducing(
    reduced: torch.Tensor, plain: torch.Tensor, labels: torch.Tensor, form: str = "softplus"
) -> torch.Tensor:
    """Eq. (11) as a mean over identities; d is between two centers, of features [N, 2, D]."""
    of_reduced, of_plain = centers(reduced, labels), centers(plain, labels)
    rises = []
    for p in of_reduced:
        # The shift is that of pairwise_distance below.
        gaps = [norm(v - i + 1e-6) for v, i in (of_reduced[p], of_plain[p])]
        rises.append(gaps[0] - gaps[1])
    rise = torch.stack(rises)
    return (_softplus(rise) if form == "softplus" else torch.relu(rise)).mean()


# --- The released code -------------------------------------------------------------------


def released_order(x: torch.Tensor) -> torch.Tensor:
    """[N, 2, ...] with visible first -> [2N, ...]: infrared, visible, infrared, ..."""
    return torch.stack([x[:, 1], x[:, 0]], 1).flatten(0, 1)


def released_labels(n: int) -> torch.Tensor:
    """t of the 2N rows in that order: infrared 1, visible 0."""
    return torch.tensor([1, 0] * n)


def our_order(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `released_order`."""
    t = released_labels(len(x) // 2)
    return torch.stack([x[t == 0], x[t == 1]], 1)


def confuser_labels(t: torch.Tensor) -> torch.Tensor:
    """What the confuser is told: the first half of t, each twice, rolled left by one."""
    half = t[: len(t) // 2]
    return torch.roll(half.repeat_interleave(2), -1)


def bg_kl(logits1: torch.Tensor, logits2: torch.Tensor) -> torch.Tensor:
    """Both returned values of `Bg_kl`, which are only ever added."""
    kl_div = torch.nn.KLDivLoss(reduction="batchmean")
    one = kl_div(functional.log_softmax(logits1, 1), functional.softmax(logits2, 1))
    two = kl_div(functional.log_softmax(logits2, 1), functional.softmax(logits1, 1))
    return one + two


def released_distances(x: torch.Tensor, floor: float) -> torch.Tensor:
    """Distances of all rows [n, D] from all rows, by |a|^2 + |b|^2 - 2ab."""
    square = (x**2).sum(1, keepdim=True)
    return (square + square.T - 2 * x @ x.T).clamp(min=floor).sqrt()


def released_affinity(x: torch.Tensor) -> torch.Tensor:
    """[n, n - 1]: the distances but those of the diagonal."""
    n = len(x)
    return released_distances(x, 1e-6)[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)


def released_tgsa_self(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Between branches, in one modality: rows [N, D] of either."""
    return bg_kl(released_affinity(x), released_affinity(y))


def released_tgsa_mix(feat: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Between modalities: rows [2N, D] of both. The third matrix is that of half of each."""
    feat_v, feat_i = feat[t == 0], feat[t == 1]
    half = len(feat_v) // 2
    of_v, of_i = released_affinity(feat_v), released_affinity(feat_i)
    of_mix = released_affinity(torch.cat([feat_v[:half], feat_i[:half]]))
    return bg_kl(of_v, of_i) + bg_kl(of_v, of_mix) + bg_kl(of_mix, of_i)


def released_blocks(logits: torch.Tensor, num_ids: int) -> torch.Tensor:
    """[N, C] of one modality -> [h, P * C], identity after identity in a row."""
    per_identity = logits.reshape(num_ids, -1, logits.shape[1])
    return per_identity.permute(1, 0, 2).reshape(per_identity.shape[1], -1)


def released_triplet(feat: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """Hardest positive, itself among them, and hardest negative of every row."""
    distances = released_distances(feat, 1e-12)
    same = labels[:, None] == labels[None, :]
    positive = torch.where(same, distances, -torch.inf).amax(1)
    negative = torch.where(same, torch.inf, distances).amin(1)
    return torch.clamp(positive - negative + margin, min=0).mean()


def released_reducing(
    reduced: torch.Tensor, plain: torch.Tensor, labels: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """L_r on rows [2N, D]: [d(reduced) - d(plain)]_+ of the modalities' centers, by identity."""
    rises = []
    for y in labels.unique():
        distance = [
            functional.pairwise_distance(
                x[(labels == y) & (t == 0)].mean(0), x[(labels == y) & (t == 1)].mean(0)
            )
            for x in (reduced, plain)
        ]
        rises.append(torch.relu(distance[0] - distance[1]))
    return torch.stack(rises).mean()


def released_enhancing(enhanced: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """L_e on logits [2N, C]."""

    def uncertainty(z: torch.Tensor) -> torch.Tensor:
        return -(functional.softmax(z, 1) * functional.log_softmax(z, 1)).sum(1)

    return (torch.exp(torch.relu(uncertainty(enhanced) - uncertainty(plain))) - 1).mean()
