"""IDKL's purifier, pooling, modality heads and gradient reversal against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import loss_outputs, module_outputs, reference, sources
from tests.support.reference import store
from tests.support.reference.inputs import CASES, case_inputs, cases
from vireid_jax.methods.idkl import purify
from vireid_jax.methods.idkl.modality import ModalityClassifier
from vireid_jax.methods.idkl.purifier import InstanceNorm, Mask, Purifier
from vireid_jax.methods.idkl.reversal import reverse_gradient
from vireid_jax.nets.pooling import gap, gem_above

KEY = jax.random.key(0)
DTYPES = pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])


@functools.cache
def _purifier(name, dtype):
    """The four maps joined along channels; once for both sources."""
    net = Purifier(**CASES[name].options)

    def apply(variables, maps):
        return jnp.concatenate(net.apply({"params": variables["params"]}, maps), -1), {}

    return module_outputs(name, lambda x: net.init(KEY, x), apply, "maps", dtype)


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("idkl_purifier"))
def test_purifier(name, dtype, rtol, source):
    store.compare(_purifier(name, dtype), reference(name, source), rtol=rtol)


@functools.cache
def _modality(name, dtype):
    net = ModalityClassifier(dropout=0)

    def apply(variables, x):
        y, updated = net.apply(variables, x, train=True, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    return module_outputs(name, lambda x: net.init(KEY, x, train=True), apply, "x", dtype)


# Shifts in front of a batch normalization: what rounding leaves of a gradient that is 0.
SHIFTS = tuple(f"params/fc{i}/bias" for i in (1, 2))


def _without_shifts(arrays):
    return {k: v for k, v in arrays.items() if not k.endswith(SHIFTS)}


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("idkl_modality"))
def test_modality_classifier(name, dtype, rtol, source):
    actual, expected = _modality(name, dtype), reference(name, source)
    assert all(np.abs(actual[f"grad/{k}"]).max() < 10 * rtol for k in SHIFTS)
    store.compare(_without_shifts(actual), _without_shifts(expected), rtol=rtol)


@functools.cache
def _gem(name, dtype):
    def apply(variables, maps):
        return gem_above(maps), {}

    return module_outputs(name, lambda maps: {}, apply, "maps", dtype)


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("idkl_gem"))
def test_generalized_mean(name, dtype, rtol, source):
    store.compare(_gem(name, dtype), reference(name, source), rtol=rtol)


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("idkl_reverse"))
def test_gradient_reversal(name, dtype, rtol, source):
    actual = loss_outputs(
        name, lambda x: reverse_gradient(x, CASES[name].options["strength"]), "x", dtype
    )
    store.compare(actual, reference(name, source), rtol=rtol)


# --- What follows from the equations -----------------------------------------------------

MAPS = jnp.asarray(case_inputs("idkl_purifier")["maps"])  # [4, 3, 2, 32]


@pytest.mark.parametrize("mask", ["channel", "map"])
def test_purified_maps_are_both_masks_times_map_and_normalized_map(mask):
    """F~ = m_e m_r (F + F^), which eqs. 9 and 12 come to."""
    net = Purifier(mask)
    out, variables = net.init_with_output(KEY, MAPS)
    m_e, m_r = (
        Mask(mask).apply({"params": variables["params"][name]}, x)
        for name, x in (("mask_e", MAPS), ("mask_r", out.normalized))
    )
    expected = m_e * m_r * (MAPS + out.normalized)
    np.testing.assert_allclose(out.purified, expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("affine", [True, False])
def test_a_mask_of_averages_of_normalized_maps_is_the_same_for_all_images(affine):
    """Instance normalization takes the average away; generalized means still differ."""
    norm, mask = InstanceNorm(affine), Mask("map")
    params = {"scale": jnp.linspace(0.5, 1.5, 32), "bias": jnp.linspace(-1, 1, 32)}
    normalized = norm.apply({"params": params if affine else {}}, MAPS)
    average = gap(normalized)
    np.testing.assert_allclose(
        average, np.tile(params["bias"] if affine else np.zeros(32), (4, 1)), atol=1e-5
    )
    variables = mask.init(KEY, MAPS)
    of_average = mask.apply(variables, average[:, None, None])
    np.testing.assert_allclose(of_average, np.tile(of_average[:1], (4, 1, 1, 1)), atol=1e-5)
    if not affine:
        np.testing.assert_allclose(of_average, 0.5, atol=1e-5)
    ours = Mask("channel").apply(variables, normalized)
    assert np.ptp(np.asarray(ours), axis=0).max() > 1e-3


def test_the_code_s_reducing_loss_ignores_a_mask_that_is_the_same_for_all_images():
    """Such a mask shrinks every distance: [.]_+ is 0 with no gradient, softplus says shrink."""
    normalized = InstanceNorm(affine=False).apply({}, MAPS.repeat(2, 0))
    mask = jax.nn.sigmoid(jnp.linspace(-2, 2, 32)).reshape(1, 1, 1, 32)
    labels = jnp.asarray([5, 5, 2, 2])

    def loss(mask, normalized, form):
        reduced, plain = (gem_above(x).reshape(4, 2, 32) for x in (mask * normalized, normalized))
        return purify.reducing_loss(reduced, plain, labels, form=form)

    noise = jnp.asarray(np.random.default_rng(0).normal(size=MAPS.repeat(2, 0).shape), "float32")
    x = normalized + 0.5 * noise
    both = jax.value_and_grad(loss, (0, 1))
    value, gradients = both(mask, x, "relu")
    assert value == 0 and not any(np.any(g) for g in gradients)
    value, (of_mask, _) = both(mask, x, "softplus")
    assert value > 0 and np.all(np.asarray(of_mask) > 0)
