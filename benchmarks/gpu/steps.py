"""Train and embed steps of a method at the paper's size: compiled, timed and traced."""

import contextlib
import importlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks import candidates
from benchmarks.gpu import trace
from benchmarks.gpu.parts import device, emit

# By how it computes: the dtype of the method, and JAX's precision of float32 products. The order
# is that of memory: a device states the largest use since the start of a process alone.
PRECISIONS = {
    "bf16": ("bfloat16", "default"),
    "tf32": ("float32", "default"),
    "fp32": ("float32", "highest"),
}
TIMED_S = 1.0  # of steps in a round
ROUNDS = 2
TRACED, TRACED_STEPS = "bf16", 3


def settings(method: str, tiny: bool) -> dict[str, Any]:
    """The settings of the step benchmark at the paper's batch, or of a tiny network."""
    if not tiny:
        config = importlib.import_module(f"configs.{method}").get_config("sysu")
        return candidates.settings(method, "paper", config.sampler.num_ids)
    s = candidates.settings(method, "main", 2)
    small = {"num_instances": 2, "image_size": (48, 24), "num_classes": 6}
    facts = {k: small.get(k, v) for k, v in s["facts"].items()}
    options = {**s["method"], "depth": 10, "width": 8}
    if "generator_ratios" in options:
        options["generator_ratios"] = (2, 3, 6)
    return {**s, **small, "facts": facts, "method": options}


def images_of(s: dict[str, Any]) -> int:
    """Images of a batch, with those that a method makes."""
    return s["modalities"] * s["num_ids"] * s["num_instances"]


def seconds(run: Callable[[int], None], tiny: bool) -> list[float]:
    """Seconds of a step in each round.

    Args:
      run: does so many steps and waits for the last alone, as training does.
      tiny: two steps a round, whose times mean nothing.
    """
    run(1 if tiny else 3)
    start = time.perf_counter()
    run(1)
    once = max(time.perf_counter() - start, 1e-6)
    count = 2 if tiny else int(np.clip(TIMED_S / once, 5, 200))
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(count)
        found.append((time.perf_counter() - start) / count)
    return found


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """JAX's precision of products while a program is traced."""
    import jax

    with jax.default_matmul_precision(PRECISIONS[name][1]):
        yield


