"""Alignment of graphs of features and of logits: loops over rows, edges, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.methods.idkl import distill
from vireid_jax.methods.idkl.method import half_flipped

R = np.random.default_rng(16)
P, K, D, C = 2, 2, 5, 3
A, B = R.normal(size=(2, P * K, D))
LOGITS = 2 * R.normal(size=(2, P * K, C))


# --- By loops, in float64 ---------------------------------------------------------------


def softmax(row):
    powers = [np.exp(x - max(row)) for x in row]
    return [x / sum(powers) for x in powers]


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def divergence(first, second, direction="symmetric", reduction="mean"):
    """What eq. 16 takes of two matrices of logits."""
    rows = []
    for x, y in zip(first, second, strict=True):
        p, q = softmax(x), softmax(y)
        of = {"forward": kl(p, q), "reverse": kl(q, p), "symmetric": kl(p, q) + kl(q, p)}
        rows.append(of[direction])
    return sum(rows) / (len(rows) if reduction == "mean" else 1)


def affinity(a, b, drop_self=True, temperature=1.0, scale="none"):
    """Rows of distances; the own column is deleted, as a list would have it."""
    rows = []
    for i, x in enumerate(a):
        row = [max(np.sqrt(sum((x - y) ** 2)), 1e-3) for y in b]
        if drop_self:
            del row[i]
        rows.append(row)
    unit = np.mean(rows) if scale == "mean" else 1.0
    return [[d / unit / temperature for d in row] for row in rows]


def alignment(a, b, pairs="all", cross="true", direction="symmetric", reduction="mean", **options):
    half = len(a) // 2
    mixed = [*a[:half], *b[:half]]
    between = affinity(a, b, **options) if cross == "true" else affinity(mixed, mixed, **options)
    of_a, of_b = affinity(a, a, **options), affinity(b, b, **options)
    chosen = [(of_a, of_b), (of_a, between), (between, of_b)][: 3 if pairs == "all" else 1]
    return sum(divergence(x, y, direction, reduction) for x, y in chosen)


def double(function, *arrays, **options):
    """A function in float64, compiled."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(partial(function, **options))(*arrays))


@pytest.mark.parametrize("direction", distill.DIRECTIONS)
@pytest.mark.parametrize("reduction", distill.REDUCTIONS)
def test_divergence_by_loops(direction, reduction):
    options = dict(direction=direction, reduction=reduction)
    actual = double(distill.divergence, *LOGITS, **options)
    np.testing.assert_allclose(actual, divergence(*LOGITS, **options), rtol=1e-12)
    assert actual.dtype == np.float64 and actual > 0.1


@pytest.mark.parametrize("drop_self", [True, False])
@pytest.mark.parametrize("temperature, scale", [(1.0, "none"), (0.5, "none"), (3.0, "mean")])
def test_affinity_by_loops(drop_self, temperature, scale):
    """Deleting from a list is what flattening and reshaping comes to."""
    options = dict(drop_self=drop_self, temperature=temperature, scale=scale)
    for a, b in ((A, A), (A, B)):
        actual = double(distill.affinity, a, b, **options)
        assert actual.shape == (P * K, P * K - drop_self)
        np.testing.assert_allclose(actual, affinity(a, b, **options), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pairs": "self"},
        {"cross": "mix"},
        {"cross": "mix", "pairs": "self"},
        {"drop_self": False, "direction": "forward", "reduction": "sum"},
        {"temperature": 2.0, "scale": "mean", "direction": "reverse"},
        {"cross": "mix", "drop_self": False, "direction": "forward"},
    ],
)
def test_graph_alignment_by_loops(options):
    actual = double(distill.graph_alignment, A, B, **options)
    np.testing.assert_allclose(actual, alignment(A, B, **options), rtol=1e-12)
    assert actual > 0.01


@pytest.mark.parametrize("p, k, c", [(2, 2, 3), (3, 2, 1), (1, 4, 2), (4, 1, 2)])
def test_rows_by_instance_by_loops(p, k, c):
    logits = R.normal(size=(p * k, c)).astype(np.float32)
    actual = distill.by_instance(jnp.asarray(logits), k)
    assert actual.shape == (k, p * c)
    for instance, identity, label in np.ndindex(k, p, c):
        assert actual[instance, identity * c + label] == logits[identity * k + instance, label]


# --- What holds of every value ----------------------------------------------------------


