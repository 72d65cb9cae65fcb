"""Stored images to pixels."""

import io
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.data.loading import encode, smooth
from tests.support.rows import each
from vireid_jax.data import arrays, decoding

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


# What is stored of an upright image under each orientation of EXIF, by the standard's words: 6, the
# first row is the right side and the first column the top.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


def marked(image, kind, orientation):
    """An encoded image with an orientation in its EXIF."""
    note, buffer = Image.Exif(), io.BytesIO()
    note[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, exif=note)
    return buffer.getvalue()


@each("kind", ["PNG", "TIFF", "JPEG"])
def test_images_that_are_marked_as_turned_come_out_upright(kind):
    # Blocks of one gray, which JPEG keeps.
    color = np.random.default_rng(0).integers(0, 256, (3, 2, 1), np.uint8)
    color = color.repeat(16, 0).repeat(16, 1).repeat(3, 2)
    deep = color[..., 0].astype(np.uint16) << 8
    for image in (color, color[..., 0], *([] if kind == "JPEG" else [deep])):
        for orientation, turn in STORED.items():
            got = arrays.decode([marked(turn(image), kind, orientation)], (48, 32))[0]
            np.testing.assert_allclose(got, color, atol=2, err_msg=f"{orientation} {image.dtype}")


def test_broken_notes_are_no_broken_images():
    image = smooth(SIZE, 1)[0]
    stored = [marked(image, "JPEG", orientation) for orientation in (1, 0, 9, 6)]
    stored[3] = stored[3].replace(b"Exif\0\0MM", b"Exif\0\0XX")
    got = arrays.decode(stored, SIZE)
    assert (got == got[0]).all() and abs(got[0].astype(int) - image).mean() < 20


def test_what_is_no_image_of_a_sane_size_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(200 * 10**9)
    (tmp_path / "folder.jpg").mkdir()
    # A megabyte of zeros is a kilobyte of PNG; what it declares is not unpacked.
    bomb = encode(np.zeros((1024, 1024), np.uint8), "PNG")
    (tmp_path / "bomb.jpg").write_bytes(bomb)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1024 * 1024 - 1)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    for name, said in {
        "pipe": r"it is a FIFO \(named pipe\), expected a regular file",
        "sparse": r"it has 200,000,000,000 bytes \(200.0 GB\), expected at most 268.4 MB",
        "folder": "it is a folder",
        "bomb": r"it has 1,024 x 1,024 pixels, expected at most 1,048,575",
    }.items():
        with pytest.raises(ValueError, match=rf"cannot decode .*{name}\.jpg.*: {said}"):
            arrays.decode([str(tmp_path / f"{name}.jpg")], SIZE)
    with pytest.raises(ValueError, match="it is a device"):
        arrays.decode(["/dev/zero"], SIZE)


def test_bad_options_are_refused():
    stored = [encode(smooth(SIZE, 1)[0], "PNG")]
    for options, message in (({"size": (0, 3)}, "size is"), ({"filter": "box"}, "filter is")):
        with pytest.raises(ValueError, match=message):
            arrays.decode(stored, **{"size": SIZE} | options)
