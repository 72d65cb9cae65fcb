"""Four fake CPU devices, a warm compilation cache, and strict array habits for every test."""

import os
import pathlib
import tempfile

# Before jax starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "32")  # threads, see vireid_jax.runtime.devices.share_cpu
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CACHE = pathlib.Path(
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "vireid_jax_xla")
    )
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests.support.plain import QUICK  # noqa: E402
from vireid_jax.runtime import devices  # noqa: E402

# Tests of sharding need several devices on one machine.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 "
        f"--xla_cpu_multi_thread_eigen=false {QUICK}"
    ).strip()

# Fake devices share threads: as in vireid_jax.runtime.devices.share_cpu.
jax.config.update("jax_cpu_enable_async_dispatch", False)
# [N] + [N, D] is a bug in every loss we write, never an intention.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Generated tests are in both tiers: a few examples before each commit, many in the slow tier.
hypothesis.settings.register_profile("fast", max_examples=20, deadline=None)
hypothesis.settings.register_profile("slow", max_examples=200, deadline=None)


def pytest_configure(config):
    slow = config.option.markexpr == "slow"
    hypothesis.settings.load_profile("slow" if slow else "fast")
    # pytest-xdist would run the files with the fewest tests last. Those are the whole models, and
    # one of them at the end keeps a process alone.
    config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.parent.parent.name != "methods")  # whole models first
    if config.option.markexpr == "slow":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker("slow")


@pytest.fixture(scope="module")
def one_device():
    """A mesh of one device, for whole models: sharding is tested elsewhere, and compiles longer."""
    mesh = devices.make_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "make_mesh", lambda *_, **__: mesh)
        yield
