"""ResNet (He et al., CVPR 2016) with the stride on the 3x3 convolution, in PyTorch.

Below `shared.` the names are the usual ones of published ImageNet weights (stem.conv1,
stem.bn1, layer1.0.conv1, ..., downsample.0, downsample.1). Leading stages can be kept once
per modality; those live under `visible.` and `infrared.`,
and under `auxiliary.` if images of a third modality have a copy too.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

LAYOUTS = {  # depth: (bottleneck?, blocks in each stage)
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    14: (True, (1, 1, 1, 1)),
    50: (True, (3, 4, 6, 3)),
}
STREAMS = ("visible", "infrared", "auxiliary")


class BatchNorm(nn.Module):
    """Batch normalization over all axes but 1, in one or in more dimensions."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, width: int, use_bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if use_bias else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        return functional.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 for a bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        if bottleneck:
            kinds = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            kinds = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        self.length = len(kinds)
        for n, (i, o, size, step) in enumerate(kinds, start=1):
            self.add_module(
                f"conv{n}", nn.Conv2d(i, o, size, stride=step, padding=size // 2, bias=False)
            )
            self.add_module(f"bn{n}", BatchNorm(o))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.ModuleList(
                [nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), BatchNorm(outputs)]
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for n in range(1, self.length + 1):
            y = self.get_submodule(f"bn{n}")(self.get_submodule(f"conv{n}")(y))
            if n < self.length:
                y = torch.relu(y)
        if self.downsample is not None:
            x = self.downsample[1](self.downsample[0](x))
        return torch.relu(x + y)


class Stem(nn.Module):
    """7x7/2 convolution, normalization, ReLU, 3x3/2 max-pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)


def _stages(depth: int, width: int, last_stride: int, first: int, end: int) -> dict[str, nn.Module]:
    """The stages first .. end-1 by name; stage 0 is the stem, stage n is layer n."""
    bottleneck, blocks = LAYOUTS[depth]
    growth = 4 if bottleneck else 1
    result: dict[str, nn.Module] = {}
    for n in range(first, end):
        if n == 0:
            result["stem"] = Stem(width)
            continue
        planes = width * 2 ** (n - 1)
        first_of = (width if n == 1 else growth * planes // 2, {1: 1, 4: last_stride}.get(n, 2))
        sizes = [first_of, *[(growth * planes, 1)] * (blocks[n - 1] - 1)]
        result[f"layer{n}"] = nn.Sequential(
            *(Block(inputs, planes, stride, bottleneck) for inputs, stride in sizes)
        )
    return result


class ResNet(nn.Module):
    """The trunk without pooling and classifier.

    Args:
      specific: how many leading stages each modality owns (0 none, 1 the stem, 2 the stem
        and layer1, ...).
      copies: of the specific stages, the first of STREAMS.
    """

    def __init__(
        self, depth: int, width: int, last_stride: int = 1, specific: int = 0, copies: int = 2
    ) -> None:
        super().__init__()
        self.specific = specific
        self.streams = bool(specific)
        if specific:
            for name in STREAMS[:copies]:
                self.add_module(
                    name, nn.ModuleDict(_stages(depth, width, last_stride, 0, specific))
                )
        self.shared = nn.ModuleDict(_stages(depth, width, last_stride, specific, 5))
        self.features = width * 8 * (4 if LAYOUTS[depth][0] else 1)

    def forward(
        self,
        images: Sequence[torch.Tensor],
        stems: Sequence[int] | None = None,
        generate: Callable[[list[torch.Tensor]], list[torch.Tensor]] | None = None,
        after: int = 2,
    ) -> torch.Tensor:
        """M arrays [B, 3, H, W] -> [B * M, F, h, w]; row b * M + m is modality m of slot b.

        generate: after `after` stages, turns the M maps into those that go on.
        """
        maps: list[torch.Tensor] = list(images)
        if self.streams:
            assert stems is not None and len(stems) == len(maps)
            for number, name in enumerate(STREAMS):
                members = [m for m, s in enumerate(stems) if s == number]
                if not members:
                    continue
                x = torch.stack([maps[m] for m in members], 1).flatten(0, 1)
                for stage in self.get_submodule(name).children():
                    x = stage(x)
                for m, y in zip(members, x.unflatten(0, (-1, len(members))).unbind(1), strict=True):
                    maps[m] = y
        done = self.specific
        for stage in self.shared.values():
            if generate is not None and done == after:
                maps = generate(maps)
            x = torch.stack(maps, 1).flatten(0, 1)
            x = stage(x)
            maps = list(x.unflatten(0, (-1, len(maps))).unbind(1))
            done += 1
        return torch.stack(maps, 1).flatten(0, 1)


class ForkedResNet(nn.Module):
    """A trunk whose layer3 and layer4 are there twice, in a shared and in a specific branch."""

    def __init__(self, depth: int = 50, width: int = 64, last_stride: int = 1) -> None:
        super().__init__()
        self.shared = nn.ModuleDict(_stages(depth, width, last_stride, 0, 5))
        self.specific = nn.ModuleDict(_stages(depth, width, last_stride, 3, 5))
        self.features = width * 8 * (4 if LAYOUTS[depth][0] else 1)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Images [N, 3, H, W] to the maps after layer3 and after layer4, of either branch."""
        for name in ("stem", "layer1", "layer2"):
            x = self.shared[name](x)
        result = []
        for branch in (self.shared, self.specific):
            third = branch["layer3"](x)
            result.append([third, branch["layer4"](third)])
        return result[0], result[1]
