"""MUN's generator of an auxiliary modality, from feature maps of both modalities.

Yu et al., "Modality Unifying Network for Visible-Infrared Person Re-Identification" (ICCV
2023), section 3.1. Shape letters beside those of `vireid_jax.types`: C channels of the maps,
n ratios, F channels of a transposed convolution.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import init
from vireid_jax.nets.auxiliary import folding, pyramid
from vireid_jax.nets.depthwise import depthwise
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.remat import rematerialized
from vireid_jax.types import MODALITIES

TRANSPOSED = ("full", "reduce", "depthwise")
FORMS = ("auto", "direct", "folded")
SCALE_SHAPES = ("vector", "scalar")
SCALE_FORMS = ("project", "clip", "sigmoid")
SMALLEST_SCALE = 1e-6  # layer scales are in (0, 1] (after eqs. 5 and 9)
SIGMOID_START = 4.0  # a scale of 0.98


class ModalityUnifying(nn.Module):
    """Two intra-modality learners and one cross-modality learner.

    Attributes:
      ratios: of the average pooling (section 4.2).
      ratio_form: what a ratio is, see `pyramid.windows`; the paper does not say.
      transposed: F of the transposed convolutions, which the paper does not give: "full" C,
        "reduce" C / 4, "depthwise" C with one kernel for each channel.
      scale_shape: of the layer scales: "vector" one for each channel, "scalar" one. Batch
        normalization divides a scalar out of the intra-modality learners again.
      scale_form: how they stay in (0, 1]: "project" by `project_scales` after each step of the
        optimizer, "clip" clipped in the graph, "sigmoid" as sigmoids of parameters.
      residual: add the input of an intra-modality learner to its output; eq. 5 does not.
      relu: end the auxiliary map by a ReLU, as the maps beside it; eq. 9 does not.
      form: how eqs. 7 to 9 are computed, see `CrossModality`.
      remat: compute the learners' inner maps (4C and 2nF channels) anew in the backward pass
        instead of keeping them.
      kernels: "xla" or "cpu", see `ResNet`.
      dtype: compute type; None follows the input.
      groups: see `BatchNorm`.
    """

    ratios: Sequence[int] = (2, 4, 6, 12)
    ratio_form: str = "factor"
    transposed: str = "full"
    scale_shape: str = "vector"
    scale_form: str = "project"
    residual: bool = False
    relu: bool = False
    form: str = "auto"
    remat: bool = False
    kernels: str = "xla"
    dtype: Any = None
    groups: int = 1

    @nn.compact
    def __call__(
        self, visible: jax.Array, infrared: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Maps [B, h, w, C] of both modalities, slot by slot of one identity, to a third.

        Returns:
          The auxiliary map (F^a of eq. 9) and the refined visible and infrared ones (eq. 5).

        Raises:
          ValueError: the ratios do not divide the map, or C does not fit the options.
        """
        remat = self.remat and train
        intra = rematerialized(IntraModality, self, remat, static=(2,))
        cross = rematerialized(CrossModality, self, remat, static=(3,))
        common: dict[str, Any] = {
            "scale_shape": self.scale_shape,
            "scale_form": self.scale_form,
            "dtype": self.dtype,
            "groups": self.groups,
        }
        learners = [
            intra(residual=self.residual, kernels=self.kernels, **common, name=f"intra_{name}")
            for name in MODALITIES
        ]
        refined_visible, refined_infrared = (
            learners[0](visible, train),
            learners[1](infrared, train),
        )
        learner = cross(
            ratios=tuple(self.ratios),
            ratio_form=self.ratio_form,
            transposed=self.transposed,
            relu=self.relu,
            form=self.form,
            **common,
            name="cross",
        )
        auxiliary = learner(refined_visible, refined_infrared, train)
        return auxiliary, refined_visible, refined_infrared


