"""Blocks of a gallery, and what is counted over them; the inside of `metrics.streaming`."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.blocks import (
    GalleryIndex,
    Truth,
    count_block,
    find_people,
    index_gallery,
)
from vireid_jax.metrics.distance import unit_rows
from vireid_jax.metrics.nearest import Nearest, merge_nearest
from vireid_jax.metrics.ranking import CACHED_PAIRS

ROWS_AT_ONCE = 128  # of the gallery, normalized by one thread

# (query person, query camera, gallery person, gallery camera) -> bool [q, g]
Exclude = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class OrderedGallery(NamedTuple):
    """A gallery and the order in which it is taken."""

    features: np.ndarray  # [G, D], maybe in a file
    person: np.ndarray  # int64 [G]
    camera: Any  # int64 [G], or None where there is no rule about cameras
    order: np.ndarray  # int64 [G] rows: people who are asked for first, then by person
    people: np.ndarray  # int64 [I] distinct people, ascending
    start: np.ndarray  # int64 [I] where each person's run begins in `order`
    size: np.ndarray  # int64 [I]
    asked: int  # images of people who are asked for
    step: int  # images in a block

    @property
    def blocks(self) -> range:
        """Numbers of all blocks."""
        return range(-(-len(self.order) // self.step))

    @property
    def asked_blocks(self) -> range:
        """Numbers of the blocks with images of people who are asked for."""
        return range(-(-self.asked // self.step))


class Queries(NamedTuple):
    """Some queries, and where the images of each one's person stand in the gallery's order."""

    features: np.ndarray  # float32 [q, D], rows of length 1, negated
    person: np.ndarray  # int64 [q]
    camera: Any  # int64 [q], or None
    start: np.ndarray  # int64 [q]
    size: np.ndarray  # int64 [q], 0 where the person is not in the gallery


class Options(NamedTuple):
    """How to go about it."""

    exclude: Exclude | None
    ties: str
    block_bytes: int
    tick: Callable[[], None]  # called after each block
    pool: concurrent.futures.ThreadPoolExecutor
    workers: int

    def each(self, act: Callable[[Any], None], parts: Sequence[Any]) -> None:
        """Acts on all parts, side by side: NumPy works outside the interpreter lock."""
        if len(parts) == 1:
            act(parts[0])
        else:
            list(self.pool.map(act, parts))  # the list passes errors on


class Workspace:
    """Arrays that every block is computed in: fresh memory costs more than a pass over it."""

    def __init__(self, queries: int, gallery: OrderedGallery, kept: int):
        step = min(gallery.step, len(gallery.order))
        self.kept = kept
        self.features = np.empty((step, gallery.features.shape[1]), np.float32)
        self.distance = np.empty((kept, queries * step), np.float32)


class Block(NamedTuple):
    """The distances of some queries to a block of the gallery."""

    layout: GalleryIndex
    distance: np.ndarray  # float32 [q, g], columns as laid out; infinity where excluded
    num_kept: np.ndarray  # int64 [q] images that are not excluded
    own: tuple[np.ndarray, np.ndarray]  # true images: query, and number within its person
    own_at: tuple[np.ndarray, np.ndarray]  # where each is in `distance`
    last_person: int  # the person with whom the block ends


def order_gallery(
    features: np.ndarray,
    query_person: np.ndarray,
    person: np.ndarray,
    camera: Any,
    block_bytes: int,
) -> OrderedGallery:
    """The order in which a gallery is taken, and its blocks."""
    order = np.argsort(person, kind="stable")
    ordered = person[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    people, size = ordered[first], np.diff(first, append=len(ordered))
    later = ~np.isin(people, query_person)
    sequence = np.argsort(later, kind="stable")  # each person's run moves as a whole
    start = np.empty_like(size)
    start[sequence] = np.cumsum(size[sequence]) - size[sequence]
    order = order[np.argsort(np.repeat(later, size), kind="stable")]
    # Per image: a unit row, and what grouping it takes.
    step = max(1, block_bytes // 3 // (4 * features.shape[1] + 200))
    return OrderedGallery(
        features, person, camera, order, people, start, size, int(size[~later].sum()), step
    )


def find_runs(gallery: OrderedGallery, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Int64 [q]: where the run of each query's person begins in the order; its length or 0."""
    if not len(gallery.people):
        return np.zeros_like(person), np.zeros_like(person)
    at = np.minimum(np.searchsorted(gallery.people, person), len(gallery.people) - 1)
    return gallery.start[at], np.where(gallery.people[at] == person, gallery.size[at], 0)


