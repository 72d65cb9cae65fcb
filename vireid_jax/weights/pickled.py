"""What torch's pickles say, without unpickling them.

A pickle is a program. This reader runs none of it: it walks the opcodes and keeps a stack of
plain values and of records (`Storage`, `Tensor`) that only describe. No name of the file is
ever looked up in a Python module, no object of the file is ever called, and no opcode outside
a short list is accepted, so a file cannot do more than describe arrays badly.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

from vireid_jax.weights import opcodes

# The storages of torch by the NumPy type of their elements; bfloat16 has none.
BFLOAT16 = "bfloat16"
DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
MAX_DIMENSIONS = 32
MAX_EXTENT = 2**40
# A ResNet-50 has 8,000 opcodes; what a pickle can allocate is bounded by their number.
MAX_OPCODES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `count` elements of type `dtype`, found in the file under `key`."""

    dtype: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


class _Ordered(dict):
    """An OrderedDict of the file: a dict whose attributes (BUILD) are dropped."""


class _Parameter(Tensor):
    """A tensor to which files may attach a state (requires_grad, ...), which is dropped."""


def load(file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle, from where `file` stands to behind its end.

    Returns:
      The value: None, bool, int, float, str, bytes, list, tuple, dict, `Tensor`; and the
      storages that it names, by key.

    Raises:
      ValueError: naming what the pickle holds that weights do not need, or what is damaged.
    """
    machine = _Machine()
    for count, (name, argument, position) in enumerate(opcodes.decode(file)):
        if count == MAX_OPCODES:
            raise ValueError(f"the pickle has more than {MAX_OPCODES} opcodes: no file of weights")
        if name == "STOP":
            return machine.pop(), machine.storages
        act = _OPCODES.get(name)
        if act is None:
            what = "" if argument is None else f" {short(argument)}"
            raise ValueError(
                f"the pickle has the opcode {name}{what} at byte {position}, which no file "
                "of weights needs; nothing of it was executed"
            )
        act(machine, argument)
    raise ValueError("the pickle has no end")


def short(value: object) -> str:
    """A value of the file, for a message: never long, never a nest of values."""
    if isinstance(value, str | bytes):
        return repr(value[:100]) + ("..." if len(value) > 100 else "")
    if type(value) in (bool, type(None), float) or (type(value) is int and abs(value) < 10**30):
        return repr(value)
    return f"a {type(value).__name__}"


class _Machine:
    """The stack, the memo and the storages seen, while a pickle is read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.copies = 0  # of pairs, by calls

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("the pickle takes a value from an empty stack: it is damaged")
        return self.stack.pop()

    def top(self) -> Any:
        self.push(value := self.pop())
        return value

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise ValueError("the pickle ends a group that it never began: it is damaged")
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop_tuple(self, length: int) -> None:
        items = [self.pop() for _ in range(length)]
        self.push(tuple(reversed(items)))

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"the pickle refers to value {index}, which it has not: it is damaged")
        self.push(self.memo[index])

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise ValueError(f"the pickle appends to {short(target)}, expected a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, _Ordered) or len(items) % 2:
            raise ValueError(f"the pickle sets items of {short(target)}, expected pairs of a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def find(self, name: str) -> None:
        """Accepts a global of the allow-list as a name; it is never imported."""
        if name not in _CALLS and _storage_type(name) is None:
            raise ValueError(
                f"the file refers to {short(name)}, which weights do not need; nothing of it was "
                "executed. Where you trust the file, keep its weights alone with PyTorch: "
                "torch.save(model.state_dict(), PATH)"
            )
        self.push(_Global(name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("the pickle names a global by something other than text")
        self.find(f"{module}.{name}")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise ValueError(f"the pickle calls {short(function)}, expected a known function")
        if function.name not in _CALLS:
            raise ValueError(f"the pickle calls {short(function.name)}, expected a known function")
        self.push(_CALLS[function.name](self, arguments))

    def build(self) -> None:
        """Drops the attributes that torch attaches to state dicts and old parameters."""
        state, target = self.pop(), self.top()
        fits = (type(target) is _Ordered and type(state) is dict) or (
            isinstance(target, _Parameter) and type(state) is tuple
        )
        if not fits:
            raise ValueError(
                f"the pickle sets the state of {short(target)}, expected an OrderedDict or a "
                "Parameter; nothing of it was executed"
            )

    def persistent(self) -> None:
        """A reference to a storage: ("storage", type, key, location, count[, view])."""
        pid = self.pop()
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError(f"the pickle refers to {short(pid)}, expected a storage")
        kind, key, count = pid[1], pid[2], pid[4]
        if len(pid) == 6 and pid[5] is not None:
            raise ValueError("a storage is a view of another one; save the file again with PyTorch")
        dtype = _storage_type(kind.name) if isinstance(kind, _Global) else None
        if dtype is None or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError(
                f"a storage of type {short(getattr(kind, 'name', kind))} under key {short(key)} "
                f"with {short(count)} elements, expected a type, a text and a size"
            )
        storage = Storage(dtype, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {short(key)} is described twice, in two ways")
        self.push(storage)


def _key(value: Any) -> Any:
    # A nest of tuples that share their parts takes exponential time to hash.
    if type(value) not in (str, int, float, bool, bytes, type(None)):
        raise ValueError(f"the pickle has {short(value)} as the key of a dict, expected a text")
    return value


def _storage_type(name: str) -> str | None:
    module, _, kind = name.rpartition(".")
    return DTYPES.get(kind) if module in ("torch", "torch.cuda") else None


def _ordered(machine: _Machine, arguments: tuple) -> _Ordered:
    """OrderedDict() or, from Python 2, OrderedDict([[key, value], ...])."""
    result = _Ordered()
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise ValueError("an OrderedDict is made of something other than a list of pairs")
    machine.copies += len(pairs)
    if machine.copies > MAX_OPCODES:  # one list copied again and again would fill the memory
        raise ValueError(f"the pickle copies more than {MAX_OPCODES} values: no file of weights")
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise ValueError(f"an OrderedDict has {short(pair)} for a pair of key and value")
        result[_key(pair[0])] = pair[1]
    return result


def _tensor(_: _Machine, arguments: tuple) -> Tensor:
    """(storage, offset, shape, strides, ...): what follows says nothing of the values."""
    if len(arguments) not in (4, 6, 7) or not isinstance(arguments[0], Storage):
        raise ValueError("a tensor is made of something other than a storage and its geometry")
    storage, offset, shape, strides = arguments[:4]
    numbers = [offset]
    for part in (shape, strides):
        if type(part) is not tuple or len(part) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor's shape or strides are {short(part)}, expected a tuple")
        numbers += part
    if any(type(n) is not int or not 0 <= n < MAX_EXTENT for n in numbers):
        raise ValueError(
            f"a tensor has the geometry {', '.join(map(short, numbers))}, expected sizes from 0 up"
        )
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    tensor = Tensor(storage, offset, shape, strides)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if tensor.size and last >= storage.count:
        raise ValueError(
            f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} reaches "
            f"beyond its storage {short(storage.key)} of {storage.count} elements"
        )
    if tensor.size > storage.count:
        raise ValueError(
            f"a tensor of shape {list(shape)} repeats its storage {short(storage.key)} of "
            f"{storage.count} elements (strides {list(strides)}), which weights do not"
        )
    return tensor


def _parameter(_: _Machine, arguments: tuple) -> _Parameter:
    """(tensor[, requires_grad[, hooks]])."""
    if not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], Tensor):
        raise ValueError("a parameter is made of something other than a tensor")
    tensor = arguments[0]
    return _Parameter(tensor.storage, tensor.offset, tensor.shape, tensor.strides)


def _size(_: _Machine, arguments: tuple) -> tuple:
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise ValueError("a torch.Size is made of something other than a tuple")
    return arguments[0]


_CALLS: dict[str, Callable[[_Machine, tuple], Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,  # before torch 0.4
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,  # before torch 1.0
    "torch.Size": _size,
}


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES"),
)
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **{name: lambda machine, value: machine.push(value) for name in _VALUES},
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _constant(tuple),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.pop_tuple(1),
    "TUPLE2": lambda machine, _: machine.pop_tuple(2),
    "TUPLE3": lambda machine, _: machine.pop_tuple(3),
    "BINPUT": lambda machine, index: machine.put(index),
    "LONG_BINPUT": lambda machine, index: machine.put(index),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "BINGET": lambda machine, index: machine.get(index),
    "LONG_BINGET": lambda machine, index: machine.get(index),
    "GLOBAL": lambda machine, name: machine.find(name),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
}
