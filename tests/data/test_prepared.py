"""Prepared data sets: what goes in comes out, and nothing half-written is ever taken for one."""

import dataclasses
import errno
import io
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.mixed_tree import at_once, broken_tree, files_of, in_files, never, python, tree
from tests.support.rows import each
from vireid_jax.data import arrays, cache, decoding, prepared
from vireid_jax.data.readers.common import TreeError
from vireid_jax.runtime import files


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("tree") / "RegDB")


@pytest.fixture(scope="module")
def out(source, tmp_path_factory):
    folder, calls = tmp_path_factory.mktemp("out"), []
    in_files(source, folder, progress=lambda *x: calls.append(x))
    assert calls == [(8, 24), (16, 24), (24, 24)]
    return folder


@pytest.fixture
def copy(out, tmp_path):
    """A prepared set that may be changed."""
    return shutil.copytree(out, tmp_path / "copy")


# --- What goes in comes out -----------------------------------------------------------------


def test_bytes_and_columns_come_back_in_order(source, out):
    ready = prepared.find("regdb", out=out)
    for path, name, image in zip(
        source.records.images, source.records.name, ready.records.images, strict=True
    ):
        original = pathlib.Path(path).read_bytes()
        with Image.open(path) as picture:
            size, plain = picture.size[::-1], picture.mode != "P" and not path.endswith("bmp")
        if not plain:
            assert image.startswith(b"\x89PNG"), name
            assert (arrays.decode([image], size) == arrays.decode([original], size)).all()
        else:
            assert image == original, name
    for column in ("person", "camera", "modality"):
        was, now = getattr(source.records, column), getattr(ready.records, column)
        assert (was == now).all() and was.dtype == now.dtype
    assert ready.records.name == source.records.name
    assert (ready.part == source.part).all()
    for field in ("name", "checks", "problems", "persons"):
        assert getattr(ready, field) == getattr(source, field)


def test_it_is_a_tfds_data_set(source, out):
    tfds = pytest.importorskip("tensorflow_datasets")
    built = tfds.builder_from_directory(out / "regdb" / prepared.VERSION)
    assert str(built.version) == prepared.VERSION and built.info.splits["images"].num_shards == 3
    rows = built.as_data_source("images")
    assert len(rows) == 24
    for n, path in enumerate(source.records.images):
        image = rows[n]["image"]
        assert (image == arrays.decode([path], image.shape[:2])[0]).all()
        assert rows[n]["name"].decode() == source.records.name[n]
        assert rows[n]["part"].decode() == source.part[n]
        for column in ("person", "camera", "modality"):
            assert rows[n][column] == getattr(source.records, column)[n]


