"""Update rules against NumPy loops and torch.optim, and schedules against loops and the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax import optim


def tree(rng):
    """Parameters or gradients, float64."""
    return {
        "backbone": {"stem": {"kernel": rng.normal(size=(3, 2))}, "bias": rng.normal(size=2)},
        "classifier": {"kernel": rng.normal(size=(2, 4))},
    }


PARAMS = tree(np.random.default_rng([1, 0]))
GRADS = [tree(np.random.default_rng([2, step])) for step in range(12)]
LEAVES, STRUCTURE = jax.tree.flatten(PARAMS)


def run(params=PARAMS, dtype=jnp.float32, **options):
    """The parameters after all gradients, as vireid_jax updates them."""
    transform, learning_rate = optim.make(steps_per_epoch=4, epochs=3, **options)
    params = jax.tree.map(dtype, params)
    state = transform.init(params)

    for step, grads in enumerate(GRADS):
        updates, state = transform.update(jax.tree.map(dtype, grads), state, params)
        params = optim.apply(params, updates, learning_rate(step))
    return params


def adam_loop(params, *, rate, weight_decay=0.0, decoupled=False):
    """Adam of Kingma and Ba, algorithm 1, and AdamW of Loshchilov and Hutter, algorithm 2."""
    out = []
    for leaf, value in enumerate(jax.tree.leaves(params)):
        value = np.array(value)
        first, second = np.zeros_like(value), np.zeros_like(value)
        for step, grads in enumerate(GRADS):
            g = jax.tree.leaves(grads)[leaf]
            if not decoupled:
                g = g + weight_decay * value
            first = 0.9 * first + 0.1 * g
            second = 0.999 * second + 0.001 * g * g
            corrected = first / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(second / (1 - 0.999 ** (step + 1)))
            change = corrected / (spread + 1e-8)
            if decoupled:
                change = change + weight_decay * value
            value = value - rate(step) * change
        out.append(value)
    return jax.tree.unflatten(STRUCTURE, out)


def sgd_loop(params, *, rate, weight_decay=0.0, momentum=0.9):
    """SGD as torch has it: velocity = momentum * velocity + g, no dampening."""
    out = []
    for leaf, value in enumerate(jax.tree.leaves(params)):
        value, velocity = np.array(value), np.zeros_like(value)
        for step, grads in enumerate(GRADS):
            g = jax.tree.leaves(grads)[leaf] + weight_decay * value
            velocity = momentum * velocity + g
            value = value - rate(step) * velocity
        out.append(value)
    return jax.tree.unflatten(STRUCTURE, out)


def assert_trees_close(got, expected, rtol=2e-5):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-6), got, expected)


def differs(one, other):
    """The largest difference of two trees."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs)


