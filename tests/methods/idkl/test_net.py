"""The parts of IDKL's network: purifier, modality heads, gradient reversal."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference.convert import flatten
from tests.support.rows import each
from vireid_jax.methods.idkl.net import (
    MASKS,
    InstanceNorm,
    Mask,
    ModalityClassifier,
    Purifier,
    reverse_gradient,
)
from vireid_jax.nets.pooling import gap, gem_above

R = np.random.default_rng(6)
WIDTH = 32  # two hidden channels in a mask
MAPS = np.maximum(R.normal(size=(3, 4, 2, WIDTH)), 0) * R.uniform(0.5, 3, WIDTH) + 0.1
MAPS = MAPS.astype(np.float32)  # after a ReLU
NETS = {mask: Purifier(mask) for mask in MASKS}
every_mask = each("mask", MASKS)


def started(net, seed=0):
    """Variables with an affine part that does something, and masks far from constant."""
    params = dict(net.init(jax.random.key(seed), jnp.asarray(MAPS))["params"])
    r = np.random.default_rng(seed)
    scale, bias = r.uniform(0.5, 1.5, WIDTH), r.normal(size=WIDTH)
    params["norm"] = {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}
    return {"params": {k: jax.tree.map(lambda x: 3 * x, v) for k, v in params.items()}}


VARIABLES = {mask: started(net) for mask, net in NETS.items()}
OUTPUT = {mask: jax.jit(net.apply)(VARIABLES[mask], MAPS) for mask, net in NETS.items()}


# --- The purifier -----------------------------------------------------------------------


@every_mask
def test_masks_lie_between_0_and_1_and_differ_by_image(mask):
    found = np.asarray(Mask(mask).apply({"params": VARIABLES[mask]["params"]["mask_e"]}, MAPS))
    assert found.shape == ((3, 1, 1, WIDTH) if mask == "channel" else MAPS.shape)
    assert 0 < found.min() < 0.45 < 0.55 < found.max() < 1 and np.ptp(found, 0).max() > 0.01


def test_both_forms_have_the_same_parameters():
    trees = [flatten(VARIABLES[mask]["params"]) for mask in MASKS]
    shapes = {
        "norm/scale": (WIDTH,),
        "norm/bias": (WIDTH,),
        **{f"mask_{m}/down/kernel": (WIDTH, WIDTH // 16) for m in "er"},
        **{f"mask_{m}/up/kernel": (WIDTH // 16, WIDTH) for m in "er"},
    }
    assert [{k: v.shape for k, v in tree.items()} for tree in trees] == [shapes, shapes]
    other = NETS["map"].apply(VARIABLES["channel"], MAPS)
    assert np.abs(other.purified - OUTPUT["channel"].purified).max() > 0.01
    kernels = VARIABLES["map"]["params"]
    assert np.abs(kernels["mask_e"]["up"]["kernel"] - kernels["mask_r"]["up"]["kernel"]).max() > 0.1


def test_the_hidden_layer_has_a_sixteenth_of_the_channels():
    for width, hidden in ((2048, 128), (8, 1)):
        shape = jax.ShapeDtypeStruct((1, 2, 2, width), jnp.float32)
        params = jax.eval_shape(lambda x: Mask().init(jax.random.key(0), x), shape)["params"]
        assert params["down"]["kernel"].shape == (width, hidden)
        assert params["up"]["kernel"].shape == (hidden, width)


def test_the_average_of_a_normalized_map_says_nothing_of_the_image():
    """Why eq. 8 pools with GeM: the average is the shift of the norm for all images."""
    normalized, params = OUTPUT["channel"].normalized, VARIABLES["channel"]["params"]
    average = np.asarray(gap(normalized))
    np.testing.assert_allclose(average, np.tile(params["norm"]["bias"], (3, 1)), atol=1e-4)
    assert np.ptp(np.asarray(gem_above(normalized)), 0).min() > 1e-3
    mask = {"params": params["mask_r"]}
    of_average = np.asarray(Mask("map").apply(mask, average[:, None, None]))
    assert np.ptp(of_average, 0).max() < 1e-3
    assert np.ptp(np.asarray(Mask("channel").apply(mask, normalized)), 0).max() > 0.01
    np.testing.assert_allclose(Mask("map").apply(mask, jnp.zeros((1, 1, 1, WIDTH))), 0.5)


def test_instances_are_normalized_one_by_one():
    """The style of an image, a scale and shift of each channel, is gone."""
    net = InstanceNorm()
    fresh = net.init(jax.random.key(0), MAPS)
    y = np.asarray(net.apply(fresh, MAPS))
    np.testing.assert_allclose(y.mean((1, 2)), 0, atol=1e-5)
    var = MAPS.var((1, 2))
    np.testing.assert_allclose(y.var((1, 2)), var / (var + 1e-5), rtol=1e-4)
    scale, shift = R.uniform(2, 5, (3, 1, 1, WIDTH)), R.normal(size=(3, 1, 1, WIDTH))
    styled = net.apply(fresh, (scale * MAPS + shift).astype(np.float32))
    np.testing.assert_allclose(styled, y, atol=0.02)  # the epsilon beside other variances
    np.testing.assert_allclose(net.apply(fresh, MAPS[:1]), y[:1], atol=1e-6)


@every_mask
def test_maps_without_variance_are_finite(mask):
    """A dead channel, and maps of one place: the variance is 0."""
    net, variables = NETS[mask], VARIABLES[mask]

    @jax.jit
    def both(x):
        return jax.value_and_grad(lambda x: sum((y**2).sum() for y in net.apply(variables, x)))(x)

    for x in (np.zeros_like(MAPS), np.ones_like(MAPS), MAPS[:, :1, :1]):
        assert all(np.isfinite(y).all() for y in both(jnp.asarray(x)))


@pytest.mark.slow
@every_mask
def test_half_precision_maps_stay_near_with_float32_parameters(mask):
    net = NETS[mask].clone(dtype=jnp.bfloat16)
    kinds = {x.dtype for x in jax.tree.leaves(net.init(jax.random.key(0), MAPS))}
    assert kinds == {jnp.dtype("float32")}
    found = jax.jit(net.apply)(VARIABLES[mask], jnp.asarray(MAPS, jnp.bfloat16))
    for name, y in found._asdict().items():
        assert y.dtype == jnp.bfloat16
        exact = np.asarray(getattr(OUTPUT[mask], name))
        error = np.abs(y.astype(np.float32) - exact).max()
        assert error < 0.03 * np.abs(exact).max(), name


# --- Confuser and discriminator -----------------------------------------------------------

INPUTS = 6
X = np.random.default_rng(5).normal(size=(40, INPUTS)).astype(np.float32)
HEAD = ModalityClassifier(widths=(7, 5))
HEAD_VARIABLES = HEAD.init(jax.random.key(0), jnp.asarray(X), train=False)


@jax.jit
def train(key):
    return HEAD.apply(
        HEAD_VARIABLES, jnp.asarray(X), train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )


def layers(x, moments=None):
    """The head in float64; moments None: those of the batch."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), HEAD_VARIABLES["params"])
    for i in (1, 2):
        x = x @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"]["bias"]
        mean, var = moments or (x.mean(0), x.var(0))
        x = (x - mean) / np.sqrt(var + 1e-5)
        x = np.maximum(x * params[f"bn{i}"]["scale"] + params[f"bn{i}"]["bias"], 0)
    return x @ params["fc3"]["kernel"] + params["fc3"]["bias"]


