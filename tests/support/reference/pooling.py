"""Pooling of a map [B, C, H, W] to features [B, C] in PyTorch."""

import torch
from torch import nn


class GAP(nn.Module):
    """Mean over the map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class GeM(nn.Module):
    """Generalized mean over a map that is not negative: (mean(x^p) + 1e-12)^(1/p)."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x**self.p).mean((2, 3)) + 1e-12) ** (1 / self.p)
