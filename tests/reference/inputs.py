"""The cases that are compared, and their seeded inputs and weights. NumPy only.

A case is a name, the kind of thing it exercises and its options. Every array is rounded to
float32 so that both frameworks and both precisions start from the same numbers.
"""

import dataclasses
import functools
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


def _normal(name: str, field: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
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
        elif leaf in ("scale", "var"):
            x = r.uniform(0.5, 1.5, shape)
        elif leaf in ("bias", "mean"):
            x = 0.2 * r.standard_normal(shape)
        elif leaf == "p":
            x = r.uniform(2.5, 3.5, shape)
        else:
            raise ValueError(
                f"no rule to fill {path}; expected kernel, scale, var, bias, mean or p"
            )
        result[path] = np.asarray(x, np.float32)
    return result


def labels(ids: int, instances: int) -> np.ndarray:
    """int32 [ids * instances], identity-major, identities neither sorted nor adjacent."""
    persons = rng("labels", str(ids)).permutation(2 * ids)[:ids]
    return np.repeat(persons, instances).astype(np.int32)


def features(name: str, ids: int, instances: int, modalities: int, width: int) -> np.ndarray:
    """float32 [B, M, D] in which identities, modalities and images all differ somewhat."""
    person = np.repeat(_normal(name, "person", (ids, 1, width), 0.6), instances, 0)
    modality = _normal(name, "modality", (1, modalities, width), 0.4)
    image = _normal(name, "image", (ids * instances, modalities, width), 0.6)
    return person + modality + image


def inputs(case: Case) -> Arrays:
    """The input arrays of a case."""
    s = dict(case.shape)
    n = case.name
    match case.kind:
        case "pairwise_distance":
            return {k: _normal(n, k, (s[k], s["width"])) for k in ("a", "b")}
        case "cross_entropy":
            r = rng(n, "labels")
            return {
                "logits": _normal(n, "logits", (s["rows"], s["classes"]), 3.0),
                "labels": r.integers(s["classes"], size=s["rows"]).astype(np.int32),
            }
        case "row_centers" | "tri_center" | "global_center" | "symmetric_center":
            ids, k, m, d = s["ids"], s["instances"], s["modalities"], s["width"]
            return {"features": features(n, ids, k, m, d), "labels": labels(ids, k)}
        case "smgm":
            shape = (s["rows"], *s["size"], 3)
            return {k: _normal(n, k, shape) for k in ("visible", "infrared")}
        case "gap" | "gem":
            shape = s["map"]
            # After a ReLU half of a map is exactly zero.
            return {"maps": np.maximum(_normal(n, "maps", shape), 0)}
        case "batch_norm":
            return {"x": _normal(n, "x", s["x"], 1.5) + 0.5}
        case "resnet":
            b, m = s["rows"], s["modalities"]
            return {f"image{k}": _normal(n, f"image{k}", (b, *s["size"], 3)) for k in range(m)}
        case "smcl" | "trajectory":
            ids, k, steps = s["ids"], s["instances"], s.get("steps", 1)
            shape = (steps, ids * k, *s["size"], 3)
            persons = [rng(n, "ids", str(t)).permutation(s["classes"])[:ids] for t in range(steps)]
            return {
                "visible": _normal(n, "visible", shape),
                "infrared": _normal(n, "infrared", shape),
                "label": np.stack([np.repeat(p, k) for p in persons]).astype(np.int32),
            }
    raise ValueError(f"no inputs for kind {case.kind!r}")


def direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The cotangent of an array output: gradients are those of sum(direction * output)."""
    return _normal(name, "direction", shape)


_FEATURES = {"ids": 4, "instances": 3, "modalities": 3, "width": 16}
_TWO = {**_FEATURES, "modalities": 2}
_NET = {"rows": 4, "modalities": 2, "size": (32, 16)}
_MODEL = {"ids": 4, "instances": 2, "size": (32, 16), "classes": 6}
_SMALL = {"num_classes": 6, "depth": 10, "width": 8, "smgm_width": 4}

_ALL = [
    Case("distance", "pairwise_distance", shape={"a": 7, "b": 5, "width": 16}),
    # A distance far smaller than the norms, where the expanded square would cancel.
    Case("distance_wide", "pairwise_distance", shape={"a": 3, "b": 4, "width": 512}),
    Case("softmax", "cross_entropy", shape={"rows": 12, "classes": 9}),
    Case("cehl", "cross_entropy", {"margin": 4.0}, {"rows": 12, "classes": 9}),
    Case("cehl_small", "cross_entropy", {"margin": 1.0}, {"rows": 5, "classes": 2}),
    Case(
        "cehl_literal",
        "cross_entropy",
        {"margin": 4.0, "form": "literal"},
        {"rows": 12, "classes": 9},
    ),
    Case("centers", "row_centers", shape=_FEATURES),
    Case("centers_unit", "row_centers", {"normalize": True}, _FEATURES),
    Case("tri", "tri_center", shape=_FEATURES),
    Case("tri_wide", "tri_center", {"margin": 3.0}, {**_FEATURES, "ids": 6}),
    Case("tri_pair", "tri_center", {"margin": 2.0}, {**_FEATURES, "instances": 1}),
    Case("tri_unit", "tri_center", {"normalize": True}, _FEATURES),
    Case("global", "global_center", shape=_FEATURES),
    Case("global_two", "global_center", shape=_TWO),
    Case("global_unit", "global_center", {"normalize": True}, _TWO),
    Case("symmetric", "symmetric_center", {"margin": 0.3}, _TWO),
    Case("symmetric_unit", "symmetric_center", {"margin": 0.5, "normalize": True}, _TWO),
    Case("smgm", "smgm", {"width": 16}, {"rows": 2, "size": (5, 3)}),
    Case("smgm_unshared", "smgm", {"width": 3, "shared": False}, {"rows": 2, "size": (5, 3)}),
    Case("smgm_unit", "smgm", {"width": 4, "input": "unit"}, {"rows": 2, "size": (5, 3)}),
    Case("gap", "gap", shape={"map": (3, 5, 3, 8)}),
    Case("gem", "gem", shape={"map": (3, 5, 3, 8)}),
    Case("bn_map", "batch_norm", shape={"x": (6, 5, 3, 8)}),
    Case("bn_rows", "batch_norm", {"use_bias": False}, {"x": (12, 8)}),
    Case("bn_kept", "batch_norm", {"running": (3, 2)}, {"x": (6, 5, 3, 8)}),
    Case("bn_eval", "batch_norm", {"train": False}, {"x": (6, 5, 3, 8)}),
    Case("r10", "resnet", {"depth": 10, "width": 8}, _NET),
    Case(
        "r10_odd_stride2",
        "resnet",
        {"depth": 10, "width": 8, "last_stride": 2, "kernels": "cpu"},
        {**_NET, "size": (45, 23)},
    ),
    Case(
        "r10_eval",
        "resnet",
        {"depth": 10, "width": 8, "specific": 2, "stems": (0, 1), "train": False},
        _NET,
    ),
    Case(
        "r18_stems",
        "resnet",
        {"depth": 18, "width": 4, "specific": 1, "stems": (0, 1)},
        {**_NET, "size": (33, 17)},
    ),
    Case(
        "r14_kept",
        "resnet",
        {"depth": 14, "width": 4, "running": (3, 2), "kernels": "cpu"},
        {**_NET, "modalities": 3},
    ),
    Case(
        "r50", "resnet", {"depth": 50, "width": 8}, {"rows": 3, "modalities": 1, "size": (48, 24)}
    ),
    Case("smcl", "smcl", _SMALL, _MODEL),
    Case("smcl_before", "smcl", {**_SMALL, "metric": False}, _MODEL),
    Case(
        "smcl_options",
        "smcl",
        {
            **_SMALL,
            "pooling": "gem",
            "smgm_shared": False,
            "smgm_input": "unit",
            "cehl_form": "literal",
            "normalize_centers": True,
            "bn_running": "vi",
            "center_margin": 0.5,
            "metric_weight": 0.7,
            "kernels": "xla",
            "specific": 1,
        },
        _MODEL,
    ),
    Case(
        "smcl_none_stems",
        "smcl",
        {
            **_SMALL,
            "auxiliary": "none",
            "none_metric": "vi_symmetric",
            "specific": 1,
            "id_margin": 1.0,
        },
        _MODEL,
    ),
    Case(
        "trajectory",
        "trajectory",
        {
            **_SMALL,
            "optimizer": {
                "name": "adam",
                "lr": 2**-10,  # with gamma exact in float32, which learning rates are kept in
                "weight_decay": 5e-4,
                "milestones": [8],
                "gamma": 0.25,
            },
            "switch": 5,
        },
        {**_MODEL, "steps": 10},
    ),
    Case(
        "trajectory_two_step",
        "trajectory",
        {
            **_SMALL,
            "optimizer": {"name": "sgd", "lr": 2**-7, "momentum": 0.9, "weight_decay": 5e-4},
            "switch": 2,
            "updates": "two_step",
        },
        {**_MODEL, "steps": 4},
    ),
]
CASES = {c.name: c for c in _ALL}


def cases(*kinds: str) -> list[str]:
    """The names of the cases of these kinds."""
    return [c.name for c in _ALL if c.kind in kinds]


@functools.cache
def case_inputs(name: str) -> Arrays:
    """The inputs of a case by name; treat them as constants."""
    return inputs(CASES[name])
