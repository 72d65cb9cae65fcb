"""The losses of IDKL (Ren and Zhang, CVPR 2024) that no other method has, by equation.

half_flipped      2    the released code's labels for its confuser
enhancing_loss    10   L_e: masked features are to be classified with more certainty
reducing_loss     11   L_r: masked features are to differ less by modality
affinity          15   logits of a graph of features
divergence        16   Kullback-Leibler divergence, row by row; of logits in eqs. 19 and 20
graph_alignment   16   L_tgsa^(a;b)
by_instance       -    the block-wise view of logits, which the released code alone has

Losses are scalars, float32 or wider. Shapes that do not fit and unknown choices raise ValueError.
"""

import jax
import jax.numpy as jnp

from vireid_jax.losses.center import row_centers
from vireid_jax.losses.distance import pairwise_distance, safe_norm, wide

ENHANCING_FORMS = ("softplus", "exponential")
REDUCING_FORMS = ("softplus", "relu")
PAIRS = ("all", "self")
CROSSES = ("true", "mix")
SCALES = ("none", "mean")
# sqrt of the bound on squared distances in the released code; no gradient below.
MIN_DISTANCE = 1e-3
SHIFT = 1e-6  # of every coordinate of the difference of two centers, as in PyTorch's distance


def half_flipped(rows: int) -> jax.Array:
    """The released code's labels for its confuser: half of each modality is labeled wrongly.

    In the order of its sampler (infrared first, alternating) they are the first half of the true
    labels 1, 0, 1, 0, ..., each twice, rolled left by one: 1, 0, 0, 1, repeated. In our order
    infrared images have label 1 in even slots and visible images in odd ones; with an odd
    number of slots the last visible image has label 1 too.
    Returns int32 [2 * B], row 2b + m for modality m of slot b, with B = `rows`.
    """
    infrared = (jnp.arange(rows) + 1) % 2
    return jnp.stack([jnp.roll(infrared, -1), infrared], 1).reshape(-1).astype(jnp.int32)


def entropy(logits: jax.Array) -> jax.Array:
    """H of eq. 10: entropy [N], in nats, of the softmax of logits [N, C]; float32 or wider."""
    log_p = jax.nn.log_softmax(wide(logits))
    return -(jnp.exp(log_p) * log_p).sum(1)


def enhancing_loss(enhanced: jax.Array, plain: jax.Array, *, form: str = "softplus") -> jax.Array:
    """Discrimination enhancing loss L_e, eq. 10.

    "softplus" is mean_n softplus(h(enhanced_n) - h(plain_n)): eq. 10, whose reduction is not
    stated, as a mean. "exponential" is the released code's
    mean_n exp([h(enhanced_n) - h(plain_n)]_+) - 1.

    Args:
      enhanced, plain: logits of f^d+ and of f, [N, C].
      form: one of `ENHANCING_FORMS`.
    """
    if enhanced.ndim != 2 or enhanced.shape != plain.shape:
        raise ValueError(f"got {enhanced.shape} and {plain.shape}, expected two of [N, C]")
    _check("form", form, ENHANCING_FORMS)
    more = entropy(enhanced) - entropy(plain)
    if form == "softplus":
        return jax.nn.softplus(more).mean()
    return jnp.expm1(jax.nn.relu(more)).mean()


def reducing_loss(
    reduced: jax.Array, plain: jax.Array, labels: jax.Array, *, form: str = "softplus"
) -> jax.Array:
    """Discrepancy reducing loss L_r, eq. 11.

    mean_p softplus(d(reduced_p) - d(plain_p)), where d is the Euclidean distance between the
    visible and the infrared center of identity p. The paper leaves d open; the centers are the
    released code's, which has [.]_+ ("relu") for softplus.

    Args:
      reduced, plain: f^m- and f^, pooled features of the masked and of the normalized map,
        [B, 2, D], visible and infrared.
      labels: int [B], shared by the two modalities.
      form: one of `REDUCING_FORMS`. Any mask in (0, 1) that is the same for all images lowers d,
        and "relu" is then 0 with a gradient of 0.
    """
    if reduced.ndim != 3 or reduced.shape[1] != 2 or reduced.shape != plain.shape:
        raise ValueError(f"got {reduced.shape} and {plain.shape}, expected two of [B, 2, D]")
    _check("form", form, REDUCING_FORMS)

    def gap(features: jax.Array) -> tuple[jax.Array, jax.Array]:
        centers, weight = row_centers(features, labels)
        return safe_norm(centers[:, 0] - centers[:, 1] + SHIFT), weight

    (masked, weight), (unmasked, _) = gap(reduced), gap(plain)
    rise = {"softplus": jax.nn.softplus, "relu": jax.nn.relu}[form](masked - unmasked)
    return (weight * rise).sum() / weight.sum()


