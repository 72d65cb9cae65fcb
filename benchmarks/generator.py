"""What MUN's generator costs: time and memory of the network's parts at the paper's size.

  python -m benchmarks.generator                   times and memory
  python -m benchmarks.generator --pairs 8         smaller batches
  python -m benchmarks.generator --memory          memory alone: nothing is run
  python -m benchmarks.generator --pairs 32 --parts product folded    these parts alone
  python -m benchmarks.generator --step            and that of whole train steps, minutes to compile

The first table is of `--pairs` pairs of images of 288 x 144: the time of value and gradient of
each part, with respect to its parameters and maps, on all devices. The cross-modality learner comes
in three forms of the same numbers:

  convolution  eq. 7 as `lax.conv_transpose`, then eqs. 8 and 9
  product      eq. 7 as one matrix product and depth to space, then eqs. 8 and 9
  folded       eqs. 7 to 9 in one product, without the map of 2nF channels; what MUN uses

The second table is of `--memory-pairs` pairs, 32 in the recipe, of which nothing is run: what
differentiation keeps for the backward pass, and the compiler's temporary memory. `benchmarks.step
--method mun` has that of a whole step at a smaller batch. PyTorch is not needed.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import candidates, report, step
from tests.support.reference.case import fill
from tests.support.reference.convert import flatten, nest
from vireid_jax import train
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.mun import generator as learners
from vireid_jax.nets.resnet import ResNet, feature_width
from vireid_jax.runtime import devices

NETWORK = ("first", "generator", "shared")  # parts that make up the network


class Part(NamedTuple):
    """A piece of the network.

    Attributes:
      name: for a reader.
      init: () -> variables of its module, to be traced.
      run: (variables, maps) -> a list of maps, in training.
      maps: shapes of what goes in.
      of_maps: whether maps need a gradient; images do not.
    """

    name: str
    init: Callable[[], Any]
    run: Callable[[Any, list[Any]], list[Any]]
    maps: list[tuple[int, ...]]
    of_maps: bool = True


def by_convolution(x: jax.Array, kernel: jax.Array, **_: Any) -> jax.Array:
    """`generator.expand` as a transposed convolution: x [B, p, q, C], kernel [a, b, C, F]."""
    return jax.lax.conv_transpose(
        x,
        kernel[::-1, ::-1].astype(x.dtype),
        strides=kernel.shape[:2],
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def trunk(s: dict[str, Any]) -> ResNet:
    """The trunk of the settings `s`."""
    method = s["method"]
    backbone = with_backbone(method)["backbone"]
    return ResNet(**backbone.resnet_options(), specific=method["specific"])


def parts(s: dict[str, Any], pairs: int) -> dict[str, Part]:
    """The parts at the settings `s` of `benchmarks.step_mun`, for so many pairs of images."""
    method = s["method"]
    kernels = with_backbone(method)["backbone"].resnet_options()["kernels"]
    channels = feature_width(method["depth"], method["width"]) // 8  # after layer1
    if method["specific"] == 1:
        channels = method["width"]  # after the stem
    height, width = (-(-side // 4) for side in s["image_size"])
    a_map = (pairs, height, width, channels)
    result = _stages(s, pairs, a_map)
    ratios = tuple(method["generator_ratios"])

    def learner(name: str, module: Any, count: int) -> Part:
        return Part(
            name,
            lambda: module.init(jax.random.key(0), *_zeros([(1, *a_map[1:])] * count), train=False),
            lambda variables, maps: _trained(module, variables, maps),
            [a_map] * count,
        )

    intra = learners.IntraModality(kernels=kernels)
    result["intra"] = learner("intra-modality learner, one map", intra, 1)
    for form in ("product", "folded"):
        cross = learners.CrossModality(ratios, {"product": "direct"}.get(form, form))
        result[form] = learner(f"cross-modality learner, {form}", cross, 2)
    product = result["product"]

    def convolved(variables: Any, maps: list[Any]) -> list[Any]:
        with mock.patch.object(learners, "expand", by_convolution):
            return product.run(variables, maps)

    result["convolution"] = product._replace(
        name="cross-modality learner, convolution", run=convolved
    )
    for key, remat in (("generator", False), ("remat", True)):
        name = "generator, rematerialized" if remat else "generator"
        module = learners.ModalityUnifying(
            ratios, method["generator_form"], remat=remat, kernels=kernels
        )
        result[key] = learner(name, module, 2)
    return result


def _stages(s: dict[str, Any], pairs: int, a_map: tuple[int, ...]) -> dict[str, Part]:
    """The trunk before and after the generator.

    Both run the whole trunk; what does not depend on the maps that go in or is not in the
    result is dropped when a program is compiled.
    """
    backbone, image = trunk(s), (*s["image_size"], 3)

    def through(variables: Any, images: Any, generate: Callable[[list[Any]], list[Any]]) -> Any:
        kwargs = {"stems": [0, 1], "generate": generate}
        return _trained(backbone, variables, [images], **kwargs)

    def first(variables: Any, images: list[Any]) -> list[Any]:
        found: list[Any] = []

        def keep(maps: list[Any]) -> list[Any]:
            found.extend(maps)
            return maps

        through(variables, images, keep)
        return found

    def shared(variables: Any, maps: list[Any]) -> list[Any]:
        return through(variables, _zeros([(pairs, *image)] * 2), lambda _: maps)

    def init() -> Any:
        images = _zeros([(1, *image)] * 2)
        return backbone.init(jax.random.key(0), images, stems=[0, 1], train=False)

    return {
        "first": Part("first stages, two images", init, first, [(pairs, *image)] * 2, False),
        "shared": Part("shared stages, three maps", init, shared, [a_map] * 3),
    }


def _trained(module: Any, variables: Any, args: list[Any], **kwargs: Any) -> list[Any]:
    out, _ = module.apply(variables, *args, train=True, mutable=["batch_stats"], **kwargs)
    return list(out) if isinstance(out, tuple) else [out]


def _zeros(shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    return [jnp.zeros(shape) for shape in shapes]


MB = 2**20
MEMORY_OF = ("generator", "remat", "intra", "folded", "product", "convolution")


def abstract(part: Part) -> tuple[Any, list[Any]]:
    """Shapes of a part's variables and of the maps that go in."""
    maps = [jax.ShapeDtypeStruct(shape, np.float32) for shape in part.maps]
    return dict(jax.eval_shape(part.init)), maps