@pytest.mark.parametrize("loss", [distill.divergence, distill.graph_alignment])
def test_the_symmetric_form_is_the_sum_of_both_directions(loss):
    both, forward, reverse = (double(loss, A, B, direction=d) for d in distill.DIRECTIONS)
    np.testing.assert_allclose(both, forward + reverse, rtol=1e-12)
    assert abs(forward - reverse) > 1e-3
    if loss is distill.divergence:
        np.testing.assert_allclose(double(loss, B, A, direction="forward"), reverse, rtol=1e-12)


def test_a_divergence_is_of_distributions():
    """A constant added to a row of logits changes nothing; equal rows cost nothing."""
    moved = LOGITS[0] + R.normal(size=(P * K, 1))
    np.testing.assert_allclose(
        double(distill.divergence, moved, LOGITS[1]), double(distill.divergence, *LOGITS)
    )
    for direction in distill.DIRECTIONS:
        assert abs(double(distill.divergence, moved, LOGITS[0], direction=direction)) < 1e-12


@pytest.mark.parametrize("options", [{}, {"drop_self": False}, {"pairs": "self"}])
def test_rows_have_no_order(options):
    """Rows of both features move together: row i of both is one identity."""
    order = R.permutation(P * K)
    np.testing.assert_allclose(
        double(distill.graph_alignment, A[order], B[order], **options),
        double(distill.graph_alignment, A, B, **options),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        double(distill.divergence, LOGITS[0][order], LOGITS[1][order]),
        double(distill.divergence, *LOGITS),
    )


def test_the_mix_of_halves_depends_on_the_order_and_the_true_cross_does_not():
    """The code's cross matrix compares rows of different persons: why it is not the default."""
    order = np.array([3, 1, 0, 2])
    for cross, moves in (("mix", True), ("true", False)):
        first, second = (
            double(distill.graph_alignment, a, b, cross=cross)
            for a, b in ((A, B), (A[order], B[order]))
        )
        assert bool(abs(first - second) > 1e-3) == moves


def test_the_farthest_has_the_largest_share():
    a = jnp.asarray([[0.0], [1.0], [5.0]])
    shares = jax.nn.softmax(distill.affinity(a, a))
    np.testing.assert_array_equal(shares.argmax(1), [1, 1, 0])  # of the two others


def test_mean_scale_is_invariant_to_the_size_of_features():
    """Without it the loss falls as features shrink; with it, not, nor does its value."""
    small, same = (
        [double(distill.graph_alignment, s * A, s * B, scale=x) for s in (0.1, 1, 10)]
        for x in distill.SCALES
    )
    assert small[0] < small[1] / 20 and small[1] < small[2] / 10
    np.testing.assert_allclose(same, same[1], rtol=1e-9)
    np.testing.assert_allclose(
        double(distill.affinity, 7 * A, 7 * B, scale="mean"),
        double(distill.affinity, A, B, scale="mean"),
        rtol=1e-12,
    )


def test_the_mean_distance_passes_no_gradient():
    """The gradient is that of distances divided by a number."""

    def slope(**options):
        return jax.grad(lambda a, b: (distill.affinity(a, b, **options) ** 2).sum())

    scaled = double(slope(scale="mean"), A, B)
    fixed = double(slope(temperature=np.mean(affinity(A, B))), A, B)
    np.testing.assert_allclose(scaled, fixed, rtol=1e-10)


def test_gradients_go_to_both_sides_and_are_those_of_the_value():
    with jax.enable_x64(True):
        a, b = jnp.asarray(A), jnp.asarray(B)
        gradients = jax.grad(distill.graph_alignment, (0, 1))(a, b)
        for side, gradient in enumerate(gradients):
            direction = R.normal(size=gradient.shape)
            step = 1e-6 * direction
            ends = [
                alignment(*(x + sign * step * (side == n) for n, x in enumerate((A, B))))
                for sign in (1, -1)
            ]
            slope = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6)
            assert abs(slope) > 1e-3


# --- Edges, precision -------------------------------------------------------------------

FORMS = {
    "default": {},
    "code": {"cross": "mix", "pairs": "all"},
    "paper": {"drop_self": False, "reduction": "sum", "direction": "forward"},
    "mean": {"scale": "mean"},
}
_COMPILED = {
    name: jax.jit(jax.value_and_grad(partial(distill.graph_alignment, **options), (0, 1)))
    for name, options in FORMS.items()
}
DEGENERATE = {
    "all zero": (0 * A, 0 * B),
    "all equal": (0 * A + 1, 0 * B + 1),
    "one image in all rows of a": (0 * A + 1, B),
    "both modalities equal": (A, A),
    "duplicated images": (A[[0, 0, 1, 1]], B[[0, 0, 1, 1]]),
    "tiny": (1e-20 * A, 1e-20 * B),
    "large": (1e4 * A, 1e4 * B),
}


