"""Divides a listing into training, validation and test, without looking at its images."""

import numpy as np

from vireid_jax.data.listing import Listing
from vireid_jax.data.readers import common
from vireid_jax.types import INFRARED, VISIBLE, Records, Retrieval, Split


def check_number(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer in low .. high."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):  # type: ignore[operator]
        upper = "or more" if high is None else f"to {high}"
        raise ValueError(f"{name} is {value!r}, expected a whole number, {low} {upper}")


def check_listing(listing: Listing, name: str) -> None:
    """Raises ValueError unless the listing is of that data set."""
    if listing.name != name:
        raise ValueError(
            f"the listing is of {listing.name!r}, but this is the reader of {name!r}; use "
            f"readers.get_reader({listing.name!r})"
        )


def paired(records: Records, rows: np.ndarray) -> np.ndarray:
    """Int32 [C] ascending: the persons with images in both modalities among `rows` (bool [N])."""
    seen = [records.person[rows & (records.modality == m)] for m in (VISIBLE, INFRARED)]
    return np.intersect1d(seen[0], seen[1])


def spread(persons: np.ndarray, count: int) -> np.ndarray:
    """`count` of the persons, evenly over their order: positions floor((2i + 1) n / 2 count)."""
    n = len(persons)
    return persons[[(2 * i + 1) * n // (2 * count) for i in range(count)]]


def hold_out(records: Records, train: np.ndarray, count: int) -> np.ndarray:
    """Bool [N], the rows of `count` training persons to validate on, see `spread`.

    Only persons with both modalities are chosen: others cannot be found.

    Raises:
      ValueError: there are too few of them to leave two for training.
    """
    if count == 0:
        return np.zeros(len(records), bool)
    persons = paired(records, train)
    if count > len(persons) - 2:
        raise ValueError(
            f"val_ids is {count}, but the training half has {len(persons)} persons with both "
            f"modalities and keeps at least 2; give 0 to {max(0, len(persons) - 2)}"
        )
    return train & np.isin(records.person, spread(persons, count))


def retrieval(records: Records, rows: np.ndarray) -> Retrieval:
    """Infrared queries, visible gallery."""
    return Retrieval(
        query=records.take(rows & (records.modality == INFRARED)),
        gallery=records.take(rows & (records.modality == VISIBLE)),
    )


def divide(
    listing: Listing,
    name: str,
    *,
    train: np.ndarray,
    val: np.ndarray,
    test: np.ndarray,
    notes: tuple[str, ...] = (),
) -> Split:
    """The split for three sets of rows, each bool [N]; an empty `val` is None.

    A listing that is not as released may have persons in two of them: nobody who is tested or
    validated on is trained on, and nobody who is tested on is validated on.
    """
    records = listing.records
    tested = np.isin(records.person, records.person[test])
    val = val & ~tested
    taken = train & (tested | np.isin(records.person, records.person[val]))
    if taken.any():
        persons = np.unique(records.person[taken]).tolist()
        notes = (
            *notes,
            f"{len(persons)} persons are trained and tested on; left out of training: "
            f"{common.named(persons)}",
        )
    train = train & ~taken
    return Split(
        name,
        records.take(train),
        retrieval(records, test),
        retrieval(records, val) if val.any() else None,
        notes,
    )
