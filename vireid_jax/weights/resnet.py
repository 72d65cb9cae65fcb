"""ImageNet weights of a ResNet, by the names of torchvision and timm, into our backbone.

  in the file [torch layout]              in the model
  conv1.weight [o, i, h, w]               params/backbone/stem/conv1/kernel [h, w, i, o]
  bn1.weight                              params/backbone/stem/bn1/scale
  layer1.0.conv2.weight                   params/backbone/layer1_0/conv2/kernel
  layer2.0.downsample.1.bias              params/backbone/layer2_0/downsample_1/bias
  layer3.5.bn1.running_var                batch_stats/backbone/layer3_5/bn1/var

Stages that a model has several times (stem_visible, stem_infrared, stem_auxiliary; layer3_0 and
layer3_0_specific) start from the same arrays. torchvision's normalization (epsilon 1e-5, unbiased
running variance) is ours.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.types import SPECIFIC, STEMS, Variables

_SUFFIX = re.compile(f"_({'|'.join((*STEMS, SPECIFIC))})$")
_BLOCK = re.compile(r"layer([1-4])_(\d+)$")
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_PART = "backbone"
_ANCHOR = "layer1.0.conv1.weight"  # every ResNet has it; what precedes it is a prefix
# Names of a trunk: arrays by such names compute features and cannot be left out.
_TRUNK = re.compile(r"(conv|bn|norm|layer|stem|downsample)")
_COUNTER = ".num_batches_tracked"
_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (1, 1, 1, 1)): 10,
    (True, (1, 1, 1, 1)): 14,
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_BUILDABLE = (10, 14, 18, 34, 50)


@dataclasses.dataclass(frozen=True)
class Report:
    """Where a model's arrays come from; `str` is a line or two for the user."""

    source: str  # the file
    matched: Mapping[str, str]  # array of the model -> array of the file, of all its backbone
    unused: tuple[str, ...]  # arrays of the file without a place, such as its classifier
    untouched: tuple[str, ...]  # the model's other arrays, which stay

    def __str__(self) -> str:
        count = len(self.matched)
        text = f"{count}/{count} arrays of the backbone from {self.source}"
        named = [name for name in self.unused if not name.endswith(_COUNTER)]
        if counters := len(self.unused) - len(named):
            named.append(f"{counters} num_batches_tracked")
        if named:
            text += f"; unused in the file: {_some(named)}"
        if parts := list(dict.fromkeys(path.split("/")[1] for path in self.untouched)):
            text += f"; not from the file: {_some(parts)}"
        return text

    def details(self) -> str:
        """Every array by name: a line for each, for a file."""
        lines = [str(self)]
        lines += [f"{path} <- {name}" for path, name in self.matched.items()]
        lines += [f"not from the file: {path}" for path in self.untouched]
        lines += [f"unused in the file: {name}" for name in self.unused]
        return "\n".join(lines)


