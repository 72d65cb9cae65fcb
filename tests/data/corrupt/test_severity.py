"""What holds for all corruptions: severity rises, images keep their form, functions are pure."""

import functools
import itertools

import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.data.corrupt import CORRUPTIONS, SEVERITIES, corrupt

from .pictures import picture, psnr

# Constants of these do not order the error: see the tests that name them.
OTHERWISE = {"glass_blur", "snow", "frost", "fog", "spatter", "saturate"}
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


def mean_psnr(kind):
    return mean(kind, psnr)


def falls(values):
    return all(a > b for a, b in itertools.pairwise(values))


@each("kind", sorted(set(CORRUPTIONS) - OTHERWISE))
def test_severity_raises_the_error(kind):
    values = mean_psnr(kind)
    assert falls(values), values
    assert values[0] < 45


def test_saturate_pales_first_and_then_becomes_vivid():
    """S falls to 30 and 10 %, then doubles and more: two scales, each rising."""
    values = mean_psnr("saturate")
    assert falls(values[:2]) and falls(values[2:]), values

    def colorfulness(severity):
        images = results("saturate", severity) if severity else PICTURES
        return np.mean([np.ptp(image.astype(int), axis=2).mean() for image in images])

    assert falls([colorfulness(s) for s in (5, 4, 3, 0, 1, 2)])


def test_fog_thickens_by_strength():
    """From severity 3 to 4 only the roughness of the cloud changes, the rest is chance."""
    values = mean_psnr("fog")
    assert falls(values[:3]) and min(values[:2]) > max(values[2:]), values


def test_snow_thickens():
    """From 2 to 3 flakes are larger and rarer above a higher threshold: about as much in all."""
    values = mean_psnr("snow")
    assert falls([values[n] for n in (0, 1, 3, 4)]) and falls(values[2:]), values
    assert values[2] == pytest.approx(values[1], abs=1), values


def test_frost_hides_ever_more():
    """Ice adds light and the image's share falls, so the two partly cancel in the error."""
    values = mean_psnr("frost")
    assert values[0] > max(values[1:]), values
    likeness = mean("frost", lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert falls(likeness), likeness


def test_spatter_of_water_and_of_mud_each_spreads():
    values = mean_psnr("spatter")
    # Severity 3 has more and fainter drops than 2 (strength 0.5 after 0.6).
    assert values[0] > max(values[1:3]) and values[3] > values[4], values
    wet = mean("spatter", lambda a, b: (a != b).any(2).mean())
    assert falls(wet[2::-1]) and falls(wet[:2:-1]), wet


def test_glass_blur_grows_from_end_to_end():
    """The number of passes is 2 1 3 2 2: two passes by one pixel can outweigh one by two."""
    values = mean_psnr("glass_blur")
    assert values[0] > values[2] and values[1] > max(values[2:]), values
    assert min(values[:2]) > max(values[2:]), values


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
