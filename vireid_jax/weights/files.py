"""Files of weights, whatever their format, as arrays by name. Nothing of a file is executed.

  safetensors   read by its library
  npz           numpy.savez; each array by its header and its bytes
  archive       torch.save since 1.6, a zip file: ROOT/data.pkl is the pickle, ROOT/data/KEY the
                elements of the storage KEY, ROOT/byteorder "little" or "big" (since torch 2.1)
  stream        torch.save before 1.6: pickles of the magic number, the version, the writer, the
                value and the keys of the storages; then for each an int64 count and the elements

The last two are of torch/serialization.py in PyTorch. How their pickles are read safely stands at
`_Unpickler` and `_scan`.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import pathlib
import pickle
import pickletools
import re
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import safetensors
from numpy.lib import format as npy

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
_BFLOAT16 = "bfloat16"  # NumPy has no such type: its bits are read as uint16
_SAFETENSORS = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": _BFLOAT16, "BOOL": "|b1"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1"},
}
_STORAGES = {
    **{"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": _BFLOAT16, "Bool": "|b1"},
    **{"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "|i1", "Byte": "|u1"},
}
# What the standard library's unpickler raises for what is no pickle of values.
_DAMAGE = (pickle.UnpicklingError, EOFError, TypeError, AttributeError, IndexError, OverflowError)
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# How a stream begins: a pickle of protocol 2 or later with a LONG1 of 10 bytes.
_STREAM = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a" + _MAGIC.to_bytes(10, "little"), re.S)
# Under which name training scripts keep the state dict beside an epoch, an optimizer, ...
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# The opcodes of such pickles.
_OPCODES = frozenset(
    "PROTO FRAME STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING "
    "SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES MARK TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT APPEND APPENDS SETITEM SETITEMS BINPUT "
    "LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID".split()
)

# Half precision doubles and shared storages repeat; files of weights do no more than this.
MAX_EXPANSION = 8
MAX_STEPS = 1_000_000  # of a pickle; a ResNet-50 takes 20,000
_MAX_HEADER = 100_000_000  # bytes, of safetensors
_MAX_DIMENSIONS = 32
_MAX_EXTENT = 2**40
_MAX_BITS = 128  # of an integer; the magic number has 77


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


def _short(value: object) -> str:
    """A value of the file, for a message: never long, never a nest of values."""
    if isinstance(value, str | bytes):
        return repr(value[:100]) + ("..." if len(value) > 100 else "")
    if type(value) in (bool, type(None), float) or (type(value) is int and abs(value) < 10**30):
        return repr(value)
    return f"a {type(value).__name__.strip('_')}"


def _array(
    content: Any,
    dtype: str,
    shape: tuple[int, ...],
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """A contiguous copy of the view that is described; half precision becomes float32.

    Args:
      content: the bytes.
      dtype: of NumPy, or bfloat16.
      shape: no larger than what `content` holds.
      offset: of the first element, in elements.
      strides: in elements; None for C order.
    """
    kind = _bits(dtype)
    if math.prod(shape):
        steps = None if strides is None else [s * kind.itemsize for s in strides]
        x = np.ndarray(shape, kind, content, offset * kind.itemsize, steps)
    else:
        x = np.empty(shape, kind)
    if dtype == _BFLOAT16:  # the upper half of a float32
        return (x.astype(np.uint32, order="C") << 16).view(np.float32)
    native = kind.newbyteorder("=")
    return x.astype(np.float32 if native == np.float16 else native, order="C")


def _bits(dtype: str) -> np.dtype:
    return np.dtype("<u2" if dtype == _BFLOAT16 else dtype)


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
    for name, part in parts:
        if part["dtype"] not in _SAFETENSORS:
            raise ValueError(
                f"{name} has the type {part['dtype']}, expected one of {', '.join(_SAFETENSORS)}"
            )
    return {n: _array(p["data"], _SAFETENSORS[p["dtype"]], tuple(p["shape"])) for n, p in parts}


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

    Args:
      entries: what the archive lists.
      size: bytes of the file.
      stored: whether entries must be uncompressed, as torch writes them; NumPy may deflate.
    """
    methods = (zipfile.ZIP_STORED,) if stored else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    names: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name in names:
            raise ValueError(f"the zip archive has two entries {_short(name)}")
        names.add(name)
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise ValueError(f"the zip archive has an entry {_short(name)}, a path out of it")
        if entry.compress_type not in methods:
            raise ValueError(
                f"entry {_short(name)} is compressed (method {entry.compress_type}), expected as "
                f"torch.save and numpy.savez write it (methods {methods})"
            )
    total = sum(entry.file_size for entry in entries)
    if total > (size if stored else MAX_EXPANSION * size + 2**20):
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
            f"an array begins with {_short(data)}, expected the header of numpy.save"
        ) from e
    if dtype.str[1:] not in _NUMBERS:
        raise ValueError(
            f"an array has the type {dtype.str!r}, expected one of {', '.join(_NUMBERS)}; nothing "
            "of it was executed"
        )
    content = memoryview(data)[file.tell() :]
    negative = any(n < 0 for n in shape)
    if negative or len(shape) > _MAX_DIMENSIONS or _bytes(shape, dtype.str) != len(content):
        raise ValueError(
            f"an array of shape ({', '.join(map(_short, shape[:10]))}) and type {dtype} has "
            f"{len(content)} bytes"
        )
    if columns_first:
        return _array(content, dtype.str, shape[::-1]).T.copy()
    return _array(content, dtype.str, shape)


