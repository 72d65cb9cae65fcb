"""The losses of IDKL alone: what the forms reward, orders, edges, refusals."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.methods.idkl import losses
from vireid_jax.methods.idkl.losses import (
    affinity,
    by_instance,
    divergence,
    enhancing_loss,
    graph_alignment,
    half_flipped,
    reducing_loss,
)

R = np.random.default_rng(16)
P, K, D, C = 2, 2, 5, 3
A, B = R.normal(size=(2, P * K, D))
LOGITS = 2 * R.normal(size=(2, P * K, C))
PERSONS = np.array([4, 0, 4, 0, 9], np.int32)  # not adjacent, one with a single image
ENHANCED, PLAIN = 2 * R.normal(size=(2, 6, 3))
REDUCED, NORMALIZED = R.normal(size=(2, 5, 2, 4))


@cache
def compiled(function, **options):
    return jax.jit(partial(function, **options))


def double(function, *arrays, **options):
    """A function in float64, compiled once."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compiled(function, **options)(*arrays))


GRAPHS = [{}, {"pairs": "self"}, {"cross": "mix"}, {"scale": "mean"}]
GRAPHS += [{"cross": "mix", "pairs": "self"}]


def test_rows_by_instance_by_loops():
    for p, k, c in ((2, 2, 3), (3, 2, 1), (1, 4, 2), (4, 1, 2)):
        logits = R.normal(size=(p * k, c)).astype(np.float32)
        actual = np.asarray(by_instance(jnp.asarray(logits), k))
        assert actual.shape == (k, p * c)
        for instance, identity, label in np.ndindex(k, p, c):
            found = actual[instance, identity * c + label]
            assert found == logits[identity * k + instance, label], (p, k, c)


