"""The losses of MUN, eqs. 12 to 16: what the equations say of a batch, edges, precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import loss_tests
from vireid_jax.methods.mun import losses
from vireid_jax.methods.mun.losses import accumulated, alignment_loss, beta_of, prototype_loss

P, K, D = 4, 3, 12
LABELS = np.repeat([5, 2, 11, 3], K).astype(np.int32)
CORNERS = [(0, 0), (10, 0), (0, 10), (10, 10)]
MARGIN = 2.0  # some hinges are active and some are not

align = jax.jit(alignment_loss)  # any margin with one compilation
align_gradient = jax.jit(jax.value_and_grad(alignment_loss))
mmd = jax.jit(losses.mmd)
mmd_gradient = jax.jit(jax.value_and_grad(lambda x, y: losses.mmd(x, y).sum()))

FUNCTIONS = {"mun_alignment": (alignment_loss, "features labels"), "mmd": (losses.mmd, "x y")}
test_value_and_gradient, test_the_cases_test_something = loss_tests(FUNCTIONS, rtol64=1e-12)


def _features(ids=P, instances=K, seed=0):
    r = np.random.default_rng([seed, ids, instances])
    person = np.repeat(r.normal(size=(ids, 1, D)), instances, 0)
    return (person + r.normal(size=(ids * instances, 3, D))).astype(np.float32)


# --- Alignment, eq. 12 ------------------------------------------------------------------------


def _at(visible, infrared, auxiliary):
    """Features [P * K, 3, D] with the center of every identity at a point of the plane."""
    points = np.zeros((len(visible), 3, D), np.float32)
    points[..., :2] = np.moveaxis(np.asarray([visible, infrared, auxiliary], np.float32), 0, 1)
    jitter = np.random.default_rng(0).normal(size=(len(points), K, 3, D))
    jitter -= jitter.mean(1, keepdims=True)  # moves the images, not their centers
    return (np.repeat(points, K, 0) + jitter.reshape(-1, 3, D)).astype(np.float32)


def _inner(x, labels, margin):
    """alpha + pos - neg [P] of eq. 12 over centers in float64."""
    x = x.astype(np.float64)
    c = np.stack([x[labels == p].mean(0) for p in dict.fromkeys(labels.tolist())])
    inner = []
    for i in range(len(c)):
        positive = max(np.linalg.norm(c[i, 2] - c[i, m]) for m in (0, 1))
        negative = min(
            np.linalg.norm(c[i, 2] - c[q, m]) for q in range(len(c)) if q != i for m in (0, 1)
        )
        inner.append(margin + positive - negative)
    return np.array(inner)


def test_alignment_is_a_sum_over_identities_in_any_order():
    x = _features()
    inner = _inner(x, LABELS, MARGIN)
    value, gradient = align_gradient(x, LABELS, margin=MARGIN)
    np.testing.assert_allclose(value, np.maximum(inner, 0).sum(), rtol=1e-5)
    assert (inner > 0).any() and (inner < 0).any()
    # In any order.
    identities = np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel()
    for order in (identities, np.random.default_rng(3).permutation(P * K)):
        moved, moved_gradient = align_gradient(x[order], LABELS[order], margin=MARGIN)
        np.testing.assert_allclose(moved, value, rtol=1e-5)
        np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-4, atol=1e-6)


def test_separated_identities_cost_nothing():
    near = [(x + 0.5, y) for x, y in CORNERS]
    value, gradient = align_gradient(_at(near, near, CORNERS), LABELS, margin=MARGIN)
    assert float(value) == 0 and not np.any(gradient)


def test_the_farther_modality_pulls_and_the_nearest_of_either_pushes():
    # Identity 0: visible at 2 and infrared at 3; nearest other center: infrared, at 4.
    visible = [(-2, 0), *CORNERS[1:]]
    infrared = [(-3, 0), (4, 0), *CORNERS[2:]]
    x = _at(visible, infrared, CORNERS)[: 2 * K]
    value, gradient = align_gradient(x, LABELS[: 2 * K], margin=7.0)
    # Identity 1: its infrared center is 6 away; the other's visible one, the nearest, 12.
    assert float(value) == pytest.approx((7 + 3 - 4) + (7 + 6 - 12), rel=1e-4)
    center = np.asarray(gradient).reshape(2, K, 3, D).sum(1)  # [P, 3, D]
    np.testing.assert_allclose(center[0, 1, :2], [-1, 0], atol=1e-5)  # pulled back to the anchor
    np.testing.assert_allclose(center[0, 0, :2], [1, 0], atol=1e-5)  # pushed from identity 1's
    np.testing.assert_allclose(center[1, 0], 0, atol=1e-5)  # neither farthest nor nearest


def test_degenerate_batches_are_finite():
    for fill in (0.0, 1.0):
        value, gradient = align_gradient(jnp.full((P * K, 3, D), fill), LABELS, margin=MARGIN)
        assert np.isfinite(gradient).all() and float(value) == pytest.approx(P * MARGIN, rel=1e-4)
    x, labels = _features(2, 1), np.arange(2)
    value, gradient = align_gradient(x, labels, margin=MARGIN)
    assert np.isfinite(gradient).all()
    expected = np.maximum(_inner(x, labels, MARGIN), 0).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    value, gradient = align_gradient(_features(), np.zeros_like(LABELS), margin=MARGIN)
    assert float(value) == 0 and np.isfinite(gradient).all()  # one identity
    same = np.repeat(_features()[:, :1], 3, 1)  # one image shown in every modality
    value, gradient = align_gradient(same, LABELS, margin=MARGIN)
    assert np.isfinite(value) and np.isfinite(gradient).all()


# --- Prototypes, eqs. 13 and 14 ---------------------------------------------------------------


def _before(seed=7):
    return np.random.default_rng(seed).normal(size=(P * K, 3, D)).astype(np.float32)


def test_prototypes_move_by_beta():
    before, mapped = _before(), _features()
    for beta in (0.0, 0.3, 1.0):
        t, kept = jax.jit(accumulated)(before, mapped, beta)
        np.testing.assert_allclose(t, beta * mapped + (1 - beta) * before, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(kept, t)


def test_no_gradient_reaches_earlier_batches():
    """Through two steps: the first one's features get none, the second one's get beta."""
    first, second, along = (_features(seed=n) for n in (1, 2, 3))

    def through(first, second, stored):
        _, kept = accumulated(stored, first, 1.0)
        t, kept = accumulated(kept, second, 0.3)
        later, _ = accumulated(kept, jnp.zeros_like(second), 0.0)
        return (along * t).sum() + later.sum()

    gradients = jax.jit(jax.grad(through, (0, 1, 2)))(first, second, jnp.asarray(_before()))
    assert not np.any(gradients[0]) and not np.any(gradients[2])
    np.testing.assert_allclose(gradients[1], 0.3 * along, rtol=1e-5)


def test_beta_rises_from_1e_8_to_1_in_equal_steps_and_is_1_at_the_first():
    with jax.enable_x64(True):
        beta = np.array([beta_of(i, 11) for i in range(11)])
    assert beta[0] == 1 and float(beta_of(0, 1)) == 1  # T_0 = W Z_0
    np.testing.assert_allclose(beta[1:], 1e-8 + (1 - 1e-8) * np.arange(1, 11) / 10, rtol=1e-12)


# --- Eqs. 15 and 16 -----------------------------------------------------------------------------


def _mmd_by_hand(x, y):
    """The MMD between rows x and y, by loops over pairs."""
    rows = np.concatenate([x, y]).astype(np.float64)
    d = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
    n, k = len(rows), len(x)
    b = d.sum() / (n * n - n) / 4
    g = sum(np.exp(-d / (b * 2**j + 1e-9)) for j in range(5))
    return (g[:k, :k] + g[k:, k:] - g[:k, k:] - g[k:, :k]).mean()


@pytest.mark.parametrize("bridge", [True, False])
def test_modalities_are_compared_identity_by_identity(bridge):
    loss = jax.jit(jax.value_and_grad(partial(prototype_loss, num_instances=K, bridge=bridge)))
    t = _features()
    value, gradient = loss(t)
    pairs = [(0, 2), (2, 1)] if bridge else [(0, 1)]
    expected = sum(
        _mmd_by_hand(block[:, a], block[:, b]) for block in t.reshape(P, K, 3, D) for a, b in pairs
    )
    np.testing.assert_allclose(value, expected / P, rtol=1e-5)
    # Blocks of identities may change places.
    order = np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel()
    other, other_gradient = loss(t[order])
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(other_gradient, gradient[order], rtol=1e-4, atol=1e-6)


def test_degenerate_prototypes_are_finite():
    for ids, instances, bridge in ((2, 1, True), (1, 4, False)):
        loss = partial(prototype_loss, num_instances=instances, bridge=bridge)
        both = jax.jit(jax.value_and_grad(loss))
        value, gradient = both(_features(ids, instances))
        assert float(value) > 0 and np.isfinite(gradient).all(), (ids, instances)
        same = np.repeat(_features(ids, instances)[:, :1], 3, 1)
        for t in (same, np.ones_like(same)):  # equal modalities; and all rows equal
            value, gradient = both(t)
            np.testing.assert_allclose(value, 0, atol=1e-5)
            assert np.isfinite(gradient).all()


# --- The maximum mean discrepancy -------------------------------------------------------------

R = np.random.default_rng(3)
X = R.normal(size=(4, 6)).astype(np.float32)
Y = (1.5 * R.normal(size=(4, 6)) + 0.5).astype(np.float32)


def test_mmd_is_the_mean_of_kernels():
    value = mmd(X, Y)
    np.testing.assert_allclose(value, _mmd_by_hand(X, Y), rtol=1e-5)
    for other in (mmd(Y, X), mmd(X[[2, 0, 3, 1]], Y[[1, 3, 0, 2]])):  # symmetric, no order
        np.testing.assert_allclose(other, value, rtol=1e-5)


def test_a_set_is_at_no_distance_from_itself():
    for x in (X, np.ones_like(X)):
        value, gradient = mmd_gradient(x, x)
        np.testing.assert_allclose(value, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_known_values_of_sets_of_four():
    """K = 4 rows of 2048 normal numbers: 1.54 for one distribution, 7.4 far apart."""
    r = np.random.default_rng(0)
    x, y = r.normal(size=(2, 48, 4, 2048)).astype(np.float32)
    same, apart = np.asarray(mmd(x, y)), np.asarray(mmd(x, y + 50))
    assert same.mean() == pytest.approx(1.54, abs=0.01) and same.std() < 0.03
    assert apart.mean() == pytest.approx(7.4, abs=0.1)


def test_the_scale_of_features_does_not_matter():
    value = float(mmd(X, Y))
    for scale in (0.1, 30.0):
        np.testing.assert_allclose(mmd(X * scale, Y * scale), value, rtol=1e-4)
    for scale in (1e-15, 1e-6, 1e15):
        found, gradient = mmd_gradient(X * np.float32(scale), Y * np.float32(scale))
        assert np.isfinite(found) and np.isfinite(gradient).all(), scale
        assert scale > 1 or float(found) < 0.1 * value  # the floor of 1e-9 takes over


def test_no_gradient_passes_through_the_bandwidth():
    """With it the slope along the scale would be 0, as the value does not depend on the scale."""
    slope = jax.jit(jax.grad(lambda s: losses.mmd(s * X, s * Y)))(1.0)
    assert abs(float(slope)) > 0.1


@pytest.mark.slow
def test_half_precision_is_computed_in_float32():
    x, y, features = (jnp.asarray(v, jnp.bfloat16) for v in (X, Y, _features()))
    value, aligned = mmd(x, y), align(features, LABELS, margin=MARGIN)
    assert value.dtype == aligned.dtype == jnp.float32
    np.testing.assert_allclose(value, mmd(x.astype("float32"), y.astype("float32")), rtol=1e-6)
    np.testing.assert_allclose(value, mmd(X, Y), rtol=5e-2)
    exact, _ = align_gradient(_features(), LABELS, margin=MARGIN)
    np.testing.assert_allclose(aligned, exact, rtol=2e-2)


# --- Refusals -----------------------------------------------------------------------------------


def test_shapes_that_do_not_fit_are_refused():
    for shape in ((P * K, D), (P * K, 2, D), (P * K, 3, D, 1)):
        with pytest.raises(ValueError, match="features"):
            alignment_loss(jnp.zeros(shape), LABELS)
    with pytest.raises(ValueError, match="prototypes"):
        prototype_loss(_features(), num_instances=5)
    for x, y in (((4,), (4,)), ((4, 6), (3, 6)), ((2, 4, 6), (4, 6)), ((0, 6),) * 2):
        with pytest.raises(ValueError, match=r"expected \[\.\.\., K, D\] twice"):
            losses.mmd(jnp.zeros(x), jnp.zeros(y))
