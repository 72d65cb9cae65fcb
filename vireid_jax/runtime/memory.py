"""Memory that the process holds and does not use."""

import ctypes
import platform


def trim() -> None:
    """Gives free memory of the heap back to the system; only glibc has a function for it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
