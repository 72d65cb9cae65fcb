"""Losses of DEEN and PDM: loops over identities, what they reward, precision, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.loops import ch, cpm, dcs, distance, double, numeric, slopes
from vireid_jax.losses import pairmining
from vireid_jax.losses.pairmining import (
    center_pair_mining,
    dual_center_separation,
    heterogeneity,
    orthogonality,
)

R = np.random.default_rng(23)
P, D = 4, 5
ORIGINAL = R.normal(size=(P, 2, D))
GENERATED = ORIGINAL + 0.6 * R.normal(size=(P, 2, D))
ROWS = 0.2 * R.normal(size=(P, 1, D)) + 0.2 * R.normal(size=(P, 6, D))  # [P, S, D]
LOGITS = 1.5 * R.normal(size=(3, 4, 7))
CPM = {
    "three": {"form": "three"},
    "single": {"form": "single", "margin": 1.5},
    "single, mean": {"form": "single", "others": "mean", "margin": 1.5},
}


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
    **{f"ch {f}": (partial(prototypes_loss, form=f), (LOGITS,)) for f in pairmining.CH_FORMS},
}
every = pytest.mark.parametrize("name", LOSSES)


# --- By loops, in float64 -----------------------------------------------------------------


@pytest.mark.parametrize("options", CPM.values(), ids=CPM)
def test_center_pair_mining_by_loops(options):
    actual = double(partial(center_pair_mining, **options), ORIGINAL, GENERATED)
    np.testing.assert_allclose(actual, cpm(ORIGINAL, GENERATED, **options), rtol=1e-12)
    assert actual > 0.05


@pytest.mark.parametrize("margins", [(0.01, 0.7), (0.3, 1.2), (0.0, 0.0)])
def test_dual_center_separation_by_loops(margins):
    """Eq. (10); some centers are nearer than 0.7 and some are not."""
    loss = partial(dual_center_separation, pull_margin=margins[0], push_margin=margins[1])
    np.testing.assert_allclose(double(loss, ROWS), dcs(ROWS, *margins), rtol=1e-12)
    if margins == (0.01, 0.7):
        centers = ROWS.mean(1)
        apart = [distance(centers[j], centers[k]) for j in range(P) for k in range(j)]
        assert min(apart) < 0.7 < max(apart)


@pytest.mark.parametrize("form", pairmining.CH_FORMS)
def test_heterogeneity_by_loops(form):
    actual = double(partial(prototypes_loss, form=form), LOGITS)
    np.testing.assert_allclose(actual, ch(LOGITS, form), rtol=1e-12)
    assert -1 <= actual < 0 or form != "code_rms"


@pytest.mark.parametrize("branches", [1, 2, 4])
def test_orthogonality_by_loops(branches):
    made = R.normal(size=(6, branches, D))
    pairs = [(i, j) for i in range(branches) for j in range(i)]
    expected = sum(f[i] @ f[j] for f in made for i, j in pairs) / (6 * (1 + branches))
    actual = double(orthogonality, made)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)
    if branches == 2:  # the mean inner product, divided by the three rows of an image
        np.testing.assert_allclose(actual, (made[:, 0] * made[:, 1]).sum(1).mean() / 3, rtol=1e-12)


# --- What they reward ---------------------------------------------------------------------


def test_three_hinges_pass_no_gradient_to_the_distance_from_the_own_source():
    own = np.array([[distance(ORIGINAL[j, m], GENERATED[j, m]) for m in (0, 1)] for j in range(P)])
    actual = slopes(center_pair_mining, ORIGINAL, GENERATED)
    expected = (
        numeric(lambda c: cpm(c, GENERATED, frozen=own), ORIGINAL),
        numeric(lambda g: cpm(ORIGINAL, g, frozen=own), GENERATED),
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)
    moving = numeric(lambda g: cpm(ORIGINAL, g), GENERATED)
    assert np.abs(actual[1] - moving).max() > 0.01  # it would matter


@pytest.mark.parametrize("name", ["single", "single, mean"])
def test_one_hinge_pushes_from_the_own_source(name):
    options = CPM[name]
    actual = slopes(partial(center_pair_mining, **options), ORIGINAL, GENERATED)[1]
    expected = numeric(lambda g: cpm(ORIGINAL, g, **options), GENERATED)
    np.testing.assert_allclose(actual, expected, atol=1e-8)
    assert np.abs(actual).max() > 0.01


def test_center_pair_mining_is_0_when_generated_features_are_those_of_the_other_modality():
    centers = jnp.asarray(10 * ORIGINAL, jnp.float32)
    for options in ({"form": "three"}, {"form": "single"}, {"form": "single", "others": "mean"}):
        assert center_pair_mining(centers, centers[:, ::-1], **options) == 0
    assert center_pair_mining(centers, centers) > 1


def descend(form, steps=200, rate=2.0):
    """Learns 4 prototypes for 3 fixed images of 12 places; returns mean cosines and RMS."""
    r = np.random.default_rng(5)
    images = jnp.asarray(r.normal(size=(3, 12, 16)), jnp.float32)
    start = jnp.asarray(0.3 * r.normal(size=(4, 16)), jnp.float32)

    def logits(prototypes):
        return jnp.einsum("mc,npc->nmp", prototypes, images)

    def loss(prototypes):
        return prototypes_loss(logits(prototypes), form=form)

    @jax.jit
    def learned(prototypes):
        step = jax.grad(loss)
        return jax.lax.fori_loop(0, steps, lambda _, p: p - rate * step(p), prototypes)

    measures = []
    for prototypes in (start, learned(start)):
        x = logits(prototypes)
        measures += [prototypes_loss(x, form="cos_min"), -prototypes_loss(x, form="code_rms")]
    return measures


def test_equation_9_as_printed_makes_all_prototypes_one():
    cosine, rms, cosine_after, rms_after = descend("paper_literal")
    assert cosine < 0.5 and cosine_after > 0.95
    assert rms_after < rms


@pytest.mark.parametrize("form", ["cos_min", "code_rms"])
def test_the_other_forms_separate_prototypes(form):
    cosine, rms, cosine_after, rms_after = descend(form)
    if form == "cos_min":
        assert cosine_after < cosine - 0.1 and cosine_after < -0.2
    assert rms_after > rms


def test_the_printed_form_is_the_corrected_one_upside_down():
    a, b = (double(partial(prototypes_loss, form=f), LOGITS) for f in ("cos_min", "paper_literal"))
    np.testing.assert_allclose(a + b, 1, rtol=1e-12)
    gradients = [slopes(partial(prototypes_loss, form=f), LOGITS)[0] for f in pairmining.CH_FORMS]
    np.testing.assert_allclose(gradients[1], -gradients[2], rtol=1e-9)


def test_cosines_do_not_see_the_length_of_maps_and_the_code_s_form_does():
    small = {
        f: double(partial(prototypes_loss, form=f), 1e-3 * LOGITS) for f in pairmining.CH_FORMS
    }
    whole = {f: double(partial(prototypes_loss, form=f), LOGITS) for f in pairmining.CH_FORMS}
    np.testing.assert_allclose(small["cos_min"], whole["cos_min"], rtol=1e-9)
    assert -1e-3 < small["code_rms"] < 0 and whole["code_rms"] < -0.1


# --- Orders of rows -----------------------------------------------------------------------


@every
def test_any_order_of_identities_images_and_prototypes(name):
    """And of the two modalities, of the rows of an identity, of the branches."""
    loss, arrays = LOSSES[name]
    first, second = (np.random.default_rng(1).permutation(n) for n in arrays[0].shape[:2])
    moved = [x[first][:, second] for x in arrays]
    np.testing.assert_allclose(double(loss, *moved), double(loss, *arrays), rtol=1e-12)
    for a, b in zip(slopes(loss, *moved), slopes(loss, *arrays), strict=True):
        np.testing.assert_allclose(a, b[first][:, second], atol=1e-14)


def test_rows_by_identity():
    rows = jnp.arange(12.0).reshape(6, 2).astype(jnp.bfloat16)
    actual = pairmining.by_identity(rows, 3)
    assert actual.shape == (3, 2, 2) and actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual[1], rows[2:4].astype(jnp.float32))
    with pytest.raises(ValueError, match="P = 4"):
        pairmining.by_identity(rows, 4)


# --- Precision, compilation, errors -------------------------------------------------------


@every
def test_half_precision_is_widened(name):
    loss, arrays = LOSSES[name]
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    value = loss(*half)
    assert value.dtype == jnp.float32 and value.shape == ()
    if not name.startswith("ch"):  # whose sigmoid is taken before
        np.testing.assert_allclose(value, loss(*(x.astype(jnp.float32) for x in half)), rtol=1e-6)
    np.testing.assert_allclose(value, double(loss, *arrays), rtol=0.05, atol=0.01)


@every
def test_compiled_is_eager(name):
    loss, arrays = LOSSES[name]
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    np.testing.assert_allclose(loss(*arrays), jax.jit(loss)(*arrays), rtol=1e-5)


X = jnp.zeros((3, 2, 4))
ERRORS = {
    "three modalities": (lambda: center_pair_mining(X[:, :1], X[:, :1]), r"\[P, 2, D\]"),
    "two shapes": (lambda: center_pair_mining(X, X[:2]), r"\(3, 2, 4\) and \(2, 2, 4\)"),
    "a matrix": (lambda: center_pair_mining(X[0], X[0]), r"\[P, 2, D\]"),
    "cpm form": (lambda: center_pair_mining(X, X, form="two"), "form is 'two'.*three"),
    "cpm others": (
        lambda: center_pair_mining(X, X, form="single", others="far"),
        "others is 'far'.*nearest",
    ),
    "ort": (lambda: orthogonality(X[0]), r"\[N, G, D\]"),
    "dcs": (lambda: dual_center_separation(X[0]), r"\[P, S, D\]"),
    "ch": (lambda: heterogeneity(X, X[:, :1]), r"\[N, m, n\]"),
    "ch rank": (lambda: heterogeneity(X[0], X[0]), r"\[N, m, n\]"),
    "ch form": (lambda: heterogeneity(X, X, form="cos"), "form is 'cos'.*code_rms"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