# --- torch's pickles -------------------------------------------------------------------


class _Inert:
    """What a pickle may hold of ours: it describes, and takes no state from the file."""

    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError(
            f"the pickle sets the state of {_short(self)}, expected an OrderedDict or a "
            "Parameter; nothing of it was executed"
        )


@dataclasses.dataclass(frozen=True)
class _Storage(_Inert):
    """A run of `count` elements of type `dtype`, found in the file under `key`."""

    dtype: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor(_Inert):
    """A strided view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class _Parameter(_Tensor):
    """A tensor to which files may attach a state (requires_grad, ...), which is dropped."""

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        if type(state) is not tuple:
            super().__setstate__(state)


class _OrderedDict(dict, _Inert):
    """An OrderedDict of the file: a dict whose attributes are dropped."""

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        if type(state) is not dict:
            super().__setstate__(state)


@dataclasses.dataclass(frozen=True, eq=False)
class _Kind(_Inert):
    """The type of a storage by name; never called."""

    name: str
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Function(_Inert):
    """A function of the allow-list. A plain one has attributes, which a file could set."""

    call: Callable[[tuple], Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.call(arguments)


class _Unpickler(pickle.Unpickler):
    """Unpickles values and descriptions of tensors.

    All that a pickle can call is what `find_class` returns: the few functions below, which
    describe and compute nothing. No name of the file is looked up in a module.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")  # byte strings of Python 2
        self.storages: dict[str, _Storage] = {}
        self._copies = 0  # of pairs, by calls
        self._functions = {
            "collections.OrderedDict": _Function(self._ordered_dict),
            "torch._utils._rebuild_tensor": _Function(_tensor),  # before torch 0.4
            "torch._utils._rebuild_tensor_v2": _Function(_tensor),
            "torch._utils._rebuild_parameter": _Function(_parameter),
            "torch.nn.parameter.Parameter": _Function(_parameter),  # before torch 1.0
            "torch.Size": _Function(_size),
        }

    def find_class(self, module: str, name: str) -> _Function | _Kind:
        """Accepts a global of the allow-list as a name; it is never imported."""
        path = f"{module}.{name}"
        if path in self._functions:
            return self._functions[path]
        dtype = _STORAGES.get(name.removesuffix("Storage")) if name.endswith("Storage") else None
        if dtype is not None and module in ("torch", "torch.cuda"):
            return _Kind(path, dtype)
        raise ValueError(
            f"the file refers to {_short(path)}, which weights do not need; nothing of it was "
            "executed. Where you trust the file, keep its weights alone with PyTorch: "
            "torch.save(model.state_dict(), PATH)"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A reference to a storage: ("storage", type, key, location, count[, view])."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError(f"the pickle refers to {_short(pid)}, expected a storage")
        kind, key, count = pid[1], pid[2], pid[4]
        if len(pid) == 6 and pid[5] is not None:
            raise ValueError("a storage is a view of another one; save the file again with PyTorch")
        typed = isinstance(kind, _Kind) and type(key) is str and type(count) is int
        if not typed or count < 0:
            raise ValueError(
                f"a storage of type {_short(getattr(kind, 'name', kind))} under key {_short(key)} "
                f"with {_short(count)} elements, expected a type, a text and a size"
            )
        storage = _Storage(kind.dtype, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {_short(key)} is described twice, in two ways")
        return storage

    def _ordered_dict(self, arguments: tuple) -> _OrderedDict:
        """OrderedDict() or, from Python 2, OrderedDict([[key, value], ...])."""
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or type(pairs) is not list:
            raise ValueError("an OrderedDict is made of something other than a list of pairs")
        self._copies += len(pairs)
        if self._copies > MAX_STEPS:  # one list copied again and again would fill the memory
            raise ValueError(f"the pickle copies more than {MAX_STEPS} values: no file of weights")
        for pair in pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) is not str:
                raise ValueError(f"an OrderedDict has {_short(pair)} for a pair of key and value")
        return _OrderedDict(pairs)


def _tensor(arguments: tuple) -> _Tensor:
    """(storage, offset, shape, strides, ...): what follows says nothing of the values."""
    if len(arguments) not in (4, 6, 7) or not isinstance(arguments[0], _Storage):
        raise ValueError("a tensor is made of something other than a storage and its geometry")
    storage, offset, shape, strides = arguments[:4]
    numbers = [offset]
    for part in (shape, strides):
        if type(part) is not tuple or len(part) > _MAX_DIMENSIONS:
            raise ValueError(f"a tensor's shape or strides are {_short(part)}, expected a tuple")
        numbers += part
    if any(type(n) is not int or not 0 <= n < _MAX_EXTENT for n in numbers):
        raise ValueError(
            f"a tensor has the geometry {', '.join(map(_short, numbers))}, expected sizes from 0 up"
        )
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    tensor = _Tensor(storage, offset, shape, strides)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if tensor.size and last >= storage.count:
        raise ValueError(
            f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} reaches "
            f"beyond its storage {_short(storage.key)} of {storage.count} elements"
        )
    if tensor.size > storage.count:
        raise ValueError(
            f"a tensor of shape {list(shape)} repeats its storage {_short(storage.key)} of "
            f"{storage.count} elements (strides {list(strides)}), which weights do not"
        )
    return tensor


