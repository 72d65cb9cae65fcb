"""Writes tests/weights/fixtures with PyTorch: `python -m tests.weights.make_fixtures`.

The files of one tiny ResNet in every format that torch and safetensors write, and its features
as PyTorch computes them, so that the tests need neither. The same of the authors' networks.
"""

import json
import pathlib
from collections import OrderedDict

import numpy as np
import safetensors.torch
import torch

from tests.support.reference.resnet import ResNet
from tests.weights import author_files, author_nets, trunk

FOLDER = pathlib.Path(__file__).parent / "fixtures"
DEPTH, WIDTH = 10, 2


def tensors(arrays):
    """A state dict as torchvision has it."""
    state = OrderedDict((k, torch.from_numpy(np.array(v))) for k, v in arrays.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # modules write it, as an attribute
    return state


def features(arrays, depth, width, images, *, specific=0, stem=0):
    """Pooled features float32 [N, D] of images [N, H, W, 3] by the PyTorch reference."""
    torch.set_num_threads(1)
    net = ResNet(depth=depth, width=width, specific=specific).eval()
    state = {}
    for key in net.state_dict():  # "visible.layer1.0.bn1.weight", "shared.stem.conv1.weight"
        state[key] = torch.from_numpy(arrays[key.split(".", 1)[1].removeprefix("stem.")])
    net.load_state_dict(state)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        return net([x], [stem]).mean((2, 3)).numpy()


def author_net(kind):
    """An author's network with the arrays of its tiny checkpoint, in evaluation mode."""
    make = {
        "agw": author_nets.AGW,
        "agw_half": lambda: author_nets.AGW(half=True),
        "deen": author_nets.DEEN,
        "deen_regdb": lambda: author_nets.DEEN(stages=3),
        "pdm": lambda: author_nets.PDM(author_files.PLACES),
        "idkl": author_nets.IDKL,
    }
    net = make[kind]().eval()
    shapes = {name: tuple(x.shape) for name, x in net.state_dict().items()}
    net.load_state_dict(tensors(author_files.draw(shapes)))
    return net


def author_features(net):
    """{feature: [2, 3, D]} of both modalities."""
    torch.set_num_threads(1)
    x = torch.from_numpy(author_files.images()).permute(0, 1, 4, 2, 3).contiguous()
    with torch.no_grad():
        found = [net(x[m], m) for m in range(2)]
    return {name: np.stack([f[name].numpy() for f in found]) for name in found[0]}


def write_authors():
    shapes, features = {}, {}
    for kind in author_files.KINDS:
        net = author_net(kind)
        shapes[kind] = {name: tuple(x.shape) for name, x in net.state_dict().items()}
        features |= {f"{kind}/{name}": x for name, x in author_features(net).items()}
    np.savez_compressed(FOLDER / "authors.npz", shapes=json.dumps(shapes), **features)


def main():
    write_authors()
    FOLDER.mkdir(exist_ok=True)
    arrays = trunk.draw(DEPTH, WIDTH)
    state = tensors(arrays)
    torch.save(state, FOLDER / "archive.pth")
    torch.save(state, FOLDER / "stream.pth", _use_new_zipfile_serialization=False)
    parameters = {f"module.{k}": torch.nn.Parameter(v, v.is_floating_point())
                  for k, v in state.items() if v.is_floating_point()}  # fmt: skip
    momentum = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    checkpoint = {"epoch": 3, "best": torch.tensor(0.5), "arch": "resnet10",
                  "optimizer": momentum, "state_dict": parameters}  # fmt: skip
    torch.save(checkpoint, FOLDER / "checkpoint.pth", pickle_protocol=4)
    safetensors.torch.save_file(dict(state), FOLDER / "plain.safetensors")
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    safetensors.torch.save_file(half, FOLDER / "bfloat16.safetensors")
    torch.save(half, FOLDER / "bfloat16.pth")
    np.savez_compressed(
        FOLDER / "features.npz", features=features(arrays, DEPTH, WIDTH, trunk.images())
    )


if __name__ == "__main__":
    main()
