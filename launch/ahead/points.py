"""The questions of `compile_ahead`: one topology, several, and the largest batch of one chip."""

import copy
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import ml_collections

from launch.ahead import chips, compiled, fit, hlo, recipe, report
from vireid_jax.methods.common import with_backbone


class Points:
    """Compilations of one recipe. Every method prints what it finds and returns it for JSON."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        num_classes: int | None = None,
        keep: pathlib.Path | None = None,
    ):
        """Takes a recipe; see `recipe.facts` of `num_classes`, `compiled.train_step` of `keep`."""
        self.config = config
        self.keep = keep
        self._trained: dict[tuple, tuple[dict[str, Any], list[str]]] = {}
        self.facts = recipe.facts(config, num_classes)
        with_backbone(config.method)["backbone"].check()
        self.rows = config.sampler.num_ids * config.sampler.num_instances

    def about(self) -> dict[str, Any]:
        """The recipe, in short."""
        c = self.config
        about = {
            "method": c.method.name,
            "dataset": c.data.name,
            "classes": self.facts.classes,
            "image_size": list(c.data.image_size),
            "depth": c.method.get("depth"),
            "dtype": c.method.dtype,
            "devices": c.devices.to_dict(),
        }
        print(
            f"{c.run_name}: {about['method']}, depth {about['depth']}, {about['dtype']}, "
            f"{self.facts.classes} people, {c.data.image_size[0]} x {c.data.image_size[1]} pixels"
        )
        return about

    def step(self, topology: chips.Topology, *, embed: bool = True) -> dict[str, Any]:
        """The steps on one topology, in full."""
        figures, lines = self._train(self.config, topology, embed=embed)
        print("\n".join(lines), flush=True)
        return figures

    def scaling(
        self, topology: chips.Topology, sizes: Sequence[chips.Topology]
    ) -> list[dict[str, Any]]:
        """The train step with the rows of a chip as on `topology`, on other numbers of chips.

        Efficiency is images a second and chip, relative to a chip of `topology` that need not
        communicate.
        """
        base = compiled.find_devices(topology)
        per_chip, rest = divmod(self.rows, len(base.devices))
        assert not rest, "the step was compiled, so the rows divide"
        print(f"\nscaling, {per_chip} rows of each modality on every chip")
        alone = self._train(self.config, topology)[0]
        found = []
        for size in sizes:
            config = recipe.resized(self.config, per_chip * size.chips, self.facts.classes)
            figures, _ = self._train(config, size)
            line = f"  {size.name:10} {figures['num_ids']} x {figures['num_instances']}:"
            seconds, reference = figures.get("seconds"), alone.get("seconds")
            if seconds and reference:
                chip = max(reference["compute"], reference["memory"])
                figures["efficiency"] = {
                    kind: chip / seconds[kind] for kind in ("serial", "overlapped")
                }
                worst, best = figures["efficiency"].values()
                rate = 2 * per_chip * size.chips / seconds["serial"]
                line += f" efficiency {worst:.0%} without overlap, {best:.0%} with; "
                line += f"{rate:,.0f} images/s,"
            peak = figures["memory_bytes"].get("peak")
            line += f" {report.size(peak) if peak else 'too much'} per chip"
            if (others := figures.get("collectives", {}).get(hlo.OTHER)) and others["operations"]:
                line += f"; {others['operations']} collectives of something else (--json has them)"
            print(line, flush=True)
            found.append(figures)
        return found

    def largest(self, topology: chips.Topology, *, tries: int = 8) -> dict[str, Any]:
        """The largest batch of one chip, with and without rematerialization; see `fit.largest`."""
        one = chips.of_size(topology, 1)
        if compiled.find_devices(one).chip is None:
            raise ValueError(
                f"largest_batch: the memory of a {compiled.find_devices(one).kind} is not known; "
                "expected a TPU topology, or a GPU that launch/ahead/chips.py has"
            )
        return {
            name: self._largest(one, remat=remat, tries=tries)
            for name, remat in (("plain", False), ("remat", True))
        }

    def _largest(self, one: chips.Topology, *, remat: bool, tries: int) -> dict[str, Any]:
        chip = compiled.find_devices(one).chip
        assert chip is not None
        config = copy.deepcopy(self.config)
        config.devices.remat, config.devices.fsdp = remat, 1
        instances = config.sampler.num_instances
        tried: dict[str, dict[str, Any]] = {}

        def measure(ids: int) -> fit.Point:
            config.sampler.num_ids = ids
            figures, _ = self._train(config, one)
            tried[str(ids)] = figures
            peak = figures["memory_bytes"].get("peak")
            shown = report.size(peak) if peak else "too much"
            print(f"    {ids} x {instances}: {shown}", flush=True)
            return fit.Point(bool(figures["fits"]), peak)

        print(f"\nlargest batch of one {one.kind} chip, devices.remat={remat}", flush=True)
        answer = fit.largest(
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
        self, config: ml_collections.ConfigDict, topology: chips.Topology, *, embed: bool = False
    ) -> tuple[dict[str, Any], list[str]]:
        """Figures of the train step, and of the embed step if asked for; and lines to print."""
        key = (topology, str(config))
        if key not in self._trained:
            self._trained[key] = self._compiled(config, topology, embed)
        return self._trained[key]

    def _compiled(
        self, config: ml_collections.ConfigDict, topology: chips.Topology, embed: bool
    ) -> tuple[dict[str, Any], list[str]]:
        target = compiled.find_devices(topology)
        recipe.check_rows(config, len(target.devices))
        mesh = compiled.mesh_of(target, fsdp=config.devices.fsdp)
        built = recipe.assemble(config, self.facts, mesh)
        ids, instances = config.sampler.num_ids, config.sampler.num_instances
        rows, dtype = ids * instances, config.method.dtype
        lines = [
            f"{len(target.devices)} x {target.kind} ({topology.name}), batch {ids} identities x "
            f"{instances} images of each modality, {rows // len(target.devices)} rows a chip"
        ]
        program = compiled.train_step(built, target, self.keep)
        groups = None
        if not program.error:
            more = recipe.enlarged(config, len(target.devices), self.facts.classes)
            larger = partial(recipe.assemble, more, self.facts, mesh)
            groups = compiled.grouped(program, built, mesh, larger)
        time = compiled.estimate(program, target, dtype)
        lines += report.program_lines("train step", program, groups, target)
        lines += report.time_lines(time, images=2 * rows, dtype=dtype, target=target)
        figures = {
            "topology": topology.name,
            "chips": len(target.devices),
            "device_kind": target.kind,
            "num_ids": ids,
            "num_instances": instances,
            "rows": rows,
            **report.as_json(program, groups, time),
        }
        if embed:
            second = compiled.embed_step(built, target, self.keep)
            count, everything = built.images.shape[0], {"all": second.collectives}
            lines += report.program_lines(f"embed step, {count} images", second, None, target)
            time = compiled.estimate(second, target, dtype)
            figures["embed"] = {"images": count, **report.as_json(second, everything, time)}
        return figures, lines
