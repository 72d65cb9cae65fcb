"""Losses of DEEN and PDM where a distance is 0 or nobody is there to compare with.

Written as printed, or as in the authors' code, most of them have NaN gradients here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.loops import ch, dcs, distance, numeric
from tests.losses.test_pairmining import CPM, GENERATED, LOGITS, ORIGINAL, ROWS, D, prototypes_loss
from vireid_jax.losses import pairmining
from vireid_jax.losses.pairmining import center_pair_mining, dual_center_separation

R = np.random.default_rng(29)


def literal_dcs(rows):
    """Eq. (10), the root as it stands."""
    centers = rows.mean(1)
    pull = jnp.sqrt(((rows - centers[:, None]) ** 2).sum(-1))
    apart = jnp.sqrt(((centers[0] - centers[1]) ** 2).sum())
    return jax.nn.relu(pull - 0.01).mean() + jax.nn.relu(0.7 - apart)


def literal_rms(logits):
    s = jax.nn.sigmoid(logits)
    return -jnp.sqrt(((s[:, 0] - s[:, 1]) ** 2).mean(-1)).mean()


def literal_three(c, g):
    pull = jnp.linalg.norm(c[:, 1] - g[:, 0], axis=-1)
    own = jnp.linalg.norm(c[:, 0] - g[:, 0], axis=-1)
    return jax.nn.relu(pull - jax.lax.stop_gradient(own) + 0.2).mean()


def all_finite(loss, *arrays):
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    value, gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays)))))(*arrays)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    return float(value), gradients


def has_nan(loss, *arrays):
    gradients = jax.jit(jax.grad(loss, tuple(range(len(arrays)))))(*map(jnp.float32, arrays))
    return any(np.isnan(g).any() for g in gradients)


ONE_ROW = R.normal(size=(2, 1, D)).astype(np.float32)  # K = 1, nothing generated: its own center
REPEATED = np.repeat(ONE_ROW, 4, 1)  # of four the mean is exact


@pytest.mark.parametrize("rows", [ONE_ROW, REPEATED], ids=["one row", "repeated"])
def test_dcs_of_rows_that_are_their_center(rows):
    assert has_nan(literal_dcs, rows)
    value, (gradient,) = all_finite(dual_center_separation, rows)
    expected = max(0.7 - distance(*rows.mean(1).astype(float)), 0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, numeric(dcs, rows.astype(float)), atol=1e-5)


def test_dcs_where_one_row_of_several_is_its_center():
    rows = np.stack([[[1.0, 2], [3, 0], [2, 1]], [[0, 0], [4, 0], [2, 1]]]).astype(np.float32)
    assert has_nan(literal_dcs, rows)
    value, (gradient,) = all_finite(dual_center_separation, rows)
    np.testing.assert_allclose(value, dcs(rows), rtol=1e-6)
    np.testing.assert_allclose(gradient, numeric(dcs, rows.astype(float)), atol=1e-5)
    assert np.abs(gradient).max() > 0.01


def test_dcs_of_equal_centers_and_of_one_identity():
    """Centers at one place are not pushed apart: there is no direction to."""
    same = np.repeat(ROWS[:1], 3, 0)
    value, _ = all_finite(dual_center_separation, same)
    np.testing.assert_allclose(value, dcs(ROWS[:1].repeat(2, 0)), rtol=1e-5)
    alone, (gradient,) = all_finite(dual_center_separation, ROWS[:1])
    np.testing.assert_allclose(alone, value - 0.7, rtol=1e-5)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("form", pairmining.CH_FORMS)
@pytest.mark.parametrize("value", [0.0, 0.7, 200.0, -200.0])
def test_heterogeneity_of_identical_maps(form, value):
    """Prototypes that agree, saturated sigmoids, and maps of zeros."""
    logits = np.full((2, 3, 5), value, np.float32)
    assert has_nan(literal_rms, logits)
    found, _ = all_finite(partial(prototypes_loss, form=form), logits)
    cosine = float(value != 0)
    expected = {"code_rms": 0, "cos_min": cosine, "paper_literal": 1 - cosine}[form]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_identical_maps_do_not_disturb_the_others():
    logits = LOGITS.copy()
    logits[0, 1] = logits[0, 0]
    assert has_nan(literal_rms, logits)
    _, (gradient,) = all_finite(prototypes_loss, logits)
    expected = numeric(lambda x: ch(x, "code_rms"), LOGITS)
    np.testing.assert_allclose(gradient[1:], expected[1:], atol=1e-6)


@pytest.mark.parametrize("form, expected", [("code_rms", 0), ("cos_min", 0), ("paper_literal", 1)])
def test_heterogeneity_of_one_prototype(form, expected):
    value, (gradient,) = all_finite(partial(prototypes_loss, form=form), LOGITS[:, :1])
    assert value == expected and not gradient.any()


@pytest.mark.parametrize("options", CPM.values(), ids=CPM)
def test_center_pair_mining_of_equal_centers(options):
    """Nothing generated yet differs from its source, or from anything."""
    same = np.ones((3, 2, D), np.float32)
    assert has_nan(literal_three, same, same)
    margin = options.get("margin", 0.2)
    expected = 2 * margin  # for both modalities; three: (1 + 1/2 + 1/2) / 2 of it each
    value, _ = all_finite(partial(center_pair_mining, **options), same, same)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    # A fresh generator that returns its input, on images that differ.
    all_finite(partial(center_pair_mining, **options), ORIGINAL, ORIGINAL)


def test_center_pair_mining_of_one_identity():
    """The parts that compare with others are left out."""
    one = ORIGINAL[:1], GENERATED[:1]
    value, gradients = all_finite(center_pair_mining, *one)
    c, g = one[0][0], one[1][0]
    first = [max(distance(c[1 - m], g[m]) - distance(c[m], g[m]) + 0.2, 0) / 2 for m in (0, 1)]
    np.testing.assert_allclose(value, sum(first), rtol=1e-5)
    assert value > 0 and np.abs(gradients[1]).max() > 0.01
    for others in pairmining.OTHERS:
        loss = partial(center_pair_mining, form="single", others=others, margin=9.0)
        value, gradients = all_finite(loss, *one)
        assert value == 0 and not any(x.any() for x in gradients)
