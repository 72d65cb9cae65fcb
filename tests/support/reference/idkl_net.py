"""The parts of IDKL's network (Ren and Zhang, CVPR 2024) in PyTorch."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .resnet import BatchNorm

HIDDEN = 100  # of the modality heads
RATIO = 16  # r of eq. (8)


def gem(x: torch.Tensor) -> torch.Tensor:
    """Generalized mean with p = 3 of [N, F, h, w] above 1e-6."""
    return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class _Reverse(torch.autograd.Function):
    """The same on the way forward, -strength times the gradient on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.strength * gradient, None


def reverse(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Gradient reversal (Ganin and Lempitsky, ICML 2015)."""
    result: torch.Tensor = _Reverse.apply(x, strength)
    return result


class Mask(nn.Module):
    """Eq. (8): two 1x1 convolutions without biases, of the pooled map or at every place."""

    def __init__(self, width: int, form: str) -> None:
        super().__init__()
        hidden = max(width // RATIO, 1)
        self.form = form
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.form == "channel":
            x = gem(x)[:, :, None, None]
        x = torch.relu(functional.conv2d(x, self.down.weight[:, :, None, None]))
        return torch.sigmoid(functional.conv2d(x, self.up.weight[:, :, None, None]))


class Norm(nn.Module):
    """Eq. (7), then a scale and a shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=1e-5)


class Purifier(nn.Module):
    """Eqs. (7) to (12): maps [N, F, h, w] to F^, F^d+, F^m- and F~."""

    def __init__(self, width: int, mask: str = "channel") -> None:
        super().__init__()
        self.norm = Norm(width)
        self.mask_e, self.mask_r = Mask(width, mask), Mask(width, mask)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        normalized = self.norm(x)
        m_e, m_r = self.mask_e(x), self.mask_r(normalized)
        enhanced, reduced = m_e * x, m_r * normalized
        return normalized, enhanced, reduced, m_e * reduced + m_r * enhanced


class ModalityClassifier(nn.Module):
    """Two hidden layers of 100, then two logits. Without its dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(width, HIDDEN), BatchNorm(HIDDEN)
        self.fc2, self.bn2 = nn.Linear(HIDDEN, HIDDEN), BatchNorm(HIDDEN)
        self.fc3 = nn.Linear(HIDDEN, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.fc1(x)))
        return self.fc3(torch.relu(self.bn2(self.fc2(x))))
