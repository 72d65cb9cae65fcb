"""Preparing a data set: its images and columns as a tfds data set in ArrayRecord files.

A prepared set is a few large files in place of 45,000 small ones: it is copied, mounted and
read from object storage at full speed, and says whether the tree that it was made from is still
the same. Encoded JPEG and PNG images are stored byte for byte.

tensorflow_datasets is needed to prepare a set and TensorFlow never; to read one see `prepared`.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vireid_jax.data import prepared, stored
from vireid_jax.data.listing import Listing, TreeError
from vireid_jax.data.prepared import open as open
from vireid_jax.runtime import files

# Builders by data set, each with what its tfds page says.
DESCRIPTIONS = {
    "sysu": "SYSU-MM01: visible and infrared person images of six cameras (Wu et al., ICCV 2017).",
    "regdb": "RegDB: aligned visible and thermal person images (Nguyen et al., Sensors 2017).",
    "llcm": "LLCM: visible and near-infrared person images, low light (Zhang, Wang, CVPR 2023).",
    "synthetic": "Rendered people before six cameras, in the roles of SYSU-MM01's.",
    "folders": "A user's own visible and infrared person images.",
}
_CLASSES = {  # the class names that tfds shows
    "sysu": "Sysu",
    "regdb": "Regdb",
    "llcm": "Llcm",
    "synthetic": "Synthetic",
    "folders": "Folders",
}

_SHARD_BYTES = 64 * 2**20  # of images; one shard's images are in memory while it is written
_SHARD_ROWS = 4096  # where the bytes are not known beforehand
_CHUNK = 128  # images that are read and checked at once

_log = logging.getLogger(__name__)


def prepare(
    listing: Listing,
    *,
    out: str | os.PathLike[str] | None = None,
    unreadable: str = "refuse",
    shards: int | None = None,
    progress: stored.Progress | None = None,
) -> Listing:
    """Writes a data set in prepared form, unless it is there already.

    Every image is decoded once to see that it can be. JPEG and PNG files are stored byte for
    byte, other formats and pixels as PNG with the same pixels. A set that was prepared from
    other names, sizes or labels is replaced once the new one is complete; one that is up to
    date is returned as it is. A folder has one set of a name: give trees of your own that
    share a name an `out` each. An interrupted call leaves nothing that is taken for a data set,
    and the next call removes it. Processes of one machine wait for each other.

    Args:
      listing: of paths, encoded images or pixels; its name is one of `DESCRIPTIONS`.
      out: the folder of prepared sets; default $VIREID_DATA, else the user's cache folder. A
        URI (gs://bucket/folder) is passed on to tfds and array_record: prepare from one
        process only, and keep it uninterrupted; there are no locks and no free space to check.
      unreadable: "refuse" raises if any image cannot be decoded, "skip" leaves those out and
        names each in the listing's `problems`.
      shards: number of files; by default one for each 64 MiB of images.
      progress: called with (images done, images in all).

    Returns:
      The prepared set, as `open` gives it.

    Raises:
      UnreadableError: (a ValueError) naming the images that cannot be decoded.
      ValueError: for a name or option that does not exist, or an empty listing.
      OSError: ENOSPC if the disk is full, before or while writing.
    """
    stored.check_unreadable(unreadable)
    check_name(listing.name)
    count = len(listing.records)
    if not count:
        raise ValueError(f"the listing of {listing.name!r} has no images to prepare")
    size = stored.source_bytes(listing.records.images)
    if shards is None:
        shards = -(-size // _SHARD_BYTES) if size is not None else -(-count // _SHARD_ROWS)
        shards = min(max(shards, 1), count)
    if not 1 <= shards <= count:
        raise ValueError(f"shards is {shards}, expected 1 to {count}, the number of images")

    digest = stored.fingerprint(listing)
    target = prepared.folder_of(listing.name, out)

    def write(data_dir: Any) -> None:
        builder = _builder_class(listing.name)(
            data_dir=os.fspath(data_dir), file_format="array_record"
        )
        builder.write(listing, digest, shards, unreadable, progress)

    # Before any lock: a set that is ready may be where nothing can be written.
    if (ready := _up_to_date(target, listing, digest, unreadable)) is not None:
        return ready
    if files.is_remote(target):
        if target.exists():
            target.rmtree()
        write(target.parent.parent)
        return prepared.open(target)

    folder = target.parent
    hint = "name another folder (data.prepared, --out or $VIREID_DATA)"
    files.make_folder(folder, what=f"the prepared {listing.name}", hint=hint)
    hint += " on a larger disk"
    what = f"preparing {listing.name}"
    with files.locked(folder / f"{prepared.VERSION}.lock"):
        files.clear_temporaries(folder, prepared.VERSION)
        # Another process may have prepared it while this one waited; the reasons are told.
        if (ready := _up_to_date(target, listing, digest, unreadable, quiet=True)) is not None:
            return ready
        files.check_space(folder, size or 0, what=what, hint=hint)
        stage = folder / files.temporary_name(prepared.VERSION)
        try:
            with files.explain_full_disk(folder, what=what, hint=hint):
                write(stage)
            if target.exists():
                target.rename(stage / "old")
            (stage / listing.name / prepared.VERSION).rename(target)
            files.sync(folder)
        finally:
            files.remove(stage)
    return prepared.open(target)


def find(name: str, *, out: str | os.PathLike[str] | None = None) -> Listing | None:
    """The prepared set of a data set, or None if there is none; needs no root of the original.

    Args:
      name: a key of `DESCRIPTIONS`.
      out: as for `prepare`.

    Raises:
      ValueError: for a name that does not exist, or a prepared set that is damaged.
    """
    check_name(name)
    folder = prepared.folder_of(name, out)
    return prepared.open(folder) if (folder / "dataset_info.json").exists() else None


def is_current(ready: Listing, source: Listing) -> bool:
    """Whether a prepared set was made from what `source` lists now: names, sizes and labels.

    Raises:
      ValueError: `ready` is no prepared set.
    """
    if not isinstance(ready.records.images, prepared.Stored):
        raise ValueError(
            f"the images are a {type(ready.records.images).__name__}, expected those of a "
            "prepared set, from builders.find, open or prepare"
        )
    return ready.records.images.fingerprint == stored.fingerprint(source)


def check_name(name: str) -> None:
    """Raises ValueError unless there is a builder for the data set `name`."""
    if name not in DESCRIPTIONS:
        raise ValueError(f"no builder for {name!r}; expected one of {', '.join(DESCRIPTIONS)}")


def _up_to_date(
    folder: Any, listing: Listing, digest: str, unreadable: str, *, quiet: bool = False
) -> Listing | None:
    """The set in `folder` if it is what `prepare` would write again; else logs why not."""
    level = logging.DEBUG if quiet else logging.WARNING
    try:
        ready = prepared.open(folder)
    except FileNotFoundError:
        return None
    except TreeError as error:
        _log.log(level, "%s; preparing it anew", error)
        return None
    if ready.records.images.fingerprint != digest:
        _log.log(
            level,
            "%s holds other images or labels than are listed now; preparing %s anew",
            folder,
            listing.name,
        )
        return None
    left_out = prepared.read_metadata(folder)["unreadable"]
    if left_out and unreadable == "refuse":
        raise stored.UnreadableError(listing.name, left_out, len(listing.records))
    return ready


# --- tfds -----------------------------------------------------------------------------------


@functools.cache
def _builder_class(name: str) -> Any:
    """The tfds builder of a data set."""
    # tfds and what it brings take half a second to import, and readers do without.
    base = _listing_builder()
    described = {"__doc__": DESCRIPTIONS[name], "name": name, "__module__": __name__}
    return type(base)(_CLASSES[name], (base,), described, skip_registration=True)


@functools.cache
def _listing_builder() -> Any:
    """The base of all builders: a tfds builder that writes a Listing."""
    import tensorflow_datasets as tfds

    class ListingBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Writes the images of a Listing, in its order, in shards of equal numbers of images.

        A shard-based builder streams: tfds's others would shuffle the images, or sort them in
        memory.
        """

        VERSION = tfds.core.Version(prepared.VERSION)

        def write(
            self,
            listing: Listing,
            digest: str,
            shards: int,
            unreadable: str,
            progress: stored.Progress | None,
        ) -> None:
            """Writes the data set to the folder that the builder was made for."""
            self._listing, self._digest, self._unreadable = listing, digest, unreadable
            self._rows = np.array_split(np.arange(len(listing.records)), shards)
            self._progress = progress
            self._kept: list[np.ndarray] = []
            self._problems: list[str] = []
            self.download_and_prepare(file_format="array_record")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=type(self).__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "name": tfds.features.Text(),
                        "person": np.int32,
                        "camera": np.int32,
                        "modality": np.int8,
                        "part": tfds.features.Text(),
                    }
                ),
                metadata=tfds.core.MetadataDict(),
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, Sequence[Callable]]:
            del dl_manager  # nothing is downloaded
            return {prepared.SPLIT: [functools.partial(self._examples, r) for r in self._rows]}

        def _examples(self, shard: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            total = len(self._listing.records)
            for first in range(0, len(shard), _CHUNK):
                chunk = shard[first : first + _CHUNK]
                part = self._listing.take(chunk)
                images, rows, problems = stored.encoded(part)
                self._problems += problems
                # Refused, it goes on only to name every image that is wrong.
                if not (self._problems and self._unreadable == "refuse"):
                    self._kept.append(chunk[rows])
                    for image, row in zip(images, rows.tolist(), strict=True):
                        yield int(chunk[row]), _example(part, row, image)
                if self._progress is not None:
                    self._progress(int(chunk[-1]) + 1, total)
            nothing = not any(map(len, self._kept))
            last = int(shard[-1]) + 1 == total
            if last and self._problems and (self._unreadable == "refuse" or nothing):
                raise stored.UnreadableError(self._listing.name, self._problems, total)

        def _download_and_prepare(self, **options: Any) -> None:
            # tfds gives the folder its name when all is written; so our files belong here.
            super()._download_and_prepare(**options)
            self.info.metadata.update(
                prepared.metadata_of(self._listing, self._digest, self._problems)
            )
            folder = prepared.path_of(self.data_dir)
            prepared.write_columns(self._listing.take(np.concatenate(self._kept)), folder)
            if not files.is_remote(folder):
                for path in folder.iterdir():
                    files.sync(path)

        # tfds would print to standard output, whoever calls.
        def _log_download_bytes(self) -> None:
            _log.info("preparing %s in %s", self.name, self.data_dir)

        def _log_download_done(self) -> None:
            _log.info("prepared %s", self.name)

    return ListingBuilder


def _example(listing: Listing, row: int, image: bytes) -> dict[str, Any]:
    """One record."""
    records = listing.records
    return {
        "image": image,
        "name": records.name[row],
        "person": int(records.person[row]),
        "camera": int(records.camera[row]),
        "modality": int(records.modality[row]),
        "part": str(listing.part[row]),
    }
