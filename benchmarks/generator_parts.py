"""The pieces of MUN's network that `benchmarks.generator` measures."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.mun import generator as learners
from vireid_jax.nets.resnet import ResNet, feature_width

NETWORK = ("first", "generator", "shared")  # parts that make up the network


class Part(NamedTuple):
    """A piece of the network.

    Attributes:
      name: for a reader.
      init: () -> variables of its module, to be traced.
      run: (variables, maps) -> a list of maps, in training.
      maps: shapes of what goes in.
      of_maps: whether maps need a gradient; images do not.
    """

    name: str
    init: Callable[[], Any]
    run: Callable[[Any, list[Any]], list[Any]]
    maps: list[tuple[int, ...]]
    of_maps: bool = True


def by_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`generator.expand` as a transposed convolution: x [B, p, q, C], kernel [a, b, C, F]."""
    return jax.lax.conv_transpose(
        x,
        kernel[::-1, ::-1].astype(x.dtype),
        strides=kernel.shape[:2],
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def trunk(s: dict[str, Any]) -> ResNet:
    """The trunk of the settings `s`."""
    method = s["method"]
    backbone = with_backbone(method)["backbone"]
    return ResNet(**backbone.resnet_options(), specific=method["specific"])


def parts(s: dict[str, Any], pairs: int) -> dict[str, Part]:
    """The parts at the settings `s` of `benchmarks.step_mun`, for so many pairs of images."""
    method = s["method"]
    kernels = with_backbone(method)["backbone"].module_options()["kernels"]
    channels = feature_width(method["depth"], method["width"]) // 8  # after layer1
    if method["specific"] == 1:
        channels = method["width"]  # after the stem
    height, width = (-(-side // 4) for side in s["image_size"])
    a_map = (pairs, height, width, channels)
    result = _stages(s, pairs, a_map)
    ratios = tuple(method["generator_ratios"])

    def learner(name: str, module: Any, count: int) -> Part:
        return Part(
            name,
            lambda: module.init(jax.random.key(0), *_zeros([(1, *a_map[1:])] * count), train=False),
            lambda variables, maps: _trained(module, variables, maps),
            [a_map] * count,
        )

    intra = learners.IntraModality(kernels=kernels)
    result["intra"] = learner("intra-modality learner, one map", intra, 1)
    for form in ("product", "folded"):
        cross = learners.CrossModality(ratios, {"product": "direct"}.get(form, form))
        result[form] = learner(f"cross-modality learner, {form}", cross, 2)
    product = result["product"]

    def convolved(variables: Any, maps: list[Any]) -> list[Any]:
        with mock.patch.object(learners, "expand", by_convolution):
            return product.run(variables, maps)

    result["convolution"] = product._replace(
        name="cross-modality learner, convolution", run=convolved
    )
    for key, remat in (("generator", False), ("remat", True)):
        name = "generator, rematerialized" if remat else "generator"
        module = learners.ModalityUnifying(
            ratios, method["generator_form"], remat=remat, kernels=kernels
        )
        result[key] = learner(name, module, 2)
    return result


def _stages(s: dict[str, Any], pairs: int, a_map: tuple[int, ...]) -> dict[str, Part]:
    """The trunk before and after the generator.

    Both run the whole trunk; what does not depend on the maps that go in or is not in the
    result is dropped when a program is compiled.
    """
    backbone, image = trunk(s), (*s["image_size"], 3)

    def through(variables: Any, images: Any, generate: Callable[[list[Any]], list[Any]]) -> Any:
        kwargs = {"stems": [0, 1], "generate": generate}
        return _trained(backbone, variables, [images], **kwargs)

    def first(variables: Any, images: list[Any]) -> list[Any]:
        found: list[Any] = []

        def keep(maps: list[Any]) -> list[Any]:
            found.extend(maps)
            return maps

        through(variables, images, keep)
        return found

    def shared(variables: Any, maps: list[Any]) -> list[Any]:
        return through(variables, _zeros([(pairs, *image)] * 2), lambda _: maps)

    def init() -> Any:
        images = _zeros([(1, *image)] * 2)
        return backbone.init(jax.random.key(0), images, stems=[0, 1], train=False)

    return {
        "first": Part("first stages, two images", init, first, [(pairs, *image)] * 2, False),
        "shared": Part("shared stages, three maps", init, shared, [a_map] * 3),
    }


def _trained(module: Any, variables: Any, args: list[Any], **kwargs: Any) -> list[Any]:
    out, _ = module.apply(variables, *args, train=True, mutable=["batch_stats"], **kwargs)
    return list(out) if isinstance(out, tuple) else [out]


def _zeros(shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    return [jnp.zeros(shape) for shape in shapes]
