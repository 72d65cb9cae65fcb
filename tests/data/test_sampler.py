import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.loading import rows_of
from tests.support.rows import each
from vireid_jax.data import sampler
from vireid_jax.types import INFRARED, VISIBLE


def sysu_size():
    """As many identities and images as the SYSU-MM01 training set."""
    rng = np.random.default_rng(0)
    people = [np.r_[np.arange(395), rng.integers(0, 395, n - 395)] for n in (22258, 11909)]
    return np.concatenate(people).astype(np.int32), np.repeat([0, 1], [22258, 11909]).astype(
        np.int8
    )


COUNTS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=2, max_size=9)


@settings(max_examples=120, deadline=None)
@given(
    COUNTS,
    st.data(),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.integers(0, 9),
    st.sampled_from([("agw", True), ("agw", False), ("exhaust", True), ("permute", True)]),
)
def test_every_plan_keeps_the_contract(counts, data, num_instances, seed, epoch, how):
    rule, replacement = how
    num_ids = data.draw(st.integers(2, len(counts)))
    label, modality = rows_of(counts, classes=range(3, 3 + 2 * len(counts), 2))
    unused = data.draw(st.integers(0, 3))
    label, modality = np.r_[np.full(unused, -1), label], np.r_[np.zeros(unused, int), modality]
    plan = sampler.plan(
        label,
        modality,
        num_ids=num_ids,
        num_instances=num_instances,
        seed=seed,
        epoch=epoch,
        steps_per_epoch=5,
        rule=rule,
        replacement=replacement,
    )
    assert plan.dtype == np.int32
    assert plan.shape == (5, 2, num_ids * num_instances)
    assert (modality[plan] == np.array([VISIBLE, INFRARED])[None, :, None]).all()
    ids = label[plan]
    assert (ids >= 0).all()
    assert (ids[:, 0] == ids[:, 1]).all()
    blocks = ids[:, 0].reshape(5, num_ids, num_instances)
    assert (blocks == blocks[:, :, :1]).all()
    for step in blocks[:, :, 0]:
        assert len(set(step.tolist())) == num_ids
    if rule != "agw" or not replacement:
        for picked in plan.reshape(5 * 2 * num_ids, num_instances):
            mine = (label == label[picked[0]]) & (modality == modality[picked[0]])
            times = np.unique(picked, return_counts=True)[1]
            assert len(times) == min(mine.sum(), num_instances)
            assert times.max() - times.min() <= 1


def make(label, modality, **options):
    return sampler.plan(
        label, modality, **{"num_ids": 3, "num_instances": 2, "seed": 0, "epoch": 0} | options
    )


@each("options", [{}, {"replacement": False}, {"rule": "exhaust"}, {"rule": "permute"}])
def test_a_longer_epoch_begins_as_a_shorter_one(options):
    label, modality = rows_of([(5, 1)] * 6)
    long, short = (make(label, modality, steps_per_epoch=n, **options) for n in (12, 5))
    np.testing.assert_array_equal(long[:5], short)


def test_identities_and_images_are_drawn_uniformly():
    counts = [(1, 3), (2, 5), (3, 2), (4, 1), (5, 4)]
    label, modality = rows_of(counts)
    steps = 6000
    plan = make(label, modality, num_ids=2, num_instances=2, steps_per_epoch=steps)
    ids = label[plan[:, 0]].reshape(steps, 2, 2)[:, :, 0]
    # Every ordered pair of distinct identities is as likely: 20 of them.
    pairs = np.bincount(ids[:, 0] * 5 + ids[:, 1], minlength=25).reshape(5, 5)
    assert np.trace(pairs) == 0
    off = pairs[~np.eye(5, dtype=bool)]
    assert ((off - steps / 20) ** 2 / (steps / 20)).sum() < 45.3  # chi2(19), p = 6e-4
    for m in (VISIBLE, INFRARED):
        for c, n in enumerate(counts):
            first, second = (plan[:, m].reshape(steps, 2, 2)[..., k][ids == c] for k in (0, 1))
            rows = np.flatnonzero((label == c) & (modality == m))
            times = np.array([(first == r).sum() for r in rows])
            expected = len(first) / n[m]
            assert ((times - expected) ** 2 / expected).sum() < 25  # chi2(<= 4), p < 1e-4
            # With replacement the second draw repeats the first one time in n.
            assert abs((first == second).mean() - 1 / n[m]) < 0.05


