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

import numpy as np

from vireid_jax.data import sampler_legacy
from vireid_jax.data import sampler_rules as rules
from vireid_jax.data.sampler_rules import Rule
from vireid_jax.types import INFRARED, MODALITIES, VISIBLE

RULES = {
    "agw": Rule(rules.agw_steps, rules.agw_rows),
    "exhaust": Rule(rules.exhaust_steps, rules.exhaust_rows),
    "permute": Rule(rules.permute_steps, rules.permute_rows),
    "agw_legacy": Rule(rules.agw_steps, sampler_legacy.legacy_rows),
}


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
    return chosen.steps(rules.index_of(label, modality), num_ids, num_instances)


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
    index = rules.index_of(label, modality)
    if steps_per_epoch is None:
        steps = chosen.steps(index, num_ids, num_instances)
    else:
        steps = steps_per_epoch
    if steps < 1:
        raise ValueError(f"steps_per_epoch is {steps}, expected at least 1, or None for the rule")
    draw = rules.Draw(num_ids, num_instances, seed, epoch, steps, replacement)
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
