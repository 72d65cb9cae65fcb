"""Where the time of loading goes: each part of the work alone, in one thread."""

import io
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from PIL import Image

from benchmarks import loader_torch
from benchmarks.loader import IMAGES, SIZE, Packed, records_of
from vireid_jax.data import arrays
from vireid_jax.data.augment import augment
from vireid_jax.runtime import devices

LANCZOS = Image.Resampling.LANCZOS


def measure(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Microseconds for each image.

    Returns:
      device: what the augmentation ran on.
      images_us: {whose: {part: microseconds of CPU time for an image}}.
      device_us: {part: wall time for an image}, of what the device does and of the way there.
    """
    torch.set_num_threads(1)
    mapped = np.load(folder / "images.npy", mmap_mode="r")
    mapped.sum(dtype=np.int64)
    images = np.asarray(mapped)
    records, label, plan = records_of(mapped)
    steps = list(plan(0))
    epoch = sum(len(step.ravel()) for step in steps)
    packed = Packed(folder)
    some = list(range(min(IMAGES, len(packed))))
    data = [packed[n] for n in some]
    pictures = [Image.open(io.BytesIO(x)).convert("RGB") for x in data]
    wide = [p.resize((SIZE[1], p.height), LANCZOS) for p in pictures]
    final = [p.resize(SIZE[::-1], LANCZOS) for p in wide]
    pixels = np.empty((2, IMAGES // 2, *SIZE, 3), np.uint8)
    decoded = [Image.fromarray(images[n]) for n in range(IMAGES)]
    tensors = [loader_torch.to_tensor(p) for p in decoded]

    batch: Any = arrays.host_batch(images[steps[0]], records, label, steps[0])
    mesh, key, on_device = devices.make_mesh(), jax.random.key(0), jax.jit(augment)
    arrived = devices.to_global(batch, mesh)
    jax.block_until_ready(on_device(key, arrived))

    def us(do: Callable[[Any], Any], items: Sequence[Any], each: int = 1) -> float:
        return 1e6 / each * _least(do, items, seconds, time.process_time)

    def wall_us(do: Callable[[Any], Any]) -> float:
        return 1e6 / IMAGES * _least(do, [None], seconds, time.perf_counter)

    return {
        "device": jax.devices()[0].device_kind,
        "images_us": {
            "ours, decoded images": {
                "plan": us(plan, range(10), epoch),
                "gather rows": us(lambda i: images[i], steps, IMAGES),
                "labels, cameras": us(
                    lambda i: arrays.host_batch(pixels, records, label, i), steps, IMAGES
                ),
            },
            "PyTorch, decoded images": {
                "to PIL": us(lambda n: Image.fromarray(images[n]), range(IMAGES)),
                "pad, crop, flip": us(loader_torch.crop_and_flip, decoded),
                "to float tensor": us(loader_torch.to_tensor, decoded),
                "normalize": us(loader_torch.normalize, tensors),
                "stack": us(torch.stack, [tensors], IMAGES),
            },
            "JPEGs, both sides": {
                "read": us(packed.__getitem__, some),
                "decode": us(lambda x: Image.open(io.BytesIO(x)).load(), data),
                "resize rows": us(lambda p: p.resize((SIZE[1], p.height), LANCZOS), pictures),
                "resize columns": us(lambda p: p.resize(SIZE[::-1], LANCZOS), wide),
                "copy": us(lambda p: pixels[0].__setitem__(0, np.asarray(p)), final),
            },
        },
        "device_us": {
            "transfer": wall_us(lambda _: jax.block_until_ready(devices.to_global(batch, mesh))),
            "augmentation": wall_us(lambda _: jax.block_until_ready(on_device(key, arrived))),
        },
    }


def _least(
    do: Callable[[Any], Any], items: Sequence[Any], seconds: float, clock: Callable[[], float]
) -> float:
    """Seconds of one call by `clock`, the least of three measurements that go over the items."""
    best = float("inf")
    for _ in range(3):
        calls, begin, end = 0, clock(), time.perf_counter() + seconds / 20
        while time.perf_counter() < end or not calls:
            do(items[calls % len(items)])
            calls += 1
        best = min(best, (clock() - begin) / calls)
    return best
