"""Which images of a pool a trial takes: the `agw` draw and the `official` one of SYSU-MM01.

`agw`, after the code of AGW (arXiv 2001.04193), which CAJ, DEEN and PDM share: trial t seeds
Python's Mersenne Twister with t, then takes, for people in the order of their four-digit
numbers and for each of their cameras, one `choice` of the sorted image names. Here the
generator is a private one; its draws are the same. Indoor search is its own stream, so its
gallery is not a part of the all-search gallery. AGW's code draws no multi-shot gallery: ours
takes a `sample` of ten from the same generator instead.

`official`, of SYSU-MM01's own evaluation code (MPANet and IDKL use it): a file of fixed
permutations; trial t takes the first 1 or 10 entries of row t for each camera, and within a
camera for each person. The file, `rand_perm_cam.mat`, is not distributed with us: see
`vireid_jax.metrics.official`.
"""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vireid_jax.metrics.official import (
    WHERE,
    Permutations,
    check_shots,
    image_name,
    image_number,
    take_numbers,
)
from vireid_jax.metrics.ranking import check_ids

DRAWS = ("agw", "official")


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
    groups = pool_groups(person, camera, name)
    return _draw_agw([groups[key] for key in _by_person(groups, cameras)], shots, trial)


def draw_official(
    person: Any,
    camera: Any,
    name: Sequence[str],
    permutations: Permutations,
    *,
    cameras: Sequence[int],
    shots: int,
    trial: int,
    people: Any = (),
) -> np.ndarray:
    """The `official` draw: which rows of a pool are the gallery of a trial.

    Args:
      person: int [N].
      camera: int [N].
      name: N names whose last part is the number of the image among those of its person and
        camera, as in "cam1/0006/0005" (an ending such as .jpg is left out).
      permutations: see `official.read_permutations`.
      cameras: cameras to draw from.
      shots: images of one person and camera; fewer where there are not as many.
      trial: row of the permutations, 0 for the first.
      people: int [any], further people whose images have to be in the pool where the
        permutations know of some: those of the queries.

    Returns:
      int64 [G] rows, by camera, then person, then place in the permutation.

    Raises:
      ValueError: an image that the permutations ask for is not in the pool (the released
        Python code goes on with a smaller gallery), or the pool has a person or a name that
        the permutations do not know, or there is no such trial.
    """
    groups = pool_groups(person, camera, name)
    return _draw_official(groups, name, permutations, cameras, shots, trial, people)


def draw_trials(
    draw: str,
    person: np.ndarray,
    camera: np.ndarray,
    name: Sequence[str],
    *,
    cameras: Sequence[int],
    shots: int,
    trials: Iterable[int],
    permutations: Permutations | None = None,
    people: Any = (),
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The draws of several trials.

    Args:
      draw: "agw" or "official"; see `draw_gallery` and `draw_official` for the others.
      trials: their numbers, from 0.

    Returns:
      rows: int64 [U], the rows of the pool that some trial draws, in the order of the draw, so
        that equal distances rank alike however the caller ordered the pool.
      places: for each trial, int64 [G], ascending: what it draws, as places in `rows`.
    """
    groups = pool_groups(person, camera, name)
    if draw == "official":
        if permutations is None:
            raise ValueError(
                "the official draw needs `permutations`, got None; pass "
                "read_permutations('rand_perm_cam.mat') (the file is in the evaluation code at "
                f"{WHERE}, not in the data set)"
            )
        keys = _by_camera(groups, cameras)
        picks = [
            _draw_official(groups, name, permutations, cameras, shots, trial, people)
            for trial in trials
        ]
    else:
        keys = _by_person(groups, cameras)
        pool = [groups[key] for key in keys]
        picks = [_draw_agw(pool, shots, trial) for trial in trials]
    place = np.full(len(name), -1)
    order = [row for key in keys for row in groups[key]]
    place[order] = np.arange(len(order))
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *picks]))
    rows = rows[np.argsort(place[rows])]
    place[rows] = np.arange(len(rows))
    return rows, [np.sort(place[pick]) for pick in picks]


def pool_groups(person: Any, camera: Any, name: Sequence[str]) -> dict[tuple[int, int], list[int]]:
    """Rows of each (person, camera), sorted by name."""
    person, camera = check_ids(person, len(name), "person"), check_ids(camera, len(name), "camera")
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
    return groups


def _people(groups: Mapping[tuple[int, int], Any]) -> list[int]:
    return sorted({p for p, _ in groups}, key=lambda p: f"{p:04d}")  # as folder names sort


def _by_person(
    groups: Mapping[tuple[int, int], Any], cameras: Sequence[int]
) -> list[tuple[int, int]]:
    return [(p, c) for p in _people(groups) for c in cameras if (p, c) in groups]


def _by_camera(
    groups: Mapping[tuple[int, int], Any], cameras: Sequence[int]
) -> list[tuple[int, int]]:
    return [(p, c) for c in cameras for p in _people(groups) if (p, c) in groups]


def _draw_agw(groups: list[list[int]], shots: int, trial: int) -> np.ndarray:
    check_shots(shots)
    generator = random.Random(trial)
    rows: list[int] = []
    for group in groups:
        if shots == 1:
            rows.append(generator.choice(group))
        else:
            picks = generator.sample(range(len(group)), min(shots, len(group)))
            rows.extend(group[pick] for pick in sorted(picks))
    return np.array(rows, np.int64)


def _draw_official(
    groups: Mapping[tuple[int, int], list[int]],
    name: Sequence[str],
    permutations: Permutations,
    cameras: Sequence[int],
    shots: int,
    trial: int,
    people: Any,
) -> np.ndarray:
    everyone = sorted({p for p, _ in groups} | set(np.unique(people).astype(int).tolist()))
    rows: list[int] = []
    for c in cameras:
        for p in everyone:
            numbers = take_numbers(permutations, c, p, shots, trial)
            there = groups.get((p, c), [])
            if there and not numbers:
                raise ValueError(
                    f"the pool has {len(there)} images of person {p} before camera {c} "
                    f"({name[there[0]]} is one), the permutations have none; are they those of "
                    "this data set?"
                )
            found: dict[int, int] = {}
            for row in there:
                number = image_number(name[row])
                if number in found:
                    raise ValueError(
                        f"{name[found[number]]} and {name[row]} are both image {number} of person "
                        f"{p} before camera {c}, expected one: the official draw goes by numbers"
                    )
                found[number] = row
            if missing := [n for n in numbers if n not in found]:
                raise ValueError(
                    f"{image_name(c, p, missing[0])} is missing: trial {trial} of the official "
                    f"draw takes it, and the pool has {len(there)} other images of person {p} "
                    f"before camera {c}; is the copy of the data set complete?"
                )
            rows.extend(found[n] for n in numbers)
    return np.array(rows, np.int64)