def fill(
    arrays: Mapping[str, np.ndarray], variables: Variables, *, source: str = "the arrays"
) -> tuple[dict[str, Any], Report]:
    """Fills the backbone of a model with arrays by the names of torchvision and timm.

    Args:
      arrays: in torch's layout; names may share a prefix ("module.", "backbone.", ...).
      variables: the model; leaves may be arrays, traced ones or `jax.ShapeDtypeStruct`s: of
        them, only shapes and dtypes are used.
      source: what messages call the arrays.

    Returns:
      New variables, where the leaves of the backbone are NumPy arrays with the values of `arrays`
      and the dtypes of `variables`, and the others are those of `variables`; and the report.

    Raises:
      ValueError: anything of the backbone is not in `arrays` or has another shape there, another
        depth or width included; `arrays` hold a part of a trunk that the model lacks (a deep
        stem, squeeze-and-excitation; but layer4 may be left over); or values are not finite.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict  # reading a file needs no flax

    leaves = flatten_dict({c: variables[c][_PART] for c in ("params", "batch_stats")})
    model = _model_layout(leaves)
    prefix = _prefix(arrays, source)
    names = {name.removeprefix(prefix): name for name in arrays if name.startswith(prefix)}
    if not model.blocks[-1]:  # the model ends with layer3
        names = {k: name for k, name in names.items() if not k.startswith("layer4.")}
    _check_layout(_source_layout(names, arrays), model, source)
    wanted = {path: _torch_name(path) for path in leaves}
    _check_names(wanted, names, source)
    theirs = {path: names[name] for path, name in wanted.items()}
    filled = {p: _convert(arrays[theirs[p]], p, theirs[p], leaves[p], source) for p in leaves}
    matched = {"/".join((p[0], _PART, *p[1:])): theirs[p] for p in leaves}
    used = set(theirs.values())
    unused = tuple(name for name in arrays if name not in used)
    untouched = tuple(p for p in map("/".join, flatten_dict(variables)) if p not in matched)
    ours = {c: {**variables[c], _PART: tree} for c, tree in unflatten_dict(filled).items()}
    return {**variables, **ours}, Report(source, matched, unused, untouched)


class _Layout(NamedTuple):
    bottleneck: bool
    blocks: tuple[int, ...]
    width: int

    @property
    def depth(self) -> int | None:
        """None for one without a name; without layer4 it is that of the first three stages."""
        for (bottleneck, blocks), depth in _DEPTHS.items():
            if bottleneck == self.bottleneck and self.blocks in (blocks, (*blocks[:3], 0)):
                return depth
        return None

    def __str__(self) -> str:
        kind = "bottlenecks" if self.bottleneck else "basic blocks"
        name = f"ResNet-{self.depth}" if self.depth else "ResNet"
        return f"{name} ({', '.join(map(str, self.blocks))} {kind}) of width {self.width}"


def _source_layout(names: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> _Layout:
    stages: list[set[str]] = [set() for _ in range(4)]
    for name in names:
        stage, _, rest = name.partition(".")
        if stage in ("layer1", "layer2", "layer3", "layer4") and "." in rest:
            stages[int(stage[-1]) - 1].add(rest.split(".")[0])
    first = arrays[names[_ANCHOR]].shape
    width = first[1] if len(first) == 4 else 0  # its input is the stem's output
    return _Layout("layer1.0.conv3.weight" in names, tuple(map(len, stages)), width)


def _model_layout(leaves: Mapping[tuple[str, ...], Any]) -> _Layout:
    stages: list[set[str]] = [set() for _ in range(4)]
    bottleneck, width = False, 0
    for path, leaf in leaves.items():
        if block := _BLOCK.match(_SUFFIX.sub("", path[1])):
            stages[int(block[1]) - 1].add(block[2])
            if block.groups() == ("1", "0"):
                bottleneck |= path[2] == "conv3"
                width = leaf.shape[-2] if path[2:] == ("conv1", "kernel") else width
    return _Layout(bottleneck, tuple(map(len, stages)), width)


def _check_layout(source: _Layout, model: _Layout, name: str) -> None:
    if source == model:
        return
    ways = [f"weights of a {model}"]
    if source.depth in _BUILDABLE:
        change = [f"--config.method.depth={source.depth}"] if source.depth != model.depth else []
        change += [f"--config.method.width={source.width}"] if source.width != model.width else []
        ways += [" ".join(change)] if change else []
    raise ValueError(
        f"{name} holds a {source}, the model's backbone is a {model}; take {' or '.join(ways)}"
    )


def _check_names(
    wanted: Mapping[tuple[str, ...], str], names: Mapping[str, str], source: str
) -> None:
    """Refuses a trunk that has less, or more, than the model."""
    used = set(wanted.values())
    absent = [f"{name} (for {'/'.join(p)})" for p, name in wanted.items() if name not in names]
    extra = [n for n in names if n not in used and _TRUNK.match(n) and not n.endswith(_COUNTER)]
    wrong = [f"it lacks {_some(absent)}"] if absent else []
    wrong += [f"it has {_some(extra)}, for which there is no place"] if extra else []
    if wrong:
        raise ValueError(
            f"{source} does not fit the backbone: {'; '.join(wrong)}; expected a plain ResNet as "
            "of torchvision (not a resnet50d with its deep stem, an SE-ResNet, ...)"
        )


def _prefix(arrays: Mapping[str, np.ndarray], source: str) -> str:
    """What precedes the names of the one ResNet among the arrays, such as "module."."""
    found = [
        name.removesuffix(_ANCHOR)
        for name in arrays
        if name == _ANCHOR or name.endswith("." + _ANCHOR)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{source} holds {len(found)} ResNets, under the prefixes "
            f"{_some([repr(p) for p in found])}; keep one of them in the file"
        )
    raise ValueError(
        f"{source} holds no ResNet by the names of torchvision: there is no {_ANCHOR}; it has "
        f"{_some(list(arrays))}"
    )


def _torch_name(path: Sequence[str]) -> str:
    """("params", "layer1_0_visible", "conv1", "kernel") -> "layer1.0.conv1.weight".

    What is no part of a ResNet gets a name that no file has.
    """
    collection, stage, *parts, last = path
    stage = _SUFFIX.sub("", stage)
    block = _BLOCK.match(stage)
    leaf = _LEAVES.get((collection, last))
    if leaf is None or len(parts) != 1 or not (block or stage == "stem"):
        return "/".join(path)
    part = re.sub(r"^downsample_(\d)$", r"downsample.\1", parts[0])
    return f"layer{block[1]}.{block[2]}.{part}.{leaf}" if block else f"{part}.{leaf}"


def _convert(x: np.ndarray, path: Sequence[str], name: str, leaf: Any, source: str) -> np.ndarray:
    """An array of the file with the layout, shape and dtype of a leaf; a copy."""
    y = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
    if y.shape != tuple(leaf.shape):
        shape = tuple(leaf.shape)
        expected = [shape[i] for i in (3, 2, 0, 1)] if len(shape) == 4 else list(shape)
        raise ValueError(
            f"{source}: {name} is {list(x.shape)}, expected {expected} for {'/'.join(path)}"
        )
    if x.dtype.kind != "f":
        raise ValueError(f"{source}: {name} has the type {x.dtype}, expected floating point")
    if not np.isfinite(x).all():
        raise ValueError(f"{source}: {name} has values that are not finite")
    if path[-1] == "var" and (x < 0).any():
        raise ValueError(f"{source}: {name} has negative values, expected variances")
    return np.array(y, leaf.dtype, order="C")


def _some(names: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(name[:100] for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
