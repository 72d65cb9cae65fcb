"""Auxiliary modalities that are images, made from a visible and an infrared one."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.data.augment import MEAN, STD
from vireid_jax.nets import init
from vireid_jax.nets.resnet import dot_1x1

LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601
DARKEST = 2.1  # black, standardized, is -2.12, -2.04 and -1.80


class SMGM(nn.Module):
    """Syncretic modality generation module: s = conv2(relu(conv1(v) * conv1(i))).

    Eq. 1 of SMCL (Wei et al., ICCV 2021).

    Attributes:
      width: channels between the two 1x1 convolutions; not given in the paper. With one
        conv1 for both, products of affine maps of v and i span 8 dimensions; 16 leaves
        slack for the ReLU.
      shared: one conv1 for both modalities, since the text counts two convolutions.
      initial: "kaiming", or "identity" (width 3: starts as s = relu(v * i)).
      input: "standardized" works on images after mean and deviation; "unit" on images in
        [0, 1], the result being standardized afterwards.
      kernels: "xla" or "cpu", see `ResNet`.
      dtype: compute type; None follows the input.
    """

    width: int = 16
    shared: bool = True
    initial: str = "kaiming"
    input: str = "standardized"
    kernels: str = "xla"
    dtype: Any = None

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Two standardized image batches [B, H, W, 3], slot by slot of one identity, to one."""
        conv = partial(
            nn.Conv,
            kernel_size=(1, 1),
            dtype=self.dtype,
            kernel_init=_eye if self.initial == "identity" else init.kaiming_normal("fan_in"),
            bias_init=init.constant(0.0),
            conv_general_dilated=dot_1x1 if self.kernels == "cpu" else None,
        )
        if self.input == "unit":
            visible, infrared = _to_unit(visible), _to_unit(infrared)
        if self.shared:
            conv1 = conv(self.width, name="conv1")
            product = conv1(visible) * conv1(infrared)
        else:
            product = conv(self.width, name="conv1_visible")(visible) * conv(
                self.width, name="conv1_infrared"
            )(infrared)
        syncretic = conv(3, name="conv2")(nn.relu(product))
        return _from_unit(syncretic) if self.input == "unit" else syncretic


class X(nn.Module):
    """X-modality: s = conv2(relu(conv1(v))), of the visible image alone.

    Li et al., "Infrared-visible cross-modal person re-identification with an X modality" (AAAI
    2020): a "lightweight" generator, whose width later work gives as 1.

    Attributes:
      width: channels between the two 1x1 convolutions. With 1 the generator starts as the mean
        of the colors (conv1 1/3, conv2 1); wider ones start at random, for equal channels
        would stay equal.
      input: "unit" works on images in [0, 1], the result being standardized afterwards.
        "standardized" works on images after mean and deviation, where the ReLU of a gray image
        would cut off whatever is darker than average: biases start such that it does not.
      kernels, dtype: as in `SMGM`.
    """

    width: int = 1
    input: str = "unit"
    kernels: str = "xla"
    dtype: Any = None

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Standardized images [B, H, W, 3] to others; the infrared ones are not looked at."""
        shift = DARKEST if self.input == "standardized" else 0.0
        narrow = self.width == 1
        random = init.kaiming_normal("fan_in")
        conv = partial(
            nn.Conv,
            kernel_size=(1, 1),
            dtype=self.dtype,
            conv_general_dilated=dot_1x1 if self.kernels == "cpu" else None,
        )
        if self.input == "unit":
            visible = _to_unit(visible)
        hidden = nn.relu(
            conv(
                self.width,
                kernel_init=init.constant(1 / 3) if narrow else random,
                bias_init=init.constant(shift),
                name="conv1",
            )(visible)
        )
        generated = conv(
            3,
            kernel_init=init.constant(1.0) if narrow else random,
            bias_init=init.constant(-shift if narrow else 0.0),
            name="conv2",
        )(hidden)
        return _from_unit(generated) if self.input == "unit" else generated


class Gray(nn.Module):
    """The visible image in shades of gray; no parameters.

    Ye et al., "Visible-infrared person re-identification via homogeneous augmented tri-modal
    learning" (TIFS 2020). Weights of the colors are those of ITU-R BT.601.
    """

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Standardized images [B, H, W, 3] to gray ones; the infrared ones are not looked at."""
        luma = (_to_unit(visible) * _channels(LUMA, visible)).sum(-1, keepdims=True)
        return _from_unit(jnp.broadcast_to(luma, visible.shape))


class Mixed(nn.Module):
    """Pixel by pixel mixture lambda v + (1 - lambda) i of paired images; no parameters.

    The "mixed" auxiliary modality of MUN's table 2, which gives no lambda.

    Attributes:
      mix: "half" for lambda = 0.5, "beta" for one draw of Beta(1, 1), which is uniform, for
        each pair; it needs a random stream called "auxiliary".
    """

    mix: str = "half"

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array) -> jax.Array:
        """Standardized images [B, H, W, 3], slot by slot of one identity, to one between."""
        if self.mix == "half":
            return (visible + infrared) / 2
        key = self.make_rng("auxiliary")
        share = jax.random.uniform(key, (visible.shape[0], 1, 1, 1), visible.dtype)
        return share * visible + (1 - share) * infrared


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
