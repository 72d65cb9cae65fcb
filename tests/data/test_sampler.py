"""The rules of AGW, MPANet, IDKL and the released AGW sampler, against their own words."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.chain import chi2
from tests.data.loading import rows_of
from tests.data.mixed_tree import at_once
from tests.support.rows import each
from vireid_jax.data import sampler
from vireid_jax.types import INFRARED, VISIBLE

COUNTS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=2, max_size=8)


def make(label, modality, rule="agw", **options):
    defaults = dict(num_ids=3, num_instances=2, seed=0, epoch=0)
    return sampler.plan(label, modality, rule=rule, **defaults | options)


def steps(label, modality, num_ids, num_instances, rule="agw"):
    options = dict(num_ids=num_ids, num_instances=num_instances, rule=rule)
    return sampler.steps_per_epoch(label, modality, **options)


def identities(plan, label, num_ids):
    """The classes of every step, [S, P]."""
    return label[plan[:, 0]].reshape(len(plan), num_ids, -1)[:, :, 0]


def sysu_size():
    """As many identities and images as the SYSU-MM01 training set."""
    rng = np.random.default_rng(0)
    people = [np.r_[np.arange(395), rng.integers(0, 395, n - 395)] for n in (22258, 11909)]
    modality = np.repeat([0, 1], [22258, 11909]).astype(np.int8)
    return np.concatenate(people).astype(np.int32), modality


# --- All rules ------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    COUNTS,
    st.data(),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.integers(0, 9),
    st.sampled_from([*((rule, True) for rule in sampler.RULES), ("agw", False)]),
)
def test_every_plan_keeps_the_contract(counts, data, num_instances, seed, epoch, how):
    rule, replacement = how
    num_ids = data.draw(st.integers(2, len(counts)))
    label, modality = rows_of(counts, classes=range(3, 3 + 2 * len(counts), 2))
    unused = data.draw(st.integers(0, 3))
    label, modality = np.r_[np.full(unused, -1), label], np.r_[np.zeros(unused, int), modality]
    size = dict(num_ids=num_ids, num_instances=num_instances, steps_per_epoch=5)
    plan = make(label, modality, rule, seed=seed, epoch=epoch, replacement=replacement, **size)
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
    if not (rule.startswith("agw") and replacement):
        for picked in plan.reshape(5 * 2 * num_ids, num_instances):
            mine = (label == label[picked[0]]) & (modality == modality[picked[0]])
            times = np.unique(picked, return_counts=True)[1]
            assert len(times) == min(mine.sum(), num_instances)
            assert times.max() - times.min() <= 1


@each("options", [{}, {"replacement": False}, {"rule": "exhaust"}, {"rule": "permute"}])
def test_a_longer_epoch_begins_as_a_shorter_one(options):
    label, modality = rows_of([(5, 1)] * 6)
    long, short = (make(label, modality, steps_per_epoch=n, **options) for n in (12, 5))
    np.testing.assert_array_equal(long[:5], short)


@each("rule", sampler.RULES)
def test_seeds_and_epochs_give_plans_of_their_own(rule):
    label, modality = rows_of([(6, 5)] * 7)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    plans = [  # (0, 1) and (1, 0) must not be one key
        make(label, modality, rule, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    np.random.seed(2)  # noqa: NPY002
    assert len({p.tobytes() for p in plans}) == 4
    assert len({p.shape for p in plans}) == 1
    again = make(label.copy(), modality.astype(np.int64), rule, seed=1, epoch=0)
    np.testing.assert_array_equal(again, plans[2])


@each("rule", sampler.RULES)
def test_rows_that_are_not_usable_change_nothing_but_their_place(rule):
    label, modality = rows_of([(6, 5)] * 7)
    more = np.r_[np.full(9, -1), label]
    plan = make(more, np.r_[np.arange(9) % 2, modality], rule)
    np.testing.assert_array_equal(plan - 9, make(label, modality, rule))


@each("rule", ["agw", "exhaust", "permute"])
def test_an_epoch_of_sysu_size_is_planned_in_less_than_a_third_of_a_second(rule):
    times = []
    for epoch in range(3):  # the best of three: other work may share the machine
        begin = time.perf_counter()
        make(*sysu_size(), rule, num_ids=8, num_instances=4, epoch=epoch)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.3


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
    if not {"seed", "epoch", "steps_per_epoch", "replacement"} & set(options):
        with pytest.raises(ValueError, match=message):
            steps(label, modality, **dict(num_ids=3, num_instances=2) | options)


def test_the_plan_never_changes_between_versions():
    # A changed stream would break the resume of every run trained before.
    for (rule, replacement, last), want in GOLDEN.items():
        counts = [3, 2, 1, 4, 6, last]
        label, modality = (np.repeat(x, counts) for x in ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]))
        options = dict(num_ids=2, seed=7, epoch=3, steps_per_epoch=2, replacement=replacement)
        assert make(label, modality, rule, **options).tolist() == want, (rule, replacement)


GOLDEN = {  # by rule, replacement and the number of infrared images of the last class
    ("agw", True, 1): [[[2, 0, 13, 13], [4, 4, 16, 16]], [[10, 15, 5, 5], [16, 16, 7, 9]]],
    ("agw", False, 1): [[[1, 0, 10, 15], [4, 3, 16, 16]], [[10, 11, 5, 5], [16, 16, 9, 8]]],
    ("exhaust", True, 2): [[[10, 11, 1, 0], [17, 16, 4, 3]], [[5, 5, 0, 2], [6, 8, 4, 3]]],
    ("permute", True, 2): [[[5, 5, 10, 14], [8, 7, 16, 17]], [[1, 2, 5, 5], [3, 4, 6, 9]]],
    ("agw_legacy", True, 2): [[[10, 10, 5, 5], [16, 17, 7, 6]], [[5, 5, 12, 11], [9, 9, 17, 16]]],
}


# --- AGW ------------------------------------------------------------------------------------


def test_identities_and_images_are_drawn_uniformly():
    counts = [(1, 3), (2, 5), (3, 2), (4, 1), (5, 4)]
    label, modality = rows_of(counts)
    count = 6000
    plan = make(label, modality, num_ids=2, steps_per_epoch=count)
    ids = label[plan[:, 0]].reshape(count, 2, 2)[:, :, 0]
    # Every ordered pair of distinct identities is as likely: 20 of them.
    pairs = np.bincount(ids[:, 0] * 5 + ids[:, 1], minlength=25).reshape(5, 5)
    assert np.trace(pairs) == 0
    off = pairs[~np.eye(5, dtype=bool)]
    assert chi2(off, count / 20) < 45.3  # chi2(19), p = 6e-4
    for m in (VISIBLE, INFRARED):
        for c, n in enumerate(counts):
            first, second = (plan[:, m].reshape(count, 2, 2)[..., k][ids == c] for k in (0, 1))
            rows = np.flatnonzero((label == c) & (modality == m))
            times = np.array([(first == r).sum() for r in rows])
            expected = len(first) / n[m]
            assert chi2(times, expected) < 25  # chi2(<= 4), p < 1e-4
            # With replacement the second draw repeats the first one time in n.
            assert abs((first == second).mean() - 1 / n[m]) < 0.05


def test_without_replacement_every_ordered_pair_of_images_is_as_likely():
    label, modality = rows_of([(4, 2), (4, 2)])
    count = 6000
    plan = make(label, modality, num_ids=2, steps_per_epoch=count, replacement=False)
    rows = np.flatnonzero((label == 0) & (modality == VISIBLE))
    mine = plan[:, VISIBLE].reshape(-1, 2)
    mine = np.searchsorted(rows, mine[label[mine[:, 0]] == 0])
    pairs = np.bincount(mine[:, 0] * 4 + mine[:, 1], minlength=16).reshape(4, 4)
    assert np.trace(pairs) == 0
    off = pairs[~np.eye(4, dtype=bool)]
    assert chi2(off, count / 12) < 33  # chi2(11), p = 5e-4


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
    assert chi2(table, 250) < 40  # chi2(15), p = 5e-4


def test_steps_per_epoch_is_the_rule_of_agw():
    assert steps(*sysu_size(), 8, 4) == 696  # the released code's count for SYSU-MM01
    assert steps(*sysu_size(), 6, 4) == 928
    label, modality = rows_of([(2, 6)] * 4)
    assert steps(label, modality, 3, 2) == len(make(label, modality)) == 24 // 6 + 1
    label[label == 0] = -1  # images that are not usable count for nothing
    assert steps(label, modality, 3, 2) == 18 // 6 + 1


# --- MPANet and IDKL ------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.data(), st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_exhaust_walks_as_the_authors_words_say(counts, data, k, seed, epoch):
    p = data.draw(st.integers(2, len(counts)))
    label, modality = rows_of(counts)
    plan = make(label, modality, "exhaust", num_ids=p, num_instances=k, seed=seed, epoch=epoch)
    left = {c: max(min(n) // k, 1) for c, n in enumerate(counts)}
    length = sum(left.values()) // p
    assert len(plan) == length >= 1
    assert steps(label, modality, p, k, "exhaust") == length
    shown = {(c, m): [] for c in left for m in (VISIBLE, INFRARED)}
    for step, classes in zip(plan, identities(plan, label, p).tolist(), strict=True):
        alive = {c for c, n in left.items() if n > 0}
        now = set(classes)
        assert len(now) == p
        # As long as enough identities have chunks left only those are drawn, then all of those.
        assert now <= alive if len(alive) >= p else alive <= now
        for slot, c in enumerate(classes):
            for m in (VISIBLE, INFRARED):
                rows = step[m, slot * k : (slot + 1) * k].tolist()
                assert len(set(rows)) == min(k, counts[c][m])
                if left[c] > 0:
                    shown[c, m] += set(rows)
            left[c] -= 1
    for rows in shown.values():
        assert len(set(rows)) == len(rows), "an image is shown twice before its identity is used up"


def authors_exhaust(chunks, num_ids, rng):
    """The classes of every step until fewer than P have chunks left, as the authors draw them."""
    left, shown = np.array(chunks), []
    while (left > 0).sum() >= num_ids:
        shown.append(rng.choice(np.flatnonzero(left > 0), num_ids, replace=False))
        left[shown[-1]] -= 1
    return np.array(shown)


@pytest.mark.slow
def test_exhaust_draws_identities_as_often_as_the_authors_process():
    chunks = np.array([1, 2, 2, 3, 5, 6])
    label, modality = rows_of([(2 * n, 2 * n + 1) for n in chunks])
    rng = np.random.default_rng(3)
    runs, at = 1500, 3  # the first steps, which the authors' process always reaches
    ours, theirs = np.zeros((at, 6)), np.zeros((at, 6))
    for epoch in range(runs):
        plan = make(label, modality, "exhaust", epoch=epoch, steps_per_epoch=at)
        mine = identities(plan, label, 3)
        yours = authors_exhaust(chunks, 3, rng)
        assert at <= len(yours) <= sum(chunks) // 3 == 6
        for s in range(at):
            ours[s, mine[s]] += 1
            theirs[s, yours[s]] += 1
    # 18 differences of two proportions, each within four standard deviations.
    assert np.abs(ours - theirs).max() < 4 * np.sqrt(2 * runs / 4)
    assert np.abs(theirs - runs / 2).max() > 4 * np.sqrt(2 * runs / 4)  # they do differ by class


def test_the_last_steps_of_exhaust_are_topped_up_uniformly():
    # Class 0 has nine chunks and every other one: soon it is always shown, and its companions
    # are drawn from what is used up.
    label, modality = rows_of([(18, 18)] + [(3, 3)] * 4)
    epochs = 400
    seen, same_class, same_images = np.zeros(5), [], []
    for epoch in range(epochs):
        plan = make(label, modality, "exhaust", num_ids=2, epoch=epoch)
        ids = identities(plan, label, 2)
        assert len(ids) == 6
        assert 0 in ids[4] and 0 in ids[5]
        seen[ids[5]] += 1
        same_class.append(set(ids[4]) == set(ids[5]))
        for c in range(1, 5):
            shown = plan.reshape(6, 2, 2, 2)[:, VISIBLE][ids == c].tolist()
            if len(shown) > 1:
                same_images.append(set(shown[0]) == set(shown[1]))
    assert seen[0] == epochs
    assert chi2(seen[1:], epochs / 4) < 16.3  # chi2(3), p = 1e-3
    assert abs(np.mean(same_class) - 1 / 4) < 0.09  # four standard deviations
    # Two of three images, drawn again: as the first time in one case of three.
    assert len(same_images) > 300
    assert abs(np.mean(same_images) - 1 / 3) < 0.11


@pytest.mark.slow
def test_exhaust_pairs_and_chunks_are_uniform():
    label, modality = rows_of([(5, 3), (5, 3)])
    table = np.zeros((5, 3))
    first = {m: np.flatnonzero((label == 0) & (modality == m)) for m in (VISIBLE, INFRARED)}
    n = 1500
    for epoch in range(n):
        plan = make(label, modality, "exhaust", num_ids=2, num_instances=1, epoch=epoch)
        assert len(plan) == 3
        mine = plan[np.arange(3), :, np.argmax(identities(plan, label, 2) == 0, axis=1)]  # [3, 2]
        assert sorted(mine[:, INFRARED]) == first[INFRARED].tolist()  # the shorter list is used up
        pairs = zip(*(np.searchsorted(first[m], mine[:, m]) for m in (0, 1)), strict=True)
        np.add.at(table, tuple(next(pairs)), 1)
        for v, i in pairs:
            table[v, i] += 1
    assert table.sum(0).tolist() == [n, n, n]
    assert chi2(table, n / 5) < 36  # below chi2(14), p = 1e-3


def test_more_steps_than_a_pass_begin_another_pass():
    label, modality = rows_of([(4, 4)] * 4)
    one = steps(label, modality, 2, 2, "exhaust")
    plan = make(label, modality, "exhaust", num_ids=2, steps_per_epoch=3 * one)
    assert one == 4
    passes = plan.reshape(3, one, 2, 4)
    assert len({p.tobytes() for p in passes}) == 3
    for m in (VISIBLE, INFRARED):
        counts = [np.unique(p[:, m]) for p in passes]
        # Two chunks an identity; a pass that had to be topped up leaves two of 16 images out.
        assert all(len(c) >= 14 for c in counts)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.data(), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_permute_shows_every_identity_once_before_any_twice(counts, data, k, seed):
    p = data.draw(st.integers(2, len(counts)))
    label, modality = rows_of(counts)
    length = -(-len(counts) // p)
    assert steps(label, modality, p, k, "permute") == length
    options = dict(num_ids=p, num_instances=k, steps_per_epoch=2 * length)
    plan = make(label, modality, "permute", seed=seed, **options)
    for ids in identities(plan, label, p).reshape(2, -1):
        assert sorted(ids[: len(counts)]) == list(range(len(counts)))
        # The last block goes on with the first identities.
        np.testing.assert_array_equal(ids[len(counts) :], ids[: length * p - len(counts)])


@pytest.mark.slow
def test_permute_draws_every_order_and_every_image_as_often():
    label, modality = rows_of([(3, 2), (3, 4), (3, 3)])
    orders, images = {}, np.zeros(len(label))
    n = 1200
    for epoch in range(n):
        plan = make(label, modality, "permute", num_ids=3, num_instances=1, epoch=epoch)
        (ids,) = identities(plan, label, 3).tolist()
        orders[tuple(ids)] = orders.get(tuple(ids), 0) + 1
        images[plan.ravel()] += 1
    assert len(orders) == 6
    assert chi2(np.array(list(orders.values())), n / 6) < 20.5  # chi2(5), p = 1e-3
    for c in range(3):
        for m in (VISIBLE, INFRARED):
            mine = images[(label == c) & (modality == m)]
            assert mine.sum() == n
            assert chi2(mine, n / len(mine)) < 16.3  # chi2(<= 3), p = 1e-3


# --- The released stream --------------------------------------------------------------------


def released_agw(label, modality, p, k, seed, epochs, length):
    """[epochs] of [S, 2, P * K], with lists of rows and the generator that NumPy began with."""
    generator = np.random.RandomState(seed)
    rows = [[np.flatnonzero((label == c) & (modality == m)).tolist() for m in (0, 1)] for c in
            range(label.max() + 1)]  # fmt: skip
    classes = list(range(label.max() + 1))
    out = []
    for _ in range(epochs):
        epoch = []
        for _ in range(length):
            step = [[], []]
            for c in generator.choice(classes, p, replace=False):
                for m in (VISIBLE, INFRARED):
                    step[m] += generator.choice(rows[c][m], k).tolist()
            epoch.append(step)
        out.append(np.array(epoch))
    return out


def test_agw_legacy_is_the_released_stream_at_any_epoch():
    label, modality = rows_of([(5, 4), (1, 3), (7, 2), (4, 9), (6, 6)])
    want = released_agw(label, modality, 3, 2, 5, 4, steps(label, modality, 3, 2))
    sampler._legacy_starts.cache_clear()
    for epoch in (3, 0, 2, 1, 3):
        plan = make(label, modality, "agw_legacy", seed=5, epoch=epoch)
        assert plan.dtype == np.int32
        np.testing.assert_array_equal(plan, want[epoch])
        if epoch == 2:
            sampler._legacy_starts.cache_clear()  # as in a process that resumes
    # Other lengths of an epoch are other streams, and do not disturb this one.
    short = released_agw(label, modality, 3, 2, 5, 3, 2)
    plan = make(label, modality, "agw_legacy", seed=5, epoch=2, steps_per_epoch=2)
    np.testing.assert_array_equal(plan, short[2])
    np.testing.assert_array_equal(make(label, modality, "agw_legacy", seed=5, epoch=1), want[1])


def test_agw_legacy_is_the_same_from_many_threads():
    label, modality = rows_of([(5, 4)] * 6)
    want = released_agw(label, modality, 3, 2, 1, 12, 4)
    sampler._legacy_starts.cache_clear()
    epochs = iter((11, 3, 7, 0, 5, 11, 1, 2))

    def work():
        epoch = next(epochs)
        options = dict(seed=1, epoch=epoch, steps_per_epoch=4)
        return epoch, make(label, modality, "agw_legacy", **options)

    for epoch, plan in at_once(8, work):
        np.testing.assert_array_equal(plan, want[epoch])


def test_agw_legacy_remembers_few_streams_and_no_global_state():
    label, modality = rows_of([(3, 3)] * 4)
    np.random.seed(4)  # noqa: NPY002 - the global generator must neither matter nor move
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for seed in range(20):
        make(label, modality, "agw_legacy", seed=seed)
    assert sampler._legacy_starts.cache_info().currsize == 8
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
