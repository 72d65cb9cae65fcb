"""Which image gets which corruption: uniform, stable, and nothing to do with order or threads."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tests.support.rows import each
from vireid_jax.data import corrupt as corrupted
from vireid_jax.data.corrupt import KINDS, SEVERITIES, Spec, corrupt, corrupt_images, draw, parse
from vireid_jax.types import INFRARED, VISIBLE, Pixels

from .pictures import picture

NAMES = [f"cam{n % 6 + 1}/{n // 6:04d}/{n:04d}" for n in range(24)]
IMAGES = np.stack([picture(n, (48, 24)) for n in range(24)])


def choice(name, **options):
    return draw(name, **options)[:2]


GOLDEN = [
    (("cam1/0006/0025", 0, 0), "gaussian_noise", 5, [2697739321706907669, 6243603028944403610]),
    (("cam1/0006/0025", 0, 1), "snow", 3, [1363724835497521491, 16329725245016040733]),
    (("cam1/0006/0025", 1, 0), "pixelate", 5, [11529837503528754422, 18007365284348144777]),
    (("Visible/1/male_v_1.bmp", 0, 9), "pixelate", 5, [9174628670180332067, 18243276564616766197]),
    (("人/é.jpg", 7, 3), "pixelate", 3, [13916350730554349692, 8535643270306853428]),
    (("", 0, 0), "rain", 1, [3393150720965145275, 17145104929820321505]),
]  # fmt: skip


@each(("where", "kind", "severity", "words"), GOLDEN)
def test_draws_never_change(where, kind, severity, words):
    """Recorded once: SHA-256 and Philox are the same on every platform and in every version."""
    name, seed, repeat = where
    found = draw(name, seed=seed, repeat=repeat)
    assert found[:2] == (kind, severity)
    assert found[2].bit_generator.random_raw(2).tolist() == words


def test_draws_are_uniform_and_independent():
    found = [choice(f"id{n}", seed=0, repeat=r) for n in range(1000) for r in range(10)]
    table = np.zeros((20, 5))
    for kind, severity in found:
        table[KINDS.index(kind), severity - 1] += 1
    assert stats.chisquare(table.ravel()).pvalue > 1e-3
    assert stats.chi2_contingency(table).pvalue > 1e-3
    # Neither do the repeats of an image, or neighbors in a list, go together.
    for step in (1, 10):
        pairs = np.zeros((20, 20))
        for (a, _), (b, _) in zip(found, found[step:], strict=False):
            pairs[KINDS.index(a), KINDS.index(b)] += 1
        assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_seed_repeat_and_name_all_matter_and_do_not_mix():
    options = list(itertools.product(("a", "1a", "11a"), (0, 1, 11), (0, 1, 11)))
    words = [draw(n, seed=s, repeat=r)[2].random() for n, s, r in options]
    assert len(set(words)) == 27
    assert words == [draw(n, seed=s, repeat=r)[2].random() for n, s, r in options]


def test_restricted_draws():
    found = [
        choice(f"{n}", seed=0, repeat=0, kinds=["fog", "rain"], severities=[2, 5])
        for n in range(100)
    ]
    assert set(found) == {("fog", 2), ("fog", 5), ("rain", 2), ("rain", 5)}
    severities = [choice(f"{n}", seed=0, repeat=0, kinds=["fog"])[1] for n in range(2000)]
    assert stats.chisquare(np.bincount(severities)[1:]).pvalue > 1e-3


def test_every_image_by_itself():
    out = corrupt_images(IMAGES, NAMES, seed=3, repeat=2)
    assert out.dtype == np.uint8 and out.shape == IMAGES.shape
    for image, name, result in zip(IMAGES, NAMES, out, strict=True):
        kind, severity, rng = draw(name, seed=3, repeat=2)
        np.testing.assert_array_equal(result, corrupt(image, kind, severity, rng=rng))
    assert not np.array_equal(out, corrupt_images(IMAGES, NAMES, seed=3, repeat=1))


def test_threads_that_meet_in_one_corruption():
    """Shared tables are made on first use: many threads may want them at once."""
    for kind in ("frost", "defocus_blur", "zoom_blur", "snow"):
        corrupted.weather.ice.cache_clear()
        corrupted.ops.disk.cache_clear()
        corrupted.ops._magnifier.cache_clear()
        results = [
            corrupt_images(IMAGES, NAMES, seed=0, repeat=0, kinds=[kind], workers=w) for w in (8, 1)
        ]
        np.testing.assert_array_equal(*results)


def test_any_workers_order_division_and_container(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(NAMES))
    shuffled = np.argsort(order)

    def corrupted(images, rows=slice(None), workers=None):
        names = [NAMES[n] for n in np.arange(len(NAMES))[rows]]
        return corrupt_images(images, names, seed=1, repeat=0, workers=workers)

    whole = corrupted(IMAGES, workers=1)
    for out in (
        *(corrupted(images) for images in (IMAGES, list(IMAGES), mapped, Pixels(mapped))),
        *(corrupted(IMAGES, workers=n) for n in (2, 5, 100)),
        corrupted(IMAGES[order], order)[shuffled],
        np.concatenate([corrupted(IMAGES[n : n + 7], slice(n, n + 7)) for n in range(0, 24, 7)]),
    ):
        np.testing.assert_array_equal(out, whole)
    assert corrupted(IMAGES[:0], slice(0)).shape == (0, 48, 24, 3)
    assert corrupted([], slice(0)).shape == (0, 0, 0, 3)


def test_an_error_in_a_thread_is_raised():
    images = [*IMAGES[:5], IMAGES[5][:-1]]
    for workers in (1, 3):
        with pytest.raises(ValueError, match=r"image 5 has shape \(47, 24, 3\), the first has"):
            corrupt_images(images, NAMES[:6], seed=0, repeat=0, workers=workers)


@each(
    ("options", "message"),
    [
        ({"names": NAMES[:-1]}, "24 images and 23 names"),
        ({"workers": 0}, "workers is 0"),
        ({"kinds": ["fog", "dust"]}, "corruption 'dust' is unknown, expected one of gaussian"),
        ({"kinds": "fog"}, r"kinds is the string 'fog', expected a list such as \['fog'\]"),
        ({"kinds": []}, "no kinds or no severities"),
        ({"severities": []}, "no kinds or no severities"),
        ({"severities": [0]}, "severity is 0, expected 1, 2, 3, 4 or 5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        corrupt_images(IMAGES, options.pop("names", NAMES), seed=0, repeat=0, **options)


@each(
    ("image", "kind", "severity", "error", "message"),
    [
        (IMAGES[0], "dust", 1, ValueError, "corruption 'dust' is unknown.*elastic_transform"),
        (IMAGES[0], "fog", 0, ValueError, "severity is 0, expected 1, 2, 3, 4 or 5"),
        (IMAGES[0], "fog", 6, ValueError, "severity is 6"),
        (IMAGES[0], "fog", True, ValueError, "severity is True, expected an integer"),
        (IMAGES[0], "fog", 2.0, ValueError, "severity is 2.0, expected an integer"),
        (IMAGES[0] / 255, "fog", 1, TypeError, "the image is float64, expected uint8"),
        (IMAGES[0][..., 0], "fog", 1, ValueError, r"shape \(48, 24\), expected \(height, width, 3"),
        (IMAGES[:2], "fog", 1, ValueError, r"shape \(2, 48, 24, 3\)"),
        (IMAGES[0][..., :1], "fog", 1, ValueError, r"shape \(48, 24, 1\)"),
        (IMAGES[0][:15], "fog", 1, ValueError, "sides of 16 pixels or more"),
    ],
)
def test_bad_images(image, kind, severity, error, message):
    with pytest.raises(error, match=message):
        corrupt(image, kind, severity, rng=np.random.default_rng(0))


@each("kind", KINDS)
def test_views_of_images_and_numpy_integers(kind):
    """Mirrored and turned views, as cropping and reading code hands them on."""
    turned = IMAGES[1].transpose(1, 0, 2)[:, ::-1]
    two = [
        corrupt(image, kind, severity, rng=np.random.default_rng(0))
        for image, severity in ((turned, 3), (np.ascontiguousarray(turned), np.int64(3)))
    ]
    np.testing.assert_array_equal(*two)


@each(
    ("text", "spec"),
    [
        ("visible", Spec((VISIBLE,), KINDS, SEVERITIES)),
        ("infrared", Spec((INFRARED,), KINDS, SEVERITIES)),
        ("both", Spec((VISIBLE, INFRARED), KINDS, SEVERITIES)),
        ("visible:fog", Spec((VISIBLE,), ("fog",), SEVERITIES)),
        ("both:snow:3", Spec((VISIBLE, INFRARED), ("snow",), (3,))),
    ],
)
def test_parse(text, spec):
    assert parse(text) == spec


@each(
    ("text", "message"),
    [
        ("", "with a modality of visible, infrared, both"),
        ("thermal", "corrupt='thermal' is not understood, expected MODALITY"),
        ("visible:fog:3:1", "not understood"),
        ("visible:dust", "'dust' is unknown, expected one of gaussian_noise, .*elastic_transform"),
        ("visible:", "'' is unknown"),
        ("visible:fog:6", "severity '6', expected 1, 2, 3, 4 or 5"),
        ("visible:fog:", "severity ''"),
        ("visible:fog:\u0661", "severity '\u0661'"),
    ],
)
def test_parse_lists_the_choices(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