def run(form, a, b):
    value, gradient = _COMPILED[form](*(jnp.asarray(x, jnp.float32) for x in (a, b)))
    return np.asarray(value), np.asarray(gradient)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches_are_finite(form, case):
    value, gradient = run(form, *DEGENERATE[case])
    assert np.isfinite(value) and np.isfinite(gradient).all() and value > -1e-5


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_coincide_have_no_loss_and_no_gradient(form):
    value, gradient = run(form, *DEGENERATE["all equal"])
    assert abs(value) < 1e-6
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("form", FORMS)
def test_two_rows_are_enough(form):
    """One identity of two images, or two of one: K = 1."""
    value, gradient = run(form, A[:2], B[:2])
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if form == "default":  # one other sample has all of the share
        assert value == 0


def test_extreme_logits_are_finite():
    first, second = jnp.asarray([[1e4, 0.0, -1e4]]), jnp.asarray([[-1e4, 0.0, 1e4]])
    value, gradient = jax.value_and_grad(distill.divergence)(first, second)
    np.testing.assert_allclose(value, 4e4)
    assert np.isfinite(gradient).all()


def test_compiled_as_eager_in_float32():
    value, _ = run("default", A, B)
    assert value.dtype == np.float32 and value.shape == ()
    eager = distill.graph_alignment(*(jnp.asarray(x, jnp.float32) for x in (A, B)))
    np.testing.assert_allclose(value, eager, rtol=1e-5)
    np.testing.assert_allclose(value, alignment(A, B), rtol=1e-5)


def test_half_precision_is_computed_in_float32():
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in (A, B))
    value, (gradient, _) = _COMPILED["default"](a, b)
    assert value.dtype == np.float32 and gradient.dtype == jnp.bfloat16
    exact, _ = run("default", a, b)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(value, alignment(A, B), rtol=0.05)
    z = [jnp.asarray(x, jnp.bfloat16) for x in LOGITS]
    value = distill.divergence(*z)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, divergence(*LOGITS), rtol=0.05)


# --- Refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss, shapes",
    [
        (distill.divergence, ((4, 3), (4, 2))),
        (distill.divergence, ((4, 3), (3, 3))),
        (distill.divergence, ((4,), (4,))),
        (distill.divergence, ((2, 4, 3), (2, 4, 3))),
        (distill.affinity, ((4, 3), (4, 2))),
        (distill.affinity, ((4, 3), (5, 3))),
        (distill.affinity, ((4,), (4,))),
        (distill.graph_alignment, ((4, 3), (5, 3))),
        (distill.graph_alignment, ((4, 2, 3), (4, 2, 3))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(loss, shapes):
    with pytest.raises(ValueError, match=r"got \(.*expected (two of one shape )?\[N"):
        loss(*(jnp.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    "option, known",
    [
        ("pairs", distill.PAIRS),
        ("cross", distill.CROSSES),
        ("scale", distill.SCALES),
        ("direction", distill.DIRECTIONS),
        ("reduction", distill.REDUCTIONS),
    ],
)
def test_an_unknown_choice_is_refused_by_name(option, known):
    with pytest.raises(ValueError) as error:
        distill.graph_alignment(A, B, **{option: "best"})
    assert str(error.value) == f"{option} is 'best', expected one of {known}"


def test_a_mix_of_an_odd_number_is_refused():
    with pytest.raises(ValueError, match=r"'mix' with 3 rows, expected an even number"):
        distill.graph_alignment(A[:3], B[:3], cross="mix")


@pytest.mark.parametrize("shape", [(4, 3), (5, 3, 2), (5,)])
def test_blocks_that_do_not_divide_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[P \* 5, C\]: 5 rows of each identity"):
        distill.by_instance(jnp.zeros(shape), 5)


# --- The labels that the code tells its confuser ----------------------------------------


@pytest.mark.parametrize("p, k", [(12, 5), (6, 5), (8, 4), (3, 2)])
def test_half_flipped_labels_in_the_released_order(p, k):
    """There a pair is infrared, visible; the labels 1, 0 are halved, doubled and rolled."""
    truth = np.tile([1, 0], p * k)
    expected = np.roll(np.repeat(truth[: p * k], 2), -1)
    np.testing.assert_array_equal(expected[:6], [1, 0, 0, 1, 1, 0])
    ours = np.asarray(half_flipped(p * k)).reshape(-1, 2)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours[:, ::-1].reshape(-1), expected)
    flipped = ours != np.arange(2)
    np.testing.assert_array_equal(flipped.sum(0), [p * k // 2] * 2)
