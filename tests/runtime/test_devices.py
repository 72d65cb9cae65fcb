"""Mesh, shardings, and the way from host arrays to global ones."""

import contextlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smcl as smcl_recipe
from vireid_jax import build
from vireid_jax.runtime import devices

REPO = pathlib.Path(__file__).resolve().parents[2]


def test_devices_that_are_not_here(monkeypatch):
    """What jax raises, with JAX_PLATFORMS=gpuu and with cuda where its plugin is missing."""
    for error, said in (
        (
            RuntimeError("Unable to initialize backend 'gpuu'\nmore"),
            "gpuu: Unable to .* 'gpuu'. Un",
        ),
        (AssertionError(), "gpuu. Unset it to take what is there, or install"),
    ):

        def fail(error=error):
            raise error

        monkeypatch.setattr(jax, "local_devices", fail)
        with jax_platforms("gpuu"), pytest.raises(ValueError, match=said):
            devices.local_facts()


@contextlib.contextmanager
def jax_platforms(name):
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", name)
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)


def test_how_a_shared_state_is_cut():
    mesh = devices.make_mesh(fsdp=2)
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
    alone = devices.of_state(shapes, devices.make_mesh())
    assert set(alone.values()) == {devices.replicated(devices.make_mesh())}
    rows = devices.to_global({"x": np.arange(8)}, mesh)["x"]
    assert [s.data.tolist() for s in rows.addressable_shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_share_that_does_not_divide_the_devices_is_refused():
    for fsdp in (0, 3, 8):
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


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    for rows, count, sizes in [(10, 4, "8 or 12"), (3, 4, "4"), (33, 32, "32 or 64")]:
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
    batch = {
        "x": np.arange(48).reshape(8, 2, 3).astype(np.uint8),
        "y": np.arange(8, dtype=np.int32),
    }
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


# --- Devices of a CPU -----------------------------------------------------------------------


CHOOSE = """
import os
import jax
from vireid_jax.runtime import devices
if os.environ.get("COUNT"):
    jax.config.update("jax_num_cpu_devices", int(os.environ["COUNT"]))
devices.share_cpu()
print(jax.device_count(), os.environ.get("NPROC"), os.environ.get("XLA_FLAGS"))
"""
COUNT = "--xla_force_host_platform_device_count=3"
EIGEN = "--xla_cpu_multi_thread_eigen="


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "1 None None"),
        ({"COUNT": "2"}, f"2 32 {EIGEN}false"),
        ({"XLA_FLAGS": COUNT}, f"3 32 {COUNT} {EIGEN}false"),
        ({"XLA_FLAGS": f"{COUNT} {EIGEN}true", "NPROC": "5"}, f"3 5 {COUNT} {EIGEN}true"),
    ],
)
def test_a_cpu_is_one_device_and_more_where_that_is_asked_for(asked, expected):
    own = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    run = subprocess.run(
        [sys.executable, "-c", CHOOSE],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=120,
        env=own | {"JAX_PLATFORMS": "cpu"} | asked,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == expected