def kept_bytes(part: Part) -> int:
    """Bytes that differentiation keeps of a part until its backward pass.

    Counted before compilation, each array once, without parameters and the maps that go in. A
    compiler may keep less, where it computes cheap ones again.
    """
    variables, maps = abstract(part)
    params = variables.pop("params")

    def kept(params: Any, maps: Any, rest: Any) -> Any:
        def forward(params: Any, maps: Any) -> Any:
            return part.run({**rest, "params": params}, maps)

        if part.of_maps:
            return jax.tree.leaves(jax.vjp(forward, params, maps)[1])
        return jax.tree.leaves(jax.vjp(lambda p: forward(p, maps), params)[1])

    jaxpr = jax.make_jaxpr(kept)(params, maps, variables).jaxpr
    given = {id(v) for v in (*jaxpr.invars, *jaxpr.constvars)}
    arrays = {id(v): v.aval for v in jaxpr.outvars if id(v) not in given}
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays.values())


def compile_part(part: Part) -> tuple[Any, jax.sharding.Mesh]:
    """Value and gradient of a part as a compiled program, and the devices it is for.

    The value is the mean square of the maps: its gradient depends on all of them.
    """
    mesh = devices.make_mesh()

    def value(params: Any, maps: Any, rest: Any) -> Any:
        return sum((x * x).mean() for x in part.run({**rest, "params": params}, maps))

    def both(variables: Any, maps: Any) -> Any:
        rest = {k: v for k, v in variables.items() if k != "params"}
        return jax.value_and_grad(value, (0, 1) if part.of_maps else 0)(
            variables["params"], maps, rest
        )

    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)
    gradients = (everywhere, rows) if part.of_maps else everywhere
    program = jax.jit(both, in_shardings=(everywhere, rows), out_shardings=(everywhere, gradients))
    return program.lower(*abstract(part)).compile(), mesh


def measure(part: Part, rounds: int) -> dict[str, Any]:
    """Memory of a part and, unless rounds is 0, the time of its value and gradient."""
    compiled, mesh = compile_part(part)
    row: dict[str, Any] = {
        "part": part.name,
        "pairs": part.maps[0][0],
        "kept_mb": kept_bytes(part) / MB,
        **temp_mb(compiled, mesh),
    }
    if not rounds:
        return row
    variables, maps = abstract(part)
    weights = nest(fill({k: v.shape for k, v in flatten(variables).items()}, "generator"))
    weights = devices.place(weights, mesh)
    r = np.random.default_rng(0)
    values = {str(n): r.standard_normal(m.shape, np.float32) for n, m in enumerate(maps)}
    given = list(devices.to_global(values, mesh).values())
    wall, cpu = [], []
    for _ in range(1 + rounds):
        start = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(compiled(weights, given))
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    if not np.isfinite(result[0]):
        raise RuntimeError(f"the value of {part.name!r} is {result[0]}")
    row |= {"value": float(result[0]), "wall_s": wall[1:], "cpu_s": cpu[1:]}
    row |= {f"median_{k}": statistics.median(row[k]) for k in ("wall_s", "cpu_s")}
    return row


