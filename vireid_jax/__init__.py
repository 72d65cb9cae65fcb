"""Visible-infrared person re-identification in JAX and Flax."""

__version__ = "0.2.0"