def with_precision(s: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings with the dtype of a precision, and plain kernels."""
    return {**s, "method": {**s["method"], "dtype": PRECISIONS[name][0], "kernels": "xla"}}


class Step:
    """A compiled train step with its state."""

    def __init__(self, s: dict[str, Any], name: str):
        """Compiles the step of settings in a precision."""
        import jax

        from vireid_jax import train
        from vireid_jax.runtime import devices

        method, transform, step_fn, self.mesh = candidates.jax_program(with_precision(s, name), "")
        shapes = train.abstract_state(method, transform)
        self.batch = devices.to_global(candidates.batch_of(s), self.mesh)
        with precision(name):
            lowered = step_fn.lower(devices.abstract(shapes, self.mesh), self.batch)
            start = time.perf_counter()
            self.compiled = lowered.compile()
        memory = self.compiled.memory_analysis()
        flops = [_cost(x, "flops") for x in (lowered, self.compiled)]
        self.figures = {
            "compile_s": time.perf_counter() - start,
            "temp_bytes": getattr(memory, "temp_size_in_bytes", None),
            "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
            # Of the program as it was written: calls of cuDNN may count as nothing afterwards.
            "flops": flops[0] or flops[1],
            "bytes_accessed": _cost(self.compiled, "bytes accessed"),
        }
        if not self.figures["flops"]:
            self.figures["flops"] = products(jax.make_jaxpr(step_fn)(shapes, self.batch).jaxpr)
        self._start = partial(train.init_state, method, transform, 0)
        self._state: Any = None

    def run(self, count: int, batches: Iterator[Any] | None = None) -> None:
        """Takes steps, on one batch again and again or on host batches; waits for the last."""
        import jax

        from vireid_jax.runtime import devices

        if self._state is None:  # so that a step that only waits for its turn takes no memory
            self._state = devices.place(self._start(), self.mesh)
        scalars = None
        for _ in range(count):
            batch = self.batch if batches is None else devices.to_global(next(batches), self.mesh)
            self._state, scalars = self.compiled(self._state, batch)
        jax.block_until_ready(scalars)


def _cost(program: Any, name: str) -> float | None:
    """A figure of XLA's cost analysis; None where this backend has none."""
    try:
        found = program.cost_analysis() or {}
    except Exception:  # not implemented for some backends, by whatever error
        return None
    found = found[0] if isinstance(found, list) else found
    return found.get(name)


def products(jaxpr: Any) -> float:
    """FLOPs of the convolutions and products in a program, two for each multiplication.

    Zeros that a strided convolution's gradient is spread by count, so it is an upper bound.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            kernel = equation.invars[1].aval.shape
            total += (
                2 * equation.outvars[0].aval.size * np.prod(kernel) / kernel[numbers.rhs_spec[0]]
            )
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            length = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * equation.outvars[0].aval.size * length
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * products(inner)
    return float(total)


def peak_bytes() -> int | None:
    """The most memory of the device that this process has used; None on a CPU."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def train(method: str, out: pathlib.Path, tiny: bool) -> None:
    """Prints the train step in every precision, and where the time of the first one goes."""
    s = settings(method, tiny)
    about = {"framework": "jax", "method": method, "images": images_of(s)}
    made = {}
    for name in PRECISIONS:
        with device(out, alone=False):
            made[name] = Step(s, name)
        emit({"kind": "compiled", **about, "precision": name, **made[name].figures})
    for name in PRECISIONS:
        with device(out, alone=True):
            times = seconds(made[name].run, tiny)
        row = {"kind": "step", **about, "precision": name, "step_s": times}
        emit({**row, "peak_bytes": peak_bytes()})
        if name != TRACED:
            del made[name]  # and its state with it
    with device(out, alone=True):  # the last: a profile may fail where speed does not
        emit({"kind": "trace", "method": method, "precision": TRACED, **profile(made[TRACED])})


def profile(step: Step) -> dict[str, Any]:
    """Where the time of a step goes; see `trace.summary`."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step.run(TRACED_STEPS)
        events = trace.read(pathlib.Path(folder))
    found = trace.summary(events, trace.groups_of(step.compiled.as_text()))
    return {"steps": TRACED_STEPS, **found}


def embed(method: str, out: pathlib.Path, tiny: bool) -> None:
    """Prints the embedding of images that lie on the device."""
    import jax

    from vireid_jax import embedding
    from vireid_jax.runtime import devices
    from vireid_jax.types import VISIBLE

    s, count = settings(method, tiny), 8 if tiny else 256
    r = np.random.default_rng(0)
    pixels = r.integers(256, size=(count, *s["image_size"], 3), dtype=np.uint8)
    for name in ("bf16", "tf32"):
        model, _, _, mesh = candidates.jax_program(with_precision(s, name), "")
        embedder = embedding.make_embed(model, mesh)
        with device(out, alone=False), precision(name):
            variables = devices.place(dict(model.init(jax.random.key(0))), mesh)
            images = devices.to_global({"images": pixels}, mesh)["images"]
            jax.block_until_ready(embedder(variables, images, VISIBLE))

        def run(
            times: int, embedder: Any = embedder, variables: Any = variables, images: Any = images
        ) -> None:
            for _ in range(times):
                features = embedder(variables, images, VISIBLE)
            jax.block_until_ready(features)

        with device(out, alone=True), precision(name):
            times = seconds(run, tiny)
        row = {"kind": "embed", "method": method, "precision": name, "images": count}
        emit({**row, "step_s": times})


def feeding(method: str, out: pathlib.Path, tiny: bool) -> None:
    """Prints steps on batches of the loader, from memory, beside steps on one batch."""
    from vireid_jax.data import arrays, sampler
    from vireid_jax.types import Records

    s = settings(method, tiny)
    people, each = (6, 2) if tiny else (s["num_classes"], 4)  # images of a person and modality
    r = np.random.default_rng(0)
    person = np.tile(np.repeat(np.arange(people, dtype=np.int32), each), 2)
    modality = np.repeat(np.array([0, 1], np.int8), people * each)
    images = r.integers(256, size=(len(person), *s["image_size"], 3), dtype=np.uint8)
    names = [str(n) for n in range(len(person))]
    records = Records(images, person, person * 0 + 1, modality, names)
    batch = dict(num_ids=s["num_ids"], num_instances=s["num_instances"])
    plan = partial(sampler.plan, person, modality, seed=0, steps_per_epoch=50, **batch)
    with device(out, alone=False):
        step = Step(s, "bf16")
    batches = arrays.batches(records, person, lambda epoch: plan(epoch=epoch), start=0, stop=10**6)
    with device(out, alone=True):
        for name, source in (("one batch", None), ("loader", batches)):
            times = seconds(partial(step.run, batches=source), tiny)
            row = {"kind": "feeding", "method": method, "source": name, "images": images_of(s)}
            emit({**row, "precision": "bf16", "step_s": times})