def test_half_flipped_labels_are_the_released_ones_in_our_order():
    """There a pair is infrared, visible; the labels 1, 0 are halved, doubled and rolled."""
    for p, k in ((12, 5), (4, 3), (3, 3)):
        n = p * k
        released = np.roll(np.repeat(np.tile([1, 0], n)[:n], 2), -1)
        np.testing.assert_array_equal(released[:6], [1, 0, 0, 1, 1, 0])
        ours = np.asarray(half_flipped(n)).reshape(n, 2)
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours[:, ::-1].reshape(-1), released, f"{p} x {k}")
        if n % 2 == 0:  # half of each modality
            np.testing.assert_array_equal((ours != np.arange(2)).sum(0), [n // 2] * 2)
    # On a batch of one modality after the other they would all be the visible label.
    assert not np.roll(np.repeat(np.repeat([0, 1], 6)[:6], 2), -1).any()


# --- What holds of every value ----------------------------------------------------------


def test_a_divergence_is_of_distributions():
    """A constant added to a row of logits changes nothing; equal rows cost nothing."""
    moved, expected = LOGITS[0] + R.normal(size=(P * K, 1)), double(divergence, *LOGITS)
    np.testing.assert_allclose(double(divergence, moved, LOGITS[1]), expected)
    assert abs(double(divergence, moved, LOGITS[0])) < 1e-12
    np.testing.assert_allclose(double(divergence, *LOGITS[::-1]), expected, rtol=1e-12)


def test_rows_have_no_order():
    """Rows of all arguments move together, and what a person is called does not count."""
    order = R.permutation(P * K)
    rows = [(divergence, LOGITS, order, {})]
    rows += [(enhancing_loss, (ENHANCED, PLAIN), R.permutation(len(PLAIN)), {})]
    rows += [(graph_alignment, (A, B), order, options) for options in ({}, {"pairs": "self"})]
    rows += [(reducing_loss, (REDUCED, NORMALIZED, PERSONS), R.permutation(5), {})]
    for function, arrays, order, options in rows:
        moved = double(function, *(x[order] for x in arrays), **options)
        expected = double(function, *arrays, **options)
        np.testing.assert_allclose(moved, expected, rtol=1e-12, err_msg=function.__name__)
    loss = partial(double, reducing_loss)
    expected = loss(REDUCED, NORMALIZED, PERSONS)
    np.testing.assert_allclose(loss(REDUCED, NORMALIZED, 100 - PERSONS), expected, rtol=1e-12)
    paired = [x.copy() for x in (REDUCED, NORMALIZED)]
    for x in paired:  # the images of one person may change places in one modality
        x[[0, 2], 1] = x[[2, 0], 1]
    np.testing.assert_allclose(loss(*paired, PERSONS), expected, rtol=1e-12)


def test_the_mix_of_halves_depends_on_the_order_and_the_true_cross_does_not():
    """The code's cross matrix compares rows of different persons: why it is not the default."""
    order = np.array([3, 1, 0, 2])
    for cross, moves in (("mix", True), ("true", False)):
        first, second = (
            double(graph_alignment, a, b, cross=cross) for a, b in ((A, B), (A[order], B[order]))
        )
        assert bool(abs(first - second) > 1e-3) == moves


def test_mean_scale_is_invariant_to_the_size_of_features():
    """Without it the loss falls as features shrink; with it nothing changes."""
    small, same = (
        [double(graph_alignment, s * A, s * B, scale=x) for s in (0.1, 1, 10)]
        for x in losses.SCALES
    )
    assert small[0] < small[1] / 20 and small[1] < small[2] / 10
    np.testing.assert_allclose(same, same[1], rtol=1e-9)
    scaled = double(affinity, 7 * A, 7 * B, scale="mean")
    np.testing.assert_allclose(scaled, double(affinity, A, B, scale="mean"), rtol=1e-12)


def test_the_mean_distance_passes_no_gradient():
    """The gradient is that of distances divided by a number."""
    unit = double(affinity, A, B).mean()
    scaled = jax.grad(lambda a, b: (affinity(a, b, scale="mean") ** 2).sum())
    fixed = jax.grad(lambda a, b: ((affinity(a, b) / unit) ** 2).sum())
    np.testing.assert_allclose(double(scaled, A, B), double(fixed, A, B), rtol=1e-10)


def test_the_reducing_loss_of_the_code_is_zero_for_any_mask_that_is_the_same_for_all():
    """Its value and gradient are 0 from the start; softplus has a gradient: to smaller masks."""
    mask = jnp.asarray(R.uniform(0.05, 0.95, 4))

    def loss(mask, form):
        masked = mask[None, None] * NORMALIZED
        return reducing_loss(masked, jnp.asarray(NORMALIZED), PERSONS, form=form)

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = both(mask, "relu")
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    value, gradient = both(mask, "softplus")
    assert 0 < value < np.log(2) and (gradient > 0).all()


def test_the_enhancing_loss_is_lowered_by_doubt_about_the_plain_features():
    """The reference is rewarded for high entropy."""
    sure, unsure = np.array([[4.0, 0, 0]]), np.array([[1.0, 0, 0]])
    loss = partial(double, enhancing_loss)
    for form in losses.ENHANCING_FORMS:
        assert loss(sure, unsure, form=form) < loss(unsure, sure, form=form)
    by_enhanced, by_plain = double(jax.grad(enhancing_loss, (0, 1)), unsure, sure)
    assert by_enhanced[0, 0] < 0 < by_plain[0, 0]
    # Once the enhanced features are surer, the code's form is satisfied and the paper's not.
    assert loss(sure, unsure, form="exponential") == 0 and loss(sure, unsure, form="softplus") > 0.1
    np.testing.assert_allclose(loss(sure, sure, form="softplus"), np.log(2), rtol=1e-6)


# --- Edges, precision -------------------------------------------------------------------

GRAPH_CASES = {
    "all zero": (0 * A, 0 * B),
    "all equal": (0 * A + 1, 0 * B + 1),
    "one image in all rows of a": (0 * A + 1, B),
    "both modalities equal": (A, A),
    "duplicated images": (A[[0, 0, 1, 1]], B[[0, 0, 1, 1]]),
    "tiny": (1e-20 * A, 1e-20 * B),
    "large": (1e4 * A, 1e4 * B),
}
REDUCING_CASES = {
    "all zero": (0 * REDUCED, 0 * NORMALIZED, PERSONS),
    "all equal": (0 * REDUCED + 1, 0 * NORMALIZED + 1, PERSONS),
    "one person": (REDUCED, NORMALIZED, np.zeros(5, np.int32)),
    "one image each": (REDUCED, NORMALIZED, np.arange(5, dtype=np.int32)),  # K = 1
    "equal in both modalities": (np.repeat(REDUCED[:, :1], 2, 1), NORMALIZED, PERSONS),
    "a mask of zero": (0 * NORMALIZED, NORMALIZED, PERSONS),
    "tiny": (1e-20 * REDUCED, 1e-20 * NORMALIZED, PERSONS),
    "large": (1e15 * REDUCED, 1e15 * NORMALIZED, PERSONS),
}


def graded(function, **options):
    return jax.jit(jax.value_and_grad(partial(function, **options), (0, 1)))


def single(arrays):
    return [jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None) for x in arrays]


def test_degenerate_batches_are_finite():
    of_graphs = jax.jit(
        lambda a, b: [graded(graph_alignment, **options)(a, b) for options in GRAPHS]
    )
    for case, arrays in GRAPH_CASES.items():
        for options, (value, gradient) in zip(GRAPHS, of_graphs(*single(arrays)), strict=True):
            assert np.isfinite(value) and value > -1e-5, (options, case)
            assert np.isfinite(gradient).all(), (options, case)
            if case == "all equal":
                assert abs(value) < 1e-6 and not np.any(gradient), options
    # Two rows are enough: one identity of two images, or two of one.
    for options, (value, gradient) in zip(GRAPHS, of_graphs(*single((A[:2], B[:2]))), strict=True):
        assert np.isfinite(value) and np.isfinite(gradient).all(), options
        if not options:  # one other sample has all of the share
            assert value == 0
    for form in losses.REDUCING_FORMS:
        run = graded(reducing_loss, form=form)
        for case, arrays in REDUCING_CASES.items():
            value, gradient = run(*single(arrays))
            assert value.shape == () and value.dtype == np.float32 and value >= 0, (form, case)
            assert np.isfinite(value) and np.isfinite(gradient).all(), (form, case)


def test_extreme_logits_are_finite():
    first, second = np.array([[1e4, 0.0, -1e4]]), np.array([[-1e4, 0.0, 1e4]])
    value, gradient = graded(divergence)(*single((first, second)))
    np.testing.assert_allclose(value, 4e4)
    assert np.isfinite(gradient).all()
    for form in losses.ENHANCING_FORMS:
        run = graded(enhancing_loss, form=form)
        for logits in (np.zeros((3, 4)), np.full((3, 4), 1e4), 1e4 * np.eye(3, 4)):
            value, gradient = run(*single((logits, -logits)))  # entropy 0 is 0 log 0
            assert np.isfinite(value) and np.isfinite(gradient).all(), (form, logits)


FLOATS = [
    (graph_alignment, (A, B)),
    (divergence, LOGITS),
    (enhancing_loss, (ENHANCED, PLAIN)),
    (reducing_loss, (REDUCED, NORMALIZED, PERSONS)),
]


@pytest.mark.slow
def test_half_precision_is_computed_in_float32():
    for function, arrays in FLOATS:
        name, run = function.__name__, graded(function)
        half = [x.astype(jnp.bfloat16) if x.dtype == np.float32 else x for x in single(arrays)]
        value, (gradient, _) = run(*half)
        assert value.dtype == np.float32 and gradient.dtype == jnp.bfloat16, name
        wide = [x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for x in half]
        exact, _ = run(*wide)
        assert exact.dtype == np.float32 and exact.shape == (), name
        np.testing.assert_allclose(value, exact, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(value, double(function, *arrays), rtol=0.05, err_msg=name)


# --- Refusals ---------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    zeros, two, pair = jnp.zeros, r"expected two of one shape \[N", r"expected two of \[B, 2, D\]"
    rows = [(divergence, shapes, two) for shapes in (((4, 3), (4, 2)), ((4, 3), (3, 3)))]
    rows += [(divergence, shapes, two) for shapes in (((4,), (4,)), ((2, 4, 3), (2, 4, 3)))]
    rows += [(affinity, shapes, two) for shapes in (((4, 3), (4, 2)), ((4, 3), (5, 3)))]
    rows += [(affinity, ((4,), (4,)), r"expected \[N"), (graph_alignment, ((4, 3), (5, 3)), two)]
    rows += [(graph_alignment, ((4, 2, 3), (4, 2, 3)), r"expected \[N")]
    for shapes in (((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4,), (4,))):
        rows.append((enhancing_loss, shapes, r"expected two of \[N, C\]"))
    for shapes in (((4, 3),) * 2, ((4, 3, 5),) * 2, ((4, 2, 5), (4, 2, 6))):
        rows.append((partial(reducing_loss, labels=zeros(4, jnp.int32)), shapes, pair))
    for function, shapes, message in rows:
        with pytest.raises(ValueError, match=rf"got \(.*{message}"):
            function(*map(zeros, shapes))
    with pytest.raises(ValueError, match=r"\[B\]"):
        reducing_loss(REDUCED, NORMALIZED, PERSONS[:4])
    with pytest.raises(ValueError, match=r"'mix' with 3 rows, expected an even number"):
        graph_alignment(A[:3], B[:3], cross="mix")
    for shape in ((4, 3), (5, 3, 2), (5,)):
        with pytest.raises(ValueError, match=r"expected \[P \* 5, C\]: 5 rows of each identity"):
            by_instance(zeros(shape), 5)


def test_an_unknown_choice_is_refused_by_name():
    graph = partial(graph_alignment, A, B)
    for function, option, known in (
        (graph, "pairs", losses.PAIRS),
        (graph, "cross", losses.CROSSES),
        (graph, "scale", losses.SCALES),
        (partial(enhancing_loss, ENHANCED, PLAIN), "form", losses.ENHANCING_FORMS),
        (partial(reducing_loss, REDUCED, NORMALIZED, PERSONS), "form", losses.REDUCING_FORMS),
    ):
        with pytest.raises(ValueError) as error:
            function(**{option: "best"})
        assert str(error.value) == f"{option} is 'best', expected one of {known}"
