"""The losses of DEEN, PDM and CAJ in PyTorch: by symbol, and on rows in the released order.

Centers are [P, 2, D], visible and infrared. The functions named released_... take rows in the
order of the authors' code (one chunk of the batch after the other, see each) and use matrices of
distances, labels and masks; the others are loops over identities.
"""

import torch

from .losses import hinge, norm
from .metric import weighted_gaps


def center_pair_mining(
    original: torch.Tensor,
    generated: torch.Tensor,
    margin: float = 0.2,
    form: str = "three",
) -> torch.Tensor:
    """Eqs. (3) to (5) of PDM ("single"), or the three hinges of the code ("three")."""
    persons = range(len(original))
    total = original.new_zeros(())
    for m in (0, 1):
        c, g, other = original[:, m], generated[:, m], original[:, 1 - m]
        terms = []
        for j in persons:
            pull, own = norm(other[j] - g[j]), norm(c[j] - g[j])
            ks = [k for k in persons if k != j]
            if form == "three":
                made = min((norm(g[j] - g[k]) for k in ks), key=torch.Tensor.item)
                apart = min((norm(c[j] - c[k]) for k in ks), key=torch.Tensor.item)
                first = hinge(pull - own.detach() + margin)
                rest = hinge(pull - made + margin) + hinge(pull - apart + margin)
                terms.append((first + rest / 2) / 2)
            else:
                apart = min((norm(c[j] - c[k]) for k in ks), key=torch.Tensor.item)
                terms.append(hinge(pull - own - apart + margin))
        total = total + torch.stack(terms).mean()
    return total


def orthogonality(generated: torch.Tensor) -> torch.Tensor:
    """Inner products of pairs of branches [N, G, D], by all rows, the images' own too."""
    n, g, _ = generated.shape
    total = generated.new_zeros(())
    for image in generated:
        for i in range(g):
            for j in range(i + 1, g):
                total = total + image[i] @ image[j]
    return total / (n * (1 + g))


def dual_center_separation(
    features: torch.Tensor, pull_margin: float = 0.01, push_margin: float = 0.7
) -> torch.Tensor:
    """Eq. (10) on rows [P, S, D]."""
    centers = [sum(rows) / len(rows) for rows in features]
    pull = [
        hinge(norm(f - c) - pull_margin)
        for rows, c in zip(features, centers, strict=True)
        for f in rows
    ]
    push = [
        hinge(push_margin - norm(centers[j] - centers[k]))
        for j in range(len(centers))
        for k in range(j + 1, len(centers))
    ]
    return torch.stack(pull).mean() + torch.stack(push).mean()


def heterogeneity(logits: torch.Tensor, form: str = "code_rms") -> torch.Tensor:
    """Eq. (9) with the sign its text asks for, and what the code has; [N, m, n]."""
    terms = []
    for maps in logits:
        for i in range(len(maps)):
            for j in range(i + 1, len(maps)):
                a, b = maps[i], maps[j]
                if form == "code_rms":
                    gap = torch.sigmoid(a) - torch.sigmoid(b)
                    terms.append(-torch.sqrt((gap * gap).mean()))
                else:
                    cosine = (a @ b) / torch.sqrt((a @ a) * (b @ b))
                    terms.append(cosine)
    return torch.stack(terms).mean()


def squared_difference(
    features: torch.Tensor, labels: torch.Tensor, weights: str = "released"
) -> torch.Tensor:
    """CAJ's: the gap between weighted distances, squared with its sign; [B, M, D]."""
    terms = []
    for gap in weighted_gaps(features, labels, weights):
        square = torch.clamp(gap**2, max=88)
        terms.append(torch.log1p(torch.exp(square if gap > 0 else -square)))
    return torch.stack(terms).mean()


# --- The released code's, on rows in its order --------------------------------------------


def _matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.stack([norm(x - y) for y in b]) for x in a])


def released_cpm(features: torch.Tensor, num_ids: int, margin: float = 0.2) -> torch.Tensor:
    """DEEN's `CPMLoss` on rows [visible; infrared; made of visible; made of infrared].

    Args:
      features: [P * K, 2, 2, D]: images, modalities, the image's own and the generated.
      num_ids: P.
      margin: of the three hinges.
    """
    chunks = [features[:, m, r] for r in (0, 1) for m in (0, 1)]
    v, i, made_v, made_i = (
        torch.stack([chunk.mean(0) for chunk in x.chunk(num_ids)]) for x in chunks
    )
    off = ~torch.eye(num_ids, dtype=torch.bool)
    total = v.new_zeros(())
    for own, other, made in ((v, i, made_v), (i, v, made_i)):
        pull = _matrix(other, made).diagonal()
        stay = _matrix(own, made).diagonal().detach()
        total = total + hinge(pull - stay + margin).mean()
        for far in (_matrix(made, made), _matrix(own, own)):
            nearest = torch.stack([row[mask].min() for row, mask in zip(far, off, strict=True)])
            total = total + hinge(pull - nearest + margin).mean() / 2
    return total / 2


def released_dcs(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """PDM's `DCSLoss`: a center for every row, distances of every K-th row to other identities'.

    Args:
      features: [P * K, 2, R, D]; rows by branch, then modality, then image.
      labels: [P * K], each person K times in a row.
    """
    images, _, branches, width = features.shape
    rows = features.permute(2, 1, 0, 3).reshape(-1, width)
    t = labels.repeat(2 * branches)
    k = images // len(labels.unique())
    centers = torch.stack([rows[t == y].mean(0) for y in t])
    pull = torch.stack([norm(x - c) for x, c in zip(rows, centers, strict=True)])
    pushes = []
    for anchor in range(0, len(rows), k):
        d = torch.stack([norm(centers[anchor] - c) for c in centers[t != t[anchor]]])
        pushes.append(hinge(0.7 - d).mean())
    return hinge(pull - 0.01).mean() + torch.stack(pushes).mean()


def released_ort(features: torch.Tensor) -> torch.Tensor:
    """DEEN's, on rows [own; first branch; second branch]; features [N, 3, D]."""
    rows = features.transpose(0, 1).flatten(0, 1)[:, None]
    _, first, second = rows.chunk(3)
    both = torch.cat([first, second], 1)
    return torch.triu(both @ both.transpose(1, 2), diagonal=1).sum() / len(rows)
