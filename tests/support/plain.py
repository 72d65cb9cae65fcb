"""Programs compiled without optimizations, for tests of whole models.

Most of their time is compilation, and a program that runs once need not be fast. Single losses and
modules are compared in float32 to 1e-5, for which sums have to be added up as they are in use.
"""

import contextlib
from importlib.metadata import version

import jax

PLAIN = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # in the environment of a process

# A flag of XLA with which whole models compile four times as fast. A version that lacks it would
# abort over it.
QUICK = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""


@contextlib.contextmanager
def plainly():
    """The same for what is compiled within, in this process."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
