"""Shardings: any devices compute the same step, and no image travels between them."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smcl as smcl_recipe
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
from vireid_jax import build, evaluate
from vireid_jax.nets.resnet import interleave
from vireid_jax.runtime import devices

REPO = pathlib.Path(__file__).resolve().parents[1]
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


def test_how_a_shared_state_is_cut():
    mesh = mesh_of(4, fsdp=2)
    spec = jax.sharding.PartitionSpec
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), np.float32),
        "square": jax.ShapeDtypeStruct((64, 64), np.float32),
        "odd": jax.ShapeDtypeStruct((2048, 395), np.float32),
        "indivisible": jax.ShapeDtypeStruct((65, 65), np.float32),
        "small": jax.ShapeDtypeStruct((64,), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    found = {k: s.spec for k, s in devices.of_state(shapes, mesh).items()}
    assert found == {
        "kernel": spec(None, None, None, "fsdp"),
        "square": spec(None, "fsdp"),
        "odd": spec("fsdp"),
        **{k: spec() for k in ("indivisible", "small", "step")},
    }
    # Without the axis nothing is cut.
    alone = devices.of_state(shapes, mesh_of(4))
    assert set(alone.values()) == {devices.replicated(mesh_of(4))}
    rows = devices.to_global({"x": np.arange(8)}, mesh)["x"]
    assert [s.data.tolist() for s in rows.addressable_shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("fsdp", [0, 3, 8])
def test_a_share_that_does_not_divide_the_devices_is_refused(fsdp):
    with pytest.raises(ValueError, match=rf"devices.fsdp is {fsdp}, .* choose one of 1, 2, 4$"):
        devices.make_mesh(fsdp=fsdp)


def test_the_devices_of_a_process_are_neighbors():
    """A process loads one run of rows, so its devices must hold one."""

    class Device:
        def __init__(self, process_index, id):
            self.process_index, self.id = process_index, id

    shuffled = [Device(1, 2), Device(0, 1), Device(1, 0), Device(0, 3)]
    order = [(d.process_index, d.id) for d in devices.make_mesh(shuffled).devices]
    assert order == [(0, 1), (0, 3), (1, 0), (1, 2)]


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
    embed = evaluate.make_embed(four.method, four.mesh)
    images = devices.to_global({"x": host_batch()["visible"]}, four.mesh)["x"]
    text = embed.lower(four.state.variables, images, 0).compile().as_text()
    found = collectives(text)
    assert found and all(
        operation in ("all-gather", "all-reduce") and shape == (ROWS, FEATURES)
        for operation, shape in found
    )


# --- Rows and arrays ------------------------------------------------------------------------


def _pretend(monkeypatch, *, devices, processes, index):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "process_index", lambda: index)


def test_processes_share_the_rows_without_gap(monkeypatch):
    assert devices.process_rows(16) == slice(0, 16)
    rows = []
    for index in range(3):
        _pretend(monkeypatch, devices=6, processes=3, index=index)
        own = devices.process_rows(24)
        assert own.stop - own.start == 8
        rows += range(24)[own]
    assert rows == list(range(24))


@pytest.mark.parametrize(
    "rows, count, sizes",
    [(10, 4, "8 or 12"), (3, 4, "4"), (33, 32, "32 or 64")],
)
def test_a_batch_that_does_not_divide_is_refused(monkeypatch, rows, count, sizes):
    _pretend(monkeypatch, devices=count, processes=1, index=0)
    with pytest.raises(ValueError) as error:
        devices.process_rows(rows)
    message = str(error.value)
    assert f"a batch of {rows} rows" in message and f"over {count} devices" in message
    assert "sampler.num_ids x sampler.num_instances" in message
    assert message.endswith(f"choose a product of {sizes}")


def test_an_identity_is_not_cut_between_processes(monkeypatch):
    _pretend(monkeypatch, devices=2, processes=2, index=0)
    config = smcl_recipe.get_config()
    config.sampler.num_ids, config.sampler.num_instances = 3, 4  # 6 rows each
    with pytest.raises(ValueError, match=r"num_ids is 3, .* over 2 processes; choose 2 or 4"):
        build.build(config)


def test_arrays_to_the_mesh_and_back():
    mesh = devices.make_mesh()
    assert mesh.axis_names == ("data",) and mesh.size == 4
    batch = host_batch()
    placed = devices.to_global(batch, mesh)
    assert {a.sharding for a in placed.values()} == {devices.by_rows(mesh)}
    for name, array in placed.items():
        assert array.dtype == batch[name].dtype
        np.testing.assert_array_equal(array, batch[name])
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": (np.int32(7), jnp.ones(5))}
    everywhere = devices.place(tree, mesh)
    shapes = devices.abstract(everywhere, mesh)
    assert jax.tree.structure(shapes) == jax.tree.structure(tree)
    for array, shape, host in zip(*map(jax.tree.leaves, (everywhere, shapes, tree)), strict=True):
        np.testing.assert_array_equal(array, host)
        assert array.is_fully_replicated
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding == devices.replicated(mesh) == array.sharding
    # A tree that is abstract already gets the sharding, and nothing is computed.
    again = devices.abstract(jax.eval_shape(lambda: tree), mesh)
    assert jax.tree.leaves(again) == jax.tree.leaves(shapes)


def test_rows_that_do_not_divide_cannot_be_placed():
    with pytest.raises(ValueError):
        devices.to_global({"x": np.zeros((6, 2))}, devices.make_mesh())


# --- Devices of a CPU -----------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["--xla_force_host_platform_device_count=4", ""])
def test_devices_that_are_chosen_or_started_stay(monkeypatch, flags):
    """By a flag, or because jax has started (this process has)."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("NPROC", "5")
    before = jax.config.jax_num_cpu_devices
    jax.devices()
    devices.use_cpu_cores(6)
    assert jax.config.jax_num_cpu_devices == before and jax.device_count() == 4
    assert os.environ["NPROC"] == "5"
    assert flags in os.environ["XLA_FLAGS"]


CHOOSE = """
import sys
from vireid_jax.runtime import devices
devices.use_cpu_cores(int(sys.argv[1]))
import jax, os
print(jax.device_count(), os.environ["NPROC"], os.environ["XLA_FLAGS"])
"""


@pytest.mark.parametrize("rows", [6, 7])
def test_every_core_becomes_a_device_as_far_as_they_divide_the_batch(rows):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    run = subprocess.run(
        [sys.executable, "-c", CHOOSE, str(rows)],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=120,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    devices, threads, flags = run.stdout.split(maxsplit=2)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    possible = [d for d in (1, 2, 3, 6, 7) if d <= min(cores, 8) and rows % d == 0]
    assert int(devices) == max(possible)
    assert int(threads) > 8 and "multi_thread_eigen=false" in flags
