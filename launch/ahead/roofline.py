"""A step's time from what it computes, reads and sends, and the chip's peak figures.

Nothing here is measured. A real step is slower than `Estimate.overlapped`: matrix units are never
kept busy all the time. What the estimate is good for is which of the four limits binds, and how the
answer changes with the number of chips. The model of communication is that of "How to Scale Your
Model" (Austin et al. 2025, https://jax-ml.github.io/scaling-book): rings along the axes of the
torus, each link used in both directions, and about a microsecond a hop for whatever is small.
"""

from collections.abc import Sequence
from typing import NamedTuple

from launch.ahead.chips import Chip
from launch.ahead.hlo import Collective

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
    """Estimates a step.

    Args:
      flops: of one chip.
      traffic: bytes between the chip's memory and its cores.
      collectives: from `hlo.collectives`.
      chip: peak figures.
      shape: chips along each axis.
      dtype: what the matrix units multiply in. Where the chip has no rate for float32, XLA's
        default precision rounds float32 operands to bfloat16, so that rate holds for both.
    """
    peak = chip.peak.get(dtype, chip.peak["bfloat16"])
    chips = 1
    for length in shape:
        chips *= length
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
