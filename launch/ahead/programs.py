"""A recipe's real steps without its data, compiled for devices that are not there.

Shapes follow from published facts of the data sets. What the package is asked for stands in
`assemble` alone.
"""

import copy
import hashlib
import importlib.util
import json
import math
import pathlib
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jaxlib
import ml_collections
import numpy as np
from jax.extend import core

from launch.ahead import hlo, roofline
from vireid_jax import build, embedding, optim, train
from vireid_jax.data import augment, sampler
from vireid_jax.data.readers import get_reader, sysu
from vireid_jax.runtime import devices as placement
from vireid_jax.types import INFRARED, VISIBLE


class Facts(NamedTuple):
    """What a recipe's training data comes to."""

    classes: int
    visible: int  # images
    infrared: int


class Built(NamedTuple):
    """Steps to compile, and the shapes to compile them for."""

    step: Any  # jitted, (state, batch)
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    embed: Any  # jitted, (variables, images, modality)
    images: jax.ShapeDtypeStruct


def facts(config: ml_collections.ConfigDict, num_classes: int | None = None) -> Facts:
    """People and images of the recipe's data set, from what is published.

    Raises:
      ValueError: they are not published, and `num_classes` (people to train on) is not given.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    data = config.data
    if data.name == "synthetic":
        ids = data.train_ids
        # Before each of four visible and two infrared cameras.
        found = Facts(ids, 4 * ids * data.train_visible, 2 * ids * data.train_infrared)
    elif (counts := get_reader(data.name).PUBLISHED) is not None:
        if held := data.val_ids:
            out = sysu.HELD_OUT if data.name == "sysu" else (held, *(
                round(n * held / counts[0]) for n in counts[1:]
            ))  # fmt: skip
            counts = tuple(a - b for a, b in zip(counts, out, strict=True))
        found = Facts(*counts)
    elif num_classes is None:
        raise ValueError(
            f"how many people are trained on is not known of the data set {data.name!r}; expected "
            "--num_classes=N (python -m vireid_jax.data show counts them)"
        )
    else:
        found = Facts(num_classes, 10 * num_classes, 10 * num_classes)  # of no matter to shapes
    if num_classes is not None and num_classes != found.classes:
        scale = num_classes / found.classes
        found = Facts(num_classes, round(scale * found.visible), round(scale * found.infrared))
    if config.sampler.num_ids > found.classes:
        raise ValueError(
            f"sampler.num_ids is {config.sampler.num_ids}, but {data.name} has {found.classes} "
            "people to train on, and a batch has each at most once"
        )
    return found


def resized(config: ml_collections.ConfigDict, rows: int, classes: int) -> Any:
    """The recipe with `rows` rows: more identities, or more images of each where people run out.

    Raises:
      ValueError: no such batch can be made.
    """
    config = copy.deepcopy(config)
    instances = config.sampler.num_instances
    if rows % instances:
        raise ValueError(
            f"a batch of {rows} rows is no multiple of sampler.num_instances, {instances}; choose "
            "another topology or sampler.num_ids"
        )
    ids = rows // instances
    more = next(n for n in range(1, ids + 1) if ids % n == 0 and ids // n <= classes)
    config.sampler.num_ids, config.sampler.num_instances = ids // more, instances * more
    return config


def enlarged(config: ml_collections.ConfigDict, devices: int, classes: int) -> Any:
    """The recipe with a batch a little larger, of rows that divide as its own do."""
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    d = config.devices
    unit = math.lcm(devices * d.accumulate, devices * d.bn_groups, instances)
    return resized(config, ids * instances + unit, classes)


def check_rows(config: ml_collections.ConfigDict, devices: int) -> None:
    """Refuses a batch whose rows do not divide over the devices, with the nearest `num_ids`.

    Raises:
      ValueError: they do not, or the recipe's devices section has impossible values.
    """
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    if ids < 1 or instances < 1:
        raise ValueError(
            f"sampler.num_ids is {ids} and sampler.num_instances {instances}, expected at least 1"
        )
    placement.check_rows(ids, instances, devices)


def assemble(config: ml_collections.ConfigDict, found: Facts, mesh: jax.sharding.Mesh) -> Built:
    """The real train step and embed step of a recipe on a mesh, and their shapes.

    Nothing is computed, and the devices of the mesh need not be there. The kernels are XLA's:
    "auto" would take those for the CPU on a machine that has only that.
    """
    config = copy.deepcopy(config)
    config.method.kernels = "xla"
    check_rows(config, mesh.size)
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    steps = config.sampler.steps_per_epoch
    if steps is None:
        steps = _steps_per_epoch(config, found)
    method, _ = build.make_method(config, found.classes, steps)
    transform, learning_rate = optim.make(
        steps_per_epoch=steps, epochs=config.train.epochs, **config.optim
    )
    step = train.make_train_step(
        method,
        partial(augment.augment, **config.augment),
        transform,
        learning_rate,
        mesh=mesh,
        seed=config.seed,
    )
    size = tuple(config.data.image_size)
    count = ids * instances
    image = jax.ShapeDtypeStruct((count, *size, 3), np.uint8)
    label, camera = (jax.ShapeDtypeStruct((count, *s), np.int32) for s in ((), (2,)))
    embedded = -(-config.eval.batch_size // mesh.size) * mesh.size
    return Built(
        step,
        placement.abstract(train.abstract_state(method, transform), mesh),
        {"visible": image, "infrared": image, "label": label, "camera": camera},
        embedding.make_embed(method, mesh),
        jax.ShapeDtypeStruct((embedded, *size, 3), np.uint8),
    )


def _steps_per_epoch(config: ml_collections.ConfigDict, found: Facts) -> int:
    """By the sampler's rule, as if all people had equally many images; schedules depend on it."""
    label, modality = [], []
    for number, images in ((VISIBLE, found.visible), (INFRARED, found.infrared)):
        label.append(np.arange(max(images, found.classes)) % found.classes)
        modality.append(np.full(len(label[-1]), number))
    return sampler.steps_per_epoch(
        np.concatenate(label).astype(np.int32),
        np.concatenate(modality).astype(np.int8),
        num_ids=config.sampler.num_ids,
        num_instances=config.sampler.num_instances,
        rule=config.sampler.rule,
    )


