"""Distances that the metric losses use: counted from the masks, and found from outside."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vireid_jax.losses import center, counts, triplet
from vireid_jax.losses.counts import distance_counts
from vireid_jax.methods.smcl import adsl

# Table 3 of SMCL with P = K = 4 (spec: formulas in P and K below).
TABLE = {
    "bh_tri": (224, 768),
    "bdtr": (224, 768),
    "bdtr_orig": (128, 768),
    "bicenter": (32, 96),
    "hc_tri": (8, 48),
    "adsl": (12, 12),
}
FORMULAS = {
    "bh_tri": lambda p, k: (2 * p * k * (2 * k - 1), 2 * p * k * 2 * (p - 1) * k),
    "bdtr": lambda p, k: (2 * p * k * k + 2 * p * k * (k - 1), 2 * p * k * 2 * (p - 1) * k),
    "bdtr_orig": lambda p, k: (2 * p * k * k, 2 * p * k * 2 * (p - 1) * k),
    "bicenter": lambda p, k: (2 * p * k, 2 * p * k * (p - 1)),
    "hc_tri": lambda p, k: (2 * p, 2 * p * 2 * (p - 1)),
    "adsl": lambda p, k: (3 * p, p * (p - 1)),
}


@pytest.mark.parametrize("name", TABLE)
def test_counts_of_the_paper(name):
    assert distance_counts(name, num_ids=4, num_instances=4) == TABLE[name]


@pytest.mark.parametrize("num_ids, num_instances", [(1, 3), (6, 1), (8, 3)])
@pytest.mark.parametrize("name", counts.PAIRS)
def test_counts_follow_the_formulas(name, num_ids, num_instances):
    actual = distance_counts(name, num_ids=num_ids, num_instances=num_instances)
    assert actual == FORMULAS[name](num_ids, num_instances)


def test_counts_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match=r"'bdtr2', expected one of .*bdtr_orig"):
        distance_counts("bdtr2", num_ids=4, num_instances=4)
    with pytest.raises(ValueError, match="P = 0 and K = 4"):
        distance_counts("adsl", num_ids=0, num_instances=4)


P, K = 4, 4
C = 1 / K  # what a row counts for that stands for the center of its identity


def _adsl(features, labels):
    return adsl.tri_center_loss(features, labels, margin=99.0) + adsl.global_center_loss(
        features, labels
    )


# Module, loss, modalities and, for each distance that the loss asks for, what anchors and
# others count for and the directions in which a matrix is read (v to i and back).
LOSSES = {
    "bh_tri": (triplet, partial(triplet.batch_hard_triplet, margin=99.0), 2, [(1, 1, 1)]),
    "bdtr": (
        triplet,
        partial(triplet.bdtr, form="counted", cross_margin=99.0, intra_margin=99.0),
        2,
        [(1, 1, 2), (1, 1, 1), (1, 1, 1)],
    ),
    "bdtr_orig": (
        triplet,
        partial(triplet.bdtr, cross_margin=99.0, intra_margin=99.0),
        2,
        [(1, 1, 2), (1, 1, 1), (1, 1, 1)],
    ),
    "bicenter": (center, partial(center.bi_center, margin=99.0), 2, [(1, C, 1)] * 2),
    "bicenter_joint": (
        center,
        partial(center.bi_center, margin=99.0, joint=True),
        2,
        [(1, C, 1)] * 4,
    ),
    "hc_tri": (center, partial(center.hetero_center_triplet, margin=99.0), 2, [(C, C, 1)]),
    "adsl": (adsl, _adsl, 3, [(C, C, 1), (C, 1, 1), (C, 1, 1), (C, 1, 1)]),
}


def _on_given_distances(name, monkeypatch):
    """The loss as a function of the matrices (or vectors) of distances, and their shapes."""
    module, loss, modalities, _ = LOSSES[name]
    labels = np.repeat(np.arange(P), K).astype(np.int32)
    features = jnp.ones((P * K, modalities, 3))
    shapes: list[tuple[int, ...]] = []
    given: list[jax.Array] = []

    def distance(a, b=None):
        shape = (len(a),) if b is None else (len(a), len(b))
        shapes.append(shape)
        return given.pop(0) if given else jnp.ones(shape)

    monkeypatch.setattr(module, "pairwise_distance", distance)
    if module is adsl:
        monkeypatch.setattr(module, "safe_norm", distance)

    def of_distances(distances):
        given[:] = distances
        return loss(features, labels)

    jax.eval_shape(lambda: loss(features, labels))
    return of_distances, tuple(shapes)


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_use_the_distances_that_are_counted(name, monkeypatch):
    """Gives a loss random distances and looks which ones ever get a gradient.

    They are no distances of points: each is the largest or the smallest of its anchor in
    some of the draws, and a hinge with a margin of 99 hides none.
    """
    of_distances, shapes = _on_given_distances(name, monkeypatch)
    weights = LOSSES[name][3]
    assert len(shapes) == len(weights)

    r = np.random.default_rng(0)
    draws = [r.random((400, *shape), np.float32) for shape in shapes]
    gradients = jax.jit(jax.vmap(jax.grad(of_distances)))(draws)
    positive = negative = 0.0
    for g, (anchor, other, directions) in zip(map(np.asarray, gradients), weights, strict=True):
        if name != "adsl":  # the pulls (or pushes) of a mean over anchors add up to 1, or 0.1
            total = np.abs(g).reshape(len(g), -1).sum(1) / (1 + ((g > 0).any() and (g < 0).any()))
            assert np.allclose(total, directions) or np.allclose(total, 0.1)
        positive += (g > 0).any(0).sum() * anchor * other * directions
        negative += (g < 0).any(0).sum() * anchor * other * directions
    counted = distance_counts(name.removesuffix("_joint"), num_ids=P, num_instances=K)
    assert (round(positive, 6), round(negative, 6)) == counted
