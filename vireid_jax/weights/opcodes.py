"""The opcodes of a pickle and their arguments, decoded as text and numbers and nothing else."""

import io
import pickletools
import struct
from collections.abc import Callable, Iterator
from typing import Any

_NAMES = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}
MAX_LINE = 1000  # bytes of the name of a module or attribute


def decode(file: io.BytesIO) -> Iterator[tuple[str, Any, int]]:
    """Yields (name, argument, position) from where `file` stands; behind STOP it stands still.

    Opcodes that have no place in a file of weights come without an argument, and what follows
    them is then read as opcodes: the caller is to refuse them.

    Raises:
      ValueError: for a byte that is no opcode, or an argument that the file ends in.
    """
    while True:
        position = file.tell()
        code = file.read(1)
        if code not in _NAMES:
            what = f"byte {code[0]:#04x} is no opcode" if code else "it has no end"
            raise ValueError(
                f"the pickle is damaged or truncated ({what}, at byte {position} of {_size(file)})"
            )
        name = _NAMES[code]
        read = _ARGUMENTS.get(name)
        try:
            argument = read(file) if read else None
        except ValueError as e:  # struct.error is none, see _take
            raise ValueError(
                f"the pickle is damaged or truncated ({name} at byte {position}: {e})"
            ) from e
        yield name, argument, position


def _size(file: io.BytesIO) -> int:
    return file.getbuffer().nbytes


def _take(file: io.BytesIO, count: int) -> bytes:
    left = _size(file) - file.tell()
    if not 0 <= count <= left:
        raise ValueError(f"{count} bytes expected, {left} left")
    return file.read(count)


def _number(form: str) -> Callable[[io.BytesIO], Any]:
    size = struct.calcsize(form)
    return lambda file: struct.unpack(form, _take(file, size))[0]


def _counted(form: str, decode: Callable[[bytes], Any]) -> Callable[[io.BytesIO], Any]:
    length = _number(form)
    return lambda file: decode(_take(file, length(file)))


def _line(file: io.BytesIO) -> str:
    line = file.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        raise ValueError(f"a name without an end in {MAX_LINE} bytes")
    return line[:-1].decode("utf-8")


def _two_lines(file: io.BytesIO) -> str:
    return f"{_line(file)}.{_line(file)}"


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _latin1(data: bytes) -> str:
    return data.decode("latin-1")  # byte strings of Python 2; torch's are ASCII


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


_ARGUMENTS: dict[str, Callable[[io.BytesIO], Any]] = {
    "PROTO": _number("<B"),
    "FRAME": _number("<Q"),
    "BININT": _number("<i"),
    "BININT1": _number("<B"),
    "BININT2": _number("<H"),
    "LONG1": _counted("<B", _long),
    "LONG4": _counted("<i", _long),
    "BINFLOAT": _number(">d"),
    "SHORT_BINSTRING": _counted("<B", _latin1),
    "BINSTRING": _counted("<i", _latin1),
    "SHORT_BINUNICODE": _counted("<B", _utf8),
    "BINUNICODE": _counted("<I", _utf8),
    "BINUNICODE8": _counted("<Q", _utf8),
    "SHORT_BINBYTES": _counted("<B", bytes),
    "BINBYTES": _counted("<I", bytes),
    "BINPUT": _number("<B"),
    "LONG_BINPUT": _number("<I"),
    "BINGET": _number("<B"),
    "LONG_BINGET": _number("<I"),
    "GLOBAL": _two_lines,
    "INST": _two_lines,  # refused, by the name that it calls
}
