"""Files of weights written by hand: pickles opcode by opcode, archives and streams around them.

Nothing here needs torch; what is built is what torch's own files hold, or what they must not.
"""

import io
import struct
import zipfile

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
KINDS = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Raw(bytes):
    """Opcodes that push one value."""


def raw(*parts) -> Raw:
    return Raw(b"".join(op(p) for p in parts))


def op(value) -> bytes:
    """The opcodes of protocol 2 that push `value`."""
    if isinstance(value, Raw):
        return value
    if value is None or value is True or value is False:
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(op, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(op, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(op(k) + op(v) for k, v in value.items()) + b"u"
    raise TypeError(type(value))


def name(path: str) -> Raw:
    """GLOBAL of "module.attribute"."""
    module, _, attribute = path.rpartition(".")
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(path: str, *arguments) -> Raw:
    return Raw(name(path) + op(arguments) + b"R")


def storage(key: str, count, kind: str = "torch.FloatStorage", **more) -> Raw:
    view = (None,) if "view" not in more else (more["view"],)
    extra = view if more.get("stream") or "view" in more else ()
    return Raw(op(("storage", name(kind), key, "cpu", count, *extra)) + b"Q")


def tensor(stored: Raw, shape, strides, offset=0, function="_rebuild_tensor_v2") -> Raw:
    rest = () if function == "_rebuild_tensor" else (False, call("collections.OrderedDict"))
    return call(f"torch._utils.{function}", stored, offset, shape, strides, *rest)


def pickle_of(value) -> bytes:
    return b"\x80\x02" + op(value) + b"."


def archive(value, records=None, *, root="weights", more=None, compression=zipfile.ZIP_STORED):
    """A torch archive: `value` is its pickle, or opcodes; records are bytes by key."""
    data = value if type(value) is bytes else pickle_of(value)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as z:
        z.writestr(f"{root}/data.pkl", data)
        for key, content in (records or {}).items():
            z.writestr(f"{root}/data/{key}", content)
        for entry, content in (more or {}).items():
            z.writestr(entry, content)
    return file.getvalue()


def stream(value, records=None, *, little=True, version=VERSION, keys=None, counts=None) -> bytes:
    """A torch stream; records are arrays by key."""
    records = records or {}
    data = value if type(value) is bytes else pickle_of(value)
    writer = {"protocol_version": VERSION, "little_endian": little, "type_sizes": {"int": 4}}
    parts = [pickle_of(MAGIC), pickle_of(version), pickle_of(writer), data]
    parts.append(pickle_of(list(records) if keys is None else keys))
    for key, x in records.items():
        count = x.size if counts is None else counts[key]
        parts += [struct.pack("<q", count), x.tobytes()]
    return b"".join(parts)


def state_dict(arrays, *, stream=False):
    """({name: tensor opcodes}, {key: array}) for C-contiguous arrays."""
    value, records = {}, {}
    for n, (label, x) in enumerate(arrays.items()):
        kind = "torch." + KINDS[x.dtype.name]
        strides = tuple(s // x.itemsize for s in np.array(x, order="C").strides)
        value[label] = tensor(storage(str(n), x.size, kind, stream=stream), x.shape, strides)
        records[str(n)] = x
    return value, records


def archive_of(arrays) -> bytes:
    value, records = state_dict(arrays)
    return archive(value, {k: x.tobytes() for k, x in records.items()})


def stream_of(arrays) -> bytes:
    return stream(*state_dict(arrays, stream=True))
