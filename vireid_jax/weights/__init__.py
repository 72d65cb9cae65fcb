"""Pretrained ImageNet weights for the backbone, from files of torchvision or timm.

Nothing here imports torch, executes what a file says, or reaches for the network.
"""

from vireid_jax.weights.files import read
from vireid_jax.weights.resnet import Report, fill

__all__ = ["Report", "fill", "read"]
