"""Which images go into which batch: the modality-balanced PK plan of an epoch, in NumPy only.

A batch is P identities, each with K visible and K infrared images. Which ones is a rule:

  rule          whose                                     steps in an epoch
  ------------  ----------------------------------------  -------------------------------------
  "agw"         AGW, and with it CAJ, DEEN, PDM           floor(max(#vis, #ir) / (P K)) + 1
  "exhaust"     MPANet and IDKL, `identity_random`        floor(sum floor(min(#vis, #ir) / K) / P)
  "permute"     MPANet, `identity_uniform`                ceil(identities / P)
  "agw_legacy"  AGW, the released code's random numbers   as "agw"

K counts the images of one modality; the configurations of MPANet and IDKL count both, so their
16 x 8 is 16 identities and 4 images here. Rows are in the same order under every rule, where
MPANet's batches alternate infrared and visible images: a permutation that no loss here sees.

"agw" (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", arXiv
2001.04193, and its released code): the identities of a batch are drawn without replacement and
independently of earlier batches, so an identity may miss an epoch; the images of an identity are
drawn with replacement. An epoch of SYSU-MM01 shows 53 % of the visible and 80 % of the infrared
images (P = 8, K = 4). Differs from the authors' code: the draws come from a counter-based
generator keyed by (seed, epoch) instead of NumPy's global one, so a plan needs no earlier plan,
every process computes the same one, and resuming in the middle of an epoch needs no state.

"exhaust": an identity's visible and infrared images are shuffled and paired up to the shorter
list, and cut into chunks of K pairs, what is left over unused. A batch takes one chunk from each
of P identities, drawn uniformly among those with chunks left. Differs from the authors' code,
where the epoch ends as soon as fewer than P identities have chunks left, so that its length is
random: here it is the number above, and the last steps are topped up with identities whose chunks
are used up, drawn uniformly, with K distinct images drawn anew. On SYSU-MM01 that is 183 steps
for 182.2 on average (P = 16, K = 4) and 196 for 194.9 (P = 12, K = 5): only the last step or two
differ. An identity with fewer than K images in a modality, with which the authors' code stops in
some cases, has one chunk: all its distinct images, then the same again.

"permute": a permutation of the identities for every epoch, in blocks of P, with K distinct images
in each modality (repeated only where there are fewer). Differs from the authors' code, which drops
the last block if it is not full: here it is topped up with the first identities of the same
permutation, so that every identity is shown in every epoch.

"agw_legacy": the released sampler's own stream, NumPy's `RandomState(seed)` over all epochs. The
images are the authors' if those of each identity and modality are listed in their order: by
camera, then by file name. Planning epoch n replays the epochs before it, once (0.15 s each for
SYSU-MM01); the other rules need none of them.
"""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.types import INFRARED, MODALITIES, VISIBLE

# One stream of random numbers for each purpose, so that changing how many numbers one of
# them takes leaves the others as they were.
_AGW_IDENTITY, _AGW_VISIBLE, _AGW_INFRARED = 0, 1, 2
_PERMUTE_IDENTITY, _PERMUTE_VISIBLE, _PERMUTE_INFRARED = 3, 4, 5
_EXHAUST_IDENTITY, _EXHAUST_VISIBLE, _EXHAUST_INFRARED = 6, 7, 8
_TOP_UP_VISIBLE, _TOP_UP_INFRARED = 9, 10

