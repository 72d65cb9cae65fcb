"""The batches of `arrays.batches`, with decoded images gathered and kept ready by tf.data.

The only file that imports TensorFlow at module level; it is imported only where this loader
is asked for. Only the pixels go through TensorFlow.

No Python runs inside the tf.data pipeline (no from_generator, no numpy_function): a process
that ends while such a pipeline lives may hang, waiting for an interpreter that is gone.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from vireid_jax.data import arrays
from vireid_jax.types import Batch, Pixels, Records

_SEGMENT = 512  # steps that one tf.data pipeline is made for
_ALIGNMENT = 64  # bytes; TensorFlow ends the process if a tensor's memory starts elsewhere


def batches(
    records: Records, label: np.ndarray, plan: arrays.Plan, **options: Any
) -> Iterator[Batch]:
    """The same batches in the same order as `arrays.batches`, to the last bit.

    Decoded images in a memory-mapped .npy file, as the pixel cache has them, are used where they
    are. TensorFlow uses memory as it is only if it starts on a multiple of 64 bytes, which arrays
    in memory mostly do not; those are gathered as by `arrays.batches`, because TensorFlow would
    need a second copy of them all.

    Encoded images and paths are decoded as by `arrays.batches`, too: TensorFlow's JPEG decoder is
    no faster, its Lanczos filter takes twice the time of Pillow's and rounds otherwise (up to 2
    gray levels), and it cannot read records on demand.

    Arguments and errors are those of `arrays.batches`. Images may be read-only.
    """
    return arrays.batches(records, label, plan, gather=_gathered, **options)


def _gathered(
    images: np.ndarray | Pixels, steps: Iterator[np.ndarray], prefetch: int
) -> arrays.Loaded:
    array, at = arrays.array_of(images)
    if not array.flags.c_contiguous or array.ctypes.data % _ALIGNMENT:
        return arrays.gathered(images, steps, prefetch)
    # TensorFlow would take the memory of the accelerator that JAX trains on.
    for kind in ("GPU", "TPU"):
        with contextlib.suppress(RuntimeError):  # it has started already, by whoever asked for it
            tf.config.set_visible_devices([], kind)
    tensor, threads = _shared(array), min(prefetch, arrays.cores())
    options = tf.data.Options()
    # The rewriting of pipelines, and an early start, copy what the pipeline refers to: all
    # images, once for each segment.
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_warm_start = False
    options.autotune.enabled = False

    def segments() -> arrays.Loaded:
        while ahead := list(itertools.islice(steps, _SEGMENT)):
            index = np.stack(ahead)
            dataset = tf.data.Dataset.from_tensor_slices(index if at is None else at[index])
            dataset = dataset.map(
                lambda rows: tf.gather(tensor, rows), num_parallel_calls=threads, deterministic=True
            )
            dataset = dataset.prefetch(prefetch).with_options(options)
            yield from zip(index, dataset.as_numpy_iterator(), strict=True)

    return segments()


class _Memory:
    """An array's memory, said to be writable: NumPy hands read-only memory to nobody.

    TensorFlow does not write to what it gathers from. As the base of the array that is handed
    over, this keeps the memory (a mapped file) as long as TensorFlow has it.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__array_interface__ = {
            **array.__array_interface__,
            "data": (array.ctypes.data, False),  # address, not read-only
        }


def _shared(array: np.ndarray) -> tf.Tensor:
    """The array as a tensor on the CPU, without a copy."""
    writable = np.asarray(_Memory(array))
    return tf.experimental.dlpack.from_dlpack(writable.__dlpack__())
