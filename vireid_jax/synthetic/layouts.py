"""Writes rendered people to disk in the folder layouts of SYSU-MM01, RegDB and LLCM.

The trees stand in for the released data sets, which nobody may hand on: same folders, file
names and lists, smaller, with rendered people inside.
"""

import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import numpy as np

from vireid_jax.data.readers.common import check_number
from vireid_jax.synthetic.dataset import FIRST_PERSON, check_image_size, render_images

VISIBLE_CAMERAS, INFRARED_CAMERAS = (1, 2, 4, 5), (3, 6)
REGDB_TRIALS = 10
# LLCM's cameras, and ours that stand in for them: it has no near-infrared camera 3.
_LLCM = {
    "vis": (tuple(range(1, 10)), VISIBLE_CAMERAS),
    "nir": ((1, 2, 4, 5, 6, 7, 8, 9), INFRARED_CAMERAS),
}
_TREE = 4  # stream tag of the random draws, see identity._PERSON


class _Sizes(NamedTuple):
    """What `write_tree` was asked for; RegDB and LLCM have no validation people."""

    train_ids: int
    val_ids: int
    test_ids: int
    images: int
    image_size: tuple[int, int]
    seed: int

    def render(
        self, person: np.ndarray | int, camera: np.ndarray | int, index: np.ndarray,
        infrared: bool | None = None,
    ) -> np.ndarray:  # fmt: skip
        rows = np.broadcast_arrays(person, camera, index)
        return render_images(self.seed, *rows, image_size=self.image_size, infrared=infrared)


def _save(path: pathlib.Path, image: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)  # only JPEG has a quality


def _write_lines(path: pathlib.Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="ascii")


def _id_line(numbers: np.ndarray) -> list[str]:
    """SYSU-MM01's and LLCM's id files hold one line of comma-separated integers."""
    return [",".join(str(n) for n in sorted(int(n) for n in numbers))]


def _sysu(root: pathlib.Path, sizes: _Sizes) -> None:
    splits = {"train": sizes.train_ids, "val": sizes.val_ids, "test": sizes.test_ids}
    # Numbers are mixed over the splits, as in the release.
    rng = np.random.default_rng([sizes.seed, _TREE, 0])
    numbers = rng.permutation(np.arange(1, sum(splits.values()) + 1))
    _write_lines(root / "exp" / "available_id.txt", _id_line(numbers))
    for split, count in splits.items():
        chosen, numbers = numbers[:count], numbers[count:]
        _write_lines(root / "exp" / f"{split}_id.txt", _id_line(chosen))
        person, index = np.divmod(np.arange(count * sizes.images), sizes.images)
        for camera in sorted(VISIBLE_CAMERAS + INFRARED_CAMERAS):
            pixels = sizes.render(FIRST_PERSON[split] + person, camera, index + 1)
            for p, i, image in zip(person, index, pixels, strict=True):
                _save(root / f"cam{camera}" / f"{chosen[p]:04d}" / f"{i + 1:04d}.jpg", image)


def _regdb(root: pathlib.Path, sizes: _Sizes) -> None:
    total = sizes.train_ids + sizes.test_ids
    person, index = np.divmod(np.arange(total * sizes.images), sizes.images)
    names: dict[str, list[str]] = {}
    for folder, letter, infrared in (("Visible", "v", False), ("Thermal", "t", True)):
        # Pairs are aligned: the same shot of the same camera in both modalities.
        pixels = sizes.render(FIRST_PERSON["train"] + person, 4, index + 1, infrared)
        names[folder.lower()] = paths = []
        for n, (p, image) in enumerate(zip(person, pixels, strict=True), start=1):
            paths.append(f"{folder}/{p + 1}/person_{letter}_{n:05d}_{p + 1}.bmp")
            _save(root / paths[-1], image)
    rng = np.random.default_rng([sizes.seed, _TREE, 1])
    for trial in range(1, REGDB_TRIALS + 1):
        order = rng.permutation(total)
        halves = {"train": order[: sizes.train_ids], "test": order[sizes.train_ids :]}
        for part, chosen in halves.items():
            # Each half numbers its own people from 0: never compare the two.
            label = {p: n for n, p in enumerate(sorted(chosen))}
            for modality, paths in names.items():
                lines = [f"{paths[n]} {label[p]}" for n, p in enumerate(person) if p in label]
                _write_lines(root / "idx" / f"{part}_{modality}_{trial}.txt", lines)


