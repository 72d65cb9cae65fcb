"""What the parts of PDM's network cost in time, and other forms of them at the same numbers.

  python -m benchmarks.expansion                     ResNet-50 at 384 x 192, four pairs of images
  python -m benchmarks.expansion --size main         the recipe of the embedded data
  python -m benchmarks.expansion --pairs 2 --rounds 1
  python -m benchmarks.expansion --parts mfgm mfgm_listed
  python -m benchmarks.expansion --whole             and the whole pass, which takes long to compile

A pair is a visible and an infrared image. Times are of value and gradient of each part, with
respect to its parameters and its maps, on all devices.
The first table has the parts that make up the pass, and each one's share of their sum; below the
line are pieces of MFGM, the dropout that the step benchmark leaves out, and the whole pass. The
second sets forms of the same numbers against each other:

  DEEN's attention    theta (phi^T g) as it is used where that is cheaper; (theta phi^T) g as the
                      released code has it, with a matrix of places by places for each image;
                      after layer3 of the paper's size that is cheaper, and both are one
  49 x 49 attention   one matrix of places by places; a convolution
  branches            an axis of kernels and maps; a Python list of branches, one after the other

Parts take turns when there are several rounds. Where others use the machine too, CPU-seconds tell
more than seconds. PyTorch is not needed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import candidates, report, step
from benchmarks.generator import Part, abstract, compile_part, temp_mb
from tests.support.reference.case import fill
from tests.support.reference.convert import flatten, nest
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.pdm import method as pdm
from vireid_jax.nets import attention, multifeature
from vireid_jax.nets.multifeature import MultiFeatureNet, Parts, Prototypes, simam
from vireid_jax.nets.resnet import ResNet, block_names, feature_width, map_size
from vireid_jax.runtime import devices

# The parts that make up a training pass, in its order.
NETWORK = (
    *("stems", "layer1", "mfa1", "layer2", "mfa2", "layer3", "mfa3"),
    *("mfgm", "layer4", "plm", "heads"),
)
# Form in use -> another form of the same numbers.
FORMS = {
    "mfa1": "mfa1_energies",
    "mfa2": "mfa2_energies",
    "mfa3": "mfa3_energies",
    "spatial_dense": "spatial_convolution",
    "mfgm": "mfgm_listed",
}
DROPOUT = 0.01  # of the recipe; the step benchmark is without it


def energies_first(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    """`attention.attend` as the released code has it: a matrix of queries by places first."""
    energy = jnp.einsum("nqc,nkc->nqk", theta, phi) / g.shape[1]
    return jnp.einsum("nqk,nkd->nqd", energy, g)


def parts(s: dict[str, Any], pairs: int) -> dict[str, Part]:
    """The parts at the settings `s` of `benchmarks.step_pdm`, for so many pairs of images."""
    method = s["method"]
    depth, stages = method["depth"], range(1, 5)
    shapes = dict(jax.eval_shape(lambda: _build(s, pairs).init(jax.random.key(0))))

    def a_map(stage: int, rows: int) -> tuple[int, ...]:
        size = map_size(s["image_size"], stage, method["last_stride"])
        return (rows * pairs, *size, feature_width(depth, method["width"], stage))

    result = _trunk(s, pairs, shapes, [a_map(n, 2) for n in range(5)])
    for n in stages[:-1]:
        for energies in (False, True):
            name = f"mfa{n}" + (", energies first" if energies else "")
            run = _patched(_aggregated) if energies else _aggregated
            key = f"mfa{n}_energies" if energies else f"mfa{n}"
            maps = [a_map(n, 2), a_map(n - 1, 2)]
            result[key] = Part(name, _init(shapes, [f"mfa_{n - 1}"]), run, maps)
    result |= _generation(s, shapes, a_map(3, 2))
    count = method["num_prototypes"]

    def parted(variables: Any, maps: list[Any]) -> list[Any]:
        found: Any = Prototypes(count).apply(_inner(variables), *maps)
        return [found.features, found.similarity]

    last = a_map(4, 6)
    result["plm"] = Part("prototypes", _init(shapes, ("prototypes",)), parted, [last])
    result["heads"] = _heads(s, pairs, shapes, count, last)
    result["whole"] = _whole(s, pairs, shapes)
    return result


# --- Variables --------------------------------------------------------------------------


def _init(shapes: Any, names: Sequence[str], blocks: Sequence[str] = ()) -> Callable[[], Any]:
    """The `init` of a part that has the modules of these names; of the trunk, these blocks."""

    def kept(tree: Any) -> Any:
        found = {k: v for k, v in tree.items() if k in names and k != "backbone"}
        if blocks:
            found["backbone"] = {k: v for k, v in tree["backbone"].items() if k in blocks}
        return found

    return lambda: _zeros({kind: own for kind, tree in shapes.items() if (own := kept(tree))})


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _inner(variables: Any) -> Any:
    """Variables of the one module of a part, without its name."""
    return {kind: next(iter(tree.values())) for kind, tree in variables.items()}


# --- Network ----------------------------------------------------------------------------


def _trunk(
    s: dict[str, Any], pairs: int, shapes: Any, maps: list[tuple[int, ...]]
) -> dict[str, Part]:
    """Stems and stages; each runs the whole trunk, of which the rest is dropped by compilation."""
    method, image = s["method"], (pairs, *s["image_size"], 3)
    trunk = ResNet(**with_backbone(method)["backbone"].resnet_options(), specific=1)
    ends = ["stem", *(block_names(method["depth"], n)[-1] for n in range(1, 5))]
    blocks = [["stem_visible", "stem_infrared"]]
    blocks += [block_names(method["depth"], n) for n in range(1, 5)]

    def staged(stage: int) -> Callable[[Any, list[Any]], list[Any]]:
        def run(variables: Any, given: list[Any]) -> list[Any]:
            everything = {
                kind: _zeros(tree["backbone"]) | variables[kind]["backbone"]
                for kind, tree in shapes.items()
            }
            found: list[Any] = []

            def then(name: str, x: jax.Array) -> jax.Array:
                if name == ends[stage]:
                    found.append(simam(x) if stage == 0 and method["gate"] else x)
                return given[0] if stage and name == ends[stage - 1] else x

            images = given if stage == 0 else [jnp.zeros(image)] * 2
            trunk.apply(
                everything, images, stems=[0, 1], train=True, then=then, mutable=["batch_stats"]
            )
            return found

        return run

    def part(name: str, stage: int, given: list[tuple[int, ...]]) -> Part:
        return Part(name, _init(shapes, (), blocks[stage]), staged(stage), given, stage > 0)

    result = {"stems": part("stems and gate", 0, [image] * 2)}
    for n in range(1, 4):
        result[f"layer{n}"] = part(f"layer{n}", n, [maps[n - 1]])
    rows = (1 + method["branches"]) * 2 * pairs
    name = f"layer4, {1 + method['branches']} rows an image"
    result["layer4"] = part(name, 4, [(rows, *maps[3][1:])])
    return result


def _aggregated(variables: Any, maps: list[Any]) -> list[Any]:
    out, _ = attention.Aggregation().apply(
        _inner(variables), *maps, train=True, mutable=["batch_stats"]
    )
    return [out]


def _patched(run: Callable[[Any, list[Any]], list[Any]]) -> Callable[[Any, list[Any]], list[Any]]:
    def patched(variables: Any, maps: list[Any]) -> list[Any]:
        with mock.patch.object(attention, "attend", energies_first):
            return run(variables, maps)

    return patched


def _generation(s: dict[str, Any], shapes: Any, a_map: tuple[int, ...]) -> dict[str, Part]:
    """MFGM, its pieces, and other forms."""
    method = s["method"]
    count = method["branches"]
    module = multifeature.Expansion(branches=count, **pdm.MFGM[method["mfgm"]])
    kernel = module.kernel
    squeezed, places = a_map[-1] // 4, a_map[:3]
    init = _init(shapes, ("expansion",))

    def chosen(*names: str) -> Callable[[], Any]:
        return lambda: {"params": {k: v for k, v in _inner(init())["params"].items() if k in names}}

    def generated(variables: Any, maps: list[Any]) -> list[Any]:
        return [module.apply(_inner(variables), *maps)]

    def listed(variables: Any, maps: list[Any]) -> list[Any]:
        """Branch by branch, as a Python list of modules with weights of their own."""
        params, one = variables["params"]["expansion"], module.clone(branches=1)
        made = maps
        for b in range(count):
            own = {
                name: {"kernel": leaf["kernel"][..., b * squeezed : (b + 1) * squeezed]}
                if name.startswith("dilated")
                else leaf[b : b + 1]
                for name, leaf in params.items()
            }
            rows: Any = one.apply({"params": own}, maps[0])
            made = [*made, rows[:, 1]]
        return [jnp.stack(made, 1)]

    def dilated(variables: Any, maps: list[Any]) -> list[Any]:
        found = []
        for d in multifeature.DILATIONS:
            conv = nn.Conv(count * squeezed, (3, 3), padding=d, kernel_dilation=d, use_bias=False)
            found.append(conv.apply({"params": variables["params"][f"dilated_{d}"]}, *maps))
        return [sum(found[1:], found[0])]

    attended = _Attended(branches=count, **pdm.MFGM[method["mfgm"]])

    def attention_of(variables: Any, maps: list[Any]) -> list[Any]:
        return [attended.apply(variables, *maps)]

    def spatial(how: str) -> Callable[[Any, list[Any]], list[Any]]:
        def run(variables: Any, maps: list[Any]) -> list[Any]:
            weights = variables["params"]["spatial_kernel"][..., 0]
            return [multifeature.spatial_convolution(maps[0], weights, form=how)]

        return run

    def dropped(variables: Any, maps: list[Any]) -> list[Any]:
        drop = nn.Dropout(DROPOUT, deterministic=False)
        return [drop.apply({}, *maps, rngs={"dropout": jax.random.key(0)})]

    of_branches, side = (*places, count, squeezed), f"{kernel} x {kernel} attention"
    pooled = [(*places, count, 2)]
    gates = ("channel_squeeze", "channel_excite", "spatial_kernel", "spatial_bias")
    convs = tuple(f"dilated_{d}" for d in multifeature.DILATIONS)
    rows = ((1 + count) * a_map[0], *a_map[1:])
    result = {
        "mfgm": Part("MFGM", init, generated, [a_map]),
        "mfgm_listed": Part("MFGM, a list of branches", init, listed, [a_map]),
        "dilated": Part("MFGM's dilated convolutions", chosen(*convs), dilated, [a_map]),
        "cbam": Part("MFGM's attention", chosen(*gates), attention_of, [of_branches]),
        "dropout": Part("dropout after MFGM", lambda: {"params": {}}, dropped, [rows]),
    }
    for how in ("dense", "convolution"):
        own = chosen("spatial_kernel")
        result[f"spatial_{how}"] = Part(f"{side}, {how}", own, spatial(how), pooled)
    return result


class _Attended(multifeature.Expansion):
    """What an expansion does between its convolutions."""

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """[N, h, w, G, c] -> the same, with 2 c channels for the paper's attention."""
        return self._attended(y)


