"""What every metric loss keeps: no order of rows, finite at the edges, float32, clear errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods.agw.losses import weighted_regularized_triplet
from vireid_jax.methods.smcl.losses import bdtr, bi_center, hetero_center_triplet

LOSSES = {
    "batch_hard": partial(batch_hard_triplet, margin=2.0),
    "weighted": weighted_regularized_triplet,
    "bdtr": partial(bdtr, intra_margin=1.0),
    "bi_center": partial(bi_center, margin=2.0),
    "hc_triplet": partial(hetero_center_triplet, margin=2.0),
}
CENTERS = ["bi_center", "hc_triplet"]
every = each("name", LOSSES)

R = np.random.default_rng(5)
PERSONS = np.array([4, 0, 4, 9, 0, 4, 9, 9], np.int32)  # 3, 2 and 3 rows, not adjacent
FEATURES = R.normal(size=(8, 2, 5)).astype(np.float32)

_COMPILED = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}


def run(name, features, persons):
    """Value and gradient as NumPy arrays, compiled."""
    value, gradient = _COMPILED[name](jnp.asarray(features), jnp.asarray(persons))
    return np.asarray(value), np.asarray(gradient)


@every
def test_value_is_a_float32_scalar_and_not_trivial(name):
    value, gradient = run(name, FEATURES, PERSONS)
    assert value.shape == () and value.dtype == np.float32
    assert value > 0.01 and np.abs(gradient).max() > 0.01


@every
def test_rows_persons_and_modalities_have_no_order(name):
    value, gradient = run(name, FEATURES, PERSONS)
    order = R.permutation(8)
    moved, moved_gradient = run(name, FEATURES[order], PERSONS[order])
    np.testing.assert_allclose(moved, value, rtol=1e-5)
    np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-4, atol=1e-6)
    other = np.array([{0: 7, 4: -3, 9: 100}[p] for p in PERSONS.tolist()], np.int32)
    np.testing.assert_array_equal(run(name, FEATURES, other)[0], value)
    np.testing.assert_allclose(run(name, FEATURES[:, ::-1], PERSONS)[0], value, rtol=1e-5)
    shifted, _ = run(name, FEATURES + 3, PERSONS)  # changes only what looks at angles
    assert np.isclose(shifted, value, rtol=1e-4) != name.startswith("bdtr")


@each("name", CENTERS)
def test_the_rows_of_one_identity_may_change_places_in_one_modality(name):
    """Visible and infrared images of a row are a pair for the sampler alone."""
    rows = np.flatnonzero(PERSONS == 4)
    paired = FEATURES.copy()
    paired[rows, 0] = FEATURES[np.roll(rows, 1), 0]
    value, gradient = run(name, FEATURES, PERSONS)
    other, other_gradient = run(name, paired, PERSONS)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(
        other_gradient[rows, 0], gradient[np.roll(rows, 1), 0], rtol=1e-4, atol=1e-6
    )


# --- Edges --------------------------------------------------------------------------------

ONE_PERSON = np.full(8, 3, np.int32)
DEGENERATE = {
    "all zero": (np.zeros((8, 2, 5)), PERSONS),
    "all equal": (np.ones((8, 2, 5)), PERSONS),
    "one person": (FEATURES, ONE_PERSON),
    "one person, all equal": (np.ones((8, 2, 5)), ONE_PERSON),
    "duplicated images": (np.repeat(FEATURES[:4], 2, 0), np.repeat(PERSONS[:4], 2)),
    "equal in both modalities": (np.repeat(FEATURES[:, :1], 2, 1), PERSONS),
    "one image each": (FEATURES, np.arange(8, dtype=np.int32)),
    "tiny": (FEATURES * 1e-20, PERSONS),
    "large": (FEATURES * 1e15, PERSONS),
}


@every
def test_degenerate_batches_are_finite(name):
    for case, (features, persons) in DEGENERATE.items():
        value, gradient = run(name, np.asarray(features, np.float32), persons)
        assert np.isfinite(value) and np.isfinite(gradient).all() and value >= 0, case


@every
def test_without_negatives_there_is_no_loss_and_no_gradient(name):
    for features in (FEATURES, np.ones_like(FEATURES)):
        value, gradient = run(name, features, ONE_PERSON)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


@each(
    "name, expected",
    [
        ("batch_hard", 2.0),
        ("weighted", np.log(2)),
        ("bdtr", 2 * (0.5 + 0.1 * 1.0)),
        ("bi_center", 2 * 2.0),
        ("hc_triplet", 2.0),
    ],
)
def test_rows_that_all_coincide_cost_the_margins_and_have_no_gradient(name, expected):
    value, gradient = run(name, np.ones((8, 2, 5), np.float32), PERSONS)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(gradient, 0)


def test_anchors_without_a_positive_do_not_count():
    """Of one modality, person 0 has one image: three anchors are left, of two persons."""
    x = np.array([[[0.0]], [[1.0]], [[3.0]], [[4.5]]], np.float32)
    value = jax.jit(partial(batch_hard_triplet, margin=1.0))(x, np.array([0, 1, 1, 1]))
    # 1: farthest 4.5 (3.5), nearest 1; 3: 2 and 3; 4.5: 3.5 and 4.5.
    assert float(value) == pytest.approx((3.5 + 0 + 0) / 3)


@every
def test_what_is_not_a_number_shows(name):
    broken = FEATURES.copy()
    broken[2, 1, 0] = np.nan
    value, gradient = run(name, broken, PERSONS)
    assert np.isnan(value) and np.isnan(gradient).any()


# --- Precision and errors -------------------------------------------------------------------


@pytest.mark.slow
@every
def test_compiled_as_eager(name):
    eager = LOSSES[name](jnp.asarray(FEATURES), jnp.asarray(PERSONS))
    np.testing.assert_allclose(run(name, FEATURES, PERSONS)[0], eager, rtol=1e-6)


@pytest.mark.slow
@every
def test_half_precision_features_are_computed_in_float32(name):
    half = jnp.asarray(FEATURES, jnp.bfloat16)
    value, gradient = run(name, half, PERSONS)
    exact, exact_gradient = run(name, half.astype(jnp.float32), PERSONS)
    assert value.dtype == np.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_allclose(gradient.astype(np.float32), exact_gradient, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(value, run(name, FEATURES, PERSONS)[0], rtol=5e-2)


@every
def test_no_silent_promotion_of_types(name):
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(jax.value_and_grad(LOSSES[name]), jnp.asarray(FEATURES), PERSONS)


@every
def test_shapes_that_do_not_fit_are_refused(name):
    for features, labels in (((8, 5), (8,)), ((8, 2, 5), (7,)), ((8, 2, 5), (8, 2)), ((8,), (8,))):
        with pytest.raises(ValueError, match=r"expected \[B, M, D\] and \[B\]"):
            LOSSES[name](jnp.zeros(features), jnp.zeros(labels, jnp.int32))


def test_losses_of_two_modalities_refuse_another_number():
    for name in ("bdtr", "bi_center"):
        for modalities in (1, 3):
            with pytest.raises(ValueError, match=r"expected \[B, 2, D\].*features\[:, m\]"):
                LOSSES[name](jnp.zeros((8, modalities, 5)), PERSONS)


def test_centers_of_one_modality_have_no_positives():
    with pytest.raises(ValueError, match="M >= 2"):
        hetero_center_triplet(jnp.zeros((8, 1, 5)), PERSONS)
