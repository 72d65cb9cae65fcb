"""Files of weights, whatever their format, as arrays by name. Nothing of a file is executed.

  safetensors   read by its library
  npz           numpy.savez; each array by its header and its bytes
  archive       torch.save since 1.6, a zip file: ROOT/data.pkl is the pickle, ROOT/data/KEY the
                elements of the storage KEY, ROOT/byteorder "little" or "big" (since torch 2.1)
  stream        torch.save before 1.6: pickles of the magic number, the version, the writer, the
                value and the keys of the storages; then for each an int64 count and the elements

The last two follow torch/serialization.py; pickles.py reads their pickles.
"""

import contextlib
import hashlib
import io
import math
import os
import pathlib
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import safetensors
from numpy.lib import format as npy

from vireid_jax.runtime.files import read_regular
from vireid_jax.weights.pickles import BFLOAT16, MAX_DIMENSIONS, Storage, Tensor, short, unpickle

_FORMATS = "expected torch.save, safetensors or numpy.savez"
# What else is found under such names, by its first bytes.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file (Keras); expected PyTorch weights"),
    (b"\x80", "a pickle that torch.save did not write; nothing of it was executed"),
    (b"\x93NUMPY", "a single array; expected a named one for each weight (numpy.savez)"),
)
# torchvision and timm end the name of a file with the start of its SHA-256.
_HASHED = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8})\.[a-z]+$")
# What a text that is no literal makes NumPy raise, beside ValueError.
_NO_LITERAL = (SyntaxError, RecursionError, MemoryError, tokenize.TokenError)
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_SAFETENSORS = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "BOOL": "|b1"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1"},
}
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# How a stream begins: a pickle of protocol 2 or later with a LONG1 of 10 bytes.
_STREAM = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a" + _MAGIC.to_bytes(10, "little"), re.S)
# Under which name training scripts keep the state dict beside an epoch, an optimizer, ...
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# Half precision doubles and shared storages repeat; files of weights do no more than this.
MAX_EXPANSION = 8
MAX_BYTES = 4 * 2**30  # of a file, and of what a zip archive unpacks to
_MAX_HEADER = 100_000_000  # bytes, of safetensors


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file of weights; nothing that it says is executed.

    The format is recognized by content: `torch.save` (a state dict, alone or under "state_dict",
    "model", ... of a checkpoint), safetensors, or `numpy.savez`.

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
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"there is no file of weights at {path}; weights are never downloaded, see "
            "docs/data.md for where to get them"
        ) from e
    except ValueError as e:
        raise ValueError(f"{path}: {e}; expected a .pth, .safetensors or .npz file") from e
    if what := _other(data):
        raise ValueError(f"{path}: the file is {what} ({_FORMATS})")
    named, actual = _HASHED.search(path.name), hashlib.sha256(data).hexdigest()[:8]
    if named and actual != named[1]:
        raise ValueError(
            f"{path} is damaged or was changed: its SHA-256 begins with {actual}, its name says "
            f"{named[1]}; load it again, or rename it if the change is yours"
        )
    try:
        return _parse(data)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _parse(data: bytes) -> dict[str, np.ndarray]:
    if data.startswith(b"PK\x03\x04"):
        with _opened(data) as archive:
            if all(name.endswith(".npy") for name in archive.namelist()):
                return _read_npz(archive, len(data))
            return _read_archive(archive, len(data))
    if _STREAM.match(data):
        return _read_stream(data)
    if _is_safetensors(data):
        return _read_safetensors(data)
    raise ValueError(f"the file is {len(data)} bytes of an unknown format ({_FORMATS})")


def _other(data: bytes) -> str | None:
    """What a file is, where it is known to hold no weights: no checksum says it so well."""
    if not data:
        return "empty"
    # First, since the size that safetensors begin with may look like any of the others.
    if _is_safetensors(data) or _STREAM.match(data):
        return None
    if data[:512].lstrip()[:1] == b"<":
        return "a web page: the download failed"
    if data[:1] == b"{":
        return "JSON, perhaps the answer of a server: the download failed"
    return next((text for start, text in _OTHERS if data.startswith(start)), None)


