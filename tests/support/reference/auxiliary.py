"""Auxiliary modalities in PyTorch, written from the papers; SMGM is in `smcl`.

The generator of MUN (Yu et al., ICCV 2023) is written as eqs. 1 to 9 read: every map is made,
with PyTorch's own grouped, transposed and 1x1 convolutions.
"""

import torch
from torch import nn
from torch.nn import functional

from .resnet import BatchNorm
from .smcl import MEAN, STD

LUMA = (0.2989, 0.587, 0.114)


def _to_pixels(x: torch.Tensor) -> torch.Tensor:
    return x * x.new_tensor(STD)[:, None, None] + x.new_tensor(MEAN)[:, None, None]


def _standardized(x: torch.Tensor) -> torch.Tensor:
    return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]


class X(nn.Module):
    """X-modality (Li et al., AAAI 2020): 1x1 convolution of the pixels, ReLU, 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 3, 1)

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        return _standardized(self.conv2(torch.relu(self.conv1(_to_pixels(visible)))))


class Gray(nn.Module):
    """Luma of the pixels, three times over."""

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        luma = torch.einsum("bchw,c->bhw", _to_pixels(visible), visible.new_tensor(LUMA))
        return _standardized(torch.stack([luma, luma, luma], 1))


class Mixed(nn.Module):
    """The mean of both images."""

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        return 0.5 * visible + (1 - 0.5) * infrared


class _LayerScale(nn.Module):
    """Base of what ends in a layer scale; its parameter is `layer_scale` of the module."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(channels))

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.layer_scale[:, None, None]


class IML(_LayerScale):
    """Intra-modality learner, eqs. (1) to (5)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        half, wide = channels // 2, 4 * channels
        self.depthwise5 = nn.Conv2d(half, half, 5, padding=2, groups=half, bias=False)
        self.depthwise7 = nn.Conv2d(half, half, 7, padding=3, groups=half, bias=False)
        self.bn1 = BatchNorm(channels)
        self.expand = nn.Conv2d(channels, wide, 1)
        self.depthwise3 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.bn2 = BatchNorm(wide)
        self.reduce = nn.Conv2d(wide, channels, 1)

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        first, second = f.chunk(2, 1)
        r = torch.cat([self.depthwise5(first), self.depthwise7(second)], 1)
        r1 = self.expand(self.bn1(r))
        r2 = self.depthwise3(torch.relu(r1)) + r1
        return self.scaled(self.reduce(self.bn2(r2)))


class Transposed(nn.Module):
    """Transposed convolution, kernel = stride = r; weight [out, in, r, r]."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, channels, ratio, ratio))
        self.ratio = ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv_transpose2d(x, self.weight.transpose(0, 1), stride=self.ratio)


class CML(_LayerScale):
    """Cross-modality learner, eqs. (6) to (9)."""

    def __init__(self, channels: int, ratios: tuple[int, ...] = (2, 4, 6, 12)) -> None:
        super().__init__(channels)
        self.ratios = ratios
        for n, ratio in enumerate(ratios):
            self.add_module(f"transposed{n}", Transposed(channels, ratio))
        self.bn = BatchNorm(2 * len(ratios) * channels)
        self.project = nn.Conv2d(2 * len(ratios) * channels, channels, 1)

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        rebuilt = []
        for f in (visible, infrared):
            for n, ratio in enumerate(self.ratios):
                pooled = functional.avg_pool2d(f, ratio, ratio)
                rebuilt.append(self.get_submodule(f"transposed{n}")(pooled))
        return self.scaled(self.project(self.bn(torch.cat(rebuilt, 1))))


class Unifying(nn.Module):
    """Both intra-modality learners and the cross-modality learner."""

    def __init__(self, channels: int, ratios: tuple[int, ...] = (2, 4, 6, 12)) -> None:
        super().__init__()
        self.intra_visible, self.intra_infrared = IML(channels), IML(channels)
        self.cross = CML(channels, ratios)

    def forward(
        self, visible: torch.Tensor, infrared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        visible, infrared = self.intra_visible(visible), self.intra_infrared(infrared)
        return self.cross(visible, infrared), visible, infrared
