"""Batches in NumPy and Pillow: decoded images are gathered, stored ones decoded in threads."""

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data.decoding import FILTERS as FILTERS
from vireid_jax.data.decoding import UNIT, check_filter, check_size, cores, load
from vireid_jax.data.decoding import decode as decode
from vireid_jax.types import INFRARED, VISIBLE, Batch, Pixels, Records, is_decoded

Plan = Callable[[int], np.ndarray]  # epoch -> int32 [steps, 2, B], the same steps every epoch

Loaded = Iterator[tuple[np.ndarray, np.ndarray]]  # a step's rows [2, b], images [2, b, H, W, 3]

# Decoded images, the steps' rows, batches kept ready.
Gather = Callable[[np.ndarray | Pixels, Iterator[np.ndarray], int], Loaded]

# Hands the images of a step to the pool; the function that it returns waits for them.
_Begin = Callable[[ThreadPoolExecutor, np.ndarray], Callable[[], np.ndarray]]


def batches(
    records: Records,
    label: np.ndarray,
    plan: Plan,
    *,
    start: int,
    stop: int,
    rows: slice = slice(None),
    image_size: tuple[int, int] | None = None,
    filter: str = "lanczos",
    prefetch: int = 2,
    gather: Gather | None = None,
) -> Iterator[Batch]:
    """The host batches of steps start .. stop-1, loaded ahead of time in threads.

    Step s is row s % steps of the plan of epoch s // steps, so a run resumed at step n sees what
    an uninterrupted one would have seen, and nothing before n is touched.

    Of a memory-mapped array only the rows of a batch are read. Encoded images and paths are
    decoded when a batch needs them; the batches are the same as from images decoded before, to
    the last bit, and no more than prefetch + 1 of them are in memory.

    Args:
      records: decoded images, encoded ones or paths.
      label: int32 [N], the class of each image.
      plan: the rows of every batch of an epoch, e.g. `sampler.plan` with all but the epoch set.
      start: first step.
      stop: one past the last step.
      rows: this process's contiguous rows of the B rows of a batch.
      image_size: height, width in pixels; needed for encoded images.
      filter: "lanczos" or "bilinear", both antialiased.
      prefetch: batches kept ready.
      gather: of decoded images; None for `gathered`.

    Returns:
      An iterator of `Batch`, which may be dropped at any time; bad arguments raise here, before
      the first batch.

    Raises:
      ValueError: if an option is out of range, or images, label, steps or rows do not fit; while
        iterating, naming the image that cannot be read or decoded.
      FileNotFoundError: while iterating, naming the file.
    """
    _check_options(records.images, image_size, filter, prefetch)
    steps = _steps(records, label, plan, start, stop, rows)
    if is_decoded(records.images):
        loaded = (gather or gathered)(records.images, steps, prefetch)
    else:
        begin = _decoding(records, tuple(image_size or ()), filter)
        loaded = _ahead(steps, begin, cores(), prefetch)
    return (host_batch(pixels, records, label, index) for index, pixels in loaded)


def _check_options(
    images: Any, image_size: tuple[int, int] | None, filter: str, prefetch: int
) -> None:
    check_filter(filter)
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}, expected at least 1 batch")
    if image_size is not None:
        check_size(image_size)
    if not is_decoded(images):
        if image_size is None:
            raise ValueError("image_size is None, but encoded images need a (height, width)")
        return
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images is {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 3]"
        )
    if image_size is not None and tuple(image_size) != tuple(images.shape[1:3]):
        raise ValueError(
            f"image_size is {tuple(image_size)}, but the decoded images are "
            f"{tuple(images.shape[1:3])}; decode them at that size, or leave image_size out"
        )


def array_of(images: np.ndarray | Pixels) -> tuple[np.ndarray, np.ndarray | None]:
    """The array behind decoded images, and which of its rows they are (None: all, in order).

    Raises:
      ValueError: if a row is not in the array.
    """
    if not isinstance(images, Pixels):
        return np.asarray(images), None  # a plain view: np.memmap itself is slower to index
    rows, count = images.rows, len(images.array)
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise ValueError(
            f"the images are rows {rows.min()} .. {rows.max()} of an array of {count}; was it "
            "made for other records?"
        )
    return np.asarray(images.array), rows


