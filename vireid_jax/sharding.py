"""Mesh, shardings, and the way from host arrays to global ones.

One mesh axis, "data": the batch is sharded over its rows, parameters are replicated, and
`jax.jit` with these shardings (what pjit became) does the rest.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, "data"."""
    # Since jax 0.8 axes are Explicit unless said otherwise; then x[:, None] - x[None]
    # of a sharded x, an all-pairs distance, is an error.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Every device holds a contiguous run of rows."""
    return NamedSharding(mesh, PartitionSpec("data"))


def process_rows(rows: int) -> slice:
    """The rows of a global batch that this process loads.

    Raises:
      ValueError: if the batch does not divide over devices, with the nearest sizes.
    """
    devices, processes = jax.device_count(), jax.process_count()
    if rows % devices:
        low = rows // devices * devices
        raise ValueError(
            f"a batch of {rows} rows (sampler.num_ids x sampler.num_instances) does not divide "
            f"over {devices} devices; choose a product of {low or devices} or {low + devices}"
        )
    share = rows // processes
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> arrays sharded by rows over all processes."""
    sharding = by_rows(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, equal in every process -> global arrays that every device holds."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), np.shape(x)), tree
    )


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes of a tree, with the replicated sharding, as a restore target."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: tree) if not _is_abstract(tree) else tree,
    )


def _is_abstract(tree: Any) -> bool:
    return all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))