# The generator's state at the start of epoch 0, 1, ... for the streams asked for last: it only
# saves replaying them. A state takes 2.5 kB.
_STREAMS = 8
_starts: OrderedDict[tuple[Any, ...], list[Any]] = OrderedDict()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the images of each class are.

    Class c of modality m: `order[m][first[m, c] : first[m, c] + count[m, c]]`.
    """

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


def steps_per_epoch(
    label: np.ndarray,
    modality: np.ndarray,
    *,
    num_ids: int,
    num_instances: int,
    rule: str = "agw",
) -> int:
    """Steps in an epoch by the rule; see the table at the top of this file.

    Args:
      label: int32 [N], the class of each image, -1 where it is not usable.
      modality: int8 [N], VISIBLE or INFRARED.
      num_ids: identities in a batch (P).
      num_instances: images of an identity and a modality in a batch (K).
      rule: a key of `RULES`.

    Returns:
      The number of steps, at least 1; images with label -1 are not counted.

    Raises:
      ValueError: as `plan`.
    """
    chosen = _get_rule(rule)
    label, modality = _checked(label, modality, num_ids, num_instances)
    return chosen.steps(_index_of(label, modality), num_ids, num_instances)


def plan(
    label: np.ndarray,
    modality: np.ndarray,
    *,
    num_ids: int,
    num_instances: int,
    seed: int,
    epoch: int,
    steps_per_epoch: int | None = None,
    rule: str = "agw",
    replacement: bool = True,
) -> np.ndarray:
    """The rows of every batch of one epoch.

    Entry [s, 0, i] is the row of a visible image and [s, 1, i] the row of an infrared
    image of the same identity; i = p * K + k, so the K rows of an identity are adjacent, and
    a process that loads a run of identities takes a slice of the last axis.
    A pure function of its arguments. The first n steps do not depend on how many follow (under
    "agw_legacy" in epoch 0 only: there an epoch starts where the one before ended).

    Args:
      label: int32 [N], the class of each image, -1 where it is not usable (see
        `types.train_labels`). Classes need not be contiguous.
      modality: int8 [N], VISIBLE or INFRARED.
      num_ids: identities in a batch (P), at least 2.
      num_instances: images of an identity and a modality in a batch (K).
      seed: an integer in 0 .. 2^32 - 1.
      epoch: an integer in 0 .. 2^32 - 1.
      steps_per_epoch: steps to plan; None for the rule's own number (see the function of that
        name). Where it is more, "exhaust" and "permute" begin another pass over the identities.
      rule: a key of `RULES`.
      replacement: under "agw", draw the K images of an identity with replacement, as the authors
        do. If False they are distinct, and an identity with n < K images shows each of them
        floor(K / n) or ceil(K / n) times. Of "exhaust" and "permute" distinct images are a part
        and it changes nothing; "agw_legacy" takes True only.

    Returns:
      int32 [steps, 2, P * K], rows of `label`.

    Raises:
      ValueError: if the rule is unknown, the arrays do not fit together, a modality is empty, a
        class lacks one of the modalities, or P, K, seed, epoch or steps are out of range.
    """
    chosen = _get_rule(rule)
    label, modality = _checked(label, modality, num_ids, num_instances)
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**32:  # one word each, or two keys could be the same words
            raise ValueError(f"{name} is {value}, expected an integer in 0 .. 2^32 - 1")
    index = _index_of(label, modality)
    if steps_per_epoch is None:
        steps = chosen.steps(index, num_ids, num_instances)
    else:
        steps = steps_per_epoch
    if steps < 1:
        raise ValueError(f"steps_per_epoch is {steps}, expected at least 1, or None for the rule")
    draw = Draw(num_ids, num_instances, seed, epoch, steps, replacement)
    return chosen.rows(index, draw).astype(np.int32)


def _get_rule(rule: str) -> Rule:
    if rule not in RULES:
        raise ValueError(f"no sampling rule {rule!r}; expected one of {', '.join(sorted(RULES))}")
    return RULES[rule]


def _checked(
    label: np.ndarray, modality: np.ndarray, num_ids: int, num_instances: int
) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays, if a plan can be made from them."""
    label, modality = np.asarray(label), np.asarray(modality)
    if label.ndim != 1 or label.shape != modality.shape:
        raise ValueError(
            f"label has shape {label.shape} and modality {modality.shape}, expected both [N]"
        )
    for name, array in (("label", label), ("modality", modality)):
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} is {array.dtype}, expected integers")
    if not np.isin(modality, (VISIBLE, INFRARED)).all():
        raise ValueError(
            f"modality holds {np.unique(modality).tolist()}, expected only "
            f"{VISIBLE} (visible) and {INFRARED} (infrared)"
        )
    if num_ids < 2:
        raise ValueError(
            f"num_ids is {num_ids}, expected at least 2: every loss over identities needs "
            "another identity in the batch to compare with"
        )
    if num_instances < 1:
        raise ValueError(f"num_instances is {num_instances}, expected at least 1")
    seen = [np.unique(label[(label >= 0) & (modality == m)]) for m in (VISIBLE, INFRARED)]
    for name, ids in zip(MODALITIES, seen, strict=True):
        if not len(ids):
            raise ValueError(
                f"no usable {name} image among {len(label)} rows (label >= 0 and modality "
                f"{name}); a plan needs both modalities"
            )
    lonely = np.setxor1d(seen[0], seen[1])
    if len(lonely):
        raise ValueError(
            f"{len(lonely)} classes lack a modality, the first are {lonely[:5].tolist()}; set "
            "their labels to -1 (types.train_labels does)"
        )
    if num_ids > len(seen[0]):
        raise ValueError(
            f"num_ids is {num_ids}, but only {len(seen[0])} identities have images in both "
            "modalities; choose a smaller num_ids"
        )
    return label, modality


# --- The rules ------------------------------------------------------------------------------


def _index_of(label: np.ndarray, modality: np.ndarray) -> Index:
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


def _agw_steps(index: Index, num_ids: int, num_instances: int) -> int:
    """floor(max(#visible, #infrared) / (P * K)) + 1."""
    return int(index.count.sum(axis=1).max()) // (num_ids * num_instances) + 1


