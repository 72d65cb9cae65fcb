import numpy as np
import pytest

from tests.support.rows import each
from vireid_jax.types import Records, check_batch, epochs_to_steps, train_labels


def make_records(person, modality):
    n = len(person)
    return Records(
        np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1).repeat(3, -1),
        np.array(person, np.int32),
        np.arange(n, dtype=np.int32),
        np.array(modality, np.int8),
        [f"image{i}" for i in range(n)],
    )


def make_batch(label=(4, 4, 1, 1), size=(6, 4)):
    rows = len(label)
    return {
        "visible": np.zeros((rows, *size, 3), np.uint8),
        "infrared": np.zeros((rows, *size, 3), np.uint8),
        "label": np.array(label, np.int32),
        "camera": np.zeros((rows, 2), np.int32),
    }


def test_train_labels_number_the_persons_of_both_modalities_in_ascending_order():
    person = [30, 7, 30, 12, 7, 99, 12, 7]
    modality = [0, 0, 1, 0, 1, 1, 0, 1]
    label, persons = train_labels(make_records(person, modality))
    assert label.dtype == np.int32 and persons.dtype == np.int32
    # 12 is visible only and 99 infrared only.
    assert persons.tolist() == [7, 30]
    assert label.tolist() == [1, 0, 1, -1, 0, -1, -1, 0]


@each("modality", [[0, 0, 0], [0, 1, 0]])
def test_train_labels_need_a_person_with_both_modalities(modality):
    with pytest.raises(ValueError, match="no person has images in both modalities"):
        train_labels(make_records([1, 2, 3], modality))


def test_take_keeps_the_fields_together():
    records = make_records([5, 6, 7, 8], [0, 1, 0, 1])
    for rows in (np.array([3, 1]), np.array([False, True, False, True])):
        taken = records.take(rows)
        order = np.flatnonzero(rows) if rows.dtype == bool else rows
        assert len(taken) == 2
        assert taken.images[:, 0, 0, 0].tolist() == order.tolist()
        assert taken.person.tolist() == (order + 5).tolist()
        assert taken.camera.tolist() == order.tolist()
        assert taken.modality.tolist() == (order % 2).tolist()
        assert list(taken.name) == [f"image{n}" for n in order]
    listed = Records(["a", "b", "c", "d"], *list(vars(records).values())[1:])
    assert listed.take(np.array([2, 0])).images == ["c", "a"]


def test_durations_are_rounded_to_steps():
    assert [epochs_to_steps(e, 7) for e in (0, 1, 2.5, 0.5)] == [0, 7, 18, 4]


def test_a_batch_that_keeps_the_contract_passes():
    check_batch(make_batch(), num_ids=2, num_instances=2)
    check_batch(make_batch(label=(3, 9)), num_ids=2, num_instances=1)


def broken(**fields):
    return {**make_batch(), **fields}


@each(
    "batch, message",
    [
        ({k: v for k, v in make_batch().items() if k != "camera"}, r"lacks \['camera'\]"),
        (broken(visible=np.zeros((4, 6, 4, 3))), r"batch\['visible'\] is float64"),
        (broken(infrared=np.zeros((4, 6, 4), np.uint8)), r"batch\['infrared'\] is uint8 \[4, 6, 4"),
        (broken(visible=np.zeros((4, 6, 4, 1), np.uint8)), "expected uint8 .*, 3]"),
        (broken(infrared=np.zeros((3, 6, 4, 3), np.uint8)), "3 rows, expected 2 identities x 2"),
        (broken(infrared=np.zeros((4, 4, 6, 3), np.uint8)), "load both at one size"),
        (broken(label=np.array([4, 4, 1, 1])), r"batch\['label'\] is int64"),
        (broken(label=np.array([4, 4, 1], np.int32)), r"batch\['label'\] is int32 \(3,\)"),
        (broken(camera=np.zeros((4, 2))), r"batch\['camera'\] is float64"),
        (broken(camera=np.zeros(4, np.int32)), r"batch\['camera'\] is int32 \(4,\)"),
        (make_batch(label=(4, 1, 4, 1)), "not identity-major"),
        (make_batch(label=(4, 4, 4, 4)), "occurs twice"),
        (make_batch(label=(4, 4, 1, 1, 2, 2)), "6 rows"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        check_batch(batch, num_ids=2, num_instances=2)
