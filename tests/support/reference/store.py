"""Golden outputs: how they are kept, found and compared. NumPy only.

Arrays of more than `WHOLE` elements are kept as a digest of a few fixed random projections
and samples: an error of relative size e in the array moves a projection by about e times the
array's norm, so a digest tests the relative error in the Euclidean norm.
"""

import functools
import math
import pathlib
import zipfile

import numpy as np

from .case import Arrays
from .inputs import case_inputs

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
WHOLE = 64
PROJECTIONS, SAMPLES = 6, 6


def digest(x: np.ndarray) -> np.ndarray:
    """float64 [1 + PROJECTIONS + SAMPLES]: norm, signed sums, entries."""
    flat = np.asarray(x, np.float64).ravel()
    r = np.random.default_rng([flat.size])
    signs = r.choice([-1.0, 1.0], (PROJECTIONS, flat.size))
    chosen = r.choice(flat.size, SAMPLES, replace=False)
    return np.concatenate([[np.linalg.norm(flat)], signs @ flat, flat[chosen]])


def pack(arrays: Arrays) -> Arrays:
    """The arrays with every large one replaced by its digest, under "digest:NAME"."""
    return {
        (f"digest:{k}" if v.size > WHOLE else k): digest(v) if v.size > WHOLE else v
        for k, v in arrays.items()
    }


def fingerprint(name: str) -> np.ndarray:
    """Sums over the inputs of a case, to notice a NumPy that draws other numbers."""
    return np.array([np.abs(np.asarray(x, np.float64)).sum() for x in case_inputs(name).values()])


def save(name: str, arrays: Arrays) -> pathlib.Path:
    """Writes the golden file of a case: one long vector, and the names and shapes of its parts."""
    packed = pack(arrays)
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(
        path,
        fingerprint=fingerprint(name),
        names=np.array(list(packed)),
        shapes=np.array([",".join(map(str, v.shape)) for v in packed.values()]),
        values=np.concatenate([np.ravel(v) for v in packed.values()]),
    )
    return path


@functools.cache
def load(name: str) -> Arrays:
    """The stored outputs of a case, packed.

    Raises:
      FileNotFoundError: there is no such file, or it cannot be read.
      ValueError: this NumPy draws other inputs than the file was made with.
    """
    path = FOLDER / f"{name}.npz"
    how = "make it with `python -m tests.support.reference.make_golden` (needs PyTorch)"
    try:
        with np.load(path) as file:
            parts = dict(file)
    except (OSError, zipfile.BadZipFile) as e:
        raise FileNotFoundError(f"no readable golden outputs at {path}; {how}") from e
    made_with, now = parts["fingerprint"], fingerprint(name)
    if made_with.shape != now.shape or not np.allclose(made_with, now, rtol=1e-9):
        raise ValueError(f"{path.name} was made from other inputs than {name} has now; {how}")
    shapes = [tuple(map(int, s.split(","))) if s else () for s in parts["shapes"].tolist()]
    pieces = np.split(parts["values"], np.cumsum([math.prod(s) for s in shapes])[:-1])
    return {
        k: v.reshape(s) for k, v, s in zip(parts["names"].tolist(), pieces, shapes, strict=True)
    }


def compare(
    actual: Arrays, expected: Arrays, *, rtol: float, row: str = "", faint: tuple[str, ...] = ()
) -> None:
    """Raises AssertionError unless both hold the same names, shapes and values.

    An array passes when its largest error is at most rtol times its largest entry (its norm
    where a digest is compared). `expected` may be packed. `row` names the case in messages. Names
    that end in one of `faint` are gradients of factors that a normalization takes out again, but
    for its epsilon: what is left of larger numbers, so the largest gradient is their scale.
    """
    packed = {f"digest:{k}" if f"digest:{k}" in expected else k: v for k, v in actual.items()}
    assert set(packed) == set(expected), f"{row}: only one side has {set(packed) ^ set(expected)}"
    wrong = []
    largest = max(
        (np.abs(v).max(initial=0) for k, v in expected.items() if "grad/" in k), default=0
    )
    for k, want in expected.items():
        got = digest(packed[k]) if k.startswith("digest:") else np.asarray(packed[k])
        assert got.shape == want.shape, f"{row}: {k} is {got.shape}, not {want.shape}"
        scale = largest if faint and k.endswith(faint) else np.abs(want).max(initial=0.0)
        error = np.abs(got - want).max(initial=0.0)
        if not error <= rtol * scale:
            wrong.append(f"{k}: error {error:.3g} where the largest entry is {scale:.3g}")
    assert not wrong, f"{row}: beyond rtol {rtol}: " + "; ".join(wrong)


def stored_names() -> list[str]:
    """The cases that have a golden file, whether or not they still exist."""
    return sorted(path.stem for path in FOLDER.glob("*.npz"))
