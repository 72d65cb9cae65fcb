"""Pickles of torch's files, read so that nothing of them is executed.

`scan` walks over the opcodes first and bounds what reading can cost; `Unpickler` then builds values
and descriptions of tensors. Each alone keeps a file from running anything.
"""

import dataclasses
import io
import itertools
import math
import pickle
import pickletools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

BFLOAT16 = "bfloat16"  # NumPy has no such type: its bits are read as uint16
_STORAGES = {
    **{"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": BFLOAT16, "Bool": "|b1"},
    **{"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "|i1", "Byte": "|u1"},
}
# What the standard library's unpickler raises for what is no pickle of values.
_DAMAGE = (pickle.UnpicklingError, EOFError, TypeError, AttributeError, IndexError, OverflowError)
# The opcodes of files of weights.
_OPCODES = frozenset(
    "PROTO FRAME STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING "
    "SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES MARK TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT APPEND APPENDS SETITEM SETITEMS BINPUT "
    "LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID".split()
)
# What scores beside the weights are made of; none of it is called.
_OF_NUMPY = (
    *(f"numpy.{c}.multiarray.{f}" for c in ("core", "_core") for f in ("_reconstruct", "scalar")),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode"),
)
MAX_STEPS = 200_000  # of a pickle; a ResNet-50 takes 20,000, a step about 10 us
MAX_DIMENSIONS = 32
_MAX_EXTENT = 2**40
_MAX_BITS = 128  # of an integer; the magic number has 77


def short(value: object) -> str:
    """A value of the file, for a message: never long, never a nest of values."""
    if isinstance(value, str | bytes):
        return repr(value[:100]) + ("..." if len(value) > 100 else "")
    if type(value) in (bool, type(None), float) or (type(value) is int and abs(value) < 10**30):
        return repr(value)
    return f"a {type(value).__name__.strip('_')}"


class _Inert:
    """What a pickle may hold of ours: it describes, and takes no state from the file."""

    dropped: ClassVar[type | None] = None  # the type of a state that files may set, for nothing

    def __setstate__(self, state: Any) -> None:
        if type(state) is not self.dropped:
            raise ValueError(
                f"the pickle sets the state of {short(self)}, expected an OrderedDict or a "
                "Parameter; nothing of it was executed"
            )


@dataclasses.dataclass(frozen=True)
class Storage(_Inert):
    """A run of `count` elements of type `dtype`, found in the file under `key`."""

    dtype: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor(_Inert):
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Parameter(Tensor):
    """A tensor to which files may attach a state (requires_grad, ...)."""

    dropped = tuple


class _Left(_Inert):
    """A number or an array of NumPy beside the weights, such as a rank-1: nothing of it is kept."""

    dropped = tuple


class OrderedDict(dict, _Inert):
    """An OrderedDict of the file: a dict without its attributes."""

    dropped = dict


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


class Unpickler(pickle.Unpickler):
    """Unpickles values and descriptions of tensors.

    All that a pickle can call is what `find_class` returns: a few functions, which describe and
    compute nothing. No name of the file is looked up in a module.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")  # byte strings of Python 2
        self.storages: dict[str, Storage] = {}
        self._copies = 0  # of pairs, by calls
        self._known: dict[str, _Function | _Kind] = {
            "collections.OrderedDict": _Function(self._ordered_dict),
            "torch._utils._rebuild_tensor": _Function(_tensor),  # before torch 0.4
            "torch._utils._rebuild_tensor_v2": _Function(_tensor),
            "torch._utils._rebuild_parameter": _Function(_parameter),
            "torch.nn.parameter.Parameter": _Function(_parameter),  # before torch 1.0
            "torch.Size": _Function(_size),
        }
        for path in _OF_NUMPY:
            self._known[path] = _Function(lambda arguments: _Left())
        for module, (name, dtype) in itertools.product(("torch", "torch.cuda"), _STORAGES.items()):
            path = f"{module}.{name}Storage"
            self._known[path] = _Kind(path, dtype)

    def find_class(self, module: str, name: str) -> _Function | _Kind:
        """Accepts a global of the allow-list as a name; it is never imported."""
        path = f"{module}.{name}"
        if path in self._known:
            return self._known[path]
        raise ValueError(
            f"the file refers to {short(path)}, which weights do not need; nothing of it was "
            "executed. Where you trust the file, keep its weights alone with PyTorch: "
            "torch.save(model.state_dict(), PATH)"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """A reference to a storage: ("storage", type, key, location, count[, view])."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError(f"the pickle refers to {short(pid)}, expected a storage")
        _, kind, key, _, count, *view = pid
        if any(v is not None for v in view):
            raise ValueError("a storage is a view of another one; save the file again with PyTorch")
        typed = isinstance(kind, _Kind) and type(key) is str and type(count) is int
        if not typed or count < 0:
            raise ValueError(
                f"a storage of type {short(getattr(kind, 'name', kind))} under key {short(key)} "
                f"with {short(count)} elements, expected a type, a text and a size"
            )
        storage = Storage(kind.dtype, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {short(key)} is described twice, in two ways")
        return storage

    def _ordered_dict(self, arguments: tuple) -> OrderedDict:
        """OrderedDict() or, from Python 2, OrderedDict([[key, value], ...])."""
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or type(pairs) is not list:
            raise ValueError("an OrderedDict is made of something other than a list of pairs")
        self._copies += len(pairs)
        if self._copies > MAX_STEPS:  # one list copied again and again would fill the memory
            raise ValueError(f"the pickle copies more than {MAX_STEPS} values: no file of weights")
        for pair in pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) is not str:
                raise ValueError(f"an OrderedDict has {short(pair)} for a pair of key and value")
        return OrderedDict(pairs)


def _tensor(arguments: tuple) -> Tensor:
    """(storage, offset, shape, strides, ...): what follows says nothing of the values."""
    if len(arguments) not in (4, 6, 7) or not isinstance(arguments[0], Storage):
        raise ValueError("a tensor is made of something other than a storage and its geometry")
    storage, offset, shape, strides = arguments[:4]
    for part in (shape, strides):
        if type(part) is not tuple or len(part) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor's shape or strides are {short(part)}, expected a tuple")
    numbers = (offset, *shape, *strides)
    if any(type(n) is not int or not 0 <= n < _MAX_EXTENT for n in numbers):
        shown = ", ".join(map(short, numbers))
        raise ValueError(f"a tensor has the geometry {shown}, expected sizes from 0 up")
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    view = f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset}"
    whole = f"its storage {short(storage.key)} of {storage.count} elements"
    size = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if size and last >= storage.count:
        raise ValueError(f"{view} reaches beyond {whole}")
    if size > storage.count:
        raise ValueError(f"{view} repeats {whole}, which weights do not")
    return Tensor(storage, offset, shape, strides)


