"""Third modalities that are images, made from a visible and an infrared image of one identity.

SMCL trains with the syncretic one and MUN with maps of its own (`methods.mun.generator`). Both
compare theirs with the others, in table 2 of either paper. All modules take and return
standardized images [B, H, W, 3].
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.data.augment import MEAN, STD
from vireid_jax.nets import cpu, init

IMAGE_KINDS = ("syncretic", "x", "gray", "mixed")
STARTS = ("kaiming", "identity")
INPUTS = ("standardized", "unit")
LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601


def check(
    kind: str, kinds: Sequence[str], *, smgm_width: int, smgm_init: str, smgm_input: str
) -> None:
    """Refuses options of a third modality before anything is traced, by a ValueError.

    `kinds` are what a method knows: `IMAGE_KINDS` and its own. The options of `SMGM` are checked
    for every kind.
    """
    choices = {
        "auxiliary": (kind, kinds),
        "smgm_init": (smgm_init, STARTS),
        "smgm_input": (smgm_input, INPUTS),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"method.{name} is {value!r}, expected one of {list(allowed)}")
    if smgm_width < 1:
        raise ValueError(f"method.smgm_width is {smgm_width}, expected 1 or more")
    if kind == "syncretic" and smgm_init == "identity" and smgm_width != 3:
        raise ValueError(
            f"method.smgm_init is 'identity', which needs method.smgm_width=3, got {smgm_width}"
        )


def make(
    kind: str,
    *,
    smgm_width: int = 16,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    kernels: str = "xla",
    dtype: Any = None,
    remat: bool = False,
) -> nn.Module:
    """The module of one of `IMAGE_KINDS`; raises ValueError for another kind.

    Args:
      kind: which one.
      smgm_width, smgm_init, smgm_input: of "syncretic", see `SMGM`.
      kernels, dtype, remat: see `ResNet`.
    """
    again = nn.remat if remat else (lambda module: module)
    common: dict[str, Any] = {"kernels": kernels, "dtype": dtype}
    match kind:
        case "syncretic":
            return again(SMGM)(width=smgm_width, initial=smgm_init, input=smgm_input, **common)
        case "x":
            return again(X)(**common)
        case "gray":
            return Gray()
        case "mixed":
            return Mixed()
    raise ValueError(f"method.auxiliary is {kind!r}, expected one of {list(IMAGE_KINDS)}")


class SMGM(nn.Module):
    """Syncretic modality generation module: s = conv2(relu(conv1(v) * conv1(i))).

    Eq. 1 of SMCL (Wei et al., ICCV 2021). One conv1 serves both modalities, since the text counts
    two convolutions.

    Attributes:
      width: channels between the two 1x1 convolutions; not given in the paper. Products of
        affine maps of v and i span 8 dimensions; 16 leaves slack for the ReLU.
      initial: "kaiming", or "identity" (width 3: starts as s = relu(v * i)).
      input: "standardized" works on images after mean and deviation; "unit" on images in
        [0, 1], the result being standardized afterwards.
      kernels: "xla" or "cpu", see `ResNet`.
      dtype: compute type; None follows the input.
    """

    width: int = 16
    initial: str = "kaiming"
    input: str = "standardized"
    kernels: str = "xla"
    dtype: Any = None

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Two image batches [B, H, W, 3], row b of both of one identity, to one."""
        start = _eye if self.initial == "identity" else init.kaiming_normal("fan_in")
        conv = partial(_point(self), kernel_init=start)
        if self.input == "unit":
            visible, infrared = _to_unit(visible), _to_unit(infrared)
        conv1 = conv(self.width, name="conv1")
        syncretic = conv(3, name="conv2")(nn.relu(conv1(visible) * conv1(infrared)))  # eq. 1
        return _from_unit(syncretic) if self.input == "unit" else syncretic


class X(nn.Module):
    """X-modality: s = conv2(relu(conv1(v))), of the visible image alone.

    Li et al., "Infrared-visible cross-modal person re-identification with an X modality" (AAAI
    2020): a "lightweight" generator. Later work gives one channel between the two 1x1
    convolutions. It starts as the mean of the colors (conv1 1/3, conv2 1) and works on images in
    [0, 1]: on standardized ones the ReLU would cut off whatever is darker than average. `kernels`
    and `dtype` as in `SMGM`.
    """

    kernels: str = "xla"
    dtype: Any = None

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] to others; the infrared ones are not looked at."""
        conv = _point(self)
        conv1 = conv(1, kernel_init=init.constant(1 / 3), name="conv1")
        conv2 = conv(3, kernel_init=init.constant(1.0), name="conv2")
        return _from_unit(conv2(nn.relu(conv1(_to_unit(visible)))))


class Gray(nn.Module):
    """The visible image in shades of gray; no parameters.

    Ye et al., "Visible-infrared person re-identification via homogeneous augmented tri-modal
    learning" (TIFS 2020). Weights of the colors are those of ITU-R BT.601.
    """

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] to gray ones; the infrared ones are not looked at."""
        luma = (_to_unit(visible) * _channels(LUMA, visible)).sum(-1, keepdims=True)
        return _from_unit(jnp.broadcast_to(luma, visible.shape))


class Mixed(nn.Module):
    """The mean of both images, pixel by pixel; no parameters.

    The "mixed" auxiliary modality of MUN's table 2, which does not say how they are mixed.
    """

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Two image batches [B, H, W, 3], row b of both of one identity, to one between."""
        return (visible + infrared) / 2


def _point(net: Any) -> Any:
    """A 1x1 convolution whose bias starts at 0, by the `kernels` and `dtype` of a module."""
    dot = cpu.convolution if net.kernels == "cpu" else None
    zero = init.constant(0.0)
    return partial(
        nn.Conv, kernel_size=(1, 1), dtype=net.dtype, bias_init=zero, conv_general_dilated=dot
    )


def _eye(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.eye(shape[-2], shape[-1], dtype=dtype).reshape(shape)


def _to_unit(x: jax.Array) -> jax.Array:
    """Standardized images as pixels in [0, 1]."""
    return x * _channels(STD, x) + _channels(MEAN, x)


def _from_unit(x: jax.Array) -> jax.Array:
    """Pixels in [0, 1] as standardized images."""
    return (x - _channels(MEAN, x)) * _channels([1 / s for s in STD], x)


def _channels(values: Sequence[float], x: jax.Array) -> jax.Array:
    """Three numbers as [1, 1, 1, 3] in the dtype of x."""
    return jnp.asarray(values, x.dtype).reshape(1, 1, 1, 3)
