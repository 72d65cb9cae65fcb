"""Compiles steps for devices that are not there, and reads off what the compiler knows."""

import hashlib
import importlib.util
import json
import pathlib
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from launch.ahead import chips, fixed, hlo, roofline, traffic
from launch.ahead.recipe import Built
from vireid_jax.runtime import devices
from vireid_jax.types import VISIBLE

EFFORTS = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# The TPU compiler's words; the first number of each is what the program would need.
_NEEDED = re.compile(r"(?:Used|required for [\w ]+ \(|temporaries \()\s*([\d.]+)([KMGT]?)")


class Devices(NamedTuple):
    """What to compile for."""

    topology: chips.Topology
    devices: list[Any]
    chip: chips.Chip | None

    @property
    def kind(self) -> str:
        """JAX's name of the device."""
        return self.devices[0].device_kind


class Program(NamedTuple):
    """A compiled program; None where the compiler found no room for it."""

    fits: bool | None  # None: the memory of the device is not known
    memory: dict[str, int]  # bytes of a chip: arguments, outputs, temporaries, aliased, peak
    flops: float | None  # of a chip
    bytes_accessed: float | None  # by a chip, as XLA counts them
    traffic: int | None  # bytes of a chip's memory, see `launch.ahead.traffic`
    collectives: list[hlo.Collective]
    seconds: float  # to compile
    error: str = ""  # the compiler's, if there was no room


def find_devices(topology: chips.Topology) -> Devices:
    """The devices of a topology; see `compile_ahead.prepare`, which comes before JAX starts.

    Raises:
      ValueError: they cannot be had.
    """
    if topology.kind in ("cpu", "gpu"):
        try:
            found = jax.devices(topology.kind)
        except RuntimeError as error:
            raise ValueError(f"no {topology.kind.upper()} for JAX here: {error}") from None
        wanted = topology.chips or len(found)
        if len(found) < wanted:
            raise ValueError(
                f"{topology.name}: this process has {len(found)} {topology.kind.upper()} devices; "
                f"XLA_FLAGS or JAX_NUM_CPU_DEVICES say so, or JAX had started; expected {wanted}"
            )
        chip = chips.chip_of(topology, found[0].device_kind)
        stats = found[0].memory_stats() if topology.kind == "gpu" else None
        if chip and stats and "bytes_limit" in stats:
            chip = chip._replace(memory=stats["bytes_limit"])
        return Devices(topology._replace(shape=(wanted,)), list(found[:wanted]), chip)
    from jax.experimental import topologies

    name, count = topology.name, topology.chips
    if count == 1:  # libtpu describes whole hosts
        name = f"{topology.kind}:{'2x2x1' if len(topology.shape) == 3 else '2x2'}"
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # what libtpu raises, and what JAX does without it, is not stable
        reason = str(error).splitlines()[0]
        if importlib.util.find_spec("libtpu") is None:
            reason = (
                "TPU topologies need libtpu, though no TPU: in an environment of its own, "
                "pip install 'jax[tpu]' and this package"
            )
        raise ValueError(f"no description of {name}: {reason}") from None
    found: list[Any] = sorted(described.devices, key=lambda d: d.id)[:count]  # type: ignore
    return Devices(topology, found, chips.chip_of(topology))


def mesh_of(target: Devices, *, fsdp: int = 1) -> jax.sharding.Mesh:
    """The package's mesh over these devices."""
    return devices.make_mesh(target.devices, fsdp=fsdp)


def train_step(built: Built, target: Devices, keep: pathlib.Path | None = None) -> Program:
    """Compiles the train step; `keep` is a folder of programs that were compiled before."""
    return _kept(built.step, (built.state, built.batch), target, keep)


def embed_step(built: Built, target: Devices, keep: pathlib.Path | None = None) -> Program:
    """Compiles the embedding of a batch of visible images; see `train_step`."""
    arguments = (built.state.variables, built.images, VISIBLE)
    return _kept(built.embed, arguments, target, keep)


def _kept(
    function: Any, arguments: tuple[Any, ...], target: Devices, keep: pathlib.Path | None
) -> Program:
    """Compiles, or takes what the same program for the same devices came to before."""
    lowered = function.trace(*arguments).lower()
    if keep is None:
        return _compile(lowered, target)
    efforts = [jax.config.values[name] for name in EFFORTS]
    versions = (jaxlib.__version__, getattr(target.devices[0].client, "platform_version", ""))
    identity = repr((target.topology, target.kind, efforts, versions)) + lowered.as_text()
    path = keep / f"{hashlib.sha256(identity.encode()).hexdigest()[:20]}.json"
    if path.exists():
        return _from_json(json.loads(path.read_text()))
    program = _compile(lowered, target)
    keep.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(program._asdict(), indent=1) + "\n")
    temporary.replace(path)
    return program


