"""The questions of `compile_ahead`: one topology, several, and the largest batch of one chip."""

import copy
from collections.abc import Sequence
from typing import Any

import ml_collections

from launch import chips, compiled, fit, recipe, report
from vireid_jax.nets import options


class Points:
    """Compilations of one recipe. Every method prints what it finds and returns it for JSON."""

    def __init__(self, config: ml_collections.ConfigDict, *, num_classes: int | None = None):
        self.config = config
        self.facts = recipe.facts(config, num_classes)
        options.compute_dtype(config.method.dtype)  # refuses an unknown one
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
            "devices": c.get("devices", ml_collections.ConfigDict()).to_dict(),
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
        base = compiled.devices(topology)
        per_chip, rest = divmod(self.rows, len(base.devices))
        assert not rest, "the step was compiled, so the rows divide"
        print(f"\nscaling, {per_chip} rows of each modality on every chip")
        alone = self._train(self.config, base.topology, embed=False)[0]
        found = []
        for size in sizes:
            config = recipe.resized(self.config, per_chip * size.chips, self.facts.classes)
            figures, _ = self._train(config, size, embed=False)
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
            print(line, flush=True)
            found.append(figures)
        return found

    def largest(self, topology: chips.Topology) -> dict[str, Any]:
        """The largest batch of one chip, with and without rematerialization."""
        one = chips.of_size(topology, 1)
        target = compiled.devices(one)
        if target.chip is None:
            raise ValueError(
                f"largest_batch: how much memory {topology.name} has is not known; expected a TPU "
                "topology, or a GPU that launch/chips.py has"
            )
        found: dict[str, Any] = {}
        for name, remat in (("plain", False), ("remat", True)):
            config = copy.deepcopy(self.config)
            if "devices" not in config:
                if remat:
                    continue
            else:
                config.devices.remat = remat
                config.devices.fsdp = 1
            instances = config.sampler.num_instances
            rows: dict[int, dict[str, Any]] = {}

            def measure(ids: int, config: Any = config, rows: Any = rows) -> fit.Point:
                config.sampler.num_ids = ids
                rows[ids], _ = self._train(config, one, embed=False)
                peak = rows[ids]["memory_bytes"].get("peak")
                shown = report.size(peak) if peak else "too much"
                print(f"    {ids} x {instances}: {shown}", flush=True)
                return fit.Point(bool(rows[ids]["fits"]), peak)

            print(f"\nlargest batch of one {topology.kind} chip, remat={remat}", flush=True)
            answer = fit.largest(
                measure,
                target.chip.memory,
                first=self.config.sampler.num_ids,
                fewest=2,
                most=self.facts.classes,
            )
            found[name] = {
                "num_ids": answer.largest,
                "num_instances": instances,
                "rows": None if answer.largest is None else answer.largest * instances,
                "refused_num_ids": answer.refused,
                "tried": {str(ids): figures for ids, figures in rows.items()},
            }
            if answer.largest is None:
                print(f"  not even {answer.refused} identities fit", flush=True)
                continue
            limit = f"{answer.refused} do not" if answer.refused else "no larger one was tried"
            print(
                f"  {answer.largest} identities x {instances} images of each modality fit, "
                f"{2 * answer.largest * instances} images; {limit}",
                flush=True,
            )
        return found

    def _train(
        self, config: ml_collections.ConfigDict, topology: chips.Topology, *, embed: bool
    ) -> tuple[dict[str, Any], list[str]]:
        """Figures of the train step, and of the embed step if asked for; and lines to print."""
        target = compiled.devices(topology)
        recipe.check_rows(config, len(target.devices))
        mesh = compiled.mesh_of(target, fsdp=config.get("devices", {}).get("fsdp", 1))
        built = recipe.build(config, self.facts, mesh)
        ids, instances = config.sampler.num_ids, config.sampler.num_instances
        rows, dtype = ids * instances, config.method.dtype
        lines = [
            f"{len(target.devices)} x {target.kind} ({topology.name}), batch {ids} identities x "
            f"{instances} images of each modality, {rows // len(target.devices)} rows a chip"
        ]
        program = compiled.train_step(built, target)
        groups = None if program.error else compiled.grouped(program, built)
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
            second = compiled.embed_step(built, target)
            count = built.images.shape[0]
            lines += report.program_lines(f"embed step, {count} images", second, None, target)
            figures["embed"] = {
                "images": count,
                **report.as_json(
                    second,
                    {"all": second.collectives},
                    compiled.estimate(second, target, dtype),
                ),
            }
        return figures, lines
