import io
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vireid_jax.data import arrays, sampler
from vireid_jax.types import Records, check_batch, train_labels

ROOT = pathlib.Path(__file__).parents[2]
SIZE = (20, 12)
P, K = 4, 2


def make_records(images, people=6):
    n = len(images)
    return Records(
        images,
        (np.arange(n) // 2 % people * 5 + 2).astype(np.int32),
        (np.arange(n) % 3 + 1).astype(np.int32),
        (np.arange(n) % 2).astype(np.int8),
        [f"cam/{i:04d}" for i in range(n)],
    )


def smooth(size, n, seed=0):
    """Images with structure, as JPEG and resizing expect them: uint8 [n, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    wave = rng.uniform(0.1, 0.9, (n, 1, 1, 3, 2))
    image = 128 + 100 * np.sin(wave[..., 0] * y[..., None] + wave[..., 1] * x[..., None])
    return np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)


def encode(image, kind):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return out.getvalue()


RECORDS = make_records(np.random.default_rng(0).integers(0, 256, (36, *SIZE, 3), np.uint8))
LABEL, PERSONS = train_labels(RECORDS)
STEPS = 3


def plan(epoch):
    return sampler.plan(
        LABEL,
        RECORDS.modality,
        num_ids=P,
        num_instances=K,
        seed=5,
        epoch=epoch,
        steps_per_epoch=STEPS,
    )


def array_loader(records, **options):
    return arrays.batches(records, LABEL, plan, **{"start": 0, "stop": 7} | options)


def tf_loader(records, **options):
    from vireid_jax.data import tfdata

    return tfdata.batches(records, LABEL, plan, **{"start": 0, "stop": 7} | options)


LOADERS = [pytest.param(array_loader, id="arrays"), pytest.param(tf_loader, id="tfdata")]


def assert_same(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected) > 0
    for got, want in zip(batches, expected, strict=True):
        assert set(got) == set(want) == {"visible", "infrared", "label", "camera"}
        for key in want:
            assert got[key].dtype == want[key].dtype
            np.testing.assert_array_equal(got[key], want[key])


def naive(start=0, stop=7):
    """The batches, one image at a time."""
    for s in range(start, stop):
        visible, infrared = plan(s // STEPS)[s % STEPS].tolist()
        yield {
            "visible": np.stack([RECORDS.images[i] for i in visible]),
            "infrared": np.stack([RECORDS.images[i] for i in infrared]),
            "label": np.array(
                [PERSONS.tolist().index(RECORDS.person[i]) for i in visible], np.int32
            ),
            "camera": np.array(
                [
                    [RECORDS.camera[i], RECORDS.camera[j]]
                    for i, j in zip(visible, infrared, strict=True)
                ],
                np.int32,
            ),
        }


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_are_what_the_plan_says_and_keep_the_contract(loader):
    batches = list(loader(RECORDS))
    assert_same(batches, naive())
    for batch in batches:
        check_batch(batch, num_ids=P, num_instances=K)


@pytest.mark.parametrize("loader", LOADERS)
def test_resuming_gives_the_rest_of_the_run(loader):
    for start in (1, STEPS, 5):
        assert_same(loader(RECORDS, start=start), naive(start))
    assert list(loader(RECORDS, start=4, stop=4)) == []


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(loader, processes):
    size = P * K // processes
    parts = [list(loader(RECORDS, rows=slice(i * size, (i + 1) * size))) for i in range(processes)]
    for part in parts[0]:
        check_batch(part, num_ids=P // processes, num_instances=K)
    joined = [
        {key: np.concatenate([p[key] for p in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, naive())


def test_resuming_late_costs_no_earlier_epoch():
    asked = []

    def counting(epoch):
        asked.append(epoch)
        return plan(epoch)

    first = next(arrays.batches(RECORDS, LABEL, counting, start=3001, stop=9000))
    np.testing.assert_array_equal(first["label"], LABEL[plan(1000)[1, 0]])
    assert set(asked) == {0, 1000}


def test_memory_mapped_images_load_alike(tmp_path):
    np.save(tmp_path / "images.npy", RECORDS.images)
    mapped = make_records(np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert_same(array_loader(mapped), naive())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("as_paths", [False, True])
def test_tfdata_equals_arrays_on_images_stored_at_their_size(kind, as_paths, tmp_path):
    images = smooth(SIZE, 36)
    images[::3, 0] = 0  # a BMP with a black first line ends in zeros, which belong to it
    encoded = [encode(image, kind) for image in images]
    stored = encoded
    if as_paths:
        stored = [str(tmp_path / f"{n}.img") for n in range(36)]
        for path, data in zip(stored, encoded, strict=True):
            pathlib.Path(path).write_bytes(data)
    decoded = arrays.decode(stored, SIZE)
    assert_same(
        tf_loader(make_records(stored), image_size=SIZE), array_loader(make_records(decoded))
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("filter", arrays.FILTERS)
@pytest.mark.parametrize("stored_size", [(53, 31), (9, 11)])
def test_tfdata_resizes_as_pillow_to_rounding(kind, filter, stored_size):
    # Noise is the worst case: it fills the range and the filters overshoot.
    images = np.concatenate(
        [smooth(stored_size, 18), np.random.default_rng(1).integers(0, 256, (18, *stored_size, 3))]
    ).astype(np.uint8)
    encoded = [encode(image, kind) for image in images]
    decoded = arrays.decode(encoded, SIZE, filter=filter)
    difference = [
        np.abs(got[key].astype(int) - want[key]).ravel()
        for got, want in zip(
            tf_loader(make_records(encoded), image_size=SIZE, filter=filter),
            array_loader(make_records(decoded)),
            strict=True,
        )
        for key in ("visible", "infrared")
    ]
    assert np.concatenate(difference).max() <= 2
    assert np.concatenate(difference).mean() < 0.1


def test_decode_gives_three_channels_of_every_kind():
    gray = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    color = smooth(SIZE, 1)[0]
    alpha = np.dstack([color, gray])
    deep = gray.astype(np.uint16) * 256 + 77
    palette = Image.fromarray(color).quantize(16)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    stored = [encode(image, "PNG") for image in (gray, color, alpha, deep)] + [buffer.getvalue()]
    expected = [np.dstack([gray] * 3), color, color, np.dstack([gray] * 3)]
    expected.append(np.asarray(palette.convert("RGB")))
    decoded = arrays.decode(stored, SIZE)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.stack(expected))
    # TensorFlow reads each of them the same.
    many = make_records([stored[n % 5] for n in range(36)])
    assert_same(
        tf_loader(many, image_size=SIZE), array_loader(make_records(decoded[np.arange(36) % 5]))
    )


def naive_resize(line, size, filter):
    """Resamples float64 [n, ...] to [size, ...] by the definition of an antialiased filter."""
    support = {"lanczos": 3.0, "bilinear": 1.0}[filter]
    scale = len(line) / size
    stretch = max(scale, 1.0)
    out = []
    for i in range(size):
        center = (i + 0.5) * scale
        first = max(int(center - support * stretch + 0.5), 0)
        last = min(int(center + support * stretch + 0.5), len(line))
        t = (np.arange(first, last) + 0.5 - center) / stretch
        weight = {
            "lanczos": np.where(abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0),
            "bilinear": np.maximum(1 - abs(t), 0),
        }[filter]
        out.append(np.tensordot(weight / weight.sum(), line[first:last], 1))
    return np.clip(np.floor(np.stack(out) + 0.5), 0, 255)


@pytest.mark.parametrize("filter", arrays.FILTERS)
@pytest.mark.parametrize("size", [(61, 29), (29, 61), (9, 5)])
def test_decode_resizes_rows_then_columns_with_the_named_filter(filter, size):
    # Tall images too, where Pillow's own order depends on its version.
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    wide = naive_resize(image.transpose(1, 0, 2).astype(float), SIZE[1], filter)
    want = naive_resize(wide.transpose(1, 0, 2), SIZE[0], filter)
    got = arrays.decode([encode(image, "PNG")], SIZE, filter=filter)[0]
    # Pillow's weights are integers over 2^22, so a sum at the edge may round the other way.
    assert abs(got - want).max() <= 1
    assert (got != want).mean() < 0.02
    assert arrays.decode([], SIZE).shape == (0, *SIZE, 3)


@pytest.mark.parametrize("damage", ["truncated", "not an image", "empty"])
@pytest.mark.parametrize("as_paths", [False, True])
def test_an_image_that_cannot_be_decoded_is_named(damage, as_paths, tmp_path):
    stored = [encode(image, "JPEG") for image in smooth(SIZE, 36)]
    bad = int(np.setdiff1d(plan(0)[1], plan(0)[0])[0])  # first used in the second batch
    stored[bad] = {"truncated": stored[bad][:200], "not an image": b"hello", "empty": b""}[damage]
    if as_paths:
        paths = [str(tmp_path / f"{n}.jpg") for n in range(36)]
        for path, data in zip(paths, stored, strict=True):
            pathlib.Path(path).write_bytes(data)
        stored = paths
    name = f"{bad}.jpg" if as_paths else f"image {bad}"
    with pytest.raises(ValueError, match=rf"cannot decode .*{name}"):
        arrays.decode(stored, SIZE)
    batches = tf_loader(make_records(stored), image_size=SIZE)
    next(batches)
    with pytest.raises(ValueError, match=f"cannot decode .*{name if as_paths else f'{bad:04d}'}"):
        next(batches)


def test_a_missing_file_is_named(tmp_path):
    stored = [str(tmp_path / f"{n}.png") for n in range(36)]
    with pytest.raises(FileNotFoundError, match=r"0\.png .* does not exist"):
        arrays.decode(stored, SIZE)
    with pytest.raises(FileNotFoundError, match=r"\d\.png .* does not exist"):
        next(tf_loader(make_records(stored), image_size=SIZE))


ENCODED = make_records([encode(image, "PNG") for image in RECORDS.images])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"start": 4, "stop": 3}, "4 .. 3"),
        ({"start": -1}, "-1 .. 7"),
        ({"rows": slice(0, 8, 2)}, "contiguous"),
        ({"rows": slice(8, 9)}, "of the 8 rows"),
    ],
)
def test_bad_steps_and_rows_are_refused_at_once(loader, options, message):
    with pytest.raises(ValueError, match=message):
        loader(RECORDS, **options)


def test_the_array_loader_wants_decoded_images():
    with pytest.raises(ValueError, match=r"arrays\.decode"):
        array_loader(ENCODED)
    for images in (RECORDS.images.astype(np.float32), RECORDS.images[..., 0]):
        with pytest.raises(ValueError, match="expected uint8"):
            array_loader(make_records(images))


@pytest.mark.parametrize(
    "records, options, message",
    [
        (ENCODED, {}, "image_size is None"),
        (ENCODED, {"image_size": (20,)}, "height, width"),
        (ENCODED, {"image_size": SIZE, "filter": "cubic"}, "lanczos, bilinear"),
        (ENCODED, {"image_size": SIZE, "prefetch": 0}, "prefetch is 0"),
        (RECORDS, {"image_size": (12, 20)}, "decoded images are"),
    ],
)
def test_bad_options_of_tfdata_are_refused_at_once(records, options, message):
    with pytest.raises(ValueError, match=message):
        tf_loader(records, **options)


def test_bad_options_of_decode_are_refused():
    for options, message in (({"size": (0, 3)}, "size is"), ({"filter": "box"}, "filter is")):
        with pytest.raises(ValueError, match=message):
            arrays.decode(ENCODED.images, **{"size": SIZE} | options)


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda p: p[:, :, 0], "expected int32"),
        (lambda p: p.astype(float), "expected int32"),
        (lambda p: p + 36, "there are 36 records"),
        (lambda p: p[:, ::-1], "wrong modality"),
        (lambda p: np.roll(p, [0, 2], axis=[1, 2]) * [[[1], [0]]] + p * [[[0], [1]]], "different"),
    ],
)
def test_a_plan_for_other_records_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        list(arrays.batches(RECORDS, LABEL, lambda e: broken(plan(e)), start=0, stop=2))


def test_a_plan_that_changes_its_shape_or_its_labels_is_refused():
    def shrinking(epoch):
        return plan(epoch)[: STEPS - epoch]

    with pytest.raises(ValueError, match="plan of epoch 1"):
        list(arrays.batches(RECORDS, LABEL, shrinking, start=0, stop=5))
    with pytest.raises(ValueError, match="one label for each"):
        arrays.batches(RECORDS, LABEL[:-1], plan, start=0, stop=1)
    with pytest.raises(ValueError, match="labeled -1"):
        list(arrays.batches(RECORDS, np.full_like(LABEL, -1), plan, start=0, stop=1))


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_sampler_and_arrays_import_neither_jax_nor_tensorflow():
    done = run(
        "import sys\n"
        "from vireid_jax.data import arrays, sampler\n"
        "print([m for m in ('jax', 'tensorflow', 'PIL') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("how", ["dropped", "error"])
def test_a_process_that_abandons_the_iterator_exits(how):
    code = f"""
import numpy as np
from tests.data.test_loaders import ENCODED, RECORDS, SIZE, tf_loader
encoded = tf_loader(ENCODED, stop=10**6, image_size=SIZE)
decoded = tf_loader(RECORDS, stop=10**6)
for batches in (encoded, decoded):
    for _ in range(3):
        next(batches)
if {how!r} == "dropped":
    del encoded, decoded, batches
print("reached", flush=True)
if {how!r} == "error":
    raise SystemExit(7)
"""
    done = run(code)
    assert "reached" in done.stdout, done.stderr
    assert done.returncode == (7 if how == "error" else 0), done.stderr


def test_tfdata_keeps_tensorflow_off_accelerators():
    import tensorflow as tf

    next(tf_loader(RECORDS))
    assert tf.config.get_visible_devices("GPU") == []


def test_long_runs_are_loaded_in_segments_without_a_seam(monkeypatch):
    from vireid_jax.data import tfdata

    monkeypatch.setattr(tfdata, "_SEGMENT", 2)
    assert_same(tf_loader(ENCODED, image_size=SIZE), naive())
    assert_same(tf_loader(ENCODED, image_size=SIZE, stop=4), naive(stop=4))


def test_two_iterators_do_not_disturb_each_other():
    pairs = list(itertools.zip_longest(tf_loader(RECORDS), tf_loader(RECORDS, start=1)))
    assert_same([a for a, _ in pairs], naive())
    assert_same([b for _, b in pairs[:-1]], naive(1))
