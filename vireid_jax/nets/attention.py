"""Attention without softmax: the non-local blocks of AGW and of DEEN.

Such attention is a product of three matrices, y = (theta phi^T / n) g. As theta (phi^T g / n) it
needs no matrix of positions by positions, which is 2304 x 2304 in DEEN's first block.

Every block ends with a normalization whose factors and shifts start at 0: a fresh block passes its
map on as it is, and an ImageNet backbone starts as it was trained.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import cpu, init
from vireid_jax.nets.norm import BatchNorm


def attend(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    """(theta phi^T / n) g for every image, in the cheaper order.

    theta [N, q, c], phi [N, n, c], g [N, n, d] -> [N, q, d] in the dtype of theta.

    Raises:
      ValueError: for shapes that do not fit.
    """
    batch, queries, width = theta.shape
    if phi.shape[::2] != (batch, width) or g.shape[:2] != phi.shape[:2]:
        raise ValueError(
            f"theta {theta.shape}, phi {phi.shape} and g {g.shape}, expected [N, q, c], [N, n, c] "
            "and [N, n, d]"
        )
    places, out = g.shape[1:]
    if queries * places * (width + out) < width * out * (queries + places):
        energy = jnp.einsum("nqc,nkc->nqk", theta, phi) / places
        return jnp.einsum("nqk,nkd->nqd", energy, g)
    return jnp.einsum("nqc,ncd->nqd", theta, jnp.einsum("nkc,nkd->ncd", phi, g) / places)


class NonLocal(nn.Module):
    """Non-local attention of AGW: x + BN(W(y)), y = (theta phi^T / n) g over positions.

    Wang et al., "Non-local neural networks" (CVPR 2018), in the dot-product form: n positions. All
    four 1x1 convolutions have biases, as in AGW's code (mangye16/Cross-Modal-Re-ID-baseline,
    `Non_local`).

    Attributes:
      inner: channels of theta, phi and g: "one", as AGW was released, or "half" of the map's, as
        Wang et al. have it.
      dtype, groups: see `nets.norm.BatchNorm`.
      kernels: see `ResNet`.
    """

    inner: str = "one"
    dtype: Any = None
    groups: int = 1
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, h, w, F] -> the same shape."""
        width = x.shape[-1]
        inner = {"one": 1, "half": width // 2}[self.inner]
        theta, phi, g = (_rows(_point(self, x, inner, name)) for name in ("theta", "phi", "g"))
        y = attend(theta, phi, g).reshape(*x.shape[:-1], inner)
        return x + _ended(self, y, width, train)


class ChannelAttention(nn.Module):
    """DEEN's channel non-local block: the deeper map chooses channels of the shallower one.

    y = (theta(high) phi(low)^T / c) g(low), [c, c] times [c, places of low], where c are the
    channels of `low`; high + BN(W(y)). With `low` at twice the resolution phi and W have stride 2,
    and only the places that they read are computed. ZYK100/LLCM, DEEN/model.py, `CNL`.
    """

    dtype: Any = None
    groups: int = 1
    kernels: str = "xla"

    @nn.compact
    def __call__(self, high: jax.Array, low: jax.Array, *, train: bool) -> jax.Array:
        """High [N, h, w, F] and low [N, h, w, c] or [N, 2h, 2w, c] -> [N, h, w, F]."""
        low, width = _same_places(high, low), low.shape[-1]
        theta = _rows(_point(self, high, width, "theta"))
        phi, g = (_rows(_point(self, low, width, name)) for name in ("phi", "g"))
        energy = jnp.einsum("npc,npd->ncd", theta, phi) / width
        y = jnp.einsum("ncd,npd->npc", energy, g).reshape(low.shape)
        return high + _ended(self, y, high.shape[-1], train)


class PositionAttention(nn.Module):
    """DEEN's position non-local block: places of the deeper map attend to the shallower one.

    theta of `high`, phi and g of `low` have c / 2 channels, half of low's. `fold_halves` reads
    each as c channels of half as many places; y = (theta phi^T / n) g over these; high + BN(W(y)).
    ZYK100/LLCM, DEEN/model.py, `PNL`.
    """

    dtype: Any = None
    groups: int = 1
    kernels: str = "xla"

    @nn.compact
    def __call__(self, high: jax.Array, low: jax.Array, *, train: bool) -> jax.Array:
        """High [N, h, w, F] and low [N, h', w', c] -> [N, h, w, F]."""
        half = low.shape[-1] // 2
        theta = fold_halves(_point(self, high, half, "theta"))
        phi, g = (fold_halves(_point(self, low, half, name)) for name in ("phi", "g"))
        y = unfold_halves(attend(theta, phi, g), (high.shape[1], high.shape[2], half))
        return high + _ended(self, y, high.shape[-1], train)


class Aggregation(nn.Module):
    """DEEN's multistage feature aggregation: channel attention, then position attention."""

    dtype: Any = None
    groups: int = 1
    kernels: str = "xla"

    @nn.compact
    def __call__(self, high: jax.Array, low: jax.Array, train: bool) -> jax.Array:
        """High [N, h, w, F] and low [N, h, w, c] or [N, 2h, 2w, c] -> [N, h, w, F]."""
        how = (self.dtype, self.groups, self.kernels)
        x = ChannelAttention(*how, name="channel")(high, low, train=train)
        return PositionAttention(*how, name="position")(x, low, train=train)


def fold_halves(x: jax.Array) -> jax.Array:
    """[N, h, w, c] -> [N, h w / 2, 2 c]: torch's view of [N, c, h, w] as [N, 2 c, h w / 2].

    Channel 2 k + s of a place is channel k of that place in the upper (s = 0) or the lower half
    of the map. Where h is odd the halves end amid a row, as they do in torch.

    Raises:
      ValueError: if h w is odd.
    """
    batch, height, width, channels = x.shape
    if height * width % 2:
        raise ValueError(
            f"a map of {height} x {width} has an odd number of places, which DEEN's position "
            "attention cannot halve; choose an image height that is a multiple of 32"
        )
    x = x.reshape(batch, 2, height * width // 2, channels)
    return x.transpose(0, 2, 3, 1).reshape(batch, height * width // 2, 2 * channels)


def unfold_halves(x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """The inverse of `fold_halves`: [N, h w / 2, 2 c] -> [N, h, w, c] of `shape` (h, w, c)."""
    batch, places, channels = x.shape
    return x.reshape(batch, places, channels // 2, 2).transpose(0, 3, 1, 2).reshape(batch, *shape)


def _same_places(high: jax.Array, low: jax.Array) -> jax.Array:
    """The places of `low` that a 1x1 convolution to the size of `high` reads."""
    if low.shape[1:3] != high.shape[1:3]:
        low = low[:, ::2, ::2]
    if low.shape[1:3] != high.shape[1:3]:
        raise ValueError(
            f"maps {high.shape} and {low.shape} (every second place), expected one size or twice it"
        )
    return low


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _point(block: Any, x: jax.Array, width: int, name: str) -> jax.Array:
    """A 1x1 convolution with a bias, from PyTorch's default start."""
    return nn.Dense(
        width,
        dtype=block.dtype,
        dot_general=cpu.dense if block.kernels == "cpu" else None,
        kernel_init=init.torch_uniform(),
        bias_init=init.torch_uniform_bias(x.shape[-1]),
        name=name,
    )(x)


def _ended(block: Any, y: jax.Array, width: int, train: bool) -> jax.Array:
    """BN(W(y)), which starts at 0."""
    y = _point(block, y, width, "w")
    norm = BatchNorm(scale_init=init.constant(0.0), groups=block.groups, name="bn")
    return norm(y, train=train)