def test_a_modality_head_by_hand():
    """At test time, of one row and in half precision too; and in training without dropout."""
    at_test = (0.0, 1.0)
    logits = HEAD.apply(HEAD_VARIABLES, X, train=False)
    assert logits.shape == (40, 2) and np.abs(logits).max() > 0.1
    np.testing.assert_allclose(logits, layers(X, at_test), rtol=1e-4, atol=1e-5)
    logits = HEAD.apply(HEAD_VARIABLES, jnp.asarray(X[:1]), train=False)
    np.testing.assert_allclose(logits, layers(X[:1], at_test), rtol=1e-4, atol=1e-5)
    logits = HEAD.apply(HEAD_VARIABLES, jnp.asarray(X, jnp.bfloat16), train=False)
    np.testing.assert_allclose(logits, layers(X, at_test), atol=0.03)
    net = HEAD.clone(dropout=0.0)  # asks for no random numbers
    logits, updates = net.apply(HEAD_VARIABLES, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, layers(X), rtol=1e-4, atol=1e-5)
    assert set(updates["batch_stats"]) == {"bn1", "bn2"}


def test_the_sizes_of_the_released_code():
    """2048 to 100 to 100 to 2: 215,602 numbers, all biases included."""
    x = jax.ShapeDtypeStruct((4, 2048), jnp.float32)
    init = partial(ModalityClassifier().init, jax.random.key(0), train=False)
    params = flatten(jax.eval_shape(init, x)["params"])
    assert sum(x.size for x in params.values()) == 215_602
    assert [params[f"fc{i}/kernel"].shape for i in (1, 2, 3)] == [(2048, 100), (100, 100), (100, 2)]


