"""A case that is compared, and its seeded arrays and weights. NumPy only.

A case is a name, the kind of thing it exercises and its options. Every array is rounded to
float32 so that both frameworks and both precisions start from the same numbers.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """`options` go to the module or loss under test, `shape` to the inputs."""

    name: str
    kind: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)


def rng(*names: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(n.encode()) for n in names])


def normal(name: str, field: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    return (scale * rng(name, field).standard_normal(shape)).astype(np.float32)


def fill(shapes: Mapping[str, tuple[int, ...]], seed: str) -> Arrays:
    """Weights {"params/...": array} by path: each leaf depends on its own path and the seed.

    Nothing is at its initial value: zero biases and unit scales would hide mistakes.
    """
    result = {}
    for path, shape in shapes.items():
        r = rng(seed, path)
        leaf = path.rsplit("/", 1)[-1]
        if leaf == "kernel":
            x = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif leaf.endswith("_kernel") or leaf.startswith("channel_"):  # a kernel for each branch
            x = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:-1]))
        elif leaf in ("prototypes", "positions"):
            x = r.standard_normal(shape) * np.sqrt(2 / shape[-1])
        elif leaf in ("scale", "var"):
            x = r.uniform(0.5, 1.5, shape)
        elif leaf == "layer_scale":
            x = r.uniform(0.2, 0.9, shape)  # within (0, 1]
        elif leaf.endswith("bias") or leaf == "mean":
            x = 0.2 * r.standard_normal(shape)
        elif leaf == "p":
            x = r.uniform(2.5, 3.5, shape)
        else:
            raise ValueError(
                f"no rule to fill {path}; expected kernel, ..._kernel, channel_..., scale, "
                "layer_scale, var, bias, ..._bias, mean, prototypes, positions or p"
            )
        result[path] = np.asarray(x, np.float32)
    return result


def labels(ids: int, instances: int) -> np.ndarray:
    """int32 [ids * instances], identity-major, identities neither sorted nor adjacent."""
    persons = rng("labels", str(ids)).permutation(2 * ids)[:ids]
    return np.repeat(persons, instances).astype(np.int32)


def features(name: str, ids: int, instances: int, modalities: int, width: int) -> np.ndarray:
    """float32 [B, M, D] in which identities, modalities and images all differ somewhat."""
    person = np.repeat(normal(name, "person", (ids, 1, width), 0.6), instances, 0)
    modality = normal(name, "modality", (1, modalities, width), 0.4)
    image = normal(name, "image", (ids * instances, modalities, width), 0.6)
    return person + modality + image


def direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The cotangent of an array output: gradients are those of sum(direction * output)."""
    return normal(name, "direction", shape)
