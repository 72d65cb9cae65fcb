"""The identity alignment loss of MUN, eq. (12): what it says of a batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.methods.mun.alignment import alignment_loss

P, K, D = 4, 3, 12
LABELS = np.repeat([5, 2, 11, 3], K).astype(np.int32)
CORNERS = [(0, 0), (10, 0), (0, 10), (10, 10)]

# A margin at which some hinges are active and some are not.
FORMS = {
    "hinge": dict(margin=2.0, form="hinge", normalize=False),
    "literal": dict(margin=0.55, form="literal", normalize=False),
    "softplus": dict(margin=0.55, form="softplus", normalize=False),
    "unit": dict(margin=0.4, form="hinge", normalize=True),
}
VALUES = {name: jax.jit(partial(alignment_loss, **o)) for name, o in FORMS.items()}
GRADIENTS = {
    name: jax.jit(jax.value_and_grad(partial(alignment_loss, **o))) for name, o in FORMS.items()
}
PRINTED = jax.jit(  # any margin with one compilation
    jax.value_and_grad(
        lambda x, labels, margin: alignment_loss(x, labels, margin=margin, form="literal")
    )
)
every_form = pytest.mark.parametrize("name", FORMS)


def _features(ids=P, instances=K, seed=0):
    r = np.random.default_rng([seed, ids, instances])
    person = np.repeat(r.normal(size=(ids, 1, D)), instances, 0)
    return (person + r.normal(size=(ids * instances, 3, D))).astype(np.float32)


def _at(visible, infrared, auxiliary):
    """Features [P * K, 3, D] with the center of every identity at a point of the plane."""
    points = np.zeros((len(visible), 3, D), np.float32)
    points[..., :2] = np.moveaxis(np.asarray([visible, infrared, auxiliary], np.float32), 0, 1)
    jitter = np.random.default_rng(0).normal(size=(len(points), K, 3, D))
    jitter -= jitter.mean(1, keepdims=True)  # moves the images, not their centers
    return (np.repeat(points, K, 0) + jitter.reshape(-1, 3, D)).astype(np.float32)


def _by_hand(name, x, labels):
    """Eq. (12) over centers in float64, form by form: (value, alpha + pos - neg [P])."""
    options = FORMS[name]
    x = x.astype(np.float64)
    if options["normalize"]:
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
    c = np.stack([x[labels == p].mean(0) for p in dict.fromkeys(labels.tolist())])
    inner = []
    for i in range(len(c)):
        positive = max(np.linalg.norm(c[i, 2] - c[i, m]) for m in (0, 1))
        negative = min(
            np.linalg.norm(c[i, 2] - c[q, m]) for q in range(len(c)) if q != i for m in (0, 1)
        )
        inner.append(options["margin"] + positive - negative)
    x = np.array(inner)
    values = {"hinge": np.maximum(x, 0), "literal": x, "softplus": np.log1p(np.exp(x))}
    return values[options["form"]].sum(), x


@every_form
def test_alignment_is_a_sum_over_identities(name):
    x = _features()
    expected, inner = _by_hand(name, x, LABELS)
    np.testing.assert_allclose(VALUES[name](x, LABELS), expected, rtol=1e-5)
    if name == "hinge":
        assert (inner > 0).any() and (inner < 0).any()


@every_form
def test_identities_may_be_permuted_jointly(name):
    x = _features()
    value, gradient = GRADIENTS[name](x, LABELS)
    for order in (
        np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel(),
        np.random.default_rng(3).permutation(P * K),
    ):
        moved, moved_gradient = GRADIENTS[name](x[order], LABELS[order])
        np.testing.assert_allclose(moved, value, rtol=1e-5)
        np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-4, atol=1e-6)


def test_separated_identities_cost_nothing_behind_the_hinge():
    near = [(x + 0.5, y) for x, y in CORNERS]
    value, gradient = GRADIENTS["hinge"](_at(near, near, CORNERS), LABELS)
    assert float(value) == 0 and not np.any(gradient)


def test_the_printed_form_goes_below_zero_and_its_gradient_does_not_know_alpha():
    near = [(x + 0.5, y) for x, y in CORNERS]
    x = _at(near, near, CORNERS)
    (value, gradient), (higher, same_gradient) = (PRINTED(x, LABELS, a) for a in (0.55, 5.0))
    # The nearest negative of two anchors is 9.5 away, that of the other two 10.01.
    assert float(value) == pytest.approx(P * (0.55 + 0.5) - 2 * 9.5 - 2 * 10.0125, rel=1e-4)
    assert float(higher - value) == pytest.approx(P * 4.45, rel=1e-5)
    np.testing.assert_allclose(same_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert np.abs(gradient).max() > 0.1


def test_the_printed_form_falls_with_the_scale_unless_centers_are_normalized():
    near = [(x + 1, y) for x, y in CORNERS]
    x = _at(near, near, [(x + 2, y) for x, y in CORNERS])
    unit_loss = jax.jit(partial(alignment_loss, margin=0.55, form="literal", normalize=True))
    plain = [float(PRINTED(s * x, LABELS, 0.55)[0]) for s in (1.0, 10.0, 100.0)]
    unit = [float(unit_loss(s * x, LABELS)) for s in (1.0, 10.0, 100.0)]
    assert plain[2] < 10 * plain[1] + 50 < 100 * plain[0] + 500 and plain[2] < -1000
    np.testing.assert_allclose(unit, unit[0], rtol=1e-4)
    assert P * (0.55 - 2) <= unit[0] <= P * (0.55 + 2)


def test_the_farther_modality_pulls_and_the_nearest_of_either_pushes():
    # Identity 0: visible at 2 and infrared at 3; nearest other center: infrared, at 4.
    visible = [(-2, 0), *CORNERS[1:]]
    infrared = [(-3, 0), (4, 0), *CORNERS[2:]]
    x = _at(visible, infrared, CORNERS)
    x, labels = x[: 2 * K], LABELS[: 2 * K]
    value, gradient = PRINTED(x, labels, 0.5)
    # Identity 1: its infrared center is 6 away; the other's visible one, the nearest, 12.
    assert float(value) == pytest.approx((0.5 + 3 - 4) + (0.5 + 6 - 12), rel=1e-4)
    center = np.asarray(gradient).reshape(2, K, 3, D).sum(1)  # [P, 3, D]
    np.testing.assert_allclose(center[0, 1, :2], [-1, 0], atol=1e-5)  # pulled back to the anchor
    np.testing.assert_allclose(center[0, 0, :2], [1, 0], atol=1e-5)  # pushed from identity 1's
    np.testing.assert_allclose(center[1, 0], 0, atol=1e-5)  # neither farthest nor nearest


def test_visible_and_infrared_centers_are_never_compared():
    """Moving the nearer positive, as long as it stays nearer, changes nothing."""
    x = _at([(-2, 0), *CORNERS[1:]], [(-3, 0), *CORNERS[1:]], CORNERS)
    y = _at([(-1, -1.5), *CORNERS[1:]], [(-3, 0), *CORNERS[1:]], CORNERS)
    values = [PRINTED(f, LABELS, 20.0)[0] for f in (x, y)]
    # In neither batch is identity 0's visible center the nearest negative of anybody.
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)


@every_form
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_identical_rows_are_finite(name, fill):
    value, gradient = GRADIENTS[name](jnp.full((P * K, 3, D), fill), LABELS)
    assert np.isfinite(gradient).all()
    alpha = FORMS[name]["margin"]
    each = np.log1p(np.exp(alpha)) if name == "softplus" else alpha
    assert float(value) == pytest.approx(P * each, rel=1e-4)


@every_form
@pytest.mark.parametrize("ids, instances", [(2, 1), (2, 2), (3, 1)])
def test_small_batches_are_finite(name, ids, instances):
    x, labels = _features(ids, instances), np.repeat(np.arange(ids), instances)
    value, gradient = GRADIENTS[name](x, labels)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, _by_hand(name, x, labels)[0], rtol=1e-5, atol=1e-6)


@every_form
def test_one_image_shown_in_every_modality_is_finite(name):
    x = np.repeat(_features()[:, :1], 3, 1)
    value, gradient = GRADIENTS[name](x, LABELS)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@every_form
def test_half_precision_features_give_float32_near_the_exact_value(name):
    x = _features()
    value = VALUES[name](jnp.asarray(x, jnp.bfloat16), LABELS)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, VALUES[name](x, LABELS), rtol=2e-2)


@pytest.mark.parametrize("shape", [(P * K, D), (P * K, 2, D), (P * K, 3, D, 1)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="features"):
        alignment_loss(jnp.zeros(shape), LABELS)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="hinge"):
        alignment_loss(_features(), LABELS, form="relu")
