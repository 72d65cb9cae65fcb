"""MUN's generator of an auxiliary modality, from feature maps of both modalities.

Yu et al., "Modality Unifying Network for Visible-Infrared Person Re-Identification" (ICCV
2023), section 3.1: two intra-modality learners (eqs. 1 to 5) and a cross-modality learner (eqs. 6
to 9). Shape letters beside those of `vireid_jax.types`: C channels of the maps, n ratios. A window
is (height, width) in places of the map.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import wide
from vireid_jax.nets import cpu, init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.remat import rematerialized
from vireid_jax.types import MODALITIES

RATIOS = (2, 4, 6, 12)  # of the average pooling, section 4.2
FORMS = ("direct", "folded")
SMALLEST_SCALE = 1e-6  # layer scales are in (0, 1] (after eqs. 5 and 9)
HIGHEST = jax.lax.Precision.HIGHEST  # statistics never in reduced precision


class ModalityUnifying(nn.Module):
    """Two intra-modality learners and one cross-modality learner.

    Attributes:
      ratios: of the average pooling. A ratio r pools windows of r x r places.
      form: how eqs. 7 to 9 are computed, see `CrossModality`.
      remat: compute the learners' inner maps (4C and 2nC channels) a second time in the backward
        pass instead of keeping them.
      groups: of the batch statistics, see `BatchNorm`.
      kernels: "xla" or "cpu", see `ResNet`.
      dtype: compute type; None follows the input.
    """

    ratios: Sequence[int] = RATIOS
    form: str = "direct"
    remat: bool = False
    groups: int = 1
    kernels: str = "xla"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, visible: jax.Array, infrared: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Maps [B, h, w, C] of both modalities, row b of one identity, to a third.

        Returns:
          The auxiliary map (F^a of eq. 9) and the refined visible and infrared ones (eq. 5).
        """
        remat = self.remat and train
        intra = rematerialized(IntraModality, self, remat, static=(2,))
        cross = rematerialized(CrossModality, self, remat, static=(3,))
        common = {name: getattr(self, name) for name in ("groups", "kernels", "dtype")}
        visible, infrared = (
            intra(**common, name=f"intra_{name}")(x, train)
            for name, x in zip(MODALITIES, (visible, infrared), strict=True)
        )
        learner = cross(ratios=tuple(self.ratios), form=self.form, **common, name="cross")
        return learner(visible, infrared, train), visible, infrared


