"""SYSU-MM01's fixed permutations: the file that its `official` galleries are drawn from.

A trial takes, for each camera and within a camera for each person, the first 1 or 10 entries of
one row: numbers of images among those of that person and camera. The file, `rand_perm_cam.mat`,
comes with the data set's own evaluation code and is not distributed with us; `check_permutations`
tells whether a file is the released one.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

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

    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"no file {os.fspath(path)!r}, expected SYSU-MM01's rand_perm_cam.mat (it is in the "
            f"evaluation code at {WHERE}, not in the data set)"
        )
    try:
        content = scipy.io.loadmat(path, variable_names=["rand_perm_cam"])
    except Exception as error:  # loadmat raises whatever a broken header leads to
        raise ValueError(
            f"{os.fspath(path)!r} is not a MATLAB 5 file: {error}; expected rand_perm_cam.mat"
        ) from error
    if "rand_perm_cam" not in content:
        raise ValueError(
            f"{os.fspath(path)!r} has no variable rand_perm_cam; expected rand_perm_cam.mat"
        )
    cameras = content["rand_perm_cam"]
    if cameras.dtype != object or cameras.size != 6:
        raise ValueError(
            f"rand_perm_cam of {os.fspath(path)!r} is {cameras.dtype} {list(cameras.shape)}, "
            "expected a cell for each of six cameras"
        )
    out: dict[tuple[int, int], np.ndarray] = {}
    for camera, people in enumerate(cameras.ravel(), start=1):
        cells = people.ravel() if people.dtype == object else ()
        for person, table in enumerate(cells, start=1):
            if table.size:
                out[camera, person] = _check_table(table, camera, person)
    if not out:
        raise ValueError(f"rand_perm_cam of {os.fspath(path)!r} holds no permutation")
    return out


def _check_table(table: np.ndarray, camera: int, person: int) -> np.ndarray:
    what = f"rand_perm_cam of camera {camera}, person {person}"
    if table.ndim != 2 or len(table) != 10 or table.dtype.kind not in "uif":
        raise ValueError(f"{what} is {table.dtype} {list(table.shape)}, expected integers [10, n]")
    if (bad := (np.sort(table, axis=1) != np.arange(1, table.shape[1] + 1)).any(axis=1)).any():
        raise ValueError(
            f"{what}: row {int(np.flatnonzero(bad)[0])} is not a permutation of "
            f"1 .. {table.shape[1]}"
        )
    return table.astype(np.int64)


def official_names(
    permutations: Permutations,
    people: Iterable[int],
    *,
    cameras: Sequence[int],
    shots: int,
    trial: int,
) -> list[str]:
    """Names ("cam1/0006/0005") of the official gallery of a trial, without a look at images.

    Args:
      permutations: see `read_permutations`.
      people: the test people.
      cameras: cameras to draw from.
      shots: images of one person and camera.
      trial: 0 for the first.
    """
    people = sorted(people)
    return [
        image_name(c, p, n)
        for c in cameras
        for p in people
        for n in take_numbers(permutations, c, p, shots, trial)
    ]


def draw_digest(names: Iterable[str]) -> str:
    """Twelve hexadecimal digits of the SHA-1 of names, one a line."""
    return hashlib.sha1("\n".join(names).encode()).hexdigest()[:12]


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
        names = official_names(permutations, people, cameras=cameras, shots=shots, trial=trial)
        if (found := draw_digest(names)) != golden:
            raise ValueError(
                f"the official gallery of cameras {list(cameras)}, {shots} shots, trial {trial} "
                f"has digest {found} ({len(names)} images), expected {golden}: this is not "
                "SYSU-MM01's rand_perm_cam.mat, or these are not its 96 test people"
            )


def check_shots(shots: int) -> None:
    """Raises ValueError unless something is drawn."""
    if shots < 1:
        raise ValueError(f"shots is {shots}, expected at least 1")


def take_numbers(
    permutations: Permutations, camera: int, person: int, shots: int, trial: int
) -> list[int]:
    """The image numbers that a trial takes of one camera and person."""
    check_shots(shots)
    table = np.asarray(permutations.get((camera, person), np.zeros((0, 0), np.int64)))
    if not table.size:
        return []
    if not 0 <= trial < len(table):
        raise ValueError(f"the permutations have {len(table)} trials, there is no trial {trial}")
    return table[trial, :shots].tolist()


def image_number(name: str) -> int:
    """The number that a name such as "cam1/0006/0005" or "0005.jpg" ends in."""
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0]
    if not (stem.isascii() and stem.isdigit()):
        raise ValueError(
            f"the image name {name!r} does not end in a number, expected names such as "
            "cam1/0006/0005: the official draw goes by it"
        )
    return int(stem)


def image_name(camera: int, person: int, number: int) -> str:
    """The name that SYSU-MM01 gives to an image, without its ending."""
    return f"cam{camera}/{person:04d}/{number:04d}"