# --- Compiling --------------------------------------------------------------------------

EFFORTS = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# The TPU compiler's words; the first number of each is what the program would need.
_NEEDED = re.compile(r"(?:Used|required for [\w ]+ \(|temporaries \()\s*([\d.]+)([KMGT]?)")


class Devices(NamedTuple):
    """What to compile for."""

    topology: roofline.Topology
    devices: list[Any]
    chip: roofline.Chip | None

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
    traffic: int | None  # bytes of a chip's memory, see `hlo.traffic`
    collectives: list[hlo.Collective]
    seconds: float  # to compile
    error: str = ""  # the compiler's, if there was no room


# What XLA has to know of a GPU to compile for it where it is not, in its own words: the figures of
# an H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def _find_cuda() -> None:
    """Makes JAX load its compiler for CUDA, which needs no driver.

    Raises:
      ValueError: it is not installed.
    """
    jax.devices()  # JAX looks for plugins when its backends start
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise ValueError(
            "no description of h100: its compiler is not installed. It needs no GPU and no driver: "
            "in an environment of its own, pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt "
            "nvidia-cuda-nvcc-cu12, the first two in the version of jaxlib"
        )


def find_devices(topology: roofline.Topology) -> Devices:
    """The devices of a topology; see `__main__.prepare`, which comes before JAX starts.

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
        chip = roofline.chip_of(topology, found[0].device_kind)
        stats = found[0].memory_stats() if topology.kind == "gpu" else None
        if chip and stats and "bytes_limit" in stats:
            chip = chip._replace(memory=stats["bytes_limit"])
        return Devices(topology._replace(shape=(wanted,)), list(found[:wanted]), chip)
    from jax.experimental import topologies

    if topology.kind == "h100":
        _find_cuda()
        described = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
        )
        return Devices(topology, list(described.devices), roofline.chip_of(topology))
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
    return Devices(topology, found, roofline.chip_of(topology))


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
    # Tiles of Triton's products are chosen by timing them, and the first may not do.
    options = {"xla_gpu_enable_triton_gemm": False} if target.topology.kind == "h100" else None
    try:
        compiled = lowered.compile(compiler_options=options)
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
        hlo.traffic(text),
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
    moved = program.traffic if target.topology.kind in roofline.TPUS else program.bytes_accessed
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
        known = fixed_sizes(*steps)
        carried = [group_of(c, fixed=known) for c in program.collectives]
    shared = mesh.shape.get("fsdp", 1) > 1
    kinds = (hlo.GRADIENTS, *[hlo.PARAMETERS] * shared, hlo.FEATURES, hlo.OTHER)
    found: dict[str, list[hlo.Collective]] = {kind: [] for kind in kinds}
    for collective, kind in zip(program.collectives, carried, strict=True):
        found[kind].append(collective)
    return found


def fixed_sizes(one: Any, other: Any) -> set[int]:
    """Numbers in the arrays that are in a step for one batch and for another.

    Devices may sum the gradient of a product of weights before the parameters' gradients are made
    of it. It is as large as no parameter is, and unlike a map it does not grow with the batch.
    Arrays within loops do not count: they may be of single rows.

    Args:
      one, other: `jax.jit(...).trace(...)` of the step for batches of nearly as many rows, since a
        map of one is then hardly as large as another map of the other.
    """
    return _all(one.jaxpr.jaxpr) & _all(other.jaxpr.jaxpr)


def _all(jaxpr: core.Jaxpr) -> set[int]:
    found: set[int] = set()
    for equation in jaxpr.eqns:
        shapes = [getattr(v.aval, "shape", ()) for v in equation.outvars]
        found |= {math.prod(shape) for shape in shapes}
        if equation.primitive.name not in ("scan", "while"):
            for value in equation.params.values():
                found |= _of(value)
    return found


def _of(value: Any) -> set[int]:
    if isinstance(value, core.ClosedJaxpr):
        return _all(value.jaxpr)
    if isinstance(value, core.Jaxpr):
        return _all(value)
    if isinstance(value, tuple | list):  # the branches of a condition
        return set().union(*map(_of, value))
    return set()
