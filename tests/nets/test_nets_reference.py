"""Networks and layers against PyTorch: outputs, gradients, running statistics.

Networks are compared in float64: in float32 the gradients of either framework differ from
float64 by a percent, whichever is right.
"""

import jax
import pytest

from tests.support.parity import (
    first_fast,
    image_names,
    loss_outputs,
    module_outputs,
    reference,
    sources,
)
from tests.support.reference import store
from tests.support.reference.inputs import CASES, cases
from tests.support.rows import each
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gap, gem
from vireid_jax.nets.resnet import ResNet

KEY = jax.random.key(0)
DTYPES = pytest.mark.parametrize(
    "dtype, rtol", [pytest.param("float32", 2e-5, marks=pytest.mark.slow), ("float64", 1e-11)]
)


def _without(options, *names):
    return {k: v for k, v in options.items() if k not in names}


def _batch_norm(name, dtype):
    options = CASES[name].options
    train = options.get("train", True)
    norm = BatchNorm(**_without(options, "train"))

    def apply(variables, x):
        y, updated = norm.apply(variables, x, train=train, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    return module_outputs(name, lambda x: norm.init(KEY, x, train=True), apply, "x", dtype)


@sources
@DTYPES
@each("name", cases("batch_norm"))
def test_batch_norm(name, dtype, rtol, source):
    store.compare(_batch_norm(name, dtype), reference(name, source), rtol=rtol)


@sources
@DTYPES
def test_pooling(dtype, rtol, source):
    for name, pool in (("gap", gap), ("gem_fixed", gem)):
        store.compare(loss_outputs(name, pool, "maps", dtype), reference(name, source), rtol=rtol)


def _resnet(name, dtype):
    options = CASES[name].options
    train, stems = options.get("train", True), options.get("stems")
    net = ResNet(**_without(options, "train", "stems"))

    def init(*images):
        return net.init(KEY, images, stems=stems, train=True)

    def apply(variables, *images):
        y, updated = net.apply(variables, images, stems=stems, train=train, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    return module_outputs(name, init, apply, image_names(name), dtype)


@sources
@pytest.mark.parametrize("name", first_fast(cases("resnet")))
def test_resnet(name, source, resnet_outputs):
    store.compare(resnet_outputs(name), reference(name, source), rtol=1e-10)


@pytest.fixture(scope="module")
def resnet_outputs():
    """Outputs by case; each is computed once for both sources."""
    known = {}

    def outputs(name):
        if name not in known:
            known[name] = _resnet(name, "float64")
        return known[name]

    return outputs
