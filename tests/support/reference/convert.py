"""PyTorch names and layouts <-> the trees of the JAX models. NumPy only.

PyTorch                                        JAX
backbone.shared.stem.conv1.weight  [o,i,h,w]   params/backbone/stem/conv1/kernel [h,w,i,o]
backbone.shared.layer1.0.bn1.weight            params/backbone/layer1_0/bn1/scale
backbone.shared.layer2.0.downsample.0.weight   params/backbone/layer2_0/downsample_0/kernel
backbone.visible.layer1.0.conv1.weight         params/backbone/layer1_0_visible/conv1/kernel
backbone.specific.layer3.0.conv1.weight        params/backbone/layer3_0_specific/conv1/kernel
neck.running_var                               batch_stats/neck/var
classifier.weight                  [o,i]       params/classifier/kernel [i,o]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Flat = dict[str, np.ndarray]
STREAMS = ("visible", "infrared", "auxiliary", "specific")


def _path(name: str, ndim: int) -> str:
    """The JAX path ("params/...") of a PyTorch parameter or buffer."""
    *parts, leaf = name.split(".")
    stream = ""
    if "shared" in parts:
        parts.remove("shared")
    for s in STREAMS:
        # The stream of a trunk; a generator may be called "auxiliary" too.
        if s in parts and parts[parts.index(s) + 1].startswith(("stem", "layer")):
            parts.remove(s)
            stream = "_" + s
    modules: list[str] = []
    in_layer = False
    for part in parts:
        if part.isdigit():  # layer1.0 -> layer1_0, downsample.0 -> downsample_0
            modules[-1] += "_" + part
            if in_layer:
                modules[-1] += stream
            in_layer = False
        else:
            in_layer = part.startswith("layer")
            modules.append(part + stream if part == "stem" else part)
    if leaf in ("running_mean", "running_var"):
        return "/".join(["batch_stats", *modules, leaf.removeprefix("running_")])
    if leaf == "weight":
        leaf = "scale" if ndim == 1 else "kernel"
    return "/".join(["params", *modules, leaf])


def _to_jax_layout(x: np.ndarray) -> np.ndarray:
    return x.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(x.ndim, range(x.ndim)))


def _to_torch_layout(x: np.ndarray) -> np.ndarray:
    return x.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(x.ndim, range(x.ndim)))


def flat_from_torch(state: Mapping[str, np.ndarray]) -> Flat:
    """A state dict (or gradients by the same names) as {"params/...": array}."""
    return {_path(k, v.ndim): _to_jax_layout(v) for k, v in state.items()}


def torch_from_flat(flat: Flat, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with the names and shapes of `like` and the values of `flat`.

    Raises:
      ValueError: the two do not hold the same names and shapes.
    """
    paths = {k: _path(k, v.ndim) for k, v in like.items()}
    if set(paths.values()) != set(flat):
        raise ValueError(
            f"weights do not fit the model: only one side has "
            f"{sorted(set(paths.values()) ^ set(flat))}"
        )
    state = {k: _to_torch_layout(flat[path]) for k, path in paths.items()}
    for k, v in state.items():
        if v.shape != like[k].shape:
            raise ValueError(f"{paths[k]} is {v.shape}, expected {like[k].shape} for {k}")
    return state


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, x in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = x
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat: dict[str, Any] = {}
    for key, x in tree.items():
        if isinstance(x, Mapping):
            flat.update(flatten(x, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = x
    return flat
