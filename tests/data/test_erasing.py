"""Random erasing in torchvision's form, and what the two forms refuse and share."""

import functools
import math

import jax
import numpy as np
import pytest

from tests.data import chain
from tests.data.chain import KEY, distance_of_distributions, exact, noise
from tests.support.rows import each
from vireid_jax.data.augment import FORMS, aspect_range, augment

VALUE = (9.0, 8.0, 7.0)
TORCHVISION = dict(
    erase_form="log_uniform", erase_attempts=10, erase_area=(0.02, 0.33), erase_aspect=(0.3, 3.3)
)


def run(batch, **options):
    return chain.run(batch, **dict(flip=0.0, pad=0, erase_value=VALUE) | options)


def masks(images):
    return (images == np.array(VALUE, np.float32)).all(-1)


def sides(mask):
    """(top, left, h, w) of each row's erased rectangle, bool [B, H, W]; zeros where there is none.

    The rectangle is full: as many pixels as h times w.
    """
    rows, columns = mask.any(2), mask.any(1)
    h, w = rows.sum(1), columns.sum(1)
    assert (mask.sum((1, 2)) == h * w).all()
    return np.stack([rows.argmax(1), columns.argmax(1), h, w], axis=1)


def naive_patch(rng, size, area, aspect, form, attempts):
    """One image's patch as torchvision's loop (or Zhong et al.'s) finds it; zeros for none."""
    for _ in range(attempts):
        pixels = size[0] * size[1] * rng.uniform(*area)
        if form == "log_uniform":
            ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        else:
            ratio = rng.uniform(*aspect)
        h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if h < size[0] and w < size[1]:
            return rng.integers(0, size[0] - h + 1), rng.integers(0, size[1] - w + 1), h, w
    return 0, 0, 0, 0


@pytest.mark.slow
@each(
    "size, area, aspect, form, attempts",
    [
        ((24, 12), (0.02, 0.4), (0.3, 1 / 0.3), "uniform", 100),
        ((24, 12), (0.2, 0.8), (0.3, 1 / 0.3), "uniform", 100),
        ((10, 20), (0.3, 0.5), (0.9, 1 / 0.9), "uniform", 100),
        ((32, 12), (0.02, 0.33), (0.3, 3.3), "log_uniform", 10),
        ((16, 24), (0.2, 0.8), (0.5, 4.0), "log_uniform", 2),
        ((24, 12), (0.3, 0.9), (0.3, 3.3), "uniform", 1),
    ],
)
def test_patches_have_the_distribution_of_the_authors_loop(size, area, aspect, form, attempts):
    n, (height, width) = 2500, size
    batch = noise(n, size)
    options = dict(erase_area=area, erase_aspect=aspect, erase_form=form, erase_attempts=attempts)
    out = run(batch, erase=1.0, **options)
    rng = np.random.default_rng(1)
    want = np.array([naive_patch(rng, size, area, aspect, form, attempts) for _ in range(n)])
    for m in ("visible", "infrared"):
        mask = masks(out[m])
        np.testing.assert_array_equal(out[m][~mask], exact(batch[m])[~mask])
        got = sides(mask)
        # Both leave about as many images as they are: no attempt fitted.
        none = [(p[:, 2] == 0).mean() for p in (got, want)]
        assert abs(none[0] - none[1]) < 4 * math.sqrt(0.5 / n)
        assert (none[0] > 0.05) == (attempts < 10)
        mine, theirs = (p[p[:, 2] > 0].astype(float) for p in (got, want))
        top, left, h, w = mine.T
        assert h.max() < height and w.max() < width
        assert (top == 0).any() and (top + h == height).any()  # both ends are reached
        assert (left == 0).any() and (left + w == width).any()
        within(h, w, area, aspect, size)
        for statistic in (
            lambda p: p[:, 0],
            lambda p: p[:, 1],
            lambda p: p[:, 2],
            lambda p: p[:, 3],
            lambda p: p[:, 2] * p[:, 3],
            lambda p: p[:, 2] / p[:, 3],
            lambda p: p[:, 0] / (height - p[:, 2]),
        ):
            gap = distance_of_distributions(statistic(mine), statistic(theirs))
            assert gap < 1.95 * math.sqrt(1 / len(mine) + 1 / len(theirs))  # p = 1e-3


