"""The loader benchmark measures what it says: the same work, the same plan, the same pixels."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from benchmarks import loader, loader_parts, loader_torch  # noqa: E402
from vireid_jax.data.augment import standardize  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    loader.write_data(folder, cached=640, encoded=640, rendered=2)
    return folder


@pytest.fixture(autouse=True)
def same_threads_and_cores():
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


def test_pytorchs_transforms_are_those_of_the_papers():
    image = np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8)
    padded = np.pad(image, ((loader_torch.PAD,) * 2, (loader_torch.PAD,) * 2, (0, 0)))
    torch.manual_seed(0)
    seen = set()
    for _ in range(300):
        got = np.asarray(loader_torch.crop_and_flip(Image.fromarray(image)))
        found = [
            (top, left, flip)
            for top in range(21)
            for left in range(21)
            for flip in (1, -1)
            if np.array_equal(got, padded[top : top + 9, left : left + 6][:, ::flip])
        ]
        assert found
        if len(found) == 1:  # not a black corner
            seen.add(found[0])
    assert {flip for *_, flip in seen} == {1, -1} and len(seen) > 50
    tensor = loader_torch.normalize(loader_torch.to_tensor(Image.fromarray(image)))
    want = np.asarray(standardize(image)).transpose(2, 0, 1)
    np.testing.assert_allclose(tensor.numpy(), want, atol=1e-5)


def test_contenders_load_the_same_and_the_report_compares_them(folder):
    names = ["cached/arrays", "cached/torch_0", "encoded/arrays", "encoded/torch_0"]
    rows = [loader.merge([loader.measure(name, folder, 0.02)] * 2) for name in names]
    for row in rows:
        images = row["steps"] * loader.IMAGES
        assert row["steps"] >= 4
        assert row["images_per_core_s"] == pytest.approx(images / row["cpu_s"])
        assert row["images_per_s"] == pytest.approx(images / row["wall_s"])
    loader.check_identical(rows)
    with pytest.raises(RuntimeError, match="not the same batches"):
        loader.check_identical([*rows[:3], {**rows[3], "first_batches": "others"}])

    parts = loader_parts.measure(folder, 0.02)
    report = {"rows": rows, "parts": parts, "data": {"jpeg_kb": 9.0, "cores": 2}}
    assert json.loads(json.dumps(report)) == report
    printed = loader.markdown(report)
    ratio = rows[0]["images_per_core_s"] / rows[1]["images_per_core_s"]
    assert f"| {ratio:.2f} |" in printed
    for words in ("Augmentation on the device", "resize rows", "transfer", "gather rows"):
        assert words in printed


def test_the_data_is_what_the_docstring_says(folder):
    images = np.load(folder / "images.npy", mmap_mode="r")
    assert images.shape == (640, 288, 144, 3) and images.dtype == np.uint8
    assert len({x.tobytes() for x in images[:50]}) == 50
    packed = loader.Packed(folder)
    assert len(packed) == 640
    sizes = set()
    for n in range(40):
        assert packed[n].startswith(b"\xff\xd8")
        with Image.open(io.BytesIO(packed[n])) as picture:
            sizes.add(picture.size)
    assert len(sizes) > 10
    assert min(h for _, h in sizes) >= 200 and max(h for _, h in sizes) <= 400
    assert all(w == h * 2 // 5 for w, h in sizes)
