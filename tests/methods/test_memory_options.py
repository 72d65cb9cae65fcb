"""What saves memory or follows other machines' statistics, for every method.

`by_hand` applies a method's network to a few rows after the other; the rest is the same numbers
for another way of computing them, or half precision.
"""

import functools
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.methods import by_hand
from tests.support.parity import first_fast
from tests.support.steps import METHODS as STEPS
from tests.support.tiny import ROWS, SIZE, K, build, of_methods
from vireid_jax.methods import METHODS

PIECES = of_methods("PIECES")
REMAT, CONVOLUTION = "remat2", "conv_general_dilated"
first, *others = sorted(METHODS, key="smcl".__ne__)
every_method = pytest.mark.parametrize("name", first_fast([first, *others]))


def built(name, **backbone):
    return build(name, PIECES[name], **backbone)


def batch():
    rng = np.random.default_rng(3)
    names = ("visible", "infrared", "visible_second")
    images = {n: rng.normal(size=(ROWS, *SIZE, 3)).astype(np.float32) for n in names}
    return {**images, "label": np.repeat([4, 0, 5, 2], K).astype(np.int32)}


@functools.cache
def start(name):
    return built(name).init(jax.random.key(0))


@functools.cache
def variables(name):
    """A start where no factor is 0, so that every part of the network counts."""
    rng = np.random.default_rng(1)

    def drawn(path, x):
        if path[-1].key in ("prototype", "scale", "mean") and not np.any(x):
            return rng.uniform(0.3, 1, x.shape).astype(np.float32)
        return x

    return jax.tree_util.tree_map_with_path(drawn, start(name))


def assert_close(found, expected, tolerance=1e-3):
    """Trees of arrays, each relative to the largest entry of its module: single ones cancel.

    The gradient of a bias that a normalization takes out again is rounding, of the size that the
    gradient of the kernel beside it gives it.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    largest, leaves = {}, jax.tree_util.tree_leaves_with_path(expected)
    for path, value in leaves:
        largest[path[:-1]] = max(largest.get(path[:-1], 1e-6), np.abs(value).max())
    for (path, value), other in zip(leaves, jax.tree.leaves(found), strict=True):
        error = np.abs(other - value).max() / largest[path[:-1]]
        assert error < tolerance, (jax.tree_util.keystr(path), error)


# --- Values and gradients ------------------------------------------------------------------


@functools.cache
def with_everything(name):
    """The loss and gradient in two chunks of two groups each, of rematerialized blocks."""
    method = built(name, accumulate=2, remat=True, bn_groups=2)
    return by_hand.graded(method)(variables(name), batch())


# DEEN has PDM's network, and AGW one branch as SMCL.
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in (first, *others) if n not in ("agw", "deen")])
def test_chunks_of_groups_are_the_network_applied_to_each(name, monkeypatch):
    """Chunk c has the rows c, c + 2, ..., in two runs; the loss sees all rows."""
    found = with_everything(name)
    chunks = [np.split(np.arange(c, ROWS, 2), 2) for c in range(2)]
    plain = built(name)
    args = plain, variables(name), batch(), chunks
    assert_close(found, by_hand.loss_of_pieces(*args, monkeypatch))


@pytest.mark.slow
def test_four_devices_compute_the_chunks_of_one():
    mesh = Mesh(jax.devices()[:4], ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    placed = jax.device_put(variables("smcl"), everywhere), jax.device_put(batch(), rows)
    method = built("smcl", accumulate=2, remat=True, bn_groups=2)
    found = by_hand.graded(method)(*placed)
    assert_close(jax.tree.map(np.asarray, found), with_everything("smcl"))


# --- Programs and starts --------------------------------------------------------------------


def equations(jaxpr):
    """All operations, with those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@every_method
def test_stems_and_blocks_are_rematerialized_if_asked(name):
    """Under a primitive of its own in the program, which is that of the whole batch."""

    def found(**options):
        method = built(name, **options)
        loss = partial(method.loss, batch=batch(), key=jax.random.key(0), step=0)
        jaxpr = jax.make_jaxpr(lambda state: loss(state)[0])(variables(name))
        return [e.primitive.name for e in equations(jaxpr.jaxpr)]

    plain, remat = found(), found(remat=True)
    stages = PIECES[name].get("stages", 4)
    assert plain.count(REMAT) == 0 and remat.count(REMAT) >= 1 + stages
    # Blocks are inside of it, and no operation is there twice before there is a gradient.
    assert sorted(set(remat) - {REMAT}) == sorted(set(plain))
    assert remat.count(CONVOLUTION) == plain.count(CONVOLUTION)


@every_method
def test_a_fresh_network_does_not_depend_on_how_its_gradient_is_computed(name):
    other = built(name, remat=True, accumulate=2).init(jax.random.key(0))
    assert jax.tree.structure(start(name)) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (start(name), other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_number_of_chunks_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"devices\.accumulate is 0, expected a whole number"):
        built(first, accumulate=0)
    method = built(first, accumulate=3)
    with pytest.raises(ValueError, match=r"devices\.accumulate is 3 with a batch of 8 rows"):
        method.loss(variables(first), batch(), jax.random.key(0), 0)


@pytest.mark.parametrize("name", first_fast(sorted(STEPS, key="smcl".__ne__)))
def test_half_precision_stays_inside_the_network(name):
    method = build(*STEPS[name], dtype="bfloat16")
    state = jax.eval_shape(method.init, jax.random.key(0))

    def step(state):
        def loss(params):
            return method.loss({**state, "params": params}, batch(), jax.random.key(1), 0)

        return jax.value_and_grad(loss, has_aux=True)(state["params"])

    (total, aux), gradient = jax.eval_shape(step, state)
    outside = state, gradient, total, aux.terms, aux.updates
    assert {leaf.dtype for leaf in jax.tree.leaves(outside)} == {np.dtype("float32")}
    for kind, tree in aux.updates.items():  # a step does not change what a checkpoint holds
        shapes = [jax.tree.map(lambda x: x.shape, dict(x)) for x in (tree, state[kind])]
        assert shapes[0] == shapes[1], kind
    image = jax.ShapeDtypeStruct((2, *SIZE, 3), np.float32)
    embed = jax.make_jaxpr(lambda v, x: method.embed(v, x, 0), return_shape=True)
    jaxpr, features = embed(state, image)
    assert {x.dtype for x in features.values()} == {np.dtype("float32")}
    convolutions = [e for e in equations(jaxpr.jaxpr) if CONVOLUTION in e.primitive.name]
    assert {str(e.outvars[0].aval.dtype) for e in convolutions} == {"bfloat16"}
