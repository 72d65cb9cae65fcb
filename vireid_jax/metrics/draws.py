"""Which images of a pool a trial takes: the `agw` draw and the `official` one of SYSU-MM01.

`agw`, after the code of AGW (arXiv 2001.04193), which CAJ, DEEN and PDM share: trial t seeds
Python's Mersenne Twister with t, then takes, for people in the order of their four-digit
numbers and for each of their cameras, one `choice` of the sorted image names. Indoor search is
its own stream. AGW's code draws no multi-shot gallery: ours takes a `sample` of ten instead.

`official`, of SYSU-MM01's own evaluation code (MPANet and IDKL use it): `rand_perm_cam.mat` has
fixed permutations of the image numbers of each camera and person. Trial t takes, for each camera
and within a camera for each person, the first 1 or 10 entries of row t.
"""

import hashlib
import itertools
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vireid_jax.metrics.inputs import check_ids

DRAWS = ("agw", "official")
WHERE = "https://github.com/wuancong/SYSU-MM01"

# {(camera, person): int [trials, n]}, row t a permutation of the image numbers 1 .. n
Permutations = Mapping[tuple[int, int], np.ndarray]

_ALL, _INDOOR = (1, 2, 4, 5), (1, 2)
# What `draw_digest` gives for the 96 test people of SYSU-MM01, by draw, cameras, shots and trial:
# of names like "cam1/0006/0005" for the official draw, with ".jpg" at the end for AGW's.
GOLDEN: dict[tuple[str, tuple[int, ...], int, int], str] = {
    ("agw", _ALL, 1, 0): "b3878ebad3e2",
    ("agw", _ALL, 1, 1): "4bbcd579121f",
    ("agw", _ALL, 1, 9): "c66187d020b0",
    ("agw", _INDOOR, 1, 0): "f175d91c02b7",
    ("agw", _INDOOR, 1, 1): "521c9a69f8fe",
    ("agw", _INDOOR, 1, 9): "e95ca35ffb86",
    ("official", _ALL, 1, 0): "f6ada1d21642",
    ("official", _ALL, 1, 9): "44995b4cc116",
    ("official", _ALL, 10, 0): "44e1078f1891",
    ("official", _ALL, 10, 9): "09abe5a4a160",
    ("official", _INDOOR, 1, 0): "14b9b9b11c2a",
    ("official", _INDOOR, 1, 9): "74b2c95ce54c",
    ("official", _INDOOR, 10, 0): "9c2db717fbe2",
    ("official", _INDOOR, 10, 9): "a29fd90a975b",
}


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
      name: N distinct names; those of one person and camera are sorted before the draw.
      cameras: cameras to draw from, in this order for each person.
      shots: images of one person and camera; fewer where there are not as many.
      trial: seed of the draw, 0 for the first.

    Returns:
      int64 [G] rows, by person, then camera, then name.

    Raises:
      ValueError: unequal lengths, names that occur twice, or shots < 1.
    """
    groups = _group(person, camera, name)
    return _draw_agw([groups[key] for key in _keys(groups, cameras, "agw")], shots, trial)


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
      name: N names whose last part is the number of the image of its person and
        camera, as in "cam1/0006/0005" (an ending such as .jpg is left out).
      permutations: see `read_permutations`.
      cameras: cameras to draw from.
      shots: images of one person and camera; fewer where there are not as many.
      trial: row of the permutations, 0 for the first.
      people: int [any], the people of the queries: their images have to be in the pool, too,
        where the permutations know of some.

    Returns:
      int64 [G] rows, by camera, then person, then place in the permutation.

    Raises:
      ValueError: an image that the permutations ask for is not in the pool (the released
        Python code goes on with a smaller gallery), or the pool has a person or a name that
        the permutations do not know, or there is no such trial.
    """
    groups = _group(person, camera, name)
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
    """The draws of several trials, "agw" or "official"; see `draw_gallery` and `draw_official`.

    Returns:
      rows: int64 [U], the rows of the pool that some trial draws, in the order of the draw, so
        that equal distances rank alike however the caller ordered the pool.
      places: for each trial, int64 [G], ascending: what it draws, as places in `rows`.
    """
    groups = _group(person, camera, name)
    pool = [groups[key] for key in _keys(groups, cameras, draw)]
    if draw == "agw":
        picks = [_draw_agw(pool, shots, trial) for trial in trials]
    elif permutations is None:
        raise ValueError(
            "the official draw needs `permutations`, got None; pass "
            "read_permutations('rand_perm_cam.mat') (the file is in the evaluation code at "
            f"{WHERE}, not in the data set)"
        )
    else:
        picks = [
            _draw_official(groups, name, permutations, cameras, shots, trial, people)
            for trial in trials
        ]
    order = np.array(list(itertools.chain.from_iterable(pool)), np.int64)
    rows = order[np.isin(order, np.concatenate(picks))]
    place = np.full(len(name), -1)
    place[rows] = np.arange(len(rows))
    return rows, [np.sort(place[pick]) for pick in picks]


