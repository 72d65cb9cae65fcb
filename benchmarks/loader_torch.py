"""PyTorch's side of `benchmarks.loader`: data sets as the open re-identification code has them.

The cached one is that of AGW and its descendants: decoded images in .npy arrays in memory, an
item is one visible and one infrared image after the transforms Pad(10), RandomCrop,
RandomHorizontalFlip, ToTensor and Normalize on a PIL picture. The transforms are written out
here, with the operations that torchvision does them by, so that torchvision is not needed.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from vireid_jax.data.augment import MEAN, STD

PAD = 10  # pixels


def crop_and_flip(picture: Image.Image) -> Image.Image:
    """Pad(10), RandomCrop to the size before, RandomHorizontalFlip."""
    width, height = picture.size
    picture = ImageOps.expand(picture, border=PAD, fill=0)
    top = int(torch.randint(0, 2 * PAD + 1, size=(1,)).item())
    left = int(torch.randint(0, 2 * PAD + 1, size=(1,)).item())
    picture = picture.crop((left, top, left + width, top + height))
    if torch.rand(1) < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """ToTensor: a PIL picture to float32 [3, H, W] in 0 .. 1."""
    pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def normalize(image: torch.Tensor) -> torch.Tensor:
    """Normalize with the mean and deviation of ImageNet."""
    mean, std = (torch.as_tensor(x, dtype=image.dtype).view(-1, 1, 1) for x in (MEAN, STD))
    return image.clone().sub_(mean).div_(std)


class CachedPairs(Dataset):
    """An item (i, j) is the augmented visible image i and infrared image j, and their labels."""

    def __init__(self, images: np.ndarray, label: np.ndarray) -> None:
        self.images, self.label = images, label

    def __getitem__(self, rows: tuple[int, int]) -> tuple[Any, ...]:
        pictures = [Image.fromarray(self.images[n]) for n in rows]
        pixels = [normalize(to_tensor(crop_and_flip(p))) for p in pictures]
        return (*pixels, *(int(self.label[n]) for n in rows))


class EncodedPairs(Dataset):
    """An item (i, j) is visible image i and infrared image j, decoded and resized, uint8."""

    def __init__(
        self, images: Any, label: np.ndarray, size: tuple[int, int], *, one_call: bool
    ) -> None:
        self.images, self.label, self.size, self.one_call = images, label, size, one_call

    def image(self, row: int) -> torch.Tensor:
        """Uint8 [H, W, 3]."""
        picture = Image.open(io.BytesIO(self.images[row])).convert("RGB")
        if not self.one_call:  # rows first: the same pixels as ours, whatever Pillow's version
            picture = picture.resize((self.size[1], picture.height), Image.Resampling.LANCZOS)
        picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(picture))

    def __getitem__(self, rows: tuple[int, int]) -> tuple[Any, ...]:
        return (*(self.image(n) for n in rows), *(int(self.label[n]) for n in rows))


def batches(
    dataset: Dataset, plan: Callable[[int], np.ndarray], workers: int
) -> Iterator[dict[str, Any]]:
    """The plan's batches by a DataLoader, without end."""

    def steps() -> Iterator[list[tuple[int, int]]]:
        epoch = 0
        while True:
            for index in plan(epoch):
                yield list(map(tuple, index.T.tolist()))
            epoch += 1

    loader = DataLoader(dataset, batch_sampler=steps(), num_workers=workers)
    for visible, infrared, label, _ in loader:
        yield {"visible": visible, "infrared": infrared, "label": label}
