"""The weights that come with the package: small ResNets pretrained on rendered people.

`init.weights="rendered"` names them; `python -m vireid_jax.synthetic.pretrain` made them. A file is
named after its depth, its width and the start of its SHA-256, which `files.read` checks. Its
metadata has a card: how it was made, and on what.
"""

import json
import pathlib
import re
from typing import Any

import safetensors

FOLDER = pathlib.Path(__file__).parent / "rendered"
_NAME = re.compile(r"resnet(\d+)x(\d+)-[0-9a-f]{8}\.safetensors")


def paths() -> dict[tuple[int, int], pathlib.Path]:
    """(depth, width) of each network that there is -> its file."""
    found = {path: _NAME.fullmatch(path.name) for path in sorted(FOLDER.glob("*.safetensors"))}
    return {(int(m[1]), int(m[2])): path for path, m in found.items() if m}


def path_of(depth: int, width: int) -> pathlib.Path:
    """The file of a network; raises ValueError where there is none."""
    known = paths()
    if (depth, width) not in known:
        shipped = " and ".join(f"ResNet-{d} of width {w}" for d, w in known)
        raise ValueError(
            f"init.weights is 'rendered', which is there for {shipped}, and the recipe has a "
            f"ResNet-{depth} of width {width}; take such a network, a file of weights, or random "
            "weights with --config.init.weights=None"
        )
    return known[depth, width]


def card(path: pathlib.Path) -> dict[str, Any]:
    """What the file says of itself."""
    with safetensors.safe_open(path, "numpy") as file:
        return json.loads((file.metadata() or {})["card"])
