"""Mesh, shardings, and the way from host arrays to global ones.

One mesh axis, "data": the batch is sharded over its rows, parameters are replicated, and
`jax.jit` with these shardings does the rest. A second axis, "fsdp", is optional: the batch is
sharded over both, and the devices along it share one copy of the training state, instead of
holding one each (ZeRO, Rajbhandari et al. 2020; FSDP).
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

POOL_THREADS = 32
SHARDED_FROM = 4096  # numbers; cutting less saves nothing and costs a message


def share_cpu() -> None:
    """Lets several devices on one CPU share its threads; call before jax computes anything.

    A CPU is one device, which has all cores, unless XLA_FLAGS or jax_num_cpu_devices asks for more
    (docs/speed.md says how the two compare). Devices on one CPU share a pool of threads, by default
    one a core, and a collective blocks the thread that it runs on: with two of them, seen after
    some hundred steps, both can wait for a device that has no thread left. So the pool is larger
    than what can ever be blocked, no operation waits for the pool, and a step ends on all devices
    before the next starts.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    several = getattr(jax.config, "jax_num_cpu_devices", -1) > 1
    if "host_platform_device_count" not in flags and not several:
        return
    os.environ.setdefault("NPROC", str(POOL_THREADS))  # what XLA sizes its pools by
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def check_rows(num_ids: int, num_instances: int, devices: int) -> None:
    """Refuses a batch whose rows do not divide over the devices, with the nearest `num_ids`.

    Raises:
      ValueError: they do not.
    """
    if num_ids * num_instances % devices:
        unit = devices // math.gcd(devices, num_instances)
        low = num_ids // unit * unit
        near = f"{low} or {low + unit}" if low else str(unit)
        raise ValueError(
            f"a batch of {num_ids} identities x {num_instances} images, {num_ids * num_instances} "
            f"rows, does not divide over {devices} devices; choose --config.sampler.num_ids={near}"
        )


def local_facts() -> dict[str, Any]:
    """What all processes must have in common in their devices.

    Raises:
      ValueError: there are none of the kind that was asked for.
    """
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is missing
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = f": {error}".partition("\n")[0].removesuffix(": ")
        raise ValueError(
            f"jax finds no devices of JAX_PLATFORMS={asked}{reason}. Unset it to take what is "
            "there, or install what drives them (pip install 'vireid_jax[cuda]' or [tpu])"
        ) from error
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "local devices": len(devices),
        "devices": jax.device_count(),
    }


def make_mesh(devices: Sequence[Any] | None = None, *, fsdp: int = 1) -> Mesh:
    """All devices of all processes along one axis, "data"; or two, ("data", "fsdp").

    The devices of a process are neighbors along both, so its rows of a batch are one run.

    Args:
      devices: None takes all there are.
      fsdp: how many devices share one copy of the training state; 1 leaves the axis out.

    Raises:
      ValueError: `fsdp` does not divide the devices.
    """
    # jax.make_mesh would reorder the devices of a TPU pod, and with them the rows of a process.
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id)
    )
    if fsdp < 1 or len(devices) % fsdp:
        choices = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ValueError(
            f"devices.fsdp is {fsdp}, which does not divide {len(devices)} devices; choose one of "
            f"{', '.join(map(str, choices))}"
        )
    shape, names = ((-1,), ("data",)) if fsdp == 1 else ((-1, fsdp), ("data", "fsdp"))
    # Since jax 0.8 axes are Explicit unless said otherwise; then x[:, None] - x[None]
    # of a sharded x, an all-pairs distance, is an error.
    types = (AxisType.Auto,) * len(names)
    return Mesh(np.asarray(devices).reshape(shape), names, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Every device holds a contiguous run of rows."""
    names = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(names if len(names) > 1 else names[0]))


def of_state(tree: Any, mesh: Mesh) -> Any:
    """How the arrays of a training state are placed: a sharding for each.

    Replicated; on a mesh with "fsdp", arrays of `SHARDED_FROM` numbers or more are cut along
    their longest axis that divides over it (the later one of equals).
    """
    share = mesh.shape.get("fsdp", 1)

    def place(x: Any) -> NamedSharding:
        axes = [n for n, size in enumerate(x.shape) if size % share == 0]
        if share == 1 or not axes or math.prod(x.shape) < SHARDED_FROM:
            return replicated(mesh)
        axis = max(axes, key=lambda n: (x.shape[n], n))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(place, tree)


def process_rows(rows: int) -> slice:
    """The rows of a global batch that this process loads.

    Raises:
      ValueError: if the batch does not divide over devices, with the nearest sizes.
    """
    devices, processes = jax.device_count(), jax.process_count()
    if rows % devices:
        low = rows // devices * devices
        sizes = f"{low} or {low + devices}" if low else f"{devices}"
        raise ValueError(
            f"a batch of {rows} rows (sampler.num_ids x sampler.num_instances) does not divide "
            f"over {devices} devices; choose a product of {sizes}"
        )
    share = rows // processes
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> arrays sharded by rows over all processes."""
    sharding = by_rows(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def place(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, equal in every process -> global arrays, placed as `of_state` says."""
    host = jax.tree.map(np.asarray, tree)
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, x.__getitem__),
        host,
        of_state(host, mesh),
    )


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes of a tree, with the shardings of `of_state`, as a restore target."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, of_state(tree, mesh)
    )