def measure_step(s: dict[str, Any], *, remat: bool) -> dict[str, Any]:
    """Memory of a whole train step, which is compiled and not run."""
    method, transform, step_fn, mesh = candidates.jax_program(s, "remat" if remat else "")
    state = devices.abstract(train.abstract_state(method, transform), mesh)
    rows = devices.by_rows(mesh)
    pairs = s["num_ids"] * s["num_instances"]
    shapes = {
        "visible": ((pairs, *s["image_size"], 3), np.uint8),
        "infrared": ((pairs, *s["image_size"], 3), np.uint8),
        "label": ((pairs,), np.int32),
        "camera": ((pairs, 2), np.int32),
    }
    batch = {k: jax.ShapeDtypeStruct(*v, sharding=rows) for k, v in shapes.items()}
    compiled = step_fn.lower(state, batch).compile()
    name = "whole train step, generator rematerialized" if remat else "whole train step"
    return {"part": name, "pairs": pairs, **temp_mb(compiled, mesh)}


def temp_mb(compiled: Any, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """The compiler's temporary memory, of all devices together, where it tells."""
    memory = compiled.memory_analysis()
    return {} if memory is None else {"temp_mb": memory.temp_size_in_bytes * mesh.size / MB}


# --- Report -----------------------------------------------------------------------------


def time_table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown; shares are of the network's forward and backward pass, heads and losses aside."""
    whole = all(k in rows for k in NETWORK)
    network = sum(rows[k]["median_wall_s"] for k in NETWORK) if whole else math.nan
    header = ["value and gradient", "s, median", "CPU-s", "ms a pair", "share of the network"]
    lines = []
    for key in sorted(rows, key=lambda k: k not in NETWORK):
        r = rows[key]
        line = [r["part"], f"{r['median_wall_s']:.2f}", f"{r['median_cpu_s']:.2f}"]
        line.append(f"{1000 * r['median_wall_s'] / r['pairs']:.0f}")
        lines.append([*line, f"{100 * r['median_wall_s'] / network:.0f} %" if whole else ""])
    return report.table(header, lines)


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what is kept for the backward pass, and temporary memory."""
    lines = []
    for r in rows:
        kept = r.get("kept_mb")
        before = ["", ""] if kept is None else [f"{kept:.0f}", f"{kept / r['pairs']:.1f}"]
        lines.append([r["part"], *before, f"{r['temp_mb']:.0f}" if "temp_mb" in r else ""])
    return report.table(["", "kept for the backward pass MB", "MB a pair", "XLA temp MB"], lines)


def markdown(found: dict[str, Any]) -> str:
    """The tables that there are figures for."""
    parts, devices = [], report.many(found["devices"], "device")
    if found["times"]:
        pairs = next(iter(found["times"].values()))["pairs"]
        parts = [f"{pairs} pairs, {devices}:", time_table(found["times"])]
    if found["memory"]:
        pairs = found["memory"][0]["pairs"]
        parts += [f"Memory, {pairs} pairs, {devices}:"]
        parts += [memory_table(found["memory"])]
    return "\n\n".join(parts)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser, rounds=2)
    parser.add_argument("--size", choices=step.SIZES, default="paper")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of images for times")
    parser.add_argument("--memory-pairs", type=int, default=32, help="a multiple of K, 4")
    parser.add_argument("--memory", action="store_true", help="memory alone")
    parser.add_argument("--step", action="store_true", help="memory of whole train steps too")
    parser.add_argument("--parts", nargs="+", help="of these parts alone, by key")
    flags = parser.parse_args()
    s = candidates.settings("mun", flags.size)
    ids, rest = divmod(flags.memory_pairs, s["num_instances"])
    if rest or ids < 2:
        parser.error(f"--memory-pairs {flags.memory_pairs}, expected a multiple of 4 from 8 on")
    found = parts(s, flags.pairs)
    chosen = flags.parts or list(found)
    if unknown := set(chosen) - set(found):
        parser.error(f"no parts {sorted(unknown)}; there are {', '.join(found)}")
    run = report.Run("generator", flags)
    figures: dict[str, Any] = {"size": flags.size, "devices": jax.device_count()}
    figures["times"] = {}
    if not flags.memory:
        figures["times"] = {key: measure(found[key], flags.rounds) for key in chosen}
    found = parts(s, flags.memory_pairs)
    figures["memory"] = [measure(found[key], 0) for key in MEMORY_OF if key in chosen]
    if flags.step:
        s = candidates.settings("mun", flags.size, ids)
        figures["memory"] += [measure_step(s, remat=remat) for remat in (False, True)]
    run.save(figures, markdown)


if __name__ == "__main__":
    main()
