"""ResNet with PyTorch's arithmetic, one-stream or with modality-specific leading stages.

He et al., "Deep residual learning for image recognition" (CVPR 2016), in torchvision's variant
("v1.5": the stride of a bottleneck is in its 3x3 convolution), whose ImageNet weights the papers
start from. torchvision's `layer1.0.conv1.weight` is the parameter `layer1_0/conv1/kernel`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import cpu, init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.remat import rematerialized
from vireid_jax.types import STEMS

KERNELS = ("xla", "cpu")
FORK = 3  # the first stage that has branches

# depth -> (bottleneck blocks, blocks per stage). 10 and 14 are one block a stage: for
# laptops and tests, not from the paper.
DEPTHS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    10: (False, (1, 1, 1, 1)),
    14: (True, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
}


def feature_width(depth: int, width: int, stage: int = 4) -> int:
    """Channels of the map after a stage, by default the last, D; 0 is the stem."""
    return width if not stage else width * 2 ** (stage - 1) * (4 if _layout(depth)[0] else 1)


def block_names(depth: int, stage: int) -> list[str]:
    """What the blocks of a stage are called: "layer2_0", ..."""
    return [f"layer{stage}_{block}" for block in range(_layout(depth)[1][stage - 1])]


def map_size(image_size: tuple[int, int], stage: int, last_stride: int = 1) -> tuple[int, int]:
    """Height and width of the map after a stage; 0 is the stem."""
    halvings = 2 + max(min(stage, 3) - 1, 0) + (stage == 4 and last_stride == 2)
    height, width = (-(-side // 2**halvings) for side in image_size)
    return height, width


def interleave(arrays: Sequence[jax.Array]) -> jax.Array:
    """M arrays [B, ...] -> [B * M, ...]; row b * M + m is row b of array m.

    The sharded batch axis stays in front, so no device hands rows to another.
    """
    if len(arrays) == 1:
        return arrays[0]
    stacked = jnp.stack(list(arrays), 1)
    return stacked.reshape(-1, *stacked.shape[2:])


def deinterleave(array: jax.Array, modalities: int) -> jax.Array:
    """[B * M, ...] -> [B, M, ...], the inverse of `interleave`."""
    return array.reshape(-1, modalities, *array.shape[1:])


class ResNet(nn.Module):
    """Images of M modalities to feature maps.

    Attributes:
      depth: 18, 34, 50; or 10 and 14, one block a stage.
      width: channels of the stem, 64 in the paper.
      last_stride: stride of layer4; 1 in most re-ID work, 2 in the paper.
      stages: 4, or 3 to end with layer3 (DEEN and PDM on RegDB).
      specific: leading stages with parameters of their own for each modality:
        0 one-stream, 1 the stem (conv1, bn1, max-pool), 2 the stem and layer1, ...
      kernels: "xla", or "cpu": the same numbers in the forms of `nets.cpu`.
      dtype: compute type of convolutions; None follows the input.
      groups: see `BatchNorm`.
      remat: in training keep the maps between blocks alone, and compute the others twice.
    """

    depth: int = 50
    width: int = 64
    last_stride: int = 1
    stages: int = 4
    specific: int = 0
    kernels: str = "xla"
    dtype: Any = None
    groups: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        images: Sequence[jax.Array],
        *,
        stems: Sequence[int] | None = None,
        train: bool,
        generate: Callable[[list[jax.Array]], list[jax.Array]] | None = None,
        branches: Sequence[str] = (),
        then: Callable[[str, jax.Array], jax.Array] | None = None,
    ) -> Any:
        """Embeds M images per slot.

        Args:
          images: M arrays [B, H, W, 3].
          stems: for each array whose specific stages it passes (VISIBLE, INFRARED or
            AUXILIARY); not needed when `specific` is 0.
          train: normalize by batch statistics and update the running ones.
          generate: turns the M maps [B, h, w, F] after the specific stages into the maps that pass
            the others, such as the same and a generated one.
          branches: copies of layer3 and layer4 that the maps pass, each for itself: "" the stages
            as they are always called, another name a copy with that suffix.
          then: (name of a shared part: "stem", "layer1_0", ...; its map) -> the map that goes on,
            whose rows may multiply, each into a run of rows.

        Returns:
          Feature maps [B * M, h, w, F]; row b * M + m is array m of slot b, with the M of
          `generate` if it is given. With `branches` a list for each, of the maps after its stages.

        Raises:
          ValueError: for an unknown depth, and for arguments that do not go together.
        """
        if self.stages not in (3, 4):
            raise ValueError(f"stages is {self.stages}, expected 4, or 3 to end with layer3")
        if not 0 <= self.specific <= 5:
            raise ValueError(f"specific is {self.specific}, expected 0 (one-stream) to 5")
        if branches and self.specific > 3:
            raise ValueError(f"branches with specific {self.specific}, expected at most 3")
        if (generate is not None) + bool(branches) + (then is not None) > 1:
            raise ValueError("expected one of generate, branches and then, got several")
        if not self.specific:
            stems = (0,) * len(images)
        elif stems is None or len(stems) != len(images):
            raise ValueError(
                f"{len(images)} modalities with stems {stems}: name the stem of each "
                "(VISIBLE, INFRARED or AUXILIARY) when specific > 0"
            )
        x, done = self._specific(images, stems, train), max(self.specific, 1)
        if branches:
            x = self._stages(x, range(done, FORK), train)[-1]
            rest = range(FORK, self.stages + 1)
            suffixes = [f"_{name}" if name else "" for name in branches]
            return [self._stages(x, rest, train, suffix)[1:] for suffix in suffixes]
        if generate is not None:
            x = deinterleave(x, len(images))
            x = interleave(generate([x[:, m] for m in range(len(images))]))
        if then is not None:
            x = then("stem", x)
        return self._stages(x, range(done, self.stages + 1), train, then=then)[-1]

    def _specific(
        self, images: Sequence[jax.Array], stems: Sequence[int], train: bool
    ) -> jax.Array:
        """The stem, shared or not, and further specific stages: M images to [B * M, h, w, F]."""
        maps: list[Any] = [None] * len(images)
        for stem in sorted(set(stems)):
            members = [m for m, s in enumerate(stems) if s == stem]
            suffix = f"_{STEMS[stem]}" if self.specific else ""
            stem_of = rematerialized(_Stem, self, self.remat and train, static=(2,))
            how = (self.kernels, self.dtype, self.groups)
            x = stem_of(self.width, *how, name=f"stem{suffix}")([images[m] for m in members], train)
            x = self._stages(x, range(1, max(self.specific, 1)), train, suffix)[-1]
            if len(members) == len(images):
                return x
            for at, m in enumerate(members):
                maps[m] = deinterleave(x, len(members))[:, at]
        return interleave(maps)

    def _stages(
        self, x: jax.Array, stages: range, train: bool, suffix: str = "", then: Any = None
    ) -> list[jax.Array]:
        """The map, and the map after each stage; stages 1-4 are torchvision's layer1-layer4."""
        block_of = rematerialized(_Block, self, self.remat and train, static=(2,))
        how = (_layout(self.depth)[0], self.kernels, self.dtype, self.groups)
        maps = [x]
        for stage in stages:
            width = self.width * 2 ** (stage - 1)
            for block, name in enumerate(block_names(self.depth, stage)):
                stride = 1 if block or stage == 1 else self.last_stride if stage == 4 else 2
                x = block_of(width, stride, *how, name=name + suffix)(x, train)
                x = x if then is None else then(name, x)
            maps.append(x)
        return maps