def multistep(step):
    """The learning rate that `run(lr=0.02, milestones=(1, 2))` takes."""
    return 0.02 * 0.1 ** (step // 4)


@each("weight_decay", [0.0, 0.3])
def test_coupled_adam_is_the_plain_loop(weight_decay):
    got = run(lr=0.02, milestones=(1.0, 2.0), weight_decay=weight_decay)
    assert_trees_close(got, adam_loop(PARAMS, rate=multistep, weight_decay=weight_decay))


def test_decoupled_adam_is_the_plain_loop():
    got = run(lr=0.02, milestones=(1.0, 2.0), weight_decay=0.3, decay="decoupled")
    expected = adam_loop(PARAMS, rate=multistep, weight_decay=0.3, decoupled=True)
    assert_trees_close(got, expected)
    assert differs(got, adam_loop(PARAMS, rate=multistep, weight_decay=0.3)) > 1e-2


@each("weight_decay, momentum", [(0.0, 0.9), (0.3, 0.9), (0.3, 0.0)])
def test_sgd_is_the_plain_loop(weight_decay, momentum):
    options = dict(weight_decay=weight_decay, momentum=momentum)
    got = run(name="sgd", lr=0.02, milestones=(1.0, 2.0), **options)
    assert_trees_close(got, sgd_loop(PARAMS, rate=multistep, **options))


# Multipliers, clipping, dtypes --------------------------------------------------------------


def sgd_by_path(factors):
    """SGD whose learning rate is multiplied for each leaf, in the order of the tree."""
    parts = [sgd_loop(PARAMS, rate=lambda s, f=f: 0.02 * f) for f in factors]
    leaves = [jax.tree.leaves(part)[n] for n, part in enumerate(parts)]
    return jax.tree.unflatten(STRUCTURE, leaves)


# Leaves in this order: backbone/bias, backbone/stem/kernel, classifier/kernel.
@each(
    "multipliers, factors",
    [
        ([("backbone/.*", 0.1)], (0.1, 0.1, 1.0)),
        ([("backbone/stem/.*", 0.5), ("backbone", 0.1)], (0.1, 0.5, 1.0)),  # the first counts
        ([("backbone", 0.1), ("backbone/stem/.*", 0.5)], (0.1, 0.1, 1.0)),
        ([(".*/kernel", 3.0)], (1.0, 3.0, 3.0)),
        ([("classifier", 0.0), ("stem|backbone/bias", 2.0)], (2.0, 1.0, 0.0)),  # from the start
    ],
)
def test_multipliers_scale_the_learning_rate_of_a_path(multipliers, factors):
    got = run(name="sgd", lr=0.02, schedule="constant", multipliers=multipliers)
    assert_trees_close(got, sgd_by_path(factors))


def test_multipliers_come_after_the_moments_and_scale_the_decay():
    """As a group's lr in torch does: Adam is blind to the scale of a gradient."""
    options = dict(lr=0.02, schedule="constant", weight_decay=0.3, decay="decoupled")
    got = run(multipliers=[(".*", 0.25)], **options)
    expected = adam_loop(PARAMS, rate=lambda step: 0.005, weight_decay=0.3, decoupled=True)
    assert_trees_close(got, expected)


# Leaves in the order of LEAVES: backbone/bias, backbone/stem/kernel, classifier/kernel.
@each(
    "no_decay, spared",
    [
        ((), (False, False, False)),
        ((".*/bias",), (True, False, False)),
        (("backbone/stem",), (False, True, False)),
        (("backbone", "classifier/kernel"), (True, True, True)),
        (("(backbone|neck)/bias", "classifier"), (True, False, True)),
        (("stem|backbone/bias",), (True, False, False)),  # from the start
    ],
)
@each("decay", ["coupled", "decoupled"])
def test_no_decay_spares_a_path(no_decay, spared, decay):
    options = dict(lr=0.02, milestones=(1.0, 2.0), decay=decay)
    got = run(no_decay=no_decay, weight_decay=0.3, **options)
    plain, decayed = (
        jax.tree.leaves(adam_loop(PARAMS, rate=multistep, weight_decay=w, decoupled=d))
        for w, d in ((0.0, False), (0.3, decay == "decoupled"))
    )
    leaves = [p if s else d for p, d, s in zip(plain, decayed, spared, strict=True)]
    assert_trees_close(got, jax.tree.unflatten(STRUCTURE, leaves))
    for p, d in zip(plain, decayed, strict=True):
        assert np.abs(p - d).max() > 1e-3


def test_no_decay_of_sgd():
    got = run(
        name="sgd", lr=0.02, milestones=(1.0, 2.0), weight_decay=0.3, no_decay=["backbone/.*"]
    )
    spared, decayed = (sgd_loop(PARAMS, rate=multistep, weight_decay=w) for w in (0.0, 0.3))
    assert_trees_close(got, decayed | {"backbone": spared["backbone"]})


def test_decoupled_decay_without_a_gradient_is_rate_times_multiplier_times_decay():
    """As in a torch group of its own lr: each step takes lr * factor * weight_decay away."""
    lr, factor, weight_decay = 0.02, 0.25, 0.3
    transform, learning_rate = optim.make(
        steps_per_epoch=1,
        epochs=1,
        lr=lr,
        schedule="constant",
        weight_decay=weight_decay,
        decay="decoupled",
        multipliers=[("backbone", factor)],
        no_decay=["backbone/bias"],
    )
    params = jax.tree.map(jnp.float32, PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zeros, transform.init(params), params)
    got = optim.apply(params, updates, learning_rate(0))
    kept = (1.0, 1 - lr * factor * weight_decay, 1 - lr * weight_decay)
    for after, before, part in zip(jax.tree.leaves(got), LEAVES, kept, strict=True):
        np.testing.assert_allclose(after, part * before, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("groups", ["plain", "groups"])
def test_torch_updates_alike(groups, name):
    """In float64; the rates are powers of two, for a learning rate is float32."""
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(leaf, dtype=torch.float64, requires_grad=True) for leaf in LEAVES]
    lr = 2.0**-5
    grouped = groups == "groups"
    groups = [dict(params=tensors)]
    if grouped:
        groups = [
            dict(params=tensors[:1], lr=lr / 8, weight_decay=0.0),  # backbone/bias
            dict(params=tensors[1:2], lr=lr / 8),  # backbone/stem/kernel
            dict(params=tensors[2:]),  # classifier/kernel
        ]
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, weight_decay=0.3, momentum=0.9)
    else:
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        optimizer = kind(groups, lr=lr, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 8], gamma=0.5)
    for grads in GRADS:
        for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
            tensor.grad = torch.tensor(grad)
        optimizer.step()
        schedule.step()
    with jax.enable_x64(True):
        got = run(
            dtype=jnp.float64,
            name="sgd" if name == "sgd" else "adam",
            decay="decoupled" if name == "adamw" else "coupled",
            lr=lr,
            weight_decay=0.3,
            milestones=(1.0, 2.0),
            gamma=0.5,
            multipliers=[("backbone/.*", 0.125)] * grouped,
            no_decay=[".*/bias"] * grouped,
        )
    for tensor, leaf in zip(tensors, jax.tree.leaves(got), strict=True):
        assert leaf.dtype == jnp.float64
        np.testing.assert_allclose(leaf, tensor.detach().numpy(), rtol=1e-10, atol=1e-12)


