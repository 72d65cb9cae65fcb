"""Files of weights of every format, and what is refused with which words."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.weights import build, trunk
from vireid_jax import weights

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(3),
    "c": np.linspace(-2, 2, 4).astype(np.float16),
    "d": np.array([[True, False]]),
    "e": np.zeros((0, 3), np.float32),
    "f": np.arange(3.0),
    "g": np.arange(4, dtype=np.uint8),
}


def write(tmp_path, data, name="w.pth"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def refused(tmp_path, data, match):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=match) as error:
        weights.read(path)
    assert str(path) in str(error.value)
    return str(error.value)


def same(actual, expected):
    assert list(actual) == list(expected)
    for name, x in expected.items():
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        assert actual[name].dtype == wide.dtype and actual[name].flags.c_contiguous, name
        np.testing.assert_array_equal(actual[name], wide, err_msg=name, strict=True)


def bfloat16(x):
    """Rounds float32 to bfloat16, to the nearest and to even, as float32."""
    bits = x.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32)


def test_files_of_pytorch():
    expected = trunk.draw(10, 2)
    for name in ("archive.pth", "stream.pth", "plain.safetensors"):
        actual = weights.read(FIXTURES / name)
        if name.endswith(".safetensors"):  # sorted by the library
            assert set(actual) == set(expected)
            actual = {k: actual[k] for k in expected}
        same(actual, expected)
    for name in ("bfloat16.pth", "bfloat16.safetensors"):
        actual = weights.read(FIXTURES / name)
        for key, x in expected.items():
            near = bfloat16(x) if x.dtype == np.float32 else x
            np.testing.assert_array_equal(actual[key], near, f"{name} {key}", strict=True)
    # The checkpoint of a training script.
    floats = {f"module.{k}": v for k, v in expected.items() if v.dtype == np.float32}
    same(weights.read(FIXTURES / "checkpoint.pth"), floats)


def test_files_written_by_hand(tmp_path):
    for make in (build.archive_of, build.stream_of):
        same(weights.read(write(tmp_path, make(ARRAYS))), ARRAYS)


def test_scores_of_numpy_beside_the_weights_are_left(tmp_path):
    """As the code of AGW and its descendants saves its rank-1 and mAP; both layouts of NumPy."""
    for core in ("core", "_core"):
        at = f"numpy.{core}.multiarray"

        def text(x):
            return build.call("_codecs.encode", x, "latin1")

        state = build.op((3, "<", None, None, None, -1, -1, 0))
        dtype = build.Raw(build.call("numpy.dtype", "f8", False, True) + state + b"b")
        empty = build.call(f"{at}._reconstruct", build.name("numpy.ndarray"), (0,), text("b"))
        state = build.op((1, (1,), dtype, False, text("x" * 8)))
        scores = {
            "acc": build.Raw(empty + state + b"b"),
            "mAP": build.call(f"{at}.scalar", dtype, text("x" * 8)),
        }
        value, records = build.state_dict({"a": ARRAYS["a"]})
        records = {k: x.tobytes() for k, x in records.items()}
        path = write(tmp_path, build.archive({"net": value, **scores}, records))
        same(weights.read(path), {"a": ARRAYS["a"]})
        path = write(tmp_path, build.archive({**value, **scores}, records))
        assert list(weights.read(path)) == ["a"]


def test_npz(tmp_path):
    for save in (np.savez, np.savez_compressed):
        arrays = {**ARRAYS, "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
        save(tmp_path / "w.npz", **arrays)
        same(weights.read(tmp_path / "w.npz"), arrays)
        for kind, wide in ((">f4", np.float32), (">f2", np.float32), (">i2", np.int16)):
            save(tmp_path / "w.npz", x=np.arange(3, dtype=kind))
            same(weights.read(tmp_path / "w.npz"), {"x": np.arange(3, dtype=wide)})


def test_the_format_is_told_by_content(tmp_path):
    path = write(tmp_path, (FIXTURES / "plain.safetensors").read_bytes(), "misnamed.pth")
    assert "conv1.weight" in weights.read(path)
    path = write(tmp_path, build.stream_of(ARRAYS), "misnamed.npz")
    assert "a" in weights.read(path)


def test_strided_views_of_a_shared_storage(tmp_path):
    x = np.arange(24, dtype=np.float32)
    s = build.storage("0", 24)
    value = {
        "transposed": build.tensor(s, (3, 4), (1, 3)),
        "slice": build.tensor(s, (2, 2), (6, 2), 5),
        "all": build.tensor(s, (24,), (1,)),
        "one": build.tensor(s, (), (), 23),
    }
    actual = weights.read(write(tmp_path, build.archive(value, {"0": x.tobytes()})))
    expected = {
        "transposed": x[:12].reshape(4, 3).T,
        "slice": np.array([[x[5], x[7]], [x[11], x[13]]]),
        "all": x,
        "one": x[23],
    }
    for key, y in expected.items():
        np.testing.assert_array_equal(actual[key], y)
    actual["all"][:] = -1  # the arrays are the caller's own
    assert (actual["slice"] != -1).all()


def test_files_of_2017(tmp_path):
    """Parameters, byte strings, pairs in lists and storages of a GPU, as torch 0.1 wrote them."""
    x = np.arange(4, dtype=np.float32)

    def text(s):
        return build.Raw(b"U" + bytes([len(s)]) + s.encode())

    s = build.storage("94", 4, "torch.cuda.FloatStorage", stream=True)
    size = build.call("torch.Size", (2, 2))
    data = build.tensor(s, size, (2, 1), function="_rebuild_tensor")
    parameter = build.call("torch.nn.parameter.Parameter", data)
    state = build.op((True, False, build.call("collections.OrderedDict")))
    pair = [text("conv1.weight"), build.Raw(parameter + state + b"b")]
    value = build.call("collections.OrderedDict", [pair])
    actual = weights.read(write(tmp_path, build.stream(value, {"94": x})))
    same(actual, {"conv1.weight": x.reshape(2, 2)})


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.torch
def test_protocols_of_pytorch(tmp_path, protocol, zipped):
    torch = pytest.importorskip("torch")
    state = {
        "t": torch.arange(6.0).reshape(2, 3).T,
        "p": torch.nn.Parameter(torch.ones(2)),
        "h": torch.ones(2, dtype=torch.float16) / 3,
        "i": torch.tensor([-1, 2], dtype=torch.int16),
    }
    path = tmp_path / "w.pth"
    options = dict(pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    torch.save({"model": state, "epoch": 2**40}, path, **options)
    expected = {k: v.detach().numpy() for k, v in state.items()}
    same(weights.read(path), expected)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    torch.save(model.state_dict(), path, **options)
    same(weights.read(path), {k: v.numpy() for k, v in model.state_dict().items()})
    torch.save(model, path, **options)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules.*Sequential.*state_dict"):
        weights.read(path)


def test_a_name_that_holds_a_hash_is_checked(tmp_path):
    data = build.stream_of(ARRAYS)
    digest = hashlib.sha256(data).hexdigest()[:8]
    other = "0123abcd"
    assert digest != other and any(c in "abcdef" for c in digest)
    weights.read(write(tmp_path, data, f"resnet50-{digest}.pth"))
    weights.read(write(tmp_path, data, "resnet50-20230101.pth"))  # a date
    with pytest.raises(ValueError, match=f"damaged.*begins with {digest}.*says {other}"):
        weights.read(write(tmp_path, data, f"resnet50-{other}.pth"))


def test_other_files_are_named(tmp_path):
    cases = {
        b"": "empty",
        b"\n<!DOCTYPE html><html>": "web page",
        b'{"error": "Repository not found"}': "JSON, perhaps the answer of a server",
        b"version https://git-lfs.github.com/spec/v1\noid": "Git LFS",
        b"\x89HDF\r\n\x1a\n": "HDF5",
        build.pickle_of({"a": 1}): "pickle that torch.save did not write",
        b"\x93NUMPY\x01\x00": "single array",
        b"hello, this is text": "19 bytes of an unknown format",
    }
    for data, match in cases.items():
        refused(tmp_path, data, match)
    # A failed download, whatever its name says of its content.
    for data, what in ((b"<html>404</html>", "web page"), (b"", "empty")):
        with pytest.raises(ValueError, match=f"0676ba61.pth: the file is (a )?{what}"):
            weights.read(write(tmp_path, data, "resnet50-0676ba61.pth"))
    os.mkfifo(tmp_path / "fifo.pth")
    with open(tmp_path / "sparse.pth", "wb") as file:
        file.truncate(200 * 10**9)
    for name, said in (("fifo", "it is a FIFO"), ("sparse", "expected at most 4.3 GB")):
        with pytest.raises(ValueError, match=rf"{name}\.pth: .*{said}.*; expected a \.pth"):
            weights.read(tmp_path / f"{name}.pth")
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*never downloaded"):
        weights.read(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="folder"):
        weights.read(tmp_path)


def test_the_size_that_begins_a_safetensors_file_may_be_any_character(tmp_path):
    tensors = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    for first in b"<{\x80\x93":
        header = tensors.ljust(256 + first).encode()
        data = len(header).to_bytes(8, "little") + header + np.float32(3).tobytes()
        assert data[0] == first
        same(weights.read(write(tmp_path, data)), {"a": np.array([3], np.float32)})


def one(key, kind="torch.FloatStorage"):
    """A state dict of one number."""
    return {key: build.tensor(build.storage("0", 1, kind), (1,), (1,))}


def test_what_is_no_file_of_weights(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    for data, match in (
        (build.archive([1, 2]), "holds a list, expected a dict of tensors"),
        (build.archive({"epoch": 3, "arch": "r50"}), "no tensors.*'epoch', 'arch'"),
        (build.archive({"state_dict": {"model": {}}}), "no tensors.*its top has noth"),
        (build.archive(one(3), {"0": bytes(4)}), "no tensors by name"),
        (build.archive({}, more={"weights/constants.pkl": b""}), "TorchScript"),
        (build.archive({}, more={"weights/byteorder": b"big"}), "big-endian"),
        (build.stream({}, little=False), "big-endian"),
        (
            build.archive(one("a", "torch.ComplexFloatStorage"), {"0": bytes(8)}),
            r"torch\.ComplexFloatStorage",
        ),
        (len(header).to_bytes(8, "little") + header + b"\0", "a has the type F8_E4M3"),
    ):
        refused(tmp_path, data, match)
    np.savez(tmp_path / "w.npz", a=np.array([1j]))
    with pytest.raises(ValueError, match="type '<c16', expected one of f2, f4"):
        weights.read(tmp_path / "w.npz")
    data = build.archive(one("a"), {"0": bytes(4)}, more={"weights/byteorder": b"little"})
    same(weights.read(write(tmp_path, data)), {"a": np.zeros(1, np.float32)})


def test_reading_starts_neither_torch_nor_jax():
    code = (
        "import sys; from vireid_jax.weights import read; "
        f"read({str(FIXTURES / 'archive.pth')!r}); read({str(FIXTURES / 'plain.safetensors')!r}); "
        "assert not {'torch', 'jax', 'flax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
