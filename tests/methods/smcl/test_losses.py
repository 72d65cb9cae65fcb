"""The center losses of SMCL (ADSL): naive loops, order of rows, degenerate batches, precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.losses import triplet
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods.smcl import losses
from vireid_jax.methods.smcl.losses import global_center_loss, tri_center_loss

P, K, D = 4, 3, 12
LABELS = np.repeat([5, 2, 11, 3], K).astype(np.int32)
# Margins large enough for most hinges to be active and small enough for some not to be.
LOSSES = {
    "tri_center": (partial(tri_center_loss, margin=2.0), 3),
    "tri_center_unit": (partial(tri_center_loss, margin=0.6, normalize=True), 3),
    "global_center": (global_center_loss, 2),
    "global_center_three": (global_center_loss, 3),
    "global_center_unit": (partial(global_center_loss, normalize=True), 2),
}
GRADIENTS = {name: jax.jit(jax.value_and_grad(loss)) for name, (loss, _) in LOSSES.items()}
every_loss = each("name", LOSSES)


def _features(modalities, ids=P, seed=0):
    r = np.random.default_rng([seed, modalities, ids])
    person = np.repeat(r.normal(size=(ids, 1, D)), K, 0)
    return (person + r.normal(size=(ids * K, modalities, D))).astype(np.float32)


def _case(name):
    return GRADIENTS[name], _features(LOSSES[name][1])


def _by_hand(name, x, labels):
    """The sums of eq. (6) and (7) over centers [P, M, D], in float64."""
    x = x.astype(np.float64)
    c = np.stack([x[labels == p].mean(0) for p in sorted(set(labels.tolist()))])
    if "unit" in name:
        c /= np.linalg.norm(c, axis=-1, keepdims=True)
    margin = 0.6 if "unit" in name else 2.0
    ids = range(len(c))

    def d(p, m, j, n):
        return np.sqrt(((c[p, m] - c[j, n]) ** 2).sum())

    if name.startswith("global"):
        return sum(d(p, 0, p, 1) for p in ids)
    return sum(
        max(margin + d(p, 2, p, m) - min(d(p, 2, j, 2) for j in ids if j != p), 0)
        for m in (0, 1)
        for p in ids
    )


@every_loss
def test_value_is_the_sum_over_identities(name):
    loss, x = _case(name)
    np.testing.assert_allclose(loss(x, LABELS)[0], _by_hand(name, x, LABELS), rtol=1e-5)


@every_loss
def test_only_the_partition_into_identities_counts(name):
    loss, x = _case(name)
    value, gradient = loss(x, LABELS)
    # Slots in any order, whole identities or single images; and identities by other numbers.
    identities = np.arange(P * K).reshape(P, K)[[2, 0, 3, 1]].ravel()
    for order in (identities, np.random.default_rng(3).permutation(P * K)):
        moved, moved_gradient = loss(x[order], LABELS[order])
        np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-4, atol=1e-6)
    renamed = np.select([LABELS == 5, LABELS == 2, LABELS == 11], [1, 394, 7], 0).astype(np.int32)
    np.testing.assert_allclose(loss(x, renamed)[0], value, rtol=1e-5, atol=1e-6)
    for modality in range(x.shape[1]):  # images of an identity may be permuted in one modality
        moved = x.copy()
        moved[K : 2 * K, modality] = x[K : 2 * K, modality][[2, 0, 1]]
        np.testing.assert_allclose(loss(moved, LABELS)[0], value, rtol=1e-5, atol=1e-6)


@every_loss
def test_degenerate_batches_are_finite(name):
    loss, x = _case(name)
    # Images are drawn with replacement: a center may coincide with the other modality's.
    thrice = np.repeat(x[::K, :1], x.shape[1], 1).repeat(K, 0)
    batches = {"one image an identity": (thrice, LABELS), "one": (x, np.zeros_like(LABELS))}
    batches |= {v: (np.full(x.shape, v, np.float32), LABELS) for v in (0.0, 1.0)}
    for case, (rows, labels) in batches.items():
        total, gradient = loss(rows, labels)
        assert np.isfinite(total) and np.isfinite(gradient).all(), case
        if name.startswith("global"):
            continue
        if case == "one":  # no other identity, no negative
            assert float(total) == 0 and not np.any(gradient)
        elif case in (0.0, 1.0):  # every distance is (nearly) 0: the margins remain
            margin = 0.6 if "unit" in name else 2.0
            assert float(total) == pytest.approx(2 * P * margin, rel=1e-4), case


@every_loss
def test_two_identities_share_their_nearest_pair(name):
    """P = 2: both anchors have the same negative distance, a tie between the two centers."""
    x, labels = _features(LOSSES[name][1], ids=2), LABELS[: 2 * K]
    total, gradient = GRADIENTS[name](x, labels)
    np.testing.assert_allclose(total, _by_hand(name, x, labels), rtol=1e-5, atol=1e-6)
    step = 1e-4 * np.random.default_rng(1).normal(size=x.shape)
    slope = (_by_hand(name, x + step, labels) - _by_hand(name, x - step, labels)) / 2
    np.testing.assert_allclose((gradient * step).sum(), slope, rtol=1e-4)


@pytest.mark.slow
@every_loss
def test_half_precision_features_give_float32_near_the_exact_value(name):
    loss, x = jax.jit(LOSSES[name][0]), _case(name)[1]
    half = jnp.asarray(x, jnp.bfloat16)
    value = loss(half, LABELS)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(half.astype(jnp.float32), LABELS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, loss(x, LABELS), rtol=2e-2)


@every_loss
def test_shapes_that_do_not_fit_are_refused(name):
    loss = LOSSES[name][0]
    for shape in ((P * K, D), (P * K, 1, D), (P * K, 4, D, 1)):
        with pytest.raises(ValueError, match="features"):
            loss(jnp.zeros(shape), LABELS)
    with pytest.raises(ValueError, match="labels"):
        loss(_case(name)[1], LABELS[1:])


def test_a_wrong_number_of_modalities_is_refused():
    with pytest.raises(ValueError, match="this loss compares"):
        tri_center_loss(_features(2), LABELS)


# --- What the equations say about particular batches ------------------------------------


def _at(*centers):
    """Features [P * K, M, D] with center (p, m) at the point centers[m][p] of the plane."""
    points = np.zeros((len(centers[0]), len(centers), D), np.float32)
    points[..., :2] = np.moveaxis(np.asarray(centers, np.float32), 0, 1)
    x = np.repeat(points, K, 0)
    jitter = np.random.default_rng(0).normal(size=(len(points), K, len(centers), D))
    jitter -= jitter.mean(1, keepdims=True)  # moves the images, not their centers
    return x + jitter.reshape(x.shape).astype(np.float32)


CORNERS = [(0, 0), (10, 0), (0, 10), (10, 10)]


def test_well_separated_identities_cost_nothing():
    near = [(x + 0.5, y) for x, y in CORNERS]
    x = _at(near, near, CORNERS)
    value, gradient = jax.jit(jax.value_and_grad(tri_center_loss))(x, LABELS)
    assert float(value) == 0 and not np.any(gradient)


def test_the_global_loss_is_a_sum_of_plain_lengths_of_centers():
    infrared = [(x + 3, y + 4) for x, y in CORNERS]
    value, gradient = GRADIENTS["global_center"](_at(CORNERS, infrared), LABELS)
    assert float(value) == pytest.approx(P * 5, rel=1e-5)
    by_center = np.asarray(gradient).reshape(P, K, 2, D).sum(1)
    np.testing.assert_allclose(np.linalg.norm(by_center, axis=-1), 1, rtol=1e-5)


# --- Table 3: how many distances of positive and negative pairs a loss has ------------------------

IDS, INSTANCES = 4, 4
C = 1 / INSTANCES  # what a row counts for that stands for the center of its identity


def _adsl(features, labels):
    return tri_center_loss(features, labels, margin=99.0) + global_center_loss(features, labels)


HC_TRI = partial(losses.hetero_center_triplet, margin=99.0)
# Module, loss, modalities, the paper's counts and, for each distance that the loss asks for, what
# anchors and others count for and the directions in which a matrix is read (v to i and back).
TABLE_3 = {
    "bh_tri": (triplet, partial(batch_hard_triplet, margin=99.0), 2, (224, 768), [(1, 1, 1)]),
    # The author's form, without the intra-modality positives that the paper counts (224).
    "bdtr": (
        losses,
        partial(losses.bdtr, cross_margin=99.0, intra_margin=99.0),
        2,
        (128, 768),
        [(1, 1, 2), (1, 1, 1), (1, 1, 1)],
    ),
    "bicenter": (losses, partial(losses.bi_center, margin=99.0), 2, (32, 96), [(1, C, 1)] * 2),
    "hc_tri": (losses, HC_TRI, 2, (8, 48), [(C, C, 1)]),
    "adsl": (losses, _adsl, 3, (12, 12), [(C, C, 1), *[(C, 1, 1)] * 3]),
}


@pytest.mark.parametrize("name", TABLE_3)
def test_the_losses_use_the_distances_that_the_paper_counts(name, monkeypatch):
    """Gives a loss random distances and looks which ones ever get a gradient.

    They are no distances of points: each is the largest or the smallest of its anchor in
    some of the draws, and a hinge with a margin of 99 hides none.
    """
    module, loss, modalities, counted, weights = TABLE_3[name]
    labels = np.repeat(np.arange(IDS), INSTANCES).astype(np.int32)
    features = jnp.ones((IDS * INSTANCES, modalities, 3))
    shapes, given = [], []

    def distance(a, b=None):
        shapes.append((len(a),) if b is None else (len(a), len(b)))
        return given.pop(0) if given else jnp.ones(shapes[-1])

    monkeypatch.setattr(module, "pairwise_distance", distance)
    monkeypatch.setattr(losses, "safe_norm", distance)

    def of_distances(distances):
        given[:] = distances
        return loss(features, labels)

    jax.eval_shape(lambda: loss(features, labels))
    assert len(shapes) == len(weights)
    r = np.random.default_rng(0)
    draws = [r.random((400, *shape), np.float32) for shape in tuple(shapes)]
    gradients = jax.jit(jax.vmap(jax.grad(of_distances)))(draws)
    positive = negative = 0.0
    for g, (anchor, other, directions) in zip(map(np.asarray, gradients), weights, strict=True):
        if name != "adsl":  # the pulls (or pushes) of a mean over anchors add up to 1, or 0.1
            total = np.abs(g).reshape(len(g), -1).sum(1) / (1 + ((g > 0).any() and (g < 0).any()))
            assert np.allclose(total, directions) or np.allclose(total, 0.1)
        positive += (g > 0).any(0).sum() * anchor * other * directions
        negative += (g < 0).any(0).sum() * anchor * other * directions
    assert (round(positive, 6), round(negative, 6)) == counted