def _parameter(arguments: tuple) -> _Parameter:
    """(tensor[, requires_grad[, hooks]])."""
    if not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], _Tensor):
        raise ValueError("a parameter is made of something other than a tensor")
    tensor = arguments[0]
    return _Parameter(tensor.storage, tensor.offset, tensor.shape, tensor.strides)


def _size(arguments: tuple) -> tuple:
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise ValueError("a torch.Size is made of something other than a tuple")
    return arguments[0]


def _unpickle(data: bytes, start: int = 0) -> tuple[Any, dict[str, _Storage], int]:
    """Reads the pickle that begins at `start`; nothing of it is executed.

    Returns:
      The value: None, bool, int, float, str, bytes, list, tuple, dict or a description; the
      storages that it names, by key; and the position behind the pickle.

    Raises:
      ValueError: naming what the pickle holds that weights do not need, or what is damaged.
    """
    with warnings.catch_warnings():  # of backslashes in names, which are refused
        warnings.simplefilter("ignore", DeprecationWarning)
        end, refused = _scan(data, start)
    # A name before a refused opcode says more than that: reading stops there.
    reader = _Unpickler(data[start:end] + (b"." + data[end + 1 :] if refused else b""))
    try:
        value = reader.load()
    except _DAMAGE as e:
        reason = refused or (
            f"the pickle is damaged or no file of weights ({str(e)[:200]}); nothing of it was "
            "executed"
        )
        raise ValueError(reason) from e
    if refused:
        raise ValueError(refused)
    return value, reader.storages, end


