"""More features from one map: DEEN's expansion and PDM's multi-feature generation (MFGM).

From a map f a branch makes another of the same shape:

  f_i = fuse(conv_1(f), conv_2(f), conv_3(f))     3x3, dilations 1, 2, 3, to a quarter of the
                                                  channels                            eq. 1 of PDM
  f_i+ = FC(ReLU(attention(f_i)))                 FC a 1x1 convolution with bias      eq. 2

DEEN (ZYK100/LLCM, DEEN/model.py, `DEE_module`) has the mean of the three and no attention. PDM's
code (mmunhappy/ICASSP2025-PDM, `MFGM`) adds CBAM (Woo et al., ECCV 2018) with a residual: channel
attention CA, then spatial attention SA by one 49x49 convolution; PDM's paper prints a sum and the
concatenation [CA(f_i), SA(f_i)].

Branches have weights of their own and are an axis: of the kernels, and of the result, where f
itself is its first entry. They follow the rows, so that a run of rows stays on its device.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.nets import init

DILATIONS = (1, 2, 3)
FUSIONS = ("mean", "sum")
ATTENTIONS = ("none", "sequential", "concat")
FORMS = ("auto", "dense", "convolution")
# Places of a map up to which a spatial attention is a matrix of places by places: 48 x 24, which
# has 2.7 million entries a branch.
DENSE_PLACES = 1152


class Expansion(nn.Module):
    """f [N, h, w, F] to [N, 1 + G, h, w, F]: f, then the maps of G branches.

    Attributes:
      branches: G.
      fuse: of the three convolutions: "mean" (both codes) or "sum" (PDM, eq. 1).
      attention: "none" (DEEN), "sequential" (PDM's code), or "concat" (PDM, eq. 2, with CA(f_i) and
        SA(f_i) the gated maps: the gates themselves are of different shapes).
      kernel: side of the spatial attention's kernel, odd; 49 in PDM's code.
      reduction: of the channel attention's bottleneck; 16 in PDM's code.
      form: how the spatial attention is computed, see `spatial_convolution`.
      dtype: compute type; None follows the input.
    """

    branches: int = 2
    fuse: str = "mean"
    attention: str = "none"
    kernel: int = 49
    reduction: int = 16
    form: str = "auto"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, F] -> [N, 1 + G, h, w, F]."""
        check(fuse=self.fuse, attention=self.attention, kernel=self.kernel, form=self.form)
        width, count = x.shape[-1], self.branches
        squeezed = width // 4
        parts = [
            nn.Conv(
                count * squeezed,
                (3, 3),
                padding=dilation,
                kernel_dilation=dilation,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=init.kaiming_normal("fan_in"),  # independent of the outputs
                name=f"dilated_{dilation}",
            )(x)
            for dilation in DILATIONS
        ]
        y = sum(parts[1:], parts[0]) / (len(parts) if self.fuse == "mean" else 1)
        y = y.reshape(*y.shape[:-1], count, squeezed)  # [N, h, w, G, F / 4]
        if self.attention != "none":
            y = self._attended(y)
        # The start of every branch is that of a convolution of its own.
        inputs = y.shape[-1]
        start, bias_start = init.kaiming_normal("fan_in"), init.torch_uniform_bias(inputs)
        kernel = self.param("expand_kernel", _stacked(start), (count, inputs, width))
        bias = self.param("expand_bias", bias_start, (count, width))
        y = nn.relu(y)
        kernel, bias = kernel.astype(y.dtype), bias.astype(y.dtype)
        made = jnp.einsum("nhwgc,gcd->nghwd", y, kernel) + bias.reshape(1, count, 1, 1, width)
        return jnp.concatenate([x[:, None], made], 1)

    def _attended(self, y: jax.Array) -> jax.Array:
        """CA, SA and what is made of them: [N, h, w, G, c], with 2 c channels for "concat"."""
        count, width = y.shape[-2:]
        narrow = max(width // self.reduction, 1)
        start = _stacked(init.torch_uniform())
        squeeze = self.param("channel_squeeze", start, (count, width, narrow)).astype(y.dtype)
        excite = self.param("channel_excite", start, (count, narrow, width)).astype(y.dtype)

        def channels(pooled: jax.Array) -> jax.Array:  # [N, G, c] -> [N, G, c]
            hidden = nn.relu(jnp.einsum("ngc,gcr->ngr", pooled, squeeze))
            return jnp.einsum("ngr,grc->ngc", hidden, excite)

        gate = nn.sigmoid(channels(y.max((1, 2))) + channels(y.mean((1, 2))))
        by_channel = y * gate[:, None, None]
        if self.attention == "sequential":
            return by_channel * self._spatial_gate(by_channel) + y
        return jnp.concatenate([by_channel, y * self._spatial_gate(y)], -1)

    def _spatial_gate(self, y: jax.Array) -> jax.Array:
        """[N, h, w, G, c] -> [N, h, w, G, 1]."""
        count, side = y.shape[-2], self.kernel
        start, bias_start = init.torch_uniform(), init.torch_uniform_bias(2 * side * side)
        # [.., 2, 1] as one of [49, 49, 2] inputs for each branch
        kernel = self.param("spatial_kernel", _stacked(start), (count, side, side, 2, 1))
        bias = self.param("spatial_bias", bias_start, (count,))
        pooled = jnp.stack([y.max(-1), y.mean(-1)], -1)  # [N, h, w, G, 2]
        logits = spatial_convolution(pooled, kernel[..., 0].astype(y.dtype), form=self.form)
        return nn.sigmoid(logits + bias.astype(y.dtype).reshape(1, 1, 1, count))[..., None]


def check(*, fuse: str, attention: str, kernel: int, form: str) -> None:
    """Refuses impossible options. Raises ValueError naming one."""
    for name, value, allowed in (
        ("expansion_fuse", fuse, FUSIONS),
        ("attention", attention, ATTENTIONS),
        ("attention_form", form, FORMS),
    ):
        if value not in allowed:
            raise ValueError(f"method.{name} is {value!r}, expected one of {list(allowed)}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"method.attention_kernel is {kernel}, expected an odd number")


def spatial_convolution(x: jax.Array, kernel: jax.Array, *, form: str = "auto") -> jax.Array:
    """A k x k convolution of the whole map, to one channel a branch, padded by k // 2.

    With a kernel as large as the map every place sees every other, most of a padded convolution
    multiplies zeros, and backends take it for a convolution still: "dense" lays the kernel out as
    a matrix of places by places, and the convolution is a product. "auto" does so for maps of up to
    1152 places where the kernel is larger than a quarter of the map.

    Args:
      x: [N, h, w, G, c].
      kernel: [G, k, k, c], k odd.
      form: of `FORMS`; the same numbers.

    Returns:
      [N, h, w, G] in the dtype of x.
    """
    batch, height, width, count, channels = x.shape
    places, side = height * width, kernel.shape[1]
    if form == "auto":
        small = places <= DENSE_PLACES and 4 * side * side > places
        form = "dense" if small else "convolution"
    if form == "convolution":
        x = x.reshape(batch, height, width, count * channels)
        kernel = kernel.transpose(1, 2, 3, 0)  # [k, k, c, G]
        pad = side // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1, 1),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=count,
        )
    # Place (y, x) of the result weighs place (i, j) of the map by kernel[i - y + k // 2, ...].
    reach = (max(height, width) - 1) - side // 2
    if reach > 0:  # places too far apart for the kernel have weight 0
        kernel = jnp.pad(kernel, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    half = kernel.shape[1] // 2
    rows, columns = (
        np.arange(size)[None, :] - np.arange(size)[:, None] + half for size in (height, width)
    )
    # [G, y, i, k, c] -> [G, y, i, x, j, c] -> [G, y, x, i, j, c]
    laid = jnp.take(kernel, rows, axis=1, mode="clip")  # none is out of range
    laid = jnp.take(laid, columns, axis=3, mode="clip")
    matrix = laid.transpose(0, 1, 3, 2, 4, 5).reshape(count, places, places, channels)
    y = jnp.einsum("npgc,gqpc->nqg", x.reshape(batch, places, count, channels), matrix)
    return y.reshape(batch, height, width, count)


def _stacked(start: init.Initializer) -> init.Initializer:
    """Starts [G, ...] as G kernels of the shape that follows."""

    def of_branches(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        keys = jax.random.split(key, shape[0])
        return jnp.stack([start(k, shape[1:], dtype) for k in keys])

    return of_branches
