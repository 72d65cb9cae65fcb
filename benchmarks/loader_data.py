"""What the contenders of `benchmarks.loader` load: images of rendered people, and the plan."""

import functools
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vireid_jax.data import sampler
from vireid_jax.types import INFRARED, VISIBLE, Records, train_labels

SIZE = (288, 144)
NUM_IDS, NUM_INSTANCES = 8, 4
IMAGES = 2 * NUM_IDS * NUM_INSTANCES  # in a step
PER_ID = 80  # images of a person, half of them infrared; about as in SYSU-MM01


class Packed:
    """Encoded images in one file, each read when asked for."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._ends = np.load(folder / "ends.npy")
        self._file = os.open(folder / "images.bin", os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> bytes:
        first, end = int(self._ends[row]), int(self._ends[row + 1])
        return os.pread(self._file, end - first, first)


def write_data(folder: pathlib.Path, *, cached: int, encoded: int, rendered: int) -> None:
    """Writes images of rendered people, decoded ones as images.npy, encoded ones as Packed."""
    from PIL import Image

    from vireid_jax.synthetic import render_images

    at = np.arange(rendered)
    people = render_images(0, at // 2, np.where(at % 2, 3, 1), at, image_size=(400, 160))
    pictures = [Image.fromarray(x) for x in people]
    r = np.random.default_rng(0)

    out = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (cached, *SIZE, 3))
    small = [np.asarray(p.resize(SIZE[::-1], Image.Resampling.LANCZOS)) for p in pictures]
    for n in range(cached):  # shifted, so that no two are the same
        out[n] = np.roll(small[n % rendered], (n // rendered, 7 * n), axis=(0, 1))
    out.flush()

    ends = [0]
    with (folder / "images.bin").open("wb") as file:
        for n in range(encoded):
            height = int(r.integers(200, 401))
            picture = pictures[n % rendered].resize((height * 2 // 5, height))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=95)
            ends.append(ends[-1] + file.write(buffer.getvalue()))
    np.save(folder / "ends.npy", ends)


def records_of(images: Any) -> tuple[Records, np.ndarray, Callable[[int], np.ndarray]]:
    """Records of the images, their labels, and the plan that all contenders follow."""
    n = np.arange(len(images))
    modality = np.where(n % 2, INFRARED, VISIBLE).astype(np.int8)
    person, camera = (n // PER_ID).astype(np.int32), (n % 2 * 2 + 1).astype(np.int32)
    records = Records(images, person, camera, modality, [f"{i:05d}" for i in n])
    label, _ = train_labels(records)
    plan = functools.partial(_plan, label, modality)
    return records, label, plan


def _plan(label: np.ndarray, modality: np.ndarray, epoch: int) -> np.ndarray:
    return sampler.plan(
        label, modality, num_ids=NUM_IDS, num_instances=NUM_INSTANCES, seed=0, epoch=epoch,
        steps_per_epoch=100,
    )  # fmt: skip
