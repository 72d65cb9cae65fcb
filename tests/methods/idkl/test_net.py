"""The parts of IDKL's network: equations 7 to 12 by NumPy, modality heads, gradient reversal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference.convert import flatten
from vireid_jax.methods.idkl.losses import reducing_loss
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
every_mask = pytest.mark.parametrize("mask", MASKS)


def started(net, seed=0):
    """Variables with an affine part that does something, and masks far from constant."""
    params = dict(net.init(jax.random.key(seed), jnp.asarray(MAPS))["params"])
    r = np.random.default_rng(seed)
    scale, bias = r.uniform(0.5, 1.5, WIDTH), r.normal(size=WIDTH)
    params["norm"] = {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}
    return {"params": {k: jax.tree.map(lambda x: 3 * x, v) for k, v in params.items()}}


VARIABLES = {mask: started(net) for mask, net in NETS.items()}
OUTPUT = {mask: jax.jit(net.apply)(VARIABLES[mask], MAPS) for mask, net in NETS.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mask_of(x, kernels, form):
    if form == "channel":
        x = (np.maximum(x, 1e-6) ** 3).mean((1, 2), keepdims=True) ** (1 / 3)
    return sigmoid(np.maximum(x @ kernels["down"]["kernel"], 0) @ kernels["up"]["kernel"])


# --- The purifier -----------------------------------------------------------------------


@every_mask
def test_the_equations_by_numpy(mask):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), VARIABLES[mask]["params"])
    x = MAPS.astype(np.float64)
    normalized = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(
        x.var((1, 2), keepdims=True) + 1e-5
    )  # eq. 7
    normalized = normalized * params["norm"]["scale"] + params["norm"]["bias"]
    m_e = mask_of(x, params["mask_e"], mask)  # eq. 8
    m_r = mask_of(normalized, params["mask_r"], mask)
    enhanced, reduced = m_e * x, m_r * normalized  # eq. 9
    purified = m_e * reduced + m_r * enhanced  # eq. 12
    expected = dict(normalized=normalized, enhanced=enhanced, reduced=reduced, purified=purified)
    for name, y in OUTPUT[mask]._asdict().items():
        assert y.shape == MAPS.shape and y.dtype == np.float32
        np.testing.assert_allclose(y, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    both = m_e * m_r * (x + normalized)
    np.testing.assert_allclose(OUTPUT[mask].purified, both, rtol=1e-4, atol=1e-4)
    # Masks lie between 0 and 1, and differ by image.
    found = np.asarray(Mask(mask).apply({"params": VARIABLES[mask]["params"]["mask_e"]}, MAPS))
    assert found.shape == ((3, 1, 1, WIDTH) if mask == "channel" else MAPS.shape)
    np.testing.assert_allclose(found, m_e, rtol=1e-4)
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
    def gradient(x):
        return jax.grad(lambda x: sum((y**2).sum() for y in net.apply(variables, x)))(x)

    for x in (np.zeros_like(MAPS), np.ones_like(MAPS), MAPS[:, :1, :1]):
        assert all(np.isfinite(y).all() for y in net.apply(variables, x))
        assert np.isfinite(gradient(jnp.asarray(x))).all()


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


@every_mask
def test_images_do_not_see_each_other(mask):
    alone = jax.jit(NETS[mask].apply)(VARIABLES[mask], MAPS[[2, 0]])
    for name, y in alone._asdict().items():
        np.testing.assert_allclose(y, getattr(OUTPUT[mask], name)[jnp.array([2, 0])], atol=1e-4)


def test_an_unknown_mask_is_refused():
    with pytest.raises(ValueError, match=r"mask is 'pixel', expected one of \('channel', 'map'\)"):
        Purifier("pixel").init(jax.random.key(0), MAPS)


def test_the_code_s_reducing_loss_ignores_a_mask_that_is_the_same_for_all_images():
    """Such a mask shrinks every distance: [.]_+ is 0 with no gradient, softplus says shrink."""
    net = InstanceNorm()
    maps = np.concatenate([MAPS, MAPS[:1]]).repeat(2, 0)
    normalized = net.apply(net.init(jax.random.key(0), maps), maps)
    mask = jax.nn.sigmoid(jnp.linspace(-2, 2, WIDTH)).reshape(1, 1, 1, WIDTH)
    x = normalized + jnp.float32(0.5 * np.random.default_rng(0).normal(size=maps.shape))
    labels = jnp.asarray([5, 5, 2, 2])

    def loss(mask, x, form):
        reduced, plain = (gem_above(y).reshape(4, 2, WIDTH) for y in (mask * x, x))
        return reducing_loss(reduced, plain, labels, form=form)

    both = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    value, gradients = both(mask, x, "relu")
    assert value == 0 and not any(np.any(g) for g in gradients)
    value, (of_mask, _) = both(mask, x, "softplus")
    assert value > 0 and np.all(np.asarray(of_mask) > 0)


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
    image = jax.ShapeDtypeStruct((4, 2048), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: ModalityClassifier().init(jax.random.key(0), x, train=False), image
    )
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 215_602
    kernels = {k: v.shape for k, v in flatten(shapes["params"]).items() if k.endswith("kernel")}
    assert kernels == {"fc1/kernel": (2048, 100), "fc2/kernel": (100, 100), "fc3/kernel": (100, 2)}


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
    with pytest.raises(Exception, match="dropout"):  # a stream of that name is missing
        HEAD.apply(HEAD_VARIABLES, X, train=True, mutable=["batch_stats"])
    with pytest.raises(Exception, match="dropout"):
        HEAD.apply(
            HEAD_VARIABLES,
            X,
            train=True,
            mutable=["batch_stats"],
            rngs={"noise": jax.random.key(0)},
        )
    (first, one), (again, _) = (train(jax.random.key(0)) for _ in range(2))
    other, two = train(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first - layers(X)).max() > 0.01
    # It comes after normalization and ReLU of each hidden layer.
    one, two = one["batch_stats"], two["batch_stats"]
    np.testing.assert_array_equal(one["bn1"]["mean"], two["bn1"]["mean"])
    assert np.abs(one["bn2"]["mean"] - two["bn2"]["mean"]).max() > 1e-4


def test_dropout_keeps_the_mean_of_the_logits():
    """Kept units are doubled: linear in the last layer, so the average is that of all units."""
    net = ModalityClassifier(widths=(7,))
    variables = net.init(jax.random.key(2), X, train=False)
    apply = jax.jit(
        jax.vmap(
            lambda key: net.apply(
                variables, X, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )[0]
        )
    )
    mean = apply(jax.random.split(jax.random.key(3), 2000)).mean(0)
    whole, _ = net.clone(dropout=0.0).apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(mean, whole, atol=0.1)
    assert np.std(whole) > 0.2


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


def test_layers_before_the_reversal_ascend_and_layers_after_it_descend():
    def loss(params):
        return (jnp.float32(2) * params["head"] * reverse_gradient(params["base"], 1.0)).sum()

    gradient = jax.grad(loss)({"head": jnp.float32(3), "base": jnp.float32(5)})
    assert gradient == {"head": 10, "base": -6}


def test_the_reversal_keeps_half_precision():
    x = jnp.asarray(X, jnp.bfloat16)
    value = reverse_gradient(x, 0.5)
    gradient = jax.grad(lambda x: reverse_gradient(x, jnp.float32(0.5)).sum())(x)
    assert value.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(np.float32), np.full(X.shape, -0.5))