# --- Heads and losses -------------------------------------------------------------------


class _Given(MultiFeatureNet):
    """The network from its features on, which take the place of the images."""

    def _features(self, images: list[Any], stems: list[int], *, train: bool) -> Any:
        feature, (full, similarity, logits) = images

        def rows(x: Any) -> Any:
            return x.reshape(-1, *x.shape[2:])

        found = {"global": rows(feature), "full": rows(full)}
        return found, Parts(found["full"], rows(similarity), rows(logits))


def identities(s: dict[str, Any], pairs: int) -> int:
    """P of so many pairs: two or more, with up to K pairs each.

    Raises:
      ValueError: for fewer than two pairs.
    """
    if pairs < 2:
        raise ValueError(f"{pairs} pairs of images, expected 2 or more: losses need two identities")
    instances = range(s["num_instances"], 0, -1)
    return next(pairs // k for k in instances if pairs % k == 0 and pairs // k > 1)


def _build(s: dict[str, Any], pairs: int) -> Any:
    facts = {**s["facts"], "num_ids": identities(s, pairs)}
    return pdm.build(**facts, **with_backbone(s["method"]))


def _labels(s: dict[str, Any], pairs: int) -> np.ndarray:
    count = identities(s, pairs)
    return np.repeat(np.arange(count, dtype=np.int32), pairs // count)


def _heads(s: dict[str, Any], pairs: int, shapes: Any, count: int, last: tuple[int, ...]) -> Part:
    """Necks, classifiers and all losses, from features and similarities [B, 2 (1 + G), ...]."""
    with mock.patch.object(multifeature, "MultiFeatureNet", _Given):
        method = _build(s, pairs)
    rows, places, width = last[0] // pairs, last[1] * last[2], last[3]
    features = [(width,), ((count + 1) * width,), (count, places), (count, places)]
    maps = [(pairs, rows, *shape) for shape in features]

    def run(variables: Any, given: list[Any]) -> list[Any]:
        feature, full, similarity, logits = given
        batch = {"visible": feature, "infrared": (full, similarity, logits)}
        return [_loss(method, variables, batch, _labels(s, pairs))]

    names = [f"{part}_{f}" for part in ("neck", "classifier") for f in ("global", "full")]
    return Part("heads and losses", _init(shapes, names), run, maps)


def _whole(s: dict[str, Any], pairs: int, shapes: Any) -> Part:
    method = _build(s, pairs)

    def run(variables: Any, images: list[Any]) -> list[Any]:
        batch = dict(zip(("visible", "infrared"), images, strict=True))
        return [_loss(method, variables, batch, _labels(s, pairs))]

    images = [(pairs, *s["image_size"], 3)] * 2
    return Part("whole network and losses", lambda: _zeros(shapes), run, images, False)


def _loss(method: Any, variables: Any, batch: Any, labels: np.ndarray) -> Any:
    total, _ = method.loss(
        variables, {**batch, "label": jnp.asarray(labels)}, jax.random.key(0), jnp.int32(0)
    )
    return total


TOLERANCE = 1e-3  # of values of two forms, relative


class Program:
    """A compiled part with its inputs on the devices."""

    def __init__(self, part: Part) -> None:
        """Compiles, and fills weights and maps with seeded numbers."""
        self.part = part
        start = time.perf_counter()
        self.compiled, mesh = compile_part(part)
        self.row: dict[str, Any] = {
            "part": part.name,
            "compile_s": time.perf_counter() - start,
            **temp_mb(self.compiled, mesh),
        }
        variables, maps = abstract(part)
        # One seed: forms of one part get the same weights, as they have the same names.
        filled = fill({k: v.shape for k, v in flatten(variables).items()}, "expansion")
        self.weights = devices.place({"params": {}, **nest(filled)}, mesh)
        r = np.random.default_rng(0)
        values = {str(n): r.standard_normal(m.shape, np.float32) for n, m in enumerate(maps)}
        self.maps = list(devices.to_global(values, mesh).values())
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self) -> None:
        """Runs once; the first run is not timed.

        Raises:
          RuntimeError: the value is not finite.
        """
        start = time.perf_counter(), time.process_time()
        value = float(jax.block_until_ready(self.compiled(self.weights, self.maps))[0])
        if not np.isfinite(value):
            raise RuntimeError(f"the value of {self.part.name!r} is {value}")
        if "value" in self.row:
            self.wall.append(time.perf_counter() - start[0])
            self.cpu.append(time.process_time() - start[1])
        self.row["value"] = value

    def result(self) -> dict[str, Any]:
        """A row of the report."""
        medians = {
            "median_wall_s": statistics.median(self.wall),
            "median_cpu_s": statistics.median(self.cpu),
        }
        return {**self.row, "wall_s": self.wall, "cpu_s": self.cpu, **medians}


def measure(found: dict[str, Part], rounds: int) -> dict[str, dict[str, Any]]:
    """Times and temporary memory by key; parts take turns."""
    programs = {key: Program(part) for key, part in found.items()}
    report.in_turn(programs, lambda key: programs[key].run(), 1 + rounds)
    rows = {key: program.result() for key, program in programs.items()}
    for one, other in FORMS.items():
        if one in rows and other in rows:
            check_same(rows[one], rows[other])
    return rows


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises RuntimeError unless two forms have one value."""
    if not np.allclose(one["value"], other["value"], rtol=TOLERANCE, atol=0):
        raise RuntimeError(
            f"{one['part']!r} and {other['part']!r} are not one thing: values {one['value']} and "
            f"{other['value']}"
        )


# --- Report -----------------------------------------------------------------------------


def time_table(rows: dict[str, dict[str, Any]], images: int) -> str:
    """Markdown; shares are of the sum of the parts that make up the pass, if all are there."""
    whole = all(k in rows for k in NETWORK)
    total = sum(rows[k]["median_wall_s"] for k in NETWORK) if whole else 0.0
    header = ["value and gradient", "s, median", "CPU-s", "ms an image", "share", "XLA temp MB"]

    def line(name: str, wall: float, cpu: float, temp: str) -> list[str]:
        share = f"{100 * wall / total:.0f} %" if whole else ""
        return [name, f"{wall:.3f}", f"{cpu:.3f}", f"{1000 * wall / images:.1f}", share, temp]

    def row(key: str) -> list[str]:
        r = rows[key]
        temp = f"{r['temp_mb']:.0f}" if "temp_mb" in r else ""
        return line(r["part"], r["median_wall_s"], r["median_cpu_s"], temp)

    lines = [row(k) for k in NETWORK if k in rows]
    if whole:
        cpu = sum(rows[k]["median_cpu_s"] for k in NETWORK)
        lines.append(line("sum", total, cpu, ""))
    forms = set(FORMS.values())
    lines += [row(k) for k in rows if k not in NETWORK and k not in forms]
    return report.table(header, lines)


def form_table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown; ratios are of the form in use over the other, below 1 is better for it."""
    header = ["form in use", "other form", "s", "other s", "ratio", "CPU-s ratio"]
    header += ["XLA temp MB", "other MB", "ratio"]

    def ratio(a: dict[str, Any], b: dict[str, Any], key: str) -> str:
        return f"{a[key] / b[key]:.2f}" if b[key] else ""

    lines = []
    for one, other in FORMS.items():
        if one not in rows or other not in rows:
            continue
        a, b = rows[one], rows[other]
        seconds = [f"{r['median_wall_s']:.3f}" for r in (a, b)]
        ratios = [ratio(a, b, key) for key in ("median_wall_s", "median_cpu_s")]
        memory = ["", "", ""]
        if "temp_mb" in a:
            memory = [f"{a['temp_mb']:.1f}", f"{b['temp_mb']:.1f}", ratio(a, b, "temp_mb")]
        lines.append([a["part"], b["part"], *seconds, *ratios, *memory])
    return report.table(header, lines, left=2)


def markdown(found: dict[str, Any]) -> str:
    """Both tables."""
    pairs = found["pairs"]
    devices = report.many(found["devices"], "device")
    of = f"{pairs} pairs of images, `{found['size']}`, {devices}:"
    return f"{of}\n\n{time_table(found['rows'], 2 * pairs)}\n\n{form_table(found['rows'])}"


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser, rounds=3)
    parser.add_argument("--size", choices=step.SIZES, default="paper")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of images, 2 or more")
    parser.add_argument("--parts", nargs="+", help="of these parts alone, by key")
    parser.add_argument("--whole", action="store_true", help="the whole pass too")
    flags = parser.parse_args()
    if flags.pairs < 2:
        parser.error(f"--pairs {flags.pairs}, expected 2 or more: losses need two identities")
    found = parts(candidates.settings("pdm", flags.size), flags.pairs)
    chosen = flags.parts or [k for k in found if k != "whole" or flags.whole]
    if unknown := set(chosen) - set(found):
        parser.error(f"no parts {sorted(unknown)}; there are {', '.join(found)}")
    run = report.Run("expansion", flags)
    rows = measure({k: part for k, part in found.items() if k in chosen}, flags.rounds)
    figures = {"size": flags.size, "pairs": flags.pairs, "devices": jax.device_count()}
    run.save({**figures, "rows": rows}, markdown)


if __name__ == "__main__":
    main()