class _Stem(nn.Module):
    """7x7 convolution of stride 2, normalization, ReLU, 3x3 max-pool of stride 2."""

    width: int
    kernels: str
    dtype: Any
    groups: int

    @nn.compact
    def __call__(self, images: Sequence[jax.Array], train: bool) -> jax.Array:
        """M arrays [B, H, W, 3] -> interleaved maps [B * M, H / 4, W / 4, width]."""
        conv = _conv(self.width, 7, 2, self.kernels, self.dtype, "conv1")
        # One by one: the costly gradient of an image is then computed for generated ones alone.
        x = interleave([conv(image) for image in images])
        x = nn.relu(BatchNorm(groups=self.groups, name="bn1")(x, train=train))
        return _max_pool(x, self.kernels)


class _Block(nn.Module):
    """Basic block (3x3, 3x3) or bottleneck (1x1, 3x3 with the stride, 1x1 of 4x width)."""

    width: int
    stride: int
    bottleneck: bool
    kernels: str
    dtype: Any
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(_conv, kernels=self.kernels, dtype=self.dtype)
        norm = partial(BatchNorm, groups=self.groups)
        if self.bottleneck:
            plan = [(self.width, 1, 1), (self.width, 3, self.stride), (self.width * 4, 1, 1)]
        else:
            plan = [(self.width, 3, self.stride), (self.width, 3, 1)]
        y = x
        for i, (width, kernel, stride) in enumerate(plan, 1):
            y = conv(width, kernel, stride, name=f"conv{i}")(y)
            y = norm(name=f"bn{i}")(y, train=train)
            if i < len(plan):
                y = nn.relu(y)
        if x.shape != y.shape:
            x = conv(y.shape[-1], 1, self.stride, name="downsample_0")(x)
            x = norm(name="downsample_1")(x, train=train)
        return nn.relu(x + y)


def _layout(depth: int) -> tuple[bool, tuple[int, int, int, int]]:
    if depth not in DEPTHS:
        raise ValueError(f"no ResNet of depth {depth!r}; expected one of {sorted(DEPTHS)}")
    return DEPTHS[depth]


def _max_pool(x: jax.Array, kernels: str) -> jax.Array:
    """3x3 max-pool of stride 2, padded by 1 on each side as torch does, unlike "SAME"."""
    if kernels == "cpu":
        return cpu.max_pool(x)
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _conv(width: int, kernel: int, stride: int, kernels: str, dtype: Any, name: str) -> nn.Conv:
    """Bias-free convolution with torch's symmetric padding of kernel // 2."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}, expected one of {KERNELS}")
    pad = kernel // 2
    return nn.Conv(
        width,
        (kernel, kernel),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        kernel_init=init.kaiming_normal("fan_out"),
        conv_general_dilated=cpu.convolution if kernels == "cpu" else None,
        name=name,
    )