@each("weight_decay", [0.0, 0.3])
@each("decay", ["coupled", "decoupled"])
@each("option", ["multipliers", "no_decay"])
def test_a_pattern_that_matches_nothing_is_refused(option, decay, weight_decay):
    patterns = ["backbone", "kernel"]
    value = patterns if option == "no_decay" else [(p, 0.5) for p in patterns]
    transform, _ = optim.make(
        steps_per_epoch=1, epochs=1, weight_decay=weight_decay, decay=decay, **{option: value}
    )
    message = rf"optim.{option}: 'kernel' matches no parameter.*backbone/bias"
    with pytest.raises(ValueError, match=message):
        transform.init(PARAMS)


def test_no_decay_without_weight_decay_changes_nothing():
    assert differs(run(no_decay=[".*/bias"], lr=0.02), run(lr=0.02)) == 0


def test_clip_norm_bounds_the_gradient_before_all_else():
    """Of the whole tree, and of the gradient alone: weight decay is added after."""
    norms = [math.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g))) for g in GRADS]
    bound = sorted(norms)[6]  # some gradients are above, some below
    scales = [min(1.0, bound / norm) for norm in norms]
    assert min(scales) < 1 == max(scales)
    expected = []
    for leaf, value in enumerate(LEAVES):
        value, velocity = np.array(value), 0.0
        for grads, scale in zip(GRADS, scales, strict=True):
            velocity = 0.9 * velocity + scale * jax.tree.leaves(grads)[leaf] + 0.3 * value
            value = value - 0.02 * velocity
        expected.append(value)
    options = dict(name="sgd", lr=0.02, schedule="constant", weight_decay=0.3)
    assert_trees_close(run(clip_norm=bound, **options), jax.tree.unflatten(STRUCTURE, expected))
    assert differs(run(clip_norm=1e9, **options), run(**options)) == 0


def test_apply_keeps_dtypes_and_arguments():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 2), jnp.float32)}
    updates = {"a": jnp.full(3, 2.0, jnp.float32), "b": jnp.ones((2, 2), jnp.bfloat16)}
    before = jax.tree.map(np.asarray, params)
    out = optim.apply(params, updates, jnp.float32(0.25))
    assert jax.tree.map(lambda x: x.dtype, out) == {"a": jnp.bfloat16, "b": jnp.float32}
    assert out["a"].tolist() == [0.5] * 3 and out["b"].tolist() == [[0.75] * 2] * 2
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_path_names():
    paths = jax.tree_util.tree_leaves_with_path({"a": {"b": 1}, "c": [2, 3]})
    assert [optim.path_name(path) for path, _ in paths] == ["a/b", "c/0", "c/1"]


