"""The old name of `vireid_jax.metrics.counting`."""

from vireid_jax.metrics.counting import TIES, check_ties

__all__ = ["TIES", "check_ties"]
