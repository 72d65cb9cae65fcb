import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from tests.data.chain import (
    KEY,
    MANY,
    MEAN,
    OFF,
    STD,
    VIEWS,
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
from vireid_jax.data import augment as module
from vireid_jax.data.augment import CHANNEL, augment, standardize

ALL = dict(
    pad=3,
    grayscale=0.3,
    erase=0.6,
    visible_channel="exchange",
    infrared_channel="adapt_gray",
    second_view="exchange",
)


def test_standardize_is_imagenets():
    assert (module.MEAN, module.STD) == (tuple(MEAN), tuple(STD))
    values = np.arange(256, dtype=np.uint8).reshape(2, 16, 8, 1).repeat(3, -1)
    want = (values / 255 - MEAN) / STD
    got = standardize(values)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(standardize(values.astype(np.float32)), got)
    np.testing.assert_array_equal(jax.jit(standardize)(values), got)
    np.testing.assert_array_equal(standardize(values[0, 0]), got[0, 0])
    np.testing.assert_array_equal(unstandardize(got), values)  # the tests' own
    with pytest.raises(ValueError, match="expected"):
        standardize(values[..., :2])


def test_augmentation_off_is_standardize_exactly():
    batch = noise()
    out = run(batch, **OFF)
    assert set(out) == set(batch)
    for m in ("visible", "infrared"):
        assert out[m].dtype == np.float32
        np.testing.assert_array_equal(out[m], exact(batch[m]))
    assert_same(batch, out, ("label", "camera"))


@pytest.mark.slow
def test_one_program_gives_the_same_bits():
    # Without luma, whose sum a compiler may fuse.
    options = ALL | dict(infrared_channel="adapt", paired=True)
    program = jax.jit(functools.partial(augment, **options))
    assert_same(run(noise(), **options), program(KEY, noise()))


@each("pad, pad_value", [(3, 0), (2, 127), (1, 255)])
def test_crops_and_flips_are_exact_windows_of_the_padded_image(pad, pad_value):
    """Found by trying every window and flip, and every channel of the second view."""
    batch = noise()
    out = run(batch, pad=pad, pad_value=pad_value, second_view="exchange")
    found, channels = set(), set()
    for view in VIEWS:
        for before, after in zip(batch[view.removesuffix("_second")], out[view], strict=True):
            edges = ((pad, pad), (pad, pad), (0, 0))
            padded = exact(np.pad(before, edges, constant_values=pad_value))
            places = []
            for dy, dx, step in np.ndindex(2 * pad + 1, 2 * pad + 1, 2):
                window = padded[dy : dy + 10, dx : dx + 6][:, :: 1 - 2 * step]
                if view != "visible_second":
                    places += [(dy, dx, step)] * np.array_equal(after, window)
                    continue
                copied = [c for c in range(3) if (after == window[..., c : c + 1]).all()]
                places += [(dy, dx, step)] * len(copied)
                channels.update(copied)
            assert len(places) == 1
            found.update(places)
    assert channels == {0, 1, 2} and len(found) > (10 if pad > 1 else 8)


@pytest.mark.slow
@each("paired", [False, True])
def test_corners_and_flips_are_uniform_and_independent(paired):
    pad = 2
    out = run(coordinates(), pad=pad, second_view="exchange", paired=paired)
    places = [places_of(out[view], pad) for view in VIEWS]
    for place in places:
        assert place.min(0).tolist() == [0, 0, 0]
        assert place.max(0).tolist() == [2 * pad, 2 * pad, 1]
        outcome = np.ravel_multi_index(place.T, (5, 5, 2))
        assert chi2(np.bincount(outcome, minlength=50)) < 86  # chi2(49), p = 1e-3
    assert paired == np.array_equal(places[0], places[1])
    for first, second in ((0, 2), (1, 2)) if paired else ((0, 1), (0, 2), (1, 2)):
        for axis, kinds in enumerate((5, 5, 2)):
            both = kinds * places[first][:, axis] + places[second][:, axis]
            # chi2(24) and chi2(3), p = 1e-4, for there are a dozen of them
            assert chi2(np.bincount(both, minlength=kinds**2)) < (58.7 if kinds == 5 else 21.2)


@each("flip", [0.0, 0.2, 1.0])
def test_flip_has_its_probability(flip):
    flipped = places_of(run(coordinates(), flip=flip, pad=0)["visible"], 0)[:, 2].mean()
    assert abs(flipped - flip) < (0.04 if flip == 0.2 else 1e-9)


def test_paired_shares_flip_and_crop_and_nothing_else():
    batch = coordinates(24)
    options = dict(pad=2, erase=1.0, erase_value=(9.0, 9.0, 9.0))
    out = run(batch, paired=True, **options)
    erased = [(out[m] == 9.0).all(-1) for m in ("visible", "infrared")]
    assert (erased[0] != erased[1]).any(axis=(1, 2)).mean() > 0.9
    kept = ~(erased[0] | erased[1])
    np.testing.assert_array_equal(out["visible"][kept], out["infrared"][kept])
    # The visible images are what they are without pairing.
    np.testing.assert_array_equal(out["visible"], run(batch, **options)["visible"])


def test_grayscale_is_pillows_luma_and_not_of_the_second_view():
    batch = noise(MANY, (3, 2))
    options = dict(second_view="exchange", **OFF)
    out = run(batch, grayscale=(1.0, 0.3), **options)
    gray = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in batch["visible"]])
    np.testing.assert_array_equal(unstandardize(out["visible"]), gray[..., None].repeat(3, -1))
    pixels = unstandardize(out["infrared"])
    is_gray = (pixels == pixels[..., :1]).all((1, 2, 3))
    np.testing.assert_array_equal(pixels[~is_gray], batch["infrared"][~is_gray])
    assert abs(is_gray.mean() - 0.3) < 0.03
    assert_same(out, run(batch, **options), ("visible_second",))


