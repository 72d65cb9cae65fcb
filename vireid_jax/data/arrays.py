"""Batches from images that are decoded and in memory (or memory-mapped), in NumPy only."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.types import INFRARED, VISIBLE, Batch, Records, is_decoded

FILTERS = ("lanczos", "bilinear")

Plan = Callable[[int], np.ndarray]  # epoch -> int32 [steps, 2, B], the same steps every epoch


def batches(
    records: Records,
    label: np.ndarray,
    plan: Plan,
    *,
    start: int,
    stop: int,
    rows: slice = slice(None),
) -> Iterator[Batch]:
    """The host batches of steps start .. stop-1.

    Step s is row s % steps of the plan of epoch s // steps, so a run resumed at step n
    sees what an uninterrupted one would have seen, and nothing before n is touched.

    Args:
      records: with decoded images, uint8 [N, H, W, 3].
      label: int32 [N], the class of each image.
      plan: the rows of every batch of an epoch, e.g. `sampler.plan` with all but the epoch set.
      start: first step.
      stop: one past the last step.
      rows: this process's contiguous rows of the B rows of a batch.

    Returns:
      An iterator of `Batch`; bad arguments raise here, before the first batch.

    Raises:
      ValueError: if the images are not decoded, or label, steps or rows do not fit.
    """
    if not is_decoded(records.images):
        raise ValueError(
            "the array loader needs decoded images, uint8 [N, H, W, 3], got a "
            f"{type(records.images).__name__} of encoded images or paths; decode them first "
            "with arrays.decode(records.images, size), or use tfdata.batches"
        )
    check_decoded(records.images)
    steps = plan_steps(records, label, plan, start=start, stop=stop, rows=rows)
    images = records.images
    return (host_batch(images[index], records, label, index) for index in steps)


def plan_steps(
    records: Records,
    label: np.ndarray,
    plan: Plan,
    *,
    start: int,
    stop: int,
    rows: slice = slice(None),
) -> Iterator[np.ndarray]:
    """The part of the plan that steps start .. stop-1 need, int32 [2, b] for each step.

    Arguments and errors are those of `batches`.
    """
    if label.shape != records.person.shape:
        raise ValueError(
            f"label has shape {label.shape} but there are {len(records)} records, expected "
            "one label for each"
        )
    if not 0 <= start <= stop:
        raise ValueError(f"steps are {start} .. {stop}, expected 0 <= start <= stop")
    steps, _, size = _checked_plan(plan(0), 0, None).shape
    first, last, stride = rows.indices(size)
    if stride != 1 or first >= last:
        raise ValueError(f"rows is {rows}, expected a contiguous run of the {size} rows of a batch")
    return _walk(records, label, plan, start, stop, slice(first, last), (steps, 2, size))


def _walk(
    records: Records,
    label: np.ndarray,
    plan: Plan,
    start: int,
    stop: int,
    rows: slice,
    shape: tuple[int, int, int],
) -> Iterator[np.ndarray]:
    for epoch in range(start // shape[0], -(-stop // shape[0])):
        epoch_plan = _checked_plan(plan(epoch), epoch, shape)
        _check_rows(records, label, epoch_plan, epoch)
        begin = epoch * shape[0]
        for index in epoch_plan[max(start - begin, 0) : stop - begin]:
            yield index[:, rows]


def _checked_plan(plan: np.ndarray, epoch: int, shape: tuple[int, int, int] | None) -> np.ndarray:
    if plan.ndim != 3 or plan.shape[1] != 2 or 0 in plan.shape or plan.dtype.kind not in "iu":
        raise ValueError(
            f"the plan of epoch {epoch} is {plan.dtype} {list(plan.shape)}, "
            "expected int32 [steps, 2, B]"
        )
    if shape is not None and plan.shape != shape:
        raise ValueError(
            f"the plan of epoch {epoch} has shape {list(plan.shape)} but that of epoch 0 has "
            f"{list(shape)}; every epoch must have the same steps and rows"
        )
    return plan


def _check_rows(records: Records, label: np.ndarray, plan: np.ndarray, epoch: int) -> None:
    """Refuses a plan that was made for other records: it would train on wrong labels."""
    if plan.min() < 0 or plan.max() >= len(records):
        raise ValueError(
            f"the plan of epoch {epoch} names rows {plan.min()} .. {plan.max()}, but there are "
            f"{len(records)} records; make the plan from the labels of these records"
        )
    visible, infrared = plan[:, 0], plan[:, 1]
    if (records.modality[visible] != VISIBLE).any() or (
        records.modality[infrared] != INFRARED
    ).any():
        raise ValueError(
            f"the plan of epoch {epoch} takes an image for the wrong modality; make the plan "
            "from the modality of these records"
        )
    if (label[visible] < 0).any() or (label[visible] != label[infrared]).any():
        raise ValueError(
            f"the plan of epoch {epoch} pairs images of different classes, or uses images "
            "labeled -1; make the plan from the labels of these records"
        )


def host_batch(images: np.ndarray, records: Records, label: np.ndarray, index: np.ndarray) -> Batch:
    """Puts images uint8 [2, b, H, W, 3] together with what is known of rows `index` [2, b]."""
    return Batch(
        visible=images[0],
        infrared=images[1],
        label=label[index[0]].astype(np.int32),
        camera=np.ascontiguousarray(records.camera[index].T, dtype=np.int32),
    )


def check_decoded(images: Any) -> None:
    """Raises ValueError unless images is uint8 [N, H, W, 3]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images is {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 3]"
        )


