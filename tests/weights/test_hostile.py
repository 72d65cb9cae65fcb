"""Files that are made to harm: refused with a ValueError that names the thing, never executed."""

import contextlib
import copyreg
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.weights import build
from tests.weights.watch import read, watched
from vireid_jax.weights import files, pickles

ONE = np.arange(4, dtype=np.float32)
# What the standard library's unpickler refuses with.
REFUSALS = (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError)
NAMES = ["archive", "stream", "safetensors", "npz"]


def containers(value, records=None):
    """The same opcodes in both formats of torch."""
    arrays = {k: np.frombuffer(v, np.uint8) for k, v in (records or {}).items()}
    return [build.archive(value, records), build.stream(value, arrays)]


def write(tmp_path, data):
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    return path


def refuse(tmp_path, data, match):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=match) as error:
        read(path)
    assert len(str(error.value)) < 1500
    return error.value


# --- Pickles that call ------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def test_a_live_payload_is_refused_unexecuted(tmp_path):
    """os.mkdir leaves a trace; that pickle itself does run it shows that the test can fail."""
    folder = tmp_path / "trace"
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps({"a": Payload(os.mkdir, str(folder))}, protocol)
        with pytest.raises(AssertionError, match=r"pickle\.find_class.*os\.mkdir"), watched():
            pickle.loads(data)
        assert folder.is_dir(), protocol
        folder.rmdir()
        for file in containers(data):
            refuse(tmp_path, file, r"posix\.mkdir|nt\.mkdir")
            assert not folder.exists(), protocol


GLOBALS = """
os.system posix.system subprocess.Popen antigravity.fly runpy._run_code os.FloatStorage
builtins.eval builtins.exec builtins.getattr builtins.__import__ __builtin__.eval __main__.Net
copyreg._reconstructor copyreg.add_extension copy_reg._reconstructor _codecs.decode
torch.load torch.FloatTensor torch.storage._load_from_bytes torch.hub.load torch.os.system
torch._utils.torch.load torch._utils._rebuild_tensor_v3 torch.cuda.os.FloatStorage
torch._utils._rebuild_tensor_v2.__globals__ torch.Storage torch.FloatStorage.dtype
collections.OrderedDict.__init__ collections.namedtuple
numpy.core.multiarray.fromstring numpy.load numpy.dtype.type numpy.matrixlib.defmatrix.matrix
""".split()


def test_globals_outside_the_list_are_named(tmp_path):
    for path in GLOBALS:
        module, _, attribute = path.rpartition(".")
        stacked = build.Raw(build.op(module) + build.op(attribute) + b"\x93")
        for function in (build.name(path), stacked):
            called = build.Raw(function + build.op(("touch x",)) + b"R")
            for value in (function, called, {"a": called}, [called], {"a": [(called,)]}):
                for data in containers(value):
                    error = refuse(tmp_path, data, "nothing of it was executed")
                    assert path in str(error)