def test_kernels_and_biases_start_as_in_pytorch():
    """Uniform up to 1 / sqrt(inputs), biases too."""
    for leaf, inputs in (("fc1", INPUTS), ("fc2", 7), ("fc3", 5)):
        for x in HEAD_VARIABLES["params"][leaf].values():
            assert 0 < np.abs(x).max() <= inputs**-0.5, leaf
    big = ModalityClassifier().init(jax.random.key(1), jnp.zeros((1, 400)), train=False)["params"]
    for x in big["fc1"].values():
        assert np.abs(x).max() == pytest.approx(0.05, rel=0.1)
        assert np.std(x) == pytest.approx(0.05 / np.sqrt(3), rel=0.2)


def test_dropout_is_in_training_alone_and_from_its_own_stream():
    for rngs in ({}, {"noise": jax.random.key(0)}):  # a stream of that name is missing
        with pytest.raises(Exception, match="dropout"):
            HEAD.apply(HEAD_VARIABLES, X, train=True, mutable=["batch_stats"], rngs=rngs)
    (first, one), (again, _) = (train(jax.random.key(0)) for _ in range(2))
    other, two = train(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first - layers(X)).max() > 0.01
    # It comes after normalization and ReLU of each hidden layer.
    one, two = one["batch_stats"], two["batch_stats"]
    np.testing.assert_array_equal(one["bn1"]["mean"], two["bn1"]["mean"])
    assert np.abs(one["bn2"]["mean"] - two["bn2"]["mean"]).max() > 1e-4


# --- Gradient reversal ------------------------------------------------------------------

WEIGHT = jnp.asarray(np.random.default_rng(4).normal(size=X.shape), jnp.float32)


@jax.jit
def reversed_both(x, strength):
    """The value after the reversal, and gradients of a loss of it."""

    def loss(x, strength):
        return (WEIGHT * jnp.sin(reverse_gradient(x, strength))).sum()

    return reverse_gradient(x, strength), jax.grad(loss, (0, 1))(x, strength)


def test_the_value_is_the_same_and_the_gradient_minus_strength_times():
    for strength in (0.0, 0.25, 1.0, 3.0):
        value, (gradient, by_strength) = reversed_both(jnp.asarray(X), jnp.float32(strength))
        np.testing.assert_array_equal(value, X)
        expected = -strength * WEIGHT * jnp.cos(X)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7, err_msg=str(strength))
        assert by_strength == 0
    # A number that is no array.
    value, gradient = jax.value_and_grad(lambda x: (3 * reverse_gradient(x, 2)).sum())(X)
    np.testing.assert_allclose(value, 3 * X.sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradient, np.full(X.shape, -6.0))
    gradient = jax.grad(lambda x: reverse_gradient(reverse_gradient(x, 2.0), 3.0).sum())(X)
    np.testing.assert_array_equal(gradient, np.full(X.shape, 6.0))


def test_the_reversal_keeps_half_precision():
    x = jnp.asarray(X, jnp.bfloat16)
    value = reverse_gradient(x, 0.5)
    gradient = jax.grad(lambda x: reverse_gradient(x, jnp.float32(0.5)).sum())(x)
    assert value.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(np.float32), np.full(X.shape, -0.5))