OUTCOMES = {  # R, G, B, luma, unchanged
    "none": [0, 0, 0, 0, 1],
    "exchange": [1 / 3, 1 / 3, 1 / 3, 0, 0],
    "exchange_luma": [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0],
    "adapt": [1 / 4, 1 / 4, 1 / 4, 0, 1 / 4],
    "adapt_gray": [1 / 4, 1 / 4, 1 / 4, 0.6 / 4, 0.4 / 4],
}


@each("operator", CHANNEL)
def test_channel_operators_have_the_frequencies_of_caj(operator):
    batch, expected = noise(MANY, (3, 2)), np.array(OUTCOMES[operator])
    views = dict(visible_channel=operator, infrared_channel=operator, second_view=operator)
    out = run(batch, luma=0.6, **views, **OFF)
    assert ("visible_second" in out) == (operator != "none")
    outcomes = []
    for view in [v for v in VIEWS if v in out]:
        before = exact(batch[view.removesuffix("_second")])
        luma = (before @ np.array([0.2989, 0.5870, 0.1140]))[..., None]
        copies = [np.broadcast_to(before[..., c : c + 1], before.shape) for c in range(3)]
        exactly = [(x == out[view]).all((1, 2, 3)) for x in (*copies, before)]
        exactly.insert(3, np.isclose(luma, out[view], atol=1e-5).all((1, 2, 3)))
        assert (np.sum(exactly, 0) == 1).all()
        outcomes.append(np.argmax(exactly, 0))
        counts, there = np.bincount(outcomes[-1], minlength=5), expected > 0
        assert (counts[~there] == 0).all()
        assert chi2(counts[there], MANY * expected[there]) < 18.5  # chi2(4), p = 1e-3
    if operator != "none":  # independent views: their joint frequencies are products
        both = np.bincount(5 * outcomes[0] + outcomes[2], minlength=25).reshape(5, 5)
        product = MANY * np.outer(expected, expected)
        assert chi2(both[product > 0], product[product > 0]) < 51.2  # chi2(24), p = 1e-3


def test_a_patch_is_erased_before_its_channels_are_copied():
    batch, value = noise(), np.array([11.0, 12.0, 13.0], np.float32)
    views = dict.fromkeys(("visible_channel", "infrared_channel", "second_view"), "exchange")
    out = run(batch, erase=1.0, erase_value=tuple(value), **views, **OFF)
    for m in VIEWS:
        chosen = set()
        for x, y in zip(exact(batch[m.removesuffix("_second")]), out[m], strict=True):
            assert (y == y[..., :1]).all()
            erased = y[..., 0] > 10  # no pixel of an image is as bright
            (c,) = {np.flatnonzero(value == v).item() for v in np.unique(y[erased])}
            np.testing.assert_array_equal(y[~erased][:, 0], x[~erased][:, c])
            chosen.add(c)
        assert chosen == {0, 1, 2}


def test_the_key_decides_every_pixel_and_a_row_depends_on_no_other():
    batch = noise(MANY)
    few = {k: v[:24] for k, v in batch.items()}
    first = run(few, **ALL)
    assert_same(first, run(few, **ALL))
    other = run(few, key=jax.random.key(8), **ALL)
    for view in VIEWS:
        assert (first[view] != other[view]).any(axis=(1, 2, 3)).all()
    assert_same(first, {k: v[:24] for k, v in run(batch, **ALL).items()})
    # One image in every row and modality: no two of the 72 views are alike.
    same = few | {m: np.stack([few["visible"][0]] * 24) for m in ("visible", "infrared")}
    out = run(same, **ALL | dict(pad=5, erase=1.0))
    assert len({x.tobytes() for m in VIEWS for x in out[m]}) == 72