OPCODES = [
    (b"(S'touch x'\nios\nsystem\n", "STRING|INST"),
    (b"(X\x01\x00\x00\x00aios\nsystem\n", "INST 'os.system'"),
    (b"(ccollections\nOrderedDict\no", "OBJ"),
    (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
    (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
    (b"\x82\x01", "EXT1"),
    (b"\x83\x01\x00", "EXT2"),
    (b"\x84\x01\x00\x00\x00", "EXT4"),
    (b"Pos.system\n", "PERSID"),
    (b"N2", "DUP"),
    (b"NN0", "POP"),
    (b"(1", "POP_MARK"),
    (b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a", "BYTEARRAY8"),
    (b"\x97", "NEXT_BUFFER"),
    (b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00a", "BINBYTES8"),
    (b"(\x91", "FROZENSET"),
    (b"\x8f", "EMPTY_SET"),
    (b"I1\n", "INT"),
    (b"g1\n", "GET"),
]


def test_opcodes_outside_the_list_are_named(tmp_path):
    for opcodes, match in OPCODES:
        for data in containers(b"\x80\x04" + opcodes + b"."):
            refuse(tmp_path, data, match)


def test_the_unpickler_alone_executes_nothing():
    """The walk over the opcodes bounds memory and time; safety does not hang on it."""
    copyreg.add_extension("os", "getcwd", 240)
    try:
        for opcodes, _ in [*OPCODES, (b"\x82\xf0)R", "EXT1 of a known code")]:
            with watched(), contextlib.suppress(*REFUSALS):
                value = pickles.Unpickler(b"\x80\x04" + opcodes + b".").load()
                plain = (type(None), int, set, frozenset, bytes, bytearray, pickles.OrderedDict)
                assert type(value) in plain, opcodes
    finally:
        copyreg.remove_extension("os", "getcwd", 240)


def test_calls_and_names_of_another_type(tmp_path):
    allowed = build.name("collections.OrderedDict")
    for pair in (build.op(1) + build.op("x"), allowed + build.op("x"), build.op("os") + allowed):
        refuse(tmp_path, build.archive(build.Raw(pair + b"\x93")), "STACK_GLOBAL requires str")
    for function in (build.op("os.system"), build.op(3), build.name("torch.FloatStorage")):
        data = build.archive(build.Raw(function + build.op((1,)) + b"R"))
        refuse(tmp_path, data, "object is not callable.; nothing of it was executed")
    data = build.archive(build.Raw(build.name("collections.OrderedDict") + build.op([]) + b"R"))
    refuse(tmp_path, data, "argument list must be a tuple.; nothing of it was executed")


def test_build_reaches_no_object(tmp_path):
    state = {"__setstate__": "x", "__class__": "y", "__reduce__": "z"}
    s = build.storage("0", 4)
    ours, plain = "sets the state of", "has no attribute '__.*nothing of it was executed"
    targets = {
        "tensor": (build.tensor(s, (4,), (1,)), ours),
        "storage": (s, ours),
        "type": (build.name("torch.FloatStorage"), ours),
        "function": (build.name("torch._utils._rebuild_tensor_v2"), ours),
        "method": (build.name("collections.OrderedDict"), ours),
        "dict": (build.Raw(b"}"), plain),
        "text": (build.op("x"), plain),
    }
    for target, match in targets.values():
        for attributes in (state, (None, {"__code__": None}), (state, state)):
            value = {"a": build.Raw(target + build.op(attributes) + b"b")}
            refuse(tmp_path, build.archive(value, {"0": ONE.tobytes()}), match)
    # Onto an OrderedDict torch itself writes a state; here it is dropped, whatever it says.
    ordered = build.call("collections.OrderedDict", [["a", targets["tensor"][0]]])
    value = build.Raw(ordered + build.op({**state, "a": 1, "items": 2}) + b"b")
    path = write(tmp_path, build.archive(value, {"0": ONE.tobytes()}))
    np.testing.assert_array_equal(read(path)["a"], ONE)
    # Names of methods are data, too.
    value = {name: targets["tensor"][0] for name in ("get", "items", "__class__")}
    assert list(read(write(tmp_path, build.archive(value, {"0": ONE.tobytes()})))) == list(value)


# --- Pickles that exhaust ---------------------------------------------------------------


def quickly(tmp_path, data, match):
    """Refused within seconds and with little memory beside the file."""
    started = time.perf_counter()
    tracemalloc.start()
    try:
        refuse(tmp_path, data, match)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 20
    assert peak < 20 * len(data) + 2**24, peak


def nest(opcode, depth):
    """Depth pairs, each of the one before twice: 2**depth leaves in a few bytes."""
    parts = [b"Nq\x00"]
    for _ in range(depth):
        parts.append(b"(h\x00h\x00" + opcode + b"q\x00")
    return build.Raw(b"".join(parts))


def test_nests_of_shared_parts(tmp_path):
    """As keys and in messages they would take 2**60 steps."""
    tuples = nest(b"t", 60)
    call = build.name("torch._utils._rebuild_tensor_v2")
    size = build.name("torch.Size")
    again = b"h\x00\x85Rq\x01h\x01h\x01\x86q\x00" * 30
    for value in (
        tuples + b"}h\x00Ns", tuples, tuples + b"Q", tuples + call + b"h\x00R",
        b"Nq\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}h\x00Ns",
        b"Nq\x00" + (size + again) * 2 + b"}h\x00Ns",
        nest(b"t", 15) + b"}" + b"h\x00Ns" * 1000,  # cheap once
    ):  # fmt: skip
        quickly(tmp_path, build.archive(b"\x80\x02" + value + b"."), "more than 200000 steps")
    few = b"\x80\x02" + nest(b"t", 3)
    quickly(tmp_path, build.archive(few + b"."), "holds a tuple")
    quickly(tmp_path, build.archive(few + b"Q."), "refers to a tuple")
    quickly(tmp_path, build.archive(few + b"}h\x00Ns."), "no tensors by name.* has a tuple")
    quickly(tmp_path, build.archive(few + call + b"h\x00R."), "other than a storage")
    lists = b"\x80\x02" + nest(b"l", 60) + b"}h\x00Ns."
    quickly(tmp_path, build.archive(lists), "opcode LIST|unhashable")
    keys = build.call("collections.OrderedDict", [[build.raw((1, 2)), 1]])
    quickly(tmp_path, build.archive(keys), "for a pair of key and value")
    huge = b"\x80\x02\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5 + b"."
    quickly(tmp_path, build.archive(huge), "an integer of 799999 bits")


ENDLESS = [
    (b"]" * 30_000 + b"a" * 29_999 + b".", "holds a list"),
    (b"(" * 30_000 + b".", "damaged"),
    (b"]" + b"\x85" * 30_000 + b".", "steps|a tuple"),
    # Indices of the memo allocate nothing.
    (b"Nr\xff\xff\xff\xff.", "damaged.*value 4294967295"),
    (b"j\xff\xff\xff\xff.", "damaged.*value 4294967295"),
    # Lengths beyond the file.
    *(
        (opcode + struct.pack("<I", 2**31 - 1) + b"abc.", "pickle is damaged or truncated")
        for opcode in (b"B", b"X", b"\x8b", b"T")
    ),
    *(
        (start + struct.pack("<Q", length) + b"N.", "pickle (is damaged|has no end)")
        for length in (2**40, 2**63 - 1, 2**64 - 1)
        for start in (b"\x95", b"\x95" + bytes(8) + b"\x95", b"\x8d")
    ),
    # Names without an end.
    (b"cos", "damaged or truncated .no newline"),
    (b"cos\nsystem", "damaged or truncated .no newline"),
    (b"c" + b"o" * 10**6, "damaged or truncated .no newline"),
    (b"cos\n" + b"s" * 10**6 + b"\n.", "refers to 'os.ssss.*nothing of it was executed"),
    (b"co\\s\n\\system\n.", "o.*s.*system.*executed"),
    (b"c\xff\xfe\nx\n.", "damaged or truncated .*decode"),
]


def test_what_has_no_end(tmp_path):
    for opcodes, match in ENDLESS:
        quickly(tmp_path, build.archive(b"\x80\x04" + opcodes), match)


def test_too_many_steps(tmp_path, monkeypatch):
    long = build.archive(b"\x80\x02](" + b"N" * 1_000_000 + b"e.")
    refuse(tmp_path, long, "more than 200000 steps")
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    # A list of n pairs, made into a dict n times, has n * n entries.
    pairs = build.op([["a", 1]] * 30)
    ordered = build.name("collections.OrderedDict")
    again = (b"h\x01h\x02\x85R") * 50
    data = b"\x80\x02" + pairs + b"q\x02" + ordered + b"q\x01" + again + b"."
    refuse(tmp_path, build.archive(data), "copies more than 1000 values")


# --- Tensors that reach out -------------------------------------------------------------

BAD_TENSORS = {
    "past the end": ((5,), (1,), 0, "beyond its storage"),
    "offset past the end": ((4,), (1,), 1, "beyond its storage"),
    "strides past the end": ((2, 2), (3, 1), 0, "beyond its storage"),
    "overlap": ((3, 3), (1, 0), 0, "repeats its storage"),
    "repeat": ((10**6, 10**6), (0, 0), 0, "repeats its storage"),
    "negative size": ((-4,), (1,), 0, "expected sizes from 0 up"),
    "two negative sizes": ((-2, -2), (1, 1), 0, "expected sizes from 0 up"),
    "negative stride": ((4,), (-1,), 3, "expected sizes from 0 up"),
    "negative offset": ((4,), (1,), -1, "expected sizes from 0 up"),
    "giant": ((2**62, 2), (1, 1), 0, "expected sizes from 0 up"),
    "giant stride": ((2,), (2**39,), 0, "beyond its storage"),
    "wrapping": ((2**33, 2**33), (0, 0), 0, "repeats its storage"),
    "a bool": ((True, 4), (1, 1), 0, "expected sizes from 0 up"),
    "a float": (("4",), (1,), 0, "expected sizes from 0 up"),
    "fewer strides": ((2, 2), (1,), 0, "2 dimensions and 1 strides"),
    "dimensions": ((1,) * 40, (1,) * 40, 0, "a tuple"),
    "a list": ([4], [1], 0, "expected a tuple"),
}


def test_geometry(tmp_path):
    for shape, strides, offset, match in BAD_TENSORS.values():
        value = {"a": build.tensor(build.storage("0", 4), shape, strides, offset)}
        quickly(tmp_path, build.archive(value, {"0": ONE.tobytes()}), match)
        value = {"a": build.tensor(build.storage("0", 4, stream=True), shape, strides, offset)}
        quickly(tmp_path, build.stream(value, {"0": ONE}), match)


def test_arguments_of_tensors(tmp_path):
    s = build.storage("0", 4)
    rebuild = "torch._utils._rebuild_tensor_v2"
    for arguments in [(), (s,), (1, 0, (4,), (1,)), (s, 0, (4,), (1,), 1), ("x",) * 6]:
        data = build.archive({"a": build.call(rebuild, *arguments)}, {"0": ONE.tobytes()})
        refuse(tmp_path, data, "a storage and its geometry")
    data = build.archive({"a": build.call("torch._utils._rebuild_parameter", s)})
    refuse(tmp_path, data, "other than a tensor")
    refuse(tmp_path, build.archive(build.call("torch.Size", [1])), "other than a tuple")
    refuse(tmp_path, build.archive(build.call("collections.OrderedDict", 1)), "list of pairs")
    refuse(tmp_path, build.archive(build.call("collections.OrderedDict", [1])), "key and value")


def test_storages_that_claim_more_than_the_file_has(tmp_path):
    value = {"a": build.tensor(build.storage("0", 3), (3,), (1,))}  # and less: torch never does
    refuse(tmp_path, build.archive(value, {"0": ONE.tobytes()}), "has 16 bytes, expected 12")
    for count in (5, 2**40, 2**62):
        value = {"a": build.tensor(build.storage("0", count), (4,), (1,))}
        quickly(tmp_path, build.archive(value, {"0": ONE.tobytes()}), "has 16 bytes, expected")
        value = {"a": build.tensor(build.storage("0", count, stream=True), (4,), (1,))}
        quickly(tmp_path, build.stream(value, {"0": ONE}), "4 elements in the file and")
        data = build.stream(value, {"0": ONE}, counts={"0": count})
        quickly(tmp_path, data, "ends within storage")
    value = {"a": build.tensor(build.storage("0", -4), (4,), (1,))}
    refuse(tmp_path, build.archive(value, {"0": b""}), "-4 elements")


def test_storages_described_badly(tmp_path):
    both = [build.storage("0", 4), build.storage("0", 2, "torch.DoubleStorage")]
    refuse(tmp_path, build.archive(both, {"0": ONE.tobytes()}), "described twice")
    value = {"a": build.tensor(build.storage("7", 4), (4,), (1,))}
    refuse(tmp_path, build.archive(value, {"0": ONE.tobytes()}), "lacks 'weights/data/7'")
    value = {"a": build.tensor(build.storage("../data.pkl", 4), (4,), (1,))}
    refuse(tmp_path, build.archive(value, {"0": ONE.tobytes()}), "lacks")
    value = {"a": build.storage("0", 4, view=("1", 0, 2))}
    refuse(tmp_path, build.archive(value, {"0": ONE.tobytes()}), "view of another")
    for pid in [("storage",), ("module", 1, 2, 3, 4), 3, "0", ("storage", "x", "0", "cpu", 4)]:
        refuse(tmp_path, build.archive(build.Raw(build.op(pid) + b"Q")), "storage")
    value = {"a": build.tensor(build.storage("0", 4, stream=True), (4,), (1,))}
    refuse(tmp_path, build.stream(value, {"0": ONE}, keys=["0", "0"]), "lists 2 storages")
    refuse(tmp_path, build.stream(value, {"0": ONE}, keys=[]), "lists 0 storages")
    refuse(tmp_path, build.stream(value, {"0": ONE}, keys=[1]), "list of texts")
    refuse(tmp_path, build.stream(value, {"0": ONE}, version=999), "version 1001")


def test_many_views_of_one_storage(tmp_path):
    x = np.zeros(1000, np.float32)
    value = {f"a{n}": build.tensor(build.storage("0", 1000), (1000,), (1,)) for n in range(1000)}
    quickly(tmp_path, build.archive(value, {"0": x.tobytes()}), "tensors would take 4000000 bytes")


# --- Archives ---------------------------------------------------------------------------


def good():
    value, records = build.state_dict({"a": ONE})
    return value, {k: x.tobytes() for k, x in records.items()}


def test_an_archive_unpacks_to_no_more_than_a_file_may_have(tmp_path, monkeypatch):
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(1000, np.float32))
    assert read(write(tmp_path, file.getvalue()))["a"].shape == (1000,)
    monkeypatch.setattr(files, "MAX_BYTES", 4000)
    refuse(tmp_path, file.getvalue(), "claims to hold 4128: .*bomb")


def test_entries_of_archives(tmp_path):
    value, records = good()
    data = build.archive(value, records, compression=zipfile.ZIP_DEFLATED)
    refuse(tmp_path, data, r"is compressed \(method 8\), expected")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.npy", bytes(10**8))
    quickly(tmp_path, file.getvalue(), "claims to hold 100000000: .*bomb")
    for entry in ("/etc/x", "../x", "weights/../../x", "C:\\x", "weights/data/..\\x"):
        refuse(tmp_path, build.archive(value, records, more={entry: b""}), "a path out of it")
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = build.archive(value, records, more={"weights/data/0": bytes(16)})
    refuse(tmp_path, data, "two entries 'weights/data/0'")
    refuse(tmp_path, build.archive(value, records, more={"x/data.pkl": b""}), "2 files")
    refuse(tmp_path, build.archive(value, records, root="a/b"), "0 files")
    # Encrypted ones, by their flags.
    data = bytearray(build.archive(value, records))
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(signature) + flags] |= 1
    refuse(tmp_path, bytes(data), "encrypted")


def test_overlapping_entries(tmp_path):
    """The central directory may claim the same bytes for several entries."""
    value, records = good()
    more = {f"weights/data/{n}": b"x" for n in range(1, 9)}
    data = bytearray(build.archive(value, records, more=more))
    size = len(data)
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    while at >= 0:  # every entry but the first now claims half of the file
        data[at + 20 : at + 28] = struct.pack("<II", size // 2, size // 2)
        at = data.find(b"PK\x01\x02", at + 4)
    refuse(tmp_path, bytes(data), "bomb")


def test_arrays_of_npz(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([Payload(os.mkdir, str(tmp_path / "x"))], object))
    refuse(tmp_path, path.read_bytes(), r"type '\|O', expected one of .*nothing of it was executed")

    def npz(header, body=b""):
        text = header.encode().ljust(117) + b"\n"
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as z:
            z.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
        return file.getvalue()

    claims = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
    quickly(tmp_path, npz(claims % 2**40, bytes(8)), "has 8 bytes")
    quickly(tmp_path, npz(claims % "-1"), "has 0 bytes")
    quickly(tmp_path, npz(claims % "-1, -1", bytes(4)), "has 4 bytes")
    quickly(tmp_path, npz(claims % ("1, " * 40 + "1"), bytes(4)), "has 4 bytes")
    for code in ("<f3", "<f16", "<i0", "|V4", "<U4", "<M8", "|b4"):
        refuse(tmp_path, npz((claims % "1,").replace("<f4", code), bytes(4)), "type|header")
    refuse(tmp_path, npz("__import__('os').getcwd()"), "expected the header")
    for shape in ("-" * 9000 + "1", "(" * 4000, "1" * 4200, "[" * 150 + "]" * 150, "1.5", "'a'"):
        quickly(tmp_path, npz(claims % shape, bytes(4)), "expected the header|has 4 bytes")


# --- Damage -----------------------------------------------------------------------------


def samples():
    arrays = {"conv1.weight": np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2), "b": np.array(3)}
    from safetensors.numpy import save

    npz = io.BytesIO()
    np.savez_compressed(npz, **arrays)
    files = [build.archive_of(arrays), build.stream_of(arrays), save(arrays), npz.getvalue()]
    return dict(zip(NAMES, files, strict=True))


SAMPLES = samples()


def test_truncated_files(tmp_path):
    path = tmp_path / "w.pth"
    for name, data in SAMPLES.items():
        path.write_bytes(data)
        assert sorted(read(path)) == ["b", "conv1.weight"], name
        for length in range(0, len(data), 7):
            refuse(tmp_path, data[:length], r"w\.pth")


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bytes(tmp_path, name):
    """Any damage is either refused in words or changes numbers and names, no more."""
    data = SAMPLES[name]
    path = tmp_path / "w.pth"

    @settings(
        max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4))
    @example([])
    def run(flips):
        changed = bytearray(data)
        for at, value in flips:
            changed[at] = value
        path.write_bytes(changed)
        try:
            arrays = read(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and len(str(error)) < 1500
        else:
            assert all(isinstance(x, np.ndarray) for x in arrays.values())
            assert sum(x.nbytes for x in arrays.values()) <= files.MAX_EXPANSION * len(data)

    run()


REAL = (
    b"} ] ) ( t u e R b Q N \x85 \x86 \x87 \x93 s a . \x94 q\x00 h\x00 h\x01 X\x01\x00\x00\x00a "
    b"ccollections\nOrderedDict\n ctorch\nFloatStorage\n ctorch\nSize\n K\x03 \x81 o q\x02"
).split(b" ")


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.sampled_from(REAL) | st.binary(min_size=1, max_size=12), max_size=40))
def test_random_opcodes(chunks):
    """Programs of random bytes and of real opcodes in random order end in a ValueError."""
    with watched(), contextlib.suppress(ValueError):
        pickles.unpickle(b"\x80\x02" + b"".join(chunks) + b".")
