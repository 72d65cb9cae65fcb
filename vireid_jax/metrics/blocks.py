"""The counts from which ranks are made, for a block of queries and a block of the gallery.

Only the few true images need a rank, and a rank is a count: of the images that are closer
plus, at the same distance, of those that its rule for ties puts before it. Counts of
disjoint parts of a gallery add up, so nothing here needs the whole of it, and integers add
up to the same whatever the blocks.
"""

from typing import NamedTuple

import numpy as np

from vireid_jax.metrics.counting import count_less

SLOTS = 16  # images of each person that are laid out side by side with those of others


class GalleryIndex(NamedTuple):
    """The gallery's columns in a distance matrix, grouped by person.

    Counting works on a matrix whose columns are in `order`: the first image of every person,
    then the second of all that have one, and so on, people with more images first. So the
    closest image of each person is an elementwise minimum of parts of the matrix, many times
    faster than one reduction per person. Images beyond the first `SLOTS` of a person follow
    person by person.
    """

    person: np.ndarray  # [I] the distinct people, ascending
    column: np.ndarray  # int64 [G] columns, person by person
    start: np.ndarray  # int64 [I] where each person's run begins in `column`
    size: np.ndarray  # int64 [I] images of each person
    order: np.ndarray  # int64 [G] columns as laid out
    place: np.ndarray  # int64 [G] where `column[i]` is laid out
    rank: np.ndarray  # int64 [I] number of each person in the layout
    owner: np.ndarray  # int64 [G] that number, for each column as laid out
    parts: tuple[int, ...]  # people in each slot
    rest: np.ndarray  # int64, where the runs beyond the slots begin, after the slots


class Truth(NamedTuple):
    """The true images of each query, closest first; of equal ones the lower column first."""

    value: np.ndarray  # float [q, n] distances; infinity where there is none or it is excluded
    column: np.ndarray  # int64 [q, n]


class Counts(NamedTuple):
    """What a part of the gallery adds to the ranks of each query's true images."""

    less: np.ndarray  # int64 [q, n] images that are closer
    equal: np.ndarray  # int64 [q, n] images at the same distance, itself among them
    before: np.ndarray  # int64 [q, n] those of them with a lower column; for "stable" alone
    closer: np.ndarray  # bool [q, I] people, as laid out, who come before the first true image


def index_gallery(gallery_person: np.ndarray, column: np.ndarray | None = None) -> GalleryIndex:
    """Groups a gallery by person; within a person the order is kept.

    Args:
      gallery_person: int [G].
      column: int [G] or None, the gallery's columns in a wider distance matrix; ascending
        among the images of a person.
    """
    by_person = np.argsort(gallery_person, kind="stable")
    ordered = gallery_person[by_person]
    start = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    size = np.diff(start, append=len(ordered))
    if column is None:
        column = by_person
    else:
        column = column[by_person]

    by_size = np.argsort(-size, kind="stable")
    rank = np.empty_like(by_size)
    rank[by_size] = np.arange(len(by_size))
    most = int(size.max(initial=0))
    parts = tuple(int(np.count_nonzero(size > slot)) for slot in range(min(SLOTS, most)))
    run = np.maximum(size[by_size] - SLOTS, 0)
    run = run[run > 0]
    rest = np.cumsum(run) - run
    beyond = np.repeat(start[by_size[: len(run)]] + SLOTS - rest, run) + np.arange(run.sum())
    laid_out = np.concatenate(
        [*(start[by_size[:people]] + slot for slot, people in enumerate(parts)), beyond]
    ).astype(np.int64)
    place = np.empty_like(laid_out)
    place[laid_out] = np.arange(len(laid_out))
    owner = np.concatenate(
        [*(np.arange(people) for people in parts), np.repeat(np.arange(len(run)), run)]
    ).astype(np.int64)
    return GalleryIndex(
        person=ordered[start],
        column=column,
        start=start,
        size=size,
        order=column[laid_out],
        place=place,
        rank=rank,
        owner=owner,
        parts=parts,
        rest=rest,
    )


def find_people(index: GalleryIndex, query_person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Int64 [q] positions in `index.person`, and how many images each has (0: not there)."""
    if not len(index.person):
        none = np.zeros(len(query_person), np.int64)
        return none, none
    group = np.minimum(np.searchsorted(index.person, query_person), len(index.person) - 1)
    return group, np.where(index.person[group] == query_person, index.size[group], 0)


def true_images(
    value: np.ndarray, index: GalleryIndex, group: np.ndarray, size: np.ndarray, n: int
) -> Truth:
    """Distances [q, n] and columns of the first n images of each query's person, in order.

    Args:
      value: float [q, G], columns as laid out by `index`.
      index: the gallery.
      group: int64 [q], see `find_people`.
      size: int64 [q].
      n: at least the largest size.
    """
    slot = np.arange(n)
    at = np.minimum(index.start[group][:, None] + slot, len(index.column) - 1)
    own = np.take_along_axis(value, index.place[at], axis=1)
    own[slot >= size[:, None]] = np.inf
    return Truth(own, index.column[at])


def sort_truth(truth: Truth) -> Truth:
    """The same, closest first; of equal distances the lower column first."""
    order = np.argsort(truth.value, axis=1, kind="stable")  # columns ascend already
    return Truth(*(np.take_along_axis(field, order, axis=1) for field in truth))


def closest_images(value: np.ndarray, index: GalleryIndex) -> np.ndarray:
    """Float [q, I]: the least distance of each person, people as laid out."""
    closest = value[:, : index.parts[0]].copy()
    at = index.parts[0]
    for people in index.parts[1:]:
        some = closest[:, :people]
        np.minimum(some, value[:, at : at + people], out=some)
        at += people
    if len(index.rest):
        some = closest[:, : len(index.rest)]
        np.minimum(some, np.minimum.reduceat(value[:, at:], index.rest, axis=1), out=some)
    return closest


def count_block(
    value: np.ndarray,
    index: GalleryIndex,
    truth: Truth,
    *,
    own: np.ndarray,
    here: np.ndarray | int,
    ties: str,
) -> Counts:
    """What this part of the gallery adds to the ranks.

    Args:
      value: float [q, G], columns as laid out by `index`; infinity where excluded.
      index: this part of the gallery.
      truth: the true images of each query in the whole gallery, sorted.
      own: int64 [q], the number in this layout of each query's person, -1 if it is not there.
      here: int [q, n] or 1, whether a true image is in this part of the gallery (1) or not.
      ties: see `vireid_jax.metrics.ranking`.
    """
    less, equal = count_less(value, truth.value)
    before = np.zeros_like(less)
    is_true = np.isfinite(truth.value)
    first = truth.value[:, :1]
    closest = closest_images(value, index)
    closer = closest <= first if ties == "pessimistic" else closest < first
    if ties == "stable" and len(rows := np.flatnonzero((is_true & (equal > here)).any(axis=1))):
        some = value[rows]
        for j in range(truth.value.shape[1]):
            earlier = some == truth.value[rows, j : j + 1]
            earlier &= index.order < truth.column[rows, j : j + 1]
            before[rows, j] = np.count_nonzero(earlier, axis=1)
            if j == 0:
                row, column = np.nonzero(earlier)
                closer[rows[row], index.owner[column]] = True
    known = np.flatnonzero(own >= 0)
    closer[known, own[known]] = False
    return Counts(less, equal, before, closer)
