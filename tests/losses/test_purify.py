"""What teaches IDKL's purifier: loops over rows, what no mask can do, edges, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.methods.idkl import purify

R = np.random.default_rng(17)
PERSONS = np.array([4, 0, 4, 0, 9], np.int32)  # not adjacent, one with a single image
ENHANCED, PLAIN = 2 * R.normal(size=(2, 6, 3))
REDUCED, NORMALIZED = R.normal(size=(2, 5, 2, 4))


# --- By loops, in float64 ---------------------------------------------------------------


def entropy(row):
    powers = [np.exp(x - max(row)) for x in row]
    return -sum(x / sum(powers) * np.log(x / sum(powers)) for x in powers)


def enhancing(enhanced, plain, form="softplus"):
    rises = [entropy(x) - entropy(y) for x, y in zip(enhanced, plain, strict=True)]
    if form == "softplus":
        return np.mean([np.log(1 + np.exp(x)) for x in rises])
    return np.mean([np.exp(max(x, 0)) - 1 for x in rises])


def reducing(reduced, plain, persons, form="softplus", relative=False):
    def gap(features, person):
        v, i = (np.mean(features[persons == person, m], 0) for m in (0, 1))
        distance = np.sqrt(sum((x - y + 1e-6) ** 2 for x, y in zip(v, i, strict=True)))
        return distance / (np.sqrt(sum(v**2)) + np.sqrt(sum(i**2))) if relative else distance

    rises = [gap(reduced, p) - gap(plain, p) for p in sorted(set(persons.tolist()))]
    return np.mean([np.log(1 + np.exp(x)) if form == "softplus" else max(x, 0) for x in rises])


def double(function, *arrays, **options):
    """A function in float64, compiled."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(partial(function, **options))(*arrays))


def test_entropy_by_loops():
    actual = double(purify.entropy, PLAIN)
    np.testing.assert_allclose(actual, [entropy(row) for row in PLAIN], rtol=1e-12)
    np.testing.assert_allclose(purify.entropy(jnp.zeros((2, 8))), np.log(8), rtol=1e-6)


@pytest.mark.parametrize("form", purify.ENHANCING_FORMS)
def test_enhancing_loss_by_loops(form):
    actual = double(purify.enhancing_loss, ENHANCED, PLAIN, form=form)
    np.testing.assert_allclose(actual, enhancing(ENHANCED, PLAIN, form), rtol=1e-12)
    assert actual > 0.05
    order = R.permutation(len(PLAIN))
    moved = double(purify.enhancing_loss, ENHANCED[order], PLAIN[order], form=form)
    np.testing.assert_allclose(moved, actual, rtol=1e-12)


@pytest.mark.parametrize("form", purify.REDUCING_FORMS)
@pytest.mark.parametrize("relative", [False, True])
def test_reducing_loss_by_loops(form, relative):
    options = dict(form=form, relative=relative)
    actual = double(purify.reducing_loss, 2 * REDUCED, NORMALIZED, PERSONS, **options)
    expected = reducing(2 * REDUCED, NORMALIZED, PERSONS, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert actual > 0.01


@pytest.mark.parametrize("relative", [False, True])
def test_rows_and_persons_have_no_order(relative):
    loss = partial(double, purify.reducing_loss, relative=relative)
    expected = loss(REDUCED, NORMALIZED, PERSONS)
    order = R.permutation(len(PERSONS))
    moved = loss(REDUCED[order], NORMALIZED[order], PERSONS[order])
    np.testing.assert_allclose(moved, expected, rtol=1e-12)
    renamed = loss(REDUCED, NORMALIZED, 100 - PERSONS)
    np.testing.assert_allclose(renamed, expected, rtol=1e-12)
    paired = [x.copy() for x in (REDUCED, NORMALIZED)]
    for x in paired:  # the images of one person may change places in one modality
        x[[0, 2], 1] = x[[2, 0], 1]
    np.testing.assert_allclose(loss(*paired, PERSONS), expected, rtol=1e-12)


# --- What the forms reward --------------------------------------------------------------


def test_the_reducing_loss_of_the_code_is_zero_for_any_mask_that_is_the_same_for_all():
    """Its value and gradient are 0 from the start; softplus has a gradient: to smaller masks."""
    mask = jnp.asarray(R.uniform(0.05, 0.95, 4))

    def loss(mask, form, relative):
        return purify.reducing_loss(
            mask[None, None] * NORMALIZED, jnp.asarray(NORMALIZED), PERSONS, form=form,
            relative=relative,
        )  # fmt: skip

    found = {
        (form, relative): jax.jit(jax.value_and_grad(partial(loss, form=form, relative=relative)))(
            mask
        )
        for form in purify.REDUCING_FORMS
        for relative in (False, True)
    }
    value, gradient = found["relu", False]
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    value, gradient = found["softplus", False]
    assert 0 < value < np.log(2) and (gradient > 0).all()
    # Only a mask that weights channels can change the relative gap: no pull on its size.
    value, gradient = found["softplus", True]
    assert np.abs(gradient).max() > 1e-3 and abs((gradient * mask).sum()) < 1e-5


def test_relative_gaps_do_not_change_with_the_size_of_features():
    values = [
        double(purify.reducing_loss, s * REDUCED, NORMALIZED, PERSONS, relative=True)
        for s in (1e-1, 1, 10)
    ]
    np.testing.assert_allclose(values, values[1], rtol=1e-4)  # to the shift of 1e-6
    plain = [double(purify.reducing_loss, s * REDUCED, NORMALIZED, PERSONS) for s in (0.1, 10)]
    assert plain[0] < plain[1] / 10


def test_the_enhancing_loss_is_lowered_by_doubt_about_the_plain_features():
    """Why `e_stop_reference` is there: the reference is rewarded for high entropy."""
    sure, unsure = jnp.asarray([[4.0, 0, 0]]), jnp.asarray([[1.0, 0, 0]])
    for form in purify.ENHANCING_FORMS:
        assert purify.enhancing_loss(sure, unsure, form=form) < purify.enhancing_loss(
            unsure, sure, form=form
        )
    by_enhanced, by_plain = jax.grad(purify.enhancing_loss, (0, 1))(unsure, sure)
    assert by_enhanced[0, 0] < 0 < by_plain[0, 0]
    # Once the enhanced features are surer, the code's form is satisfied and the paper's not.
    assert purify.enhancing_loss(sure, unsure, form="exponential") == 0
    assert purify.enhancing_loss(sure, unsure) > 0.1
    np.testing.assert_allclose(purify.enhancing_loss(sure, sure), np.log(2), rtol=1e-6)


# --- Edges, precision -------------------------------------------------------------------

_REDUCING = {
    (form, relative): jax.jit(
        jax.value_and_grad(partial(purify.reducing_loss, form=form, relative=relative), (0, 1))
    )
    for form in purify.REDUCING_FORMS
    for relative in (False, True)
}
ONE = np.zeros(5, np.int32)
EACH = np.arange(5, dtype=np.int32)  # K = 1
EQUAL = np.repeat(REDUCED[:, :1], 2, 1)
DEGENERATE = {
    "all zero": (0 * REDUCED, 0 * NORMALIZED, PERSONS),
    "all equal": (0 * REDUCED + 1, 0 * NORMALIZED + 1, PERSONS),
    "one person": (REDUCED, NORMALIZED, ONE),
    "one image each": (REDUCED, NORMALIZED, EACH),
    "equal in both modalities": (EQUAL, NORMALIZED, PERSONS),
    "a mask of zero": (0 * NORMALIZED, NORMALIZED, PERSONS),
    "tiny": (1e-20 * REDUCED, 1e-20 * NORMALIZED, PERSONS),
    "large": (1e15 * REDUCED, 1e15 * NORMALIZED, PERSONS),
}


@pytest.mark.parametrize("key", _REDUCING, ids=str)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches_are_finite(key, case):
    reduced, plain, persons = DEGENERATE[case]
    value, gradient = _REDUCING[key](*(jnp.asarray(x, jnp.float32) for x in (reduced, plain)),
                                     persons)  # fmt: skip
    assert value.shape == () and value.dtype == np.float32 and value >= 0
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in gradient)


