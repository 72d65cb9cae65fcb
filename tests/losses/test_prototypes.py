"""The prototypes of MUN and their loss, eqs. (13) to (16): what the equations say of a batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.methods.mun.alignment import by_identity, by_slot, new_weight, prototype_loss

P, K, D = 4, 3, 12
LABELS = np.repeat([5, 2, 11, 3], K).astype(np.int32)
CLASSES = 12

ACCUMULATE = {"slot": jax.jit(by_slot), "identity": jax.jit(by_identity)}
every_memory = pytest.mark.parametrize("kind", ACCUMULATE)


def _features(ids=P, instances=K, seed=0):
    r = np.random.default_rng([seed, ids, instances])
    person = np.repeat(r.normal(size=(ids, 1, D)), instances, 0)
    return (person + r.normal(size=(ids * instances, 3, D))).astype(np.float32)


# --- Prototypes, eqs. (13) and (14) -------------------------------------------------------


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
