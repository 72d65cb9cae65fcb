"""Data sets by name: `load(**config.data)` gives a `Split`."""

import inspect
import os
from collections.abc import Callable

import numpy as np

from vireid_jax import __version__
from vireid_jax.data import synthetic
from vireid_jax.types import MODALITIES, Records, Split

_MOST_CAMERAS = 12  # a summary line names no more


class DataError(ValueError):
    """The data set cannot be had as asked for; nothing is wrong with the rest of the recipe."""


def load(
    *,
    name: str = "synthetic",
    root: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] | None = None,
    trial: int | None = None,
    seed: int | None = None,
    train_ids: int | None = None,
    train_visible: int | None = None,
    train_infrared: int | None = None,
    val_ids: int | None = None,
    val_visible: int | None = None,
    val_infrared: int | None = None,
    test_ids: int | None = None,
    test_visible: int | None = None,
    test_infrared: int | None = None,
    cache: bool | str | os.PathLike[str] | None = None,
) -> Split:
    """Loads the data set `name`; None leaves an option at that data set's own default.

    Args:
      name: a key of `DATASETS`.
      root: the folder of the data set as released (not for "synthetic", which is rendered).
      image_size: height, width in pixels.
      trial: which of the ten released halves ("regdb" only), 1 .. 10.
      seed: of the rendering, and so on: "synthetic" only, see `synthetic.load`.
      train_ids: "synthetic" only.
      train_visible: "synthetic" only.
      train_infrared: "synthetic" only.
      val_ids: "synthetic" only.
      val_visible: "synthetic" only.
      val_infrared: "synthetic" only.
      test_ids: "synthetic" only.
      test_visible: "synthetic" only.
      test_infrared: "synthetic" only.
      cache: where rendered images are kept; "synthetic" only.

    Returns:
      A `types.Split`.

    Raises:
      DataError: (a ValueError) for an unknown name, an option that the data set does not
        have, or a data set that this version cannot load.
      ValueError: for an option out of range.
    """
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; expected one of {', '.join(sorted(DATASETS))}")
    builder = DATASETS[name]
    given = {
        "root": root,
        "image_size": None if image_size is None else tuple(image_size),
        "trial": trial,
        "seed": seed,
        "train_ids": train_ids,
        "train_visible": train_visible,
        "train_infrared": train_infrared,
        "val_ids": val_ids,
        "val_visible": val_visible,
        "val_infrared": val_infrared,
        "test_ids": test_ids,
        "test_visible": test_visible,
        "test_infrared": test_infrared,
        "cache": cache,
    }
    options = {key: value for key, value in given.items() if value is not None}
    known = list(inspect.signature(builder).parameters)
    if unknown := [key for key in options if key not in known]:
        raise DataError(
            f"{', '.join(unknown)} would have no effect on the data set {name!r}, whose options "
            f"are {', '.join(known)}; leave it at None"
        )
    return builder(**options)


def _sysu(*, root: object = None, image_size: object = None) -> Split:
    raise _later("SYSU-MM01")


def _regdb(*, root: object = None, image_size: object = None, trial: object = None) -> Split:
    raise _later("RegDB")


def _llcm(*, root: object = None, image_size: object = None) -> Split:
    raise _later("LLCM")


def _later(title: str) -> DataError:
    return DataError(
        f"vireid_jax {__version__} has no loader for {title} yet; available: synthetic. Your "
        "recipe is fine: it waits for the loader only, and the same method trains on the "
        "embedded data when the config is named without a data set (--config configs/NAME.py)"
    )


DATASETS: dict[str, Callable[..., Split]] = {
    "synthetic": synthetic.load,
    "sysu": _sysu,
    "regdb": _regdb,
    "llcm": _llcm,
}


def records_summary(split: Split) -> str:
    """A short table for people: identities and images of each part, modality and camera."""
    parts = {"train": [split.train]}
    for key, retrieval in (("val", split.val), ("test", split.test)):
        if retrieval is not None:
            parts[key] = [retrieval.query, retrieval.gallery]
    lines = [
        f"data      {split.name}",
        f"          {'part':<7}{'modality':<10}{'identities':>10}{'images':>9}   by camera",
    ]
    for part, records in parts.items():
        for modality, name in enumerate(MODALITIES):
            person, camera = _of(records, modality)
            cells = f"{len(np.unique(person)):>10,}{len(person):>9,}   {_cameras(camera)}"
            lines.append(f"          {part:<7}{name:<10}{cells}".rstrip())
            part = ""
    seen = [np.unique(_of([split.train], m)[0]) for m in range(len(MODALITIES))]
    lonely = np.setxor1d(seen[0], seen[1])
    if len(lonely):
        first = ", ".join(map(str, lonely[:5])) + (", ..." if len(lonely) > 5 else "")
        lines.append(
            f"          left out of training, for lack of a modality: {len(lonely)} ({first})"
        )
    return "\n".join(lines)


def _of(records: list[Records], modality: int) -> tuple[np.ndarray, np.ndarray]:
    """Person and camera, int32 [n], of the images of one modality."""
    mine = [r.modality == modality for r in records]
    person = np.concatenate([r.person[m] for r, m in zip(records, mine, strict=True)])
    camera = np.concatenate([r.camera[m] for r, m in zip(records, mine, strict=True)])
    return person, camera


def _cameras(camera: np.ndarray) -> str:
    numbers, counts = np.unique(camera, return_counts=True)
    if len(numbers) > _MOST_CAMERAS:
        return f"{len(numbers)} cameras, {counts.min():,} to {counts.max():,} images each"
    return "  ".join(f"{n}: {c:,}" for n, c in zip(numbers, counts, strict=True))
