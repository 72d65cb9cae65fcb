"""Our results and the reference's for one case: computed here, found live or stored.

`@sources` runs a test twice: against the outputs stored in tests/support/golden, always, and
in the slow tier against the PyTorch references themselves, where PyTorch is installed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.plain import plainly
from tests.support.reference import store
from tests.support.reference.case import Arrays, direction, fill
from tests.support.reference.convert import flatten, nest
from tests.support.reference.inputs import CASES, case_inputs, cases

sources = pytest.mark.parametrize(
    "source", ["golden", pytest.param("torch", marks=[pytest.mark.torch, pytest.mark.slow])]
)


# Fast: float64 against the stored outputs, the sharper comparison. Slow: as in use, and live.
source_and_dtypes = pytest.mark.parametrize(
    "source, dtypes",
    [
        ("golden", ("float64",)),
        pytest.param("golden", ("float32",), marks=pytest.mark.slow),
        pytest.param("torch", ("float32", "float64"), marks=[pytest.mark.torch, pytest.mark.slow]),
    ],
)


def first_fast(cases: list[Any]) -> list[Any]:
    """Cases of whole models for `parametrize`: the first in the fast tier, the others slow."""
    slow = (case if isinstance(case, tuple) else (case,) for case in cases[1:])
    return [cases[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


@functools.cache
def _live(name: str) -> Arrays:
    import torch

    from tests.support.reference import expected

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    return expected.compute(name)


def reference(name: str, source: str) -> Arrays:
    """What the PyTorch reference gives for a case (see `expected.compute`)."""
    if source == "golden":
        return store.load(name)
    pytest.importorskip("torch")
    return _live(name)


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """A context in which "float64" means it; jax otherwise truncates to float32.

    In float64 the order of a sum hardly matters, so programs are compiled without optimizations.
    """
    with jax.enable_x64(dtype == "float64"):
        with plainly() if dtype == "float64" else contextlib.nullcontext():
            yield


def to_jax(x: np.ndarray, dtype: str) -> jax.Array:
    return jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else None)


def to_numpy(tree: Mapping[str, Any]) -> Arrays:
    """A nest of arrays as {"a/b": array}."""
    return {k: np.asarray(v) for k, v in flatten(tree).items()}


def weights(init: Callable[[], Any], seed: str, dtype: str) -> Any:
    """Seeded weights in the tree that `init` describes (it is not run)."""
    shapes = {k: v.shape for k, v in flatten(jax.eval_shape(init)).items()}
    return nest({k: to_jax(v, dtype) for k, v in fill(shapes, seed).items()})


def loss_outputs(name: str, function: Callable[..., Any], arguments: str, dtype: str) -> Arrays:
    """Value of function(*inputs) and gradients of sum(direction * value), jitted.

    Args:
      name: of the case.
      function: takes the named inputs by position.
      arguments: names of inputs, by spaces; integer ones get no gradient.
      dtype: of inputs, "float32" or "float64".
    """
    return losses_outputs({name: (function, arguments)}, dtype)[name]


def losses_outputs(
    functions: Mapping[str, tuple[Callable[..., Any], str]], dtype: str
) -> dict[str, Arrays]:
    """`loss_outputs` of {case: (function, arguments)}, in one program: that compiles sooner."""

    def graded(name: str, x: list[jax.Array]) -> Any:
        function, arguments = functions[name]

        def objective(*args: Any) -> Any:
            value = function(*args)
            return (to_jax(direction(name, value.shape), dtype) * value).sum(), value

        which = [n for n, v in enumerate(x) if jnp.issubdtype(v.dtype, jnp.floating)]
        (_, value), gradients = jax.value_and_grad(objective, which, has_aux=True)(*x)
        names = [arguments.split()[n] for n in which]
        by_name = {f"grad/{k}": g for k, g in zip(names, gradients, strict=True)}
        return {"value": value, **by_name}

    with precision(dtype):
        inputs = {
            name: [to_jax(case_inputs(name)[k], dtype) for k in arguments.split()]
            for name, (_, arguments) in functions.items()
        }
        found = jax.jit(lambda inputs: {k: graded(k, x) for k, x in inputs.items()})(inputs)
        return {name: to_numpy(arrays) for name, arrays in found.items()}


def module_outputs(
    name: str, init: Callable[..., Any], apply: Callable[..., Any], arguments: str, dtype: str
) -> Arrays:
    """Value, gradients (inputs and parameters) and statistics after a module's forward pass.

    Args:
      name: of the case, also the seed of the weights.
      init: (*images) -> variables, traced for its shapes.
      apply: (variables, *images) -> (value, updated statistics).
      arguments: names of inputs, by spaces.
      dtype: of inputs and weights.
    """
    names = arguments.split()
    with precision(dtype):
        x = [to_jax(case_inputs(name)[k], dtype) for k in names]
        variables = weights(lambda: init(*x), name, dtype)
        params, rest = variables.get("params", {}), variables.get("batch_stats", {})

        def objective(rest: Any, params: Any, *args: Any) -> Any:
            value, stats = apply({"params": params, "batch_stats": rest}, *args)
            along = to_jax(direction(name, value.shape), dtype)
            return (along * value).sum(), (value, stats)

        which = list(range(1, len(x) + 2))
        (_, (value, stats)), (by_param, *by_input) = jax.jit(
            jax.value_and_grad(objective, which, has_aux=True)
        )(rest, params, *x)
        return to_numpy(
            {
                "value": value,
                **{f"grad/{k}": g for k, g in zip(names, by_input, strict=True)},
                **{f"grad/params/{k}": g for k, g in flatten(by_param).items()},
                **({"batch_stats": stats} if stats else {}),
            }
        )


def image_names(name: str) -> str:
    """The names of all inputs of a case, in order, by spaces."""
    return " ".join(case_inputs(name))


def relative_error(actual: Any, expected: Any) -> float:
    """Largest error over the largest expected entry."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def loss_tests(
    functions: Mapping[str, tuple[Callable[..., Any], str]],
    *,
    rtol64: float,
    rtol32: Mapping[str, float] = {},
) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two tests that every file of losses against their references has.

    Args:
      functions: {kind of case: (our function, names of its arguments)}.
      rtol64: relative tolerance in float64.
      rtol32: in float32 by the name of a case; 1e-5 where it has none.

    Returns:
      `test_value_and_gradient` and `test_the_cases_test_something`.
    """

    @functools.cache
    def ours(dtype: str) -> dict[str, Arrays]:
        """Once for both sources."""
        of_cases = {}
        for name in cases(*functions):
            function, arguments = functions[CASES[name].kind]
            of_cases[name] = functools.partial(function, **CASES[name].options), arguments
        return losses_outputs(of_cases, dtype)

    @source_and_dtypes
    def test_value_and_gradient(source: str, dtypes: tuple[str, ...]) -> None:
        for dtype in dtypes:
            for name, actual in ours(dtype).items():
                assert {str(x.dtype) for x in actual.values()} == {dtype}, name
                rtol = rtol32.get(name, 1e-5) if dtype == "float32" else rtol64
                store.compare(actual, reference(name, source), rtol=rtol, row=f"{name}, {dtype}")

    def test_the_cases_test_something() -> None:
        """A hinge that no row is in would agree with anything that is 0."""
        for name in cases(*functions):
            assert all(np.abs(x).max() > 1e-3 for x in store.load(name).values()), name

    return test_value_and_gradient, test_the_cases_test_something
