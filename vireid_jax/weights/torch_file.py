"""Arrays of the files that `torch.save` writes: zip archives, and the streams before torch 1.6.

  archive   ROOT/data.pkl     the pickle; a tensor refers to a storage by its key
            ROOT/data/KEY     the elements of a storage
            ROOT/byteorder    "little" or "big", since torch 2.1
  stream    four pickles (magic number, version, description of the writer, the value), a fifth
            with the keys of the storages, then for each an int64 count and the elements

Formats: torch/serialization.py of PyTorch.
"""

import contextlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vireid_jax.weights import pickled
from vireid_jax.weights.pickled import Storage, Tensor, short

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
# How this magic number begins a stream: a pickle of protocol 2 or later with a LONG1 of 10 bytes.
STREAM_START = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a" + MAGIC.to_bytes(10, "little"))
# Under which name training scripts keep the state dict beside an epoch, an optimizer, ...
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# Half precision doubles and shared storages repeat; files of weights do no more than that.
MAX_EXPANSION = 8


def is_stream(data: bytes) -> bool:
    """Whether a file is a stream of torch before 1.6."""
    return STREAM_START.match(data[:64]) is not None


def read_stream(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a stream, by name.

    Raises:
      ValueError: for what is not one, is damaged, or holds more than weights.
    """
    file = io.BytesIO(data)
    if pickled.load(file)[0] != MAGIC or pickled.load(file)[0] != VERSION:
        raise ValueError(f"not a torch stream of version {VERSION}")
    writer = pickled.load(file)[0]
    if type(writer) is not dict or writer.get("little_endian") is not True:
        raise ValueError("the file was written by a big-endian machine; expected little-endian")
    value, storages = pickled.load(file)
    keys = pickled.load(file)[0]
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError(f"the list of storages is {short(keys)}, expected a list of texts")
    if len(keys) != len(set(keys)) or set(keys) != set(storages):
        raise ValueError(
            f"the file lists {len(keys)} storages ({len(set(keys))} different), its tensors use "
            f"{len(storages)}: it is damaged"
        )
    position = file.tell()
    where: dict[str, int] = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        position += 8
        if count != storage.count:
            raise ValueError(
                f"storage {short(key)} has {count} elements in the file and {storage.count} in the "
                "pickle: the file is damaged"
            )
        where[key] = position
        position += count * _item_size(storage)
        if position > len(data):
            raise ValueError(
                f"the file ends within storage {short(key)}: {len(data)} bytes, at least "
                f"{position} expected; it is truncated, load it again"
            )

    def content(storage: Storage) -> memoryview:
        start = where[storage.key]
        return memoryview(data)[start : start + storage.count * _item_size(storage)]

    return _arrays(_state_dict(value), content, len(data))


def read_archive(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a zip archive, by name.

    Raises:
      ValueError: for what is not one, is damaged, or holds more than weights.
    """
    with opened(data) as archive:
        return _read_archive(archive, len(data))


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[zipfile.ZipFile]:
    """A zip archive in memory, whose errors are ValueErrors."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OverflowError, RuntimeError) as e:
        reason = str(e)[:200]  # zipfile quotes the file at any length
        raise ValueError(f"the zip archive is damaged or encrypted ({reason})") from e


def check_entries(entries: list[zipfile.ZipInfo], size: int, *, stored: bool) -> None:
    """Refuses archives that are made to harm: bombs, doubled names, names out of the archive.

    Args:
      entries: what the archive lists.
      size: bytes of the file.
      stored: whether entries must be uncompressed, as those of torch; those of NumPy may be
        deflated.

    Raises:
      ValueError: naming the entry.
    """
    methods = (zipfile.ZIP_STORED,) if stored else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    names: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name in names:
            raise ValueError(f"the zip archive has two entries {short(name)}")
        names.add(name)
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise ValueError(f"the zip archive has an entry {short(name)}, a path out of it")
        if entry.compress_type not in methods:
            raise ValueError(
                f"entry {short(name)} is compressed (method {entry.compress_type}), expected as "
                f"torch.save and numpy.savez write it (methods {methods})"
            )
    total = sum(entry.file_size for entry in entries)
    limit = size if stored else MAX_EXPANSION * size + 2**20
    if total > limit:
        raise ValueError(
            f"the zip archive of {size} bytes claims to hold {total}: it is damaged or a zip bomb"
        )


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    check_entries(entries, size, stored=True)
    sizes = {entry.filename: entry.file_size for entry in entries}
    roots = [name.split("/")[0] for name in sizes if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError(
            f"the zip archive has {len(roots)} files */data.pkl, expected 1 (torch.save) or only "
            "*.npy (numpy.savez)"
        )
    root = roots[0]
    if f"{root}/constants.pkl" in sizes:
        raise ValueError(
            "this is a TorchScript program, not a file of weights; save the weights alone with "
            "PyTorch: torch.save(torch.jit.load(FILE).state_dict(), PATH)"
        )
    if f"{root}/byteorder" in sizes and archive.read(f"{root}/byteorder") != b"little":
        raise ValueError("the file was written by a big-endian machine; expected little-endian")
    value, storages = pickled.load(io.BytesIO(archive.read(f"{root}/data.pkl")))
    for key, storage in storages.items():
        name, expected = f"{root}/data/{key}", storage.count * _item_size(storage)
        if name not in sizes:
            raise ValueError(f"the zip archive lacks {short(name)}, a storage of its tensors")
        if sizes[name] != expected:
            raise ValueError(
                f"{short(name)} has {sizes[name]} bytes, expected {expected} for {storage.count} "
                f"elements of {storage.dtype}"
            )
    return _arrays(_state_dict(value), lambda s: archive.read(f"{root}/data/{s.key}"), size)


def _item_size(storage: Storage) -> int:
    return 2 if storage.dtype == pickled.BFLOAT16 else np.dtype(storage.dtype).itemsize


def _state_dict(value: Any) -> dict[str, Tensor]:
    """The tensors by name, out of the checkpoint of a training script if it is one."""
    for _ in range(len(WRAPPERS)):
        inner = value if isinstance(value, dict) else {}
        wrapped = [inner[name] for name in WRAPPERS if isinstance(inner.get(name), dict)]
        if not wrapped:
            break
        value = wrapped[0]
    if not isinstance(value, dict):
        raise ValueError(
            f"the file holds {short(value)}, expected a dict of tensors (model.state_dict())"
        )
    tensors = {k: v for k, v in value.items() if isinstance(v, Tensor)}
    if not tensors or any(type(name) is not str for name in tensors):
        shown = ", ".join(short(key) for key in list(value)[:10])
        raise ValueError(
            f"the file has no tensors by name, neither at its top nor under any of "
            f"{', '.join(WRAPPERS)}; its top has {shown or 'nothing'}"
        )
    return tensors


def _arrays(
    tensors: Mapping[str, Tensor], content: Callable[[Storage], Any], size: int
) -> dict[str, np.ndarray]:
    total = sum(t.size * max(_item_size(t.storage), 4) for t in tensors.values())
    if total > MAX_EXPANSION * size:
        raise ValueError(
            f"the tensors would take {total} bytes, the file has {size}: not a file of weights"
        )
    return {name: _array(tensor, content(tensor.storage)) for name, tensor in tensors.items()}


def _array(tensor: Tensor, content: Any) -> np.ndarray:
    """A contiguous copy of the view that `tensor` is; half precision becomes float32."""
    half = tensor.storage.dtype == pickled.BFLOAT16
    dtype = np.dtype("<u2" if half else tensor.storage.dtype)
    if not tensor.size:
        x = np.empty(tensor.shape, dtype)
    else:
        strides = [s * dtype.itemsize for s in tensor.strides]
        offset = tensor.offset * dtype.itemsize
        x = np.ndarray(tensor.shape, dtype, content, offset, strides)
    return widen_bfloat16(x) if half else widen(x)


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 -> float32: bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32, order="C") << 16).view(np.float32)


def widen(x: np.ndarray) -> np.ndarray:
    """A contiguous copy in the machine's byte order; float16 becomes float32."""
    return x.astype(np.float32 if x.dtype == np.float16 else x.dtype.newbyteorder("="), order="C")