def _agw_rows(index: Index, draw: Draw) -> np.ndarray:
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


def _permute_steps(index: Index, num_ids: int, num_instances: int) -> int:
    """ceil(C / P): a permutation of the identities in blocks of P."""
    return -(-index.count.shape[1] // num_ids)


def _permute_rows(index: Index, draw: Draw) -> np.ndarray:
    """Every identity in turn, in an order drawn anew for every pass; distinct images."""
    steps, num_ids, size = draw.steps, draw.num_ids, draw.num_instances
    classes = index.count.shape[1]
    blocks = _permute_steps(index, num_ids, size)
    passes = -(-steps // blocks)
    key = (draw.seed, draw.epoch)
    order = _uniform((*key, _PERMUTE_IDENTITY), (passes, classes)).argsort(axis=1, kind="stable")
    # Going round tops the last block up with the first identities of the same permutation.
    slot = order[:, np.arange(blocks * num_ids) % classes].reshape(-1, num_ids)[:steps]
    streams = ((VISIBLE, _PERMUTE_VISIBLE), (INFRARED, _PERMUTE_INFRARED))
    return _stack([_distinct_images(index, m, slot, size, (*key, s)) for m, s in streams])


def _exhaust_steps(index: Index, num_ids: int, num_instances: int) -> int:
    """floor(sum over identities of chunks / P), see `_exhaust_rows`."""
    return int(_chunks(index, num_instances).sum()) // num_ids


def _exhaust_rows(index: Index, draw: Draw) -> np.ndarray:
    """Chunks of K pairs of distinct images, dealt until all are used; then a new pass.

    A step takes a chunk of each of P identities, drawn uniformly among those that have chunks
    left. When fewer than P have, all of those take part and the others are drawn uniformly among
    the rest, each with K distinct images drawn anew. So a pass has the same number of steps
    whatever the draws.
    """
    steps, num_ids, size = draw.steps, draw.num_ids, draw.num_instances
    chunks = _chunks(index, size)
    length = _exhaust_steps(index, num_ids, size)
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


def _legacy_rows(index: Index, draw: Draw) -> np.ndarray:
    """The batches of an epoch as `RandomState(seed)` draws them, kept over the epochs.

    For each batch P classes without replacement; then for each of them K visible and K
    infrared images with replacement. An epoch begins where one of as many steps ended.

    Returns:
      int64 [S, 2, P * K].

    Raises:
      ValueError: if distinct images are asked for.
    """
    if not draw.replacement:
        raise ValueError(
            "replacement is False, expected True with the rule 'agw_legacy': the released sampler "
            "draws images with replacement; choose 'agw' for distinct images of an identity"
        )
    counts = index.count.T.tolist()  # [C][2]
    key = (index.count.tobytes(), draw.num_ids, draw.num_instances, draw.seed, draw.steps)
    with _lock:
        starts = _starts.pop(key, None)
        if starts is None:
            starts = [np.random.RandomState(draw.seed).get_state(legacy=False)]
        _starts[key] = starts
        while len(_starts) > _STREAMS:
            _starts.popitem(last=False)
        generator = np.random.RandomState()
        while len(starts) <= draw.epoch:
            generator.set_state(starts[-1])
            _replay(generator, counts, draw)
            starts.append(generator.get_state(legacy=False))
        start = starts[draw.epoch]
    generator = np.random.RandomState()
    generator.set_state(start)
    slot, pick = _replay(generator, counts, draw)
    with _lock:
        if len(starts) == draw.epoch + 1:
            starts.append(generator.get_state(legacy=False))
    return np.stack(
        [
            (index.order[m][index.first[m][slot][..., None] + pick[:, :, m]]).reshape(len(slot), -1)
            for m in (VISIBLE, INFRARED)
        ],
        axis=1,
    )


def _replay(
    generator: np.random.RandomState, counts: list[list[int]], draw: Draw
) -> tuple[np.ndarray, np.ndarray]:
    """One epoch's draws in the order of the authors' loop: classes [S, P], images [S, P, 2, K]."""
    slot, pick = [], []
    for _ in range(draw.steps):
        slot.append(generator.choice(len(counts), draw.num_ids, replace=False))
        for c in slot[-1]:
            for n in counts[c]:
                pick.append(generator.choice(n, draw.num_instances))
    images = np.array(pick).reshape(draw.steps, draw.num_ids, 2, draw.num_instances)
    return np.array(slot), images


RULES = {
    "agw": Rule(_agw_steps, _agw_rows),
    "exhaust": Rule(_exhaust_steps, _exhaust_rows),
    "permute": Rule(_permute_steps, _permute_rows),
    "agw_legacy": Rule(_agw_steps, _legacy_rows),
}
