"""Weights from files: ImageNet's for the backbone, or a checkpoint of the authors' code, whole.

Nothing here imports torch, executes what a file says, or reaches for the network.
"""

from vireid_jax.weights.authors import people
from vireid_jax.weights.files import read
from vireid_jax.weights.resnet import Report, check_unused, fill, named

__all__ = ["Report", "check_unused", "fill", "named", "people", "read"]
