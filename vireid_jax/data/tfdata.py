"""The batches of `arrays.batches` by tf.data: in the background, and from encoded images.

The only file that imports TensorFlow at module level; it is imported only where this loader
is asked for. Only the pixels go through TensorFlow; which rows, labels and cameras make up
a batch is decided by the same NumPy code as in the array loader.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from vireid_jax.data import arrays
from vireid_jax.types import Batch, Records


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

    Decoded images are gathered. Encoded images (bytes or paths) are read and decoded in
    TensorFlow's threads, and resized there if their size is not `image_size`. Images stored
    at that size come out exactly as from `arrays.decode`. Resized ones differ from it where
    sums fall on the edge of rounding: measured in at most 8 % of pixels, by at most 2 gray
    levels, mostly in less than 0.1 % by 1.

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
    if isinstance(images, np.ndarray):
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

    def steps() -> Iterator[np.ndarray]:
        return arrays.plan_steps(records, label, plan, start=start, stop=stop, rows=rows)

    steps()  # bad arguments raise here, not in a thread
    # TensorFlow would take the memory of the accelerator that JAX trains on.
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            pass  # it has started already, by whoever asked for it
    first, last, _ = rows.indices(plan(0).shape[2])
    if isinstance(images, np.ndarray):
        dataset = _gathered(images, steps, last - first)
    else:
        dataset = _decoded(records, steps, last - first, tuple(image_size or ()), filter)
    return _walk(dataset.prefetch(prefetch), records, label, steps())


def _walk(
    dataset: tf.data.Dataset, records: Records, label: np.ndarray, steps: Iterator[np.ndarray]
) -> Iterator[Batch]:
    images = dataset.as_numpy_iterator()
    for index in steps:
        try:
            pixels = next(images)
        except tf.errors.OpError as error:
            _blame(records, index)
            raise ValueError(f"TensorFlow cannot load a batch: {error.message}") from error
        yield arrays.host_batch(pixels, records, label, index)


def _gathered(images: np.ndarray, steps: Any, rows: int) -> tf.data.Dataset:
    """uint8 [2, b, H, W, 3] from decoded images.

    NumPy gathers: a tensor of all images would double the memory, and would read a
    memory-mapped array as a whole.
    """
    spec = tf.TensorSpec((2, rows, *images.shape[1:]), tf.uint8)
    return tf.data.Dataset.from_generator(
        lambda: (images[index] for index in steps()), output_signature=spec
    )


def _decoded(
    records: Records, steps: Any, rows: int, size: tuple[int, ...], filter: str
) -> tf.data.Dataset:
    """uint8 [2, b, H, W, 3] from encoded images or paths."""
    images = records.images
    stored = isinstance(images[0], bytes)

    def encoded() -> Iterator[list]:
        for index in steps():
            yield [images[n] if stored else os.fspath(images[n]) for n in index.ravel()]

    dataset = tf.data.Dataset.from_generator(
        encoded, output_signature=tf.TensorSpec((2 * rows,), tf.string)
    )
    dataset = dataset.unbatch()
    if not stored:
        dataset = dataset.map(tf.io.read_file, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.map(
        lambda image: _decode(image, size, filter), num_parallel_calls=tf.data.AUTOTUNE
    )
    dataset = dataset.batch(2 * rows, drop_remainder=True)
    return dataset.map(lambda x: tf.reshape(x, (2, rows, *size, 3)))


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
