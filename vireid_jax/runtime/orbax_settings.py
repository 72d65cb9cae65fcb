"""How this package uses Orbax: what it writes in shares, and what it says."""

import functools
import logging as std_logging
import pathlib
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

SLICED_FROM = 1 << 24  # bytes of a share


class _WarningsOfOrbax(std_logging.Filter):
    """Lets what Orbax has to warn of through, but not its forty lines of progress per save."""

    def filter(self, record: std_logging.LogRecord) -> bool:
        return (
            record.levelno > std_logging.INFO or "orbax" not in pathlib.Path(record.pathname).parts
        )


_warnings_of_orbax = _WarningsOfOrbax()


def apply() -> None:
    """Sets what Orbax does in this process; more than once changes nothing."""
    logging.get_absl_logger().addFilter(_warnings_of_orbax)  # the same one is added only once
    # When a read fails, Orbax drops the reads still under way, and each prints a page whenever it
    # is collected. The one reason that matters is in the error that was raised.
    if not isinstance(sys.unraisablehook, _DroppedReads):
        sys.unraisablehook = _DroppedReads(sys.unraisablehook)
    _slice_large_arrays_alone()


@functools.cache
def _slice_large_arrays_alone() -> None:
    """Devices with the same array write a share of it each where that is worth cutting it.

    By default every array is cut, which compiles a program for every shape at the first save: of
    a ResNet-50 and Adam on two CPU devices that save held training up for 3.9 s, and 0.6 s so.
    """
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICED_FROM)
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns of being told so
    try:
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    finally:
        logging.set_verbosity(before)


class _DroppedReads:
    """An unraisablehook that says nothing of reads that Orbax gave up."""

    def __init__(self, otherwise: Any):
        self._otherwise = otherwise

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        dropped = code is not None and "orbax" in pathlib.Path(code.co_filename).parts
        if not dropped and str(unraisable.exc_value) != "Event loop is closed":
            self._otherwise(unraisable)
