"""The networks of the authors' code in PyTorch: their names of modules, their features in tests.

Written from what the released codes compute, at any depth and width. ResNets are whole, as there,
though each use of one passes some of its stages alone.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tests.weights.author_files import BLOCKS, CLASSES, PARTS, WIDTH


def l2norm(x):
    return x / x.norm(dim=1, keepdim=True)


def gem(x):
    return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        inputs = WIDTH
        for stage in range(1, 5):
            outputs, stride = WIDTH * 2 ** (stage - 1), 2 if stage in (2, 3) else 1
            first = Block(inputs, outputs, stride)
            others = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
            inputs = outputs

    def stem(self, x):
        return F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)


def holder(**modules):
    return nn.ModuleDict(modules)


class TwoStreams(nn.Module):
    def __init__(self, blocks, features=8 * WIDTH):
        super().__init__()
        self.visible_module = holder(visible=ResNet(blocks))
        self.thermal_module = holder(thermal=ResNet(blocks))
        self.base_resnet = holder(base=ResNet(blocks))
        self.bottleneck = nn.BatchNorm1d(features)
        self.classifier = nn.Linear(features, CLASSES, bias=False)

    def stem(self, x, modality):
        modules = self.visible_module["visible"], self.thermal_module["thermal"]
        return modules[modality].stem(x)


class NonLocal(nn.Module):
    def __init__(self, channels, inner):
        super().__init__()
        self.g = nn.Sequential(nn.Conv2d(channels, inner, 1))
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        self.theta, self.phi = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)

    def forward(self, x):
        theta, phi, g = self.theta(x).flatten(2), self.phi(x).flatten(2), self.g(x).flatten(2)
        f = theta.transpose(1, 2) @ phi
        y = (f / f.shape[-1]) @ g.transpose(1, 2)
        return x + self.W(y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


class AGW(TwoStreams):
    """With non-local blocks of one inner channel, or of half the channels."""

    def __init__(self, half=False):
        super().__init__(BLOCKS["agw"])
        for stage in range(1, 5):
            channels = WIDTH * 2 ** (stage - 1)
            count = BLOCKS["agw"] if stage in (2, 3) else 0
            inner = channels // 2 if half else 1
            blocks = nn.ModuleList([NonLocal(channels, inner) for _ in range(count)])
            self.add_module(f"NL_{stage}", blocks)

    def forward(self, x, modality):
        x = self.stem(x, modality)
        for stage in range(1, 5):
            blocks = getattr(self, f"NL_{stage}")
            for n, block in enumerate(getattr(self.base_resnet["base"], f"layer{stage}")):
                x = block(x)
                x = blocks[n](x) if len(blocks) else x
        pool = ((x**3).mean((2, 3)) + 1e-12) ** (1 / 3)
        return {"pool": pool, "bn": self.bottleneck(pool)}


class CNL(nn.Module):
    def __init__(self, high, low, stride):
        super().__init__()
        self.low = low
        self.g, self.theta = nn.Conv2d(low, low, 1), nn.Conv2d(high, low, 1)
        self.phi = nn.Conv2d(low, low, 1, stride)
        self.W = nn.Sequential(nn.Conv2d(low, high, 1, stride), nn.BatchNorm2d(high))

    def forward(self, h, x):
        energy = self.theta(h).flatten(2) @ self.phi(x).flatten(2).transpose(1, 2)
        y = (energy / energy.shape[-1]) @ self.g(x).flatten(2)
        return self.W(y.view(len(x), self.low, *x.shape[2:])) + h


class PNL(nn.Module):
    def __init__(self, high, low):
        super().__init__()
        self.low = low
        self.g, self.theta = nn.Conv2d(low, low // 2, 1), nn.Conv2d(high, low // 2, 1)
        self.phi = nn.Conv2d(low, low // 2, 1)
        self.W = nn.Sequential(nn.Conv2d(low // 2, high, 1), nn.BatchNorm2d(high))

    def forward(self, h, x):
        shape = len(x), self.low, -1
        theta, phi, g = (y.view(shape) for y in (self.theta(h), self.phi(x), self.g(x)))
        energy = theta.transpose(1, 2) @ phi
        y = ((energy / energy.shape[-1]) @ g.transpose(1, 2)).transpose(1, 2).contiguous()
        return self.W(y.view(len(x), self.low // 2, *h.shape[2:])) + h


class MFA(nn.Module):
    def __init__(self, high, low, stride):
        super().__init__()
        self.CNL, self.PNL = CNL(high, low, stride), PNL(high, low)

    def forward(self, h, x):
        return self.PNL(self.CNL(h, x), x)


class CBAM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        narrow = max(channels // 16, 1)
        squeeze = nn.Conv2d(channels, narrow, 1, bias=False)
        excite = nn.Conv2d(narrow, channels, 1, bias=False)
        self.ca = holder(se=nn.Sequential(squeeze, nn.ReLU(), excite))
        self.sa = holder(conv=nn.Conv2d(2, 1, 49, padding=24))

    def forward(self, x):
        se = self.ca["se"]
        y = x * torch.sigmoid(se(F.adaptive_max_pool2d(x, 1)) + se(F.adaptive_avg_pool2d(x, 1)))
        pooled = torch.cat([y.max(1, keepdim=True)[0], y.mean(1, keepdim=True)], 1)
        return y * torch.sigmoid(self.sa["conv"](pooled)) + x


class Expansion(nn.Module):
    """DEE; and MFGM, with attention."""

    def __init__(self, channels, attention):
        super().__init__()
        self.attention = attention
        for b in "12":
            for d in (1, 2, 3):
                conv = nn.Conv2d(channels, channels // 4, 3, padding=d, dilation=d, bias=False)
                self.add_module(f"FC{b}{d}", conv)
            self.add_module(f"FC{b}", nn.Conv2d(channels // 4, channels, 1))
            if attention:
                self.add_module(f"SC{b}", CBAM(channels // 4))

    def forward(self, x):
        made = [x]
        for b in "12":
            y = sum(self.get_submodule(f"FC{b}{d}")(x) for d in (1, 2, 3)) / 3
            y = self.get_submodule(f"SC{b}")(y) if self.attention else y
            made.append(self.get_submodule(f"FC{b}")(F.relu(y)))
        return torch.cat(made)


class DEEN(TwoStreams):
    """And, on RegDB, its network of three stages."""

    def __init__(self, stages=4, expansion="DEE"):
        super().__init__(BLOCKS["deen"], WIDTH * 2 ** (stages - 1))
        self.stages = stages
        self.add_module(expansion, Expansion(WIDTH * 2 ** (stages - 2), expansion == "MFGM"))
        self.expansion = expansion
        for n in range(1, stages):
            high = WIDTH * 2 ** (n - 1)
            mfa = MFA(high, max(high // 2, WIDTH), 1 if n == 1 else 2)
            self.add_module(f"MFA{n}", mfa)

    def maps(self, x):
        for n in range(1, self.stages + 1):
            low = x
            x = getattr(self.base_resnet["base"], f"layer{n}")(low)
            if n < self.stages:
                x = getattr(self, f"MFA{n}")(x, low)
            if n == self.stages - 1:
                x = getattr(self, self.expansion)(x)
        return x

    def forward(self, x, modality):
        pool = self.maps(self.stem(x, modality)).mean((2, 3))
        return {"pools": side(pool), "necks": side(self.bottleneck(pool))}


def side(x):
    """Unit vectors of an image and its branches, [3 N, D], side by side."""
    return torch.cat(l2norm(x).chunk(3), 1)


class PDM(DEEN):
    def __init__(self, places):
        super().__init__(expansion="MFGM")
        features = 8 * WIDTH
        self.PLM = nn.ParameterDict(
            dict(
                learnable_proto=torch.zeros(PARTS, features),
                pos_embedding=torch.zeros(places, features),
            )
        )
        self.bottleneck_s = nn.BatchNorm1d(features * (PARTS + 1))
        self.classifier_s = nn.Linear(features * (PARTS + 1), CLASSES, bias=False)

    def forward(self, x, modality):
        x = self.stem(x, modality)
        square = (x - x.mean((2, 3), keepdim=True)) ** 2
        spread = square.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        maps = self.maps(x * torch.sigmoid(square / (4 * (spread + 1e-4)) + 0.5))
        rows = maps.flatten(2).transpose(1, 2)
        proto, positions = self.PLM["learnable_proto"], self.PLM["pos_embedding"]
        s = torch.sigmoid(proto @ (rows + positions).transpose(1, 2))
        pool = maps.mean((2, 3))
        full = torch.cat([(s @ rows / rows.shape[1]).flatten(1), pool], 1)
        return {"globals": side(self.bottleneck(pool)), "fulls": side(self.bottleneck_s(full))}


class Discrimination(nn.Module):
    """Without its dropout."""

    def __init__(self, features):
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(features, 100), nn.BatchNorm1d(100)
        self.fc2, self.bn2 = nn.Linear(100, 100), nn.BatchNorm1d(100)
        self.fc3 = nn.Linear(100, 2)

    def forward(self, x):
        return self.fc3(F.relu(self.bn2(self.fc2(F.relu(self.bn1(self.fc1(x)))))))


def mask(features):
    down = nn.Conv2d(features, features // 16, 1, bias=False)
    up = nn.Conv2d(features // 16, features, 1, bias=False)
    return holder(channel_attention=nn.Sequential(down, nn.ReLU(), up, nn.Sigmoid()))


class IDKL(nn.Module):
    def __init__(self):
        super().__init__()
        features = 8 * WIDTH
        self.backbone = holder(
            shared_module_fr=holder(model_sh_fr=ResNet(BLOCKS["idkl"])),
            shared_module_bh=holder(model_sh_bh=ResNet(BLOCKS["idkl"])),
            special=holder(special_module=ResNet(BLOCKS["idkl"])),
            IN=nn.InstanceNorm2d(features, track_running_stats=True, affine=True),
            special_att=mask(features),
            mask1=mask(features),
            mask2=mask(features),
        )
        self.bn_neck, self.bn_neck_sp = nn.BatchNorm1d(features), nn.BatchNorm1d(features)
        for name in ("classifier", "classifier_sp", "C_sp_f"):
            self.add_module(name, nn.Linear(features, CLASSES, bias=False))
        self.D_special, self.D_shared_pseu = Discrimination(features), Discrimination(features)

    def shared(self, x):
        front = self.backbone["shared_module_fr"]["model_sh_fr"]
        back = self.backbone["shared_module_bh"]["model_sh_bh"]
        x = front.layer2(front.layer1(front.stem(x)))
        return x, gem(back.layer4(back.layer3(x)))

    def forward(self, x, modality):
        pool = self.shared(x)[1]
        return {"pool": pool, "bn": self.bn_neck(pool)}

    def trained(self, x):
        """What its losses see, in training."""
        x, pool = self.shared(x)
        special = self.backbone["special"]["special_module"]
        raw = special.layer4(special.layer3(x))
        plain = self.backbone["IN"](raw)
        m_plain = self.backbone["mask1"]["channel_attention"](plain)
        m_raw = self.backbone["mask2"]["channel_attention"](raw)
        reduced, enhanced = m_plain * plain, m_raw * raw
        purified = gem(m_plain * enhanced + m_raw * reduced)
        neck, neck_sp = self.bn_neck(pool), self.bn_neck_sp(purified)
        return {
            "f/sh": pool,
            "f/purified": purified,
            "f/enhanced": gem(enhanced),
            "f/reduced": gem(reduced),
            "f/normalized": gem(plain),
            "z/sh": self.classifier(neck),
            "z/purified": self.classifier_sp(neck_sp),
            "z/enhanced": self.C_sp_f(gem(enhanced)),
            "z/plain": self.C_sp_f(gem(raw)),
            "confuser": self.D_shared_pseu(neck),
            "discriminator": self.D_special(neck_sp),
        }
