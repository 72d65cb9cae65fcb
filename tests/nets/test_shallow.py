"""SimAM and phase-only images: loops, bounds, what they do not depend on, edges, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.nets.shallow import phase_only, simam

R = np.random.default_rng(47)
MAPS = R.normal(size=(3, 4, 5, 2)).astype(np.float32) + 0.5
IMAGES = R.normal(size=(2, 6, 4, 3)).astype(np.float32)
LEAST = 1 / (1 + np.exp(-0.5))  # 0.622

gated, phases = jax.jit(simam), jax.jit(phase_only)


def test_simam_by_loops():
    expected = np.zeros(MAPS.shape)
    for n in range(3):
        for f in range(2):
            x = MAPS[n, :, :, f].astype(float)
            mean = sum(x.ravel()) / 20
            total = sum((v - mean) ** 2 for v in x.ravel())
            for at in np.ndindex(4, 5):
                energy = (x[at] - mean) ** 2 / (4 * (total / 19 + 1e-4)) + 0.5
                expected[n, *at, f] = x[at] / (1 + np.exp(-energy))
    np.testing.assert_allclose(gated(MAPS), expected, rtol=1e-5)


def test_the_gate_is_never_below_that_of_the_mean_and_opens_for_the_unusual():
    gate = np.asarray(gated(MAPS)) / MAPS
    assert LEAST - 1e-6 <= gate.min() < 0.63 and 0.7 < gate.max() <= 1
    far = np.abs(MAPS - MAPS.mean((1, 2), keepdims=True))
    for n in range(3):
        for f in range(2):
            by_distance = gate[n, ..., f].ravel()[np.argsort(far[n, ..., f].ravel())]
            assert (np.diff(by_distance) > -1e-6).all()


def test_the_gate_of_flat_maps_and_of_a_single_place():
    """No variance, and none to be estimated: the lowest gate, and finite gradients."""
    for x in (np.full((2, 3, 3, 2), 0.7, np.float32), R.normal(size=(2, 1, 1, 3))):
        x = np.float32(x)
        np.testing.assert_allclose(gated(x), LEAST * x, rtol=1e-6)
        slope = jax.jit(jax.grad(lambda x: simam(x).sum()))(x)
        np.testing.assert_allclose(slope, np.full_like(x, LEAST), rtol=1e-5)


def test_maps_and_channels_do_not_meet():
    expected = gated(MAPS)
    for n in range(3):
        for f in range(2):
            one = np.s_[n : n + 1, :, :, f : f + 1]
            np.testing.assert_allclose(gated(MAPS[one]), expected[one], rtol=1e-6)


def test_the_gate_depends_on_the_spread_alone_where_that_is_large():
    """1e-4 is small beside a variance of 1."""
    gate = np.asarray(gated(100 * MAPS)) / (100 * MAPS)
    np.testing.assert_allclose(gate, np.asarray(gated(MAPS)) / MAPS, atol=1e-4)
    moved = np.asarray(gated(MAPS + 10)) / (MAPS + 10)
    np.testing.assert_allclose(moved, np.asarray(gated(MAPS)) / MAPS, atol=1e-4)


def test_simam_in_half_precision():
    half = jnp.asarray(MAPS, jnp.bfloat16)
    y = gated(half)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(gated(half.astype(jnp.float32)))
    np.testing.assert_allclose(np.asarray(y, np.float32), wide, rtol=2**-8)


# --- Phases -------------------------------------------------------------------------------


def test_phase_only_by_loops():
    """The transform, every frequency over its amplitude, the transform back."""
    h, w = 6, 4
    rows, columns = (np.exp(-2j * np.pi * np.outer(np.arange(k), np.arange(k)) / k) for k in (h, w))
    for n in range(2):
        for f in range(3):
            x = IMAGES[n, :, :, f].astype(float)
            spectrum = np.zeros((h, w), complex)
            for u, v in np.ndindex(h, w):
                spectrum[u, v] = sum(
                    rows[u, y] * columns[v, z] * x[y, z] for y, z in np.ndindex(h, w)
                )
            spectrum /= np.abs(spectrum)
            back = rows.conj() @ spectrum @ columns.conj() / (h * w)
            assert np.abs(back.imag).max() < 1e-12
            np.testing.assert_allclose(phases(IMAGES)[n, :, :, f], back.real, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 4), (5, 7), (48, 24)])
def test_its_root_mean_square_is_one_over_that_of_the_places(size):
    """Parseval: all amplitudes are 1. At 384 x 192 it is 0.0037."""
    h, w = size
    y = np.asarray(phases(R.normal(size=(3, h, w, 3)).astype(np.float32)))
    np.testing.assert_allclose(
        np.sqrt((y**2).mean((1, 2))), np.full((3, 3), (h * w) ** -0.5), rtol=1e-5
    )
    np.testing.assert_allclose(np.abs(np.fft.fft2(y, axes=(1, 2))), 1, rtol=1e-4)


def test_phases_forget_the_contrast_and_follow_a_shift():
    expected = phases(IMAGES)
    np.testing.assert_allclose(phases(37 * IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(phases(-IMAGES), -np.asarray(expected), atol=1e-5)
    shifted = phases(np.roll(IMAGES, (2, 1), (1, 2)))
    np.testing.assert_allclose(shifted, np.roll(expected, (2, 1), (1, 2)), atol=1e-5)
    np.testing.assert_allclose(phases(expected), expected, atol=1e-5)  # once is enough


def test_a_point_is_its_own_phases_and_a_black_image_is_finite():
    point = np.zeros((1, 4, 6, 3), np.float32)
    point[:, 2, 5] = 5
    np.testing.assert_allclose(phases(point), point / 5, atol=1e-6)
    for flat in (np.zeros_like(point), np.full_like(point, 0.3)):
        y = np.asarray(phases(flat))
        assert np.isfinite(y).all() and (y**2).mean() <= 1 / 24 + 1e-5


def test_phase_only_of_half_precision_is_wide():
    half = jnp.asarray(IMAGES, jnp.bfloat16)
    y = phases(half)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, phases(half.astype(jnp.float32)), atol=1e-6)
