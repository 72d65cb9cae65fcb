"""What a scorer refuses before anything is trained, and where it stops; no network is run."""

import numpy as np
import pytest

from tests.test_released import SIZE, small
from vireid_jax import evaluate
from vireid_jax.data import corrupt
from vireid_jax.types import Records, Retrieval, Stopped


def people(rows, per=2):
    """Records of (person, camera) rows, `per` images each, of a few pixels."""
    rows = [row for row in rows for _ in range(per)]
    person, camera = np.array(rows, np.int32).T
    return Records(
        np.zeros((len(rows), *SIZE, 3), np.uint8),
        person,
        camera,
        np.isin(camera, (3, 6)).astype(np.int8),
        [f"cam{c}/{p:04d}/{n:04d}" for n, (p, c) in enumerate(rows)],
    )


def scorer(tmp_path, *, should_stop=lambda: False, **changes):
    c = small("smcl", "sysu", tmp_path)
    c.eval.update(changes)
    options = evaluate.Options(**c.eval)
    return evaluate.Scorer(
        options=options, image_size=SIZE, mesh=None, embed=None, should_stop=should_stop
    )


def test_a_protocol_under_which_nobody_can_be_found_is_refused_before_training(tmp_path):
    """Validation people that no indoor camera has seen, or the forbidden one alone."""
    everywhere = Retrieval(people([(1, 3), (2, 6)]), people([(1, 1), (2, 4)]))
    outdoors = Retrieval(people([(1, 3), (2, 6)]), people([(2, 4), (1, 2)]))
    s = scorer(tmp_path, protocols=("sysu/all/single",), validation="sysu/indoor/single")
    evaluate.check_protocols(s.options, everywhere, everywhere)
    evaluate.check_protocols(s.options, outdoors, None)
    with pytest.raises(ValueError, match=r"sysu/indoor/single: none .*another eval.validation"):
        evaluate.check_protocols(s.options, everywhere, outdoors)
    strangers = Retrieval(people([(1, 3), (2, 6)]), people([(3, 1), (4, 2)]))
    with pytest.raises(ValueError, match=r"sysu/all/single: none .*out of eval.protocols"):
        evaluate.check_protocols(s.options, strangers, None)


def test_a_stop_is_obeyed_between_corrupted_images(tmp_path):
    polls = iter([False, False, True])
    s = scorer(tmp_path, should_stop=lambda: next(polls), batch_size=4)
    records = people([(p, 1) for p in range(6)])
    with pytest.raises(Stopped):
        s._damage(records, corrupt.parse("visible:fog:1"), 0)
    whole = scorer(tmp_path, batch_size=99)._damage(records, corrupt.parse("visible"), 0)
    parted = scorer(tmp_path, batch_size=5)._damage(records, corrupt.parse("visible"), 0)
    np.testing.assert_array_equal(whole.images, parted.images)
    assert whole.images.any() and not records.images.any()
    assert s._damage(records, corrupt.parse("infrared"), 0) is records
