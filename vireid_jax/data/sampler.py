"""Which images go into which batch: the modality-balanced PK plan of an epoch, in NumPy only.

A batch is P identities, each with K visible and K infrared images. Which ones is a rule:

  rule          whose                                     steps in an epoch
  ------------  ----------------------------------------  -------------------------------------
  "agw"         AGW, and with it CAJ, DEEN, PDM           floor(max(#vis, #ir) / (P K)) + 1
  "exhaust"     MPANet and IDKL, `identity_random`        floor(sum floor(min(#vis, #ir) / K) / P)
  "permute"     MPANet, `identity_uniform`                ceil(identities / P)
  "agw_legacy"  AGW, the released code's random numbers   as "agw"

K counts the images of one modality; the configurations of MPANet and IDKL count both, so their
16 x 8 is 16 identities and 4 images here. But for "agw_legacy", draws are a function of (seed,
epoch, position) and not of a global generator: a plan needs no earlier one, every process computes
the same, and resuming in the middle of an epoch needs no state.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.types import INFRARED, MODALITIES, VISIBLE

# One stream of random numbers for each purpose, so that changing how many numbers one of
# them takes leaves the others as they were. Pairs: of visible and of infrared images.
_AGW_IDENTITY, _AGW_IMAGES = 0, (1, 2)
_PERMUTE_IDENTITY, _PERMUTE_IMAGES = 3, (4, 5)
_EXHAUST_IDENTITY, _EXHAUST_IMAGES, _TOP_UP_IMAGES = 6, (7, 8), (9, 10)

_legacy_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the images of each class are.

    Class c of modality m: `order[m][first[m, c] : first[m, c] + count[m, c]]`.
    """

    order: list[np.ndarray]  # int64 [usable images of modality m] for each m, rows by class
    first: np.ndarray  # int64 [2, C]
    count: np.ndarray  # int64 [2, C], at least 1

    def rows(self, m: int, slot: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The rows of modality m at `place` [S, P, K] among those of classes `slot` [S, P]."""
        return self.order[m][self.first[m][slot][..., None] + place]


class Draw(NamedTuple):
    """What `sampler.plan` was asked for."""

    num_ids: int
    num_instances: int
    seed: int
    epoch: int
    steps: int
    replacement: bool

    def uniform(self, shape: tuple[int, ...], *stream: int) -> np.ndarray:
        """float64 in [0, 1), a function of seed, epoch, stream and position only.

        Made from the raw bits of Philox, whose stream NumPy promises to keep, so that a plan
        does not change with NumPy's version.
        """
        key = np.random.SeedSequence((self.seed, self.epoch, *stream))
        bits = np.random.Philox(key).random_raw(int(np.prod(shape)))
        return (bits >> np.uint64(11)).reshape(shape) * 2.0**-53


class Rule(NamedTuple):
    """A sampling rule."""

    steps: Callable[[Index, int, int], int]  # (index, P, K) -> steps in an epoch
    rows: Callable[[Index, Draw], np.ndarray]  # int64 [S, 2, P * K], as in `sampler.plan`


def steps_per_epoch(
    label: np.ndarray, modality: np.ndarray, *, num_ids: int, num_instances: int, rule: str = "agw"
) -> int:
    """Steps in an epoch by the rule, at least 1; images with label -1 are not counted.

    Arguments and errors are those of `plan`.
    """
    chosen, index = _checked(label, modality, num_ids, num_instances, rule)
    return chosen.steps(index, num_ids, num_instances)


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
        floor(K / n) or ceil(K / n) times. "exhaust" and "permute" always draw distinct images;
        "agw_legacy" takes True only.

    Returns:
      int32 [steps, 2, P * K], rows of `label`.

    Raises:
      ValueError: if the rule is unknown, the arrays do not fit together, a modality is empty, a
        class lacks one of the modalities, or P, K, seed, epoch or steps are out of range.
    """
    chosen, index = _checked(label, modality, num_ids, num_instances, rule)
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**32:  # one word each, or two keys could be the same words
            raise ValueError(f"{name} is {value}, expected an integer in 0 .. 2^32 - 1")
    if steps_per_epoch is None:
        steps_per_epoch = chosen.steps(index, num_ids, num_instances)
    if steps_per_epoch < 1:
        raise ValueError(
            f"steps_per_epoch is {steps_per_epoch}, expected at least 1, or None for the rule"
        )
    draw = Draw(num_ids, num_instances, seed, epoch, steps_per_epoch, replacement)
    return chosen.rows(index, draw).astype(np.int32)


def _checked(
    label: np.ndarray, modality: np.ndarray, num_ids: int, num_instances: int, rule: str
) -> tuple[Rule, Index]:
    """The rule and the images by class, if a plan can be made from them."""
    if rule not in RULES:
        raise ValueError(f"no sampling rule {rule!r}; expected one of {', '.join(sorted(RULES))}")
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
    usable = [np.flatnonzero((label >= 0) & (modality == m)) for m in (VISIBLE, INFRARED)]
    for name, rows in zip(MODALITIES, usable, strict=True):
        if not len(rows):
            raise ValueError(
                f"no usable {name} image among {len(label)} rows (label >= 0 and modality "
                f"{name}); a plan needs both modalities"
            )
    lonely = np.setxor1d(label[usable[0]], label[usable[1]])
    if len(lonely):
        raise ValueError(
            f"{len(lonely)} classes lack a modality, the first are {lonely[:5].tolist()}; set "
            "their labels to -1 (types.train_labels does)"
        )
    # The images of a class keep the order of the rows.
    order = [rows[np.argsort(label[rows], kind="stable")] for rows in usable]
    runs = [np.unique(label[rows], return_index=True, return_counts=True)[1:] for rows in order]
    first, count = np.array(runs).swapaxes(0, 1)  # [2, C] each
    if num_ids > count.shape[1]:
        raise ValueError(
            f"num_ids is {num_ids}, but only {count.shape[1]} identities have images in both "
            "modalities; choose a smaller num_ids"
        )
    return RULES[rule], Index(order, first, count)


# --- The rules ------------------------------------------------------------------------------


def _agw_steps(index: Index, num_ids: int, num_instances: int) -> int:
    return int(index.count.sum(axis=1).max()) // (num_ids * num_instances) + 1


def _agw_rows(index: Index, draw: Draw) -> np.ndarray:
    """A batch's identities are distinct and independent of earlier batches; images may repeat.

    Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", arXiv
    2001.04193, and its released code. An identity may miss an epoch. An epoch of SYSU-MM01 shows
    53 % of the visible and 80 % of the infrared images (P = 8, K = 4).
    """
    steps, num_ids, size = draw.steps, draw.num_ids, draw.num_instances
    uniform = draw.uniform((steps, 1, 2 * num_ids), _AGW_IDENTITY)
    classes = np.full((1, 1), index.count.shape[1])
    slot = _distinct(uniform, classes, num_ids)[:, 0]  # [S, P]
    rows = []
    for m, stream in enumerate(_AGW_IMAGES):
        if draw.replacement:
            uniform = draw.uniform((steps, num_ids, size), stream)
            place = (uniform * index.count[m][slot][..., None]).astype(np.int64)
            rows.append(index.rows(m, slot, place))
        else:
            rows.append(_distinct_images(index, m, slot, draw, stream))
    return _stack(rows)


def _permute_steps(index: Index, num_ids: int, num_instances: int) -> int:
    return -(-index.count.shape[1] // num_ids)


def _permute_rows(index: Index, draw: Draw) -> np.ndarray:
    """Every identity in turn, in another order for every pass; distinct images.

    The authors' code drops a last block that is not full. Here it is topped up with the first
    identities of the same permutation, so that every identity is shown in every epoch.
    """
    classes = index.count.shape[1]
    blocks = _permute_steps(index, draw.num_ids, draw.num_instances)
    passes = -(-draw.steps // blocks)
    order = draw.uniform((passes, classes), _PERMUTE_IDENTITY).argsort(axis=1, kind="stable")
    slot = order[:, np.arange(blocks * draw.num_ids) % classes]
    slot = slot.reshape(-1, draw.num_ids)[: draw.steps]
    return _stack(
        [_distinct_images(index, m, slot, draw, s) for m, s in enumerate(_PERMUTE_IMAGES)]
    )


def _exhaust_steps(index: Index, num_ids: int, num_instances: int) -> int:
    return int(_chunks(index, num_instances).sum()) // num_ids


def _exhaust_rows(index: Index, draw: Draw) -> np.ndarray:
    """Chunks of K pairs of distinct images, dealt until all are used; then another pass.

    An identity's visible and infrared images are shuffled and paired up to the shorter list, and
    cut into chunks of K pairs; what is left over is unused. A step takes a chunk of each of P
    identities, drawn uniformly among those that have chunks left.

    The authors' epoch ends when fewer than P identities have chunks left, so its length is random.
    Here all of those then take part, and the others are drawn uniformly among the rest, each with K
    distinct images from a draw of its own. On SYSU-MM01 that makes 183 steps, the authors' code
    182.2 on average (P = 16, K = 4); or 196 and 194.9 (P = 12, K = 5). An identity with fewer than
    K images in a modality, with which the authors' code stops in some cases, has one chunk: all its
    distinct images, then the same again.
    """
    length = _exhaust_steps(index, draw.num_ids, draw.num_instances)
    passes = [_exhaust_pass(index, draw, length, n) for n in range(-(-draw.steps // length))]
    return np.concatenate(passes)[: draw.steps]


def _exhaust_pass(index: Index, draw: Draw, length: int, number: int) -> np.ndarray:
    size = draw.num_instances
    chunks = _chunks(index, size)
    slot, visit = _deal(chunks, draw.uniform((length, draw.num_ids), _EXHAUST_IDENTITY, number))
    topped = (visit >= chunks[slot])[..., None]  # [S, P, 1]
    place = visit[..., None] * size + np.arange(size)
    rows = []
    for m, (stream, again) in enumerate(zip(_EXHAUST_IMAGES, _TOP_UP_IMAGES, strict=True)):
        count = index.count[m]
        # Every class's images in random order: the first min(visible, infrared) of both
        # modalities, zipped, are the authors' pairs.
        shuffle = draw.uniform((len(index.order[m]),), stream, number)
        images = index.order[m][np.lexsort((shuffle, np.repeat(np.arange(len(count)), count)))]
        # The remainder only matters where a class has fewer than K images.
        dealt = images[index.first[m][slot][..., None] + place % count[slot][..., None]]
        rows.append(np.where(topped, _distinct_images(index, m, slot, draw, again, number), dealt))
    return _stack(rows)


def _chunks(index: Index, num_instances: int) -> np.ndarray:
    """int64 [C]: how often a class can show K pairs of unseen images, but at least once."""
    return np.maximum(index.count.min(axis=0) // num_instances, 1)


def _deal(chunks: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which classes a pass's steps show, and how often each was shown before: int64 [S, P] both.

    From `chunks` int64 [C] and `uniform` float64 [S, P] in [0, 1), P <= C. The classes of a step
    are distinct; those with chunks left (visit < chunks) come first.
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
    index: Index, m: int, slot: np.ndarray, draw: Draw, *stream: int
) -> np.ndarray:
    """K rows of modality m for each class in slot [S, P]: distinct, as far as there are."""
    uniform = draw.uniform((*slot.shape, 2 * draw.num_instances), *stream)
    return index.rows(m, slot, _distinct(uniform, index.count[m][slot], draw.num_instances))


def _distinct(uniform: np.ndarray, n: np.ndarray, size: int) -> np.ndarray:
    """Draws `size` of the numbers 0 .. n-1, distinct, or as evenly as can be where n < size.

    Floyd's algorithm over all batches at once: it costs size^2 and no memory of n. Its sets are
    uniform but their order is not, hence the shuffle. From `uniform` float64 [S, P, 2 * size] in
    [0, 1) and n int [S, P] (or with axes of length 1) to int64 [S, P, size].
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


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Two arrays [S, P, K] -> [S, 2, P * K]."""
    return np.stack([r.reshape(len(r), -1) for r in rows], axis=1)


def _legacy_rows(index: Index, draw: Draw) -> np.ndarray:
    """The released sampler's own stream, NumPy's `RandomState(seed)` over all epochs.

    For each batch P classes without replacement; then for each of them K visible and K infrared
    images with replacement. The images are the authors' if those of each identity and modality are
    listed in their order: by camera, then by file name. An epoch begins where one of as many steps
    ended, so the epochs before it are replayed, once (0.15 s each for SYSU-MM01).
    """
    if not draw.replacement:
        raise ValueError(
            "replacement is False, expected True with the rule 'agw_legacy': the released sampler "
            "draws images with replacement; choose 'agw' for distinct images of an identity"
        )
    counts = index.count.T.tolist()  # [C][2]
    key = (index.count.tobytes(), draw.num_ids, draw.num_instances, draw.seed, draw.steps)
    generator = np.random.RandomState()
    with _legacy_lock:
        starts = _legacy_starts(*key)
        for epoch in range(min(draw.epoch, len(starts) - 1), draw.epoch + 1):
            generator.set_state(starts[epoch])
            slot, place = _replay(generator, counts, draw)
            if epoch + 1 == len(starts):
                starts.append(generator.get_state(legacy=False))
    return _stack([index.rows(m, slot, place[:, :, m]) for m in (VISIBLE, INFRARED)])


@functools.lru_cache(maxsize=8)
def _legacy_starts(
    counts: bytes, num_ids: int, num_instances: int, seed: int, steps: int
) -> list[Any]:
    """The generator's state (2.5 kB) at the start of epoch 0, 1, ... as far as it is known."""
    return [np.random.RandomState(seed).get_state(legacy=False)]


def _replay(
    generator: np.random.RandomState, counts: list[list[int]], draw: Draw
) -> tuple[np.ndarray, np.ndarray]:
    """One epoch's draws in the order of the authors' loop: classes [S, P], images [S, P, 2, K]."""
    slot, place = [], []
    for _ in range(draw.steps):
        slot.append(generator.choice(len(counts), draw.num_ids, replace=False))
        for c in slot[-1]:
            for n in counts[c]:
                place.append(generator.choice(n, draw.num_instances))
    images = np.array(place).reshape(draw.steps, draw.num_ids, 2, draw.num_instances)
    return np.array(slot), images


RULES = {
    "agw": Rule(_agw_steps, _agw_rows),
    "exhaust": Rule(_exhaust_steps, _exhaust_rows),
    "permute": Rule(_permute_steps, _permute_rows),
    "agw_legacy": Rule(_agw_steps, _legacy_rows),
}
