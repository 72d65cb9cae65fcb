"""What holds for all corruptions: severity rises, images keep their form, functions are pure."""

import functools
import itertools

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.data.corrupt import CORRUPTIONS, SEVERITIES, corrupt

from .pictures import picture, psnr

RISING = [(1, 2), (2, 3), (3, 4), (4, 5)]
# Constants of these order the error of some severities only.
OTHERWISE = {
    "saturate": [(1, 2), (3, 4), (4, 5)],  # S falls to 30 and 10 %, then doubles and more
    "fog": [(1, 2), (2, 3), (2, 4), (2, 5)],  # from 3 to 4 only the cloud gets rougher
    "snow": [(1, 2), (2, 4), (3, 4), (4, 5)],  # from 2 to 3 flakes get larger and rarer
    "frost": [(1, 2), (1, 3), (1, 4), (1, 5)],  # ice adds light, and the image's share falls
    "spatter": [(1, 2), (1, 3), (4, 5)],  # water, then mud; 3 has more and fainter drops than 2
    # The number of passes is 2 1 3 2 2: two passes by one pixel can outweigh one by two.
    "glass_blur": [(a, b) for a in (1, 2) for b in (3, 4, 5)],
}
WITHOUT_CHANCE = {
    "gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate",
    "jpeg_compression", "pixelate",
}  # fmt: skip
PICTURES = [picture(n, (144, 72)) for n in range(8)]


@functools.cache
def results(kind, severity):
    # The same random numbers at each severity: only the constants differ.
    return [
        corrupt(image, kind, severity, rng=np.random.default_rng([5, n]))
        for n, image in enumerate(PICTURES)
    ]


def mean(kind, compare):
    """`compare(corrupted, clean)` averaged over the pictures, for each severity."""
    return [np.mean(list(map(compare, results(kind, s), PICTURES))) for s in SEVERITIES]


def falls(values):
    return all(a > b for a, b in itertools.pairwise(values))


@each("kind", CORRUPTIONS)
def test_severity_raises_the_error(kind):
    values = mean(kind, psnr)
    assert all(values[a - 1] > values[b - 1] for a, b in OTHERWISE.get(kind, RISING)), values
    assert kind in OTHERWISE or values[0] < 45


def test_severity_by_other_measures():
    assert len(CORRUPTIONS) == 20

    def colorfulness(severity):
        images = results("saturate", severity) if severity else PICTURES
        return np.mean([np.ptp(image.astype(int), axis=2).mean() for image in images])

    assert falls([colorfulness(s) for s in (5, 4, 3, 0, 1, 2)])
    snow = mean("snow", psnr)
    assert snow[2] == pytest.approx(snow[1], abs=1), snow
    likeness = mean("frost", lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert falls(likeness), likeness
    wet = mean("spatter", lambda a, b: (a != b).any(2).mean())
    assert falls(wet[2::-1]) and falls(wet[:2:-1]), wet


@each("kind", CORRUPTIONS)
@each("severity", [1, 5])
def test_a_pure_function_of_image_and_generator(kind, severity):
    image = picture(1)
    image.flags.writeable = False
    before = image.copy()
    one, two, other = (
        corrupt(image, kind, severity, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(image, before)
    assert one.dtype == np.uint8 and one.shape == image.shape
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, image)
    assert np.array_equal(one, other) == (kind in WITHOUT_CHANCE)


@each("kind", CORRUPTIONS)
def test_bytes_and_floats_are_corrupted_alike(kind):
    image = picture(2)
    results = [
        CORRUPTIONS[kind](x, 3, np.random.default_rng(0))
        for x in (image, image / np.float32(255), image / 255)
    ]
    for result in results:
        assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 1
        # Chance that depends on values, as a count does, may turn on a last bit.
        assert np.abs(result - results[0]).mean() < 1e-3


@each("kind", CORRUPTIONS)
@each("size", [(16, 16), (17, 33), (61, 16)])
def test_any_size(kind, size):
    for severity in (1, 5):
        out = corrupt(picture(3, size), kind, severity, rng=np.random.default_rng(severity))
        assert out.shape == (*size, 3) and out.dtype == np.uint8


@each("kind", CORRUPTIONS)
@each("level", [0, 128, 255])
def test_plain_images(kind, level):
    image = np.full((32, 24, 3), level, np.uint8)
    for severity in (1, 5):
        out = corrupt(image, kind, severity, rng=np.random.default_rng(0))
        if kind.endswith("blur") or kind in ("contrast", "pixelate", "elastic_transform"):
            np.testing.assert_array_equal(out, image)  # nothing to blur; truncation takes nothing


@each("kind", ["gaussian_blur", "zoom_blur", "snow", "fog", "brightness", "contrast", "pixelate"])
def test_gray_stays_gray(kind):
    image = np.repeat(picture(4)[..., :1], 3, axis=2)
    out = corrupt(image, kind, 2, rng=np.random.default_rng(0)).astype(int)
    assert np.ptp(out, axis=2).max() <= 1
