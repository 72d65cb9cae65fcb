"""The sampling rules behind `sampler.plan`, in NumPy only.

A rule answers two questions: how many steps an epoch has, and which rows each step shows. All
draws but those of "agw_legacy" come from a counter-based generator keyed by the seed, the epoch
and what the draw is for, so no rule needs an earlier epoch's state.

Letters: C classes, P identities in a batch, K images of an identity and a modality, S steps.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vireid_jax.types import INFRARED, VISIBLE

# One stream of random numbers for each purpose, so that changing how many numbers one of
# them takes leaves the others as they were.
_AGW_IDENTITY, _AGW_VISIBLE, _AGW_INFRARED = 0, 1, 2
_PERMUTE_IDENTITY, _PERMUTE_VISIBLE, _PERMUTE_INFRARED = 3, 4, 5
_EXHAUST_IDENTITY, _EXHAUST_VISIBLE, _EXHAUST_INFRARED = 6, 7, 8
_TOP_UP_VISIBLE, _TOP_UP_INFRARED = 9, 10


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the images of each class are: order[m][first[m, c] : first[m, c] + count[m, c]]."""

    order: tuple[np.ndarray, np.ndarray]  # int64 [usable images of modality m], rows by class
    first: np.ndarray  # int64 [2, C]
    count: np.ndarray  # int64 [2, C], at least 1


class Draw(NamedTuple):
    """What `sampler.plan` was asked for."""

    num_ids: int
    num_instances: int
    seed: int
    epoch: int
    steps: int
    replacement: bool


class Rule(NamedTuple):
    """A sampling rule.

    steps: (index, P, K) -> steps in an epoch.
    rows: (index, draw) -> int64 [S, 2, P * K], rows as in `sampler.plan`.
    """

    steps: Callable[[Index, int, int], int]
    rows: Callable[[Index, Draw], np.ndarray]


def index_of(label: np.ndarray, modality: np.ndarray) -> Index:
    """The images by class and modality; those of a class keep the order of the rows.

    Args:
      label: int [N], -1 where an image is not usable; every class has both modalities.
      modality: int [N], VISIBLE or INFRARED.
    """
    classes = np.unique(label[label >= 0])
    orders, first, count = [], [], []
    for m in (VISIBLE, INFRARED):
        mine = np.flatnonzero((label >= 0) & (modality == m))
        order = mine[np.argsort(label[mine], kind="stable")]
        orders.append(order)
        first.append(np.searchsorted(label[order], classes))
        count.append(np.searchsorted(label[order], classes, side="right") - first[-1])
    return Index((orders[0], orders[1]), np.array(first), np.array(count))


def agw_steps(index: Index, num_ids: int, num_instances: int) -> int:
    """floor(max(#visible, #infrared) / (P * K)) + 1."""
    return int(index.count.sum(axis=1).max()) // (num_ids * num_instances) + 1


def agw_rows(index: Index, draw: Draw) -> np.ndarray:
    """Identities drawn without replacement for each batch anew, images with replacement."""
    steps, num_ids, size = draw.steps, draw.num_ids, draw.num_instances
    uniform = _uniform((draw.seed, draw.epoch, _AGW_IDENTITY), (steps, 1, 2 * num_ids))
    classes = np.full((1, 1), index.count.shape[1])
    slot = _distinct(uniform, classes, num_ids)[:, 0]  # [S, P]
    rows = []
    for m, stream in ((VISIBLE, _AGW_VISIBLE), (INFRARED, _AGW_INFRARED)):
        if not draw.replacement:
            rows.append(_distinct_images(index, m, slot, size, (draw.seed, draw.epoch, stream)))
            continue
        uniform = _uniform((draw.seed, draw.epoch, stream), (steps, num_ids, size))
        pick = (uniform * index.count[m][slot][..., None]).astype(np.int64)
        rows.append(index.order[m][index.first[m][slot][..., None] + pick])
    return _stack(rows)