def unusual():
    """{ending: an encoded image of 12 x 7 that some readers take for other pixels}."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (12, 7, 3), np.uint8))
    gray = color.convert("L")
    deep = Image.fromarray(rng.integers(0, 2**16, (12, 7), np.uint16))
    turned, clear = Image.Exif(), {"transparency": (1, 2, 3)}
    turned[0x0112] = 6
    found = {}
    for ending, (picture, options) in {
        "cmyk.jpg": (color.convert("CMYK"), {}),
        "turned.jpg": (color, {"exif": turned}),
        "turned.png": (gray, {"exif": turned}),
        "palette.png": (color.quantize(16), {}),
        "gray4.png": (gray.quantize(8), {"bits": 4}),
        "bit.png": (color.convert("1"), {}),
        "deep.png": (deep, {}),
        "alpha.png": (color.convert("LA"), {}),
        "rgba.png": (color.convert("RGBA"), {}),
        "clear.png": (color, clear),
        "moving.png": (color, {"save_all": True, "append_images": [color.rotate(180)]}),
        "lossless.webp": (color, {"lossless": True}),
    }.items():
        buffer = io.BytesIO()
        picture.save(
            buffer,
            Image.registered_extensions()[f".{ending[-3:]}"]
            if not ending.endswith("webp")
            else "WEBP",
            **options,
        )
        found[ending] = buffer.getvalue()
    return found


def test_other_programs_read_the_same_pixels(tmp_path):
    """What is not plain is stored as decoded, so that whoever opens it finds RGB or gray."""
    for ending, data in unusual().items():
        path = tmp_path / ending
        path.write_bytes(data)
        assert not decoding.is_plain(data), ending
        stored = prepared._as_stored(path)
        size = (7, 12) if ending.startswith("turned") else (12, 7)
        with Image.open(io.BytesIO(stored)) as picture:
            assert picture.format == "PNG" and picture.mode in ("RGB", "L"), ending
            assert picture.size == size[::-1] and not picture.getexif(), ending
            pixels = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(pixels, arrays.decode([data], size)[0], ending)
        assert decoding.is_plain(stored), ending


def test_opening_and_taking_read_no_image(out, monkeypatch):
    read = []
    record = prepared._Shards.__getitem__
    monkeypatch.setattr(
        prepared._Shards, "__getitem__", lambda self, row: read.append(row) or record(self, row)
    )
    ready = prepared.open(out / "regdb" / prepared.VERSION)
    some = ready.take(np.array([23, 0, 9])).take(np.array([False, True, True]))
    assert len(some.records.images) == 2 and some.records.name[0] == ready.records.name[0]
    assert read == []
    assert some.records.images[0] == ready.records.images[-24]
    assert read == [0, 0]
    with pytest.raises(IndexError):
        some.records.images[2]
    with pytest.raises(TypeError, match="take"):
        ready.records.images[:2]


def test_a_set_that_is_open_outlives_its_replacement(source, out, copy):
    ready = prepared.find("regdb", out=copy)
    prepared.prepare(source.take(np.arange(23, -1, -1)), out=copy)
    assert list(ready.records.images) == list(prepared.find("regdb", out=out).records.images)


def test_threads_may_read_at_once(source, out):
    images = prepared.find("regdb", out=out).records.images
    decoded = arrays.decode(list(images) * 20, (16, 8))
    assert (arrays.decode(images.take(np.tile(np.arange(24), 20)), (16, 8)) == decoded).all()


def test_reading_needs_neither_tensorflow_nor_tfds(source, out):
    code = """
    for name in ("tensorflow", "tensorflow_datasets", "torch", "jax"):
        assert name not in sys.modules
        sys.modules[name] = None
    ready = prepared.find("regdb", out=sys.argv[1])
    print(arrays.decode(ready.records.images, (16, 8)).sum(), len(ready.records))
    """
    total = arrays.decode(source.records.images, (16, 8)).sum()
    assert python(code, out).split() == [str(total), "24"]


def test_the_reader_of_records_agrees_with_protocol_buffers():
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.proto import tf_example_pb2 as proto

    rng = np.random.default_rng(1)
    for size in (0, 1, 127, 128, 70_000):
        image = rng.bytes(size)
        example = proto.Example()
        example.features.feature["a"].float_list.value.extend([1.0, 2.0])
        example.features.feature["image"].bytes_list.value.append(image)
        example.features.feature["n"].int64_list.value.append(-5)
        record = example.SerializeToString()
        assert prepared.image_of(record) == image
    example = proto.Example()
    example.features.feature["picture"].bytes_list.value.append(b"x")
    with pytest.raises(ValueError, match="no feature 'image'"):
        prepared.image_of(example.SerializeToString())
    with pytest.raises(ValueError, match="prepare"):
        prepared.image_of(b"\x0a")


def test_the_reader_of_records_passes_over_other_fields():
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    value = field(2, field(1, field(9, b"no") + field(1, b"yes")))
    entry = field(1, b"image") + field(5, b"") + value
    other = field(1, b"name") + field(2, field(1, field(1, b"image")))
    record = field(3, field(1, b"")) + field(1, field(7, entry[:4]) + field(1, other))
    assert prepared.image_of(record + field(1, field(1, entry))) == b"yes"


# --- When it is written again ---------------------------------------------------------------


def test_an_unchanged_tree_is_not_prepared_again_and_needs_no_writing(source, out, monkeypatch):
    for forbidden in ("locked", "clear_temporaries", "temporary", "check_space"):
        monkeypatch.setattr(files, forbidden, None)
    ready = prepared.prepare(source, out=out, progress=never).records
    assert len(ready) == 24 and ready.images.fingerprint == cache.fingerprint(source)


def test_a_changed_tree_is(tmp_path):
    listing = tree(tmp_path / "tree", 6)
    ready = prepared.prepare(listing, out=tmp_path)
    assert listing.records.images[2].endswith("jpeg")
    with open(listing.records.images[2], "ab") as file:
        file.write(b"\0")
    assert ready.records.images.fingerprint != cache.fingerprint(listing)
    again = prepared.prepare(listing, out=tmp_path)
    assert again.records.images.fingerprint == cache.fingerprint(listing)
    assert again.records.images[2] == ready.records.images[2] + b"\0"
    assert files_of(tmp_path / "regdb")[0] == prepared.VERSION
    assert not [f for f in files_of(tmp_path / "regdb") if "part" in f or "old" in f]

    rows = np.arange(5)
    fewer = listing.take(rows)
    relabeled = dataclasses.replace(fewer, part=np.array(["train"] * 5))
    renamed = dataclasses.replace(
        fewer, records=dataclasses.replace(fewer.records, name=list("abcde"))
    )
    prints = [cache.fingerprint(x) for x in (listing, fewer, relabeled, renamed)]
    assert len(set(prints)) == 4
    assert len(prepared.prepare(fewer, out=tmp_path).records) == 5


def test_an_image_that_changed_in_place_is_stored_again(tmp_path, caplog):
    """Of the same size and time: its content decides, and nothing else does."""
    listing = tree(tmp_path / "tree", 6)
    before = list(prepared.prepare(listing, out=tmp_path).records.images)
    row = next(n for n, p in enumerate(listing.records.images) if p.endswith("bmp"))
    path = pathlib.Path(listing.records.images[row])
    was = path.stat()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    after = list(prepared.prepare(listing, out=tmp_path).records.images)
    assert [n for n in range(6) if before[n] != after[n]] == [row]
    assert "holds other images or labels than are listed now" in caplog.text
    os.utime(path)  # as a copy of the tree has it
    prepared.prepare(listing, out=tmp_path, progress=never)


def test_a_set_is_used_only_under_the_rules_it_was_accepted_under(source, out, tmp_path):
    ready = prepared.find("regdb", out=out)
    prepared.check_accepted(ready, strict=False, unreadable="refuse")
    message = "was accepted with strict=False: 1 of 2 checks differ: persons 5 instead of "
    with pytest.raises(TreeError, match=message) as caught:
        prepared.check_accepted(ready, strict=True, unreadable="refuse")
    assert "--config.data.strict=False" in str(caught.value) and "\n" not in str(caught.value)
    broken, _ = broken_tree(tmp_path / "tree")
    skipped = prepared.prepare(broken, out=tmp_path, unreadable="skip")
    prepared.check_accepted(skipped, strict=False, unreadable="skip")
    with pytest.raises(cache.UnreadableError, match="4 of 20 images"):
        prepared.check_accepted(skipped, strict=False, unreadable="refuse")


def test_a_record_that_rotted_is_an_error(copy):
    shard = next(copy.rglob("*record-00001"))
    content = bytearray(shard.read_bytes())
    at = content.index(b"IHDR")
    content[at : at + 4] = b"RDHI"
    shard.write_bytes(content)
    ready = prepared.find("regdb", out=copy)
    with pytest.raises(TreeError, match=r"record-00001 cannot be read: .* prepare it again"):
        list(ready.records.images)
    # It is no image that could be skipped: prepared again, all are there.
    with pytest.raises(TreeError, match="prepare it again"):
        decoding.decodable(ready.records.images, ready.records.name, (16, 8), "lanczos")


FILES = ["listing.npz", "metadata.json", "dataset_info.json"]
DAMAGES = ["shard", "no shard", *FILES, *(f"fifo {name}" for name in [*FILES, "shard"])]


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_noticed_and_repaired(source, out, copy, what, caplog):
    version = copy / "regdb" / prepared.VERSION
    path = next(version.glob("*record-00001")) if "shard" in what else version / what.split()[-1]
    content = path.read_bytes()
    if what.startswith(("no", "fifo")):
        path.unlink()
        if what.startswith("fifo"):  # nobody must wait for it
            os.mkfifo(path)
    elif what == "shard":  # it keeps its size, and loses its index
        path.write_bytes(content[:-65536] + bytes(65536))
    else:
        path.write_bytes(content[:-70])
    with pytest.raises(TreeError, match=r"1\.1\.0 is damaged .* prepare the data set again"):
        prepared.find("regdb", out=copy)
    with caplog.at_level(logging.WARNING, "vireid_jax"):
        ready = prepared.prepare(source, out=copy)
    assert "damaged" in caplog.text
    assert [len(x) for x in ready.records.images] == [
        len(x) for x in prepared.find("regdb", out=out).records.images
    ]


@each(
    "name, content, message",
    [
        ("metadata.json", "[" * 200_000, "metadata.json cannot be read: it is nested too deep"),
        ("metadata.json", "{}", "no 'fingerprint'"),
        ("dataset_info.json", "[1]", "list indices"),
        ("listing.npz", dict(person=np.zeros(24)), "float64 .24. of person, expected"),
        ("listing.npz", dict(part=np.array("all")), r"<U3 \[\] of part"),
        ("listing.npz", dict(more=np.zeros(2**20)), "has more than 1.0 MB"),
    ],
)
def test_wrong_facts_are_damage(out, copy, monkeypatch, name, content, message):
    path = copy / "regdb" / prepared.VERSION / name
    if isinstance(content, dict):
        monkeypatch.setattr(prepared, "_MOST_BYTES", 10**6)
        with np.load(path) as stored:
            np.savez_compressed(path, **{**stored, **content})
    else:
        path.write_text(content)
    with pytest.raises(TreeError, match=message):
        prepared.find("regdb", out=copy)
    shutil.copy(out / "regdb" / prepared.VERSION / name, path)


def test_where_sets_are_kept_and_found(source, out, monkeypatch):
    assert prepared.find("sysu", out=out) is None
    monkeypatch.setenv("VIREID_DATA", str(out))
    assert len(prepared.find("regdb").records) == 24
    monkeypatch.delenv("VIREID_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert prepared.default_folder() == "/nowhere/vireid_jax/data"
    assert prepared.find("regdb") is None
    with pytest.raises(FileNotFoundError, match="no prepared data set in"):
        prepared.open(out / "regdb")


def test_several_at_once_prepare_once(tmp_path):
    listing, calls = tree(tmp_path / "tree", 12), []
    prepared._tfds()  # its import is not what is tested

    def one():
        return prepared.prepare(listing, out=tmp_path, progress=lambda *x: calls.append(x))

    assert [len(ready.records) for ready in at_once(3, one)] == [12] * 3
    assert calls == [(12, 12)]
    assert [p.name for p in (tmp_path / "regdb").iterdir()] == [prepared.VERSION]


def test_an_address_is_refused(source, monkeypatch):
    """Neither tfds nor array_record reads gs:// without more: mount the bucket."""
    for out in ("gs://bucket/folder", None):
        monkeypatch.setenv("VIREID_DATA", "gs://bucket/folder")
        for call in (prepared.prepare, lambda x, out: prepared.find(x.name, out=out)):
            with pytest.raises(ValueError, match=r"gs://bucket/folder is an address.*mount the"):
                call(source, out=out)


