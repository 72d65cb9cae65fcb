"""Alignment of graphs of features and of logits: IDKL (Ren and Zhang, CVPR 2024), eqs. 15-20.

A row of an affinity matrix, or a row of logits, is a distribution; two of them are compared by a
Kullback-Leibler divergence. The paper writes KL(first, second) and sums over rows; its code
takes both directions and the mean over rows.
"""

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import pairwise_distance, wide

# sqrt of the bound on squared distances in the released code; no gradient below.
MIN_DISTANCE = 1e-3
DIRECTIONS = ("symmetric", "forward", "reverse")
REDUCTIONS = ("mean", "sum")
PAIRS = ("all", "self")
CROSSES = ("true", "mix")
SCALES = ("none", "mean")


def divergence(
    first: jax.Array, second: jax.Array, *, direction: str = "symmetric", reduction: str = "mean"
) -> jax.Array:
    """Kullback-Leibler divergence between rows of two logit matrices.

    With p and q the softmax of a row of `first` and `second`: "forward" is
    KL(p || q) = sum_j p_j (log p_j - log q_j), the formula of eqs. 16, 19 and 20 read as
    mathematics; "reverse" is KL(q || p), the same read as arguments of PyTorch's kl_div;
    "symmetric" their sum, sum_j (p_j - q_j) (log p_j - log q_j), which the released code takes.

    Args:
      first, second: [N, L], unnormalized or normalized log-probabilities.
      direction: of `DIRECTIONS`.
      reduction: over rows: "mean", as the code's batchmean, or "sum", as printed.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit or an unknown choice.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"got {first.shape} and {second.shape}, expected two of one shape [N, L]")
    _check("direction", direction, DIRECTIONS)
    _check("reduction", reduction, REDUCTIONS)
    log_p, log_q = (jax.nn.log_softmax(wide(x)) for x in (first, second))
    weight = {
        "symmetric": lambda: jnp.exp(log_p) - jnp.exp(log_q),
        "forward": lambda: jnp.exp(log_p),
        "reverse": lambda: -jnp.exp(log_q),
    }[direction]()
    rows = (weight * (log_p - log_q)).sum(1)
    return rows.mean() if reduction == "mean" else rows.sum()


def affinity(
    a: jax.Array,
    b: jax.Array,
    *,
    drop_self: bool = True,
    temperature: float = 1.0,
    scale: str = "none",
) -> jax.Array:
    """Logits of the affinity matrix A_(a;b), eq. 15: the distances D(a_i, b_j) themselves.

    The farthest sample has the largest share: the sign is the paper's and its code's.

    Args:
      a, b: [N, D]; row i of both shows one identity.
      drop_self: leave out column i of row i, as the code does: there the distance of a sample to
        itself is 0, and in a cross matrix that of a pair. The paper sums over all N.
      temperature: distances are divided by it.
      scale: "mean" divides distances by their mean too, which passes no gradient: without it the
        loss can be lowered by shrinking all features.

    Returns:
      [N, N - 1], or [N, N] without `drop_self`; softmax over the rows gives A.

    Raises:
      ValueError: for shapes that do not fit or an unknown scale.
    """
    if a.shape != b.shape:
        raise ValueError(f"got {a.shape} and {b.shape}, expected two of one shape [N, D]")
    _check("scale", scale, SCALES)
    distance = jnp.maximum(pairwise_distance(a, b), MIN_DISTANCE)
    if drop_self:
        # Within each row, so that rows on several devices stay there: what is left of the diagonal
        # as it is, what is right of it moved by one.
        row, column = jnp.indices((len(distance), len(distance) - 1), sparse=True)
        distance = jnp.where(column < row, distance[:, :-1], distance[:, 1:])
    if scale == "mean":
        distance = distance / jax.lax.stop_gradient(jnp.maximum(distance.mean(), MIN_DISTANCE))
    return distance / temperature


def graph_alignment(
    a: jax.Array,
    b: jax.Array,
    *,
    pairs: str = "all",
    cross: str = "true",
    drop_self: bool = True,
    temperature: float = 1.0,
    scale: str = "none",
    direction: str = "symmetric",
    reduction: str = "mean",
) -> jax.Array:
    """Triplet graph structure alignment L_tgsa^(a;b), eq. 16.

    KL(A_(a;a), A_(b;b)) + KL(A_(a;a), A_(a;b)) + KL(A_(a;b), A_(b;b)), row by row.

    Args:
      a, b: [N, D], features of two kinds; row i of both shows one identity.
      pairs: "all" three, or "self": the first alone, which is what the released code has
        between the two branches.
      cross: A_(a;b) has the "true" distances D(a_i, b_j), or those of the code's "mix": within
        the first halves of a and b put together, whose rows are other samples.
      drop_self, temperature, scale: see `affinity`.
      direction, reduction: see `divergence`.

    Returns:
      Scalar, float32 or wider.

    Raises:
      ValueError: for shapes that do not fit, an unknown choice, or a mix of an odd N.
    """
    _check("pairs", pairs, PAIRS)
    _check("cross", cross, CROSSES)

    def logits(x: jax.Array, y: jax.Array) -> jax.Array:
        return affinity(x, y, drop_self=drop_self, temperature=temperature, scale=scale)

    def compare(first: jax.Array, second: jax.Array) -> jax.Array:
        return divergence(first, second, direction=direction, reduction=reduction)

    of_a, of_b = logits(a, a), logits(b, b)
    total = compare(of_a, of_b)
    if pairs == "self":
        return total
    if cross == "true":
        between = logits(a, b)
    else:
        if len(a) % 2:
            raise ValueError(f"cross is 'mix' with {len(a)} rows, expected an even number")
        mixed = jnp.concatenate([a[: len(a) // 2], b[: len(b) // 2]])
        between = logits(mixed, mixed)
    return total + compare(of_a, between) + compare(between, of_b)


def by_instance(logits: jax.Array, num_instances: int) -> jax.Array:
    """The code's block-wise view: row k holds the logits of image k of all identities.

    Args:
      logits: [P * K, C], identity-major.
      num_instances: K.

    Returns:
      [K, P * C].

    Raises:
      ValueError: if the rows do not divide by K.
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
