"""IDKL's information purifier: equations 7 to 12 by NumPy, its masks, precision, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.reference.convert import flatten
from vireid_jax.methods.idkl.purifier import MASKS, InstanceNorm, Mask, Purifier
from vireid_jax.nets.pooling import gap, gem_above

R = np.random.default_rng(6)
WIDTH, RATIO = 8, 4
X = np.maximum(R.normal(size=(3, 4, 2, WIDTH)), 0) * R.uniform(0.5, 3, WIDTH) + 0.1
X = X.astype(np.float32)  # maps after a ReLU
FORMS = {
    (mask, affine): Purifier(mask, affine, RATIO) for mask in MASKS for affine in (True, False)
}
every = pytest.mark.parametrize("form", FORMS, ids=str)


def started(net, seed=0):
    """Variables with an affine part that does something."""
    variables = net.init(jax.random.key(seed), jnp.asarray(X))
    params = dict(variables["params"])
    if "norm" in params:
        r = np.random.default_rng(seed)
        params["norm"] = {
            "scale": jnp.asarray(r.uniform(0.5, 1.5, WIDTH), jnp.float32),
            "bias": jnp.asarray(r.normal(size=WIDTH), jnp.float32),
        }
    return {"params": params}


VARIABLES = {form: started(net) for form, net in FORMS.items()}
OUTPUT = {form: jax.jit(net.apply)(VARIABLES[form], X) for form, net in FORMS.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalized_of(x, params):
    y = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    return y * params["norm"]["scale"] + params["norm"]["bias"] if "norm" in params else y


def mask_of(x, kernels, form):
    if form == "channel":
        x = (np.maximum(x, 1e-6) ** 3).mean((1, 2), keepdims=True) ** (1 / 3)
    return sigmoid(np.maximum(x @ kernels["down"]["kernel"], 0) @ kernels["up"]["kernel"])


@every
def test_the_equations_by_numpy(form):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), VARIABLES[form]["params"])
    x = X.astype(np.float64)
    normalized = normalized_of(x, params)  # eq. 7
    m_e = mask_of(x, params["mask_e"], form[0])  # eq. 8
    m_r = mask_of(normalized, params["mask_r"], form[0])
    enhanced, reduced = m_e * x, m_r * normalized  # eq. 9
    purified = m_e * reduced + m_r * enhanced  # eq. 12
    expected = dict(normalized=normalized, enhanced=enhanced, reduced=reduced, purified=purified)
    for name, y in OUTPUT[form]._asdict().items():
        assert y.shape == X.shape and y.dtype == np.float32
        np.testing.assert_allclose(y, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        OUTPUT[form].purified, m_e * m_r * (x + normalized), rtol=1e-4, atol=1e-5
    )


@every
def test_masks_lie_between_0_and_1_and_have_the_form_asked_for(form):
    net = Mask(form[0], RATIO)
    variables = {"params": VARIABLES[form]["params"]["mask_e"]}
    mask = np.asarray(net.apply(variables, X))
    assert mask.shape == ((3, 1, 1, WIDTH) if form[0] == "channel" else X.shape)
    assert 0 < mask.min() < 0.45 < 0.55 < mask.max() < 1
    assert np.ptp(mask, 0).max() > 0.01  # of images
    np.testing.assert_allclose(OUTPUT[form].enhanced, mask * X, rtol=1e-5)


def test_both_forms_have_the_same_parameters():
    trees = [flatten(VARIABLES[mask, True]["params"]) for mask in MASKS]
    assert trees[0].keys() == trees[1].keys()
    assert {k: v.shape for k, v in trees[0].items()} == {
        "norm/scale": (WIDTH,),
        "norm/bias": (WIDTH,),
        **{f"mask_{m}/down/kernel": (WIDTH, WIDTH // RATIO) for m in "er"},
        **{f"mask_{m}/up/kernel": (WIDTH // RATIO, WIDTH) for m in "er"},
    }
    other = FORMS["map", True].apply(VARIABLES["channel", True], X)
    assert np.abs(other.purified - OUTPUT["channel", True].purified).max() > 0.01
    kernels = VARIABLES["map", True]["params"]
    assert np.abs(kernels["mask_e"]["up"]["kernel"] - kernels["mask_r"]["up"]["kernel"]).max() > 0.1
    assert set(VARIABLES["map", False]["params"]) == {"mask_e", "mask_r"}


@pytest.mark.parametrize("width, hidden", [(2048, 128), (8, 1)])
def test_the_hidden_layer_has_a_sixteenth_of_the_channels(width, hidden):
    shape = jax.ShapeDtypeStruct((1, 2, 2, width), jnp.float32)
    params = jax.eval_shape(lambda x: Mask().init(jax.random.key(0), x), shape)["params"]
    assert params["down"]["kernel"].shape == (width, hidden)
    assert params["up"]["kernel"].shape == (hidden, width)


# --- Why eq. 8 pools with GeM -----------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_the_average_of_a_normalized_map_says_nothing_of_the_image(affine):
    """It is the shift of the norm for all images; the generalized mean differs by image."""
    normalized = OUTPUT["channel", affine].normalized
    shift = VARIABLES["channel", True]["params"]["norm"]["bias"] if affine else np.zeros(WIDTH)
    average = np.asarray(gap(normalized))
    np.testing.assert_allclose(average, np.tile(shift, (len(X), 1)), atol=1e-5)
    assert np.ptp(np.asarray(gem_above(normalized)), 0).min() > 1e-3
    kernels = jax.tree.map(np.asarray, VARIABLES["channel", affine]["params"]["mask_r"])

    def mask(pooled):
        hidden = np.maximum(pooled @ kernels["down"]["kernel"], 0)
        return sigmoid(hidden @ kernels["up"]["kernel"])

    assert np.ptp(mask(average), 0).max() < 1e-5
    if not affine:
        np.testing.assert_allclose(mask(average), 0.5, atol=1e-5)
    with_gem = np.asarray(OUTPUT["channel", affine].reduced / normalized)[:, 0, 0]
    np.testing.assert_allclose(with_gem, mask(np.asarray(gem_above(normalized))), rtol=1e-3)
    assert np.ptp(with_gem, 0).max() > 0.01


# --- Instance normalization ---------------------------------------------------------------


def test_instances_are_normalized_one_by_one():
    """The style of an image, a scale and shift of each channel, is gone."""
    net = InstanceNorm(affine=False)
    assert not net.init(jax.random.key(0), X)
    y = np.asarray(net.apply({}, X))
    np.testing.assert_allclose(y.mean((1, 2)), 0, atol=1e-5)
    var = X.var((1, 2))
    np.testing.assert_allclose(y.var((1, 2)), var / (var + 1e-5), rtol=1e-4)
    scale, shift = R.uniform(2, 5, (3, 1, 1, WIDTH)), R.normal(size=(3, 1, 1, WIDTH))
    styled = net.apply({}, (scale * X + shift).astype(np.float32))
    np.testing.assert_allclose(styled, y, atol=5e-3)  # the epsilon beside other variances
    np.testing.assert_allclose(net.apply({}, X[:1]), y[:1], atol=1e-6)


@every
def test_maps_without_variance_are_finite(form):
    """A dead channel, and maps of one place: the variance is 0."""
    net, variables = FORMS[form], VARIABLES[form]

    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: sum((y**2).sum() for y in net.apply(variables, x)))(x)

    for x in (np.zeros_like(X), np.ones_like(X), X[:, :1, :1]):
        assert all(np.isfinite(y).all() for y in net.apply(variables, x))
        assert np.isfinite(gradient(jnp.asarray(x))).all()


# --- Precision, rows, errors --------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
def test_half_precision_maps_stay_near_with_float32_parameters(mask):
    net = FORMS[mask, True].clone(dtype=jnp.bfloat16)
    kinds = {x.dtype for x in jax.tree.leaves(net.init(jax.random.key(0), X))}
    assert kinds == {jnp.dtype("float32")}
    found = jax.jit(net.apply)(VARIABLES[mask, True], jnp.asarray(X, jnp.bfloat16))
    for name, y in found._asdict().items():
        assert y.dtype == jnp.bfloat16
        exact = np.asarray(getattr(OUTPUT[mask, True], name))
        error = np.abs(y.astype(np.float32) - exact).max()
        assert error < 0.03 * np.abs(exact).max(), name


@every
def test_images_do_not_see_each_other(form):
    alone = jax.jit(FORMS[form].apply)(VARIABLES[form], X[[2, 0]])
    for name, y in alone._asdict().items():
        np.testing.assert_allclose(y, getattr(OUTPUT[form], name)[jnp.array([2, 0])], atol=1e-5)


def test_an_unknown_mask_is_refused():
    with pytest.raises(ValueError, match=r"mask is 'pixel', expected one of \('channel', 'map'\)"):
        Purifier("pixel").init(jax.random.key(0), X)
