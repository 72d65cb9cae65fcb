"""Update rules against NumPy loops and torch.optim; schedules are in test_schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

    @jax.jit
    def update(params, state, grads, step):
        updates, state = transform.update(grads, state, params)
        return optim.apply(params, updates, learning_rate(step)), state

    for step, grads in enumerate(GRADS):
        params, state = update(params, state, jax.tree.map(dtype, grads), step)
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


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_coupled_adam_is_the_plain_loop(weight_decay):
    got = run(lr=0.02, milestones=(1.0, 2.0), weight_decay=weight_decay)
    assert_trees_close(got, adam_loop(PARAMS, rate=multistep, weight_decay=weight_decay))


def test_decoupled_adam_is_the_plain_loop():
    got = run(lr=0.02, milestones=(1.0, 2.0), weight_decay=0.3, decay="decoupled")
    expected = adam_loop(PARAMS, rate=multistep, weight_decay=0.3, decoupled=True)
    assert_trees_close(got, expected)
    assert differs(got, adam_loop(PARAMS, rate=multistep, weight_decay=0.3)) > 1e-2


@pytest.mark.parametrize(("weight_decay", "momentum"), [(0.0, 0.9), (0.3, 0.9), (0.3, 0.0)])
def test_sgd_is_the_plain_loop(weight_decay, momentum):
    options = dict(weight_decay=weight_decay, momentum=momentum)
    got = run(name="sgd", lr=0.02, milestones=(1.0, 2.0), **options)
    assert_trees_close(got, sgd_loop(PARAMS, rate=multistep, **options))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_torch_updates_alike(name):
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(leaf, dtype=torch.float64, requires_grad=True) for leaf in LEAVES]
    if name == "adam":
        optimizer = torch.optim.Adam(tensors, lr=0.02, weight_decay=0.3)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(tensors, lr=0.02, weight_decay=0.3)
    else:
        optimizer = torch.optim.SGD(tensors, lr=0.02, weight_decay=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 8], gamma=0.1)
    for grads in GRADS:
        for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
            tensor.grad = torch.tensor(grad)
        optimizer.step()
        schedule.step()
    expected = jax.tree.unflatten(STRUCTURE, [t.detach().numpy() for t in tensors])
    got = run(
        name="sgd" if name == "sgd" else "adam",
        decay="decoupled" if name == "adamw" else "coupled",
        lr=0.02,
        weight_decay=0.3,
        milestones=(1.0, 2.0),
    )
    assert_trees_close(got, expected)


# Multipliers, clipping, dtypes --------------------------------------------------------------


def sgd_by_path(factors):
    """SGD whose learning rate is multiplied for each leaf, in the order of the tree."""
    parts = [sgd_loop(PARAMS, rate=lambda s, f=f: 0.02 * f) for f in factors]
    leaves = [jax.tree.leaves(part)[n] for n, part in enumerate(parts)]
    return jax.tree.unflatten(STRUCTURE, leaves)


# Leaves in this order: backbone/bias, backbone/stem/kernel, classifier/kernel.
@pytest.mark.parametrize(
    ("multipliers", "factors"),
    [
        ([("backbone/.*", 0.1)], (0.1, 0.1, 1.0)),
        ([("backbone/stem/.*", 0.5), ("backbone", 0.1)], (0.1, 0.5, 1.0)),  # the first counts
        ([("backbone", 0.1), ("backbone/stem/.*", 0.5)], (0.1, 0.1, 1.0)),
        ([(".*/kernel", 3.0)], (1.0, 3.0, 3.0)),
        ([("classifier", 0.0), ("stem|backbone/bias", 2.0)], (2.0, 1.0, 0.0)),  # from the start
    ],
    ids=str,
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
@pytest.mark.parametrize(
    ("no_decay", "spared"),
    [
        ((), (False, False, False)),
        ((".*/bias",), (True, False, False)),
        (("backbone/stem",), (False, True, False)),
        (("backbone", "classifier/kernel"), (True, True, True)),
        (("(backbone|neck)/bias", "classifier"), (True, False, True)),
        (("stem|backbone/bias",), (True, False, False)),  # from the start
    ],
    ids=str,
)
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
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


@pytest.mark.torch
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_multipliers_and_no_decay_are_torch_parameter_groups(name):
    """In float64; the rates are powers of two, for a learning rate is float32."""
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(leaf, dtype=torch.float64, requires_grad=True) for leaf in LEAVES]
    lr = 2.0**-5
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
            multipliers=[("backbone/.*", 0.125)],
            no_decay=[".*/bias"],
        )
    for tensor, leaf in zip(tensors, jax.tree.leaves(got), strict=True):
        assert leaf.dtype == jnp.float64
        np.testing.assert_allclose(leaf, tensor.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("option", ["multipliers", "no_decay"])
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="lion"), r"optim.name is 'lion', expected one of \['adam', 'sgd'\]"),
        (dict(schedule="step"), r"optim.schedule is 'step'.*'multistep', 'cosine', 'constant'"),
        (dict(decay="l2"), r"optim.decay is 'l2'.*'coupled', 'decoupled'"),
        (dict(milestones=(70.0, 40.0)), r"optim.milestones \(70.0, 40.0\) must ascend"),
        (dict(lr=-1e-3), r"optim.lr is -0.001, expected 0 or more"),
        (dict(weight_decay=-5e-4), r"optim.weight_decay is -0.0005"),
        (dict(warmup_epochs=-1.0), r"optim.warmup_epochs is -1.0"),
        (dict(clip_norm=-1.0), r"optim.clip_norm is -1.0"),  # would turn the gradient around
        (dict(restart_epoch=-2.0), r"optim.restart_epoch is -2.0"),
        (dict(gamma=-0.1), r"optim.gamma is -0.1"),
        (dict(momentum=-0.9), r"optim.momentum is -0.9"),
        (dict(warmup_factor=-0.1), r"optim.warmup_factor is -0.1"),
        (dict(lr=float("nan")), r"optim.lr is nan"),
        (dict(no_decay=".*/bias"), r"optim.no_decay is the text '.\*/bias'.*\('.\*/bias',\)"),
        (dict(no_decay=("bias", "(")), r"optim.no_decay: '\(' is not a regular expression"),
        (dict(no_decay=(3,)), r"optim.no_decay: 3 is not a regular expression"),
        (dict(multipliers=("backbone", 0.1)), r"optim.multipliers holds 'backbone', expected"),
        (dict(multipliers=(("backbone",),)), r"optim.multipliers holds \('backbone',\)"),
        (dict(multipliers=(("backbone", -0.1),)), r"optim.multipliers: 'backbone' has -0.1"),
        (dict(multipliers=(("(", 0.1),)), r"optim.multipliers: '\(' is not a regular expression"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        optim.make(steps_per_epoch=2, epochs=3, **options)


def test_epochs_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"epochs is -1"):
        optim.make(steps_per_epoch=2, epochs=-1)
