"""What saves memory or follows other machines' statistics, for every method.

Each method is compared with its loss over features of its network, applied by hand to a few rows
after the other, and with the gradient that goes back through one such piece after the other.
"""

import functools
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vireid_jax.methods import METHODS, agw, deen, idkl, mun, pdm, smcl
from vireid_jax.nets.agw import AGWNet
from vireid_jax.nets.idkl import IDKLNet
from vireid_jax.nets.multifeature import MultiFeatureNet
from vireid_jax.nets.mun import MUNNet
from vireid_jax.nets.norm import grouped

P, K, SIZE = 4, 2, (32, 16)
ROWS = P * K
SMALL = dict(num_classes=6, image_size=SIZE, depth=10, width=4)
PK = dict(num_ids=P, num_instances=K)
# Options that bring in what sees more than a row. A mask of dropout depends on the pieces.
BUILDS = {
    "smcl": partial(smcl.build, **SMALL, steps_per_epoch=4, metric_from_epoch=0.0, bn_running="vi"),
    "mun": partial(
        mun.build,
        **SMALL,
        **PK,
        num_steps=8,
        second_view=True,
        generator={"ratios": (2, 4)},  # of maps of 8 x 4
        prototype_map="slot",
    ),
    "idkl": partial(idkl.build, **SMALL, **PK, num_steps=8, modality_dropout=0.0),
    "agw": partial(agw.build, **SMALL, num_ids=P, second_view=True),
    "deen": partial(deen.build, **SMALL, num_ids=P, stages=3, branches=1, dropout=0.0),
    "pdm": partial(
        pdm.build,
        **SMALL,
        num_ids=P,
        stages=3,
        mfa=False,
        num_prototypes=3,
        attention_kernel=3,
        dropout=0.0,
    ),
}
NETS = {
    "smcl": smcl.SMCLNet,
    "mun": MUNNet,
    "idkl": IDKLNet,
    "agw": AGWNet,
    "deen": MultiFeatureNet,
    "pdm": MultiFeatureNet,
}
every_method = pytest.mark.parametrize("name", METHODS)
KEY, STEP = jax.random.key(7), 3
# Half the time of compiling; what is computed is little.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def test_every_method_is_here():
    assert set(BUILDS) == set(NETS) == set(METHODS)


def batch():
    rng = np.random.default_rng(0)
    names = ("visible", "infrared", "visible_second")
    images = {n: rng.normal(size=(ROWS, *SIZE, 3)).astype(np.float32) for n in names}
    return {**images, "label": np.repeat([4, 0, 5, 2], K).astype(np.int32)}


@functools.cache
def variables(name):
    """A start where no factor is 0, so that every part of the network counts."""
    start = BUILDS[name]().init(jax.random.key(0))
    rng = np.random.default_rng(1)

    def drawn(path, x):
        if path[-1].key in ("prototype", "scale", "mean") and not np.any(x):
            return rng.uniform(0.3, 1, x.shape).astype(np.float32)
        return x

    return jax.tree_util.tree_map_with_path(drawn, start)


def compiled(function, *args):
    """What a function gives for these arguments."""
    return jax.jit(function).lower(*args).compile(compiler_options=QUICK)(*args)


def graded(method):
    """(variables, batch) -> ((total, (terms, updates)), gradient)."""

    def run(state, batch):
        def of_params(params):
            total, aux = method.loss({**state, "params": params}, batch, KEY, STEP)
            return total, (aux.terms, aux.updates)

        return jax.value_and_grad(of_params, has_aux=True)(state["params"])

    return run


