"""How the C library gives memory to XLA, which asks for the buffers of a step at every step.

glibc takes large buffers from the system each time, in pages of 4 KB that the system zeroes one by
one: a tenth to a fifth of a step of a small network on a CPU. VIREID_MEMORY chooses:

  huge   (default) pages of 2 MB, where the system has them on request. glibc reads the setting
         when a process starts, so the command starts itself again, in the same process.
  keep   freed memory stays with the process: the fastest, and up to twice the memory.
  system as the C library has it.
"""

import ctypes
import os
import pathlib
import platform
import sys

CHOICES = ("huge", "keep", "system")
HUGE = "glibc.malloc.hugetlb"
ON_REQUEST = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def prepare() -> None:
    """Applies VIREID_MEMORY; to be called first of all, before there is a thread.

    For "huge" this may not return: the command line starts again with GLIBC_TUNABLES. A value that
    is none of `CHOICES` ends the process, as a wrong command line does.
    """
    choice = os.environ.get("VIREID_MEMORY", CHOICES[0])
    if choice not in CHOICES:
        print(
            f"error: VIREID_MEMORY is {choice!r}, expected one of {', '.join(CHOICES)}; unset it, "
            "or set one of them",
            file=sys.stderr,
        )
        sys.exit(2)
    if choice == "keep" and _glibc() >= (2, 0):
        # One arena, no buffer of its own from the system, nothing given back: M_ARENA_MAX,
        # M_MMAP_MAX, M_TRIM_THRESHOLD. One of them alone has no effect on large buffers.
        for option, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1)):
            ctypes.CDLL(None).mallopt(option, value)
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    there = _glibc() >= (2, 35) and _on_request()
    if choice == "huge" and HUGE not in tunables and there and _started_for_this():
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{HUGE}=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def trim() -> None:
    """Gives back what is free, such as what the compiler leaves: half a gigabyte, on a CPU."""
    if os.environ.get("VIREID_MEMORY") != "keep" and _glibc() >= (2, 0):
        ctypes.CDLL(None).malloc_trim(0)


def _started_for_this() -> bool:
    """Whether the process is this command's alone: a notebook that runs it has more to lose."""
    own = len(sys.orig_argv) - len(sys.argv) + 1
    start = sys.orig_argv[:own]
    if sys.orig_argv[own:] != sys.argv[1:] or len(start) < 2:
        return False
    if start[-2] == "-m":
        return sys.argv[0].endswith(start[-1].replace(".", os.sep) + ".py")
    return sys.argv[0] in (start[-1], start[-2])  # a script, or -c


def _glibc() -> tuple[int, ...]:
    """The version of this process's C library; () for another one."""
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


def _on_request() -> bool:
    try:
        return "[madvise]" in ON_REQUEST.read_text()
    except OSError:
        return False
