"""Reading a prepared data set: ArrayRecord shards, with neither TensorFlow nor tfds.

A prepared set is a folder as tensorflow_datasets (tfds) writes it, `NAME/VERSION/`, plus one file
of our own: `listing.npz` has the columns of the listing (name, person, camera, modality, part),
so that opening a set reads no image. `tfds.builder_from_directory(folder)` reads it too.
"""

import contextlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vireid_jax.data.listing import Check, Listing, TreeError
from vireid_jax.runtime import files
from vireid_jax.types import Records

VERSION = "1.0.0"  # of what is stored; raise it when that changes
SPLIT = "images"  # one tfds split; `part` says what an image is for
COLUMNS = "listing.npz"


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

    @property
    def rows(self) -> np.ndarray:
        """Int [N], the record of each image in the files."""
        return self._rows


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
            f"reading {path} needs the package array_record ({error}); install it with "
            "pip install array_record"
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


# --- Opening --------------------------------------------------------------------------------


def default_folder() -> str:
    """Where prepared sets are kept: $VIREID_DATA, else `data` in the user's cache folder."""
    return files.user_folder("VIREID_DATA", "data")


def path_of(folder: str | os.PathLike[str]) -> Any:
    """A pathlib.Path, or for a URI such as gs://bucket/folder its likeness from etils."""
    if not files.is_remote(folder):
        return pathlib.Path(folder).expanduser()
    from etils import epath

    return epath.Path(os.fspath(folder))


def folder_of(name: str, out: str | os.PathLike[str] | None) -> Any:
    """The folder of a prepared set: out/NAME/VERSION."""
    return path_of(default_folder() if out is None else out) / name / VERSION


def write_columns(listing: Listing, folder: Any) -> None:
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


def metadata_of(listing: Listing, fingerprint: str, unreadable: Sequence[str]) -> dict[str, Any]:
    """What is kept of a listing beside its columns, as JSON takes it."""
    return {
        "fingerprint": fingerprint,
        "checks": [list(check) for check in listing.checks],
        "problems": list(listing.problems),
        "unreadable": list(unreadable),
        "persons": list(listing.persons),
    }


def open(folder: str | os.PathLike[str]) -> Listing:
    """The prepared set in `folder`, which is .../NAME/VERSION.

    Reads a few small files and no image. Works without TensorFlow and tfds.

    Args:
      folder: local, or a URI that etils and array_record can read (gs://bucket/...).

    Returns:
      A Listing whose images are `Stored`.

    Raises:
      FileNotFoundError: there is no prepared set in folder.
      TreeError: there is one, but it is damaged or not ours.
    """
    path = path_of(folder)
    if not (path / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"no prepared data set in {path} (dataset_info.json is missing); expected "
            f"OUT/NAME/{VERSION} as builders.prepare writes it"
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
    """What `metadata_of` gave when the set was prepared."""
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
