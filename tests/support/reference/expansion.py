"""PDM's feature generation and prototypes and SimAM, in PyTorch.

On maps [N, F, h, w], a branch and a convolution at a time. Parameters are held as the JAX tree
holds them, with an axis of branches (matrices transposed, see `convert`), and cut up here.
"""

import torch
from torch import nn
from torch.nn import functional

DILATIONS = (1, 2, 3)


class Expansion(nn.Module):
    """DEE and MFGM: maps to rows [N (1 + G), F, h, w], each map before those made of it."""

    def __init__(
        self,
        width: int,
        branches: int = 2,
        fuse: str = "mean",
        attention: str = "none",
        kernel: int = 49,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.branches, self.fuse, self.attention = branches, fuse, attention
        self.squeezed = c = width // 4
        for d in DILATIONS:
            conv = nn.Conv2d(width, branches * c, 3, padding=d, dilation=d, bias=False)
            self.add_module(f"dilated_{d}", conv)
        inputs = 2 * c if attention == "concat" else c
        self.expand_kernel = nn.Parameter(torch.zeros(branches, inputs, width))
        self.expand_bias = nn.Parameter(torch.zeros(width, branches))
        if attention != "none":
            narrow = max(c // reduction, 1)
            self.channel_squeeze = nn.Parameter(torch.zeros(branches, c, narrow))
            self.channel_excite = nn.Parameter(torch.zeros(branches, narrow, c))
            self.spatial_kernel = nn.Parameter(torch.zeros(branches, kernel, kernel, 2, 1))
            self.spatial_bias = nn.Parameter(torch.zeros(branches))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x, *(self._made(x, b) for b in range(self.branches))]
        return torch.stack(maps, 1).flatten(0, 1)

    def _made(self, x: torch.Tensor, branch: int) -> torch.Tensor:
        own = slice(branch * self.squeezed, (branch + 1) * self.squeezed)
        y = x.new_zeros(())
        for d in DILATIONS:  # eq. (1)
            weight = self.get_submodule(f"dilated_{d}").weight[own]
            y = y + functional.conv2d(x, weight, padding=d, dilation=d)
        if self.fuse == "mean":
            y = y / 3
        if self.attention == "sequential":  # CBAM, around which its input goes
            gated = y * self._channel_gate(y, branch)
            y = y + gated * self._spatial_gate(gated, branch)
        elif self.attention == "concat":  # eq. (2)
            y = torch.cat(
                [y * gate(y, branch) for gate in (self._channel_gate, self._spatial_gate)], 1
            )
        weight = self.expand_kernel[branch].T[:, :, None, None]
        return functional.conv2d(torch.relu(y), weight, self.expand_bias[:, branch])

    def _channel_gate(self, y: torch.Tensor, branch: int) -> torch.Tensor:
        total = y.new_zeros(())
        for pooled in (functional.adaptive_max_pool2d(y, 1), functional.adaptive_avg_pool2d(y, 1)):
            hidden = torch.relu(pooled[:, :, 0, 0] @ self.channel_squeeze[branch])
            total = total + hidden @ self.channel_excite[branch]
        return torch.sigmoid(total)[:, :, None, None]

    def _spatial_gate(self, y: torch.Tensor, branch: int) -> torch.Tensor:
        pooled = torch.cat([y.max(1, keepdim=True).values, y.mean(1, keepdim=True)], 1)
        weight = self.spatial_kernel[branch].permute(3, 2, 0, 1)
        bias = self.spatial_bias[branch : branch + 1]
        return torch.sigmoid(functional.conv2d(pooled, weight, bias, padding=weight.shape[-1] // 2))


class Prototypes(nn.Module):
    """PLM, image by image: [N, m, F + 2 n], the parts, S and the logits side by side."""

    def __init__(self, width: int, places: int, count: int = 10) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.zeros(width, count))
        self.positions = nn.Parameter(torch.zeros(width, places))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._of_image(image) for image in x])

    def _of_image(self, image: torch.Tensor) -> torch.Tensor:
        rows, placed = image.flatten(1).T, (image.flatten(1) + self.positions).T  # I, I + E
        logits = self.prototypes.T @ placed.T
        s = torch.sigmoid(logits)
        parts = [
            sum(s[i, j] * rows[j] for j in range(len(rows))) / len(rows) for i in range(len(s))
        ]
        return torch.cat([torch.stack(parts), s, logits], 1)


class SimAM(nn.Module):
    """The gate without parameters, a channel of an image at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[2] * x.shape[3]
        channels = []
        for channel in x.flatten(0, 1):
            d = (channel - channel.mean()) ** 2
            channels.append(channel * torch.sigmoid(d / (4 * (d.sum() / (n - 1) + 1e-4)) + 0.5))
        return torch.stack(channels).view(x.shape)
