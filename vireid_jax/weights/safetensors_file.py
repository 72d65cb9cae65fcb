"""Arrays of safetensors files (https://github.com/huggingface/safetensors)."""

import numpy as np
import safetensors

from vireid_jax.weights.torch_file import widen, widen_bfloat16

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # as bits: NumPy has no such type
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


MAX_HEADER = 100_000_000  # bytes, of the format


def is_safetensors(data: bytes) -> bool:
    """Whether a file begins as one: the size of the header, then the header, a JSON object."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= MAX_HEADER


def read(data: bytes) -> dict[str, np.ndarray]:
    """The arrays by name; float16 and bfloat16 as float32.

    Raises:
      ValueError: the file is damaged, or an array has a type that weights do not.
    """
    try:
        parts = safetensors.deserialize(data)
    except safetensors.SafetensorError as e:
        raise ValueError(f"the safetensors file is damaged ({e}); load it again") from e
    arrays = {}
    for name, part in parts:
        kind = part["dtype"]
        if kind not in DTYPES:
            raise ValueError(f"{name} has the type {kind}, expected one of {', '.join(DTYPES)}")
        x = np.frombuffer(part["data"], DTYPES[kind]).reshape(part["shape"])
        arrays[name] = widen_bfloat16(x) if kind == "BF16" else widen(x)
    return arrays
