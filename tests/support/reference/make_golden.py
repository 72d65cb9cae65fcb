"""Runs the references and writes tests/support/golden.

python -m tests.support.reference.make_golden [NAME ...]
"""

import sys

import torch

from . import expected, store
from .inputs import CASES


def main(names: list[str]) -> None:
    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    for name in names or CASES:
        path = store.save(name, expected.compute(name))
        print(f"{path.name:28} {path.stat().st_size:7d} bytes")
    total = sum(path.stat().st_size for path in store.FOLDER.glob("*.npz"))
    print(f"{'all':28} {total:7d} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
