"""A batch in chunks: who is in which, the gradient of all rows, and what is kept."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.support.rows import each
from vireid_jax.nets import chunks, init
from vireid_jax.nets.norm import BatchNorm

R = np.random.default_rng(3)
KEY = jax.random.key(0)
B, SIZE, WIDTH = 8, (8, 4), 6


# --- Rows, keys and statistics ------------------------------------------------------------


def told(variables, images, key):
    """What it was given, with one and with three rows for each slot; counts calls."""
    (x,) = images
    draw = jax.random.uniform(key, (len(x),))
    out = {"rows": x, "runs": jnp.repeat(x, 3), "drawn": (x, draw)}
    stats = {"calls": variables["batch_stats"]["calls"] * 10 + x[0]}
    return out, {"batch_stats": stats}


@each("count", [2, 3])
def test_chunk_c_has_the_rows_that_are_c_modulo_their_number(count):
    x = jnp.arange(12.0)
    variables = {"params": {}, "batch_stats": {"calls": jnp.float32(0)}}
    out, updates = chunks.apply(told, variables, [x], KEY, chunks=count)
    np.testing.assert_array_equal(out["rows"], x)
    np.testing.assert_array_equal(out["runs"], np.repeat(x, 3))
    rows, draws = out["drawn"]
    np.testing.assert_array_equal(rows, x)
    # Statistics go from chunk to chunk: 0, 1, 2, ... are the first rows of chunks 0, 1, 2, ...
    assert updates["batch_stats"]["calls"] == int("".join(map(str, range(count))))
    for c in range(count):
        key = jax.random.fold_in(KEY, c)
        expected = jax.random.uniform(key, (12 // count,))
        np.testing.assert_array_equal(draws[c::count], expected)


def test_one_chunk_is_the_pass_itself():
    result = object(), object()
    variables, images = {}, [jnp.ones(3)]
    seen = []
    found = chunks.apply(
        lambda *args: seen.append(args) or result, variables, images, KEY, chunks=1
    )
    assert found is result and seen == [(variables, images, KEY)]


def test_chunks_must_divide_the_rows():
    with pytest.raises(ValueError, match=r"devices\.accumulate is 5 with a batch of 12 rows") as e:
        chunks.apply(told, {}, [jnp.ones(12)], KEY, chunks=5)
    assert "sampler.num_ids x sampler.num_instances" in str(e.value)


@each("reduce", [jnp.sum, lambda x: jnp.ones(5)])
def test_what_has_no_rows_in_front_is_refused(reduce):
    def forward(variables, images, key):
        return {"loss": reduce(images[0])}, {"batch_stats": {}}

    with pytest.raises(ValueError, match=r"chunk of 6 slots gave .* devices\.accumulate=1"):
        chunks.apply(forward, {"batch_stats": {}}, [jnp.ones(12)], KEY, chunks=2)


@each("value", [0, -2, 2.0, True, None, "2"])
def test_no_number_of_chunks(value):
    with pytest.raises(ValueError, match=r"devices\.accumulate is .*, expected a whole number"):
        chunks.check(value)
    chunks.check(3)


# --- A network --------------------------------------------------------------------------------


class Net(nn.Module):
    """A wide map, a normalization, features."""

    normalizes: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(WIDTH, (3, 3), use_bias=False, name="conv")(x))
        if self.normalizes:
            x = BatchNorm(name="bn")(x, train=True)
        return nn.Dense(5, use_bias=False, name="dense")(jnp.tanh(x).mean((1, 2)))


def images():
    return jnp.asarray(np.random.default_rng(4).normal(size=(B, *SIZE, 3)), jnp.float32)


def compared(features):
    """All pairs of rows: no sum of losses of chunks."""
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)
    return jnp.log1p(distance).max(1).sum()


def problem(normalizes, count):
    """The loss of parameters, and a start."""
    net = Net(normalizes)
    variables = {"batch_stats": {}, **init.start(net.init, KEY, images())}

    def forward(variables, images, key):
        return net.apply(variables, *images, mutable=["batch_stats"])

    def loss(params, x):
        state = {**variables, "params": params}
        out, updates = chunks.apply(forward, state, [x], KEY, chunks=count)
        return compared(out), updates.get("batch_stats", {})

    return loss, variables


def graded(loss):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow
@each("count", [2, 8])
def test_without_normalization_it_is_the_gradient_of_the_batch(count):
    whole, variables = problem(False, 1)
    loss, _ = problem(False, count)
    params, x = variables["params"], images()
    assert_close(graded(loss)(params, x), graded(whole)(params, x))
    # And not the sum of the gradients of chunks.
    of_chunks = sum(graded(whole)(params, x[c::count])[0][0] for c in range(count))
    assert abs(of_chunks - graded(whole)(params, x)[0][0]) > 0.01


@pytest.mark.slow
def test_chunks_are_normalized_one_after_the_other():
    """By a loop that applies the network to rows 0, 2, ... and then to 1, 3, ..."""
    loss, variables = problem(True, 2)
    net, x = Net(True), images()

    def by_hand(params, x):
        state, features = dict(variables, params=params), [None] * B
        for c in range(2):
            out, new = net.apply(state, x[c::2], mutable=["batch_stats"])
            state |= new
            features[c::2] = out
        return compared(jnp.stack(features)), state["batch_stats"]

    found = graded(loss)(variables["params"], x)
    assert_close(found, graded(by_hand)(variables["params"], x))
    assert set(found[0][1]) == {"bn"}


def shapes_in(jaxpr):
    """The shapes of all intermediate values, with those in inner programs."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes_in(inner)


@pytest.mark.slow
@each(("count", "per_chunk"), [(1, 8), (2, 4), (4, 2)])
def test_no_map_of_the_whole_batch_is_made_or_kept(count, per_chunk):
    loss, variables = problem(True, count)
    jaxpr = jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables["params"], images())
    maps = {s for s in shapes_in(jaxpr.jaxpr) if s[-3:] == (*SIZE, WIDTH)}
    # [n, h, w, F] of a chunk, and neither of all rows nor a stack of chunks' maps.
    assert {s[:-3] for s in maps if np.prod(s[:-3]) > 1} == {(per_chunk,)}


@pytest.mark.slow
def test_a_sharded_batch_stays_on_its_devices():
    loss, variables = problem(True, 2)
    mesh = Mesh(jax.devices()[:4], ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    step = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(everywhere, rows),
        out_shardings=everywhere,
    )
    compiled = step.lower(variables["params"], images()).compile()
    moved = [
        line
        for line in compiled.as_text().splitlines()
        if re.search(r" (all-gather|all-to-all|collective-permute)[-a-z]*\(", line)
    ]
    # The features [8, 5] are compared with each other; images and maps are in no collective.
    assert all(f"{SIZE[0]},{SIZE[1]}" not in line for line in moved), moved
    found = compiled(
        jax.device_put(variables["params"], everywhere), jax.device_put(images(), rows)
    )
    one = graded(loss)(variables["params"], images())
    assert_close(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, one))
