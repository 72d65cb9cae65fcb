"""MUN's auxiliary generator (eqs. 1 to 9) in PyTorch."""

import torch
from torch import nn
from torch.nn import functional

from .resnet import BatchNorm


class _Scale:
    def apply(self, x, p, form):
        if form == "clip":
            p = p.clamp(1e-6, 1)
        if form == "sigmoid":
            p = torch.sigmoid(p)
        return x * (p[:, None, None] if p.ndim and p.numel() > 1 else p)


class IML(nn.Module):
    def __init__(self, c, scale_shape="vector", scale_form="project", residual=False):
        super().__init__()
        h = c // 2
        self.depthwise5 = nn.Conv2d(h, h, 5, padding=2, groups=h, bias=False)
        self.depthwise7 = nn.Conv2d(h, h, 7, padding=3, groups=h, bias=False)
        self.bn1 = BatchNorm(c)
        self.expand = nn.Conv2d(c, 4 * c, 1)
        self.depthwise3 = nn.Conv2d(4 * c, 4 * c, 3, padding=1, groups=4 * c)
        self.bn2 = BatchNorm(4 * c)
        self.reduce = nn.Conv2d(4 * c, c, 1)
        self.layer_scale = nn.Parameter(torch.ones(c if scale_shape == "vector" else 1))
        self.h, self.form, self.residual = h, scale_form, residual

    def forward(self, f):
        r = torch.cat([self.depthwise5(f[:, : self.h]), self.depthwise7(f[:, self.h :])], 1)
        r1 = self.expand(self.bn1(r))
        r2 = self.depthwise3(torch.relu(r1)) + r1
        y = _Scale().apply(self.reduce(self.bn2(r2)), self.layer_scale, self.form)
        return f + y if self.residual else y


class TR(nn.Module):
    def __init__(self, i, o, k, dw):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((i, 1, *k) if dw else (o, i, *k)))
        self.dw, self.k = dw, k

    def forward(self, x):
        w = self.weight if self.dw else self.weight.transpose(0, 1)
        return functional.conv_transpose2d(x, w, stride=self.k, groups=x.shape[1] if self.dw else 1)


class CML(nn.Module):
    def __init__(
        self,
        c,
        size,
        ratios=(2, 4, 6, 12),
        ratio_form="factor",
        transposed="full",
        scale_shape="vector",
        scale_form="project",
        relu=False,
    ):
        super().__init__()
        ct = c // 4 if transposed == "reduce" else c
        self.kernels = [
            (r, r) if ratio_form == "factor" else (size[0] // r, size[1] // r) for r in ratios
        ]
        for n, k in enumerate(self.kernels):
            self.add_module(f"transposed{n}", TR(c, ct, k, transposed == "depthwise"))
        self.bn = BatchNorm(2 * len(ratios) * ct)
        self.project = nn.Conv2d(2 * len(ratios) * ct, c, 1)
        self.layer_scale = nn.Parameter(torch.ones(c if scale_shape == "vector" else 1))
        self.form, self.relu = scale_form, relu

    def forward(self, v, r):
        s = [
            self.get_submodule(f"transposed{n}")(functional.avg_pool2d(x, k, k))
            for x in (v, r)
            for n, k in enumerate(self.kernels)
        ]
        y = _Scale().apply(self.project(self.bn(torch.cat(s, 1))), self.layer_scale, self.form)
        return torch.relu(y) if self.relu else y


class Unifying(nn.Module):
    def __init__(
        self,
        c,
        size,
        remat=False,
        residual=False,
        relu=False,
        scale_shape="vector",
        scale_form="project",
        **rest,
    ):
        super().__init__()
        self.intra_visible = IML(c, scale_shape, scale_form, residual)
        self.intra_infrared = IML(c, scale_shape, scale_form, residual)
        self.cross = CML(c, size, scale_shape=scale_shape, scale_form=scale_form, relu=relu, **rest)

    def forward(self, v, r):
        v, r = self.intra_visible(v), self.intra_infrared(r)
        return self.cross(v, r), v, r
