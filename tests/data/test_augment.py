import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from tests.data.chain import (
    KEY,
    MEAN,
    OFF,
    STD,
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


def test_standardize_is_imagenets():
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
    for key in ("label", "camera"):
        np.testing.assert_array_equal(out[key], batch[key])


@each("pad, pad_value", [(3, 0), (2, 127), (1, 255)])
def test_crops_and_flips_are_exact_windows_of_the_padded_image(pad, pad_value):
    batch = noise(rows=24)
    out = run(batch, pad=pad, pad_value=pad_value)
    found = set()
    for m in ("visible", "infrared"):
        pixels = unstandardize(out[m])
        for before, after in zip(batch[m], pixels, strict=True):
            edges = ((pad, pad), (pad, pad), (0, 0))
            padded = np.pad(before, edges, constant_values=pad_value)
            places = [
                (dy, dx, flip)
                for dy in range(2 * pad + 1)
                for dx in range(2 * pad + 1)
                for flip in (False, True)
                if np.array_equal(after, padded[dy : dy + 10, dx : dx + 6][:, :: -1 if flip else 1])
            ]
            assert len(places) == 1
            found.update(places)
    assert len(found) > 10 or pad == 1


def test_corners_and_flips_are_uniform_and_independent():
    pad = 2
    out = run(coordinates(3000, (6, 8)), pad=pad)
    places = [places_of(out[m], pad) for m in ("visible", "infrared")]
    for place in places:
        assert place.min(0).tolist() == [0, 0, 0]
        assert place.max(0).tolist() == [2 * pad, 2 * pad, 1]
        outcome = np.ravel_multi_index(place.T, (5, 5, 2))
        assert chi2(np.bincount(outcome, minlength=50)) < 86  # chi2(49), p = 1e-3
    both = places[0][:, 0] * 5 + places[1][:, 0]
    assert chi2(np.bincount(both, minlength=25)) < 52  # chi2(24), p = 1e-3
    assert abs((places[0][:, 2] == places[1][:, 2]).mean() - 0.5) < 0.04


@each("flip", [0.0, 0.2, 1.0])
def test_flip_has_its_probability(flip):
    out = run(coordinates(2000, (4, 6)), flip=flip, pad=0)
    flipped = places_of(out["visible"], 0)[:, 2].mean()
    assert abs(flipped - flip) < (0.04 if flip == 0.2 else 1e-9)


def test_paired_shares_flip_and_crop_and_nothing_else():
    batch = coordinates(64, (8, 6))
    options = dict(pad=2, erase=1.0, erase_value=(9.0, 9.0, 9.0))
    out = run(batch, paired=True, **options)
    erased = [(out[m] == 9.0).all(-1) for m in ("visible", "infrared")]
    assert (erased[0] != erased[1]).any(axis=(1, 2)).mean() > 0.9
    kept = ~(erased[0] | erased[1])
    np.testing.assert_array_equal(out["visible"][kept], out["infrared"][kept])
    alone = run(batch, paired=True, pad=2)
    np.testing.assert_array_equal(alone["visible"], alone["infrared"])
    # The visible images are what they are without pairing.
    np.testing.assert_array_equal(out["visible"], run(batch, **options)["visible"])


def test_grayscale_is_pillows_luma():
    batch = noise(rows=400)
    out = run(batch, grayscale=(1.0, 0.3), **OFF)
    gray = [np.asarray(Image.fromarray(x).convert("L")) for x in batch["visible"]]
    np.testing.assert_array_equal(
        (unstandardize(out["visible"])), np.stack(gray)[..., None].repeat(3, -1)
    )
    pixels = unstandardize(out["infrared"])
    is_gray = (pixels == pixels[..., :1]).all((1, 2, 3))
    np.testing.assert_array_equal(pixels[~is_gray], batch["infrared"][~is_gray])
    assert abs(is_gray.mean() - 0.3) < 0.08


def test_erasing_has_its_probability_for_each_modality():
    out = run(noise(1500), erase=(0.25, 1.0), erase_value=(9.0, 9.0, 9.0), **OFF)
    rate = [(out[m] == 9.0).any(axis=(1, 2, 3)).mean() for m in ("visible", "infrared")]
    assert abs(rate[0] - 0.25) < 0.05
    assert rate[1] == 1.0
    # The default value, 0, is the ImageNet mean color.
    pixels = unstandardize(run(noise(), erase=1.0, **OFF)["visible"])
    assert ((pixels == np.round(255 * MEAN)).all(-1)).any(axis=(1, 2)).all()


def test_a_patch_that_never_fits_leaves_the_image():
    batch = noise(size=(6, 6))
    out = run(batch, erase=1.0, erase_area=(1.0, 1.0), erase_aspect=1.0, **OFF)
    np.testing.assert_array_equal(out["visible"], exact(batch["visible"]))


def channel_outcome(before, after):
    """0, 1, 2: that channel in all three; 3: luma; 4: unchanged, for each row."""
    luma = before @ np.array([0.2989, 0.5870, 0.1140])
    outcome = []
    for x, gray, y in zip(before, luma, after, strict=True):
        kinds = [x[..., c : c + 1] for c in range(3)]
        equal = [np.array_equal(np.broadcast_to(k, y.shape), y) for k in kinds]
        equal.append(np.allclose(gray[..., None], y, atol=1e-5))
        equal.append(np.array_equal(x, y))
        assert sum(equal) == 1
        outcome.append(equal.index(True))
    return np.array(outcome)


@pytest.mark.slow
@each(
    "operator, luma, expected",
    [
        ("none", 0.5, [0, 0, 0, 0, 1]),
        ("exchange", 0.5, [1 / 3, 1 / 3, 1 / 3, 0, 0]),
        ("exchange_luma", 0.5, [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0]),
        ("adapt", 0.5, [1 / 4, 1 / 4, 1 / 4, 0, 1 / 4]),
        ("adapt_gray", 0.6, [1 / 4, 1 / 4, 1 / 4, 0.6 / 4, 0.4 / 4]),
        ("adapt_gray", 0.0, [1 / 4, 1 / 4, 1 / 4, 0, 1 / 4]),
    ],
)
def test_channel_operators_have_the_frequencies_of_caj(operator, luma, expected):
    n = 2400
    batch = noise(n, (3, 2))
    for options, changed, kept in (
        ({"visible_channel": operator}, "visible", "infrared"),
        ({"infrared_channel": operator}, "infrared", "visible"),
    ):
        out = run(batch, luma=luma, **options, **OFF)
        np.testing.assert_array_equal(out[kept], exact(batch[kept]))
        outcome = channel_outcome(exact(batch[changed]), out[changed])
        counts = np.bincount(outcome, minlength=5)
        expected_counts = n * np.array(expected)
        assert (counts[expected_counts == 0] == 0).all()
        there = expected_counts > 0
        gap = (counts - expected_counts)[there] ** 2 / expected_counts[there]
        assert gap.sum() < 18.5  # chi2(4), p = 1e-3


def test_every_channel_operator_is_tested():
    assert set(CHANNEL) == {"none", "exchange", "exchange_luma", "adapt", "adapt_gray"}


def test_a_patch_is_erased_before_its_channels_are_copied():
    batch = noise(200)
    value = np.array([11.0, 12.0, 13.0], np.float32)
    out = run(
        batch,
        erase=1.0,
        erase_value=tuple(value),
        visible_channel="exchange",
        infrared_channel="exchange",
        second_view="exchange",
        **OFF,
    )
    for m in ("visible", "infrared", "visible_second"):
        before = exact(batch[m.removesuffix("_second")])
        chosen = set()
        for x, y in zip(before, out[m], strict=True):
            assert (y == y[..., :1]).all()
            erased = y[..., 0] > 10  # no pixel of an image is as bright
            (c,) = {np.flatnonzero(value == v).item() for v in np.unique(y[erased])}
            np.testing.assert_array_equal(y[~erased][:, 0], x[~erased][:, c])
            chosen.add(c)
        assert chosen == {0, 1, 2}


ALL = dict(
    pad=3,
    grayscale=0.3,
    erase=0.6,
    visible_channel="exchange",
    infrared_channel="adapt_gray",
)


def test_the_key_decides_every_pixel():
    batch = noise(16)
    first = run(batch, **ALL)
    assert_same(first, run(batch, **ALL))
    other = run(batch, key=jax.random.key(8), **ALL)
    for m in ("visible", "infrared"):
        assert (first[m] != other[m]).any(axis=(1, 2, 3)).all()
    # Same images in both modalities and in every row still get draws of their own.
    same = batch | {m: np.stack([batch["visible"][0]] * 16) for m in ("visible", "infrared")}
    out = run(same, **ALL)
    views = {x.tobytes() for m in ("visible", "infrared") for x in out[m]}
    assert len(views) == 32


def test_a_row_depends_on_no_other_row():
    batch = noise(16)
    whole = run(batch, **ALL)
    part = run({k: v[:5] for k, v in batch.items()}, **ALL)
    assert_same(part, {k: v[:5] for k, v in whole.items()})


def test_switching_an_operator_moves_no_other_draw():
    batch = noise(32)
    plain = run(batch, pad=3)
    value = (50.0, 50.0, 50.0)
    erased = run(batch, pad=3, erase=0.7, erase_value=value)
    kept = erased["visible"] != 50
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(erased["visible"][kept], plain["visible"][kept])
    more = run(batch, pad=3, erase=0.7, erase_value=value, visible_channel="exchange")
    np.testing.assert_array_equal(more["visible"] == 50, erased["visible"] == 50)
    np.testing.assert_array_equal(more["infrared"], erased["infrared"])
    gray = run(batch, pad=3, grayscale=1.0, erase=0.7, erase_value=value)
    np.testing.assert_array_equal(gray["visible"] == 50, erased["visible"] == 50)


@pytest.mark.slow
def test_four_devices_give_the_pixels_of_one_without_talking():
    batch = noise(16)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    for options in (ALL, ALL | {"paired": True, "second_view": "exchange"}):
        step = jax.jit(
            functools.partial(augment, **options), in_shardings=(None, rows), out_shardings=rows
        )
        program = step.lower(KEY, batch).compile().as_text()
        for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
            assert word not in program
        out = step(KEY, jax.device_put(batch, rows))
        assert_same(run(batch, **options), out)
        assert all(out[m].sharding.is_equivalent_to(rows, 4) for m in out if m[0] in "vi")


def test_bad_options_are_refused_at_trace_time():
    for options, message in (
        ({"flip": 1.5}, "flip is 1.5, expected a probability"),
        ({"luma": -0.1}, "luma is -0.1"),
        ({"pad": -1}, "pad is -1"),
        ({"pad": 1.5}, "pad is 1.5"),
        ({"pad_value": 256}, "pad_value is 256"),
        ({"pad_value": 0.5}, "pad_value is 0.5"),
        ({"grayscale": (0.1, 2.0)}, r"grayscale is 2.0"),
        ({"erase": (0.1, 0.2, 0.3)}, "a pair"),
        ({"erase": float("nan")}, "erase is nan"),
        ({"erase_area": (0.4, 0.02)}, "erase_area is"),
        ({"erase_area": (0.0, 0.4)}, "erase_area is"),
        ({"erase_area": (0.1, 1.4)}, "erase_area is"),
        ({"erase_area": (0.1,)}, "erase_area is"),
        ({"erase_aspect": 0.0}, "erase_aspect is"),
        ({"erase_aspect": 3.3}, "erase_aspect is"),
        ({"erase_value": (0.0, 0.0)}, "erase_value is"),
        ({"visible_channel": "swap"}, "visible_channel is 'swap', expected one of none, exchange"),
        ({"infrared_channel": None}, "infrared_channel is None"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(augment, **options), KEY, noise())


def test_one_probability_in_a_tuple_holds_for_both_modalities():
    """So a number given on the command line arrives where the recipe has a pair."""
    one, both = (run(noise(), erase=p, grayscale=p) for p in ((0.5,), 0.5))
    for name in ("visible", "infrared"):
        np.testing.assert_array_equal(one[name], both[name])


@each("modality", ["visible", "infrared"])
def test_images_must_be_a_uint8_host_batch(modality):
    for wrong in (np.zeros((6, 10, 6, 3), np.float32), np.zeros((6, 10, 6), np.uint8)):
        with pytest.raises(ValueError, match=rf"batch\['{modality}'\] is {wrong.dtype}"):
            augment(KEY, noise() | {modality: wrong})


def test_the_mean_and_deviation_are_those_of_the_networks():
    assert (module.MEAN, module.STD) == (tuple(MEAN), tuple(STD))