def test_preparing_without_tfds_says_what_to_install(source, tmp_path):
    code = """
    sys.modules["tensorflow_datasets"] = None
    out = pathlib.Path(sys.argv[1])
    try:
        prepared.prepare(tree(out / "tree", 6), out=out)
    except ImportError as error:
        print(error, [p.name for p in out.iterdir()])
    """
    said = python(code, tmp_path)
    assert "pip install 'vireid_jax[data]'" in said and "['tree']" in said


# --- Images that cannot be read -------------------------------------------------------------


def test_unreadable_images_are_named_and_refused_or_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_CHUNK", 3)
    listing, rows = broken_tree(tmp_path / "tree")
    with pytest.raises(cache.UnreadableError, match="4 of 20 images") as caught:
        prepared.prepare(listing, out=tmp_path)
    for row in rows:
        assert listing.records.images[row] in str(caught.value)
        assert any(listing.records.name[row] in line for line in caught.value.problems)
    assert "unreadable='skip'" in str(caught.value) and "does not exist" in str(caught.value)
    assert files_of(tmp_path / "regdb") == []
    assert prepared.find("regdb", out=tmp_path) is None

    ready = prepared.prepare(listing, out=tmp_path, unreadable="skip")
    left = [n for n in range(20) if n not in rows]
    assert ready.records.name == [listing.records.name[n] for n in left]
    assert (ready.part == listing.part[left]).all()
    kept = [listing.records.images[n] for n in left]
    assert list(ready.records.images) == list(map(prepared._as_stored, kept))
    assert len(ready.problems) == 1 + 4
    for row in rows:
        assert sum(listing.records.images[row] in line for line in ready.problems) == 1
    # The tree is the same; who refuses still hears of them.
    assert ready.records.images.fingerprint == cache.fingerprint(listing)
    with pytest.raises(cache.UnreadableError, match="4 of 20"):
        prepared.prepare(listing, out=tmp_path, progress=never)
    prepared.prepare(listing, out=tmp_path, unreadable="skip", progress=never)
    with pytest.raises(cache.UnreadableError, match="4 of 4"):
        prepared.prepare(listing.take(np.array(rows)), out=tmp_path, unreadable="skip")


