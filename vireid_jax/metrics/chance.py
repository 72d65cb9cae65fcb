"""What a random ranking scores: the level below which a result says nothing.

Let n of the N gallery images that a query keeps be true, in random order, and let I_r be 1
if the image at rank r is true. Any k given ranks are all true with probability

  p_k = n (n-1) ... (n-k+1) / (N (N-1) ... (N-k+1))

and n * AP = sum_{s <= r} I_s I_r / r. Both moments below are sums of p_k over the ranks
that occur in that product, so they are exact.
"""

from typing import Any, NamedTuple

import numpy as np


class Chance(NamedTuple):
    """Expected metrics of a random ranking, fractions 0..1."""

    mAP: float
    R1: float
    mAP_sigma: float


def chance_map(num_true: Any, num_gallery: Any, *, query_person: Any = None) -> Chance:
    """Exact mAP and rank-1 that a random ranking reaches on average, over valid queries.

    E[AP] = H_N / N + (n - 1) / (N - 1) * (1 - H_N / N), with H_N = 1 + 1/2 + ... + 1/N, and
    E[rank-1] = n / N.

    Args:
      num_true: int [Q], true images of each query that its exclusion keeps (n); queries with
        none are left out.
      num_gallery: int [Q] or [], gallery images of each query that its exclusion keeps (N).
      query_person: int [Q] or None. If given, `mAP_sigma` takes the queries of one person as
        one draw, since a network whose features collapsed ranks them all alike; otherwise
        every query is a draw of its own.

    Raises:
      ValueError: negative counts, more true images than images, or no valid query.
    """
    n = np.atleast_1d(np.asarray(num_true))
    big_n = np.broadcast_to(np.asarray(num_gallery), n.shape)
    if n.ndim != 1 or n.dtype.kind not in "iu" or big_n.dtype.kind not in "iu":
        raise ValueError(
            f"num_true is {n.dtype} {list(n.shape)} and num_gallery {big_n.dtype}, expected "
            "integers [queries]"
        )
    if (n < 0).any() or (n > big_n).any():
        row = int(np.flatnonzero((n < 0) | (n > big_n))[0])
        raise ValueError(
            f"query {row} has {n[row]} true images among {big_n[row]}, expected 0 <= true <= all"
        )
    valid = n > 0
    if not valid.any():
        raise ValueError("no query has a true image, so a random ranking has no mAP either")
    pairs, which = np.unique(np.stack([n, big_n], 1)[valid], axis=0, return_inverse=True)
    moments = np.array([_ap_moments(int(t), int(m)) for t, m in pairs])[which.reshape(-1)]
    mean, deviation = moments.T
    if query_person is None:
        draws = deviation
    else:
        person = np.asarray(query_person)
        if person.shape != n.shape:
            raise ValueError(
                f"query_person is {list(person.shape)}, expected {list(n.shape)} like num_true"
            )
        draws = np.bincount(np.unique(person[valid], return_inverse=True)[1], deviation)
    return Chance(
        mAP=float(mean.mean()),
        R1=float((n[valid] / big_n[valid]).mean()),
        mAP_sigma=float(np.sqrt((draws**2).sum()) / len(mean)),
    )


def _ap_moments(n: int, big_n: int) -> tuple[float, float]:
    """Mean and standard deviation of the AP of n true images among N in random order."""
    r = np.arange(1, big_n + 1, dtype=np.float64)
    p = [1.0]
    for k in range(4):
        p.append(p[-1] * max(0, n - k) / max(1, big_n - k))
    h1, h2 = (1 / r).sum(), (1 / r**2).sum()
    harmonic = np.cumsum(1 / r)
    # n AP = A + B with A = sum_r I_r / r and B = sum_{s < r} I_s I_r / r.
    mean = p[1] * h1 + p[2] * (big_n - h1)
    pairs = h1**2 - h2  # sum over r != u of 1 / (r u)
    once = ((r - 1) / r**2).sum()
    all_b = big_n - h1  # sum over s < r of 1 / r
    # sum over s < r < u of 1 / (r u), from sum_{r < u} (1 - 1/r) = u - 1 - H_{u-1}
    chain = ((r[1:] - 1 - harmonic[:-1]) / r[1:]).sum()
    aa = p[1] * h2 + p[2] * pairs
    ab = p[2] * (once + pairs / 2) + p[3] * (h1 * all_b - once - pairs / 2)
    # B^2, by how many of the two pairs (s, r) and (v, u) coincide:
    three = ((r - 1) * (r - 2) / r**2).sum() + 4 * chain  # r = u; s = v; r = v or s = u
    bb = p[2] * once + p[3] * three + p[4] * (all_b**2 - once - three)
    variance = (aa + 2 * ab + bb - mean**2) / n**2
    return mean / n, float(np.sqrt(max(0.0, variance)))
