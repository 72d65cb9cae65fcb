"""Prepared data sets: images and columns in a few ArrayRecord files, as a tfds data set.

Made only by the command `python -m vireid_jax.data prepare`, used where no tree is given. A few
large files in place of 45,000 small ones are copied and mounted at full speed, and say whether the
tree that they were made from is still the same. Encoded JPEG and PNG images are stored byte for
byte. A prepared set is a folder as tensorflow_datasets (tfds) writes it, `NAME/VERSION/`, plus one
file of our own: `listing.npz` has the columns of the listing (name, person, camera, modality,
part), so that opening a set reads no image. `tfds.builder_from_directory(folder)` reads it too.

Preparing needs tensorflow_datasets, reading neither that nor TensorFlow.
"""

import contextlib
import functools
import io
import json
import logging
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data import arrays, cache, decoding
from vireid_jax.data.readers import get_reader
from vireid_jax.data.readers.common import Check, Listing, TreeError
from vireid_jax.runtime import files
from vireid_jax.types import Records

VERSION = "1.0.0"  # of what is stored; raise it when that changes
SPLIT = "images"  # one tfds split; `part` says what an image is for
COLUMNS = "listing.npz"

_SHARD_BYTES = 64 * 2**20  # of images; one shard's images are in memory while it is written
_CHUNK = 128  # images that are read and checked at once
_VERBATIM = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG

_log = logging.getLogger(__name__)


def default_folder() -> str:
    """Where prepared sets are kept: $VIREID_DATA, else `data` in the user's cache folder."""
    return files.user_folder("VIREID_DATA", "data")


def folder_of(name: str, out: str | os.PathLike[str] | None) -> pathlib.Path:
    """The folder of a prepared set: out/NAME/VERSION.

    Raises:
      ValueError: out is an address.
    """
    where = default_folder() if out is None else os.fspath(out)
    if files.is_remote(where):
        raise ValueError(
            f"{where} is an address, expected a folder for prepared data sets: mount the bucket "
            "(gcsfuse), or copy what is prepared to and from it"
        )
    return pathlib.Path(where).expanduser() / name / VERSION


def _write_columns(listing: Listing, folder: pathlib.Path) -> None:
    """Writes `listing.npz`."""
    records = listing.records
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        name=np.array(list(records.name), np.str_),
        person=np.asarray(records.person, np.int32),
        camera=np.asarray(records.camera, np.int32),
        modality=np.asarray(records.modality, np.int8),
        part=np.asarray(listing.part, np.str_),
    )
    (folder / COLUMNS).write_bytes(buffer.getvalue())


def open(folder: str | os.PathLike[str]) -> Listing:
    """The prepared set in `folder`, which is .../NAME/VERSION.

    Reads a few small files and no image. Works without TensorFlow and tfds.

    Args:
      folder: where `prepare` has put it.

    Returns:
      A Listing whose images are `Stored`.

    Raises:
      FileNotFoundError: there is no prepared set in folder.
      TreeError: there is one, but it is damaged or not ours.
    """
    path = pathlib.Path(folder)
    if not (path / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"no prepared data set in {path} (dataset_info.json is missing); expected "
            f"OUT/NAME/{VERSION} as python -m vireid_jax.data prepare writes it"
        )
    with _damage(path):
        info = json.loads((path / "dataset_info.json").read_text())
        metadata = read_metadata(path)
        with np.load(io.BytesIO((path / COLUMNS).read_bytes()), allow_pickle=False) as stored:
            columns = {key: stored[key] for key in stored.files}
        paths, lengths = _shards(path, info)
        count = len(columns["name"])
        for key in ("person", "camera", "modality", "part"):
            if columns[key].shape != (count,):
                raise ValueError(f"{COLUMNS} has {columns[key].shape} of {key} for {count} names")
        if sum(lengths) != count:
            raise ValueError(f"{COLUMNS} lists {count} images, the shards hold {sum(lengths)}")
        images = Stored(
            _Shards(paths, lengths), np.arange(count), str(path), metadata["fingerprint"]
        )
        records = Records(
            images,
            columns["person"],
            columns["camera"],
            columns["modality"],
            columns["name"].tolist(),
        )
        return Listing(
            name=info["name"],
            records=records,
            part=columns["part"],
            checks=tuple(Check(*check) for check in metadata["checks"]),
            problems=(*metadata["problems"], *metadata["unreadable"]),
            persons=tuple(metadata["persons"]),
        )