def test_a_long_list_of_unreadable_images_is_cut():
    error = cache.UnreadableError("sysu", [f"image{n}: bad" for n in range(900)], 1000)
    assert "900 of 1,000" in str(error) and "and 895 more" in str(error)
    assert len(error.problems) == 900 and len(str(error)) < 300


def test_bad_options_and_listings(source, tmp_path):
    with pytest.raises(ValueError, match="'ignore', expected refuse or skip"):
        prepared.prepare(source, out=tmp_path, unreadable="ignore")
    with pytest.raises(ValueError, match="sysu, regdb"):
        prepared.prepare(dataclasses.replace(source, name="mars"), out=tmp_path)
    with pytest.raises(ValueError, match="sysu, regdb"):
        prepared.find("mars", out=tmp_path)
    with pytest.raises(ValueError, match="no images"):
        prepared.prepare(source.take(np.arange(0)), out=tmp_path)
    assert files_of(tmp_path) == []


# --- Interruptions and full disks -----------------------------------------------------------


def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path):
    code = """
    def kill(done, total):
        if done > 3:
            os.kill(os.getpid(), signal.SIGKILL)
    out = pathlib.Path(sys.argv[1])
    prepared._CHUNK = 3
    prepared.prepare(tree(out / "tree", 12), out=out, progress=kill)
    """
    python(code, tmp_path, expected=-9)
    assert any("array_record" in f for f in files_of(tmp_path / "regdb"))  # it was under way
    assert prepared.find("regdb", out=tmp_path) is None
    shutil.rmtree(tmp_path / "tree")
    ready = prepared.prepare(tree(tmp_path / "tree", 12), out=tmp_path)
    assert len(list(ready.records.images)) == 12
    assert [p.name for p in (tmp_path / "regdb").iterdir()] == [prepared.VERSION]


