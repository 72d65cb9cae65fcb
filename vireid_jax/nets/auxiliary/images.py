"""Generators of an auxiliary modality: a third image made from a visible and an infrared one."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.data.augment import MEAN, STD
from vireid_jax.nets import init
from vireid_jax.nets.resnet import dot_1x1


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
        mean, std = jnp.asarray(MEAN), jnp.asarray(STD)
        if self.input == "unit":
            visible, infrared = (_affine(x, std, mean) for x in (visible, infrared))
        if self.shared:
            conv1 = conv(self.width, name="conv1")
            product = conv1(visible) * conv1(infrared)
        else:
            product = conv(self.width, name="conv1_visible")(visible) * conv(
                self.width, name="conv1_infrared"
            )(infrared)
        syncretic = conv(3, name="conv2")(nn.relu(product))
        if self.input == "unit":
            syncretic = _affine(syncretic, 1 / std, -mean / std)
        return syncretic


def _eye(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.eye(shape[-2], shape[-1], dtype=dtype).reshape(shape)


def _affine(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Scales and shifts each channel, in the dtype of x."""
    scale, shift = (v.reshape(1, 1, 1, 3).astype(x.dtype) for v in (scale, shift))
    return x * scale + shift
