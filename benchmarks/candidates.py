"""The contenders of the step benchmark: a method's train step here and in PyTorch."""

import importlib
import os
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import report
from vireid_jax.runtime import memory

METHODS = ("smcl", "mun", "idkl", "agw", "deen", "pdm")
# Warm-up and timed steps of a candidate at a size.
STEPS = {"main": (3, 15), "paper": (1, 1)}
PAPER_STEPS = {"smcl": (1, 4), "agw": (1, 3)}  # of the cheaper ones
LR = 1e-4
HUGE = "_hugepages"  # ends the name of a PyTorch candidate with our settings of memory


def settings(method: str, size: str, num_ids: int | None = None) -> dict[str, Any]:
    """What a method is measured with at a size; see `settings` of its module."""
    return {"name": method, **method_module(method).settings(size, num_ids)}


def method_module(method: str) -> Any:
    """What the benchmark knows of a method: its settings, and its training in PyTorch."""
    return importlib.import_module(f"benchmarks.step_{method}")


def reference(name: str) -> Any:
    """A module of the tests' PyTorch reference, which needs PyTorch; its types are not checked."""
    return importlib.import_module(f"tests.support.reference.{name}")


def written_options(config: Any, written: dict[str, Any]) -> dict[str, Any]:
    """Options of a config's method, which must have those that a PyTorch step is written for."""
    method = config.method.to_dict()
    method.pop("name")
    if other := {k: method[k] for k in written if method[k] != written[k]}:
        raise ValueError(f"the PyTorch step is written for {written}, the config has {other}")
    return method


def optimizer_options(config: Any) -> dict[str, Any]:
    """The optimizer of a config without its schedule, as `step_torch.optimizer` takes it."""
    names = ("name", "weight_decay", "momentum", "nesterov", "multipliers")
    return {k: config.optim.to_dict()[k] for k in names}


def of_pairs(
    config: Any, size: str, num_ids: int | None, written: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a method without a third modality: AGW, DEEN, PDM.

    Args:
      config: the recipe of the size.
      size: "main" or "paper", which has the 395 people of SYSU-MM01.
      num_ids: P instead of the config's.
      written: see `written_options`.
    """
    facts = {
        "num_classes": config.data.train_ids if size == "main" else 395,
        "image_size": tuple(config.data.image_size),
        "num_ids": num_ids or config.sampler.num_ids,
    }
    return {
        **facts,
        "num_instances": config.sampler.num_instances,
        "modalities": 2,
        "facts": facts,
        "optim": optimizer_options(config),
        "method": written_options(config, written),
    }


def steps_of(method: str, size: str) -> tuple[int, int]:
    """Warm-up and timed steps."""
    return PAPER_STEPS.get(method, STEPS[size]) if size == "paper" else STEPS[size]


def batch_of(s: dict[str, Any]) -> dict[str, np.ndarray]:
    """A batch of random uint8 images, always the same."""
    rows = s["num_ids"] * s["num_instances"]
    r = np.random.default_rng(0)
    label = np.repeat(r.permutation(s["num_classes"])[: s["num_ids"]], s["num_instances"])
    images = [r.integers(256, size=(rows, *s["image_size"], 3), dtype=np.uint8) for _ in range(2)]
    return {
        "visible": images[0],
        "infrared": images[1],
        "label": label.astype(np.int32),
        "camera": np.zeros((rows, 2), np.int32),
    }


def jax_program(s: dict[str, Any], variant: str) -> tuple[Any, Any, Any, Any]:
    """The method, the optimizer's transform, the train step and the mesh it runs on.

    Args:
      s: from `settings`.
      variant: "": as the program runs it. "devices_N": with N devices. "remat": the generator
        rematerialized.
    """
    import jax

    from vireid_jax import optim
    from vireid_jax.data.augment import standardize
    from vireid_jax.methods import get_build
    from vireid_jax.methods.common import with_backbone
    from vireid_jax.runtime import devices
    from vireid_jax.train import make_train_step

    if variant.startswith("devices_"):
        jax.config.update("jax_num_cpu_devices", int(variant.removeprefix("devices_")))
    devices.share_cpu()  # before jax starts
    options = s["method"]
    if variant == "remat":
        options = {**options, "generator_remat": True}
    method = get_build(s["name"])(**s["facts"], **with_backbone(options))
    transform, learning_rate = optim.make(
        steps_per_epoch=1, epochs=1, lr=LR, schedule="constant", **s["optim"]
    )

    def only_standardize(key: Any, batch: Any) -> Any:
        return {**batch, **{k: standardize(batch[k]) for k in ("visible", "infrared")}}

    mesh = devices.make_mesh()
    step_fn = make_train_step(method, only_standardize, transform, learning_rate, mesh=mesh, seed=0)
    return method, transform, step_fn, mesh


def jax_step(s: dict[str, Any], variant: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that does one step and returns its loss, and the compiler's memory figures."""
    import jax

    from tests.support.reference.case import fill
    from tests.support.reference.convert import flatten, nest
    from vireid_jax.runtime import devices
    from vireid_jax.train import TrainState

    method, transform, step_fn, mesh = jax_program(s, variant)
    shapes = dict(jax.eval_shape(lambda: method.init(jax.random.key(0))))
    kept = {k: np.zeros(v.shape, v.dtype) for k, v in shapes.pop("memory", {}).items()}
    variables = nest(fill({k: v.shape for k, v in flatten(shapes).items()}, "benchmark"))
    variables |= {"memory": kept} if kept else {}
    state = TrainState(np.int32(0), variables, transform.init(variables["params"]))
    held = [devices.place(state, mesh)]
    batch = devices.to_global(batch_of(s), mesh)

    start = time.perf_counter()
    compiled = step_fn.lower(held[0], batch).compile()
    figures: dict[str, Any] = {"compile_s": time.perf_counter() - start, "devices": mesh.size}
    if (analysis := compiled.memory_analysis()) is not None:
        for name in ("temp", "argument"):  # of all devices together
            size = getattr(analysis, f"{name}_size_in_bytes") * mesh.size
            figures[f"xla_{name}_mb"] = size / 2**20

    def step() -> float:
        held[0], scalars = compiled(held[0], batch)
        return float(scalars["loss"])  # waits for the whole step

    return step, figures


def torch_training(
    s: dict[str, Any], device: str, memory_format: Any, *, wrap: Callable[[Any], Any] = lambda f: f
) -> tuple[Any, Callable[[], Any]]:
    """The same in PyTorch: the optimizer, and a function that returns the loss of the batch.

    Args:
      s: from `settings`.
      device: "cpu" or "cuda".
      memory_format: of kernels and images.
      wrap: applied to the loss of standardized images, such as `torch.compile`.
    """
    import torch

    def prepare(model: Any) -> Any:
        for p in model.to(device).parameters():
            if p.ndim == 4:  # `Module.to` takes parameters of 5 dimensions for maps of volumes
                p.data = p.data.contiguous(memory_format=memory_format)
        return model.train()

    optimizer, loss = method_module(s["name"]).torch_training(s, prepare, LR)
    loss, batch = wrap(loss), batch_of(s)
    pixels = [torch.tensor(batch[k]).to(device) for k in ("visible", "infrared")]
    labels = torch.tensor(batch["label"], dtype=torch.int64, device=device)
    smcl = reference("smcl")
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (smcl.MEAN, smcl.STD))

    def standardized(x: Any) -> Any:
        x = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
        return x.contiguous(memory_format=memory_format)

    return optimizer, lambda: loss(*(standardized(x) for x in pixels), labels)


