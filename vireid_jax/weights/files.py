"""Files of weights, whatever their format, as arrays by name."""

import hashlib
import math
import os
import pathlib
import re

import numpy as np

from vireid_jax.weights import safetensors_file, torch_file
from vireid_jax.weights.pickled import MAX_DIMENSIONS, short

# What else is found under such names, by its first bytes.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file (Keras); expected PyTorch weights"),
    (b"\x80", "a pickle that torch.save did not write; nothing of it was executed"),
    (b"\x93NUMPY", "a single array; expected a named one for each weight (numpy.savez)"),
)
_FORMATS = "expected torch.save, safetensors or numpy.savez"
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][fiubcO][0-9]{0,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), \} *\n\Z",
    re.DOTALL,
)
# torchvision and timm end the name of a file with the start of its SHA-256.
_HASHED = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8})\.[a-z]+$")


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file of weights; nothing that it says is executed.

    Formats, told apart by content: `torch.save` (a state dict, alone or under "state_dict",
    "model", ... of a checkpoint; both the archives of torch 1.6 and later and the streams
    before), safetensors, and `numpy.savez`.

    Args:
      path: the file. Where its name ends with the start of its SHA-256, as in
        resnet50-0676ba61.pth, that is checked.

    Returns:
      The arrays by their names in the file, in its order; float16 and bfloat16 as float32.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another format, damaged, or holds more than weights; the
        message names the file and what was found.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        if path.exists():
            raise ValueError(f"{path} is a folder, expected a .pth, .safetensors or .npz file")
        raise FileNotFoundError(
            f"there is no file of weights at {path}; weights are never downloaded, see "
            "docs/data.md for where to get them"
        )
    data = path.read_bytes()
    if what := _other(data):
        raise ValueError(f"{path}: the file is {what} ({_FORMATS})")
    if named := _HASHED.search(path.name):
        actual = hashlib.sha256(data).hexdigest()[:8]
        if actual != named[1]:
            raise ValueError(
                f"{path} is damaged or was changed: its SHA-256 begins with {actual}, its name "
                f"says {named[1]}; load it again, or rename it if the change is yours"
            )
    try:
        return _parse(data)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _parse(data: bytes) -> dict[str, np.ndarray]:
    if data.startswith(b"PK\x03\x04"):
        return _read_npz(data) if _is_npz(data) else torch_file.read_archive(data)
    if torch_file.is_stream(data):
        return torch_file.read_stream(data)
    if safetensors_file.is_safetensors(data):
        return safetensors_file.read(data)
    raise ValueError(f"the file is {len(data)} bytes of an unknown format ({_FORMATS})")


def _other(data: bytes) -> str | None:
    """What a file is, where it is known to hold no weights: no checksum says it so well."""
    if not data:
        return "empty"
    # First, since the size that safetensors begin with may look like any of the others.
    if safetensors_file.is_safetensors(data) or torch_file.is_stream(data):
        return None
    if data[:512].lstrip()[:1] == b"<":
        return "a web page: the download failed"
    if data[:1] == b"{":
        return "JSON, perhaps the answer of a server: the download failed"
    return next((text for start, text in _OTHERS if data.startswith(start)), None)


def _is_npz(data: bytes) -> bool:
    with torch_file.opened(data) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
    """Arrays of `numpy.savez`; pickled (object) arrays are refused."""
    with torch_file.opened(data) as archive:
        entries = archive.infolist()
        torch_file.check_entries(entries, len(data), stored=False)
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        return {n: _read_npy(archive.read(e)) for n, e in zip(names, entries, strict=True)}


def _read_npy(data: bytes) -> np.ndarray:
    """One array of numbers in NumPy's format 1.0; NumPy's own reader evaluates the header."""
    header = _NPY.match(data[: 10 + int.from_bytes(data[8:10], "little")])
    if header is None:
        raise ValueError(f"an array begins with {short(data)}, expected the header of numpy.save")
    code, columns_first, extents = (part.decode() for part in header.groups())
    if code[1:] not in _NUMBERS:
        raise ValueError(
            f"an array has the type {code!r}, expected one of {', '.join(_NUMBERS)}; nothing of it "
            "was executed"
        )
    dtype = np.dtype(code)
    shape = tuple(int(extent) for extent in extents.replace(",", " ").split())
    count, left = math.prod(shape), len(data) - header.end()
    if len(shape) > MAX_DIMENSIONS or count * dtype.itemsize != left:
        raise ValueError(f"an array of shape {list(shape)[:10]} and type {dtype} has {left} bytes")
    x = np.frombuffer(data, dtype, count, header.end())
    return torch_file.widen(x.reshape(shape, order="F" if columns_first == "True" else "C"))
