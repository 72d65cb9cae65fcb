"""Does the GPU compute what the CPU computes? Losses, gradients, and a run that is resumed."""

import importlib
import multiprocessing
import pathlib
import tempfile
from typing import Any

import numpy as np

from benchmarks.gpu.parts import device, emit

STEP = 50  # of a training whose epoch has 100 steps: all terms of the losses take part
MOVED = 3e-7  # relative; about the rounding of float32
LOSS, GRADIENT = 1e-4, 1e-3  # largest relative errors in float32
OF_ROUNDING = 20  # or so many times what rounding the weights does to the CPU's own gradient


def recipe(method: str, tiny: bool) -> Any:
    """The embedded recipe of a method, or of "caj", a preset of AGW."""
    name, preset = ("agw", "synthetic,caj") if method == "caj" else (method, "synthetic")
    config = importlib.import_module(f"configs.{name}").get_config(preset)
    config.method.kernels = "xla"  # the same program on both
    if "metric_from_epoch" in config.method:
        config.method.metric_from_epoch = 0.0
    if tiny:
        config.data.image_size = (48, 24)
        config.method.depth, config.method.width = 10, 4
        config.sampler.num_ids, config.sampler.num_instances = 4, 2
        if "generator_ratios" in config.method:
            config.method.generator_ratios = (2, 3, 6)  # of maps of 12 x 6
    return config


def check(method: str, out: pathlib.Path, tiny: bool) -> None:
    """Prints the errors of the GPU against the CPU, in float32 and in bfloat16."""
    import jax

    from tests.support.reference.case import fill
    from tests.support.reference.convert import flatten, nest
    from vireid_jax import build
    from vireid_jax.data import augment

    config = recipe(method, tiny)
    ids, instances = config.sampler.num_ids, config.sampler.num_instances
    classes, size = config.data.train_ids, tuple(config.data.image_size)
    r = np.random.default_rng(0)
    batch: Any = {
        **{k: r.integers(256, size=(ids * instances, *size, 3), dtype=np.uint8) for k in KINDS},
        "label": np.repeat(r.permutation(classes)[:ids], instances).astype(np.int32),
        "camera": np.zeros((ids * instances, 2), np.int32),
    }
    host, accelerator = jax.devices("cpu")[0], jax.devices()[0]

    def of(dtype: str) -> Any:
        """The method, and a jitted (params, other collections, images) -> (loss, gradients)."""
        config.method.dtype = dtype
        made, _ = build.make_method(config, classes, 100)

        def loss(params: Any, rest: Any, images: Any) -> Any:
            return made.loss({**rest, "params": params}, images, jax.random.key(2), STEP)[0]

        return made, jax.jit(jax.value_and_grad(loss))

    def run(function: Any, on: Any, params: Any) -> tuple[float, dict[str, np.ndarray]]:
        with jax.default_matmul_precision("highest"):
            value, gradients = function(*jax.device_put((params, rest, images), on))
        return float(value), {k: np.asarray(v) for k, v in flatten(gradients).items()}

    with device(out, alone=False):
        made, function = of("float32")
        shapes = dict(jax.eval_shape(made.init, jax.random.key(0)))
        kept = {k: np.zeros(v.shape, v.dtype) for k, v in shapes.pop("memory", {}).items()}
        rest = nest(fill({k: v.shape for k, v in flatten(shapes).items()}, "benchmark"))
        rest |= {"memory": kept} if kept else {}
        params = rest.pop("params")
        with jax.default_device(host):
            images = jax.device_get(augment.augment(jax.random.key(1), batch, **config.augment))
        expected = run(function, host, params)
        moved = jax.tree.map(lambda x: x * (1 + MOVED * r.uniform(-1, 1, x.shape)), params)
        moved = jax.tree.map(lambda x: np.asarray(x, np.float32), moved)
        rounding = errors(run(function, host, moved), expected)
        found = errors(run(function, accelerator, params), expected)
        good = passes(found, rounding)
        emit({"kind": "correctness", "method": method, **found, "cpu": rounding, "passes": good})
        half = errors(run(of("bfloat16")[1], accelerator, params), expected)
        emit({"kind": "bfloat16", "method": method, **half})


KINDS = ("visible", "infrared")


def passes(found: dict[str, Any], rounding: dict[str, Any]) -> bool:
    """Whether errors in float32 are such as rounding makes them."""
    allowed = max(GRADIENT, OF_ROUNDING * rounding["gradient"])
    return bool(found["loss"] <= LOSS and found["gradient"] <= allowed)


def errors(
    found: tuple[float, dict[str, np.ndarray]], expected: tuple[float, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """Relative errors of a loss and of its gradients by name.

    Returns:
      "loss"; "gradient": norm of the difference of all gradients over their norm; "worst": the
      largest of a single array that is not next to nothing, and "worst_name"; "cosine" of all.
    """
    names = list(expected[1])
    wide = [[g[1][n].astype(np.float64).ravel() for n in names] for g in (found, expected)]
    whole = [np.concatenate(parts) for parts in wide]
    norm = float(np.linalg.norm(whole[1]))
    each = {
        n: float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for n, a, b in zip(names, *wide, strict=True)
        if np.linalg.norm(b) > 1e-4 * norm
    }
    worst = max(each, key=lambda n: each[n] if each[n] == each[n] else np.inf)
    return {
        "loss": abs(found[0] - expected[0]) / abs(expected[0]),
        "gradient": float(np.linalg.norm(whole[0] - whole[1])) / norm,
        "worst": each[worst],
        "worst_name": worst,
        "cosine": float(whole[0] @ whole[1] / (np.linalg.norm(whole[0]) * norm)),
    }


def resume(out: pathlib.Path, deterministic: bool, tiny: bool) -> None:
    """Prints whether a run that was stopped and resumed ends with the bits of one that was not."""
    with device(out, alone=False), tempfile.TemporaryDirectory() as folder:
        whole, step = _fitted(folder, "whole", None, tiny)
        _fitted(folder, "parts", step // 2, tiny)
        parts, _ = _fitted(folder, "parts", None, tiny)
    differ = sum(not np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    row = {"kind": "resume", "deterministic": deterministic, "steps": step}
    emit({**row, "arrays": len(whole), "differ": differ})


def _fitted(
    folder: str, name: str, max_steps: int | None, tiny: bool
) -> tuple[list[np.ndarray], int]:
    """The arrays of a run and its step, of a process of its own: it compiles for itself."""
    # One that is spawned has no device of this process.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_fit, (folder, name, max_steps, tiny))


def _fit(folder: str, name: str, max_steps: int | None, tiny: bool) -> tuple[list[np.ndarray], int]:
    import jax

    from tests.support.recipes import small
    from vireid_jax import train

    place = pathlib.Path(folder)
    config = small("smcl", "synthetic", place)
    config.method.width = 4 if tiny else 32
    config.train.epochs, config.train.checkpoint_every, config.train.eval_every = 4.0, 1.0, 0.0
    found = train.fit(config, place / name, max_steps=max_steps)
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(found.variables))], found.step
