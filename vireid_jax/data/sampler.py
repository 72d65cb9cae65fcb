"""Which images go into which batch: the modality-balanced PK plan of an epoch, in NumPy only.

The rule is the identity sampler of AGW (Ye et al., "Deep Learning for Person
Re-identification: A Survey and Outlook", arXiv 2001.04193, and its released code):
a batch is P identities, each with K visible and K infrared images. The identities of
a batch are drawn without replacement and independently of earlier batches, so an
identity may miss an epoch; the images of an identity are drawn with replacement.

Differs from the authors' code: the draws come from a counter-based generator keyed by
(seed, epoch) instead of NumPy's global one, so a plan needs no earlier plan, every
process computes the same one, and resuming in the middle of an epoch needs no state.
"""

import numpy as np

from vireid_jax.types import INFRARED, MODALITIES, VISIBLE

# One stream of random numbers for each purpose, so that changing how many numbers one of
# them takes leaves the others as they were.
_IDENTITY_STREAM, _VISIBLE_STREAM, _INFRARED_STREAM = 0, 1, 2


def steps_per_epoch(
    label: np.ndarray, modality: np.ndarray, *, num_ids: int, num_instances: int
) -> int:
    """Steps in an epoch: floor(max(#visible, #infrared) / (P * K)) + 1, the rule of AGW.

    Args:
      label: int32 [N], the class of each image, -1 where it is not usable.
      modality: int8 [N], VISIBLE or INFRARED.
      num_ids: identities in a batch (P).
      num_instances: images of an identity and a modality in a batch (K).

    Returns:
      The number of steps; images with label -1 are not counted.

    Raises:
      ValueError: as `plan`.
    """
    label, modality = _checked(label, modality, num_ids, num_instances)
    usable = modality[label >= 0]
    larger = max(int((usable == VISIBLE).sum()), int((usable == INFRARED).sum()))
    return larger // (num_ids * num_instances) + 1


def plan(
    label: np.ndarray,
    modality: np.ndarray,
    *,
    num_ids: int,
    num_instances: int,
    seed: int,
    epoch: int,
    steps_per_epoch: int | None = None,
    replacement: bool = True,
) -> np.ndarray:
    """The rows of every batch of one epoch.

    Entry [s, 0, i] is the row of a visible image and [s, 1, i] the row of an infrared
    image of the same identity; i = p * K + k, so the K rows of an identity are adjacent.
    A pure function of its arguments. The first n steps do not depend on how many follow.

    Args:
      label: int32 [N], the class of each image, -1 where it is not usable (see
        `types.train_labels`). Classes need not be contiguous.
      modality: int8 [N], VISIBLE or INFRARED.
      num_ids: identities in a batch (P), at least 2.
      num_instances: images of an identity and a modality in a batch (K).
      seed: an integer in 0 .. 2^32 - 1.
      epoch: an integer in 0 .. 2^32 - 1.
      steps_per_epoch: steps to plan; None for the rule of AGW (see the function of that name).
      replacement: draw the K images of an identity with replacement, as AGW does. If False
        they are distinct, and an identity with n < K images shows each of them
        floor(K / n) or ceil(K / n) times.

    Returns:
      int32 [steps, 2, P * K], rows of `label`.

    Raises:
      ValueError: if the arrays do not fit together, a modality is empty, a class lacks one
        of the modalities, or P, K, seed, epoch or steps are out of range.
    """
    label, modality = _checked(label, modality, num_ids, num_instances)
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**32:  # one word each, or two keys could be the same words
            raise ValueError(f"{name} is {value}, expected an integer in 0 .. 2^32 - 1")
    if steps_per_epoch is None:
        steps = _default_steps(label, modality, num_ids=num_ids, num_instances=num_instances)
    else:
        steps = steps_per_epoch
    if steps < 1:
        raise ValueError(f"steps_per_epoch is {steps}, expected at least 1, or None for the rule")

    classes = np.unique(label[label >= 0])
    uniform = _uniform((seed, epoch, _IDENTITY_STREAM), (steps, 1, 2 * num_ids))
    slot = _distinct(uniform, np.full((1, 1), len(classes)), num_ids)[:, 0]  # [steps, P]
    rows = []
    for m, stream in ((VISIBLE, _VISIBLE_STREAM), (INFRARED, _INFRARED_STREAM)):
        # The rows of class c in modality m are order[first[c] : first[c] + count[c]].
        mine = np.flatnonzero((label >= 0) & (modality == m))
        order = mine[np.argsort(label[mine], kind="stable")]
        first = np.searchsorted(label[order], classes)
        count = np.searchsorted(label[order], classes, side="right") - first
        draws = num_instances if replacement else 2 * num_instances
        uniform = _uniform((seed, epoch, stream), (steps, num_ids, draws))
        n = count[slot]  # [steps, P]
        if replacement:
            pick = (uniform * n[..., None]).astype(np.int64)
        else:
            pick = _distinct(uniform, n, num_instances)
        rows.append(order[first[slot][..., None] + pick].reshape(steps, -1))
    return np.stack(rows, axis=1).astype(np.int32)


_default_steps = steps_per_epoch  # `plan` has an argument of that name


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


def _uniform(key: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
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
