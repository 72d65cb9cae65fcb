"""The same train step in PyTorch: eager, channels last, in three precisions, and compiled."""

import contextlib
import gc
import pathlib
import time
from typing import Any

from benchmarks import candidates
from benchmarks.gpu.parts import device, emit
from benchmarks.gpu.steps import images_of, seconds, settings

EAGER, COMPILED = ("bf16", "tf32", "fp32"), ("bf16", "tf32")


def train(method: str, out: pathlib.Path, tiny: bool, *, compiled: bool) -> None:
    """Prints the train step in every precision."""
    import torch

    s = settings(method, tiny)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    about = {"framework": "torch compiled" if compiled else "torch", "method": method}
    torch.backends.cudnn.benchmark = True
    for name in COMPILED if compiled else EAGER:
        torch.backends.cudnn.allow_tf32 = name != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = name != "fp32"
        with device(out, alone=False):
            run = _training(s, where, name, compiled)
            start = time.perf_counter()
            run(1)
        if compiled:
            took = time.perf_counter() - start
            row = {"kind": "compiled", **about, "precision": name, "images": images_of(s)}
            emit({**row, "compile_s": took})
        if where == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with device(out, alone=True):
            times = seconds(run, tiny)
        peak = torch.cuda.max_memory_allocated() if where == "cuda" else None
        row = {"kind": "step", **about, "images": images_of(s), "precision": name}
        emit({**row, "step_s": times, "peak_bytes": peak})
        del run
        gc.collect()
        if where == "cuda":
            torch.cuda.empty_cache()  # others use the device, too


def _training(s: dict[str, Any], where: str, name: str, compiled: bool) -> Any:
    """A function that does so many steps and waits for the last alone."""
    import torch

    optimizer, loss = candidates.torch_training(
        s, where, torch.channels_last, wrap=torch.compile if compiled else lambda loss: loss
    )

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            half = torch.autocast(where, torch.bfloat16) if name == "bf16" else None
            with half or contextlib.nullcontext():
                total = loss()
            total.backward()
            optimizer.step()
        if where == "cuda":
            torch.cuda.synchronize()

    return run
