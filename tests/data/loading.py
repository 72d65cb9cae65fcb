"""What the tests of the loaders share: small records in every form, and naive batches."""

import io

import numpy as np
import pytest
from PIL import Image

from vireid_jax.data import arrays, sampler
from vireid_jax.types import INFRARED, VISIBLE, Pixels, Records, train_labels


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


def rows_of(counts, classes=None):
    """(label, modality) of classes with counts [(visible, infrared), ...], rows shuffled."""
    classes = range(len(counts)) if classes is None else classes
    label = [c for c, n in zip(classes, counts, strict=True) for _ in range(sum(n))]
    modality = [m for n in counts for m in (VISIBLE, INFRARED) for _ in range(n[m])]
    shuffle = np.random.default_rng(len(label)).permutation(len(label))
    return np.array(label, np.int32)[shuffle], np.array(modality, np.int8)[shuffle]


SIZE = (20, 12)
P, K = 4, 2

RECORDS = make_records(np.random.default_rng(0).integers(0, 256, (36, *SIZE, 3), np.uint8))
LABEL, PERSONS = train_labels(RECORDS)
STEPS = 3


def plan(epoch):
    size = dict(num_ids=P, num_instances=K, steps_per_epoch=STEPS)
    return sampler.plan(LABEL, RECORDS.modality, seed=5, epoch=epoch, **size)


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


def naive(start=0, stop=7, images=RECORDS.images):
    """The batches, one image at a time."""
    for s in range(start, stop):
        visible, infrared = plan(s // STEPS)[s % STEPS].tolist()
        label = [PERSONS.tolist().index(RECORDS.person[i]) for i in visible]
        yield {
            "visible": np.stack([images[i] for i in visible]),
            "infrared": np.stack([images[i] for i in infrared]),
            "label": np.array(label, np.int32),
            "camera": np.stack([RECORDS.camera[visible], RECORDS.camera[infrared]], 1),
        }


ENCODED = make_records([encode(image, "PNG") for image in RECORDS.images])


class Lazy:
    """Encoded images that are read when asked for, and count how often that was."""

    def __init__(self, data, rows=None, read=None):
        self.data, self.rows = data, list(range(len(data))) if rows is None else rows
        self.read = [] if read is None else read

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if not isinstance(index, int):
            raise TypeError(f"one image at a time, got {index!r}")
        self.read.append(self.rows[index])
        return self.data[self.rows[index]]

    def take(self, rows):
        return Lazy(self.data, [self.rows[r] for r in rows.tolist()], self.read)


def mapped_records(folder):
    """RECORDS as rows of a memory-mapped file that holds other images, too."""
    place = np.random.default_rng(3).permutation(50)[:36]
    stored = np.full((50, *SIZE, 3), 99, np.uint8)
    stored[place] = RECORDS.images
    np.save(folder / "images.npy", stored)
    return make_records(Pixels(np.load(folder / "images.npy", mmap_mode="r"), place))