def _group(person: Any, camera: Any, name: Sequence[str]) -> dict[tuple[int, int], list[int]]:
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


def _keys(
    groups: Mapping[tuple[int, int], Any], cameras: Sequence[int], draw: str
) -> list[tuple[int, int]]:
    """The groups of some cameras in the order of a draw."""
    people = sorted({p for p, _ in groups}, key=lambda p: f"{p:04d}")  # as folder names sort
    if draw == "agw":
        pairs = [(p, c) for p in people for c in cameras]
    else:
        pairs = [(p, c) for c in cameras for p in people]
    return [pair for pair in pairs if pair in groups]


def _draw_agw(groups: list[list[int]], shots: int, trial: int) -> np.ndarray:
    _check_shots(shots)
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
    for c, p in itertools.product(cameras, everyone):
        numbers = _take_numbers(permutations, c, p, shots, trial)
        there = groups.get((p, c), [])
        if there and not numbers:
            raise ValueError(
                f"the pool has {len(there)} images of person {p} before camera {c} "
                f"({name[there[0]]} is one), the permutations have none; are they those of "
                "this data set?"
            )
        found: dict[int, int] = {}
        for row in there:
            number = _image_number(name[row])
            if number in found:
                raise ValueError(
                    f"{name[found[number]]} and {name[row]} are both image {number} of person "
                    f"{p} before camera {c}, expected one: the official draw goes by numbers"
                )
            found[number] = row
        if missing := [n for n in numbers if n not in found]:
            raise ValueError(
                f"{_image_name(c, p, missing[0])} is missing: trial {trial} of the official "
                f"draw takes it, and the pool has {len(there)} other images of person {p} "
                f"before camera {c}; is the copy of the data set complete?"
            )
        rows.extend(found[n] for n in numbers)
    return np.array(rows, np.int64)