def _llcm(root: pathlib.Path, sizes: _Sizes) -> None:
    rng = np.random.default_rng([sizes.seed, _TREE, 2])
    numbers = rng.permutation(np.arange(1, sizes.train_ids + sizes.test_ids + 1))
    cut = sizes.train_ids
    halves = {"train": np.sort(numbers[:cut]), "test": np.sort(numbers[cut:])}
    for suffix, (theirs, ours) in _LLCM.items():
        for part, chosen in halves.items():
            lines = []
            for label, number in enumerate(chosen):
                seen = np.sort(rng.choice(theirs, 4, replace=False))  # nobody passes every camera
                camera = np.repeat(seen, sizes.images)
                index = np.tile(np.arange(1, sizes.images + 1), len(seen))
                pixels = sizes.render(
                    FIRST_PERSON[part] + label, np.array(ours)[camera % len(ours)],
                    index + 100 * camera,
                )  # fmt: skip
                for c, i, image in zip(camera, index, pixels, strict=True):
                    frame = f"{number:04d}_c{c:02d}_s{200000 + 97 * c}_f{4000 + i}_{suffix}.jpg"
                    folder = suffix if part == "train" else f"test_{suffix}/cam{c}"
                    path = f"{folder}/{number:04d}/{frame}"
                    _save(root / path, image)
                    lines.append(f"{path} {label}")
            _write_lines(root / "idx" / f"{part}_{suffix}.txt", lines)
    _write_lines(root / "idx" / "test_id.txt", _id_line(halves["test"]))


LAYOUTS = {"sysu": _sysu, "regdb": _regdb, "llcm": _llcm}


def write_tree(
    root: str | os.PathLike[str],
    layout: str,
    *,
    train_ids: int = 12,
    val_ids: int | None = None,
    test_ids: int = 12,
    images: int = 10,
    image_size: tuple[int, int] = (128, 64),
    seed: int = 0,
) -> pathlib.Path:
    """Writes a rendered data set in the layout of a released one.

    sysu: cam1 .. cam6/<person %04d>/<index %04d>.jpg and exp/{train,val,test,available}_id.txt.
    regdb: Visible and Thermal/<person>/*.bmp, ten trials of random halves in idx/.
    llcm: vis, nir for training, test_vis, test_nir/cam<n>/<person %04d>, lists in idx/.

    Args:
      root: a folder to make; it may exist only if it is empty.
      layout: "sysu", "regdb" or "llcm".
      train_ids: identities to train on.
      val_ids: identities of SYSU-MM01's validation list, 4 by default; the others have none.
      test_ids: identities to test on; RegDB needs as many as for training.
      images: per identity and camera (sysu, llcm) or side (regdb).
      image_size: (height, width) in pixels.
      seed: of everything.

    Returns:
      The folder's path.

    Raises:
      ValueError: an option is out of range.
      FileExistsError: root exists and is not an empty folder. In either case, and if
        writing fails half-way, nothing is left behind.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown, expected one of {sorted(LAYOUTS)}")
    if layout != "sysu" and val_ids is not None:
        raise ValueError(f"val_ids is {val_ids}, but {layout} has no validation list; leave it out")
    val_ids = 4 if val_ids is None else val_ids
    check_image_size(image_size)
    check_number("seed", seed, 0, 2**63 - 1)
    check_number("train_ids", train_ids, 1, 4000)
    check_number("val_ids", val_ids, 0, 1000)
    check_number("test_ids", test_ids, 1, 3999)
    check_number("images", images, 1, 99 if layout == "llcm" else 9999)
    if layout == "regdb" and train_ids != test_ids:
        raise ValueError(
            f"train_ids is {train_ids} and test_ids {test_ids}, but RegDB's trials are halves of "
            "one set of people; give the same number for both"
        )
    target = pathlib.Path(root).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not an empty folder; give the name of a new folder, or remove "
            "it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # A temporary sibling becomes the folder only when all is written.
    part = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        part.chmod(0o755)
        LAYOUTS[layout](part, _Sizes(train_ids, val_ids, test_ids, images, image_size, seed))
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return target
