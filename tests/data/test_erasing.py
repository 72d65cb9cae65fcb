"""Random erasing: how often, where, and in which shapes."""

import math

import numpy as np
import pytest

from tests.data import chain
from tests.data.chain import (
    MANY,
    MEAN,
    VIEWS,
    chi2,
    distance_of_distributions,
    exact,
    noise,
    unstandardize,
)
from tests.support.rows import each
from vireid_jax.data.augment import FORMS

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
    n, (height, width) = MANY, size
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
        for statistic in range(7):
            gap = distance_of_distributions(*(facts(p, height)[statistic] for p in (mine, theirs)))
            assert gap < 1.95 * math.sqrt(1 / len(mine) + 1 / len(theirs))  # p = 1e-3


def facts(patches, height):
    """Position and size of patches, their area and aspect, and where they are of what fits."""
    top, left, h, w = patches.T
    return top, left, h, w, h * w, h / w, top / (height - h)


def within(h, w, area, aspect, size):
    """Rounding moves each side by at most half a pixel."""
    pixels = size[0] * size[1]
    assert ((h + 0.5) * (w + 0.5) >= area[0] * pixels).all()
    assert ((h - 0.5) * (w - 0.5) <= area[1] * pixels).all()
    assert ((h + 0.5) / (w - 0.5) >= aspect[0]).all()
    assert ((h - 0.5) / (w + 0.5) <= aspect[1]).all()


@pytest.mark.slow
def test_the_log_uniform_aspect_is_as_often_tall_as_wide():
    # A square image and patches small enough to fit always: the aspect is seen undistorted.
    options = dict(erase=1.0, erase_area=(0.2, 0.25), erase_aspect=0.3)
    for form, share in (("log_uniform", 1 / 2), ("uniform", 10 / 13)):  # 1 / (1 + r) at r = 0.3
        out = run(noise(MANY, (40, 40)), erase_form=form, **options)["visible"]
        _, _, h, w = sides(masks(out)).T
        assert np.abs(np.log(h / w)).max() < math.log(1 / 0.3) + 0.1
        assert abs((h > w).mean() + (h == w).mean() / 2 - share) < 0.03


@pytest.mark.slow
def test_torchvisions_defaults_stay_within_their_area_and_aspect():
    out = run(noise(MANY, (24, 12)), erase=(0.5, 1.0), **TORCHVISION)
    for m, probability in (("visible", 0.5), ("infrared", 1.0)):
        _, _, h, w = sides(masks(out[m])).T
        erased = h > 0
        assert abs(erased.mean() - probability) < 0.04
        within(h[erased], w[erased], (0.02, 0.33), (0.3, 3.3), (24, 12))


def test_erasing_has_its_probability_and_every_view_its_own_patches():
    out = run(noise(MANY), erase=(0.3, 1.0), second_view="adapt")
    erased = [(out[m] >= 7.0).all(-1).any((1, 2)) for m in VIEWS]
    assert erased[1].all()
    expected = MANY * np.array([[0.7 * 0.7, 0.7 * 0.3], [0.3 * 0.7, 0.3 * 0.3]])
    both = np.bincount(2 * erased[0] + erased[2], minlength=4)
    assert chi2(both, expected.ravel()) < 16.3  # chi2(3), p = 1e-3
    patches = [(out[m] >= 7.0).all(-1)[erased[0] & erased[2]] for m in VIEWS]
    for other in patches[:2]:
        assert (other != patches[2]).any((1, 2)).mean() > 0.9


def test_the_default_color_is_the_mean_of_imagenet():
    pixels = unstandardize(chain.run(noise(), erase=1.0, **chain.OFF)["visible"])
    assert ((pixels == np.round(255 * MEAN)).all(-1)).any(axis=(1, 2)).all()


@each("form", FORMS)
def test_a_patch_that_never_fits_leaves_the_image(form):
    # Every attempt has the image's height and width: none is strictly smaller.
    batch = noise(size=(8, 8))
    out = run(batch, erase=1.0, erase_form=form, erase_area=(1.0, 1.0), erase_aspect=1.0)
    np.testing.assert_array_equal(out["visible"], exact(batch["visible"]))


@each("form", FORMS)
def test_one_number_is_the_pair_with_its_inverse(form):
    options = dict(erase=1.0, erase_form=form)
    one, pair = (run(noise(), erase_aspect=a, **options) for a in (0.25, (0.25, 4.0)))
    chain.assert_same(one, pair)


def test_which_images_are_erased_does_not_depend_on_the_form():
    batch = noise(size=(24, 12))
    one, *others = (
        masks(run(batch, erase=0.5, erase_area=(0.02, 0.1), **options)["visible"]).any((1, 2))
        for options in ({}, {"erase_form": "log_uniform"}, {"erase_attempts": 10})
    )
    for other in others:
        np.testing.assert_array_equal(one, other)