@each(
    "options, message",
    [
        (dict(name="lion"), r"optim.name is 'lion', expected one of \['adam', 'sgd'\]"),
        (dict(schedule="step"), r"optim.schedule is 'step'.*'multistep', 'cosine', 'constant'"),
        (dict(decay="l2"), r"optim.decay is 'l2'.*'coupled', 'decoupled'"),
        (dict(milestones=(70.0, 40.0)), r"optim.milestones \(70.0, 40.0\) must ascend"),
        (dict(lr=-1e-3), r"optim.lr is -0.001, expected a number from 0 to 1,000"),
        (dict(weight_decay=-5e-4), r"optim.weight_decay is -0.0005"),
        (dict(warmup_epochs=-1.0), r"optim.warmup_epochs is -1.0"),
        (dict(clip_norm=-1.0), r"optim.clip_norm is -1.0"),  # would turn the gradient around
        (dict(restart_epoch=-2.0), r"optim.restart_epoch is -2.0"),
        (dict(gamma=-0.1), r"optim.gamma is -0.1"),
        (dict(momentum=-0.9), r"optim.momentum is -0.9"),
        (dict(warmup_factor=-0.1), r"optim.warmup_factor is -0.1"),
        (dict(lr=float("nan")), r"optim.lr is nan"),
        (dict(no_decay=".*/bias"), r"optim.no_decay is '.\*/bias', expected a tuple, each text"),
        (dict(no_decay=("bias", "(")), r"optim.no_decay: '\(' is not a regular expression"),
        (dict(no_decay=(3,)), r"optim.no_decay is \(3,\), expected a tuple, each text"),
        (
            dict(multipliers=("backbone", 0.1)),
            r"optim.multipliers is \('backbone', 0.1\), expected a tuple, each",
        ),
        (dict(multipliers=(("backbone",),)), r"each \(text, a number\)"),
        (
            dict(multipliers=(("backbone", -0.1),)),
            r"'backbone', -0.1\),\), expected numbers from 0",
        ),
        (dict(multipliers=(("(", 0.1),)), r"optim.multipliers: '\(' is not a regular expression"),
        (dict(warmup_by="epochs"), r"optim.warmup_by is 'epochs', expected one of \['step', 'epo"),
        (dict(warmup_by="epoch", warmup_epochs=1.5), "optim.warmup_epochs is 1.5 with warmup_by"),
        (dict(warmup_by="epoch", warmup_epochs=1.0), "optim.warmup_epochs is 1.0 with warmup_by"),
        (dict(nesterov=True), "optim.nesterov with adam and momentum 0.9, expected sgd"),
        (dict(nesterov=True, name="sgd", momentum=0.0), "optim.nesterov with sgd and momentum 0.0"),
        (dict(epochs=-1), "epochs is -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        optim.make(**dict(steps_per_epoch=2, epochs=3) | options)


# Schedules -----------------------------------------------------------------------------------

PER_EPOCH = 5
EPOCHS = 8.0
STEPS = 50  # beyond the end of training, which is step 40


def schedule_loop(
    schedule,
    *,
    lr,
    milestones=(),
    gamma=0.1,
    warmup_epochs=0.0,
    warmup_factor=0.1,
    restart_epoch=None,
):
    """The learning rate of every step, in Python numbers."""

    def decay(step, length):
        factor = 1.0
        if schedule == "multistep":
            for milestone in milestones:
                if step >= milestone * PER_EPOCH:
                    factor *= gamma
        if schedule == "cosine":
            factor = (1 + math.cos(math.pi * min(step / length, 1.0))) / 2
        return factor

    rates, total = [], EPOCHS * PER_EPOCH
    for step in range(STEPS):
        factor = decay(step, total)
        if warmup_epochs and step < warmup_epochs * PER_EPOCH:
            part = step / (warmup_epochs * PER_EPOCH)
            factor *= warmup_factor * (1 - part) + part
        if restart_epoch is not None and step >= restart_epoch * PER_EPOCH:
            factor = decay(step - restart_epoch * PER_EPOCH, total - restart_epoch * PER_EPOCH)
        rates.append(lr * factor)
    return rates


SCHEDULES = {
    "constant": dict(schedule="constant"),
    "multistep": dict(schedule="multistep", milestones=(2.0, 3.0, 6.2)),
    "multistep without milestones": dict(schedule="multistep"),
    "multistep at one epoch twice": dict(schedule="multistep", milestones=(2.0, 2.0)),
    "another gamma": dict(schedule="multistep", milestones=(1.0, 4.0), gamma=0.5),
    "cosine": dict(schedule="cosine"),
    "warm-up": dict(schedule="constant", warmup_epochs=2.0),
    "warm-up from nothing": dict(schedule="cosine", warmup_epochs=1.4, warmup_factor=0.0),
    "warm-up across a milestone": dict(schedule="multistep", milestones=(1.0,), warmup_epochs=3.0),
    "restart": dict(schedule="multistep", milestones=(1.0, 2.0), restart_epoch=4.0),
    "restart of a cosine": dict(schedule="cosine", restart_epoch=5.0),
    "restart at the start": dict(schedule="constant", warmup_epochs=2.0, restart_epoch=0.0),
    "restart after warm-up": dict(
        schedule="multistep", milestones=(1.6,), warmup_epochs=1.0, restart_epoch=5.0
    ),
}


@each("name", SCHEDULES)
def test_schedules_are_the_plain_loop(name):
    options = SCHEDULES[name]
    _, learning_rate = optim.make(steps_per_epoch=PER_EPOCH, epochs=EPOCHS, lr=0.3, **options)
    expected = schedule_loop(lr=0.3, **options)
    traced = jax.vmap(learning_rate)(jnp.arange(STEPS))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(learning_rate(7), expected[7], rtol=2e-6)  # a Python number


def test_the_learning_rate_has_its_landmarks():
    """Numbers that need no loop: 3.5e-4, a tenth of it at 40 and 70 epochs."""
    _, rate = optim.make(steps_per_epoch=10, epochs=300, lr=3.5e-4, milestones=(40.0, 70.0))
    steps = jnp.array([0, 399, 400, 699, 700, 2999])
    values = jax.vmap(rate)(steps)
    np.testing.assert_allclose(values / 3.5e-4, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    _, rate = optim.make(steps_per_epoch=10, epochs=4, lr=1.0, schedule="cosine", warmup_epochs=1)
    np.testing.assert_allclose([rate(0), rate(20), rate(40)], [0.1, 0.5, 0.0], atol=1e-7)


def test_the_warm_up_of_mun_has_its_landmarks():
    """MUN, section 4.1: 1e-8 to 2e-3 over the first 15 epochs, a tenth at 30 and at 60 of 90."""
    per_epoch = 696  # SYSU-MM01 with 8 identities and 4 images of each
    _, rate = optim.make(
        steps_per_epoch=per_epoch,
        epochs=90,
        lr=2e-3,
        warmup_epochs=15,
        warmup_factor=5e-6,
        schedule="multistep",
        milestones=(30, 60),
    )
    epochs = np.array([0, 7.5, 15, 22, 30, 45, 60, 90])
    expected = [1e-8, (2e-3 + 1e-8) / 2, 2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5]
    steps = jnp.array(epochs * per_epoch, jnp.int32)
    np.testing.assert_allclose(jax.vmap(rate)(steps), expected, rtol=1e-6)
    # The step before a milestone still has the rate from before, the last of warm-up not yet all.
    before = [2e-3 * (1 - (1 - 5e-6) / (15 * per_epoch)), 2e-3, 2e-4]
    steps = jnp.array([15, 30, 60]) * per_epoch - 1
    np.testing.assert_allclose(jax.vmap(rate)(steps), before, rtol=1e-6)
    ramp = np.diff(jax.vmap(rate)(jnp.arange(15 * per_epoch)))
    np.testing.assert_allclose(ramp, (2e-3 - 1e-8) / (15 * per_epoch), rtol=2e-3)  # float32


def test_a_staircase_of_epochs():
    """AGW's: lr (e + 1) / 10 in epoch e of ten, then lr; constant within an epoch."""
    _, rate = optim.make(
        **dict(steps_per_epoch=7, epochs=20, lr=0.1, schedule="multistep", milestones=(12.0, 12.0)),
        warmup_epochs=10.0,
        warmup_factor=0.1,
        warmup_by="epoch",
    )
    for step in range(7 * 15):
        epoch = step // 7
        expected = 0.1 * min((epoch + 1) / 10, 1) * (0.01 if epoch >= 12 else 1)  # given twice
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6), step
    optim.make(steps_per_epoch=10, epochs=4, warmup_by="epoch", warmup_epochs=0.0)  # none


def test_nesterov_is_torchs():
    """Two steps by hand: v = mu v + g, then the update g + mu v (torch.optim.SGD)."""
    transform, _ = optim.make(steps_per_epoch=1, epochs=1, name="sgd", nesterov=True)
    params = {"w": jnp.zeros(3)}
    state, velocity = transform.init(params), np.zeros(3)
    for gradient in (np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -4.0])):
        updates, state = transform.update({"w": jnp.asarray(gradient)}, state, params)
        velocity = 0.9 * velocity + gradient
        np.testing.assert_allclose(updates["w"], gradient + 0.9 * velocity, rtol=1e-6)
