"""Losses of DEEN and PDM: PyTorch, what they reward, edges, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.loops import ch, dcs, distance, double, numeric
from tests.support.parity import loss_tests
from tests.support.rows import each
from vireid_jax.losses import pairmining
from vireid_jax.losses.pairmining import center_pair_mining, orthogonality
from vireid_jax.methods.pdm.losses import CH_FORMS, dual_center_separation, heterogeneity


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    """Losses are compiled with optimizations, unlike the whole models of this folder."""


R = np.random.default_rng(23)
P, D = 4, 5
ORIGINAL = R.normal(size=(P, 2, D))
GENERATED = ORIGINAL + 0.6 * R.normal(size=(P, 2, D))
ROWS = 0.2 * R.normal(size=(P, 1, D)) + 0.2 * R.normal(size=(P, 6, D))  # [P, S, D]
LOGITS = 1.5 * R.normal(size=(3, 4, 7))
CPM = {"three": {"form": "three"}, "single": {"form": "single", "margin": 1.5}}


def prototypes_loss(logits, **options):
    return heterogeneity(jax.nn.sigmoid(logits), logits, **options)


# Every loss with arrays that it takes.
LOSSES = {
    **{
        f"cpm {k}": (partial(center_pair_mining, **v), (ORIGINAL, GENERATED))
        for k, v in CPM.items()
    },
    "ort": (orthogonality, (ROWS,)),
    "dcs": (dual_center_separation, (ROWS,)),
    **{f"ch {f}": (partial(prototypes_loss, form=f), (LOGITS,)) for f in CH_FORMS},
}
every = each("name", LOSSES)


# --- PyTorch ------------------------------------------------------------------------------
# The functions named released_... take rows in the released code's order, so that agreement is
# also between our axes and its chunks.


def _released_cpm(features):
    """As the method does."""
    return sum(pairmining.by_branch(features, 4))


def _released_dcs(features, labels):
    rows = pairmining.by_identity(features, 4)
    return dual_center_separation(rows.reshape(4, -1, rows.shape[-1]))


FUNCTIONS = {
    "cpm": (center_pair_mining, "original generated"),
    "ort": (orthogonality, "features"),
    "dcs": (dual_center_separation, "features"),
    "ch": (prototypes_loss, "logits"),
    "cpm_released": (_released_cpm, "features"),
    "dcs_released": (_released_dcs, "features labels"),
    "ort_released": (lambda features: orthogonality(features[:, 1:]), "features"),
}
# What is left of a sum of cosines of both signs: 0.03.
test_value_and_gradient, test_the_cases_test_something = loss_tests(
    FUNCTIONS, rtol64=1e-11, rtol32={"ort_four": 1e-4}
)


# --- What they reward ---------------------------------------------------------------------


def test_center_pair_mining_is_0_when_generated_features_are_those_of_the_other_modality():
    centers = jnp.asarray(10 * ORIGINAL, jnp.float32)
    for form in CPM:
        assert center_pair_mining(centers, centers[:, ::-1], form=form) == 0, form
    assert center_pair_mining(centers, centers) > 1


def test_cosines_do_not_see_the_length_of_maps_and_the_code_s_form_does():
    small = {f: double(partial(prototypes_loss, form=f), 1e-3 * LOGITS) for f in CH_FORMS}
    whole = {f: double(partial(prototypes_loss, form=f), LOGITS) for f in CH_FORMS}
    np.testing.assert_allclose(small["cos_min"], whole["cos_min"], rtol=1e-9)
    assert -1e-3 < small["code_rms"] < 0 and whole["code_rms"] < -0.1


# --- Orders of rows -----------------------------------------------------------------------


@pytest.mark.slow
@every
def test_any_order_of_identities_images_and_prototypes(name):
    """And of the two modalities, of the rows of an identity, of the branches."""
    loss, arrays = LOSSES[name]
    both = jax.value_and_grad(loss, tuple(range(len(arrays))))
    first, second = (np.random.default_rng(1).permutation(n) for n in arrays[0].shape[:2])
    value, gradients = double(both, *arrays)
    moved, moved_gradients = double(both, *(x[first][:, second] for x in arrays))
    np.testing.assert_allclose(moved, value, rtol=1e-12)
    for a, b in zip(moved_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b[first][:, second], atol=1e-14)


def test_rows_by_identity():
    rows = jnp.arange(12.0).reshape(6, 2).astype(jnp.bfloat16)
    actual = pairmining.by_identity(rows, 3)
    assert actual.shape == (3, 2, 2) and actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual[1], rows[2:4].astype(jnp.float32))
    with pytest.raises(ValueError, match="P = 4"):
        pairmining.by_identity(rows, 4)


# --- Precision, compilation, errors -------------------------------------------------------


@pytest.mark.slow
@every
def test_half_precision_is_widened(name):
    loss, arrays = jax.jit(LOSSES[name][0]), LOSSES[name][1]
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    value = loss(*half)
    assert value.dtype == jnp.float32 and value.shape == ()
    if not name.startswith("ch"):  # whose sigmoid is taken before
        np.testing.assert_allclose(value, loss(*(x.astype(jnp.float32) for x in half)), rtol=1e-6)
    np.testing.assert_allclose(value, double(loss, *arrays), rtol=0.05, atol=0.01)


X = jnp.zeros((3, 2, 4))
ERRORS = {
    "three modalities": (lambda: center_pair_mining(X[:, :1], X[:, :1]), r"\[P, 2, D\]"),
    "two shapes": (lambda: center_pair_mining(X, X[:2]), r"\(3, 2, 4\) and \(2, 2, 4\)"),
    "a matrix": (lambda: center_pair_mining(X[0], X[0]), r"\[P, 2, D\]"),
    "cpm form": (lambda: center_pair_mining(X, X, form="two"), "form is 'two'.*three"),
    "ort": (lambda: orthogonality(X[0]), r"\[N, G, D\]"),
    "dcs": (lambda: dual_center_separation(X[0]), r"\[P, S, D\]"),
    "ch": (lambda: heterogeneity(X, X[:, :1]), r"\[N, m, n\]"),
    "ch rank": (lambda: heterogeneity(X[0], X[0]), r"\[N, m, n\]"),
    "ch form": (lambda: heterogeneity(X, X, form="cos"), "form is 'cos'.*code_rms"),
}


def test_errors():
    for call, message in ERRORS.values():
        with pytest.raises(ValueError, match=message):
            call()


# --- Where a distance is 0, or nobody is there to compare with ----------------------------
# Written as printed, or as in the authors' code, most of them have NaN gradients here.


def all_finite(loss, *arrays):
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    value, gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays)))))(*arrays)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    return float(value), gradients


ONE_ROW = R.normal(size=(2, 1, D)).astype(np.float32)  # K = 1, nothing generated: its own center
REPEATED = np.repeat(ONE_ROW, 4, 1)  # of four the mean is exact
ONE_OF_SEVERAL = np.array([[[1, 2], [3, 0], [2, 1]], [[0, 0], [4, 0], [2, 1]]], np.float32)


@each("rows", [ONE_ROW, REPEATED, ONE_OF_SEVERAL])
def test_dcs_of_rows_that_are_their_center(rows):
    value, (gradient,) = all_finite(dual_center_separation, rows)
    np.testing.assert_allclose(value, dcs(rows), rtol=1e-6)
    np.testing.assert_allclose(gradient, numeric(dcs, rows.astype(float)), atol=1e-5)
    assert np.abs(gradient).max() > 0.01 or dcs(rows) == 0


def test_dcs_of_equal_centers_and_of_one_identity():
    """Centers at one place are not pushed apart: there is no direction to."""
    same = np.repeat(ROWS[:1], 3, 0)
    value, _ = all_finite(dual_center_separation, same)
    np.testing.assert_allclose(value, dcs(ROWS[:1].repeat(2, 0)), rtol=1e-5)
    alone, (gradient,) = all_finite(dual_center_separation, ROWS[:1])
    np.testing.assert_allclose(alone, value - 0.7, rtol=1e-5)
    assert np.abs(gradient).max() > 1e-3


@each("form", CH_FORMS)
def test_heterogeneity_of_identical_maps_and_of_one(form):
    """Prototypes that agree, saturated sigmoids, and maps of zeros."""
    loss = partial(prototypes_loss, form=form)
    for value in (0.0, 0.7, 200.0, -200.0):
        found, _ = all_finite(loss, np.full((2, 3, 5), value, np.float32))
        expected = 0 if form == "code_rms" else float(value != 0)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=str(value))
    value, (gradient,) = all_finite(loss, LOGITS[:, :1])
    assert value == 0 and not gradient.any()


def test_identical_maps_do_not_disturb_the_others():
    logits = LOGITS.copy()
    logits[0, 1] = logits[0, 0]
    _, (gradient,) = all_finite(prototypes_loss, logits)
    expected = numeric(lambda x: ch(x, "code_rms"), LOGITS)
    np.testing.assert_allclose(gradient[1:], expected[1:], atol=1e-6)


@each("options", CPM.values())
def test_center_pair_mining_of_equal_centers(options):
    """Nothing generated yet differs from its source, or from anything."""
    same = np.ones((3, 2, D), np.float32)
    loss = partial(center_pair_mining, **options)
    # For both modalities the margin; three: (1 + 1/2 + 1/2) / 2 of it each.
    value, _ = all_finite(loss, same, same)
    np.testing.assert_allclose(value, 2 * options.get("margin", 0.2), rtol=1e-4)
    # A fresh generator that returns its input, on images that differ.
    all_finite(loss, ORIGINAL, ORIGINAL)


def test_center_pair_mining_of_one_identity():
    """The parts that compare with others are left out."""
    one = ORIGINAL[:1], GENERATED[:1]
    value, gradients = all_finite(center_pair_mining, *one)
    c, g = one[0][0], one[1][0]
    first = [max(distance(c[1 - m], g[m]) - distance(c[m], g[m]) + 0.2, 0) / 2 for m in (0, 1)]
    np.testing.assert_allclose(value, sum(first), rtol=1e-5)
    assert value > 0 and np.abs(gradients[1]).max() > 0.01
    value, gradients = all_finite(partial(center_pair_mining, form="single", margin=9.0), *one)
    assert value == 0 and not any(x.any() for x in gradients)