def row_parts(rows: int, columns: int, options: Options) -> list[slice]:
    """Blocks of rows whose temporary arrays stay in the cache and within the memory."""
    pairs = min(CACHED_PAIRS, options.block_bytes // 6 // (16 * options.workers))
    step = max(1, pairs // max(1, columns))
    return [slice(at, min(at + step, rows)) for at in range(0, rows, step)]


def make_block(
    queries: Queries, gallery: OrderedGallery, number: int, space: Workspace, options: Options
) -> Block:
    """Reads, normalizes and compares a block of the gallery; uses the arrays of `space`."""
    low = number * gallery.step
    rows = gallery.order[low : low + gallery.step]
    q, g = len(queries.person), len(rows)
    index = index_gallery(gallery.person[rows], rows)
    features = space.features[:g]

    def normalize(at: int) -> None:
        part = index.order[at : at + ROWS_AT_ONCE]
        features[at : at + ROWS_AT_ONCE] = unit_rows(
            gallery.features[part], what="gallery features", number=part
        )

    options.each(normalize, range(0, g, ROWS_AT_ONCE))
    slot = number if number < space.kept else 0
    distance = space.distance[slot, : q * g].reshape(q, g)
    np.matmul(queries.features, features.T, out=distance)
    num_kept = np.full(q, g)

    def leave_out(exclude: Exclude, part: slice) -> None:
        dropped = exclude(
            queries.person[part],
            queries.camera[part],
            gallery.person[index.order],
            gallery.camera[index.order],
        )
        np.copyto(distance[part], np.inf, where=dropped)
        num_kept[part] -= np.count_nonzero(dropped, axis=1)

    if options.exclude is not None:
        drop = functools.partial(leave_out, options.exclude)
        options.each(drop, row_parts(q, g, options))

    # Queries whose person has images here, and which of them.
    end = queries.start + queries.size
    some = np.flatnonzero((queries.start < low + g) & (end > low) & (queries.size > 0))
    first = np.maximum(queries.start[some], low)
    many = np.minimum(end[some], low + g) - first
    query = np.repeat(some, many)
    place = np.arange(len(query)) + np.repeat(first - (np.cumsum(many) - many), many)
    laid_out = np.empty(g, np.int64)
    laid_out[np.argsort(gallery.person[rows], kind="stable")] = index.place
    return Block(
        layout=index,
        distance=distance,
        num_kept=num_kept,
        own=(query, place - queries.start[query]),
        own_at=(query, laid_out[place - low]),
        last_person=int(gallery.person[rows[-1]]),
    )


@dataclasses.dataclass
class Tally:
    """What is counted block by block, for q queries."""

    less: np.ndarray  # int64 [q, n], see `blocks.Counts`; and the next two
    equal: np.ndarray
    before: np.ndarray
    closer: np.ndarray  # int64 [q] people before the first true image
    num_kept: np.ndarray  # int64 [q]
    top: Nearest
    seen: np.ndarray  # bool [q]: the last block's last person is counted in `closer`
    last_person: int | None = None  # of the last block

    @classmethod
    def empty(cls, q: int, n: int, top_k: int) -> "Tally":
        """Nothing counted yet."""
        less, equal, before = np.zeros((3, q, n), np.int64)
        closer, num_kept = np.zeros((2, q), np.int64)
        top = Nearest(np.full((q, top_k), np.inf, np.float32), np.full((q, top_k), -1))
        return cls(less, equal, before, closer, num_kept, top, np.zeros(q, bool))

    def add(
        self,
        block: Block,
        queries: Queries,
        gallery: OrderedGallery,
        truth: Truth,
        here: np.ndarray,
        options: Options,
    ) -> None:
        """Counts a block; `here` bool [q, n] says which true images lie in it."""
        layout = block.layout
        group, size = find_people(layout, queries.person)
        own = np.where(size > 0, layout.rank[group], -1)
        [last], _ = find_people(layout, np.array([block.last_person]))
        before = np.flatnonzero(layout.person == self.last_person)  # goes on from the last block
        add_rows = functools.partial(
            self._add_rows,
            block,
            queries,
            gallery,
            truth,
            here,
            own,
            layout.rank[before],
            layout.rank[last],
            options.ties,
        )
        self.num_kept += block.num_kept
        options.each(add_rows, row_parts(len(own), len(layout.order), options))
        self.last_person = block.last_person

    def _add_rows(
        self,
        block: Block,
        queries: Queries,
        gallery: OrderedGallery,
        truth: Truth,
        here: np.ndarray,
        own: np.ndarray,
        goes_on: np.ndarray,
        last: int,
        ties: str,
        part: slice,
    ) -> None:
        value, layout = block.distance[part], block.layout
        some = Truth(truth.value[part], truth.column[part])
        found = count_block(value, layout, some, own=own[part], here=here[part], ties=ties)
        self.less[part] += found.less
        self.equal[part] += found.equal
        self.before[part] += found.before
        # A person whose images go on from the last block counts once.
        found.closer[:, goes_on] &= ~self.seen[part, None]
        if last not in goes_on:
            self.seen[part] = False
        self.seen[part] |= found.closer[:, last]
        self.closer[part] += np.count_nonzero(found.closer, axis=1)
        if self.top.value.shape[1]:
            top = merge_nearest(
                Nearest(self.top.value[part], self.top.column[part]),
                value,
                layout.order,
                query_person=queries.person[part],
                gallery_person=gallery.person,
                ties=ties,
            )
            self.top.value[part], self.top.column[part] = top.value, top.column
