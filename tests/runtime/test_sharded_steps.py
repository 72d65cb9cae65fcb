"""Whole models: any devices compute the same step, and no image travels between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.ahead import hlo
from tests.support.plain import PLAIN, plainly
from tests.support.pods import pod
from tests.support.steps import (
    METHODS,
    MODALITIES,
    Step,
    compare,
    gathered,
    mesh_of,
)
from tests.support.tiny import BACKBONE, FEATURES, ROWS, host_batch
from vireid_jax import embedding
from vireid_jax.nets.resnet import interleave
from vireid_jax.runtime import devices

pytestmark = pytest.mark.slow

CASES = [(method, kernels) for method in METHODS for kernels in ("cpu", "xla")]
# The kernels are those of the backbone, which is the others' too.
CASES = [case for case in CASES if case[1] == "cpu" or case[0] == "smcl"]
# What a batch of features is: [B, M, D]; PDM's F has 3 + 1 of D for each of three rows an image.
LARGEST = {"pdm": ROWS * 2 * 3 * 4 * FEATURES}
# Gradients of parameters in another arrangement: PDM's spatial attention as a matrix of the
# 4 x 2 places of layer2 by themselves, for two branches and two channels.
ARRANGED = {"pdm": {(2, 2, 8, 8)}}


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    with plainly():
        yield


@pytest.fixture(scope="module")
def steps():
    built = {}

    def get(devices, kernels="cpu", method="smcl", fsdp=1):
        key = devices, kernels, method, fsdp
        if key not in built:
            built[key] = Step(*key)
        return built[key]

    return get


# Both kernels compute the same numbers, so one device of one kind is a reference for both.
@pytest.mark.parametrize(("method", "kernels"), CASES)
def test_four_devices_compute_the_step_of_one(steps, method, kernels):
    one, four = steps(1, method=method), steps(4, kernels, method)
    expected = gathered(one)
    assert len(one.scalars) >= 8
    compare(gathered(four), expected)
    gradients = [n for n in expected if n.startswith(".optimizer")]
    statistics = [n for n in expected if "batch_stats" in n]
    assert len(gradients) > 30 and len(statistics) > 20
    assert all(np.abs(expected[n]).max() > 0 for n in gradients)
    assert (method == "mun") == any("memory" in n for n in expected)


@pytest.mark.parametrize(
    ("processes", "devices"),
    [(1, 2), (1, 8), (2, 4)],
    ids=["2 devices", "8 devices", "2 processes of 4 devices"],
)
def test_other_devices_and_processes_compute_the_step_of_one(steps, tmp_path, processes, devices):
    out = tmp_path / "steps.npz"
    count = processes * devices
    # The other preset's losses are sharded alike; four devices above have it.
    methods = [method for method in METHODS if method != "idkl,official"]
    run = pod(processes, devices, "tests.support.steps", out, count, *methods, env=PLAIN)
    assert run.codes == [0] * processes, run.text()
    stored = np.load(out)
    for method in methods:
        prefix = f"{method}|"
        found = {k.removeprefix(prefix): stored[k] for k in stored if k.startswith(prefix)}
        compare(found, gathered(steps(1, method=method)))


# --- Sharing the state (fsdp) ---------------------------------------------------------------


@pytest.mark.parametrize("fsdp", [2, 4])
def test_devices_that_share_the_state_compute_the_same(steps, monkeypatch, fsdp):
    monkeypatch.setattr(devices, "SHARDED_FROM", 64)  # the arrays here are small
    shared = steps(4, fsdp=fsdp)
    assert shared.mesh.shape == {"data": 4 // fsdp, "fsdp": fsdp}
    compare(gathered(shared), gathered(steps(1)))
    held = total = 0
    for array in jax.tree.leaves(shared.state):
        held += sum(s.data.nbytes for s in array.addressable_shards)
        total += array.nbytes
    # Of what is cut, the data axis alone has copies; little is too small to be cut.
    assert held < 1.2 * total * 4 / fsdp
    # Parameters are gathered and gradients reduced; images and maps stay.
    params = {hlo.axes(x.shape) for x in jax.tree.leaves(shared.state.variables["params"])}
    moved = [
        (operation, shape)
        for operation, shape in collectives(shared.text)
        if hlo.axes(shape) not in params and np.prod(shape) > ROWS * MODALITIES * FEATURES
    ]
    assert not moved and any(operation == "all-gather" for operation, _ in collectives(shared.text))


def test_the_batch_is_sharded_and_the_state_replicated(steps):
    four = steps(4)
    for name, array in four.batch.items():
        shards = array.addressable_shards
        assert len({s.device for s in shards}) == 4
        assert {s.data.shape for s in shards} == {(ROWS // 4, *array.shape[1:])}, name
        for s in shards:
            np.testing.assert_array_equal(s.data, host_batch()[name][s.index])
    for name, array in jax.tree_util.tree_leaves_with_path(four.state):
        shards = [np.asarray(s.data) for s in array.addressable_shards]
        assert array.is_fully_replicated and len(shards) == 4
        assert all(s.tobytes() == shards[0].tobytes() for s in shards), name


def collectives(text):
    """[(operation, shape)] of every array that a collective of this program returns."""
    return [(c.kind, array.shape) for c in hlo.collectives(text) for array in c.arrays]


def too_large(text, allowed=(), limit=ROWS * MODALITIES * FEATURES):
    """Collectives of images or maps: larger than a batch of features, or of four axes.

    All-reduces of `allowed` shapes are excepted.
    """
    return [
        (operation, shape)
        for operation, shape in collectives(text)
        if (np.prod(shape) > limit or len(shape) > 3)
        and not (operation == "all-reduce" and hlo.axes(shape) in allowed)
    ]


@pytest.mark.parametrize(("method", "kernels"), CASES)
def test_no_step_moves_activation_maps_between_devices(steps, method, kernels):
    four = steps(4, kernels, method)
    everything = four.state.variables["params"]
    params = {hlo.axes(x.shape) for x in jax.tree.leaves(everything)}
    trunk = {hlo.axes(x.shape) for x in jax.tree.leaves(everything["backbone"])}
    found = collectives(four.text)
    reduced = {hlo.axes(shape) for operation, shape in found if "reduce" in operation}
    # The gradients' all-reduces are there, each as large as its parameter (a generator may have
    # its own in another arrangement), and beside them nothing larger than the features, [B, M, D].
    assert trunk <= reduced
    limit = LARGEST.get(method, ROWS * MODALITIES * FEATURES)
    assert not too_large(four.text, params | ARRANGED.get(method, set()), limit)


def test_a_concatenation_would_be_noticed():
    """What `interleave` is for: the same network input, joined along the sharded axis."""
    mesh = mesh_of(4)
    maps = [jnp.ones((ROWS, 8, 4, 2 * BACKBONE.width))] * 2
    rows = devices.by_rows(mesh)

    def compiled(join):
        def f(a, b):
            x = jax.lax.with_sharding_constraint(join([a, b]), rows)
            return jnp.sin(x).sum((1, 2))

        return jax.jit(f, in_shardings=rows, out_shardings=rows).lower(*maps).compile().as_text()

    assert not collectives(compiled(interleave))
    assert too_large(compiled(jnp.concatenate))
    assert too_large(f"%x = (f32[2]{{0}}, bf16[{ROWS},32,16,3]{{3,2,1,0}}) all-to-all-start(%y)")


def test_embedding_gathers_features_alone(steps):
    four = steps(4)
    embed = embedding.make_embed(four.method, four.mesh)
    images = devices.to_global({"x": host_batch()["visible"]}, four.mesh)["x"]
    text = embed.lower(four.state.variables, images, 0).compile().as_text()
    found = collectives(text)
    assert found and all(
        operation in ("all-gather", "all-reduce") and shape == (ROWS, FEATURES)
        for operation, shape in found
    )
