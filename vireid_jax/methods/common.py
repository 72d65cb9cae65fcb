"""What every `build` shares: the backbone's options, checks, and the parts of a `Method`.

A build reads: `check` its options, make its network, and return `Method(initialize(...), loss,
embed(...))`, where `loss` starts with `train_pass`, names its terms and ends with `total`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.nets import chunks, init
from vireid_jax.nets.resnet import feature_width
from vireid_jax.types import Variables

DTYPES = ("float32", "bfloat16")
KERNELS = ("auto", "xla", "cpu")


class Backbone(NamedTuple):
    """The ResNet of a method, and how its training pass is computed.

    A recipe has the first five in its `method` section, flat, and the others in `devices`.

    Attributes:
      depth: 18, 34 or 50 as in the paper; 10 and 14 have one block a stage.
      width: channels of the stem, 64 in the paper.
      last_stride: stride of layer4; 1 in most re-ID work, 2 in the ResNet paper.
      kernels: "xla", "cpu" (the same numbers, several times faster on CPU), or "auto": "cpu" on a
        CPU and "xla" elsewhere.
      dtype: "float32" or "bfloat16" compute; parameters, statistics and losses stay float32.
      remat: compute the maps inside blocks a second time in the backward pass, to keep fewer.
      accumulate: chunks in which a batch passes the network, see `nets.chunks`.
      bn_groups: contiguous runs of a batch (or chunk) that are each normalized by their own
        statistics, as on several GPUs without SyncBN, see `nets.norm.BatchNorm`.
    """

    depth: int = 50
    width: int = 64
    last_stride: int = 1
    kernels: str = "auto"
    dtype: str = "float32"
    remat: bool = False
    accumulate: int = 1
    bn_groups: int = 1

    def check(self) -> None:
        """Raises ValueError for what cannot be built, naming the option."""
        for name, allowed in (("dtype", DTYPES), ("kernels", KERNELS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"method.{name} is {getattr(self, name)!r}, expected one of {list(allowed)}"
                )
        chunks.check(self.accumulate)
        if self.bn_groups < 1:
            raise ValueError(
                f"devices.bn_groups is {self.bn_groups}, expected 1 (the whole batch) or more"
            )
        feature_width(self.depth, self.width)  # refuses an unknown depth

    @property
    def features(self) -> int:
        """D, the channels of the last map."""
        return feature_width(self.depth, self.width)

    def resnet_options(self) -> dict[str, Any]:
        """Keyword arguments of `nets.resnet.ResNet`; modules beside it take the last three."""
        kernels = self.kernels
        if kernels == "auto":
            kernels = "cpu" if jax.default_backend() == "cpu" else "xla"
        sizes = dict(depth=self.depth, width=self.width, last_stride=self.last_stride)
        # None follows the input; in float64 whole networks are compared.
        dtype = jnp.bfloat16 if self.dtype == "bfloat16" else None
        own = dict(kernels=kernels, dtype=dtype, groups=self.bn_groups)
        return {**sizes, "remat": self.remat, **own}


def with_backbone(options: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options of a recipe as arguments of a `build`: {"backbone": Backbone, others}."""
    rest = dict(options)
    own = {k: rest.pop(k) for k in Backbone._fields if k in rest}
    return {"backbone": Backbone(**own), **rest}


def check(
    options: Mapping[str, Any],
    *,
    choices: Mapping[str, Collection[str]] | None = None,
    not_negative: Collection[str] = (),
) -> None:
    """Refuses impossible options before anything is traced.

    Args:
      options: by name, such as `locals()` of a `build`; its num_classes and backbone are checked,
        and num_ids where losses need negatives.
      choices: option -> allowed values.
      not_negative: options that are numbers from 0 on.

    Raises:
      ValueError: naming the option, what it is and what it may be.
    """
    for name, allowed in (choices or {}).items():
        if options[name] not in allowed:
            raise ValueError(f"method.{name} is {options[name]!r}, expected one of {list(allowed)}")
    for name in not_negative:
        if not options[name] >= 0:  # NaN too
            raise ValueError(f"method.{name} is {options[name]}, expected 0 or more")
    if options["num_classes"] < 2:
        raise ValueError(f"{options['num_classes']} training identities, expected at least 2")
    options["backbone"].check()
    if options.get("num_ids", 2) < 2:
        raise ValueError(
            f"sampler.num_ids is {options['num_ids']}, expected at least 2: negatives are needed"
        )


def initialize(net: nn.Module, image_size: tuple[int, int]) -> Callable[[Any], Variables]:
    """`Method.init` of a network that is called with a visible and an infrared batch."""

    def start(key: Any) -> Variables:
        image = jax.ShapeDtypeStruct((2, *image_size, 3), jnp.float32)
        return init.start(net.init, key, image, image)

    return start


def train_pass(
    net: nn.Module,
    backbone: Backbone,
    variables: Variables,
    images: Sequence[jax.Array],
    key: Any,
    *,
    stream: str | None = None,
) -> tuple[Any, Any]:
    """The network's training pass on a batch, in `backbone.accumulate` chunks.

    Args:
      net: called with the images.
      backbone: how.
      variables: of the network.
      images: arrays [B, H, W, 3], a modality each.
      key: of the random stream; chunks fold theirs from it.
      stream: name of the random stream that the network draws from, if it does.

    Returns:
      What the network returns, and the updates of "batch_stats".

    Raises:
      ValueError: the groups or chunks do not divide the rows.
    """
    rows, groups = images[0].shape[0], backbone.bn_groups
    if rows % groups:
        raise ValueError(
            f"devices.bn_groups is {groups} with a batch of {rows} rows (sampler.num_ids x "
            "sampler.num_instances), expected a divisor; change one of them"
        )

    def forward(variables: Variables, images: Any, key: Any) -> tuple[Any, Any]:
        rngs = {} if stream is None else {stream: key}
        return net.apply(variables, *images, mutable=["batch_stats"], rngs=rngs)

    return chunks.apply(forward, variables, images, key, chunks=backbone.accumulate)


def embed(net: nn.Module) -> Callable[[Variables, Any, int], dict[str, Any]]:
    """`Method.embed` of a network whose own `embed` takes (images, modality)."""

    def features(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        return net.apply(variables, images, modality, method="embed")  # type: ignore[return-value]

    return features


def total(weights: Mapping[str, float], terms: Mapping[str, jax.Array]) -> jax.Array:
    """The weighted sum of a loss's terms, in their order.

    Raises:
      ValueError: a term without a weight, or a weight without a term.
    """
    if weights.keys() != terms.keys():
        raise ValueError(
            f"terms {sorted(terms)} and weights {sorted(weights)}, expected the same names"
        )
    found: Any = sum(weights[name] * term for name, term in terms.items())
    return found
