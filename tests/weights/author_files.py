"""Checkpoints of the authors' codes, tiny, drawn by NumPy from names and shapes. No torch.

`fixtures/authors.npz` has the names and shapes of `author_nets` as PyTorch lists them, and the
features that PyTorch computes with the arrays of `draw`.
"""

import json
import pathlib
import re
import zlib

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SIZE, WIDTH, CLASSES, PARTS = (32, 16), 4, 8, 3
PLACES = 2  # of the last map
BLOCKS = {"agw": 2, "deen": 1, "idkl": 1}  # of a stage: ResNet-18, ResNet-10
KINDS = ("agw", "agw_half", "deen", "deen_regdb", "pdm", "idkl")


def shapes(kind):
    """{name: shape} in the order of PyTorch's state_dict()."""
    with np.load(FIXTURES / "authors.npz") as file:
        found = json.loads(str(file["shapes"]))[kind]
    return {name: tuple(shape) for name, shape in found.items()}


def draw(shapes):
    """Arrays that depend on their names; statistics and factors are none of a fresh network."""
    arrays = {}
    for name, shape in shapes.items():
        r = np.random.default_rng(zlib.crc32(name.encode()))
        leaf = name.rsplit(".", 1)[1]
        if leaf == "num_batches_tracked":
            arrays[name] = np.array(7)
            continue
        if name in ("bottleneck.bias", "bottleneck_s.bias", "bn_neck.bias", "bn_neck_sp.bias"):
            x = np.zeros(shape)
        elif len(shape) > 1:
            x = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif leaf in ("weight", "running_var"):
            x = r.uniform(0.3, 1.0, shape)
        else:
            x = 0.2 * r.standard_normal(shape)
        if re.search(r"\.(theta|phi|W\.1)\.weight", name):
            x = 0.1 * x  # attention is cubic: maps would grow beyond all numbers
        arrays[name] = x.astype(np.float32)
    return arrays


def images():
    """float32 [2, 3, H, W, 3]: three images of each modality."""
    return np.random.default_rng(1).standard_normal((2, 3, *SIZE, 3)).astype(np.float32)


def features(kind):
    """{feature: [2, 3, D]} of `images`, as PyTorch computed them."""
    with np.load(FIXTURES / "authors.npz") as file:
        return {k.split("/")[1]: file[k] for k in file.files if k.split("/")[0] == kind}