class IntraModality(nn.Module):
    """Intra-modality learner, eqs. 1 to 5; attributes as in `ModalityUnifying`."""

    groups: int = 1
    kernels: str = "xla"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Refines a map [B, h, w, C]; C must be even."""
        channels = x.shape[-1]
        x = x if self.dtype is None else x.astype(self.dtype)
        first, second = jnp.split(x, 2, -1)  # eq. 1
        # Eq. 2, which gives the 5x5 to the first half; the text beside it the 7x7.
        r = jnp.concatenate([self._depthwise(first, 5), self._depthwise(second, 7)], -1)
        r = BatchNorm(groups=self.groups, name="bn1")(r, train=train)
        r1 = self._pointwise(r, 4 * channels, "expand", 2.0)  # eq. 3
        r2 = self._depthwise(nn.relu(r1), 3, use_bias=True) + r1  # eq. 4
        r2 = BatchNorm(groups=self.groups, name="bn2")(r2, train=train)
        y = self._pointwise(r2, channels, "reduce", 1.0)
        return y * _layer_scale(self, channels).astype(y.dtype)  # eq. 5

    def _depthwise(self, x: jax.Array, size: int, use_bias: bool = False) -> jax.Array:
        shape = (size, size, 1, x.shape[-1])
        kernel, bias = Weights(shape, 2 / size**2, use_bias, name=f"depthwise{size}")()
        y = depthwise(x, kernel, kernels=self.kernels)
        return y if bias is None else y + _row(bias, y)

    def _pointwise(self, x: jax.Array, features: int, name: str, gain: float) -> jax.Array:
        shape = (1, 1, x.shape[-1], features)
        kernel, bias = Weights(shape, gain / x.shape[-1], True, name=name)()
        return _product(x, kernel[0, 0].astype(x.dtype), self.kernels) + _row(bias, x)


class CrossModality(nn.Module):
    """Cross-modality learner, eqs. 6 to 9; attributes as in `ModalityUnifying`.

    A map of 2nC channels at full resolution is made, normalized and projected to C channels: 2048
    channels for 256 in the paper. All three steps are affine in the pooled cells s:

      place (a, b) of a cell:   z = s W[a, b]                      W[a, b]: [C, C]
      normalized:               (z - mean) * factor + bias         per channel of z
      projected:                ... P                              P: [C, C]
      together:                 s (W[a, b] diag(factor) P) + constant

    The statistics of z over all places follow from the statistics of s, because every (a, b) has
    as many cells:

      mean     = average over (a, b) of  E[s] W[a, b]
      variance = average over (a, b) of  w' Cov(s) w + (E[s] w - mean)^2,  w a column of W[a, b]

    Attributes:
      form: "direct" computes eqs. 7 to 9 one after the other. "folded" computes the last of the
        four lines, the same numbers to rounding: one matrix product from C to C for each window,
        ratio and modality at every place instead of two, and no array of 2nC channels. The
        products of weights cost the same for any batch, so folding pays for large batches alone
        (docs/fidelity.md). It has the statistics of the whole batch, so groups must be 1.
    """

    ratios: tuple[int, ...] = RATIOS
    form: str = "direct"
    groups: int = 1
    kernels: str = "xla"
    dtype: Any = None

    @nn.compact
    def __call__(self, visible: jax.Array, infrared: jax.Array, train: bool) -> jax.Array:
        """The auxiliary map [B, h, w, C] of two refined maps of that shape."""
        channels = visible.shape[-1]
        kernels = [
            Weights((r, r, channels, channels), 1 / channels, False, name=f"transposed{n}")()[0]
            for n, r in enumerate(self.ratios)
        ]
        inputs = 2 * len(self.ratios) * channels
        kernel, bias = Weights((1, 1, inputs, channels), 1 / inputs, True, name="project")()
        dtype = jnp.result_type(visible) if self.dtype is None else self.dtype
        pooled = [[pool(x, r) for r in self.ratios] for x in (visible, infrared)]  # eq. 6
        compute = self._folded if self.form == "folded" else self._direct
        y = compute(pooled, kernels, kernel[0, 0], train, dtype)
        y = (y + _row(bias, y)) * _layer_scale(self, channels).astype(y.dtype)  # eq. 9
        return y.astype(dtype)

    def _direct(
        self, pooled: Any, kernels: Any, projection: jax.Array, train: bool, dtype: Any
    ) -> jax.Array:
        """Eqs. 7 to 9 up to the projection, one after the other."""
        maps = [
            expand(cells.astype(dtype), kernel, kernels=self.kernels)  # eq. 7
            for of_modality in pooled
            for cells, kernel in zip(of_modality, kernels, strict=True)
        ]
        x = BatchNorm(groups=self.groups, name="bn")(
            jnp.concatenate(maps, -1), train=train
        )  # eq. 8
        return _product(x, projection.astype(dtype), self.kernels)

    def _folded(
        self, pooled: Any, kernels: Any, projection: jax.Array, train: bool, dtype: Any
    ) -> jax.Array:
        """The same without the map of 2nC channels.

        Both modalities m go through the same W and different P. They stay apart as an axis of
        weights and statistics, and lie side by side in the channels of cells [B, p, q, 2 * C].
        """
        cells = [jnp.concatenate(both, -1) for both in zip(*pooled, strict=True)]
        of_cells = [moments(x) for x in cells]
        of_maps = [
            expanded_moments(mean, covariance, kernel)
            for (mean, covariance), kernel in zip(of_cells, kernels, strict=True)
        ]
        # [2, n, C] -> [2nC], in the order of eq. 8.
        mean, var = (jnp.stack(x, 1).reshape(-1) for x in zip(*of_maps, strict=True))
        places = pooled[0][0].size // pooled[0][0].shape[-1] * math.prod(kernels[0].shape[:2])
        factor, shift = MomentNorm(name="bn")(mean, var, count=places, train=train)
        weights = (factor[:, None] * projection).reshape(2, len(kernels), -1, projection.shape[-1])
        constant = jnp.matmul(shift, projection, precision=HIGHEST)
        return constant.reshape(1, 1, 1, -1) + sum(
            project(x, center, kernel, weights[:, n], dtype)
            for n, (x, (center, _), kernel) in enumerate(zip(cells, of_cells, kernels, strict=True))
        )


# --- Checks ---------------------------------------------------------------------------------


def check(
    image_size: tuple[int, int], channels: int, ratios: Sequence[int], form: str, groups: int
) -> None:
    """Refuses what the generator cannot be built of; channels C are those of the first stage.

    Raises:
      ValueError: naming the option, what it is and what it may be.
    """
    if form not in FORMS:
        raise ValueError(f"method.generator_form is {form!r}, expected one of {list(FORMS)}")
    if form == "folded" and groups > 1:
        raise ValueError(
            f"method.generator_form is 'folded' with devices.bn_groups={groups}, expected "
            "'direct': folding has the statistics of the whole batch"
        )
    given = tuple(ratios)
    if not given or len(set(given)) < len(given) or any(type(r) is not int or r < 1 for r in given):
        raise ValueError(
            f"method.generator_ratios is {given}, expected distinct whole numbers from 1 on, such "
            "as (2, 4, 6, 12)"
        )
    # The stem halves twice and rounds up each time, which is a quarter rounded up.
    height, width = (-(-side // 4) for side in image_size)
    need = math.lcm(*given)
    if height % need or width % need:
        fitting = [4 * need * max(1, math.ceil(side / need)) for side in (height, width)]
        raise ValueError(
            f"data.image_size is {tuple(image_size)}, but a map of {height} x {width} does not "
            f"divide by the ratios {given}; expected a height and a width that are multiples of "
            f"{need}, from images whose sides are multiples of {4 * need} such as {fitting[0]} x "
            f"{fitting[1]}; choose such a data.image_size, or other method.generator_ratios"
        )
    if channels % 2:
        raise ValueError(
            f"method.auxiliary='mun' splits the {channels} channels of the first stage into "
            "halves, expected an even number; change method.width"
        )


# --- Pooling and its learned inverse, eqs. 6 and 7 ------------------------------------------


def pool(x: jax.Array, ratio: int) -> jax.Array:
    """Means over windows of r x r: [B, h, w, C] -> float32 or wider [B, h / r, w / r, C]."""
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height // ratio, ratio, width // ratio, ratio, channels)
    return cells.mean((2, 4), dtype=jnp.promote_types(x.dtype, jnp.float32))


def expand(x: jax.Array, kernel: jax.Array, *, kernels: str = "xla") -> jax.Array:
    """Transposed convolution with kernel = stride: one matrix product, then depth to space.

    Place (a, b) of cell (p, q) is x[p, q] @ kernel[a, b]: cells [B, p, q, C] and a kernel
    [a, b, C, F] give [B, p * a, q * b, F] in the dtype of x. For `kernels` see `ResNet`.
    """
    a, b, inputs, features = kernel.shape
    matrix = kernel.astype(x.dtype).transpose(2, 0, 1, 3).reshape(inputs, a * b * features)
    return depth_to_space(_product(x, matrix, kernels).reshape(*x.shape[:3], a, b, features))


def _product(x: jax.Array, matrix: jax.Array, kernels: str) -> jax.Array:
    """Maps [B, h, w, C] times a matrix [C, F]."""
    return cpu.product(x, matrix) if kernels == "cpu" else x @ matrix


def depth_to_space(x: jax.Array) -> jax.Array:
    """[B, p, q, a, b, F] -> [B, p * a, q * b, F]."""
    batch, p, q, a, b, features = x.shape
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, p * a, q * b, features)


# --- Folding, see `CrossModality` -----------------------------------------------------------


def moments(cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E[s] [2, C] and Cov(s) [2, C, C] of cells [B, p, q, 2 * C], float32 or wider."""
    rows = cells.reshape(-1, 2, cells.shape[-1] // 2)
    mean = rows.mean(0)
    centered = rows - mean[None]
    covariance = jnp.einsum("nmc,nmd->mcd", centered, centered, precision=HIGHEST)
    return mean, covariance / rows.shape[0]


def expanded_moments(
    mean: jax.Array, covariance: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [2, F] of the transposed convolution of cells of these moments."""
    a, b, inputs, features = kernel.shape
    taps = kernel.astype(mean.dtype).reshape(a * b, inputs, features)
    by_tap = jnp.einsum("mc,kcf->mkf", mean, taps, precision=HIGHEST)
    turned = jnp.einsum("mcd,kdf->mkcf", covariance, taps, precision=HIGHEST)
    within = (taps[None] * turned).sum(2).mean(1)
    total = by_tap.mean(1)
    between = jnp.square(by_tap - total[:, None]).mean(1)
    return total, jnp.maximum(within, 0) + between


def project(
    cells: jax.Array, center: jax.Array, kernel: jax.Array, weights: jax.Array, dtype: Any
) -> jax.Array:
    """The product s (W[a, b] P) at every place, summed over both modalities.

    Args:
      cells: [B, p, q, 2 * C].
      center: [2, C] subtracted from cells and added after the product, which then loses no
        digits of what differs between places; any value gives the same result.
      kernel: W, [a, b, C, F].
      weights: P of each modality, [2, F, C'].
      dtype: of the product's operands.

    Returns:
      [B, p * a, q * b, C'], float32 or wider.
    """
    kernel = kernel.astype(weights.dtype)
    folded = jnp.einsum("abcf,mfd->abmcd", kernel, weights)
    folded = folded.reshape(*kernel.shape[:2], -1, weights.shape[-1])
    center = jax.lax.stop_gradient(center)
    places = jnp.einsum(
        "npqc,abcd->npqabd",
        (cells - center.reshape(1, 1, 1, -1)).astype(dtype),
        folded.astype(dtype),
        preferred_element_type=weights.dtype,
    )
    # In full precision from the factors on, as the shift of the normalization that it makes up for.
    moved = jnp.einsum("mc,abcf->mabf", center, kernel, precision=HIGHEST)
    offset = jnp.einsum("mabf,mfd->abd", moved, weights, precision=HIGHEST)
    return depth_to_space(places + offset[None, None, None])


class MomentNorm(nn.Module):
    """`BatchNorm` of a map that is never made, by its moments: y = x factor + shift."""

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, mean: jax.Array, var: jax.Array, *, count: int, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Factor and shift [F], given mean and biased variance [F] of count values each."""
        shape = mean.shape
        running_mean = self.variable("batch_stats", "mean", init.constant(0.0), None, shape)
        running_var = self.variable("batch_stats", "var", init.constant(1.0), None, shape)
        scale = self.param("scale", init.constant(1.0), shape)
        bias = self.param("bias", init.constant(0.0), shape)
        if not train:
            mean, var = running_mean.value, running_var.value
        elif not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            for stat, new in ((running_mean, mean), (running_var, unbiased)):
                value = (1 - self.momentum) * stat.value + self.momentum * new
                stat.value = jax.lax.stop_gradient(value).astype(stat.value.dtype)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return factor, bias - mean * factor


# --- Weights and layer scales ---------------------------------------------------------------


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


def project_scales(params: Any) -> Any:
    """Puts every layer scale back into (0, 1], to be called after a step of the optimizer.

    Inside the loss, clipping would stop the gradient at the bound where the scales start. Leaves
    with other names than "layer_scale" stay as they are.
    """

    def clipped(path: Any, leaf: Any) -> Any:
        return jnp.clip(leaf, SMALLEST_SCALE, 1.0) if path[-1].key == "layer_scale" else leaf

    return jax.tree_util.tree_map_with_path(clipped, params)


def _layer_scale(module: Any, channels: int) -> jax.Array:
    """The module's layer scale [1, 1, 1, C]."""
    return module.param("layer_scale", init.constant(1.0), (channels,)).reshape(1, 1, 1, -1)


def _row(vector: jax.Array | None, x: jax.Array) -> jax.Array:
    """[C] -> [1, 1, 1, C] in the dtype of x."""
    return jnp.asarray(vector, x.dtype).reshape(1, 1, 1, -1)


# --- Depthwise convolution ------------------------------------------------------------------


def depthwise(x: jax.Array, kernel: jax.Array, *, kernels: str = "xla") -> jax.Array:
    """Convolves every channel with its own k x k kernel, stride 1, padding k // 2.

    XLA's CPU backend computes grouped convolutions 30 to 70 times slower than sums of shifted
    products, in both passes: `kernels` is "xla" for the first and "cpu" for the second.
    Maps [B, h, w, C] and kernels [k, k, 1, C], k odd, give maps in the dtype of x.
    """
    kernel = kernel.astype(x.dtype)
    if kernels == "cpu":
        return _shifted(x, kernel)
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _padded(x: jax.Array, size: int) -> jax.Array:
    pad = size // 2
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _sum_of_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    padded, taps = _padded(wide(x), size), wide(kernel)
    total = jnp.zeros((), padded.dtype)
    for i in range(size):
        for j in range(size):
            shifted = padded[:, i : i + height, j : j + width]
            total = total + shifted * taps[i, j].reshape(1, 1, 1, -1)
    return total.astype(x.dtype)


def _added(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    return [p + q for p, q in zip(a, b, strict=True)]


@jax.custom_vjp
def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _sum_of_shifts(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _sum_of_shifts(x, kernel), (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradient of the map is a convolution by the turned kernel.

    The gradient of the kernel is a sum over all places for each of the k * k taps. One reduction
    over all taps at a time, row of the map by row, reads the map from cache: k * k separate ones
    take up to eight times as long. The loop leaves a sharded batch axis where it is.
    """
    x, kernel = saved
    size, (_, height, width, channels) = kernel.shape[0], x.shape
    padded, along = _padded(wide(x), size), wide(gradient)

    def row(at: jax.Array, total: jax.Array) -> jax.Array:
        line = jax.lax.dynamic_slice_in_dim(along, at, 1, 1)[:, 0]
        rows = jax.lax.dynamic_slice_in_dim(padded, at, size, 1)
        products = [rows[:, i, j : j + width] * line for i in range(size) for j in range(size)]
        zeros = [jnp.zeros((), along.dtype)] * len(products)
        return total + jnp.stack(jax.lax.reduce(products, zeros, _added, (0, 1)))

    by_tap = jax.lax.fori_loop(0, height, row, jnp.zeros((size * size, channels), padded.dtype))
    by_kernel = by_tap.reshape(size, size, 1, channels).astype(kernel.dtype)
    return _sum_of_shifts(gradient, kernel[::-1, ::-1]), by_kernel


_shifted.defvjp(_forward, _backward)
