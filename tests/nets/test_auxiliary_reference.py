"""Auxiliary modalities against PyTorch: outputs, gradients, running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.parity import image_names, module_outputs, reference, sources
from tests.support.reference import store
from tests.support.reference.inputs import CASES, cases
from vireid_jax.nets.auxiliary import Gray, Mixed, ModalityUnifying, X
from vireid_jax.nets.auxiliary.unifying import CrossModality, IntraModality

KEY = jax.random.key(0)
DTYPES = pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
KERNELS = pytest.mark.parametrize(
    "kernels, dtype, rtol",
    [("cpu", "float32", 1e-5), ("cpu", "float64", 1e-12), ("xla", "float64", 1e-12)],
)


@functools.cache
def _outputs(name, module, dtype, **options):
    """`module_outputs` of a case, once for both sources; `options` go to the module beside."""
    options = {**CASES[name].options, **options}
    train = (options.pop("train", True),) if module in LEARNERS else ()
    net = module(**options)

    def init(*arrays):
        return net.init(KEY, *arrays, *train)

    def apply(variables, *arrays):
        y, updated = net.apply(variables, *arrays, *train, mutable=["batch_stats"])
        return y, updated.get("batch_stats", {})

    return module_outputs(name, init, apply, image_names(name), dtype)


class _Joined(ModalityUnifying):
    """The three maps of the generator, joined along channels."""

    def __call__(self, visible, infrared):
        return jnp.concatenate(super().__call__(visible, infrared, train=True), -1)


LEARNERS = (IntraModality, CrossModality)
PARTS = ("", "intra_visible/", "intra_infrared/")


def _without(arrays, *endings):
    return {k: v for k, v in arrays.items() if not k.endswith(endings)}


def _compare(name, actual, expected, rtol):
    """In training eq. 5 subtracts the mean: a bias before it has no gradient but rounding."""
    no_gradient = tuple(f"grad/params/{part}depthwise3/bias" for part in PARTS)
    if CASES[name].options.get("train", True):
        scale = max(np.abs(v).max() for k, v in actual.items() if k.startswith("grad/params"))
        for k, v in [*actual.items(), *expected.items()]:
            assert not k.endswith(no_gradient) or np.abs(v).max() <= rtol * scale, k
        actual, expected = _without(actual, *no_gradient), _without(expected, *no_gradient)
    store.compare(actual, expected, rtol=rtol)


def _compare_of_visible(actual, expected, rtol):
    """For what does not look at infrared images: PyTorch gives them no gradient, JAX zeros."""
    assert not actual["grad/infrared"].any()
    store.compare(_without(actual, "grad/infrared"), expected, rtol=rtol)


@sources
@KERNELS
@pytest.mark.parametrize("name", cases("aux_x"))
def test_x_modality(name, kernels, dtype, rtol, source):
    actual = _outputs(name, X, dtype, kernels=kernels)
    _compare_of_visible(actual, reference(name, source), rtol)


@sources
@DTYPES
def test_gray(dtype, rtol, source):
    _compare_of_visible(_outputs("aux_gray", Gray, dtype), reference("aux_gray", source), rtol)


@sources
@DTYPES
def test_mixed(dtype, rtol, source):
    actual = _outputs("aux_mixed", Mixed, dtype)
    store.compare(actual, reference("aux_mixed", source), rtol=rtol)


@sources
@KERNELS
@pytest.mark.parametrize("name", cases("aux_intra"))
def test_intra_modality_learner(name, kernels, dtype, rtol, source):
    actual = _outputs(name, IntraModality, dtype, kernels=kernels)
    _compare(name, actual, reference(name, source), rtol)


@sources
@pytest.mark.parametrize(
    "form, dtype, rtol",
    [("folded", "float32", 1e-5), ("folded", "float64", 1e-12), ("direct", "float64", 1e-12)],
)
@pytest.mark.parametrize("name", cases("aux_cross"))
def test_cross_modality_learner(name, form, dtype, rtol, source):
    actual = _outputs(name, CrossModality, dtype, form=form)
    store.compare(actual, reference(name, source), rtol=rtol)


@sources
@DTYPES
@pytest.mark.parametrize("name", cases("aux_generator"))
def test_generator(name, dtype, rtol, source):
    actual = _outputs(name, _Joined, dtype, kernels="cpu")
    _compare(name, actual, reference(name, source), rtol)
