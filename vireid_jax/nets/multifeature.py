"""The network of DEEN (Zhang and Wang, CVPR 2023) and of PDM (ICASSP 2025), which extends it.

A ResNet with a stem for each modality. After each of layer1 to layer3 an aggregation block (MFA,
`attention.Aggregation`) mixes in the map before it. An expansion (DEE in DEEN, MFGM in PDM) makes G
maps of each before the last stage: image n is then rows (1 + G) n ... (1 + G) n + G, itself first,
and a run of rows stays on its device. PDM adds a gate after the stems (SimAM), attention in the
expansion, and prototypes that pool parts (PLM). On RegDB both end with layer3.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vireid_jax.nets import cpu, init
from vireid_jax.nets.attention import Aggregation
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gap
from vireid_jax.nets.remat import rematerialized
from vireid_jax.nets.resnet import ResNet, block_names, map_size
from vireid_jax.types import INFRARED, VISIBLE

DILATIONS = (1, 2, 3)
FUSIONS = ("mean", "sum")
ATTENTIONS = ("none", "sequential", "concat")
FORMS = ("auto", "dense", "convolution")
# Places of a map up to which a spatial attention is a matrix of places by places: 48 x 24, which
# has 2.7 million entries a branch.
DENSE_PLACES = 1152
LAMBDA = 1e-4  # of SimAM


class MultiFeatureNet(nn.Module):
    """Backbone, expansion, pooling, and a BN neck with a classifier for each feature.

    Features: "global" F_g [.., D], pooled by average; with prototypes also "full" F
    [.., (m + 1) D], the m parts and then F_g (eq. 8 of PDM).

    Attributes:
      num_classes: C.
      backbone_options: of `ResNet`, with specific 1; remat is for MFA and expansion too.
      dropout: of all entries of the expanded maps, the image's own too.
      branches, fuse, attention: of `Expansion`; without branches there is none.
      aggregates, gate: whether there are MFA blocks, and SimAM after the stems.
      num_prototypes: m of `Prototypes`; 0: none.
      classified: of "global", "full": the features with a classifier.
    """

    num_classes: int
    backbone_options: Mapping[str, Any]
    dropout: float
    branches: int
    fuse: str = "mean"
    attention: str = "none"
    aggregates: bool = True
    gate: bool = False
    num_prototypes: int = 0
    classified: tuple[str, ...] = ("global",)

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        options = self.backbone_options
        self.backbone = ResNet(**options)
        remat, dtype = options.get("remat", False), options.get("dtype")
        groups, kernels = options.get("groups", 1), options.get("kernels", "xla")
        if self.aggregates:  # mfa1 and mfa2, mfa3 where layer4 follows
            block = rematerialized(Aggregation, self, remat, static=(3,))
            self.mfa = [block(dtype, groups, kernels) for _ in range(options.get("stages", 4) - 1)]
        if self.branches:
            expansion = rematerialized(Expansion, self, remat)
            how = dict(dtype=dtype, kernels=kernels)
            self.expansion = expansion(self.branches, self.fuse, self.attention, **how)
        self.drop = nn.Dropout(self.dropout)
        names = ["global"]
        if self.num_prototypes:
            self.prototypes = Prototypes(self.num_prototypes)
            names.append("full")
        start = init.normal(0.01, mean=1.0)  # AGW's code and its descendants
        neck = partial(BatchNorm, use_bias=False, scale_init=start, groups=groups)
        self.neck = {name: neck() for name in names}
        self.classifier = {
            name: nn.Dense(self.num_classes, use_bias=False, kernel_init=init.normal(0.001))
            for name in self.classified
        }

    def __call__(self, visible: jax.Array, infrared: jax.Array) -> dict[str, Any]:
        """The training pass on standardized images [B, H, W, 3].

        Returns:
          "feature": {"global", "full": [B, 2, R, D]}, visible first, of R = 1 + G rows, the
          image's own first; "logits": the same for `classified`, [2 B R, C]; with prototypes also
          "similarity" and "similarity_logits" [2 B R, m, n].
        """
        features, parts = self._features([visible, infrared], [VISIBLE, INFRARED], train=True)
        neck = {name: self.neck[name](x, train=True) for name, x in features.items()}
        count = visible.shape[0]
        out: dict[str, Any] = {
            "feature": {name: x.reshape(count, 2, -1, x.shape[-1]) for name, x in features.items()},
            "logits": {name: self.classifier[name](neck[name]) for name in self.classified},
        }
        if parts is not None:
            out |= {"similarity": parts.similarity, "similarity_logits": parts.logits}
        return out

    def embed(self, images: jax.Array, modality: int) -> dict[str, dict[str, jax.Array]]:
        """{"feature", "neck"}: {"global", "full": [N, R, D]} before and after the neck."""
        features, _ = self._features([images], [modality], train=False)
        neck = {name: self.neck[name](x, train=False) for name, x in features.items()}
        count = len(images)
        return {
            key: {name: x.reshape(count, -1, x.shape[-1]) for name, x in found.items()}
            for key, found in (("feature", features), ("neck", neck))
        }

    def _features(
        self, images: list[jax.Array], stems: list[int], *, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        """Features by rows, and what the prototypes found."""
        options = self.backbone_options
        depth, stages = options["depth"], options.get("stages", 4)
        ends = {block_names(depth, stage)[-1]: stage for stage in range(1, stages)}
        low: Any = None

        def then(name: str, x: jax.Array) -> jax.Array:
            nonlocal low
            if name == "stem":
                low = simam(x) if self.gate else x
                return low
            if name not in ends:
                return x
            if self.aggregates:
                x = low = self.mfa[ends[name] - 1](x, low, train)
            if ends[name] < stages - 1 or not self.branches:
                return x
            x = self.expansion(x)
            x = x.reshape(-1, *x.shape[2:])
            return self.drop(x, deterministic=not train or self.is_initializing())

        maps = self.backbone(images, stems=stems, train=train, then=then)
        features, parts = {"global": gap(maps)}, None
        if self.num_prototypes:
            parts = self.prototypes(maps)
            flat = parts.features.reshape(len(maps), -1)
            features["full"] = jnp.concatenate([flat, features["global"]], 1)
        return features, parts


def make(
    *,
    image_size: tuple[int, int],
    backbone_options: Mapping[str, Any],
    stages: int,
    mfa: bool = True,
    **options: Any,
) -> MultiFeatureNet:
    """The network of some options; refuses what cannot be built, before anything is traced.

    Args:
      image_size: (height, width); with MFA the maps must have an even number of places.
      backbone_options: of `ResNet`.
      stages: 4, or 3 to end with layer3.
      mfa: whether there are aggregation blocks.
      options: of `MultiFeatureNet`.

    Raises:
      ValueError: naming the option, what it is and what it may be.
    """
    backbone = {**backbone_options, "stages": stages, "specific": 1}
    net = MultiFeatureNet(backbone_options=backbone, aggregates=mfa, **options)
    if stages not in (3, 4):
        raise ValueError(f"method.stages is {stages}, expected 4, or 3 to end with layer3")
    if net.branches < 0:
        raise ValueError(f"method.branches is {net.branches}, expected 0 or more")
    if not 0 <= net.dropout < 1:
        raise ValueError(f"method.dropout is {net.dropout}, expected 0 to below 1")
    for stage in range(stages if mfa else 0):
        height, wide = map_size(image_size, stage, backbone_options.get("last_stride", 1))
        if height * wide % 2:
            raise ValueError(
                f"data.image_size is {tuple(image_size)}, whose map of {height} x {wide} places "
                "the position attention of method.mfa cannot halve; choose a height or width that "
                "is a multiple of 32, or method.mfa=False"
            )
    return net


# --- Expansion: DEE, MFGM ----------------------------------------------------------------------


class Expansion(nn.Module):
    """f [N, h, w, F] to [N, 1 + G, h, w, F]: f, then the maps of G branches.

      f_i = fuse(conv_1(f), conv_2(f), conv_3(f))    3x3, dilations 1, 2, 3, to F / 4 channels
      f_i+ = FC(ReLU(attention(f_i)))                FC a 1x1 convolution with bias

    (eqs. 1 and 2 of PDM). DEEN (ZYK100/LLCM, DEEN/model.py, `DEE_module`) has no attention. PDM's
    code (mmunhappy/ICASSP2025-PDM, `MFGM`) adds CBAM (Woo et al., ECCV 2018) with a residual:
    channel attention CA, then spatial attention SA by one 49x49 convolution. PDM's paper prints a
    sum and the concatenation [CA(f_i), SA(f_i)].

    Attributes:
      branches: G.
      fuse: of the three convolutions: "mean" (both codes) or "sum" (PDM, eq. 1).
      attention: "none" (DEEN), "sequential" (PDM's code), or "concat" (PDM, eq. 2, CA(f_i) and
        SA(f_i) read as gated maps: the gates differ in shape).
      kernel: side of SA's kernel, odd; 49 in PDM's code.
      reduction: of CA's bottleneck; 16 in PDM's code.
      dtype: compute type; None follows the input.
      kernels: see `ResNet`.
    """

    branches: int = 2
    fuse: str = "mean"
    attention: str = "none"
    kernel: int = 49
    reduction: int = 16
    dtype: Any = None
    kernels: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, F] -> [N, 1 + G, h, w, F]."""
        for name, allowed in (("fuse", FUSIONS), ("attention", ATTENTIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected one of {list(allowed)}"
                )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}, expected an odd number")
        width, count, squeezed = x.shape[-1], self.branches, x.shape[-1] // 4
        parts = [
            nn.Conv(
                count * squeezed,
                (3, 3),
                padding=dilation,
                kernel_dilation=dilation,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=init.kaiming_normal("fan_in"),  # independent of the outputs
                conv_general_dilated=cpu.convolution if self.kernels == "cpu" else None,
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
        start = _stacked(init.kaiming_normal("fan_in"))
        kernel = self.param("expand_kernel", start, (count, inputs, width)).astype(y.dtype)
        bias = self.param("expand_bias", init.torch_uniform_bias(inputs), (count, width))
        made = jnp.einsum("nhwgc,gcd->nghwd", nn.relu(y), kernel)
        made = made + bias.astype(y.dtype).reshape(1, count, 1, 1, width)
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
        logits = spatial_convolution(pooled, kernel[..., 0].astype(y.dtype))
        return nn.sigmoid(logits + bias.astype(y.dtype).reshape(1, 1, 1, count))[..., None]


def spatial_convolution(x: jax.Array, kernel: jax.Array, *, form: str = "auto") -> jax.Array:
    """A k x k convolution of the whole map, to one channel a branch, padded by k // 2.

    With a kernel as large as the map most of a padded convolution multiplies zeros. "dense" lays
    the kernel out as a matrix of places by places, for a product. "auto" does so for
    maps of up to 1152 places where the kernel is larger than a quarter of the map.

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


# --- Prototypes: PLM ---------------------------------------------------------------------------


class Parts(NamedTuple):
    """What the prototypes find in N maps of n places."""

    features: jax.Array  # [N, m, F]
    similarity: jax.Array  # S [N, m, n], in (0, 1)
    logits: jax.Array  # P (I + E)^T [N, m, n], before the sigmoid


class Prototypes(nn.Module):
    """PDM's prototype learning module (PLM, eqs. 6 to 8): parts of a map by learned prototypes.

    S = sigmoid(P (I + E)^T), p_i = mean over places j of S_ij I_j.

    P [m, F] are the prototypes, one set for both modalities and all branches; E [n, F] is a learned
    table of positions, which the paper mentions and its code adds for S alone. Both start as He
    normal, std sqrt(2 / F) (mmunhappy/ICASSP2025-PDM, plm.py). There is no softmax and no scale.
    """

    count: int = 10  # m

    @nn.compact
    def __call__(self, x: jax.Array) -> Parts:
        """[N, h, w, F] -> `Parts`, float32 or wider."""
        batch, height, width, channels = x.shape
        start = init.normal(math.sqrt(2 / channels))
        prototypes = self.param("prototypes", start, (self.count, channels))
        positions = self.param("positions", start, (height * width, channels))
        rows = x.reshape(batch, height * width, channels)
        rows = rows.astype(jnp.promote_types(x.dtype, jnp.float32))
        # P I^T + P E^T: I + E is as large as the map, and never needed.
        offset = prototypes @ positions.T
        logits = jnp.einsum("mc,npc->nmp", prototypes, rows) + offset[None]
        similarity = nn.sigmoid(logits)
        parts = jnp.einsum("nmp,npc->nmc", similarity, rows) / (height * width)
        return Parts(parts, similarity, logits)


# --- Gate: SimAM -------------------------------------------------------------------------------


def simam(x: jax.Array) -> jax.Array:
    """SimAM (Yang et al., ICML 2021): x times a gate that is larger where x is unusual.

    gate = sigmoid(d / (4 (sum d / (n - 1) + 1e-4)) + 0.5), d = (x - mean)^2 over the n places of
    each channel of each map; it is at least sigmoid(0.5) = 0.622. mmunhappy/ICASSP2025-PDM, SNA.py.
    [N, h, w, F] -> the same shape and dtype; statistics in float32 or wider.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    places = x.shape[1] * x.shape[2]
    square = (wide - wide.mean((1, 2), keepdims=True)) ** 2
    variance = square.sum((1, 2), keepdims=True) / max(places - 1, 1)
    return (wide * jax.nn.sigmoid(square / (4 * (variance + LAMBDA)) + 0.5)).astype(x.dtype)