def test_an_interrupted_replacement_keeps_the_old_set(source, copy):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared.prepare(source.take(np.arange(4)), out=copy, progress=interrupt)
    assert [p.name for p in (copy / "regdb").iterdir()] == [prepared.VERSION]
    assert len(prepared.find("regdb", out=copy).records) == 24


def test_a_disk_that_fills_up(copy):
    """A limit on the size of files stands for the disk: the writer is told the same way."""
    code = """
    import resource
    out = pathlib.Path(sys.argv[1])
    listing = tree(out / "tree", 6)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        prepared.prepare(listing, out=out)
    except OSError as error:
        print(error.errno, error)
    """
    said = python(code, copy)
    assert said.startswith(f"{errno.ENOSPC} ") and "preparing regdb needs " in said
    assert " bytes (" in said and "), and did not fit in" in said and said.count("\n") == 1
    assert "VIREID_DATA" in said and str(copy / "regdb") in said
    assert [p.name for p in (copy / "regdb").iterdir()] == [prepared.VERSION]
    assert len(prepared.find("regdb", out=copy).records) == 24


def test_a_disk_that_is_too_small_is_not_begun_with(source, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1234})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"needs [\d,]+ bytes .* 1\.2 kB are free") as caught:
        prepared.prepare(source, out=tmp_path, progress=never)
    assert caught.value.errno == errno.ENOSPC
    assert files_of(tmp_path / "regdb") == []
