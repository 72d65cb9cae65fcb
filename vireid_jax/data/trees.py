"""From a tree on disk to a `Split`: scan, prepare once, decode once, divide.

  tree as released --readers--> Listing of paths --builders--> ArrayRecord files, encoded images
                                                 --cache----> one uint8 file, decoded images

Both stores are made on first use, are whole or absent, and know the fingerprint of the tree: one
that has changed is prepared again.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from vireid_jax.data import arrays
from vireid_jax.data.listing import Listing
from vireid_jax.types import Split

IMAGES = ("cached", "memory", "encoded")
UNREADABLE = ("refuse", "skip")
_EVERY = 5.0  # seconds between two lines of progress


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None,
    image_size: tuple[int, int],
    images: str = "cached",
    filter: str = "lanczos",
    strict: bool = True,
    unreadable: str = "refuse",
    prepared: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    check: Callable[[Split], None] | None = None,
    options: Mapping[str, Any],
) -> Split:
    """Loads a data set of `readers.READERS`.

    Args:
      name: a key of `readers.READERS`.
      root: the tree as released (or the CSV file of "folders"); None takes what is prepared.
      image_size: height, width in pixels.
      images: "cached" decodes once into a memory-mapped file, "memory" reads that file into
        memory, "encoded" leaves decoding to the loader, image by image.
      filter: of resizing: "lanczos" (AGW and its descendants) or "bilinear" (MPANet, IDKL).
      strict: refuse a tree that lacks anything of the release; otherwise say so and go on.
      unreadable: "refuse" images that cannot be decoded, or "skip" them; both name them.
      prepared: folder of prepared data sets; None for the default of `builders`, except that
        "folders" are then read where they are.
      cache: folder of decoded images; None for the default of `cache`.
      check: called with the split before any image is decoded; may raise.
      options: of the reader's `split`.

    Raises:
      ValueError: an option is out of range, or (`listing.TreeError`) the tree is not that set.
      FileNotFoundError: there is neither a tree nor a prepared set.
      OSError: no room on the disk; nothing half-written stays.
    """
    from vireid_jax.data import readers

    arrays.check_size(image_size)
    arrays.check_filter(filter)
    for what, value, known in (("images", images, IMAGES), ("unreadable", unreadable, UNREADABLE)):
        if value not in known:
            raise ValueError(f"data.{what} is {value!r}, expected one of {', '.join(known)}")
    reader = readers.get_reader(name)
    # What is of no use is told before an hour of decoding.
    reader.check_options(**options)
    listing = _listed(name, reader, root, prepared, strict=strict)
    early = reader.split(listing, **options)
    if check is not None:
        check(early)
    if root is not None:
        listing = _encoded(listing, prepared, images=images, unreadable=unreadable)
    if images != "encoded":
        from vireid_jax.data import cache as pixels

        size: dict[str, Any] = dict(image_size=image_size, filter=filter, unreadable=unreadable)
        listing = pixels.decode_once(
            listing, folder=cache, progress=progress(f"decoding {name}"), **size
        )
        if images == "memory":
            listing = pixels.in_memory(listing, **size)
    split = reader.split(listing, **options)
    return split._replace(notes=(*listing.problems, *split.notes))


def _listed(name: str, reader: Any, root: Any, prepared: Any, *, strict: bool) -> Listing:
    """The listing of the tree, of paths, or without a root that of the prepared set."""
    from vireid_jax.data import builders
    from vireid_jax.data.prepared import folder_of

    if root is None:
        # Several sets of one's own may have been prepared: none of them is meant by itself.
        own = name == "folders"
        found = None if own and prepared is None else builders.find(name, out=prepared)
        if found is None and own:
            what = (
                f"no such set is prepared in {folder_of(name, prepared)} and " if prepared else ""
            )
            raise FileNotFoundError(
                f"{what}data.root is not set; name your images with --config.data.root=DIR: "
                f"{reader.LAYOUT}; or, once prepared, their folder with --config.data.prepared=DIR"
            )
        if found is None:
            raise FileNotFoundError(
                f"{reader.TITLE} is not prepared in {folder_of(name, prepared)} and data.root is "
                "not set; name the folder of the data set as released with --config.data.root=DIR "
                f"(it is obtained at {reader.AGREEMENT}), or the folder it was prepared in with "
                "--config.data.prepared=DIR"
            )
        return found
    return reader.scan(root, strict=strict)


def _encoded(scanned: Listing, prepared: Any, *, images: str, unreadable: str) -> Listing:
    """The listing with encoded images (or, for "folders" read where they are, paths)."""
    from vireid_jax.data import builders, stored

    name = scanned.name
    if name == "folders" and prepared is None:
        if images != "encoded":
            return scanned  # decoding tells which of them cannot be decoded
        told = progress(f"looking at the images of {name}")
        return stored.readable(scanned, unreadable=unreadable, progress=told)
    found = builders.prepare(
        scanned, out=prepared, unreadable=unreadable, progress=progress(f"preparing {name}")
    )
    problems = tuple(dict.fromkeys((*scanned.problems, *found.problems)))
    return dataclasses.replace(found, checks=scanned.checks, problems=problems)


def progress(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that says on stderr, now and then, how far something is."""
    start = time.monotonic()
    said = [start]

    def report(done: int, total: int) -> None:
        now = time.monotonic()
        if now - said[0] >= _EVERY or (done == total and now - start > 1):
            said[0] = now
            print(f"{what}: {done:,} of {total:,}, {now - start:.0f} s", file=sys.stderr)

    return report