def within(h, w, area, aspect, size):
    """Rounding moves each side by at most half a pixel."""
    pixels = size[0] * size[1]
    assert ((h + 0.5) * (w + 0.5) >= area[0] * pixels).all()
    assert ((h - 0.5) * (w - 0.5) <= area[1] * pixels).all()
    assert ((h + 0.5) / (w - 0.5) >= aspect[0]).all()
    assert ((h - 0.5) / (w + 0.5) <= aspect[1]).all()


def test_the_log_uniform_aspect_is_as_often_tall_as_wide():
    # A square image and patches small enough to fit always: the aspect is seen undistorted.
    size, n = (80, 80), 600
    options = dict(erase=1.0, erase_area=(0.2, 0.25), erase_aspect=0.3)
    tall, log_aspect = {}, {}
    for form in FORMS:
        _, _, h, w = sides(masks(run(noise(n, size), erase_form=form, **options)["visible"])).T
        log_aspect[form] = np.log(h / w)
        tall[form] = (h > w).mean()
        assert np.abs(log_aspect[form]).max() < math.log(1 / 0.3) + 0.05
    assert abs(tall["log_uniform"] - 1 / 2) < 0.07
    assert abs(tall["uniform"] - 10 / 13) < 0.07  # (1/r - 1) / (1/r - r) = 1 / (1 + r) at r = 0.3
    edge = math.log(1 / 0.3)
    uniform = np.linspace(-edge, edge, 20001)
    assert distance_of_distributions(log_aspect["log_uniform"], uniform) < 1.95 / math.sqrt(n)
    assert distance_of_distributions(log_aspect["uniform"], uniform) > 0.2


def test_torchvisions_defaults_stay_within_their_area_and_aspect():
    size = (96, 48)
    out = run(noise(400, size), erase=(0.5, 1.0), **TORCHVISION)
    for m, probability in (("visible", 0.5), ("infrared", 1.0)):
        _, _, h, w = sides(masks(out[m])).T
        erased = h > 0
        assert abs(erased.mean() - probability) < 0.1
        within(h[erased], w[erased], (0.02, 0.33), (0.3, 3.3), size)


def test_no_patch_of_the_image_s_height_or_width():
    batch = noise(50, (8, 8))
    # Every attempt gives 8 x 8: none is strictly smaller.
    out = run(batch, erase=1.0, erase_form="log_uniform", erase_area=(1, 1), erase_aspect=1.0)
    np.testing.assert_array_equal(out["visible"], exact(batch["visible"]))


def test_one_number_is_the_pair_with_its_inverse():
    batch = noise(64, (24, 12))
    for form in FORMS:
        one, pair = (
            run(batch, erase=1.0, erase_form=form, erase_aspect=aspect)["visible"]
            for aspect in (0.3, (0.3, 1 / 0.3))
        )
        np.testing.assert_array_equal(one, pair)
    assert aspect_range(0.25) == (0.25, 4.0)
    assert aspect_range((0.3, 3.3)) == (0.3, 3.3)


def test_which_images_are_erased_does_not_depend_on_the_form():
    batch = noise(200, (24, 12))
    rows = [
        masks(run(batch, erase=0.5, erase_area=(0.02, 0.1), **options)["visible"]).any((1, 2))
        for options in ({}, {"erase_form": "log_uniform"}, {"erase_attempts": 50})
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_bad_options_are_refused():
    for options, message in (
        ({"erase_form": "log"}, "erase_form is 'log', expected one of uniform, log_uniform"),
        ({"erase_attempts": 0}, "erase_attempts is 0"),
        ({"erase_attempts": 1.5}, "erase_attempts is 1.5"),
        ({"erase_aspect": (0.3,)}, "erase_aspect is"),
        ({"erase_aspect": (0.0, 1.0)}, "erase_aspect is"),
        ({"erase_aspect": (3.3, 0.3)}, "smallest <= largest"),
        ({"erase_aspect": (0.3, math.inf)}, "erase_aspect is"),
        ({"erase_aspect": 3.3}, "a pair"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(augment, **options), KEY, noise(2, (4, 4)))