def read_permutations(path: str | os.PathLike[str]) -> dict[tuple[int, int], np.ndarray]:
    """SYSU-MM01's fixed permutations from `rand_perm_cam.mat`.

    The file holds `rand_perm_cam`: a cell for each of six cameras, in it a cell for each
    person (from 1), in it uint8 [10, n], row t a permutation of the image numbers 1 .. n.

    Returns:
      {(camera, person): int64 [10, n]}, without the persons that a camera has not seen.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file.
    """
    import scipy.io  # jax needs scipy, so it is there; nothing else of the metrics does

    file = repr(os.fspath(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"no file {file}, expected SYSU-MM01's rand_perm_cam.mat (it is in the "
            f"evaluation code at {WHERE}, not in the data set)"
        )
    try:
        content = scipy.io.loadmat(path, variable_names=["rand_perm_cam"])
    except Exception as error:  # loadmat raises whatever a broken header leads to
        raise ValueError(
            f"{file} is not a MATLAB 5 file: {error}; expected rand_perm_cam.mat"
        ) from error
    if "rand_perm_cam" not in content:
        raise ValueError(f"{file} has no variable rand_perm_cam; expected rand_perm_cam.mat")
    cameras = content["rand_perm_cam"]
    if cameras.dtype != object or cameras.size != 6:
        raise ValueError(
            f"rand_perm_cam of {file} is {cameras.dtype} {list(cameras.shape)}, "
            "expected a cell for each of six cameras"
        )
    out: dict[tuple[int, int], np.ndarray] = {}
    for camera, people in enumerate(cameras.ravel(), start=1):
        cells = people.ravel() if people.dtype == object else ()
        for person, cell in enumerate(cells, start=1):
            if cell.size:
                out[camera, person] = _check_cell(cell, camera, person)
    if not out:
        raise ValueError(f"rand_perm_cam of {file} holds no permutation")
    return out


def _check_cell(cell: np.ndarray, camera: int, person: int) -> np.ndarray:
    what = f"rand_perm_cam of camera {camera}, person {person}"
    if cell.ndim != 2 or len(cell) != 10 or cell.dtype.kind not in "uif":
        raise ValueError(f"{what} is {cell.dtype} {list(cell.shape)}, expected integers [10, n]")
    if (bad := (np.sort(cell, axis=1) != np.arange(1, cell.shape[1] + 1)).any(axis=1)).any():
        raise ValueError(
            f"{what}: row {int(np.flatnonzero(bad)[0])} is not a permutation of "
            f"1 .. {cell.shape[1]}"
        )
    return cell.astype(np.int64)


def check_permutations(permutations: Permutations, people: Iterable[int]) -> None:
    """Checks that permutations give the galleries that SYSU-MM01's released file gives.

    Args:
      permutations: see `read_permutations`.
      people: the 96 test people (exp/test_id.txt).

    Raises:
      ValueError: naming the first gallery that differs.
    """
    people = sorted(people)
    for (draw, cameras, shots, trial), golden in GOLDEN.items():
        if draw != "official":
            continue
        names = [
            _image_name(c, p, n)
            for c, p in itertools.product(cameras, people)
            for n in _take_numbers(permutations, c, p, shots, trial)
        ]
        if (found := draw_digest(names)) != golden:
            raise ValueError(
                f"the official gallery of cameras {list(cameras)}, {shots} shots, trial {trial} "
                f"has digest {found} ({len(names)} images), expected {golden}: this is not "
                "SYSU-MM01's rand_perm_cam.mat, or these are not its 96 test people"
            )


def draw_digest(names: Iterable[str]) -> str:
    """Twelve hexadecimal digits of the SHA-1 of names, one a line."""
    return hashlib.sha1("\n".join(names).encode()).hexdigest()[:12]


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise ValueError(f"shots is {shots}, expected at least 1")


def _take_numbers(
    permutations: Permutations, camera: int, person: int, shots: int, trial: int
) -> list[int]:
    """The image numbers that a trial takes of one camera and person."""
    _check_shots(shots)
    rows = np.asarray(permutations.get((camera, person), ()))
    if not rows.size:
        return []
    if not 0 <= trial < len(rows):
        raise ValueError(f"the permutations have {len(rows)} trials, there is no trial {trial}")
    return rows[trial, :shots].tolist()


def _image_number(name: str) -> int:
    """The number that a name such as "cam1/0006/0005" or "0005.jpg" ends in."""
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0]
    if not (stem.isascii() and stem.isdigit()):
        raise ValueError(
            f"the image name {name!r} does not end in a number, expected names such as "
            "cam1/0006/0005: the official draw goes by it"
        )
    return int(stem)


def _image_name(camera: int, person: int, number: int) -> str:
    """The name that SYSU-MM01 gives to an image, without its ending."""
    return f"cam{camera}/{person:04d}/{number:04d}"