def by_hand(name, method, pieces, monkeypatch):
    """What `graded` gives of a network that is applied to pieces of the batch.

    Args:
      pieces: lists of rows. A list of lists of rows is a chunk: its first piece leaves the
        statistics that those of the next chunk start from.
    """
    original, state, host = NETS[name].apply, variables(name), batch()
    calls = []

    def standing_in(training):
        def apply(net, state, *args, mutable=False, rngs=None, method=None):
            if not mutable:
                return original(net, state, *args, method=method)
            calls.append((net, args))
            return training(net, state, *args, mutable=mutable, rngs=rngs)

        monkeypatch.setattr(NETS[name], "apply", apply)

    def of_params(params):
        total, aux = method.loss({**state, "params": params}, host, KEY, STEP)
        return total, (aux.terms, aux.updates)

    standing_in(original)
    jax.eval_shape(of_params, state["params"])
    net, args = calls[0]  # with the images as they are in the batch
    images = [x for x in args if np.ndim(x)]
    rest = [x for x in args if not np.ndim(x)]

    def piece(params, stats, images, cotangent):
        def forward(params):
            given = {"params": params, "batch_stats": stats}
            out, new = original(net, given, *images, *rest, mutable=["batch_stats"])
            return out, new["batch_stats"]

        out, pull, new = jax.vjp(forward, params, has_aux=True)
        return out, new, pull(zeros(out) if cotangent is None else cotangent)[0]

    stats, outputs, starts = state["batch_stats"], [], []
    run = None
    for chunk in pieces:
        left = []
        for rows in chunk:
            given = state["params"], stats, [x[rows] for x in images]
            if run is None:
                out = jax.eval_shape(lambda *x: piece(*x, None)[0], *given)
                lowered = jax.jit(piece).lower(*given, zeros(out))
                run = lowered.compile(compiler_options=QUICK)
            out, new, _ = run(*given, zeros(out))
            outputs.append(out)
            starts.append(stats)
            left.append(new)
        stats = left[0]
    flat = [rows for chunk in pieces for rows in chunk]
    order = np.argsort(np.concatenate(flat))

    def joined(*parts):  # [rows * k, ...] of each piece -> in the order of the batch
        slots = [
            np.reshape(x, (len(r), -1, *x.shape[1:])) for x, r in zip(parts, flat, strict=True)
        ]
        together = np.concatenate(slots)[order]
        return together.reshape(-1, *together.shape[2:])

    def of_features(params, out):
        standing_in(lambda *args, **options: (out, {"batch_stats": stats}))
        return of_params(params)

    value, (gradient, cotangent) = compiled(
        jax.value_and_grad(of_features, (0, 1), has_aux=True),
        state["params"],
        jax.tree.map(joined, *outputs),
    )
    for rows, start in zip(flat, starts, strict=True):

        def own(x, rows=rows):
            slots = np.reshape(x, (ROWS, -1, *x.shape[1:]))[rows]
            return slots.reshape(-1, *slots.shape[2:])

        back = run(state["params"], start, [x[rows] for x in images], jax.tree.map(own, cotangent))[
            2
        ]
        gradient = jax.tree.map(np.add, gradient, back)
    return value, gradient


def zeros(tree):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


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
    method = grouped(BUILDS[name](accumulate=2, remat=True), 2)
    return compiled(graded(method), variables(name), batch())


@every_method
def test_chunks_of_groups_are_the_network_applied_to_each(name, monkeypatch):
    """Chunk c has the rows c, c + 2, ..., in two runs; the loss sees all rows."""
    found = with_everything(name)
    pieces = [np.split(np.arange(c, ROWS, 2), 2) for c in range(2)]
    assert_close(found, by_hand(name, BUILDS[name](), pieces, monkeypatch))


def test_four_devices_compute_the_chunks_of_one():
    mesh = Mesh(jax.devices()[:4], ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    placed = jax.device_put(variables("smcl"), everywhere), jax.device_put(batch(), rows)
    method = grouped(BUILDS["smcl"](accumulate=2, remat=True), 2)
    found = compiled(graded(method), *placed)
    assert_close(jax.tree.map(np.asarray, found), with_everything("smcl"))


# --- Programs and starts --------------------------------------------------------------------


def primitives(jaxpr):
    """The names of all operations, with those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


@every_method
def test_stems_and_blocks_are_rematerialized_if_asked(name):
    """In the backward pass under a primitive of its own, and not in the forward pass."""

    def count(**options):
        run = graded(BUILDS[name](**options))
        jaxpr = jax.make_jaxpr(run)(variables(name), batch())
        return list(primitives(jaxpr.jaxpr)).count("remat2")

    stages = 3 if name in ("deen", "pdm") else 4
    assert count() == 0 and count(remat=True) >= 1 + stages


@every_method
def test_a_fresh_network_does_not_depend_on_how_its_gradient_is_computed(name):
    plain, other = (
        BUILDS[name](**options).init(jax.random.key(5))
        for options in ({}, {"remat": True, "accumulate": 2})
    )
    assert jax.tree.structure(plain) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (plain, other)), strict=True):
        np.testing.assert_array_equal(a, b)


@every_method
def test_a_number_of_chunks_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match=r"devices\.accumulate is 0, expected a whole number"):
        BUILDS[name](accumulate=0)
    method = BUILDS[name](accumulate=3)
    with pytest.raises(ValueError, match=r"devices\.accumulate is 3 with a batch of 8 rows"):
        jax.eval_shape(lambda v: method.loss(v, batch(), jax.random.key(0), 0)[0], variables(name))