def torch_step(s: dict[str, Any], layout: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """A step of `torch_training`; layout "channels_last", else NCHW."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    optimizer, loss = torch_training(s, device, memory_format)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = loss()
        total.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(total.detach())

    return step, {}


def measure(candidate: str, method: str, size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Runs one candidate in this process.

    Args:
      candidate: of `benchmarks.step.CANDIDATES`, or jax_devices_N.
      method: of `METHODS`.
      size: "main" or "paper".
      num_ids: identities in a batch instead of the size's.

    Returns:
      Losses of the first and last step, seconds of every timed step, resident memory in MB.
    """
    warmup, timed = steps_of(method, size)
    framework, _, variant = candidate.removesuffix(HUGE).partition("_")
    build = jax_step if framework == "jax" else torch_step
    step, figures = build(settings(method, size, num_ids), variant)
    if huge_pages(candidate):
        memory.trim()  # of what compilation took

    losses, wall, cpu = [], [], []
    for _ in range(warmup + timed):
        start = time.perf_counter(), time.process_time()
        losses.append(step())
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return {
        "candidate": candidate,
        "size": size,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "step_s": wall[warmup:],
        "cpu_s": cpu[warmup:],
        "huge_pages": report.machine()["huge_pages"],
        "rss_mb": resident_mb(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **device_memory(framework),
        **figures,
    }


def huge_pages(candidate: str) -> bool:
    """Whether a candidate has the package's settings of memory: ours as `main` has, and by name."""
    return candidate.startswith("jax") or candidate.endswith(HUGE)


def resident_mb() -> float:
    """Resident memory of this process now; NaN without /proc."""
    path = pathlib.Path("/proc/self/statm")
    if not path.exists():
        return float("nan")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def device_memory(framework: str) -> dict[str, Any]:
    """The device's name, and an accelerator's peak memory."""
    if framework == "jax":
        import jax

        device = jax.devices()[0]
        stats = device.memory_stats() or {}
        peak = stats.get("peak_bytes_in_use") if device.platform != "cpu" else None
        return {"device": device.device_kind, **({"device_mb": peak / 2**20} if peak else {})}
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu"}
    return {
        "device": torch.cuda.get_device_name(),
        "device_mb": torch.cuda.max_memory_allocated() / 2**20,
    }