@pytest.mark.parametrize("form", purify.ENHANCING_FORMS)
@pytest.mark.parametrize("logits", [np.zeros((3, 4)), np.full((3, 4), 1e4), 1e4 * np.eye(3, 4)])
def test_certain_and_uniform_logits_are_finite(form, logits):
    """Entropy 0 is 0 log 0."""
    x = jnp.asarray(logits, jnp.float32)
    value, gradient = jax.value_and_grad(partial(purify.enhancing_loss, form=form), (0, 1))(x, -x)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in gradient)


def test_half_precision_is_computed_in_float32():
    half = [jnp.asarray(x, jnp.bfloat16) for x in (REDUCED, NORMALIZED)]
    value, gradient = _REDUCING["softplus", False](*half, PERSONS)
    assert value.dtype == np.float32 and gradient[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(value, reducing(REDUCED, NORMALIZED, PERSONS), rtol=0.02)
    rounded = (np.asarray(x, np.float64) for x in half)
    np.testing.assert_allclose(value, reducing(*rounded, PERSONS), rtol=1e-5)
    logits = [jnp.asarray(x, jnp.bfloat16) for x in (ENHANCED, PLAIN)]
    value = purify.enhancing_loss(*logits)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, enhancing(ENHANCED, PLAIN), rtol=0.02)


def test_compiled_as_eager():
    arrays = [jnp.asarray(x, jnp.float32) for x in (REDUCED, NORMALIZED)]
    eager = purify.reducing_loss(*arrays, jnp.asarray(PERSONS))
    np.testing.assert_allclose(_REDUCING["softplus", False](*arrays, PERSONS)[0], eager, rtol=1e-6)
    logits = [jnp.asarray(x, jnp.float32) for x in (ENHANCED, PLAIN)]
    np.testing.assert_allclose(
        jax.jit(purify.enhancing_loss)(*logits), purify.enhancing_loss(*logits), rtol=1e-6
    )


# --- Refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4,), (4,))])
def test_logits_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"expected two of \[N, C\]"):
        purify.enhancing_loss(*(jnp.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    "reduced, plain", [((4, 3), (4, 3)), ((4, 3, 5), (4, 3, 5)), ((4, 2, 5), (4, 2, 6))]
)
def test_features_that_do_not_fit_are_refused(reduced, plain):
    with pytest.raises(ValueError, match=r"expected two of \[B, 2, D\]"):
        purify.reducing_loss(jnp.zeros(reduced), jnp.zeros(plain), jnp.zeros(4, jnp.int32))


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[B\]"):
        purify.reducing_loss(REDUCED, NORMALIZED, PERSONS[:4])


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"form is 'relu', expected one of \('softplus', 'exp"):
        purify.enhancing_loss(ENHANCED, PLAIN, form="relu")
    with pytest.raises(ValueError, match=r"form is 'hinge', expected one of \('softplus', 'relu'"):
        purify.reducing_loss(REDUCED, NORMALIZED, PERSONS, form="hinge")
