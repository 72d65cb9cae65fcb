"""The second view of the visible images, as CAJ draws it, against counts and plain searches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests.data.chain import (
    KEY,
    OFF,
    assert_same,
    chi2,
    coordinates,
    exact,
    noise,
    places_of,
    run,
    unstandardize,
)
from tests.support.rows import each
from vireid_jax.data.augment import CHANNEL, augment

VIEWS = ("visible", "infrared", "visible_second")
CAJ = dict(
    pad=3,
    erase=0.5,
    erase_value=(0.4914, 0.4822, 0.4465),
    infrared_channel="adapt_gray",
    second_view="exchange",
)


@pytest.mark.slow
@each(("operator", "paired"), [("exchange", False), ("adapt_gray", True)])
def test_a_second_view_changes_nothing_else(operator, paired):
    batch = noise(16)
    options = dict(pad=3, grayscale=0.3, erase=0.6, visible_channel="adapt", paired=paired)
    before = run(batch, **options)
    assert set(before) == {"visible", "infrared", "label", "camera"}
    after = run(batch, second_view=operator, **options)
    assert set(after) == set(before) | {"visible_second"}
    assert_same(before, after, before)
    assert after["visible_second"].dtype == np.float32
    assert after["visible_second"].shape == before["visible"].shape


def test_a_view_is_a_window_of_the_same_row_with_one_channel_in_all():
    """Found by trying every window, flip and channel; the first view is found alike."""
    pad, batch = 2, noise(rows=24)
    out = run(batch, pad=pad, second_view="exchange")
    found = []
    for n, before in enumerate(batch["visible"]):
        padded = exact(np.pad(before, ((pad, pad), (pad, pad), (0, 0))))
        places = [
            (dy, dx, flip)
            for dy in range(2 * pad + 1)
            for dx in range(2 * pad + 1)
            for flip in (1, -1)
        ]
        window = {(dy, dx, f): padded[dy : dy + 10, dx : dx + 6][:, ::f] for dy, dx, f in places}
        first = [p for p in places if np.array_equal(window[p], out["visible"][n])]
        second = [
            (p, c)
            for p in places
            for c in range(3)
            if (window[p][..., c : c + 1] == out["visible_second"][n]).all()
        ]
        assert len(first) == len(second) == 1
        found.append((first[0], *second[0]))
    assert len({place for _, place, _ in found}) > 10
    assert {c for _, _, c in found} == {0, 1, 2}
    assert sum(first == second for first, second, _ in found) < 5


@pytest.mark.slow
@each(
    ("operator", "expected"),
    [
        ("exchange", [1 / 3, 1 / 3, 1 / 3, 0, 0]),
        ("exchange_luma", [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0]),
        ("adapt", [1 / 4, 1 / 4, 1 / 4, 0, 1 / 4]),
        ("adapt_gray", [1 / 4, 1 / 4, 1 / 4, 0.6 / 4, 0.4 / 4]),
    ],
)
def test_channel_operators_have_their_frequencies(operator, expected):
    """R, G, B, luma or no change; drawn apart from the same operator of the first view."""
    n = 2400
    batch = noise(n, (3, 2))
    before = exact(batch["visible"])
    out = run(batch, luma=0.6, visible_channel=operator, second_view=operator, **OFF)
    luma = (before @ np.array([0.2989, 0.5870, 0.1140]))[..., None]
    copies = [np.broadcast_to(before[..., c : c + 1], before.shape) for c in range(3)]
    copies += [np.broadcast_to(luma, before.shape), before]
    outcome = []
    for name in ("visible", "visible_second"):
        close = np.stack([np.isclose(c, out[name], atol=1e-5).all((1, 2, 3)) for c in copies])
        assert (close.sum(0) == 1).all()
        outcome.append(close.argmax(0))
    there = np.array(expected) > 0
    counts = np.bincount(outcome[1], minlength=5)
    assert (counts[~there] == 0).all()
    assert chi2(counts[there], n * np.array(expected)[there]) < 18.5  # chi2(4), p = 1e-3
    # Independent views: their joint frequencies are products.
    both = np.bincount(5 * outcome[0] + outcome[1], minlength=25).reshape(5, 5)
    product = n * np.outer(expected, expected)
    assert chi2(both[product > 0], product[product > 0]) < 51.2  # chi2(24), p = 1e-3


@each("paired", [False, True])
def test_crop_and_flip_are_independent_of_both_other_views(paired):
    """Red is 1 + row and green 1 + column; "adapt" leaves a quarter of the rows unchanged."""
    pad, size, rows = 2, (6, 8), 12000
    out = run(coordinates(rows, size), pad=pad, second_view="adapt", paired=paired)
    whole = (out["visible_second"] != out["visible_second"][..., :1]).any((1, 2, 3))
    assert abs(whole.mean() - 0.25) < 0.02
    places = [places_of(out[m][whole], pad) for m in VIEWS]
    n = len(places[0])
    assert places[2].min(0).tolist() == [0, 0, 0]
    assert places[2].max(0).tolist() == [2 * pad, 2 * pad, 1]
    outcome = np.ravel_multi_index(places[2].T, (5, 5, 2))
    assert chi2(np.bincount(outcome, minlength=50)) < 86  # chi2(49), p = 1e-3
    for other in places[:2]:
        for axis, kinds in enumerate((5, 5, 2)):
            both = np.bincount(kinds * other[:, axis] + places[2][:, axis], minlength=kinds**2)
            # chi2(24) and chi2(3), p = 1e-4, for there are a dozen of them
            assert chi2(both) < (58.7 if kinds == 5 else 21.2), (n, axis)
    assert paired == np.array_equal(places[0], places[1])


def test_erasing_has_the_probability_of_visible_images_and_patches_of_its_own():
    n, value = 3000, (9.0, 9.0, 9.0)
    out = run(noise(n), erase=(0.3, 0.9), erase_value=value, second_view="exchange", **OFF)
    masks = [(out[m] == 9.0).all(-1) for m in VIEWS]
    erased = np.stack([mask.any((1, 2)) for mask in masks])
    expected = n * np.array([[0.7 * 0.7, 0.7 * 0.3], [0.3 * 0.7, 0.3 * 0.3]])
    both = np.bincount(2 * erased[0] + erased[2], minlength=4)
    assert chi2(both, expected.ravel()) < 16.3  # chi2(3), p = 1e-3
    twice = erased[0] & erased[2]
    assert (masks[0] != masks[2])[twice].any((1, 2)).mean() > 0.9


def test_only_the_first_view_is_grayed():
    """As in CAJ+; the draws of the second view stay."""
    batch = noise(32)
    options = dict(pad=3, second_view="exchange")
    colored, gray = (run(batch, grayscale=p, **options) for p in (0.0, (1.0, 0.0)))
    assert_same(colored, gray, ("infrared", "visible_second"))
    pixels = unstandardize(gray["visible"])
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.slow
def test_switching_an_operator_moves_no_other_draw():
    batch, value = noise(32), (50.0, 50.0, 50.0)
    plain = run(batch, pad=3, second_view="adapt")["visible_second"]
    others = dict(visible_channel="exchange", infrared_channel="adapt", paired=True, grayscale=0.5)
    got = run(batch, pad=3, second_view="adapt", **others)["visible_second"]
    np.testing.assert_array_equal(got, plain)
    erased = run(batch, pad=3, erase=0.7, erase_value=value, second_view="adapt")["visible_second"]
    kept = erased != 50
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(erased[kept], plain[kept])


def test_the_key_decides_every_pixel_and_a_row_depends_on_no_other():
    batch = noise(16)
    draw = jax.jit(functools.partial(augment, **CAJ))
    first = draw(KEY, batch)
    assert_same(first, draw(KEY, batch))
    other = draw(jax.random.key(8), batch)
    assert (first["visible_second"] != other["visible_second"]).any((1, 2, 3)).all()
    part = run({k: v[:5] for k, v in batch.items()}, **CAJ)
    assert_same(part, {k: v[:5] for k, v in first.items()})
    # One image in every row and modality: no two of the 48 views are alike.
    same = batch | {m: np.stack([batch["visible"][0]] * 16) for m in ("visible", "infrared")}
    out = run(same, **CAJ | dict(pad=5, erase=1.0))
    assert len({x.tobytes() for m in VIEWS for x in out[m]}) == 48


@each("value", ["swap", "plain", None, True])
def test_another_operator_is_refused(value):
    expected = rf"second_view is {value!r}, expected one of {', '.join(CHANNEL)}"
    with pytest.raises(ValueError, match=expected):
        jax.eval_shape(functools.partial(augment, second_view=value), KEY, noise())


@each("dataset", common.DATASETS)
def test_recipes_have_the_option_and_ask_for_no_second_view(dataset):
    options = common.base("method", dataset).augment
    assert options.second_view == "none"
    shape = (4, *common.base("method", dataset).data.image_size, 3)
    batch = {m: jax.ShapeDtypeStruct(shape, jnp.uint8) for m in ("visible", "infrared")}
    batch |= {
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        "camera": jax.ShapeDtypeStruct((4, 2), jnp.int32),
    }
    options.second_view = "exchange"
    out = jax.eval_shape(functools.partial(augment, **options), KEY, batch)
    assert out["visible_second"].shape == shape