def _scan(data: bytes, start: int) -> tuple[int, str]:
    """Walks over the opcodes of a pickle before it is read, and bounds what reading can cost.

    The lengths of texts must lie within the file, and opcodes and the parts of tuples count as
    steps. Tuples that share their parts are trees: as
    the key of a dict, 60 of them in a row would take 2**60 steps.

    Returns:
      The position behind the pickle, or of an opcode that no file of weights needs; and what is
      to be said of that opcode, else "".
    """
    stack: list[int] = []  # of each value, the steps that it takes to hash it
    marks: list[int] = []
    memo: dict[int, int] = {}
    steps = 0
    file = io.BytesIO(data)
    file.seek(start)
    try:
        for op, argument, position in pickletools.genops(file):
            at = position or 0
            if op.name not in _OPCODES:
                what = "" if argument is None else f" {_short(argument)}"
                return at, (
                    f"the pickle has the opcode {op.name}{what} at byte {at - start}, which no "
                    "file of weights needs; nothing of it was executed"
                )
            if op.name == "STOP":
                return at + 1, ""
            if type(argument) is int and argument.bit_length() > _MAX_BITS:
                raise ValueError(f"it has an integer of {argument.bit_length()} bits")
            cost = 1
            if op.name == "MARK":
                marks.append(len(stack))
            elif op.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                place = len(memo) if argument is None else argument
                if place >= MAX_STEPS:  # all before it are allocated
                    raise ValueError(f"it keeps a value {place}")
                memo[place] = stack[-1]
            elif op.name in ("BINGET", "LONG_BINGET"):
                if argument not in memo:
                    raise ValueError(f"it refers to value {argument}, which it has not")
                stack.append(cost := memo[argument])
            else:
                before, after = op.stack_before, op.stack_after
                keep = len(stack) - len(before)
                if pickletools.stackslice in before:
                    keep = marks.pop() - before.index(pickletools.markobject)
                if keep < 0:
                    raise IndexError
                taken = stack[keep:]
                del stack[keep:]
                if op.name in ("REDUCE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                    cost += sum(taken)
                elif taken and after:  # of a list, a dict or an object that stays
                    cost = taken[0]
                stack += [cost] * len(after)
            steps += cost
            if steps > MAX_STEPS:
                raise ValueError(f"it takes more than {MAX_STEPS} steps: no file of weights")
    except IndexError:
        raise ValueError("the pickle takes a value from an empty stack: it is damaged") from None
    except ValueError as e:
        raise ValueError(f"the pickle is damaged or truncated ({str(e)[:200]})") from e
    raise ValueError("the pickle has no end")


# --- torch's files ---------------------------------------------------------------------


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    _check_entries(entries, size, stored=True)
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
    value, storages, _ = _unpickle(archive.read(f"{root}/data.pkl"))
    for key, storage in storages.items():
        name, expected = f"{root}/data/{key}", _bytes((storage.count,), storage.dtype)
        if name not in sizes:
            raise ValueError(f"the zip archive lacks {_short(name)}, a storage of its tensors")
        if sizes[name] != expected:
            raise ValueError(
                f"{_short(name)} has {sizes[name]} bytes, expected {expected} for {storage.count} "
                f"elements of {storage.dtype}"
            )
    return _arrays(value, lambda s: archive.read(f"{root}/data/{s.key}"), size)


def _read_stream(data: bytes) -> dict[str, np.ndarray]:
    magic, _, at = _unpickle(data)
    version, _, at = _unpickle(data, at)
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"not a torch stream of version {_VERSION}")
    writer, _, at = _unpickle(data, at)
    if type(writer) is not dict or writer.get("little_endian") is not True:
        raise ValueError("the file was written by a big-endian machine; expected little-endian")
    value, storages, at = _unpickle(data, at)
    keys, _, at = _unpickle(data, at)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError(f"the list of storages is {_short(keys)}, expected a list of texts")
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
            raise ValueError(
                f"storage {_short(key)} has {count} elements in the file and {storage.count} in "
                "the pickle: the file is damaged"
            )
        start, at = at + 8, at + 8 + _bytes((count,), storage.dtype)
        if at > len(data):
            raise ValueError(
                f"the file ends within storage {_short(key)}: {len(data)} bytes, at least {at} "
                "expected; it is truncated, load it again"
            )
        contents[key] = memoryview(data)[start:at]
    return _arrays(value, lambda storage: contents[storage.key], len(data))


def _arrays(value: Any, content: Callable[[_Storage], Any], size: int) -> dict[str, np.ndarray]:
    """The tensors by name, out of the checkpoint of a training script if `value` is one."""
    for _ in range(len(_WRAPPERS)):
        inner = value if isinstance(value, dict) else {}
        wrapped = [inner[name] for name in _WRAPPERS if isinstance(inner.get(name), dict)]
        value = wrapped[0] if wrapped else value
    if not isinstance(value, dict):
        raise ValueError(
            f"the file holds {_short(value)}, expected a dict of tensors (model.state_dict())"
        )
    tensors = {k: v for k, v in value.items() if isinstance(v, _Tensor)}
    if not tensors or any(type(name) is not str for name in tensors):
        shown = ", ".join(_short(key) for key in list(value)[:10])
        raise ValueError(
            f"the file has no tensors by name, neither at its top nor under any of "
            f"{', '.join(_WRAPPERS)}; its top has {shown or 'nothing'}"
        )
    total = sum(max(_bytes(t.shape, t.storage.dtype), 4 * t.size) for t in tensors.values())
    if total > MAX_EXPANSION * size:
        raise ValueError(
            f"the tensors would take {total} bytes, the file has {size}: not a file of weights"
        )
    return {
        name: _array(content(t.storage), t.storage.dtype, t.shape, t.offset, t.strides)
        for name, t in tensors.items()
    }
