"""Attention, feature generation, prototypes, SimAM and phase-only images against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import image_names, module_outputs, reference, sources
from tests.support.reference import store
from tests.support.reference.inputs import CASES, cases
from vireid_jax.nets import attention
from vireid_jax.nets.expansion import Expansion
from vireid_jax.nets.prototypes import Prototypes
from vireid_jax.nets.shallow import phase_only, simam

KEY = jax.random.key(0)
DTYPES = pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-11)])
BLOCKS = {
    "nonlocal": attention.NonLocal,
    "cnl": attention.ChannelAttention,
    "pnl": attention.PositionAttention,
    "mfa": attention.Aggregation,
}


@functools.cache
def _block(name, dtype):
    """Once for both sources."""
    net, train = BLOCKS[CASES[name].kind](), CASES[name].options.get("train", True)

    def apply(variables, *maps):
        y, updated = net.apply(variables, *maps, train=train, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    names = image_names(name)
    return module_outputs(name, lambda *x: net.init(KEY, *x, train=True), apply, names, dtype)


def _without_shifts(arrays):
    return {k: v for k, v in arrays.items() if not k.endswith("w/bias")}


@sources
@DTYPES
@pytest.mark.parametrize("name", cases(*BLOCKS))
def test_attention(name, dtype, rtol, source):
    actual, expected = _block(name, dtype), reference(name, source)
    if CASES[name].options.get("train", True):
        # A shift in front of a batch normalization: its gradient is what rounding leaves.
        shifts = [v for k, v in actual.items() if k.endswith("w/bias")]
        assert shifts and all(np.abs(v).max() < 100 * rtol for v in shifts)
        actual, expected = _without_shifts(actual), _without_shifts(expected)
    store.compare(actual, expected, rtol=rtol)


@functools.cache
def _expansion(name, dtype, form="auto"):
    net = Expansion(**CASES[name].options, form=form)

    def apply(variables, maps):
        y = net.apply(variables, maps)
        return y.reshape(-1, *y.shape[2:]), {}

    return module_outputs(name, lambda x: net.init(KEY, x), apply, "maps", dtype)


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("expansion"))
def test_expansion(name, dtype, rtol, source):
    store.compare(_expansion(name, dtype), reference(name, source), rtol=rtol)


@pytest.mark.parametrize("form", ["dense", "convolution"])
@pytest.mark.parametrize("name", ["expansion_cbam", "expansion_wide"])
def test_expansion_in_both_forms(name, form):
    """A kernel larger than the map and one smaller than it, each by both ways to compute it."""
    actual = _expansion(name, "float64", form)
    store.compare(actual, reference(name, "golden"), rtol=1e-11)


@functools.cache
def _prototypes(name, dtype):
    net = Prototypes(**CASES[name].options)

    def apply(variables, maps):
        return jnp.concatenate(net.apply(variables, maps), -1), {}

    return module_outputs(name, lambda x: net.init(KEY, x), apply, "maps", dtype)


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("plm"))
def test_prototypes(name, dtype, rtol, source):
    store.compare(_prototypes(name, dtype), reference(name, source), rtol=rtol)


@functools.cache
def _plain(name, dtype):
    function = {"simam": simam, "phase_only": phase_only}[CASES[name].kind]
    return module_outputs(name, lambda x: {}, lambda _, x: (function(x), {}), "maps", dtype)


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("simam", "phase_only"))
def test_without_parameters(name, dtype, rtol, source):
    store.compare(_plain(name, dtype), reference(name, source), rtol=rtol)