def decode(
    images: Sequence[bytes] | Sequence[str] | Sequence[os.PathLike],
    size: tuple[int, int],
    *,
    filter: str = "lanczos",
) -> np.ndarray:
    """Decodes stored images once, into an array for `batches`.

    Always three channels: grayscale is repeated, alpha dropped, and 16-bit grayscale cut
    to its upper 8 bits. An image is resized only if its size differs, so images stored at
    their final size come out exactly as stored.

    Args:
      images: N encoded images (bytes) or paths.
      size: height, width in pixels.
      filter: "lanczos" (the caches of AGW and its descendants) or "bilinear" (MPANet, IDKL),
        both antialiased.

    Returns:
      uint8 [N, H, W, 3].

    Raises:
      ValueError: naming the image that cannot be decoded, or for a bad size or filter.
      FileNotFoundError: naming the file.
    """
    check_size(size)
    check_filter(filter)
    out = np.empty((len(images), *size, 3), np.uint8)

    def one(n: int) -> None:
        out[n] = _decode(images[n], size, filter, n)

    # Pillow lets go of the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, range(len(images))):
            pass
    return out


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError unless size is (height, width) in pixels."""
    if len(size) != 2 or any(int(s) != s or s < 1 for s in size):
        raise ValueError(f"size is {size}, expected (height, width) in pixels")


def check_filter(filter: str) -> None:
    """Raises ValueError unless filter is the name of one."""
    if filter not in FILTERS:
        raise ValueError(f"filter is {filter!r}, expected one of {', '.join(FILTERS)}")


def _decode(image: Any, size: tuple[int, int], filter: str, n: int) -> np.ndarray:
    from PIL import Image  # only users of stored images need Pillow

    encoded = isinstance(image, bytes)
    label = f"image {n} ({len(image)} bytes)" if encoded else f"{os.fspath(image)} (image {n})"
    try:
        with Image.open(io.BytesIO(image) if encoded else image) as stored:
            picture = _three_channels(stored)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{label} does not exist") from error
    # Pillow raises SyntaxError and struct.error too, depending on the format.
    except Exception as error:
        raise ValueError(
            f"cannot decode {label}: {error}; replace the file, or leave it out of the records"
        ) from error
    if picture.size != (size[1], size[0]):
        resample = {"lanczos": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}
        # Rows first, then columns, each rounded to 8 bits: what Pillow always did. From 13.0
        # on it takes columns first for tall images, and a third of the pixels would change
        # with Pillow's version; one direction at a time leaves it no choice.
        picture = picture.resize((size[1], picture.height), resample[filter])
        picture = picture.resize((size[1], size[0]), resample[filter])
    return np.asarray(picture)


def _three_channels(picture: Any) -> Any:
    """The Pillow picture in RGB."""
    if picture.mode.startswith("I;16"):
        from PIL import Image

        # Pillow would clip at 255; the upper byte is what TensorFlow (libpng) keeps.
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {picture.mode}), expected 8 or 16")
    return picture.convert("RGB")