def affinity(a: jax.Array, b: jax.Array, *, scale: str = "none") -> jax.Array:
    """Logits of the affinity matrix A_(a;b), eq. 15: the distances D(a_i, b_j) themselves.

    The farthest sample has the largest share: the sign is the paper's and the code's. As in the
    code, column i of row i is left out; there the distance of a sample to itself is 0, and a
    cross matrix has the distance of a pair. The paper sums over all N.

    Args:
      a, b: [N, D]; row i of both shows one identity.
      scale: "mean" divides distances by their mean, which passes no gradient. Without it the
        loss can be lowered by making all features shorter.

    Returns:
      [N, N - 1]; softmax over the rows gives A.
    """
    if a.shape != b.shape:
        raise ValueError(f"got {a.shape} and {b.shape}, expected two of one shape [N, D]")
    _check("scale", scale, SCALES)
    distance = jnp.maximum(pairwise_distance(a, b), MIN_DISTANCE)
    # Within each row, so that rows on several devices stay there: entries left of the diagonal
    # keep their place, entries right of it move by one.
    row, column = jnp.indices((len(distance), len(distance) - 1), sparse=True)
    distance = jnp.where(column < row, distance[:, :-1], distance[:, 1:])
    if scale == "mean":
        distance = distance / jax.lax.stop_gradient(jnp.maximum(distance.mean(), MIN_DISTANCE))
    return distance


def divergence(first: jax.Array, second: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence between rows of two logit matrices [N, L], in both directions.

    KL(p || q) + KL(q || p) = sum_j (p_j - q_j) (log p_j - log q_j), with p and q the softmax of
    a row of `first` and `second`. Both directions and the mean over rows are the released code's.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"got {first.shape} and {second.shape}, expected two of one shape [N, L]")
    log_p, log_q = (jax.nn.log_softmax(wide(x)) for x in (first, second))
    return ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(1).mean()


def graph_alignment(
    a: jax.Array, b: jax.Array, *, pairs: str = "all", cross: str = "true", scale: str = "none"
) -> jax.Array:
    """Triplet graph structure alignment L_tgsa^(a;b), eq. 16.

    KL(A_(a;a), A_(b;b)) + KL(A_(a;a), A_(a;b)) + KL(A_(a;b), A_(b;b)), row by row.

    Args:
      a, b: [N, D], features of two kinds; row i of both shows one identity.
      pairs: "all" three, or "self": the first alone, as the released code between branches.
      cross: A_(a;b) has the "true" distances D(a_i, b_j), or the code's "mix": distances within
        the first halves of a and b put together, whose rows are other samples.
      scale: see `affinity`.
    """
    _check("pairs", pairs, PAIRS)
    _check("cross", cross, CROSSES)
    of_a, of_b = affinity(a, a, scale=scale), affinity(b, b, scale=scale)
    total = divergence(of_a, of_b)
    if pairs == "self":
        return total
    if cross == "true":
        between = affinity(a, b, scale=scale)
    else:
        if len(a) % 2:
            raise ValueError(f"cross is 'mix' with {len(a)} rows, expected an even number")
        mixed = jnp.concatenate([a[: len(a) // 2], b[: len(b) // 2]])
        between = affinity(mixed, mixed, scale=scale)
    return total + divergence(of_a, between) + divergence(between, of_b)


def by_instance(logits: jax.Array, num_instances: int) -> jax.Array:
    """The released code's block-wise view: row k holds the logits of image k of all identities.

    Logits [P * K, C], identity-major, to [K, P * C].
    """
    if logits.ndim != 2 or logits.shape[0] % num_instances:
        raise ValueError(
            f"logits {logits.shape}, expected [P * {num_instances}, C]: {num_instances} rows of "
            "each identity"
        )
    blocks = logits.reshape(-1, num_instances, logits.shape[1])
    return blocks.swapaxes(0, 1).reshape(num_instances, -1)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {known}")
