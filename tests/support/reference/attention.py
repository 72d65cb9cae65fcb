"""The non-local blocks of AGW and DEEN in PyTorch, on maps [N, F, h, w].

Each builds its matrix of energies and then multiplies by it, and splits channels by a view of
memory, as the formulas of AGW's code (`Non_local`) and of DEEN's (`CNL`, `PNL`, `MFA_block`) say.
Names are those of the JAX tree.
"""

import torch
from torch import nn
from torch.nn import functional

from .resnet import BatchNorm


class Point(nn.Linear):
    """A 1x1 convolution with a bias; a linear layer by its weights."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight[:, :, None, None], self.bias, self.stride)


class NonLocal(nn.Module):
    """Every position attends to every position, with one inner channel or half the channels.

    One is what AGW's `inter_channels = reduc_ratio // reduc_ratio` comes to.
    """

    def __init__(self, width: int, inner: str = "one", reduc_ratio: int = 2) -> None:
        super().__init__()
        self.inner = (reduc_ratio if inner == "one" else width) // reduc_ratio
        self.theta, self.phi, self.g = (Point(width, self.inner) for _ in range(3))
        self.w, self.bn = Point(self.inner, width), BatchNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (len(x), self.inner, -1)
        theta, phi, g = (layer(x).view(shape) for layer in (self.theta, self.phi, self.g))
        energy = theta.transpose(1, 2) @ phi  # [N, n, n]
        y = (energy / energy.shape[-1]) @ g.transpose(1, 2)  # [N, n, inner]
        y = y.transpose(1, 2).contiguous().view(*shape[:2], *x.shape[2:])
        return x + self.bn(self.w(y))


class ChannelAttention(nn.Module):
    """CNL: energies between the channels of two maps. Strides: those of phi and of w."""

    def __init__(self, high: int, low: int, stride: int) -> None:
        super().__init__()
        self.theta, self.g = Point(high, low), Point(low, low)
        self.phi, self.w = Point(low, low, stride), Point(low, high, stride)
        self.bn = BatchNorm(high)

    def forward(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        theta, phi, g = self.theta(high).flatten(2), self.phi(low).flatten(2), self.g(low)
        energy = theta @ phi.transpose(1, 2)  # [N, c, c]
        y = (energy / energy.shape[-1]) @ g.flatten(2)
        return high + self.bn(self.w(y.view(low.shape)))


class PositionAttention(nn.Module):
    """PNL: energies between the positions of two maps, after c / 2 channels are viewed as c."""

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.low = low
        self.theta = Point(high, low // 2)
        self.phi, self.g = Point(low, low // 2), Point(low, low // 2)
        self.w, self.bn = Point(low // 2, high), BatchNorm(high)

    def forward(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        shape = (len(high), self.low, -1)
        theta, phi, g = self.theta(high).view(shape), self.phi(low).view(shape), self.g(low)
        energy = theta.transpose(1, 2) @ phi  # [N, n of high, n of low]
        y = (energy / energy.shape[-1]) @ g.view(shape).transpose(1, 2)
        y = y.transpose(1, 2).contiguous().view(len(high), self.low // 2, *high.shape[2:])
        return high + self.bn(self.w(y))


class Aggregation(nn.Module):
    """MFA: CNL, then PNL of its result."""

    def __init__(self, high: int, low: int, stride: int) -> None:
        super().__init__()
        self.channel = ChannelAttention(high, low, stride)
        self.position = PositionAttention(high, low)

    def forward(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        return self.position(self.channel(high, low), low)
