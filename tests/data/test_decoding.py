"""Stored images to pixels."""

import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from tests.data.loading import encode, smooth
from tests.support.rows import each
from vireid_jax.data import arrays

SIZE = (20, 12)


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
    assert arrays.decode([], SIZE).shape == (0, *SIZE, 3)


@each("kind", ["PNG", "JPEG", "BMP"])
def test_images_stored_at_their_size_come_out_as_stored(kind):
    images = smooth(SIZE, 9)
    images[::3, 0] = 0  # a BMP with a black first line ends in zeros, which belong to it
    encoded = [encode(image, kind) for image in images]
    want = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in encoded])
    np.testing.assert_array_equal(arrays.decode(encoded, SIZE), want)
    if kind != "JPEG":
        np.testing.assert_array_equal(want, images)


def test_jpeg_is_decoded_in_full_however_small_it_gets():
    # Decoding at a fraction of the size would be faster, with other pixels.
    image = smooth((160, 96), 1)[0]
    data = encode(image, "JPEG")
    full = encode(np.asarray(Image.open(io.BytesIO(data))), "PNG")
    np.testing.assert_array_equal(arrays.decode([data], SIZE), arrays.decode([full], SIZE))


@each("filter", arrays.FILTERS)
@each("size", [(53, 31), (9, 11), SIZE])
def test_gray_images_are_resized_as_color_ones(filter, size):
    # Stored in one channel, in three equal ones, and equal but for one pixel.
    gray = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    color = np.dstack([gray] * 3)
    touched = color.copy()
    touched[0, 0, 1] ^= 255
    resample = getattr(Image.Resampling, filter.upper())
    want = []
    for image in (color, touched):
        wide = Image.fromarray(image).resize((SIZE[1], size[0]), resample)
        want.append(np.asarray(wide.resize(SIZE[::-1], resample)))
    assert (want[0] != want[1]).any()
    stored = [encode(image, "PNG") for image in (gray, color, touched)]
    got = arrays.decode(stored, SIZE, filter=filter)
    np.testing.assert_array_equal(got, np.stack([want[0], want[0], want[1]]))


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


@each("filter", arrays.FILTERS)
@each("size", [(61, 29), (29, 61), (9, 5)])
def test_decode_resizes_rows_then_columns_with_the_named_filter(filter, size):
    # Tall images too, where Pillow's own order depends on its version.
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    wide = naive_resize(image.transpose(1, 0, 2).astype(float), SIZE[1], filter)
    want = naive_resize(wide.transpose(1, 0, 2), SIZE[0], filter)
    got = arrays.decode([encode(image, "PNG")], SIZE, filter=filter)[0]
    # Pillow's weights are integers over 2^22, so a sum at the edge may round the other way.
    assert abs(got - want).max() <= 1
    assert (got != want).mean() < 0.02


@each(
    "damaged, said",
    [
        (lambda data: data[:200], "[Tt]runcated"),
        (lambda data: b"<html>404</html>", r"no image, it begins b'<html>404</html>'"),
        (lambda data: b"", "it is empty"),
    ],
)
@each("as_paths", [False, True])
def test_an_image_that_cannot_be_decoded_is_named(damaged, said, as_paths, tmp_path):
    """The same words from a path and from memory, run after run."""
    stored = [encode(image, "JPEG") for image in smooth(SIZE, 9)]
    stored[7] = damaged(stored[7])
    if as_paths:
        paths = [str(tmp_path / f"{n}.jpg") for n in range(9)]
        for path, data in zip(paths, stored, strict=True):
            pathlib.Path(path).write_bytes(data)
        stored = paths
    what = r"cannot decode .*7\.jpg" if as_paths else "image 7"
    with pytest.raises(ValueError, match=f"{what}.*{said}") as error:
        arrays.decode(stored, SIZE)
    assert re.search(said, str(error.value.__cause__))
    names = [f"cam3/{n}" for n in range(9)]
    with pytest.raises(ValueError, match=r"cannot decode cam3/7 \(") as error:
        arrays.decode(stored, SIZE, names=names)
    assert ("7.jpg" in str(error.value)) == as_paths


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"0\.png .*does not exist"):
        arrays.decode([str(tmp_path / f"{n}.png") for n in range(5)], SIZE)


def test_32_bit_images_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.ones(SIZE, np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="32-bit pixels"):
        arrays.decode([buffer.getvalue()], SIZE)


def test_bad_options_are_refused():
    stored = [encode(smooth(SIZE, 1)[0], "PNG")]
    for options, message in (({"size": (0, 3)}, "size is"), ({"filter": "box"}, "filter is")):
        with pytest.raises(ValueError, match=message):
            arrays.decode(stored, **{"size": SIZE} | options)
