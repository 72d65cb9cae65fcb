"""The classifiers of the modality: layers by NumPy, sizes, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference.convert import flatten
from vireid_jax.methods.idkl.modality import ModalityClassifier

WIDTH = 6
X = np.random.default_rng(5).normal(size=(40, WIDTH)).astype(np.float32)
NET = ModalityClassifier(widths=(7, 5))
VARIABLES = NET.init(jax.random.key(0), jnp.asarray(X), train=False)


@jax.jit
def train(key):
    return NET.apply(
        VARIABLES, jnp.asarray(X), train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )


def layers(x, moments=None):
    """The network in float64; moments None: those of the batch."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), VARIABLES["params"])
    for i in (1, 2):
        x = x @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"]["bias"]
        mean, var = moments or (x.mean(0), x.var(0))
        x = (x - mean) / np.sqrt(var + 1e-5)
        x = np.maximum(x * params[f"bn{i}"]["scale"] + params[f"bn{i}"]["bias"], 0)
    return x @ params["fc3"]["kernel"] + params["fc3"]["bias"]


def test_at_test_time_by_hand():
    logits = NET.apply(VARIABLES, X, train=False)
    assert logits.shape == (40, 2) and np.abs(logits).max() > 0.1
    np.testing.assert_allclose(logits, layers(X, (0.0, 1.0)), rtol=1e-4, atol=1e-5)


def test_in_training_without_dropout_by_hand():
    """Batch statistics; no random numbers are asked for."""
    net = NET.clone(dropout=0.0)
    logits, updates = net.apply(VARIABLES, X, train=True, mutable=["batch_stats"])
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


@pytest.mark.parametrize("leaf, inputs", [("fc1", WIDTH), ("fc2", 7), ("fc3", 5)])
def test_kernels_and_biases_start_as_in_pytorch(leaf, inputs):
    """Uniform up to 1 / sqrt(inputs), biases too."""
    for x in VARIABLES["params"][leaf].values():
        assert 0 < np.abs(x).max() <= inputs**-0.5
    big = ModalityClassifier().init(jax.random.key(1), jnp.zeros((1, 400)), train=False)["params"]
    for x in big["fc1"].values():
        assert np.abs(x).max() == pytest.approx(0.05, rel=0.1)
        assert np.std(x) == pytest.approx(0.05 / np.sqrt(3), rel=0.2)


# --- Dropout ----------------------------------------------------------------------------


def test_dropout_is_in_training_alone_and_from_its_own_stream():
    with pytest.raises(Exception, match="dropout"):  # a stream of that name is missing
        NET.apply(VARIABLES, X, train=True, mutable=["batch_stats"])
    with pytest.raises(Exception, match="dropout"):
        NET.apply(
            VARIABLES, X, train=True, mutable=["batch_stats"], rngs={"noise": jax.random.key(0)}
        )
    first, _ = train(jax.random.key(0))
    again, _ = train(jax.random.key(0))
    other, _ = train(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first - layers(X)).max() > 0.01


def test_the_first_statistics_do_not_depend_on_dropout_and_the_second_do():
    """It comes after normalization and ReLU of each hidden layer."""
    (_, one), (_, two) = (train(jax.random.key(n)) for n in (0, 1))
    one, two = (x["batch_stats"] for x in (one, two))
    np.testing.assert_array_equal(one["bn1"]["mean"], two["bn1"]["mean"])
    assert np.abs(one["bn2"]["mean"] - two["bn2"]["mean"]).max() > 1e-4


def test_dropout_keeps_the_mean_of_the_logits():
    """Kept units are doubled: linear in the last layer, so the average is what it drops from."""
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


def test_half_precision_and_one_row_at_test_time():
    logits = NET.apply(VARIABLES, jnp.asarray(X[:1]), train=False)
    np.testing.assert_allclose(logits, layers(X[:1], (0.0, 1.0)), rtol=1e-4, atol=1e-5)
    logits = NET.apply(VARIABLES, jnp.asarray(X, jnp.bfloat16), train=False)
    np.testing.assert_allclose(logits, layers(X, (0.0, 1.0)), atol=0.03)