class IntraModality(nn.Module):
    """Intra-modality learner, eqs. 1 to 5; attributes as in `ModalityUnifying`."""

    residual: bool = False
    scale_shape: str = "vector"
    scale_form: str = "project"
    kernels: str = "xla"
    dtype: Any = None
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Refines a map [B, h, w, C]; C must be even."""
        channels = x.shape[-1]
        if channels % 2:
            raise ValueError(
                f"a map of {channels} channels cannot be split into halves (eq. 1); expected an "
                "even number"
            )
        x = x if self.dtype is None else x.astype(self.dtype)
        first, second = jnp.split(x, 2, -1)  # eq. 1
        # Eq. 2, which gives the 5x5 to the first half; the text beside it the 7x7.
        r = jnp.concatenate([self._depthwise(first, 5), self._depthwise(second, 7)], -1)
        r = BatchNorm(groups=self.groups, name="bn1")(r, train=train)
        r1 = self._pointwise(r, 4 * channels, "expand", 2.0)  # eq. 3
        r2 = self._depthwise(nn.relu(r1), 3, use_bias=True) + r1  # eq. 4
        r2 = BatchNorm(groups=self.groups, name="bn2")(r2, train=train)
        y = self._pointwise(r2, channels, "reduce", 1.0)
        y = y * _layer_scale(self, channels).astype(y.dtype)  # eq. 5
        return x + y if self.residual else y

    def _depthwise(self, x: jax.Array, size: int, use_bias: bool = False) -> jax.Array:
        shape = (size, size, 1, x.shape[-1])
        weights = Weights(shape, 2 / size**2, use_bias, name=f"depthwise{size}")
        kernel, bias = weights()
        y = depthwise(x, kernel, kernels=self.kernels)
        return y if bias is None else y + _row(bias, y)

    def _pointwise(self, x: jax.Array, features: int, name: str, gain: float) -> jax.Array:
        shape = (1, 1, x.shape[-1], features)
        kernel, bias = Weights(shape, gain / x.shape[-1], True, name=name)()
        return x @ kernel[0, 0].astype(x.dtype) + _row(bias, x)


class CrossModality(nn.Module):
    """Cross-modality learner, eqs. 6 to 9; attributes as in `ModalityUnifying`.

    Attributes:
      form: "direct" computes eqs. 7 to 9 one after the other. "folded" gives the same numbers
        without the map of 2nF channels, see `folding`. "auto" takes what should be faster, and
        "direct" for batch statistics of several groups, which the moments of a batch do not give.
    """

    ratios: tuple[int, ...] = (2, 4, 6, 12)
    ratio_form: str = "factor"
    transposed: str = "full"
    relu: bool = False
    scale_shape: str = "vector"
    scale_form: str = "project"
    form: str = "auto"
    dtype: Any = None
    groups: int = 1

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array, train: bool) -> jax.Array:
        """The auxiliary map [B, h, w, C] of two refined maps of that shape."""
        _, height, width, channels = visible.shape
        windows = pyramid.windows(height, width, self.ratios, self.ratio_form)
        features, inputs = transposed_channels(channels, self.transposed)
        kernels = [
            Weights((*window, inputs, features), 1 / inputs, False, name=f"transposed{n}")()[0]
            for n, window in enumerate(windows)
        ]
        groups = 2 * len(windows)
        shape = (1, 1, groups * features, channels)
        kernel, bias = Weights(shape, 1 / (groups * features), True, name="project")()
        dtype = jnp.result_type(visible) if self.dtype is None else self.dtype
        sizes = (visible.size // channels, windows, channels, features, inputs)
        compute = self._folded if self._folds(sizes, train=train) else self._direct
        pooled = [[pyramid.pool(x, window) for window in windows] for x in (visible, infrared)]
        y = compute(pooled, kernels, kernel[0, 0], train, dtype)
        y = (y + _row(bias, y)) * _layer_scale(self, channels).astype(y.dtype)  # eq. 9
        y = y.astype(dtype)
        return nn.relu(y) if self.relu else y

    def _folds(self, sizes: Any, *, train: bool) -> bool:
        """Whether to fold, given the arguments of `folding.is_cheaper`."""
        groups = self.groups if train and not self.is_initializing() else 1
        if self.form == "folded" and groups > 1:
            raise ValueError(
                f"method.generator.form is 'folded' with devices.bn_groups={groups}, expected "
                "'direct' or 'auto': folding has the statistics of the whole batch"
            )
        cheaper = self.form == "auto" and groups == 1 and folding.is_cheaper(*sizes)
        return self.form == "folded" or cheaper

    def _direct(
        self, pooled: Any, kernels: Any, projection: jax.Array, train: bool, dtype: Any
    ) -> jax.Array:
        """Eqs. 7 to 9 up to the projection, one after the other."""
        maps = [
            pyramid.expand(cells.astype(dtype), kernel)
            for of_modality in pooled
            for cells, kernel in zip(of_modality, kernels, strict=True)
        ]
        x = BatchNorm(groups=self.groups, name="bn")(jnp.concatenate(maps, -1), train=train)
        return x @ projection.astype(dtype)

    def _folded(
        self, pooled: Any, kernels: Any, projection: jax.Array, train: bool, dtype: Any
    ) -> jax.Array:
        """The same without the map of 2nF channels, see `folding`."""
        cells = [jnp.concatenate(both, -1) for both in zip(*pooled, strict=True)]
        of_cells = [folding.moments(x, 2) for x in cells]
        of_maps = [
            folding.expanded_moments(mean, covariance, kernel)
            for (mean, covariance), kernel in zip(of_cells, kernels, strict=True)
        ]
        # [2, n, F] -> [2nF], in the order of eq. 8.
        mean, var = (jnp.stack(x, 1).reshape(-1) for x in zip(*of_maps, strict=True))
        places = pooled[0][0].size // pooled[0][0].shape[-1] * math.prod(kernels[0].shape[:2])
        norm = folding.BatchNormOfMoments(name="bn")
        factor, shift = norm(mean, var, count=places, train=train)
        weights = (factor[:, None] * projection).reshape(2, len(kernels), -1, projection.shape[-1])
        constant = jnp.matmul(shift, projection, precision=folding.HIGHEST)
        return constant.reshape(1, 1, 1, -1) + sum(
            folding.project(x, center, kernel, weights[:, n], dtype)
            for n, (x, (center, _), kernel) in enumerate(zip(cells, of_cells, kernels, strict=True))
        )


class Weights(nn.Module):
    """A kernel and perhaps a bias, for products that linen's layers do not compute.

    Attributes:
      shape: of the kernel, [..., inputs, outputs].
      variance: of the kernel's start; the bias starts at zero.
      use_bias: whether there is a bias.
    """

    shape: tuple[int, ...]
    variance: float
    use_bias: bool

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        """The kernel, and the bias [outputs] or None."""
        kernel = self.param("kernel", init.normal(math.sqrt(self.variance)), self.shape)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", init.constant(0.0), self.shape[-1:])


def transposed_channels(channels: int, transposed: str) -> tuple[int, int]:
    """Channels out of a transposed convolution (F) and into each of its kernels.

    Raises:
      ValueError: an unknown choice, or "reduce" where 4 does not divide the channels.
    """
    if transposed not in TRANSPOSED:
        raise ValueError(f"transposed is {transposed!r}, expected one of {list(TRANSPOSED)}")
    if transposed == "depthwise":
        return channels, 1
    if transposed == "full":
        return channels, channels
    if channels % 4:
        raise ValueError(
            f"transposed='reduce' divides the map's {channels} channels by 4, which leaves a rest"
        )
    return channels // 4, channels


def project_scales(params: Any) -> Any:
    """Puts every layer scale back into (0, 1], to be called after a step of the optimizer.

    For scale_form="project": inside the loss, clipping would stop the gradient at the bound
    where the scales start. Every other leaf stays as it is.

    Args:
      params: any tree with leaves called "layer_scale".

    Returns:
      A tree of the same structure.
    """

    def project(path: Any, leaf: Any) -> Any:
        name = getattr(path[-1], "key", None) if path else None
        return jnp.clip(leaf, SMALLEST_SCALE, 1.0) if name == "layer_scale" else leaf

    return jax.tree_util.tree_map_with_path(project, params)


def layer_scale(parameter: jax.Array, scale_form: str) -> jax.Array:
    """The scale in (0, 1] that a leaf "layer_scale" stands for."""
    if scale_form == "sigmoid":
        return jax.nn.sigmoid(parameter)
    return jnp.clip(parameter, SMALLEST_SCALE, 1.0) if scale_form == "clip" else parameter


def _layer_scale(module: Any, channels: int) -> jax.Array:
    """The module's layer scale [1, 1, 1, C] or [1, 1, 1, 1], in (0, 1]."""
    shape = (channels,) if module.scale_shape == "vector" else (1,)
    start = SIGMOID_START if module.scale_form == "sigmoid" else 1.0
    scale = module.param("layer_scale", init.constant(start), shape)
    return layer_scale(scale, module.scale_form).reshape(1, 1, 1, -1)


def _row(vector: jax.Array | None, x: jax.Array) -> jax.Array:
    """[C] -> [1, 1, 1, C] in the dtype of x."""
    return jnp.asarray(vector, x.dtype).reshape(1, 1, 1, -1)
