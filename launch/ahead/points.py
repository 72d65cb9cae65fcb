"""The questions of the command: one topology, several, and the largest batch of one chip."""

import copy
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import ml_collections

from launch.ahead import hlo, programs, roofline, tables
from vireid_jax.methods.common import with_backbone
from vireid_jax.runtime.devices import make_mesh


class Points:
    """Compilations of one programs. Every method prints what it finds and returns it for JSON."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        num_classes: int | None = None,
        keep: pathlib.Path | None = None,
    ):
        """Takes a recipe; see `programs.facts`, `programs.train_step`."""
        self.config = config
        self.keep = keep
        self._trained: dict[tuple, tuple[dict[str, Any], list[str]]] = {}
        self.facts = programs.facts(config, num_classes)
        with_backbone(config.method)["backbone"].check()
        self.rows = config.sampler.num_ids * config.sampler.num_instances

    def about(self) -> dict[str, Any]:
        """The recipe, in short."""
        c = self.config
        print(
            f"{c.run_name}: {c.method.name}, depth {c.method.depth}, {c.method.dtype}, "
            f"{self.facts.classes} people, {c.data.image_size[0]} x {c.data.image_size[1]} pixels"
        )
        return {
            "method": c.method.name,
            "dataset": c.data.name,
            "classes": self.facts.classes,
            "image_size": list(c.data.image_size),
            "depth": c.method.depth,
            "dtype": c.method.dtype,
            "devices": c.devices.to_dict(),
        }

    def step(self, topology: roofline.Topology, *, embed: bool = True) -> dict[str, Any]:
        """The steps on one topology, in full."""
        figures, lines = self._train(self.config, topology, embed=embed)
        print("\n".join(lines), flush=True)
        return figures

    def scaling(
        self, topology: roofline.Topology, sizes: Sequence[roofline.Topology]
    ) -> list[dict[str, Any]]:
        """The train step on other numbers of chips, with the rows of a chip as on `topology`.

        Efficiency is images a second and chip, relative to one chip that need not communicate.
        """
        base = programs.find_devices(topology)
        per_chip, rest = divmod(self.rows, len(base.devices))
        assert not rest, "the step was compiled, so the rows divide"
        print(f"\nscaling, {per_chip} rows of each modality on every chip")
        alone = self._train(self.config, topology)[0]
        found = []
        for size in sizes:
            config = programs.resized(self.config, per_chip * size.chips, self.facts.classes)
            figures, _ = self._train(config, size)
            line = f"  {size.name:10} {figures['num_ids']} x {figures['num_instances']}:"
            seconds, reference = figures.get("seconds"), alone.get("seconds")
            if seconds and reference:
                chip = max(reference["compute"], reference["memory"])
                worst, best = chip / seconds["serial"], chip / seconds["overlapped"]
                figures["efficiency"] = {"serial": worst, "overlapped": best}
                rate = 2 * per_chip * size.chips / seconds["serial"]
                line += f" efficiency {worst:.0%} without overlap, {best:.0%} with; "
                line += f"{rate:,.0f} images/s,"
            line += f" {_peak(figures)} per chip"
            if (others := figures.get("collectives", {}).get(hlo.OTHER)) and others["operations"]:
                line += f"; {others['operations']} collectives of something else (--json has them)"
            print(line, flush=True)
            found.append(figures)
        return found

    def largest(self, topology: roofline.Topology, *, tries: int = 8) -> dict[str, Any]:
        """The largest batch of one chip, with and without rematerialization."""
        one = roofline.of_size(topology, 1)
        if programs.find_devices(one).chip is None:
            raise ValueError(
                f"largest_batch: the memory of a {programs.find_devices(one).kind} is not known; "
                "expected a TPU topology, or a GPU that launch/ahead/roofline.py has"
            )
        return {
            name: self._largest(one, remat=remat, tries=tries)
            for name, remat in (("plain", False), ("remat", True))
        }

    def _largest(self, one: roofline.Topology, *, remat: bool, tries: int) -> dict[str, Any]:
        chip = programs.find_devices(one).chip
        assert chip is not None
        config = copy.deepcopy(self.config)
        config.devices.remat, config.devices.fsdp = remat, 1
        instances = config.sampler.num_instances
        tried: dict[str, dict[str, Any]] = {}

        def measure(ids: int) -> Point:
            config.sampler.num_ids = ids
            figures, _ = self._train(config, one)
            tried[str(ids)] = figures
            print(f"    {ids} x {instances}: {_peak(figures)}", flush=True)
            return Point(bool(figures["fits"]), figures["memory_bytes"].get("peak"))

        print(f"\nlargest batch of one {one.kind} chip, devices.remat={remat}", flush=True)
        answer = largest(
            measure,
            chip.memory,
            first=self.config.sampler.num_ids,
            fewest=2,
            most=self.facts.classes,
            tries=tries,
        )
        if answer.largest is None:
            print(f"  not even {answer.refused} identities fit", flush=True)
        else:
            beyond = f"{answer.refused} do not" if answer.refused else "more was not tried"
            print(
                f"  {answer.largest} identities x {instances} images of each modality fit, "
                f"{2 * answer.largest * instances} images; {beyond}",
                flush=True,
            )
        return {
            "num_ids": answer.largest,
            "num_instances": instances,
            "rows": None if answer.largest is None else answer.largest * instances,
            "refused_num_ids": answer.refused,
            "tried": tried,
        }

    def _train(
        self, config: ml_collections.ConfigDict, topology: roofline.Topology, *, embed: bool = False
    ) -> tuple[dict[str, Any], list[str]]:
        """Figures of the train step, and of the embed step if asked for; and lines to print."""
        key = (topology, str(config))
        if key not in self._trained:
            self._trained[key] = self._compiled(config, topology, embed)
        return self._trained[key]

    def _compiled(
        self, config: ml_collections.ConfigDict, topology: roofline.Topology, embed: bool
    ) -> tuple[dict[str, Any], list[str]]:
        target = programs.find_devices(topology)
        programs.check_rows(config, len(target.devices))
        mesh = make_mesh(target.devices, fsdp=config.devices.fsdp)
        built = programs.assemble(config, self.facts, mesh)
        ids, instances = config.sampler.num_ids, config.sampler.num_instances
        rows, dtype = ids * instances, config.method.dtype
        lines = [
            f"{len(target.devices)} x {target.kind} ({topology.name}), batch {ids} identities x "
            f"{instances} images of each modality, {rows // len(target.devices)} rows a chip"
        ]
        program = programs.train_step(built, target, self.keep)
        groups = None
        if not program.error:
            more = programs.enlarged(config, len(target.devices), self.facts.classes)
            larger = partial(programs.assemble, more, self.facts, mesh)
            groups = programs.grouped(program, built, mesh, larger)
        time = programs.estimate(program, target, dtype)
        lines += tables.program_lines("train step", program, groups, target)
        lines += tables.time_lines(time, images=2 * rows, dtype=dtype, target=target)
        figures = {
            "topology": topology.name,
            "chips": len(target.devices),
            "device_kind": target.kind,
            "num_ids": ids,
            "num_instances": instances,
            "rows": rows,
            **tables.as_json(program, groups, time),
        }
        if embed:
            second = programs.embed_step(built, target, self.keep)
            count, everything = built.images.shape[0], {"all": second.collectives}
            lines += tables.program_lines(f"embed step, {count} images", second, None, target)
            time = programs.estimate(second, target, dtype)
            figures["embed"] = {"images": count, **tables.as_json(second, everything, time)}
        return figures, lines


def _peak(figures: dict[str, Any]) -> str:
    peak = figures["memory_bytes"].get("peak")
    return tables.size(peak) if peak else "too much"


# --- Search -----------------------------------------------------------------------------


class Point(NamedTuple):
    """What compiling for some number of identities came to."""

    fits: bool
    bytes: int | None  # that a chip needs, as far as the compiler says


class Found(NamedTuple):
    """The answer, and how sure it is."""

    largest: int | None  # identities that fit; None: not even the fewest
    refused: int | None  # the fewest that were tried and do not fit; None: all that may be fit
    points: dict[int, Point]


def largest(
    measure: Callable[[int], Point],
    limit: int,
    *,
    first: int,
    fewest: int = 1,
    most: int,
    within: float = 0.03,
    tries: int = 8,
) -> Found:
    """Finds the largest number of identities whose program needs no more than `limit` bytes.

    Bytes are nearly affine in the rows, so two compilations tell about where the limit is. Both
    numbers that are returned have been compiled.

    Args:
      measure: compiles for a number of identities.
      limit: bytes of a chip.
      first: where to begin.
      fewest: identities, at least; a loss may need two.
      most: identities there are.
      within: relative distance of what fits and what does not at which to stop.
      tries: the most compilations.
    """
    points: dict[int, Point] = {}
    low, high = fewest - 1, most + 1  # fits (or nothing is asked), does not fit
    guess = min(max(first, fewest), most)
    slow = False
    while len(points) < tries:
        before = high - low
        points[guess] = point = measure(guess)
        if point.fits:
            low = guess
        else:
            high = guess
        step = max(1, int(within * low))
        if high - low <= 1 or (high - low <= step and (high in points or low == most)):
            break
        # Where bytes go up by steps, a line may creep up on the limit.
        slow = high in points and low in points and not slow and 2 * (high - low) > before
        guess = (low + high) // 2 if slow else _guess(points, limit, low, high, step)
        guess = min(max(guess, low + 1), high - 1)
    return Found(low if low in points else None, high if high in points else None, points)


def _guess(points: dict[int, Point], limit: int, low: int, high: int, step: int) -> int:
    """Where the line through two sizes that are known reaches the limit."""
    known = [(n, p.bytes) for n, p in sorted(points.items()) if p.bytes is not None]
    below = [(n, size) for n, size in known if n <= low]
    above = [(n, size) for n, size in known if n >= high]
    pair = [*below[-1:], *above[:1]] if above else below[-2:]
    if not below or (len(pair) == 1 and high in points):
        return (low + high) // 2
    if len(pair) == 1:  # no slope yet; with parameters, proportion promises too little: safe
        ((n, size),) = pair
        return max(n + 1, int(0.95 * n * limit / size))
    (n0, b0), (n1, b1) = pair
    if b1 <= b0:  # the compiler has begun to trade time for memory
        return (low + high) // 2 if high in points else 2 * low
    reach = n0 + int((limit - b0) * (n1 - n0) / (b1 - b0))
    return reach if reach > low else low + step