def permute_steps(index: Index, num_ids: int, num_instances: int) -> int:
    """ceil(C / P): a permutation of the identities in blocks of P."""
    return -(-index.count.shape[1] // num_ids)


def permute_rows(index: Index, draw: Draw) -> np.ndarray:
    """Every identity in turn, in an order drawn anew for every pass; distinct images."""
    steps, num_ids, size = draw.steps, draw.num_ids, draw.num_instances
    classes = index.count.shape[1]
    blocks = permute_steps(index, num_ids, size)
    passes = -(-steps // blocks)
    key = (draw.seed, draw.epoch)
    order = _uniform((*key, _PERMUTE_IDENTITY), (passes, classes)).argsort(axis=1, kind="stable")
    # Going round tops the last block up with the first identities of the same permutation.
    slot = order[:, np.arange(blocks * num_ids) % classes].reshape(-1, num_ids)[:steps]
    streams = ((VISIBLE, _PERMUTE_VISIBLE), (INFRARED, _PERMUTE_INFRARED))
    return _stack([_distinct_images(index, m, slot, size, (*key, s)) for m, s in streams])


def exhaust_steps(index: Index, num_ids: int, num_instances: int) -> int:
    """floor(sum over identities of chunks / P), see `exhaust_rows`."""
    return int(_chunks(index, num_instances).sum()) // num_ids


def exhaust_rows(index: Index, draw: Draw) -> np.ndarray:
    """Chunks of K pairs of distinct images, dealt until all are used; then a new pass.

    A step takes a chunk of each of P identities, drawn uniformly among those that have chunks
    left. When fewer than P have, all of those take part and the others are drawn uniformly among
    the rest, each with K distinct images drawn anew. So a pass has the same number of steps
    whatever the draws.
    """
    steps, num_ids, size = draw.steps, draw.num_ids, draw.num_instances
    chunks = _chunks(index, size)
    length = exhaust_steps(index, num_ids, size)
    passes = []
    for number in range(-(-steps // length)):

        def key(stream: int, number: int = number) -> tuple[int, ...]:
            return (draw.seed, draw.epoch, stream, number)

        uniform = _uniform(key(_EXHAUST_IDENTITY), (length, num_ids))
        slot, visit = _deal(chunks, uniform)
        topped = (visit >= chunks[slot])[..., None]  # [S, P, 1]
        rows = []
        for m, stream, again in (
            (VISIBLE, _EXHAUST_VISIBLE, _TOP_UP_VISIBLE),
            (INFRARED, _EXHAUST_INFRARED, _TOP_UP_INFRARED),
        ):
            count = index.count[m]
            # Every class's images in random order: the first min(visible, infrared) of both
            # modalities, zipped, are the authors' pairs.
            shuffle = _uniform(key(stream), (len(index.order[m]),))
            images = index.order[m][np.lexsort((shuffle, np.repeat(np.arange(len(count)), count)))]
            place = visit[..., None] * size + np.arange(size)
            place %= count[slot][..., None]  # only where a class has fewer than K images
            dealt = images[index.first[m][slot][..., None] + place]
            rows.append(np.where(topped, _distinct_images(index, m, slot, size, key(again)), dealt))
        passes.append(_stack(rows))
    return np.concatenate(passes)[:steps]


def _chunks(index: Index, num_instances: int) -> np.ndarray:
    """int64 [C]: how often a class can show K pairs of unseen images, but at least once."""
    return np.maximum(index.count.min(axis=0) // num_instances, 1)


def _deal(chunks: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which classes a pass's steps show, and how often each was shown before in the pass.

    Args:
      chunks: int64 [C], how many chunks a class has.
      uniform: float64 [S, P] in [0, 1), P <= C.

    Returns:
      slot, visit: int64 [S, P]; the classes of a step are distinct. Those with chunks left
      (visit < chunks) come first.
    """
    steps, num_ids = uniform.shape
    pool = list(range(len(chunks)))  # pool[:live] have chunks left
    live = len(pool)
    left, shown = chunks.tolist(), [0] * len(pool)
    slot, visit = [], []
    for numbers in uniform.tolist():
        # Fisher and Yates's shuffle, stopped after P: first within pool[:live], then behind it.
        for k, u in enumerate(numbers):
            end = live if k < live else len(pool)
            j = k + int(u * (end - k))
            pool[k], pool[j] = pool[j], pool[k]
        now = pool[:num_ids]
        slot.append(now)
        visit.append([shown[c] for c in now])
        for c in now:
            shown[c] += 1
            left[c] -= 1
        for k in range(min(num_ids, live) - 1, -1, -1):
            if left[pool[k]] == 0:
                live -= 1
                pool[k], pool[live] = pool[live], pool[k]
    return np.array(slot).reshape(steps, num_ids), np.array(visit).reshape(steps, num_ids)


def _distinct_images(
    index: Index, m: int, slot: np.ndarray, size: int, key: tuple[int, ...]
) -> np.ndarray:
    """K rows of modality m for each class in slot [S, P]: distinct, as far as there are."""
    uniform = _uniform(key, (*slot.shape, 2 * size))
    pick = _distinct(uniform, index.count[m][slot], size)
    return index.order[m][index.first[m][slot][..., None] + pick]


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Two arrays [S, P, K] -> [S, 2, P * K]."""
    return np.stack([r.reshape(len(r), -1) for r in rows], axis=1)


def _uniform(key: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [0, 1), a function of the key and the position only.

    Made from the raw bits of Philox, whose stream NumPy promises to keep, so that a plan
    does not change with NumPy's version.
    """
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(int(np.prod(shape)))
    return (bits >> np.uint64(11)).reshape(shape) * 2.0**-53


def _distinct(uniform: np.ndarray, n: np.ndarray, size: int) -> np.ndarray:
    """Draws `size` of the numbers 0 .. n-1, distinct, or as evenly as can be where n < size.

    Floyd's algorithm, one draw after the other over all batches at once: it costs
    size^2 and no memory of n, so it suits a hundred identities and a million alike. Its
    sets are uniform but their order is not, hence the shuffle.

    Args:
      uniform: float64 [S, P, 2 * size] in [0, 1).
      n: int [S, P], or with axes of length 1.
      size: numbers to draw.

    Returns:
      int64 [S, P, size].
    """
    taken = np.minimum(n, size)[..., None]  # how many can be distinct
    drawn = np.full((*uniform.shape[:2], size), -1, np.int64)
    for k in range(size):
        last = np.maximum(n - taken[..., 0] + k, 0)
        new = (uniform[..., k] * (last + 1)).astype(np.int64)
        clash = (drawn[..., :k] == new[..., None]).any(axis=-1)
        drawn[..., k] = np.where(clash, last, new)
    # Slots past `taken` hold nothing: sort them to the end, then go round the rest.
    shuffle = np.where(np.arange(size) < taken, uniform[..., size:], 2.0).argsort(axis=-1)
    drawn = np.take_along_axis(drawn, shuffle, axis=-1)
    return np.take_along_axis(drawn, np.arange(size) % taken + np.zeros_like(drawn), axis=-1)