def _array(
    content: Any,
    dtype: str,
    shape: tuple[int, ...],
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """A contiguous copy of a view of the bytes `content`; half precision becomes float32.

    Offset and strides are in elements; strides are None for C order.
    """
    kind = _bits(dtype)
    if math.prod(shape):
        steps = None if strides is None else [s * kind.itemsize for s in strides]
        x = np.ndarray(shape, kind, content, offset * kind.itemsize, steps)
    else:
        x = np.empty(shape, kind)
    if dtype == BFLOAT16:  # the upper half of a float32
        return (x.astype(np.uint32, order="C") << 16).view(np.float32)
    native = kind.newbyteorder("=")
    return x.astype(np.float32 if native == np.float16 else native, order="C")


def _bits(dtype: str) -> np.dtype:
    return np.dtype("<u2" if dtype == BFLOAT16 else dtype)


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * _bits(dtype).itemsize


# --- safetensors ------------------------------------------------------------------------


def _is_safetensors(data: bytes) -> bool:
    """Whether a file begins as one: the size of the header, then the header, a JSON object."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= _MAX_HEADER


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    try:
        parts = safetensors.deserialize(data)
    except safetensors.SafetensorError as e:
        raise ValueError(f"the safetensors file is damaged ({e}); load it again") from e
    arrays = {}
    for name, part in parts:
        if (dtype := _SAFETENSORS.get(part["dtype"])) is None:
            known = ", ".join(_SAFETENSORS)
            raise ValueError(f"{name} has the type {part['dtype']}, expected one of {known}")
        arrays[name] = _array(part["data"], dtype, tuple(part["shape"]))
    return arrays


# --- Zip archives: NumPy's and torch's --------------------------------------------------


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[zipfile.ZipFile]:
    """A zip archive in memory, whose errors are ValueErrors."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OverflowError, RuntimeError) as e:
        reason = str(e)[:200]  # zipfile quotes the file at any length
        raise ValueError(f"the zip archive is damaged or encrypted ({reason})") from e


def _check_entries(entries: list[zipfile.ZipInfo], size: int, *, stored: bool) -> None:
    """Refuses archives that are made to harm: bombs, doubled names, names out of the archive.

    `size` is of the file; `stored` entries are uncompressed, as torch writes them.
    """
    methods = (zipfile.ZIP_STORED,) if stored else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    names: set[str] = set()
    for entry in entries:
        name, method = entry.filename, entry.compress_type
        shown = f"entry {short(name)}"
        if name in names:
            raise ValueError(f"the zip archive has two entries {short(name)}")
        names.add(name)
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise ValueError(f"the zip archive has an {shown}, a path out of it")
        if method not in methods:
            raise ValueError(
                f"{shown} is compressed (method {method}), expected as torch.save and numpy.savez "
                f"write it (methods {methods})"
            )
    total = sum(entry.file_size for entry in entries)
    if total > min(size if stored else MAX_EXPANSION * size + 2**20, MAX_BYTES):
        raise ValueError(
            f"the zip archive of {size} bytes claims to hold {total}: it is damaged or a zip bomb"
        )


def _read_npz(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    _check_entries(entries, size, stored=False)
    return {e.filename.removesuffix(".npy"): _read_npy(archive.read(e)) for e in entries}


def _read_npy(data: bytes) -> np.ndarray:
    """One array of numbers; `numpy.load` would allocate whatever size the header claims."""
    file = io.BytesIO(data)
    try:
        if npy.read_magic(file) != (1, 0):
            raise ValueError("it has another version")
        shape, columns_first, dtype = npy.read_array_header_1_0(file)  # it evaluates literals alone
    except (*_NO_LITERAL, ValueError, TypeError) as e:
        raise ValueError(
            f"an array begins with {short(data)}, expected the header of numpy.save"
        ) from e
    if dtype.str[1:] not in _NUMBERS:
        raise ValueError(
            f"an array has the type {dtype.str!r}, expected one of {', '.join(_NUMBERS)}; nothing "
            "of it was executed"
        )
    content = memoryview(data)[file.tell() :]
    wrong = any(n < 0 for n in shape) or len(shape) > MAX_DIMENSIONS
    if wrong or _bytes(shape, dtype.str) != len(content):
        raise ValueError(
            f"an array of shape ({', '.join(map(short, shape[:10]))}) and type {dtype} has "
            f"{len(content)} bytes"
        )
    if columns_first:
        return _array(content, dtype.str, shape[::-1]).T.copy()
    return _array(content, dtype.str, shape)


# --- torch's files ---------------------------------------------------------------------


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    _check_entries(entries, size, stored=True)
    sizes = {entry.filename: entry.file_size for entry in entries}
    roots = [name.split("/")[0] for name in sizes if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        found = f"the zip archive has {len(roots)} files */data.pkl"
        raise ValueError(f"{found}, expected 1 (torch.save) or only *.npy (numpy.savez)")
    root = roots[0]
    if f"{root}/constants.pkl" in sizes:
        raise ValueError(
            "this is a TorchScript program, not a file of weights; save the weights alone with "
            "PyTorch: torch.save(torch.jit.load(FILE).state_dict(), PATH)"
        )
    if f"{root}/byteorder" in sizes and archive.read(f"{root}/byteorder") != b"little":
        raise ValueError("the file was written by a big-endian machine; expected little-endian")
    value, storages, _ = unpickle(archive.read(f"{root}/data.pkl"))
    for key, storage in storages.items():
        name, expected = f"{root}/data/{key}", _bytes((storage.count,), storage.dtype)
        if name not in sizes:
            raise ValueError(f"the zip archive lacks {short(name)}, a storage of its tensors")
        if sizes[name] != expected:
            raise ValueError(
                f"{short(name)} has {sizes[name]} bytes, expected {expected} for {storage.count} "
                f"elements of {storage.dtype}"
            )
    return _arrays(value, lambda s: archive.read(f"{root}/data/{s.key}"), size)


def _read_stream(data: bytes) -> dict[str, np.ndarray]:
    magic, _, at = unpickle(data)
    version, _, at = unpickle(data, at)
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"not a torch stream of version {_VERSION}")
    writer, _, at = unpickle(data, at)
    if type(writer) is not dict or writer.get("little_endian") is not True:
        raise ValueError("the file was written by a big-endian machine; expected little-endian")
    value, storages, at = unpickle(data, at)
    keys, _, at = unpickle(data, at)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError(f"the list of storages is {short(keys)}, expected a list of texts")
    if len(keys) != len(set(keys)) or set(keys) != set(storages):
        raise ValueError(
            f"the file lists {len(keys)} storages ({len(set(keys))} different), its tensors use "
            f"{len(storages)}: it is damaged"
        )
    contents: dict[str, memoryview] = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(data[at : at + 8], "little", signed=True)
        if count != storage.count:
            both = f"{count} elements in the file and {storage.count} in the pickle"
            raise ValueError(f"storage {short(key)} has {both}: the file is damaged")
        start, at = at + 8, at + 8 + _bytes((count,), storage.dtype)
        if at > len(data):
            sizes = f"{len(data)} bytes, at least {at} expected"
            raise ValueError(
                f"the file ends within storage {short(key)}: {sizes}; it is truncated, load it "
                "again"
            )
        contents[key] = memoryview(data)[start:at]
    return _arrays(value, lambda storage: contents[storage.key], len(data))


def _arrays(value: Any, content: Callable[[Storage], Any], size: int) -> dict[str, np.ndarray]:
    """The tensors by name, out of the checkpoint of a training script if `value` is one."""
    for _ in range(len(_WRAPPERS)):
        inner = value if isinstance(value, dict) else {}
        wrapped = [inner[name] for name in _WRAPPERS if isinstance(inner.get(name), dict)]
        value = wrapped[0] if wrapped else value
    if not isinstance(value, dict):
        raise ValueError(
            f"the file holds {short(value)}, expected a dict of tensors (model.state_dict())"
        )
    tensors = {k: v for k, v in value.items() if isinstance(v, Tensor)}
    if not tensors or any(type(name) is not str for name in tensors):
        shown = ", ".join(short(key) for key in list(value)[:10])
        raise ValueError(
            f"the file has no tensors by name, neither at its top nor under any of "
            f"{', '.join(_WRAPPERS)}; its top has {shown or 'nothing'}"
        )
    total = sum(
        max(_bytes(t.shape, t.storage.dtype), 4 * math.prod(t.shape)) for t in tensors.values()
    )
    if total > MAX_EXPANSION * size:
        raise ValueError(
            f"the tensors would take {total} bytes, the file has {size}: not a file of weights"
        )
    return {
        name: _array(content(t.storage), t.storage.dtype, t.shape, t.offset, t.strides)
        for name, t in tensors.items()
    }
