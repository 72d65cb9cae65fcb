"""Whole models: any devices compute the same step, and no image travels between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.ahead import hlo
from tests.support.plain import PLAIN, plainly
from tests.support.pods import pod
from tests.support.steps import METHODS, MODALITIES, Step, compare, gathered, mesh_of
from tests.support.tiny import BACKBONE, FEATURES, ROWS, host_batch
from vireid_jax import embedding
from vireid_jax.nets.resnet import interleave
from vireid_jax.runtime import devices

pytestmark = pytest.mark.slow

# What a batch of features is: [B, M, D]; PDM's F has 3 + 1 of D for each of three rows an image.
LARGEST = {"pdm": ROWS * 2 * 3 * 4 * FEATURES}
# Gradients of parameters in another arrangement: PDM's spatial attention as a matrix of the
# 4 x 2 places of layer2 by themselves, for two branches and two channels.
ARRANGED = {"pdm": {(2, 2, 8, 8)}}

step_of = functools.cache(Step)


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    with plainly():
        yield


@functools.cache
def expected_of(method):
    """The step on one device; both kinds of kernels compute the same numbers."""
    return gathered(step_of(1, method))


def axes(shape):
    """A shape in the order that the compiler cannot change: it transposes and squeezes."""
    return tuple(sorted(n for n in shape if n > 1))


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
        and not (operation == "all-reduce" and axes(shape) in allowed)
    ]


def reduced(shape, kernels):
    """The axes that a parameter's gradient is summed over devices with; see `nets.cpu`."""
    in_cells = kernels == "cpu" and shape[:3] == (7, 7, 3)
    return axes((4, 4, 12, shape[3]) if in_cells else shape)


# DEEN has PDM's network. The kernels are those of the backbone, which is the others' too.
@pytest.mark.parametrize(
    ("method", "kernels"),
    [*((method, "cpu") for method in METHODS if method != "deen"), ("smcl", "xla")],
)
def test_four_devices_compute_the_step_of_one_and_move_no_maps(method, kernels):
    expected, four = expected_of(method), step_of(4, method, kernels)
    compare(gathered(four), expected)
    gradients = [n for n in expected if n.startswith(".optimizer")]
    statistics = [n for n in expected if "batch_stats" in n]
    assert len(four.scalars) >= 8 and len(gradients) > 30 and len(statistics) > 20
    assert all(np.abs(expected[n]).max() > 0 for n in gradients)
    assert (method == "mun") == any("memory" in n for n in expected)

    everything = four.state.variables["params"]
    params = {reduced(x.shape, kernels) for x in jax.tree.leaves(everything)}
    trunk = {reduced(x.shape, kernels) for x in jax.tree.leaves(everything["backbone"])}
    found = collectives(four.text)
    # The gradients' all-reduces are there, each as large as its parameter (a generator may have
    # its own in another arrangement), and beside them nothing larger than the features, [B, M, D].
    assert trunk <= {axes(shape) for operation, shape in found if "reduce" in operation}
    limit = LARGEST.get(method, ROWS * MODALITIES * FEATURES)
    assert not too_large(four.text, params | ARRANGED.get(method, set()), limit)


def test_two_devices_compute_the_step_of_one():
    compare(gathered(step_of(2, "smcl")), expected_of("smcl"))


@pytest.mark.parametrize("processes", [1, 2])
def test_eight_devices_of_other_processes_compute_the_step_of_one(tmp_path, processes):
    out = tmp_path / "steps.npz"
    run = pod(processes, 8 // processes, "tests.support.steps", out, 8, "smcl", env=PLAIN)
    assert run.codes == [0] * processes, run.text()
    compare(dict(np.load(out)), expected_of("smcl"))


def test_devices_that_share_the_state_compute_the_same(monkeypatch):
    """Two by two: of what is cut, the data axis alone has copies."""
    monkeypatch.setattr(devices, "SHARDED_FROM", 64)  # the arrays here are small
    shared = step_of(4, "smcl", fsdp=2)
    assert shared.mesh.shape == {"data": 2, "fsdp": 2}
    compare(gathered(shared), expected_of("smcl"))
    arrays = jax.tree.leaves(shared.state)
    held = sum(s.data.nbytes for array in arrays for s in array.addressable_shards)
    assert held < 1.2 * 2 * sum(array.nbytes for array in arrays)  # little is too small to be cut
    # Parameters are gathered and gradients reduced; images and maps stay.
    params = {axes(x.shape) for x in jax.tree.leaves(shared.state.variables["params"])}
    found = collectives(shared.text)
    limit = ROWS * MODALITIES * FEATURES
    assert not [s for _, s in found if axes(s) not in params and np.prod(s) > limit]
    assert any(operation == "all-gather" for operation, _ in found)


def test_the_batch_is_sharded_and_the_state_replicated():
    four = step_of(4, "smcl", "cpu")
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


def test_embedding_gathers_features_alone():
    four = step_of(4, "smcl", "cpu")
    embed = embedding.make_embed(four.method, four.mesh)
    images = devices.to_global({"x": host_batch()["visible"]}, four.mesh)["x"]
    found = collectives(embed.lower(four.state.variables, images, 0).compile().as_text())
    assert found and all(
        operation in ("all-gather", "all-reduce") and shape == (ROWS, FEATURES)
        for operation, shape in found
    )
