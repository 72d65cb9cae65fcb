"""Weights of a file into a model: a ResNet's into the backbone, an author's checkpoint whole.

A ResNet, by the names of torchvision and timm (the names of authors' code are in authors.py):

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
from vireid_jax.weights import authors

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
_ANCHOR = authors.ANCHOR  # what precedes it is a prefix
# Names of a trunk: arrays by such names compute features and cannot be left out.
_TRUNK = re.compile(r"(conv|bn|norm|layer|stem|downsample)")
_COUNTER = ".num_batches_tracked"
# The last layer of a network, for other classes than ours.
_CLASSIFIER = re.compile(r"(.*\.)?(fc|classifier|head|last_linear)(\.(fc|\d+))*\.(weight|bias)")
UNUSED = ("refuse", "ignore")
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
    matched: Mapping[str, str]  # array of the model -> array or arrays of the file
    unused: tuple[str, ...]  # arrays of the file without a place, such as its classifier
    untouched: tuple[str, ...]  # the model's other arrays, which stay
    recipe: str | None = None  # whose authors' checkpoint it is
    idle: tuple[str, ...] = ()  # of the unused ones, what the authors' features do not depend on

    def __str__(self) -> str:
        count, left = len(self.matched), len(self.untouched)
        text = f"{count}/{count} arrays of the backbone from {self.source}"
        if self.recipe:
            text = f"{count}/{count + left} arrays of the model from {self.source}"
        counters = sum(name.endswith(_COUNTER) for name in self.unused)
        named = [n for n in self.unused if not n.endswith(_COUNTER) and n not in self.idle]
        if self.idle:
            named.append(f"{len(self.idle)} arrays that its own features do not depend on")
        if counters:
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
    arrays: Mapping[str, np.ndarray],
    variables: Variables,
    *,
    source: str = "the arrays",
    unused: str = "refuse",
) -> tuple[dict[str, Any], Report]:
    """Fills a model with the arrays of a file.

    A checkpoint of the authors' code (`authors.LAYOUTS`) fills the whole model, but for classifiers
    of another number of people. Any other file fills the backbone, by the names of torchvision and
    timm.

    Args:
      arrays: in torch's layout; names may share a prefix ("module.", "backbone.", ...).
      variables: the model; leaves may be arrays, traced ones or `jax.ShapeDtypeStruct`s: of
        them, only shapes and dtypes are used.
      source: what messages call the arrays.
      unused: "refuse" a file with trained arrays that have no place and are no classifier, or
        "ignore" them.

    Returns:
      New variables, where the leaves that are filled are NumPy arrays with the values of `arrays`
      and the dtypes of `variables`, and the others are those of `variables`; and the report.

    Raises:
      ValueError: anything that is to be filled is not in `arrays` or has another shape there,
        another depth or width included; `arrays` hold a part of a trunk that the model lacks (a
        deep stem, squeeze-and-excitation; but layer4 may be left over), or other arrays without a
        place; or values are not finite.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict  # reading a file needs no flax

    check_unused(unused)
    leaves = flatten_dict({c: variables[c] for c in ("params", "batch_stats")})
    code = authors.recognize(arrays)
    if code is None:
        wanted, spared = _of_resnet(arrays, leaves, source)
        idle = set[str]()
    else:
        wanted, idle, classifiers = _of_authors(arrays, leaves, code, source)
        spared = idle | classifiers
    used = {name for names in wanted.values() for name in names}
    rest = tuple(name for name in arrays if name not in used)
    surplus = [n for n in rest if not (n in spared or n.endswith(_COUNTER))]
    if surplus and unused == "refuse":
        network = f"the network of {code.recipe}" if code else "a ResNet and its classifier"
        raise ValueError(
            f"{source}: {_some(surplus)} would stay unused, expected {network} alone; to leave "
            "such arrays out, add --config.init.unused=ignore"
        )
    filled = {p: _convert(arrays, names, p, leaves[p], source) for p, names in wanted.items()}
    ours = unflatten_dict({**flatten_dict(dict(variables)), **filled})
    matched = {"/".join(p): ", ".join(names) for p, names in wanted.items()}
    untouched = tuple(p for p in map("/".join, flatten_dict(variables)) if p not in matched)
    unread = tuple(n for n in rest if n in idle)
    return ours, Report(source, matched, rest, untouched, code and code.recipe, unread)


def named(variables: Variables) -> dict[str, np.ndarray]:
    """The backbone's arrays by torchvision's names, in torch's layout: what `fill` takes.

    Raises:
      ValueError: the backbone has a stage several times, which one name cannot say.
    """
    from flax.traverse_util import flatten_dict

    leaves = flatten_dict({c: variables[c] for c in ("params", "batch_stats")})
    found: dict[str, np.ndarray] = {}
    for path, leaf in leaves.items():
        if path[1] == _PART:
            name, x = _torch_name((path[0], *path[2:])), np.asarray(leaf)
            if name in found:
                raise ValueError(f"the backbone has {name} several times, expected one stream")
            found[name] = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x
    return found


def check_unused(unused: str) -> None:
    """Raises ValueError if it is none of `UNUSED`."""
    if unused not in UNUSED:
        raise ValueError(f"init.unused is {unused!r}, expected one of {list(UNUSED)}")


_Names = dict[tuple[str, ...], tuple[str, ...]]  # our array -> the arrays that it is made of


