"""The batches of `arrays.batches`, loaded ahead of time, and from encoded images by tf.data.

The only file that imports TensorFlow at module level; it is imported only where this loader
is asked for. Only the pixels go through TensorFlow; which rows, labels and cameras make up
a batch is decided by the same NumPy code as in the array loader.

No Python runs inside the tf.data pipeline (no from_generator, no numpy_function): a process
that ends while such a pipeline lives may hang, waiting for an interpreter that is gone.
"""

import collections
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from vireid_jax.data import arrays
from vireid_jax.types import Batch, Records, is_decoded

_SEGMENT = 512  # steps that one tf.data pipeline is made for


def batches(
    records: Records,
    label: np.ndarray,
    plan: arrays.Plan,
    *,
    start: int,
    stop: int,
    rows: slice = slice(None),
    image_size: tuple[int, int] | None = None,
    filter: str = "lanczos",
    prefetch: int = 2,
) -> Iterator[Batch]:
    """The same batches in the same order as `arrays.batches`, loaded ahead of time.

    Decoded images are gathered by NumPy in a thread: TensorFlow would need a copy of them
    all, and would read a memory-mapped array as a whole. Encoded images (bytes or paths) are
    read and decoded in TensorFlow's threads, and resized there if their size is not
    `image_size`; bytes are copied once. Images stored at that size come out exactly as from
    `arrays.decode`. Resized ones differ from it where sums fall on the edge of rounding:
    measured in at most 8 % of pixels, by at most 2 gray levels, mostly in less than 0.1 % by 1.

    Args:
      records: decoded images, encoded ones or paths.
      label: int32 [N], the class of each image.
      plan: the rows of every batch of an epoch.
      start: first step.
      stop: one past the last step.
      rows: this process's contiguous rows of the B rows of a batch.
      image_size: height, width in pixels; needed for encoded images.
      filter: "lanczos" or "bilinear", both antialiased.
      prefetch: batches kept ready.

    Returns:
      An iterator of `Batch`; it may be dropped at any time. Images are read-only.

    Raises:
      ValueError: as `arrays.batches`, and for a missing or different image size; while
        iterating, naming the image that cannot be decoded.
      FileNotFoundError: while iterating, naming the file.
    """
    arrays.check_filter(filter)
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}, expected at least 1 batch")
    images = records.images
    if is_decoded(images):
        arrays.check_decoded(images)
        if image_size is not None and tuple(image_size) != images.shape[1:3]:
            raise ValueError(
                f"image_size is {tuple(image_size)}, but the decoded images are "
                f"{images.shape[1:3]}; decode them at that size, or leave image_size out"
            )
    elif image_size is None:
        raise ValueError("image_size is None, but encoded images need a (height, width)")
    else:
        arrays.check_size(image_size)

    steps = arrays.plan_steps(records, label, plan, start=start, stop=stop, rows=rows)
    # TensorFlow would take the memory of the accelerator that JAX trains on.
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            pass  # it has started already, by whoever asked for it
    if is_decoded(images):
        loaded = _gathered(images, steps, prefetch)
    else:
        loaded = _decoded(records, steps, tuple(image_size or ()), filter, prefetch)
    return (arrays.host_batch(pixels, records, label, index) for index, pixels in loaded)


def _gathered(
    images: Any, steps: Iterator[np.ndarray], prefetch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each step's rows int [2, b] and images uint8 [2, b, H, W, 3], from decoded images."""
    pool = ThreadPoolExecutor(1)
    waiting: collections.deque = collections.deque()
    try:
        for index in steps:
            waiting.append((index, pool.submit(images.__getitem__, index)))
            if len(waiting) > prefetch:
                ready, gathered = waiting.popleft()
                yield ready, gathered.result()
        for ready, gathered in waiting:
            yield ready, gathered.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded(
    records: Records,
    steps: Iterator[np.ndarray],
    size: tuple[int, ...],
    filter: str,
    prefetch: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each step's rows int [2, b] and images uint8 [2, b, H, W, 3], from encoded images."""
    encoded = isinstance(records.images[0], bytes)
    with tf.device("CPU"):
        stored = tf.constant([x if encoded else os.fspath(x) for x in records.images])

    def load(row: tf.Tensor) -> tf.Tensor:
        image = tf.gather(stored, row)
        return _decode(image if encoded else tf.io.read_file(image), size, filter)

    def pipeline(index: np.ndarray) -> Iterator[np.ndarray]:
        rows = index.shape[2]
        dataset = tf.data.Dataset.from_tensor_slices(index.ravel())
        dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.batch(2 * rows, drop_remainder=True)
        dataset = dataset.map(lambda x: tf.reshape(x, (2, rows, *size, 3))).prefetch(prefetch)
        options = tf.data.Options()
        options.experimental_warm_start = True  # load before the first batch is asked for
        return dataset.with_options(options).as_numpy_iterator()

    def segment() -> tuple[np.ndarray, Iterator[np.ndarray]] | None:
        ahead = list(itertools.islice(steps, _SEGMENT))
        if not ahead:
            return None
        index = np.stack(ahead)
        return index, pipeline(index)

    following = segment()
    while following is not None:
        index, images = following
        following = None
        for n in range(len(index)):
            if n == len(index) - 1:
                following = segment()  # starts loading while the last batch is in use
            try:
                loaded = next(images)
            except tf.errors.OpError as error:
                _blame(records, index[n])
                raise ValueError(f"TensorFlow cannot load a batch: {error.message}") from error
            yield index[n], loaded


def _decode(image: tf.Tensor, size: tuple[int, ...], filter: str) -> tf.Tensor:
    """One encoded image -> uint8 [H, W, 3]."""
    image = tf.cond(
        tf.io.is_jpeg(image),
        # The default is a faster transform with other roundings than Pillow's.
        lambda: tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(image, channels=3, expand_animations=False),
    )
    image.set_shape((None, None, 3))
    method = {"lanczos": "lanczos3", "bilinear": "bilinear"}[filter]

    def resized() -> tf.Tensor:
        # Rows, then columns, each rounded and clipped to 8 bits as `arrays.decode` does: in
        # one pass, the overshoot of Lanczos at sharp edges would differ by 40 gray levels.
        x = image
        for shape in ((tf.shape(image)[0], size[1]), size):
            x = tf.image.resize(x, shape, method=method, antialias=True)
            x = tf.clip_by_value(tf.floor(x + 0.5), 0, 255)
        return tf.cast(x, tf.uint8)

    fits = tf.reduce_all(tf.shape(image)[:2] == tf.constant(size))
    return tf.ensure_shape(tf.cond(fits, lambda: image, resized), (*size, 3))


def _blame(records: Records, index: np.ndarray) -> None:
    """Raises an error that names the first image of rows `index` that cannot be decoded."""
    for n in index.ravel():
        image = records.images[n]
        stored = isinstance(image, bytes)
        try:
            encoded = image if stored else tf.io.read_file(os.fspath(image))
            tf.io.decode_image(encoded, channels=3, expand_animations=False)
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(f"{image} (image {n}) does not exist") from error
        except tf.errors.OpError as error:
            what = f"{records.name[n]} ({len(image)} bytes)" if stored else image
            raise ValueError(
                f"cannot decode {what} (image {n}): {error.message}; replace the file, or "
                "leave it out of the records"
            ) from error
