"""Four fake CPU devices, a warm compilation cache, and strict array habits for every test."""

import os
import pathlib
import tempfile

# Before jax starts: tests of sharding need several devices on one machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false"
    ).strip()
os.environ.setdefault("NPROC", "32")  # threads, see vireid_jax.runtime.devices.use_cpu_cores
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CACHE = pathlib.Path(
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "vireid_jax_xla")
    )
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402

# Fake devices share threads: as in vireid_jax.runtime.devices.use_cpu_cores.
jax.config.update("jax_cpu_enable_async_dispatch", False)
# [N] + [N, D] is a bug in every loss we write, never an intention.
jax.config.update("jax_numpy_rank_promotion", "raise")
