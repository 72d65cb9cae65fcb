"""Which images of the pool a trial takes as its gallery.

The gallery draw is named `agw`, after the code of AGW (arXiv 2001.04193), which CAJ, DEEN
and PDM share: trial t seeds Python's Mersenne Twister with t, then takes, for people in the
order of their four-digit numbers and for each of their cameras, one `choice` of the sorted
image names. Here the generator is a private one; its draws are the same. Indoor search is
its own stream, so its gallery is not a part of the all-search gallery. AGW's code draws no
multi-shot gallery: ours takes a `sample` of ten from the same generator instead.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from vireid_jax.metrics.ranking import check_ids


def draw_gallery(
    person: Any,
    camera: Any,
    name: Sequence[str],
    *,
    cameras: Sequence[int],
    shots: int,
    trial: int,
) -> np.ndarray:
    """The `agw` draw: which rows of a pool are the gallery of a trial.

    Args:
      person: int [N].
      camera: int [N].
      name: N distinct names; those of one person and camera are drawn from in sorted order,
        so the draw does not depend on the order of the pool.
      cameras: cameras to draw from, in this order for each person.
      shots: images of one person and camera; fewer where there are not as many.
      trial: seed of the draw, 0 for the first.

    Returns:
      int64 [G] rows, by person, then camera, then name.

    Raises:
      ValueError: unequal lengths, names that occur twice, or shots < 1.
    """
    person, camera = check_ids(person, len(name), "person"), check_ids(camera, len(name), "camera")
    return draw_groups(pool_groups(person, camera, name, cameras), shots, trial)


def pool_groups(
    person: np.ndarray, camera: np.ndarray, name: Sequence[str], cameras: Sequence[int]
) -> list[list[int]]:
    """Rows of each (person, camera) sorted by name, in the order in which they are drawn."""
    order = sorted(range(len(name)), key=name.__getitem__)
    for a, b in itertools.pairwise(order):
        if name[a] == name[b]:
            raise ValueError(
                f"the name {name[a]!r} is given to pool rows {min(a, b)} and {max(a, b)}, expected "
                "distinct names: the draw goes by them"
            )
    groups: dict[tuple[int, int], list[int]] = {}
    for row in order:
        groups.setdefault((int(person[row]), int(camera[row])), []).append(row)
    people = sorted({p for p, _ in groups}, key=lambda p: f"{p:04d}")  # as folder names sort
    return [groups[p, c] for p in people for c in cameras if (p, c) in groups]


def draw_groups(groups: list[list[int]], shots: int, trial: int) -> np.ndarray:
    """Int64 [G] rows: the draw of one trial from `pool_groups`."""
    if shots < 1:
        raise ValueError(f"shots is {shots}, expected at least 1")
    generator = random.Random(trial)
    rows: list[int] = []
    for group in groups:
        if shots == 1:
            rows.append(generator.choice(group))
        else:
            picks = generator.sample(range(len(group)), min(shots, len(group)))
            rows.extend(group[pick] for pick in sorted(picks))
    return np.array(rows, np.int64)