def read_metadata(folder: Any) -> dict[str, Any]:
    """What was kept of the listing beside its columns."""
    with _damage(folder):
        return json.loads((folder / "metadata.json").read_text())


def _shards(path: Any, info: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Paths of the shards, and how many records were written to each."""
    split = {split["name"]: split for split in info["splits"]}[SPLIT]
    lengths = [int(n) for n in split["shardLengths"]]
    total = len(lengths)
    files = [
        path / f"{info['name']}-{SPLIT}.array_record-{n:05d}-of-{total:05d}" for n in range(total)
    ]
    return [str(f) for f in files], lengths


@contextlib.contextmanager
def _damage(path: Any) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise TreeError(
            f"the prepared data set in {path} is damaged or not from vireid_jax: {what}; "
            "remove the folder and prepare the data set again"
        ) from error


class Stored(Sequence[bytes]):
    """Encoded images in ArrayRecord files, read one by one when asked for.

    Indexing is safe from several threads. `take` reads nothing.
    """

    def __init__(self, source: Any, rows: np.ndarray, folder: str, fingerprint: str) -> None:
        self._source = source
        self._rows = rows
        self.folder = folder  # of the prepared set
        self.fingerprint = fingerprint  # of the listing that was prepared

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice | list | np.ndarray):
            raise TypeError(
                f"stored images are read one by one, got the index {index!r}; use take(rows)"
            )
        return image_of(self._source[int(self._rows[index])])

    def __iter__(self) -> Iterator[bytes]:
        return (self[n] for n in range(len(self)))

    def take(self, rows: np.ndarray) -> "Stored":
        """The images at `rows` (int [n]), in that order."""
        return Stored(self._source, self._rows[rows], self.folder, self.fingerprint)


class _Shards:
    """The records of some ArrayRecord files, by number.

    All files are opened at once: a set that is replaced later stays readable for those who
    have it open, and never gives them the images of another.
    """

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]) -> None:
        self._ends = np.cumsum(lengths)
        self._paths = paths
        self._readers = [_open_shard(*shard) for shard in zip(paths, lengths, strict=True)]

    def __getitem__(self, row: int) -> bytes:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        try:
            return self._readers[shard].read([row - before])[0]
        except RuntimeError as error:  # the only one that array_record knows
            raise TreeError(
                f"record {row - before} of {self._paths[shard]} cannot be read: {error}; remove "
                "the prepared data set and prepare it again"
            ) from error


def _open_shard(path: str, length: int) -> Any:
    """A reader of the records of one file; ValueError if it does not have `length` of them."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs array_record ({error}): pip install 'vireid_jax[data]'"
        ) from error
    # Rows are drawn at random: reading ahead would read what nobody asked for.
    reader = array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=32768
    )
    if (found := reader.num_records()) != length:  # 0 for what is no such file at all
        raise ValueError(f"{path} has {found} records, {length} were written")
    return reader


