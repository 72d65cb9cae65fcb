"""Networks and layers against PyTorch: outputs, gradients, running statistics.

Networks are compared in float64: in float32 the gradients of either framework differ from
float64 by a percent, whichever is right.
"""

import functools

import jax
import pytest

from tests.support.parity import (
    first_fast,
    image_names,
    loss_outputs,
    module_outputs,
    reference,
    source_and_dtypes,
    sources,
)
from tests.support.reference import store
from tests.support.reference.inputs import CASES, cases
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gap, gem
from vireid_jax.nets.resnet import ResNet

POOLS = {"gap": gap, "gem_fixed": gem}


@functools.cache
def outputs(name, dtype):
    """Once for both sources."""
    if name in POOLS:
        return loss_outputs(name, POOLS[name], "maps", dtype)
    options = dict(CASES[name].options)
    call = {"train": options.pop("train", True)}
    if CASES[name].kind == "batch_norm":
        make, inputs, taken = BatchNorm, "x", lambda x: x
    else:
        make, inputs, taken = ResNet, image_names(name), lambda *images: images
        call["stems"] = options.pop("stems", None)
    net = make(**options)

    def apply(variables, *x):
        y, updated = net.apply(variables, taken(*x), **call, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    def init(*x):
        return net.init(jax.random.key(0), taken(*x), **{**call, "train": True})

    return module_outputs(name, init, apply, inputs, dtype)


@source_and_dtypes
def test_layers(source, dtypes):
    for name in (*POOLS, *cases("batch_norm")):
        for dtype in dtypes:
            rtol = {"float32": 2e-5, "float64": 1e-11}[dtype]
            found, row = outputs(name, dtype), f"{name}, {dtype}"
            store.compare(found, reference(name, source), rtol=rtol, row=row)


@sources
@pytest.mark.parametrize("name", first_fast(cases("resnet")))
def test_resnet(name, source):
    store.compare(outputs(name, "float64"), reference(name, source), rtol=1e-10)
