"""What each form of `nets.cpu` saves beside the plain operation, on one core of this machine.

  python -m benchmarks.kernels                    sizes of SMCL's embedded recipe, two of AGW's
  python -m benchmarks.kernels --rounds 20

CPU time of value and gradients, or of a gradient alone, in a process that is pinned to one core.
Both forms of an operation take turns, and the least of the rounds counts. PyTorch is not needed.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import report

IMAGES = 96  # maps of the recipe's batch, a third of them generated


def cases() -> dict[str, tuple[Callable[[str], Any], list[tuple[int, ...]]]]:
    """Name: ("xla" or "cpu" -> what is timed, shapes of its arrays)."""
    import flax.linen as nn
    import jax

    from vireid_jax.nets import cpu

    def convolution(kernels: str, stride: int, pad: int) -> Any:
        form = cpu.convolution if kernels == "cpu" else jax.lax.conv_general_dilated
        layout = ("NHWC", "HWIO", "NHWC")
        padding = ((pad, pad), (pad, pad))
        return partial(
            form, window_strides=(stride, stride), padding=padding, dimension_numbers=layout
        )

    def gradient(of: int, stride: int, pad: int) -> Callable[[str], Callable[..., Any]]:
        def timed(kernels: str) -> Callable[..., Any]:
            f = convolution(kernels, stride, pad)
            return lambda x, k, along: jax.vjp(f, x, k)[1](along)[of]

        return timed

    def stem_end(kernels: str) -> Callable[..., Any]:
        window = (3, 3), (2, 2), ((1, 1), (1, 1))
        pool = cpu.max_pool if kernels == "cpu" else lambda x: nn.max_pool(x, *window)

        def value(x: Any) -> Any:
            mean = x.mean((0, 1, 2), keepdims=True)
            return pool(nn.relu((x - mean) * jax.lax.rsqrt(x.var((0, 1, 2), keepdims=True))))

        return lambda x, along: jax.vjp(value, x)[1](along)

    def generator(kernels: str) -> Callable[..., Any]:
        point = convolution(kernels, 1, 0)

        def value(first: Any, second: Any, v: Any, i: Any) -> Any:
            return point(nn.relu(point(v, first) * point(i, first)), second)

        return lambda a, b, v, i: jax.vjp(partial(value, v=v, i=i), a, b)[1](v)

    def attention(kernels: str) -> Callable[..., Any]:
        point = cpu.product if kernels == "cpu" else jax.numpy.matmul
        return lambda x, k, along: jax.vjp(point, x, k)[1](along)

    third = IMAGES // 3
    stem: list[tuple[int, ...]] = [(third, 96, 48, 3), (7, 7, 3, 32)]
    pixels = (third, 96, 48, 3)
    deep: list[tuple[int, ...]] = [(third, 18, 9, 512), (3, 3, 512, 512), (third, 18, 9, 512)]
    wide: list[tuple[int, ...]] = [(third, 36, 18, 1), (1, 512), (third, 36, 18, 512)]

    def map_of(size: int, channels: int) -> list[tuple[int, ...]]:
        x = (IMAGES, 2 * size, size, channels)
        return [x, (3, 3, channels, channels), x]

    return {
        "normalization, ReLU and max-pool, with gradients": (
            stem_end,
            [(IMAGES, 48, 24, 32), (IMAGES, 24, 12, 32)],
        ),
        "first convolution, a third of the images": (partial(convolution, stride=2, pad=3), stem),
        "the same, gradient of generated images": (
            gradient(0, 2, 3),
            [*stem, (third, 48, 24, 32)],
        ),
        "3x3 convolution, 32 channels, gradient of the kernel": (gradient(1, 1, 1), map_of(12, 32)),
        "3x3 convolution, 64 channels, gradient of the kernel": (gradient(1, 1, 1), map_of(6, 64)),
        "3x3 convolution, 512 channels, gradient of the kernel": (gradient(1, 1, 1), deep),
        "1x1 convolution, 1 to 512 channels (attention), gradients": (attention, wide),
        "SMGM, with gradients": (generator, [(1, 1, 3, 3), (1, 1, 3, 3), pixels, pixels]),
    }


def measure(rounds: int) -> list[dict[str, Any]]:
    """CPU-seconds of both forms, the least of the rounds, in this process."""
    import jax
    import numpy as np

    rows = []
    for name, (timed, shapes) in cases().items():
        r = np.random.default_rng(0)
        arrays = [jax.numpy.asarray(r.normal(size=shape), "float32") for shape in shapes]
        forms = {kernels: jax.jit(timed(kernels)) for kernels in ("xla", "cpu")}

        def run(kernels: str, forms: Any = forms, arrays: Any = arrays) -> float:
            start = time.process_time()
            jax.block_until_ready(forms[kernels](*arrays))
            return time.process_time() - start

        for kernels in forms:
            run(kernels)  # compiles
        found = report.in_turn(forms, run, rounds)
        rows.append({"operation": name, **{k: min(times) for k, times in found.items()}})
    return rows


def markdown(found: dict[str, Any]) -> str:
    """A table of milliseconds."""
    rows = [
        [
            r["operation"],
            *(f"{1e3 * r[k]:.1f}" for k in ("xla", "cpu")),
            f"{r['cpu'] / r['xla']:.2f}",
        ]
        for r in found["rows"]
    ]
    header = ["CPU milliseconds", '`kernels="xla"`', '`kernels="cpu"`', "ratio"]
    return report.table(header, rows)


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser, rounds=10)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps({"rows": measure(flags.rounds)}))
        return
    run = report.Run("kernels", flags)
    arguments = ["--measure", "--rounds", str(flags.rounds)]
    one = report.cores()[:1]
    found = report.in_process("benchmarks.kernels", arguments, env=report.HUGE_PAGES, on=one)
    run.save(found, markdown)


if __name__ == "__main__":
    main()
