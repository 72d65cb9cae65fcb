"""Data sets by name: `load(**config.data)` gives a `Split`.

"synthetic" is rendered. The others are read from disk, each by its reader:

  tree as released --reader.scan--> Listing of paths --cache--> one uint8 file, memory-mapped
                                                     --reader.split--> Split

The cache is made on first use, is whole or absent, and knows the content of the tree: a tree that
has changed is decoded again. Without a tree, what `python -m vireid_jax.data prepare` has
made of one is read instead.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vireid_jax import synthetic
from vireid_jax.data import arrays, readers, survey, thermal
from vireid_jax.data import cache as pixels
from vireid_jax.data.readers.common import Listing
from vireid_jax.options import hints_of
from vireid_jax.types import MODALITIES, Records, Split, Stopped

IMAGES = ("cached", "memory", "encoded")

_MOST_CAMERAS = 12  # a summary line names no more
_MOST_NOTES = 30  # lines of a summary
_EVERY = 5.0  # seconds between two lines of progress

Check = Callable[[Split], None]


class DataError(ValueError):
    """The data set cannot be had as asked for; nothing is wrong with the rest of the recipe."""


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return ("synthetic", *readers.READERS)


def options_of(name: str) -> dict[str, Any]:
    """The options that `load` takes for a data set, with its defaults.

    For "synthetic" the parameters of `synthetic.load`; for others those of `_from_disk` and
    what the reader's `split` adds.
    """
    if name == "synthetic":
        return dict(synthetic.load.__kwdefaults__ or {})
    return {**_common(), **readers.get_reader(name).split.__kwdefaults__}


def types_of(name: str) -> dict[str, Any]:
    """{option: its type} of a data set, by the signatures of what takes them."""
    takes = [synthetic.load] if name == "synthetic" else [_from_disk]
    if name != "synthetic":
        takes.append(readers.get_reader(name).split)
    hints = {key: kind for function in takes for key, kind in hints_of(function).items()}
    return {"name": str, **{key: hints[key] for key in options_of(name)}}


def all_options() -> set[str]:
    """The options of all data sets together: one at None has no effect on another set."""
    return {key for name in names() for key in options_of(name)}


def _common() -> dict[str, Any]:
    """The options of all data sets on disk."""
    return dict(_from_disk.__kwdefaults__ or {})


def load(
    *,
    name: str = "synthetic",
    check: Check | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Split:
    """Loads the data set `name`.

    Args:
      name: one of `names()`.
      check: raises for a split that is of no use. Called with what is returned and, before that,
        with the split of paths of a data set on disk: the images take long to decode.
      should_stop: polled now and then while images are decoded or rendered.
      **options: those of `options_of(name)`; None leaves one at the data set's own default.

    Returns:
      A `types.Split`.

    Raises:
      DataError: (a ValueError) for an unknown name or an option that the data set does not have.
      ValueError: for an option out of range, or a tree that is not the data set.
      FileNotFoundError: there is no data set where it should be.
      Stopped: `should_stop` said so; nothing half-written stays.
    """
    if name not in names():
        raise DataError(f"no data set {name!r}; expected one of {', '.join(sorted(names()))}")
    known = options_of(name)
    elsewhere = all_options()
    given = {k: v for k, v in options.items() if v is not None or k not in elsewhere}
    if unknown := [key for key in given if key not in known]:
        raise DataError(
            f"{', '.join(unknown)} would have no effect on the data set {name!r}, whose options "
            f"are {', '.join(known)}; leave it at None"
        )
    if "image_size" in given:
        given["image_size"] = tuple(given["image_size"])
    if name == "synthetic":
        split = synthetic.load(check, progress("rendering the data set", should_stop), **given)
    else:
        own = {key: given.pop(key) for key in set(given) - set(_common())}
        split = _from_disk(name, own, check, should_stop, **given)
    if check is not None:
        check(split)
    return split


def _from_disk(
    name: str,
    own: Mapping[str, Any],
    check: Check | None,
    should_stop: Callable[[], bool],
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] = (288, 144),
    images: str = "cached",
    filter: str = "lanczos",
    thermal_range: str | None = None,
    strict: bool = True,
    unreadable: str = "refuse",
    prepared: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Split:
    """Loads a data set of `readers.READERS`; see `load`.

    Args:
      name, check, should_stop: as `load` takes them.
      own: options of the reader's `split`.
      root: the tree as released (or the CSV file of "folders"); None takes what is prepared.
      image_size: height, width in pixels.
      images: "cached" decodes once into a memory-mapped file, "memory" reads that file into
        memory, "encoded" leaves decoding to the loader, image by image.
      filter: of resizing: "lanczos" (AGW and its descendants) or "bilinear" (MPANet, IDKL).
      thermal_range: of 16-bit gray images, the values from black to white: "full" (0 to 65535),
        "image" (each image's own least and largest) or "LOW:HIGH"; None for "full", and for what
        a prepared set was prepared with.
      strict: refuse a tree, or what was prepared of one, that lacks anything of the release;
        otherwise say so and go on.
      unreadable: "refuse" images that cannot be decoded, or "skip" them; both name them.
      prepared: folder of prepared data sets; None for the default of `prepared`.
      cache: folder of decoded images; None for the default of `cache`.
    """
    arrays.check_size(image_size)
    arrays.check_filter(filter)
    if thermal_range is not None:
        thermal.check_range(thermal_range)
    choices = {"images": (images, IMAGES), "unreadable": (unreadable, pixels.UNREADABLE)}
    for what, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"data.{what} is {value!r}, expected one of {', '.join(known)}")
    if root is not None and prepared is not None:
        raise ValueError(
            f"data.root is {os.fspath(root)} and data.prepared is {os.fspath(prepared)}, expected "
            "one of them, the other None: a tree is read where it is, a prepared set needs none; "
            f"prepare one with: python -m vireid_jax.data prepare {name} --root DIR --out DIR"
        )
    # All that can be refused is refused before an hour of decoding.
    reader = readers.get_reader(name)
    reader.check_options(**own)
    if root is None:
        listing = _prepared(
            name, prepared, strict=strict, unreadable=unreadable, thermal_range=thermal_range
        )
    else:
        listing = thermal.ranged(reader.scan(root, strict=strict), thermal_range or thermal.FULL)
    early = reader.split(listing, **own)
    if check is not None:
        check(early)
    if root is not None:
        notes = (*listing.problems, *survey.survey(listing))
        listing = dataclasses.replace(listing, problems=notes)
    if images != "encoded":
        listing = pixels.decode_once(
            listing,
            image_size=image_size,
            filter=filter,
            folder=cache,
            unreadable=unreadable,
            progress=progress(f"decoding {name}", should_stop),
        )
        if images == "memory":
            listing = pixels.in_memory(listing)
    elif root is not None:
        looking = progress(f"looking at the images of {name}", should_stop)
        left_out = pixels.look_at(listing, progress=looking)
        listing = pixels.without(listing, left_out, unreadable)
    split = reader.split(listing, **own)
    return split._replace(notes=(*listing.problems, *split.notes))


def _prepared(
    name: str,
    folder: str | os.PathLike[str] | None,
    *,
    strict: bool,
    unreadable: str,
    thermal_range: str | None,
) -> Listing:
    """The prepared set of a data set, if it is as whole as the options ask for."""
    from vireid_jax.data import prepared

    reader, where = readers.get_reader(name), prepared.folder_of(name, folder)
    # Several sets of one's own may have been prepared: none of them is meant by itself.
    own = name == "folders"
    found = None if own and folder is None else prepared.find(name, out=folder)
    if found is not None:
        prepared.check_accepted(found, strict=strict, unreadable=unreadable)
        was = found.records.images.thermal_range
        if thermal_range not in (None, was):
            raise ValueError(
                f"data.thermal_range is {thermal_range}, but the images in {where} were prepared "
                f"with {was} and have 8 bits now; leave the option out, or prepare them again "
                f"with --thermal-range {thermal_range}"
            )
        return found
    if own:
        what = f"no such set is prepared in {where} and " if folder else ""
        raise FileNotFoundError(
            f"{what}data.root is not set; name your images with --config.data.root=DIR: "
            f"{reader.LAYOUT}; or, once prepared, their folder with --config.data.prepared=DIR"
        )
    raise FileNotFoundError(
        f"{reader.TITLE} is not prepared in {where} and data.root is not set; name the folder of "
        "the data set as released with --config.data.root=DIR (it is obtained at "
        f"{reader.AGREEMENT}), or the folder it was prepared in with --config.data.prepared=DIR"
    )


def progress(
    what: str, should_stop: Callable[[], bool] = lambda: False
) -> Callable[[int, int], None]:
    """A callback (done, total) that says on stderr, now and then, how far something is.

    It raises `Stopped` when `should_stop` says so.
    """
    start = time.monotonic()
    said = [start]

    def report(done: int, total: int) -> None:
        if should_stop():
            raise Stopped
        now = time.monotonic()
        if now - said[0] >= _EVERY or (done == total and now - start > 1):
            said[0] = now
            print(f"{what}: {done:,} of {total:,}, {now - start:.0f} s", file=sys.stderr)

    return report


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
        command = "python -m vireid_jax.data check NAME --root DIR --decode"
        more = f"and {len(notes) - _MOST_NOTES:,} more notes ({command} counts and names files)"
        notes[_MOST_NOTES - 5 : -5] = [more]
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
