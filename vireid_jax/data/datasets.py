"""Data sets by name: `load(**config.data)` gives a `Split`."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vireid_jax import synthetic
from vireid_jax.data import trees
from vireid_jax.types import MODALITIES, Records, Split

_MOST_CAMERAS = 12  # a summary line names no more
_MOST_NOTES = 30  # lines of a summary


class DataError(ValueError):
    """The data set cannot be had as asked for; nothing is wrong with the rest of the recipe."""


def load(
    *,
    name: str = "synthetic",
    root: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] | None = None,
    images: str | None = None,
    filter: str | None = None,
    strict: bool | None = None,
    unreadable: str | None = None,
    prepared: str | os.PathLike[str] | None = None,
    trial: int | None = None,
    test_share: float | None = None,
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
    check: Callable[[Split], None] | None = None,
) -> Split:
    """Loads the data set `name`; None leaves an option at that data set's own default.

    Args:
      name: a key of `DATASETS`.
      root: the folder of the data set as released; for "folders" that of your own images, or a
        CSV file. Not for "synthetic", which is rendered.
      image_size: height, width in pixels.
      images: "cached", "memory" or "encoded", see `trees.load`.
      filter: "lanczos" or "bilinear", see `trees.load`.
      strict: refuse a tree that lacks anything of the release, see `trees.load`.
      unreadable: "refuse" or "skip", see `trees.load`.
      prepared: folder of the prepared data sets, see `trees.load`.
      trial: which of the ten released halves ("regdb" only), 1 .. 10.
      test_share: share of the people to test on ("folders" only), 0 .. 1.
      seed: of the rendering ("synthetic") or of the choice of test people ("folders").
      train_ids: "synthetic" only, see `synthetic.load`, as are the others like it.
      train_visible: "synthetic" only.
      train_infrared: "synthetic" only.
      val_ids: people held out from training to choose the best checkpoint on.
      val_visible: "synthetic" only.
      val_infrared: "synthetic" only.
      test_ids: "synthetic" only.
      test_visible: "synthetic" only.
      test_infrared: "synthetic" only.
      cache: folder in which rendered or decoded images are kept.
      check: raises for a split that is of no use. Called with what is returned and, before that,
        with the split of paths of a data set on disk: the images take long to decode.

    Returns:
      A `types.Split`.

    Raises:
      DataError: (a ValueError) for an unknown name or an option that the data set does not have.
      ValueError: for an option out of range, or a tree that is not the data set.
      FileNotFoundError: there is no data set where it should be.
    """
    given = dict(locals())  # every argument, before there is anything else
    del given["check"]
    if given.pop("name") not in DATASETS:
        raise DataError(f"no data set {name!r}; expected one of {', '.join(sorted(DATASETS))}")
    builder = DATASETS[name]
    if image_size is not None:
        given["image_size"] = tuple(image_size)
    options = {key: value for key, value in given.items() if value is not None}
    known = list(inspect.signature(builder).parameters)
    if unknown := [key for key in options if key not in known]:
        named = ", ".join(key for key in known if key != "check")
        raise DataError(
            f"{', '.join(unknown)} would have no effect on the data set {name!r}, whose options "
            f"are {named}; leave it at None"
        )
    if check is not None and "check" in known:
        options["check"] = check
    split = builder(**options)
    if check is not None:
        check(split)
    return split


def _sysu(
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] = (288, 144),
    images: str = "cached",
    filter: str = "lanczos",
    strict: bool = True,
    unreadable: str = "refuse",
    prepared: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    val_ids: int = 0,
    check: Callable[[Split], None] | None = None,
) -> Split:
    options = locals()
    return _stored("sysu", options, "val_ids")


def _regdb(
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] = (288, 144),
    images: str = "cached",
    filter: str = "lanczos",
    strict: bool = True,
    unreadable: str = "refuse",
    prepared: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    trial: int = 1,
    val_ids: int = 0,
    check: Callable[[Split], None] | None = None,
) -> Split:
    options = locals()
    return _stored("regdb", options, "trial", "val_ids")


def _llcm(
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] = (288, 144),
    images: str = "cached",
    filter: str = "lanczos",
    strict: bool = True,
    unreadable: str = "refuse",
    prepared: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    val_ids: int = 0,
    check: Callable[[Split], None] | None = None,
) -> Split:
    options = locals()
    return _stored("llcm", options, "val_ids")


def _folders(
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] = (288, 144),
    images: str = "cached",
    filter: str = "lanczos",
    strict: bool = True,
    unreadable: str = "refuse",
    prepared: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    test_share: float = 0.25,
    seed: int = 0,
    val_ids: int = 0,
    check: Callable[[Split], None] | None = None,
) -> Split:
    options = locals()
    return _stored("folders", options, "test_share", "seed", "val_ids")


def _stored(name: str, options: Mapping[str, Any], *split_options: str) -> Split:
    """Loads from disk; `split_options` go to the reader's `split`, the others to `trees.load`."""
    reading = {key: value for key, value in options.items() if key not in split_options}
    return trees.load(name, **reading, options={key: options[key] for key in split_options})


DATASETS: dict[str, Callable[..., Split]] = {
    "synthetic": synthetic.load,
    "sysu": _sysu,
    "regdb": _regdb,
    "llcm": _llcm,
    "folders": _folders,
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
    notes = list(split.notes)
    if len(notes) > _MOST_NOTES:  # of a tree with many broken files; the division's come last
        more = len(notes) - _MOST_NOTES
        told = "python -m vireid_jax.data check NAME --root DIR --decode"
        notes[_MOST_NOTES - 5 : -5] = [f"and {more:,} more notes ({told} counts and names files)"]
    lines += [f"          {note}" for note in notes]
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