def test_switching_an_operator_moves_no_other_draw():
    batch = noise()
    plain = run(batch, pad=3)
    assert set(plain) == set(batch)
    value = (50.0, 50.0, 50.0)
    patch = dict(pad=3, erase=0.7, erase_value=value)
    erased = run(batch, **patch)
    kept = erased["visible"] != 50
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(erased["visible"][kept], plain["visible"][kept])
    more = run(batch, visible_channel="exchange", second_view="adapt", **patch)
    np.testing.assert_array_equal(more["visible"] == 50, erased["visible"] == 50)
    np.testing.assert_array_equal(more["infrared"], erased["infrared"])
    gray = run(batch, grayscale=1.0, **patch)
    np.testing.assert_array_equal(gray["visible"] == 50, erased["visible"] == 50)
    # The second view moves nothing, and nothing but erasing moves the second view.
    second = run(batch, pad=3, second_view="adapt")
    assert_same(plain, second, plain)
    others = dict(visible_channel="exchange", infrared_channel="adapt", paired=True, grayscale=0.5)
    assert_same(second, run(batch, pad=3, second_view="adapt", **others), ("visible_second",))
    kept = more["visible_second"] != 50
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(more["visible_second"][kept], second["visible_second"][kept])


@pytest.mark.slow
def test_four_devices_give_the_pixels_of_one_without_talking():
    batch, options = noise(16), ALL | {"paired": True}
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    one = functools.partial(augment, **options)
    step = jax.jit(one, in_shardings=(None, rows), out_shardings=rows)
    program = step.lower(KEY, batch).compile().as_text()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program
    out = step(KEY, jax.device_put(batch, rows))
    assert_same(jax.jit(one)(KEY, batch), out)
    assert all(out[m].sharding.is_equivalent_to(rows, 4) for m in VIEWS)


@each(
    "options, message",
    [
        ({"flip": 1.5}, "augment.flip is 1.5, expected a number from 0 to 1"),
        ({"luma": -0.1}, "luma is -0.1"),
        ({"pad": -1}, "pad is -1"),
        ({"pad": 1.5}, "pad is 1.5"),
        ({"pad_value": 256}, "pad_value is 256"),
        ({"pad_value": 0.5}, "pad_value is 0.5"),
        ({"grayscale": (0.1, 2.0)}, r"grayscale is \(0.1, 2.0\), expected numbers from 0 to 1"),
        ({"erase": (0.1, 0.2, 0.3)}, "a pair"),
        ({"erase": float("nan")}, "erase is nan"),
        ({"erase_area": (0.4, 0.02)}, "erase_area is"),
        ({"erase_area": (0.0, 0.4)}, "erase_area is"),
        ({"erase_area": (0.1, 1.4)}, "erase_area is"),
        ({"erase_area": (0.1,)}, "erase_area is"),
        ({"erase_aspect": 0.0}, "erase_aspect is"),
        ({"erase_aspect": 3.3}, "erase_aspect is 3.3.* a pair"),
        ({"erase_aspect": (0.3,)}, "erase_aspect is"),
        ({"erase_aspect": (0.0, 1.0)}, "erase_aspect is"),
        ({"erase_aspect": (3.3, 0.3)}, "smallest <= largest"),
        ({"erase_aspect": (0.3, math.inf)}, "erase_aspect is"),
        ({"erase_value": (0.0, 0.0)}, "erase_value is"),
        ({"erase_form": "log"}, "erase_form is 'log', expected one of uniform, log_uniform"),
        ({"erase_attempts": 0}, "erase_attempts is 0"),
        ({"erase_attempts": 1.5}, "erase_attempts is 1.5"),
        ({"visible_channel": "swap"}, "visible_channel is 'swap', expected one of none, exchange"),
        ({"infrared_channel": None}, "infrared_channel is None"),
        ({"second_view": True}, "second_view is True, expected text"),
    ],
)
def test_bad_options_are_refused_at_trace_time(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(augment, **options), KEY, noise())


def test_one_probability_in_a_tuple_holds_for_both_modalities():
    """So a number given on the command line arrives where the recipe has a pair."""
    assert_same(*(run(noise(), erase=p, grayscale=p) for p in ((0.5,), 0.5)))


@each("modality", ["visible", "infrared"])
def test_images_must_be_a_uint8_host_batch(modality):
    for wrong in (np.zeros((24, 10, 6, 3), np.float32), np.zeros((24, 10, 6), np.uint8)):
        with pytest.raises(ValueError, match=rf"batch\['{modality}'\] is {wrong.dtype}"):
            augment(KEY, noise() | {modality: wrong})
