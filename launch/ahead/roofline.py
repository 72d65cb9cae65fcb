"""Chips, the shapes they are rented in, and a step's time on them; imports no JAX.

Figures of chips are the vendors', each with its page; memory is what the TPU compiler reports. No
time is measured, and a real step is slower than `Estimate.overlapped`. The model of communication
is from "How to Scale Your Model" (Austin et al. 2025, https://jax-ml.github.io/scaling-book): rings
along the axes of the torus, each link used in both directions, about a microsecond a hop.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from launch.ahead.hlo import Collective

GIB = 1 << 30


class Chip(NamedTuple):
    """Peak figures of one chip."""

    memory: int  # bytes that a program can have
    bandwidth: float  # bytes/s between that memory and the cores
    peak: dict[str, float]  # FLOP/s by the dtype that the matrix units multiply in
    link: float  # bytes/s, one link to a neighbor in one direction
    ring: int  # an axis of chips closes to a ring if this divides its length; 0: no axes, a switch
    source: str


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str  # as given: v5e:4x4, cpu:8, gpu, h100
    kind: str  # a key of SHAPES, "cpu", "gpu" or "h100"
    shape: tuple[int, ...]  # chips along each axis

    @property
    def chips(self) -> int:
        """How many there are; 0: all GPUs at hand."""
        return math.prod(self.shape)


_TPU_DOCS = "https://cloud.google.com/tpu/docs/"

# The pages give the links of a chip together, both directions: 400 GB/s for the four of v5e, 1200
# for the six of v5p, 800 for the four of v6e. The page of v6e used to say 1640 and 896 GB/s.
TPUS = {
    "v5e": Chip(int(15.75 * GIB), 819e9, {"bfloat16": 197e12}, 50e9, 16, f"{_TPU_DOCS}v5e"),
    "v5p": Chip(int(95.74 * GIB), 2765e9, {"bfloat16": 459e12}, 100e9, 4, f"{_TPU_DOCS}v5p"),
    "v6e": Chip(int(31.25 * GIB), 1600e9, {"bfloat16": 918e12}, 100e9, 16, f"{_TPU_DOCS}v6e"),
}

# Dense rates and SXM parts; float32 is TF32, XLA's default for float32 on these.
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
GPUS = {
    "H200": Chip(
        141 * 10**9, 4800e9, {"bfloat16": 989e12, "float32": 494e12}, 450e9, 0, f"{_NVIDIA}h200/"
    ),
    "H100": Chip(
        80 * 10**9, 3350e9, {"bfloat16": 989e12, "float32": 494e12}, 450e9, 0, f"{_NVIDIA}h100/"
    ),
    "A100": Chip(
        80 * 10**9, 2039e9, {"bfloat16": 312e12, "float32": 156e12}, 300e9, 0, f"{_NVIDIA}a100/"
    ),
}

# Slices that are rented, from the pages above, and a single chip of each.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SHAPES = {
    "v5e": _FLAT,
    "v5p": (
        *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        *("8x8x16", "8x16x16", "16x16x16", "16x16x24"),
    ),
    "v6e": _FLAT,
}


def parse(name: str) -> Topology:
    """Reads v5e:4x4, cpu:8, gpu or h100.

    Raises:
      ValueError: there is no such chip or shape; the message lists those there are.
    """
    kind, _, shape = name.partition(":")
    if name == "gpu":
        return Topology(name, kind, (0,))
    if name == "h100":
        return Topology(name, kind, (1,))
    if kind == "cpu":
        if not re.fullmatch("[1-9][0-9]{0,3}", shape):
            raise ValueError(
                f"topology {name!r}: expected cpu:N with a number N of devices, as in cpu:8"
            )
        return Topology(name, kind, (int(shape),))
    if kind not in SHAPES:
        raise ValueError(
            f"topology {name!r}: no chip {kind!r}; expected {', '.join(sorted(SHAPES))} with a "
            "shape, as in v5e:4x4, or cpu:N, or gpu, or h100"
        )
    if shape not in SHAPES[kind]:
        raise ValueError(
            f"topology {name!r}: {kind} comes as {', '.join(SHAPES[kind])}; expected one of these, "
            f"as in {kind}:{SHAPES[kind][3]}"
        )
    return Topology(name, kind, tuple(int(n) for n in shape.split("x")))


def chip_of(topology: Topology, device_kind: str = "") -> Chip | None:
    """The chip's figures; None where there are none, as for a CPU.

    Args:
      topology: from `parse`.
      device_kind: JAX's name of the device, for a GPU: "NVIDIA H100 80GB HBM3".
    """
    if topology.kind == "gpu":
        return next((chip for name, chip in GPUS.items() if name in device_kind), None)
    return GPUS["H100"] if topology.kind == "h100" else TPUS.get(topology.kind)


def of_size(topology: Topology, chips: int) -> Topology:
    """The slice of the same chip with so many chips; the squarest if there are several.

    Raises:
      ValueError: it does not come in that size.
    """
    if topology.kind in ("cpu", "gpu", "h100"):
        if chips > topology.chips:
            raise ValueError(f"{topology.name} has {topology.chips} devices, not {chips}")
        if topology.kind == "h100":
            return topology
        return Topology(f"{topology.kind}:{chips}", topology.kind, (chips,))
    found = [parse(f"{topology.kind}:{shape}") for shape in SHAPES[topology.kind]]
    sizes = [t for t in found if t.chips == chips]
    if not sizes:
        known = ", ".join(str(t.chips) for t in found)
        raise ValueError(f"no slice of {chips} {topology.kind} chips; there are {known}")
    return min(sizes, key=lambda t: max(t.shape))


# --- Time of a step ---------------------------------------------------------------------

HOP = 1e-6  # seconds; scaling book, "Sharded Matrices", on small arrays


class Estimate(NamedTuple):
    """Seconds of a step."""

    compute: float  # FLOPs at the peak rate
    memory: float  # bytes of the chip's memory at the peak bandwidth
    transfer: float  # bytes between chips at the bandwidth of the rings
    latency: float  # of the hops, collectives one after the other

    @property
    def chip(self) -> float:
        """On a chip by itself."""
        return max(self.compute, self.memory)

    @property
    def serial(self) -> float:
        """If communication waits for computation and the other way round."""
        return self.chip + self.transfer + self.latency

    @property
    def overlapped(self) -> float:
        """If all of it happens at once."""
        return max(self.chip, self.transfer + self.latency)


def estimate(
    *,
    flops: float,
    traffic: float,
    collectives: Sequence[Collective],
    chip: Chip,
    shape: tuple[int, ...],
    dtype: str,
) -> Estimate:
    """Estimates a step of `flops` and `traffic` (bytes to and from memory) on each chip.

    `shape` has the chips along each axis, `dtype` is what the matrix units multiply in. Where a
    chip has no rate for float32, XLA rounds its operands to bfloat16, whose rate then holds.
    """
    peak = chip.peak.get(dtype, chip.peak["bfloat16"])
    chips = math.prod(shape)
    transfer = latency = 0.0
    if chips > 1:
        for collective in collectives:
            count = abs(collective.times)
            group = collective.group or chips
            if group < 2:
                continue
            transfer += count * sent(collective, group) / bandwidth(chip, shape)
            both = 2 if collective.kind == "all-reduce" else 1
            latency += count * both * hops(chip, shape) * HOP
    return Estimate(flops / peak, traffic / chip.bandwidth, transfer, latency)


def sent(collective: Collective, group: int) -> float:
    """Bytes that a device sends, by ring algorithms over `group` devices."""
    share = (group - 1) / group
    return collective.bytes * {
        "all-reduce": 2 * share,  # scattered sums, then gathered
        "reduce-scatter": group - 1,  # what is returned is a group-th of what is summed
        "collective-permute": 1.0,
        "collective-broadcast": 1.0,
    }.get(collective.kind, share)


def closed(chip: Chip, shape: tuple[int, ...]) -> list[bool]:
    """Which axes are rings; the others are lines of chips.

    v5e and v6e have rings along axes of a whole pod's length, v5p in slices of whole 4 x 4 x 4
    cubes (its page).
    """
    fits = [bool(chip.ring) and length % chip.ring == 0 for length in shape]
    return [all(fits)] * len(shape) if len(shape) == 3 else fits


def bandwidth(chip: Chip, shape: tuple[int, ...]) -> float:
    """Bytes/s that a chip sends in rings along all axes at once.

    An axis that closes to a ring is gone around in both directions; a line of chips is a ring that
    goes there and back, over one link.
    """
    if not chip.ring:
        return chip.link
    lengths = zip(shape, closed(chip, shape), strict=True)
    return chip.link * sum(1 + ring for length, ring in lengths if length > 1)


def hops(chip: Chip, shape: tuple[int, ...]) -> int:
    """From a chip to the farthest."""
    if not chip.ring:
        return 1
    lengths = zip(shape, closed(chip, shape), strict=True)
    return sum(length // 2 if ring else length - 1 for length, ring in lengths)