def _from_json(values: dict[str, Any]) -> Program:
    """Undoes `Program._asdict`, whose named tuples JSON has as lists."""

    def array(dtype: str, shape: list[int]) -> hlo.Array:
        return hlo.Array(dtype, tuple(shape))

    values["collectives"] = [
        hlo.Collective(kind, tuple(array(*a) for a in members), *rest)
        for kind, members, *rest in values["collectives"]
    ]
    return Program(**values)


def _compile(lowered: Any, target: Devices) -> Program:
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error)
        needed = {"peak": n} if (n := needed_bytes(text)) else {}
        seconds = time.perf_counter() - start
        return Program(False, needed, None, None, None, [], seconds, text.splitlines()[0])
    seconds = time.perf_counter() - start
    memory = _memory(compiled.memory_analysis())
    fits = None if target.chip is None else memory["peak"] <= target.chip.memory
    cost = compiled.cost_analysis() or {}
    if isinstance(cost, list):  # of older JAX: one for each program
        cost = cost[0]
    text = compiled.as_text()
    return Program(
        fits,
        memory,
        cost.get("flops"),
        cost.get("bytes accessed"),
        traffic.traffic(text),
        hlo.collectives(text),
        seconds,
    )


def needed_bytes(message: str) -> int | None:
    """What a program would have needed, by the compiler's refusal."""
    match = _NEEDED.search(message)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None


def _memory(stats: Any) -> dict[str, int]:
    """Bytes of a chip; the peak is the compiler's if it says, else all that it names together."""
    found = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    total = sum(found.values()) - 2 * found["aliased"]
    # Some backends leave arguments out of their peak, or say 0.
    found["peak"] = max(getattr(stats, "peak_memory_in_bytes", 0), total)
    return {name: int(size) for name, size in found.items()}


def estimate(program: Program, target: Devices, dtype: str) -> roofline.Estimate | None:
    """The step's time on the chip; None where there are no figures for it."""
    # Only programs for TPUs say which arrays are in the chip's memory.
    moved = program.traffic if target.topology.kind in chips.TPUS else program.bytes_accessed
    if target.chip is None or program.flops is None or moved is None:
        return None
    return roofline.estimate(
        flops=program.flops,
        traffic=moved,
        collectives=program.collectives,
        chip=target.chip,
        shape=target.topology.shape,
        dtype=dtype,
    )


def grouped(
    program: Program, built: Built, mesh: jax.sharding.Mesh, larger: Callable[[], Built]
) -> dict[str, list[hlo.Collective]]:
    """The collectives of a train step by what they carry, see `hlo.group_of`.

    `larger` builds the step for a slightly larger batch; it is asked for where sizes of parameters
    leave a sum unexplained.
    """
    variables = built.state.variables
    statistics = [int(np.prod(x.shape)) for x in jax.tree.leaves(variables.get("batch_stats", {}))]
    features = jax.eval_shape(lambda v, x: built.embed(v, x, VISIBLE), variables, built.images)
    widest = max(x.shape[1] for x in features.values())
    rows = built.batch["label"].shape[0]
    group_of = partial(
        hlo.group_of,
        parameters={int(np.prod(x.shape)) for x in jax.tree.leaves(variables["params"])},
        # Sum, sum of squares and count of up to three modalities with a view each.
        statistics=8 * max(statistics, default=1),
        # Two modalities, auxiliary and second views of them.
        features=4 * rows * widest,
        shared=mesh.shape.get("fsdp", 1),
    )
    carried = [group_of(c) for c in program.collectives]
    both = zip(program.collectives, carried, strict=True)
    if any(c.kind in hlo.REDUCTIONS and kind == hlo.OTHER for c, kind in both):
        steps = (b.step.trace(b.state, b.batch) for b in (built, larger()))
        known = fixed.sizes(*steps)
        carried = [group_of(c, fixed=known) for c in program.collectives]
    shared = mesh.shape.get("fsdp", 1) > 1
    kinds = (hlo.GRADIENTS, *[hlo.PARAMETERS] * shared, hlo.FEATURES, hlo.OTHER)
    found: dict[str, list[hlo.Collective]] = {kind: [] for kind in kinds}
    for collective, kind in zip(program.collectives, carried, strict=True):
        found[kind].append(collective)
    return found