def _of_resnet(
    arrays: Mapping[str, np.ndarray], leaves: Mapping[tuple[str, ...], Any], source: str
) -> tuple[_Names, set[str]]:
    """What the backbone is made of; and what may be left over, layer4 of one that ends before."""
    names, spared = _trunk(arrays, leaves, _prefix(arrays, source), source)
    wanted = {p: _torch_name((p[0], *p[2:])) for p in leaves if p[1] == _PART}
    _check_names(wanted, names, source)
    spared |= {name for name in arrays if _CLASSIFIER.fullmatch(name)}
    return {path: (names[name],) for path, name in wanted.items()}, spared


def _trunk(
    arrays: Mapping[str, np.ndarray],
    leaves: Mapping[tuple[str, ...], Any],
    prefix: str,
    source: str,
) -> tuple[dict[str, str], set[str]]:
    """The ResNet behind a prefix, by its own names; and its layer4 if the model has none."""
    model = _model_layout({(p[0], *p[2:]): leaf for p, leaf in leaves.items() if p[1] == _PART})
    names = {name.removeprefix(prefix): name for name in arrays if name.startswith(prefix)}
    spared = set()
    if not model.blocks[-1]:  # the model ends with layer3
        spared = {name for key, name in names.items() if key.startswith("layer4.")}
        names = {key: name for key, name in names.items() if name not in spared}
    _check_layout(_source_layout(names, arrays), model, source)
    return names, spared


def _of_authors(
    arrays: Mapping[str, np.ndarray],
    leaves: Mapping[tuple[str, ...], Any],
    code: authors.Layout,
    source: str,
) -> tuple[_Names, set[str], set[str]]:
    """What the whole model is made of; their idle arrays; and classifiers of other people."""
    prefix = authors.prefix_of(arrays)
    _, idle = _trunk(arrays, leaves, prefix + code.trunk, source)
    ours = {p: "/".join((*p[1:-1], _LEAVES.get((p[0], p[-1]), p[-1]))) for p in leaves}
    wanted = {
        path: tuple(prefix + theirs for theirs in code.names(name, ours.values()))
        for path, name in ours.items()
    }
    absent = [n for names in wanted.values() for n in names if n not in arrays]
    foreign = ["/".join(path) for path, names in wanted.items() if not names]
    wrong = [f"it lacks {_some(absent)}"] if absent else []
    wrong += [f"it knows nothing like {_some(foreign)}"] if foreign else []
    if wrong:
        raise ValueError(
            f"{source} is a checkpoint of the authors' code of {code.recipe} and does not fit the "
            f"model: {'; '.join(wrong)}; expected the model of the recipe {code.recipe} for the "
            "data set that it was trained on"
        )
    for path, (name, *_) in wanted.items():
        if path[1].startswith("attention_") and path[2:] == ("theta", "kernel"):
            theirs, inner = arrays[name].size // leaves[path].shape[0], leaves[path].shape[-1]
            if theirs != inner:
                raise ValueError(
                    f"{source}: {name} has {theirs} inner channels, the model's block has {inner}; "
                    f"add --config.method.non_local={'one' if theirs == 1 else 'half'}"
                )
    for name, x in arrays.items():
        own = name.removeprefix(prefix)
        if authors.ZEROS.fullmatch(own) and x.any():
            raise ValueError(f"{source}: {name} is not 0, and the model has no place for it")
        if re.fullmatch(code.idle, own) or authors.ZEROS.fullmatch(own):
            idle.add(name)
    idle = {name for name in idle if not name.endswith(_COUNTER)}
    classifiers = set()
    for path, (name, *_) in list(wanted.items()):
        people = arrays[name].shape[:1]
        if path[1].startswith("classifier") and people != leaves[path].shape[-1:]:
            classifiers.add(name)
            del wanted[path]
    return wanted, idle, classifiers


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


def _convert(
    arrays: Mapping[str, np.ndarray],
    names: Sequence[str],
    path: Sequence[str],
    leaf: Any,
    source: str,
) -> np.ndarray:
    """The arrays of the file with the layout, shape and dtype of a leaf that they make; a copy."""
    shape, parts = tuple(leaf.shape), []
    for name in names:
        x = arrays[name]
        if x.dtype.kind != "f":
            raise ValueError(f"{source}: {name} has the type {x.dtype}, expected floating point")
        if not np.isfinite(x).all():
            raise ValueError(f"{source}: {name} has values that are not finite")
        if path[-1] == "var" and (x < 0).any():
            raise ValueError(f"{source}: {name} has negative values, expected variances")
        if x.ndim == 4:
            x = x.transpose(2, 3, 1, 0)
        parts.append(x.T if x.ndim == 2 and path[-1] == "kernel" else x)
    if len({x.shape for x in parts}) > 1:
        y = parts[0]  # as the first alone it does not fit
    elif len(parts) == 1:
        y = parts[0]
    else:  # a branch each: side by side in a convolution, else stacked
        y = np.concatenate(parts, -1) if path[-1] == "kernel" else np.stack(parts)
    if y.shape != shape and [n for n in y.shape if n > 1] != [n for n in shape if n > 1]:
        found = list(arrays[names[0]].shape)
        each = f"{len(names)} of them make " if len(names) > 1 else ""
        expected = _in_torch(shape, len(found), path[-1]) if not each else list(shape)
        raise ValueError(
            f"{source}: {names[0]} is {found}, expected {each}{expected} for {'/'.join(path)}"
        )
    return np.array(y.reshape(shape), leaf.dtype, order="C")


def _in_torch(shape: tuple[int, ...], rank: int, leaf: str) -> list[int]:
    """The shape that torch has for one of ours, where its array has `rank` dimensions."""
    if len(shape) == 4:
        return [shape[i] for i in (3, 2, 0, 1)]
    if leaf == "kernel" and len(shape) == 2:
        return [*shape[::-1], *[1] * (rank - 2)]
    return list(shape)


def _some(names: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(name[:100] for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
