"""Auxiliary modalities in PyTorch, written from the papers; SMGM is in `smcl`.

The generator of MUN (Yu et al., ICCV 2023) is written as eqs. 1 to 9 read: every map is made,
with PyTorch's own grouped, transposed and 1x1 convolutions.
"""

from typing import Any

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
    """X-modality (Li et al., AAAI 2020): 1x1 convolution, ReLU, 1x1 convolution."""

    def __init__(self, width: int = 1, space: str = "unit") -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
        self.space = space

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        if self.space == "unit":
            return _standardized(self.conv2(torch.relu(self.conv1(_to_pixels(visible)))))
        return self.conv2(torch.relu(self.conv1(visible)))


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

    def __init__(self, channels: int, shape: str, form: str) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(channels if shape == "vector" else 1))
        self.form = form

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.layer_scale
        if self.form == "clip":
            scale = scale.clamp(1e-6, 1)
        elif self.form == "sigmoid":
            scale = torch.sigmoid(scale)
        return x * scale[:, None, None]


class IML(_LayerScale):
    """Intra-modality learner, eqs. (1) to (5)."""

    def __init__(
        self,
        channels: int,
        *,
        residual: bool = False,
        scale_shape: str = "vector",
        scale_form: str = "project",
    ) -> None:
        super().__init__(channels, scale_shape, scale_form)
        half, wide = channels // 2, 4 * channels
        self.depthwise5 = nn.Conv2d(half, half, 5, padding=2, groups=half, bias=False)
        self.depthwise7 = nn.Conv2d(half, half, 7, padding=3, groups=half, bias=False)
        self.bn1 = BatchNorm(channels)
        self.expand = nn.Conv2d(channels, wide, 1)
        self.depthwise3 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.bn2 = BatchNorm(wide)
        self.reduce = nn.Conv2d(wide, channels, 1)
        self.residual = residual

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        first, second = f.chunk(2, 1)
        r = torch.cat([self.depthwise5(first), self.depthwise7(second)], 1)
        r1 = self.expand(self.bn1(r))
        r2 = self.depthwise3(torch.relu(r1)) + r1
        refined = self.scaled(self.reduce(self.bn2(r2)))
        return f + refined if self.residual else refined


class Transposed(nn.Module):
    """Transposed convolution, kernel = stride; weight [out, in, h, w] or [channels, 1, h, w]."""

    def __init__(self, inputs: int, outputs: int, window: tuple[int, int], groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // groups, *window))
        self.window, self.groups = window, groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight if self.groups > 1 else self.weight.transpose(0, 1)
        return functional.conv_transpose2d(x, weight, stride=self.window, groups=self.groups)


class CML(_LayerScale):
    """Cross-modality learner, eqs. (6) to (9), for maps of one size (height, width)."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        ratios: tuple[int, ...] = (2, 4, 6, 12),
        ratio_form: str = "factor",
        transposed: str = "full",
        relu: bool = False,
        scale_shape: str = "vector",
        scale_form: str = "project",
    ) -> None:
        super().__init__(channels, scale_shape, scale_form)
        each = channels // 4 if transposed == "reduce" else channels
        groups = channels if transposed == "depthwise" else 1
        self.windows = [
            (r, r) if ratio_form == "factor" else (size[0] // r, size[1] // r) for r in ratios
        ]
        for n, window in enumerate(self.windows):
            self.add_module(f"transposed{n}", Transposed(channels, each, window, groups))
        self.bn = BatchNorm(2 * len(ratios) * each)
        self.project = nn.Conv2d(2 * len(ratios) * each, channels, 1)
        self.relu = relu

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> torch.Tensor:
        rebuilt = []
        for f in (visible, infrared):
            for n, window in enumerate(self.windows):
                pooled = functional.avg_pool2d(f, window, window)
                rebuilt.append(self.get_submodule(f"transposed{n}")(pooled))
        auxiliary = self.scaled(self.project(self.bn(torch.cat(rebuilt, 1))))
        return torch.relu(auxiliary) if self.relu else auxiliary


class Unifying(nn.Module):
    """Both intra-modality learners and the cross-modality learner."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        residual: bool = False,
        scale_shape: str = "vector",
        scale_form: str = "project",
        **cross: Any,
    ) -> None:
        super().__init__()
        cross.pop("remat", None)  # a matter of memory alone
        scale: dict[str, Any] = {"scale_shape": scale_shape, "scale_form": scale_form}
        self.intra_visible = IML(channels, residual=residual, **scale)
        self.intra_infrared = IML(channels, residual=residual, **scale)
        self.cross = CML(channels, size, **scale, **cross)

    def forward(
        self, visible: torch.Tensor, infrared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        visible, infrared = self.intra_visible(visible), self.intra_infrared(infrared)
        return self.cross(visible, infrared), visible, infrared
