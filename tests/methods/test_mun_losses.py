"""The identity alignment loss of MUN and its prototypes: what the equations say of a batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.losses.alignment import (
    alignment_loss,
    by_identity,
    by_slot,
    new_weight,
    prototype_loss,
)

P, K, D = 4, 3, 12
LABELS = np.repeat([5, 2, 11, 3], K).astype(np.int32)
CORNERS = [(0, 0), (10, 0), (0, 10), (10, 10)]

# A margin at which some hinges are active and some are not.
FORMS = {
    "hinge": dict(margin=2.0, form="hinge", normalize=False),
    "literal": dict(margin=0.55, form="literal", normalize=False),
    "softplus": dict(margin=0.55, form="softplus", normalize=False),
    "unit": dict(margin=0.4, form="hinge", normalize=True),
}
VALUES = {name: jax.jit(partial(alignment_loss, **o)) for name, o in FORMS.items()}
GRADIENTS = {
    name: jax.jit(jax.value_and_grad(partial(alignment_loss, **o))) for name, o in FORMS.items()
}
PRINTED = jax.jit(  # any margin with one compilation
    jax.value_and_grad(
        lambda x, labels, margin: alignment_loss(x, labels, margin=margin, form="literal")
    )
)
every_form = pytest.mark.parametrize("name", FORMS)


def _features(ids=P, instances=K, seed=0):
    r = np.random.default_rng([seed, ids, instances])
    person = np.repeat(r.normal(size=(ids, 1, D)), instances, 0)
    return (person + r.normal(size=(ids * instances, 3, D))).astype(np.float32)


def _at(visible, infrared, auxiliary):
    """Features [P * K, 3, D] with the center of every identity at a point of the plane."""
    points = np.zeros((len(visible), 3, D), np.float32)
    points[..., :2] = np.moveaxis(np.asarray([visible, infrared, auxiliary], np.float32), 0, 1)
    jitter = np.random.default_rng(0).normal(size=(len(points), K, 3, D))
    jitter -= jitter.mean(1, keepdims=True)  # moves the images, not their centers
    return (np.repeat(points, K, 0) + jitter.reshape(-1, 3, D)).astype(np.float32)


def _by_hand(name, x, labels):
    """Eq. (12) over centers in float64, form by form: (value, alpha + pos - neg [P])."""
    options = FORMS[name]
    x = x.astype(np.float64)
    if options["normalize"]:
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
    c = np.stack([x[labels == p].mean(0) for p in dict.fromkeys(labels.tolist())])
    inner = []
    for i in range(len(c)):
        positive = max(np.linalg.norm(c[i, 2] - c[i, m]) for m in (0, 1))
        negative = min(
            np.linalg.norm(c[i, 2] - c[q, m]) for q in range(len(c)) if q != i for m in (0, 1)
        )
        inner.append(options["margin"] + positive - negative)
    x = np.array(inner)
    values = {"hinge": np.maximum(x, 0), "literal": x, "softplus": np.log1p(np.exp(x))}
    return values[options["form"]].sum(), x


# --- Eq. (12) -----------------------------------------------------------------------------


@every_form
def test_alignment_is_a_sum_over_identities(name):
    x = _features()
    expected, inner = _by_hand(name, x, LABELS)
    np.testing.assert_allclose(VALUES[name](x, LABELS), expected, rtol=1e-5)
    if name == "hinge":
        assert (inner > 0).any() and (inner < 0).any()


@every_form
def test_identities_may_be_permuted_jointly(name):
    x = _features()
    value, gradient = GRADIENTS[name](x, LABELS)
    for order in (
        np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel(),
        np.random.default_rng(3).permutation(P * K),
    ):
        moved, moved_gradient = GRADIENTS[name](x[order], LABELS[order])
        np.testing.assert_allclose(moved, value, rtol=1e-5)
        np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-4, atol=1e-6)


def test_separated_identities_cost_nothing_behind_the_hinge():
    near = [(x + 0.5, y) for x, y in CORNERS]
    value, gradient = GRADIENTS["hinge"](_at(near, near, CORNERS), LABELS)
    assert float(value) == 0 and not np.any(gradient)


def test_the_printed_form_goes_below_zero_and_its_gradient_does_not_know_alpha():
    near = [(x + 0.5, y) for x, y in CORNERS]
    x = _at(near, near, CORNERS)
    (value, gradient), (higher, same_gradient) = (PRINTED(x, LABELS, a) for a in (0.55, 5.0))
    # The nearest negative of two anchors is 9.5 away, that of the other two 10.01.
    assert float(value) == pytest.approx(P * (0.55 + 0.5) - 2 * 9.5 - 2 * 10.0125, rel=1e-4)
    assert float(higher - value) == pytest.approx(P * 4.45, rel=1e-5)
    np.testing.assert_allclose(same_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert np.abs(gradient).max() > 0.1


def test_the_printed_form_falls_with_the_scale_unless_centers_are_normalized():
    near = [(x + 1, y) for x, y in CORNERS]
    x = _at(near, near, [(x + 2, y) for x, y in CORNERS])
    unit_loss = jax.jit(partial(alignment_loss, margin=0.55, form="literal", normalize=True))
    plain = [float(PRINTED(s * x, LABELS, 0.55)[0]) for s in (1.0, 10.0, 100.0)]
    unit = [float(unit_loss(s * x, LABELS)) for s in (1.0, 10.0, 100.0)]
    assert plain[2] < 10 * plain[1] + 50 < 100 * plain[0] + 500 and plain[2] < -1000
    np.testing.assert_allclose(unit, unit[0], rtol=1e-4)
    assert P * (0.55 - 2) <= unit[0] <= P * (0.55 + 2)


def test_the_farther_modality_pulls_and_the_nearest_of_either_pushes():
    # Identity 0: visible at 2 and infrared at 3; nearest other center: infrared, at 4.
    visible = [(-2, 0), *CORNERS[1:]]
    infrared = [(-3, 0), (4, 0), *CORNERS[2:]]
    x = _at(visible, infrared, CORNERS)
    x, labels = x[: 2 * K], LABELS[: 2 * K]
    value, gradient = PRINTED(x, labels, 0.5)
    # Identity 1: its infrared center is 6 away; the other's visible one, the nearest, 12.
    assert float(value) == pytest.approx((0.5 + 3 - 4) + (0.5 + 6 - 12), rel=1e-4)
    center = np.asarray(gradient).reshape(2, K, 3, D).sum(1)  # [P, 3, D]
    np.testing.assert_allclose(center[0, 1, :2], [-1, 0], atol=1e-5)  # pulled back to the anchor
    np.testing.assert_allclose(center[0, 0, :2], [1, 0], atol=1e-5)  # pushed from identity 1's
    np.testing.assert_allclose(center[1, 0], 0, atol=1e-5)  # neither farthest nor nearest


def test_visible_and_infrared_centers_are_never_compared():
    """Moving the nearer positive, as long as it stays nearer, changes nothing."""
    x = _at([(-2, 0), *CORNERS[1:]], [(-3, 0), *CORNERS[1:]], CORNERS)
    y = _at([(-1, -1.5), *CORNERS[1:]], [(-3, 0), *CORNERS[1:]], CORNERS)
    values = [PRINTED(f, LABELS, 20.0)[0] for f in (x, y)]
    # In neither batch is identity 0's visible center the nearest negative of anybody.
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)


@every_form
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_identical_rows_are_finite(name, fill):
    value, gradient = GRADIENTS[name](jnp.full((P * K, 3, D), fill), LABELS)
    assert np.isfinite(gradient).all()
    alpha = FORMS[name]["margin"]
    each = np.log1p(np.exp(alpha)) if name == "softplus" else alpha
    assert float(value) == pytest.approx(P * each, rel=1e-4)


@every_form
@pytest.mark.parametrize("ids, instances", [(2, 1), (2, 2), (3, 1)])
def test_small_batches_are_finite(name, ids, instances):
    x, labels = _features(ids, instances), np.repeat(np.arange(ids), instances)
    value, gradient = GRADIENTS[name](x, labels)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, _by_hand(name, x, labels)[0], rtol=1e-5, atol=1e-6)


@every_form
def test_one_image_shown_in_every_modality_is_finite(name):
    x = np.repeat(_features()[:, :1], 3, 1)
    value, gradient = GRADIENTS[name](x, LABELS)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@every_form
def test_half_precision_features_give_float32_near_the_exact_value(name):
    x = _features()
    value = VALUES[name](jnp.asarray(x, jnp.bfloat16), LABELS)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, VALUES[name](x, LABELS), rtol=2e-2)


@pytest.mark.parametrize("shape", [(P * K, D), (P * K, 2, D), (P * K, 3, D, 1)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="features"):
        alignment_loss(jnp.zeros(shape), LABELS)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="hinge"):
        alignment_loss(_features(), LABELS, form="relu")


# --- Prototypes, eqs. (13) and (14) -------------------------------------------------------


ACCUMULATE = {"slot": jax.jit(by_slot), "identity": jax.jit(by_identity)}
every_memory = pytest.mark.parametrize("kind", ACCUMULATE)
CLASSES = 12


def _memory(kind, seed=7, seen=True):
    """A memory as earlier steps may have left it."""
    r = np.random.default_rng(seed)
    if kind == "slot":
        return {"prototype": r.normal(size=(P * K, 3, D)).astype(np.float32)}
    stored = r.normal(size=(CLASSES, K, 3, D)).astype(np.float32)
    return {"prototype": stored, "seen": np.full(CLASSES, seen)}


def _of_batch(kind, memory, labels=LABELS):
    """The prototypes [B, 3, D] that a memory holds for a batch."""
    prototype = np.asarray(memory["prototype"])
    return prototype if kind == "slot" else prototype[labels[::K]].reshape(-1, 3, D)


@every_memory
def test_at_beta_1_prototypes_are_the_mapped_features(kind):
    mapped = _features()
    t, memory = ACCUMULATE[kind](_memory(kind), mapped, LABELS, 1.0)
    np.testing.assert_array_equal(t, mapped)
    np.testing.assert_array_equal(_of_batch(kind, memory), mapped)


@every_memory
def test_at_beta_0_prototypes_stay(kind):
    before = _memory(kind)
    t, after = ACCUMULATE[kind](before, _features(), LABELS, 0.0)
    np.testing.assert_array_equal(t, _of_batch(kind, before))
    np.testing.assert_array_equal(after["prototype"], before["prototype"])


@every_memory
def test_prototypes_move_by_beta(kind):
    before, mapped = _memory(kind), _features()
    t, after = ACCUMULATE[kind](before, mapped, LABELS, 0.3)
    np.testing.assert_allclose(t, 0.3 * mapped + 0.7 * _of_batch(kind, before), rtol=1e-5)
    np.testing.assert_array_equal(_of_batch(kind, after), t)


@every_memory
def test_no_gradient_reaches_earlier_batches(kind):
    """Through two steps: the first one's features get none, the second one's get beta."""
    first, second = _features(seed=1), _features(seed=2)
    along = _features(seed=3)

    def through(first, second, stored):
        start = {**_memory(kind), "prototype": stored}
        _, memory = ACCUMULATE[kind](start, first, LABELS, 1.0)
        t, memory = ACCUMULATE[kind](memory, second, LABELS, 0.3)
        later, _ = ACCUMULATE[kind](memory, jnp.zeros_like(second), LABELS, 0.0)
        return (along * t).sum() + later.sum()

    stored = jnp.asarray(_memory(kind)["prototype"])
    gradients = jax.jit(jax.grad(through, (0, 1, 2)))(first, second, stored)
    assert not np.any(gradients[0]) and not np.any(gradients[2])
    np.testing.assert_allclose(gradients[1], 0.3 * along, rtol=1e-5)


def test_slots_mix_whoever_they_showed():
    """The printed memory knows rows, not identities: other labels change nothing."""
    t, _ = ACCUMULATE["slot"](_memory("slot"), _features(), LABELS, 0.3)
    other, _ = ACCUMULATE["slot"](_memory("slot"), _features(), LABELS[::-1], 0.3)
    np.testing.assert_array_equal(t, other)


def test_identities_keep_their_own_past_wherever_they_stand():
    order = np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel()
    x = _features()
    accumulate, before = ACCUMULATE["identity"], _memory("identity")
    t, memory = accumulate(before, x, LABELS, 0.3)
    moved, moved_memory = accumulate(before, x[order], LABELS[order], 0.3)
    np.testing.assert_array_equal(moved, t[order])
    for name in memory:
        np.testing.assert_array_equal(moved_memory[name], memory[name])


def test_an_identity_without_a_past_starts_from_its_features():
    before, x = _memory("identity", seen=False), _features()
    before["seen"][LABELS[0]] = True
    t, after = ACCUMULATE["identity"](before, x, LABELS, 0.3)
    np.testing.assert_array_equal(t[K:], x[K:])
    np.testing.assert_allclose(t[:K], 0.3 * x[:K] + 0.7 * before["prototype"][LABELS[0]], rtol=1e-5)
    assert set(np.flatnonzero(after["seen"])) == set(LABELS.tolist())
    absent = np.setdiff1d(np.arange(CLASSES), LABELS)
    np.testing.assert_array_equal(after["prototype"][absent], before["prototype"][absent])


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
@pytest.mark.parametrize("role", ["new", "memory"])
def test_beta_rises_from_1e_8_to_1(schedule, role):
    steps = 11
    with jax.enable_x64(True):
        weights = np.array(
            [new_weight(i, steps, schedule=schedule, role=role) for i in range(steps)]
        )
    assert weights[0] == 1  # T_0 = W Z_0, whatever the role
    beta = weights if role == "new" else 1 - weights
    between = {"linear": np.arange(1, steps) / 10, "geometric": 10 ** (0.8 * np.arange(1, 11) - 8)}
    np.testing.assert_allclose(beta[1:], between[schedule], atol=1e-7)
    if (schedule, role) == ("geometric", "new"):
        np.testing.assert_allclose(beta[1:], between[schedule], rtol=1e-9)


def test_a_training_of_one_step_has_a_beta():
    assert float(new_weight(0, 1)) == 1


# --- Eqs. (15) and (16) ---------------------------------------------------------------------


def _kernels(x, y):
    """The adaptive MMD between rows x and y, by loops over pairs."""
    rows = np.concatenate([x, y]).astype(np.float64)
    d = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
    n, k = len(rows), len(x)
    b = d.sum() / (n * n - n) / 4
    g = sum(np.exp(-d / (b * 2**j + 1e-9)) for j in range(5))
    return (g[:k, :k] + g[k:, k:] - g[:k, k:] - g[k:, :k]).mean()


@pytest.mark.parametrize("bridge", [True, False])
def test_modalities_are_compared_identity_by_identity(bridge):
    t = _features()
    value = jax.jit(partial(prototype_loss, num_instances=K, bridge=bridge))(t)
    pairs = [(0, 2), (2, 1)] if bridge else [(0, 1)]
    expected = sum(
        _kernels(block[:, a], block[:, b]) for block in t.reshape(P, K, 3, D) for a, b in pairs
    )
    np.testing.assert_allclose(value, expected / P, rtol=1e-5)


@every_memory
@pytest.mark.parametrize("bridge", [True, False])
def test_blocks_of_identities_may_be_permuted_jointly(kind, bridge):
    """Through the memory too, if the slots' history is permuted with them."""

    def loss(mapped, memory, labels):
        t, _ = ACCUMULATE[kind](memory, mapped, labels, 0.4)
        return prototype_loss(t, num_instances=K, bridge=bridge)

    order = np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel()
    before = _memory(kind)
    moved = {"prototype": before["prototype"][order]} if kind == "slot" else before
    both = jax.jit(jax.value_and_grad(loss))
    value, gradient = both(_features(), before, LABELS)
    other, other_gradient = both(_features()[order], moved, LABELS[order])
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(other_gradient, gradient[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bridge", [True, False])
@pytest.mark.parametrize("ids, instances", [(2, 1), (2, 3), (1, 4)])
def test_degenerate_prototypes_are_finite(ids, instances, bridge):
    loss = partial(prototype_loss, num_instances=instances, bridge=bridge)
    both = jax.jit(jax.value_and_grad(loss))
    value, gradient = both(_features(ids, instances))
    assert np.isfinite(value) and float(value) > 0 and np.isfinite(gradient).all()
    same = np.repeat(_features(ids, instances)[:, :1], 3, 1)
    for t in (same, np.ones_like(same)):  # equal modalities; and all rows equal
        value, gradient = both(t)
        np.testing.assert_allclose(value, 0, atol=1e-5)
        assert np.isfinite(gradient).all()


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="prototypes"):
        prototype_loss(_features(), num_instances=5)