def gathered(images: np.ndarray | Pixels, steps: Iterator[np.ndarray], prefetch: int) -> Loaded:
    """The images of each step, gathered by threads before they are asked for."""
    array, at = array_of(images)

    def begin(pool: ThreadPoolExecutor, index: np.ndarray) -> Callable[[], np.ndarray]:
        # Made here, because what a thread allocates goes back to the system with each batch.
        pixels = np.empty((*index.shape, *array.shape[1:]), np.uint8)
        rows = index if at is None else at[index]
        # The rows are in range, and "raise" would gather into a buffer first.
        return pool.submit(array.take, rows, axis=0, out=pixels, mode="clip").result

    # The memory is the limit, not the cores; one thread for each batch that is kept ready
    # lets the reads of a file that is not in memory yet overlap.
    return _ahead(steps, begin, min(prefetch, cores()), prefetch)


def _decoding(records: Records, size: tuple[int, ...], filter: str) -> _Begin:
    def begin(pool: ThreadPoolExecutor, index: np.ndarray) -> Callable[[], np.ndarray]:
        # An identity with few images has some of them twice in a batch; one is decoded.
        rows, place = np.unique(index, return_inverse=True)
        place = place.ravel()
        pixels = np.empty((index.size, *size, 3), np.uint8)

        def fill(first: int) -> None:
            for n in range(first, min(first + UNIT, len(rows))):
                pixels[place == n] = load(records.images, int(rows[n]), size, filter, records.name)

        parts = [pool.submit(fill, first) for first in range(0, len(rows), UNIT)]

        def wait() -> np.ndarray:
            for part in parts:
                part.result()  # raises what the thread raised
            return pixels.reshape(*index.shape, *size, 3)

        return wait

    return begin


def _ahead(steps: Iterator[np.ndarray], begin: _Begin, threads: int, prefetch: int) -> Loaded:
    """Begins each step's images `prefetch` batches before they are asked for.

    The threads start with the first batch that is asked for. They end when the iterator does or
    is dropped; work that has not begun is given up.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="vireid-loader")
    waiting: collections.deque[tuple[np.ndarray, Callable[[], np.ndarray]]] = collections.deque()
    try:
        for index in steps:
            waiting.append((index, begin(pool, index)))
            if len(waiting) > prefetch:
                ready, wait = waiting.popleft()
                yield ready, wait()
        while waiting:
            ready, wait = waiting.popleft()
            yield ready, wait()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _steps(
    records: Records, label: np.ndarray, plan: Plan, start: int, stop: int, rows: slice
) -> Iterator[np.ndarray]:
    """The part of the plan that steps start .. stop-1 need, int32 [2, b] for each step."""
    if label.shape != records.person.shape:
        raise ValueError(
            f"label has shape {label.shape} but there are {len(records)} records, expected "
            "one label for each"
        )
    if not 0 <= start <= stop:
        raise ValueError(f"steps are {start} .. {stop}, expected 0 <= start <= stop")
    steps, _, size = shape = _checked_plan(plan(0), 0).shape
    first, last, stride = rows.indices(size)
    if stride != 1 or first >= last:
        raise ValueError(f"rows is {rows}, expected a contiguous run of the {size} rows of a batch")

    def walk() -> Iterator[np.ndarray]:
        for epoch in range(start // steps, -(-stop // steps)):
            planned = _checked_plan(plan(epoch), epoch)
            if planned.shape != shape:
                raise ValueError(
                    f"the plan of epoch {epoch} has shape {list(planned.shape)}, the one of epoch "
                    f"0 {list(shape)}; every epoch must have the same steps and rows"
                )
            _check_rows(records, label, planned, epoch)
            begin = epoch * steps
            for index in planned[max(start - begin, 0) : stop - begin]:
                yield index[:, rows]

    return walk()


def _checked_plan(plan: np.ndarray, epoch: int) -> np.ndarray:
    if plan.ndim != 3 or plan.shape[1] != 2 or 0 in plan.shape or plan.dtype.kind not in "iu":
        raise ValueError(
            f"the plan of epoch {epoch} is {plan.dtype} {list(plan.shape)}, "
            "expected int32 [steps, 2, B]"
        )
    return plan


def _check_rows(records: Records, label: np.ndarray, plan: np.ndarray, epoch: int) -> None:
    """Refuses a plan that was made for other records: it would train on wrong labels."""
    if plan.min() < 0 or plan.max() >= len(records):
        raise ValueError(
            f"the plan of epoch {epoch} names rows {plan.min()} .. {plan.max()}, but there are "
            f"{len(records)} records; make the plan from the labels of these records"
        )
    if (records.modality[plan] != np.array([[VISIBLE], [INFRARED]])).any():
        raise ValueError(
            f"the plan of epoch {epoch} takes an image for the wrong modality; make the plan "
            "from the modality of these records"
        )
    visible, infrared = label[plan[:, 0]], label[plan[:, 1]]
    if (visible < 0).any() or (visible != infrared).any():
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