def image_of(record: bytes) -> bytes:
    """The bytes of the feature "image" of a serialized tf.train.Example.

    Example is {1: Features}, Features {1: entries}, an entry {1: name, 2: Feature}, a Feature
    of bytes {1: BytesList}, a BytesList {1: values}, each field preceded by its number and length
    (tensorflow/core/example/{example,feature}.proto); walking it takes neither TensorFlow nor
    a protocol buffer library.

    Raises:
      ValueError: if there is none.
    """
    for features in _fields(memoryview(record), 1):
        for entry in _fields(features, 1):
            if bytes(next(_fields(entry, 1), b"")) == b"image":
                for feature in _fields(entry, 2):
                    for values in _fields(feature, 1):
                        for value in _fields(values, 1):
                            return bytes(value)
    raise ValueError(
        f"a record of {len(record)} bytes has no feature 'image'; it was not written by "
        "vireid_jax, or its file is damaged: prepare the data set again"
    )


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """The contents of the length-delimited fields `number` of a protocol buffer message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 != 2:  # numbers do not occur on the way to an image
            return
        length, at = _varint(message, at)
        if key >> 3 == number:
            yield message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a record ends in the middle; prepare the data set again")


# --- Preparing ------------------------------------------------------------------------------


def prepare(
    listing: Listing,
    *,
    out: str | os.PathLike[str] | None = None,
    unreadable: str = "refuse",
    shards: int | None = None,
    progress: cache.Progress | None = None,
) -> Listing:
    """Writes a data set in prepared form, unless it is there already.

    Every image is decoded once to see that it can be. JPEG and PNG files are stored byte for
    byte, other formats as PNG with the same pixels. A set that was prepared from
    other names, sizes or labels is replaced once the new one is complete; one that is up to
    date is returned as it is. A folder has one set of a name: give trees of your own that
    share a name an `out` each. An interrupted call leaves nothing that is taken for a data set,
    and the next call removes it. Processes of one machine wait for each other.

    Args:
      listing: of paths; its name is a key of `readers.READERS`.
      out: the folder of prepared sets; default $VIREID_DATA, else the user's cache folder.
      unreadable: "refuse" raises if any image cannot be decoded, "skip" leaves those out and
        names each in the listing's `problems`.
      shards: number of files; by default one for each 64 MiB of images.
      progress: called with (images done, images in all).

    Returns:
      The prepared set, as `open` gives it.

    Raises:
      UnreadableError: (a ValueError) naming the images that cannot be decoded.
      ValueError: for a name or option that does not exist, or an empty listing.
      ImportError: tensorflow_datasets is not installed.
      OSError: ENOSPC if the disk is full, before or while writing.
    """
    cache.check_unreadable(unreadable)
    get_reader(listing.name)
    count = len(listing.records)
    if not count:
        raise ValueError(f"the listing of {listing.name!r} has no images to prepare")
    with ThreadPoolExecutor(decoding.cores()) as pool:
        size = sum(pool.map(_size, listing.records.images))
    if shards is None:
        shards = min(max(-(-size // _SHARD_BYTES), 1), count)
    if not 1 <= shards <= count:
        raise ValueError(f"shards is {shards}, expected 1 to {count}, the number of images")

    digest = cache.fingerprint(listing)
    target = folder_of(listing.name, out)

    def write(data_dir: Any) -> None:
        builder = _builder_class(listing.name)(
            data_dir=os.fspath(data_dir), file_format="array_record"
        )
        builder.write(listing, digest, shards, unreadable, progress)

    # Before any lock: a set that is ready may be where nothing can be written.
    if (ready := _up_to_date(target, listing, digest, unreadable)) is not None:
        return ready
    _builder_class(listing.name)  # says what to install, before anything is made
    folder = target.parent
    hint = "name another folder (data.prepared, --out or $VIREID_DATA)"
    files.make_folder(folder, what=f"the prepared {listing.name}", hint=hint)
    hint += " on a larger disk"
    what = f"preparing {listing.name}"
    with files.locked(folder / f"{VERSION}.lock"):
        files.clear_temporaries(folder, VERSION)
        # Another process may have prepared it while this one waited; the reasons are told.
        if (ready := _up_to_date(target, listing, digest, unreadable, quiet=True)) is not None:
            return ready
        files.check_space(folder, size, what=what, hint=hint)
        stage = folder / files.temporary_name(VERSION)
        try:
            with files.explain_full_disk(folder, what=what, hint=hint):
                write(stage)
            if target.exists():
                target.rename(stage / "old")
            (stage / listing.name / VERSION).rename(target)
            files.sync(folder)
        finally:
            files.remove(stage)
    return open(target)


def find(name: str, *, out: str | os.PathLike[str] | None = None) -> Listing | None:
    """The prepared set of a data set, or None if there is none; needs no root of the original.

    Args:
      name: a key of `readers.READERS`.
      out: as for `prepare`.

    Raises:
      ValueError: for a name that does not exist, or a prepared set that is damaged.
    """
    get_reader(name)
    folder = folder_of(name, out)
    return open(folder) if (folder / "dataset_info.json").exists() else None


def _up_to_date(
    folder: Any, listing: Listing, digest: str, unreadable: str, *, quiet: bool = False
) -> Listing | None:
    """The set in `folder` if it is what `prepare` would write again; else logs why not."""
    level = logging.DEBUG if quiet else logging.WARNING
    try:
        ready = open(folder)
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
    left_out = read_metadata(folder)["unreadable"]
    if left_out and unreadable == "refuse":
        raise cache.UnreadableError(listing.name, left_out, len(listing.records))
    return ready


@functools.cache
def _builder_class(name: str) -> Any:
    """The tfds builder of a data set."""
    reader, base = get_reader(name), _listing_builder()
    text = f"{reader.TITLE}: {reader.DESCRIPTION}."
    described = {"__doc__": text, "name": name, "__module__": __name__}
    return type(base)(name.capitalize(), (base,), described, skip_registration=True)


@functools.cache
def _listing_builder() -> Any:
    """The base of all builders: a tfds builder that writes a Listing."""
    try:  # tfds and what it brings take half a second to import, and readers do without
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"preparing a data set needs tensorflow_datasets ({error}): pip install "
            "'vireid_jax[data]'. Training from the tree itself (data.root) does without"
        ) from error

    class ListingBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Writes the images of a Listing, in its order, in shards of equal numbers of images.

        A shard-based builder streams: tfds's others would shuffle the images, or sort them in
        memory.
        """

        VERSION = tfds.core.Version(VERSION)

        def write(
            self,
            listing: Listing,
            digest: str,
            shards: int,
            unreadable: str,
            progress: cache.Progress | None,
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
            return {SPLIT: [functools.partial(self._examples, r) for r in self._rows]}

        def _examples(self, shard: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            total = len(self._listing.records)
            for first in range(0, len(shard), _CHUNK):
                chunk = shard[first : first + _CHUNK]
                part = self._listing.take(chunk)
                images, rows, problems = _encoded(part)
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
                raise cache.UnreadableError(self._listing.name, self._problems, total)

        def _download_and_prepare(self, **options: Any) -> None:
            # tfds gives the folder its name when all is written; so our files belong here.
            super()._download_and_prepare(**options)
            self.info.metadata.update(
                {
                    "fingerprint": self._digest,
                    "checks": [list(check) for check in self._listing.checks],
                    "problems": list(self._listing.problems),
                    "unreadable": self._problems,
                    "persons": list(self._listing.persons),
                }
            )
            folder = pathlib.Path(self.data_dir)
            _write_columns(self._listing.take(np.concatenate(self._kept)), folder)
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


def _size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file; 0 for one that is not there, which is named among the unreadable ones."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _encoded(listing: Listing) -> tuple[list[bytes], np.ndarray, list[str]]:
    """The images of a listing of paths as they are stored.

    Returns:
      images: m of the N images, JPEG or PNG.
      rows: int [m], which of the N rows they are.
      problems: a line for every image that cannot be decoded.
    """
    paths = [os.fspath(path) for path in listing.records.images]
    names = [f"{n} ({path})" for n, path in zip(listing.records.name, paths, strict=True)]
    with ThreadPoolExecutor(decoding.cores()) as pool:
        read = list(pool.map(_read, paths))
        problems = [f"{names[n]}: {x}" for n, x in enumerate(read) if isinstance(x, str)]
        there = np.array([n for n, x in enumerate(read) if isinstance(x, bytes)], int)
        data: list[Any] = [read[n] for n in there.tolist()]
        # Any size would do; what costs is the decoding.
        found = [names[n] for n in there.tolist()]
        _, good, bad = decoding.decodable(data, found, (8, 8), "bilinear")
        kept = list(pool.map(lambda n: _as_stored(data[n]), good.tolist()))
    return kept, there[good], problems + bad


def _read(path: str) -> bytes | str:
    """The encoded image, or why it cannot be read."""
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        return "the file does not exist"
    except OSError as error:
        return str(error)


def _as_stored(data: bytes) -> bytes:
    """JPEG and PNG as they are, anything else as PNG with the pixels that `arrays` decodes."""
    if data.startswith(_VERBATIM):
        return data
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    buffer = io.BytesIO()
    Image.fromarray(arrays.decode([data], (height, width))[0]).save(buffer, "PNG")
    return buffer.getvalue()