def _parameter(arguments: tuple) -> _Parameter:
    """(tensor[, requires_grad[, hooks]])."""
    if not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], Tensor):
        raise ValueError("a parameter is made of something other than a tensor")
    t = arguments[0]
    return _Parameter(t.storage, t.offset, t.shape, t.strides)


def _size(arguments: tuple) -> tuple:
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise ValueError("a torch.Size is made of something other than a tuple")
    return arguments[0]


def unpickle(data: bytes, start: int = 0) -> tuple[Any, dict[str, Storage], int]:
    """Reads the pickle that begins at `start`; nothing of it is executed.

    Returns:
      The value: None, bool, int, float, str, bytes, list, tuple, dict or a description; the
      storages that it names, by key; and the position behind the pickle.
    """
    with warnings.catch_warnings():  # of backslashes in names, which are refused
        warnings.simplefilter("ignore", DeprecationWarning)
        end, refused = scan(data, start)
    # A name before a refused opcode says more than that: reading stops there.
    reader = Unpickler(data[start:end] + (b"." + data[end + 1 :] if refused else b""))
    try:
        value = reader.load()
    except _DAMAGE as e:
        found = f"is damaged or no file of weights ({str(e)[:200]}); nothing of it was executed"
        raise ValueError(refused or f"the pickle {found}") from e
    if refused:
        raise ValueError(refused)
    return value, reader.storages, end


def scan(data: bytes, start: int) -> tuple[int, str]:
    """Walks over the opcodes of a pickle before it is read, and bounds what reading can cost.

    The lengths of texts must lie within the file. Opcodes count as steps, and so do the parts of
    tuples: where tuples share their parts, a key made of 60 of them would take 2**60 steps.

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
                what = "" if argument is None else f" {short(argument)}"
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