def test_without_replacement_every_ordered_pair_of_images_is_as_likely():
    label, modality = rows_of([(4, 2), (4, 2)])
    steps = 6000
    plan = make(
        label, modality, num_ids=2, num_instances=2, steps_per_epoch=steps, replacement=False
    )
    rows = np.flatnonzero((label == 0) & (modality == VISIBLE))
    mine = plan[:, VISIBLE].reshape(-1, 2)
    mine = np.searchsorted(rows, mine[label[mine[:, 0]] == 0])
    pairs = np.bincount(mine[:, 0] * 4 + mine[:, 1], minlength=16).reshape(4, 4)
    assert np.trace(pairs) == 0
    off = pairs[~np.eye(4, dtype=bool)]
    assert ((off - steps / 12) ** 2 / (steps / 12)).sum() < 33  # chi2(11), p = 5e-4


def test_visible_and_infrared_draws_are_independent():
    label, modality = rows_of([(4, 4), (4, 4)])
    plan = make(label, modality, num_ids=2, num_instances=1, steps_per_epoch=4000)
    table = np.zeros((4, 4))
    for m, rows in enumerate(plan.transpose(1, 0, 2).reshape(2, -1)):
        order = np.flatnonzero((label == 0) & (modality == m))
        here = label[rows] == 0
        position = np.searchsorted(order, rows[here])
        if m == 0:
            visible = position
        else:
            np.add.at(table, (visible, position), 1)
    assert ((table - 250) ** 2 / 250).sum() < 40  # chi2(15), p = 5e-4


def test_steps_per_epoch_is_the_rule_of_agw():
    label, modality = sysu_size()
    count = sampler.steps_per_epoch(label, modality, num_ids=8, num_instances=4)
    assert count == 696  # the released code's count for SYSU-MM01
    assert sampler.steps_per_epoch(label, modality, num_ids=6, num_instances=4) == 928
    label, modality = rows_of([(2, 6)] * 4)
    assert sampler.steps_per_epoch(label, modality, num_ids=3, num_instances=2) == 24 // 6 + 1
    assert len(make(label, modality)) == 5
    # Unusable images count for nothing.
    label[label == 0] = -1
    assert sampler.steps_per_epoch(label, modality, num_ids=3, num_instances=2) == 18 // 6 + 1


def test_an_epoch_of_sysu_size_is_planned_fast():
    label, modality = sysu_size()
    begin = time.perf_counter()
    make(label, modality, num_ids=8, num_instances=4)
    assert time.perf_counter() - begin < 0.3


LABEL, MODALITY = rows_of([(2, 2)] * 4)


@each(
    "label, modality, options, message",
    [
        (LABEL, MODALITY, {"num_ids": 1}, "num_ids is 1"),
        (LABEL, MODALITY, {"num_ids": 5}, "only 4 identities"),
        (LABEL, MODALITY, {"num_instances": 0}, "num_instances is 0"),
        (LABEL, MODALITY, {"seed": -1}, "seed is -1"),
        (LABEL, MODALITY, {"seed": 2**32}, "seed is 4294967296"),
        (LABEL, MODALITY, {"epoch": -1}, "epoch is -1"),
        (LABEL, MODALITY, {"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        (LABEL, MODALITY, {"rule": "pk"}, "'pk'; expected one of agw, agw_legacy, exhaust, perm"),
        (LABEL, MODALITY, {"rule": "agw_legacy", "replacement": False}, "replacement is False"),
        (LABEL[:-1], MODALITY, {}, r"shape \(15,\)"),
        (LABEL.astype(float), MODALITY, {}, "label is float64"),
        (LABEL, MODALITY + 1, {}, "modality holds"),
        (LABEL, np.zeros_like(MODALITY), {}, "no usable infrared image"),
        (np.full_like(LABEL, -1), MODALITY, {}, "no usable visible image"),
        (np.where(MODALITY == 0, LABEL, LABEL % 3), MODALITY, {}, r"1 classes .* \[3\]"),
    ],
)
def test_bad_input_is_refused(label, modality, options, message):
    with pytest.raises(ValueError, match=message):
        make(label, modality, **options)


@each("rule", ["pk", None])
def test_the_steps_of_an_unknown_rule_are_refused(rule):
    with pytest.raises(ValueError, match="expected one of agw, agw_legacy, exhaust, permute"):
        sampler.steps_per_epoch(LABEL, MODALITY, num_ids=2, num_instances=2, rule=rule)
