"""Prepared data sets: images and columns in a few ArrayRecord files, as a tfds data set.

Made only by the command `python -m vireid_jax.data prepare`, used where no tree is given. A
prepared set is a folder as tensorflow_datasets (tfds) writes it, `NAME/VERSION/`, plus one file of
our own: `listing.npz` has the columns of the listing (name, person, camera, modality, part), so
that opening a set reads no image. Images that every reader reads alike (`decoding.is_plain`) are
stored byte for byte, others as decoded.
Preparing needs tensorflow_datasets, reading neither that nor TensorFlow.
"""

import io
import itertools
import logging
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vireid_jax.data import cache, decoding, thermal
from vireid_jax.data.readers import common, get_reader
from vireid_jax.data.readers.common import Check, Listing, TreeError
from vireid_jax.runtime import files
from vireid_jax.types import Records

VERSION = "1.1.0"  # of what is stored; raise it when that changes
SPLIT = "images"  # one tfds split; `part` says what an image is for
COLUMNS = "listing.npz"

_SHARD_BYTES = 64 * 2**20  # of images in a file
_CHUNK = 128  # images that are read and checked at once
_MOST_BYTES = 2**30  # of the file with the columns
_COLUMNS = {
    **{"name": np.str_, "part": np.str_},
    **{"person": np.int32, "camera": np.int32, "modality": np.int8},
}

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
    return files.expanded(where, "the folder of prepared sets") / name / VERSION


def find(name: str, *, out: str | os.PathLike[str] | None = None) -> Listing | None:
    """The prepared set of a key of `readers.READERS` in `out` (as for `prepare`), or None.

    Raises:
      ValueError: for a name that does not exist, or a prepared set that is damaged.
    """
    get_reader(name)
    folder = folder_of(name, out)
    return open(folder) if (folder / "dataset_info.json").exists() else None


def open(folder: str | os.PathLike[str]) -> Listing:
    """The prepared set in `folder`, which is .../NAME/VERSION; its images are `Stored`.

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
    try:
        info = files.read_json(path / "dataset_info.json")
        metadata = files.read_json(path / "metadata.json")
        columns = _read_columns(path / COLUMNS)
        (split,) = (split for split in info["splits"] if split["name"] == SPLIT)
        lengths = [int(n) for n in split["shardLengths"]]
        shards = sorted(map(str, path.glob(f"{info['name']}-{SPLIT}.array_record-*")))
        count = len(columns["name"])
        if len(shards) != len(lengths):
            raise ValueError(f"it has {len(shards)} files of images, {len(lengths)} were written")
        if sum(lengths) != count:
            raise ValueError(f"{COLUMNS} lists {count} images, the shards hold {sum(lengths)}")
        if odd := [shard for shard in shards if not os.path.isfile(shard)]:
            raise ValueError(f"{odd[0]} is no regular file")
        source = _Shards(shards, lengths)
        return Listing(
            name=info["name"],
            records=Records(
                Stored(
                    source,
                    np.arange(count),
                    str(path),
                    metadata["fingerprint"],
                    metadata["thermal_range"],
                ),
                columns["person"],
                columns["camera"],
                columns["modality"],
                columns["name"].tolist(),
            ),
            part=columns["part"],
            checks=tuple(Check(*check) for check in metadata["checks"]),
            problems=(*metadata["problems"], *metadata["unreadable"]),
            persons=tuple(metadata["persons"]),
        )
    except ImportError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise TreeError(
            f"the prepared data set in {path} is damaged or not from vireid_jax: {what}; "
            "remove the folder and prepare the data set again"
        ) from error


def check_accepted(listing: Listing, *, strict: bool, unreadable: str) -> None:
    """Refuses a prepared set that was accepted under weaker rules than these.

    Raises:
      TreeError: strict, and the tree that was prepared differs from the release.
      UnreadableError: (a TreeError) images were left out, and they are refused.
    """
    folder = listing.records.images.folder
    failed = [c for c in listing.checks if c.required and not c.ok]
    if failed and strict:
        raise TreeError(
            f"the prepared data set in {folder} was accepted with strict=False: {len(failed)} of "
            f"{len(listing.checks)} checks differ: {common.differences(failed)}; prepare a tree "
            "without faults, or use the set as it is with --config.data.strict=False"
        )
    left_out = files.read_json(pathlib.Path(folder) / "metadata.json")["unreadable"]
    if left_out and unreadable == "refuse":
        total = len(listing.records) + len(left_out)
        raise cache.UnreadableError(f"the prepared data set in {folder}", left_out, total)


def _read_columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns as `_columns` gives them."""
    data = io.BytesIO(files.read_regular(path, _MOST_BYTES))
    with zipfile.ZipFile(data) as archive:
        if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
            raise ValueError(f"{path.name} has more than {files.size_text(_MOST_BYTES)}")
    with np.load(data, allow_pickle=False) as stored:
        columns = {key: stored[key] for key in stored.files}
    for key, kind in _COLUMNS.items():
        shape, dtype = columns[key].shape, columns[key].dtype
        if shape != columns["name"].shape or len(shape) != 1 or not np.issubdtype(dtype, kind):
            raise ValueError(f"{path.name} has {dtype} {list(shape)} of {key}, expected {kind}")
    return columns


class Stored(Sequence[bytes]):
    """Encoded images in ArrayRecord files, read one by one when asked for.

    Indexing is safe from several threads. `take` reads nothing.
    """

    def __init__(
        self, source: Any, rows: np.ndarray, folder: str, fingerprint: str, thermal_range: str
    ) -> None:
        self._source = source
        self._rows = rows
        self.folder = folder  # of the prepared set
        self.fingerprint = fingerprint  # of the listing that was prepared
        self.thermal_range = thermal_range  # that 16-bit images were read by

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice | list | np.ndarray):
            raise TypeError(
                f"stored images are read one by one, got the index {index!r}; use take(rows)"
            )
        return image_of(self._source[int(self._rows[index])])

    def take(self, rows: np.ndarray) -> "Stored":
        """The images at `rows` (int [n]), in that order."""
        return Stored(
            self._source, self._rows[rows], self.folder, self.fingerprint, self.thermal_range
        )


class _Shards:
    """The records of some ArrayRecord files, by number.

    All files are opened at once: a set that is replaced later stays readable for those who
    have it open, and never gives them the images of another.
    """

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]) -> None:
        try:
            from array_record.python import array_record_module
        except ImportError as error:
            raise ImportError(
                f"reading {paths[0]} needs array_record ({error}): pip install 'vireid_jax[data]'"
            ) from error
        self._ends = np.cumsum(lengths)
        self._paths = paths
        # Rows are drawn at random: reading ahead would read what nobody asked for.
        options = dict(options="readahead_buffer_size:0", file_reader_buffer_size=32768)
        self._readers = [array_record_module.ArrayRecordReader(p, **options) for p in paths]
        for path, length, reader in zip(paths, lengths, self._readers, strict=True):
            if (found := reader.num_records()) != length:  # 0 for what is no such file at all
                raise ValueError(f"{path} has {found} records, {length} were written")

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


def image_of(record: bytes) -> bytes:
    """The bytes of the feature "image" of a serialized tf.train.Example.

    Example is {1: Features}, Features {1: entries}, an entry {1: name, 2: Feature}, a Feature
    of bytes {1: BytesList}, a BytesList {1: values}, each field preceded by its number and length
    (tensorflow/core/example/{example,feature}.proto); walking it takes neither TensorFlow nor
    a protocol buffer library.

    Raises:
      ValueError: if there is none.
    """
    for entry in _fields(memoryview(record), 1, 1):
        if bytes(next(_fields(entry, 1), b"")) == b"image":
            for value in _fields(entry, 2, 1, 1):
                return bytes(value)
    raise ValueError(
        f"a record of {len(record)} bytes has no feature 'image'; it was not written by "
        "vireid_jax, or its file is damaged: prepare the data set again"
    )


def _fields(message: memoryview, number: int, *within: int) -> Iterator[memoryview]:
    """The length-delimited fields `number` of a message, or the fields `within` them."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 != 2:  # numbers do not occur on the way to an image
            return
        length, at = _varint(message, at)
        if key >> 3 == number:
            content = message[at : at + length]
            yield from _fields(content, *within) if within else (content,)
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
    progress: cache.Progress | None = None,
) -> Listing:
    """Writes a data set in prepared form, unless it is there already.

    Every image is decoded once to see that it can be. Plain JPEG and PNG files (8-bit RGB or gray,
    upright) are stored as they are, others as PNG with the pixels that `decode` gives. All files
    are read to see whether a set is up to date. One of other names, labels or images is replaced
    once the new one is complete. An interrupted call leaves nothing that is taken for a data set,
    and the next call removes it. Processes of one machine wait for each other.

    Args:
      listing: of paths; its name is a key of `readers.READERS`.
      out: the folder of prepared sets, one of a name; see `default_folder`.
      unreadable: "refuse" raises if any image cannot be decoded, "skip" leaves those out and
        names each in the listing's `problems`.
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
    if not len(listing.records):
        raise ValueError(f"the listing of {listing.name!r} has no images to prepare")
    digest = cache.fingerprint(listing, progress=progress)
    target = folder_of(listing.name, out)
    # Before any lock: a set that is ready may be where nothing can be written.
    if (ready := _up_to_date(target, listing, digest, unreadable)) is not None:
        return ready
    _tfds()  # says what to install, before anything is made
    folder = target.parent
    hint = "name another folder (data.prepared, --out or $VIREID_DATA)"
    files.make_folder(folder, what=f"the prepared {listing.name}", hint=hint)
    hint += " on a larger disk"
    what = f"preparing {listing.name}"
    with files.locked(folder / f"{VERSION}.lock"):
        files.clear_temporaries(folder, VERSION)
        # Another process may have prepared it while this one waited; the reasons were given.
        if (ready := _up_to_date(target, listing, digest, unreadable, quiet=True)) is not None:
            return ready
        with ThreadPoolExecutor(decoding.cores()) as pool:
            there = pool.map(os.path.exists, listing.records.images)  # the others are named below
            found = itertools.compress(listing.records.images, there)
            sizes = pool.map(os.path.getsize, found)
            size = sum(n for n in sizes if n <= decoding.MAX_BYTES)  # larger ones are refused
        files.check_space(folder, size, what=what, hint=hint)
        stage = files.temporary(folder, VERSION)
        (stage / "new").mkdir(parents=True)
        try:
            with files.explain_full_disk(folder, what=what, hint=hint, needed=size):
                _write(stage / "new", listing, digest, size, unreadable, progress)
            if target.exists():
                target.rename(stage / "old")
            (stage / "new").rename(target)
            files.sync(folder)
        finally:
            files.remove(stage)
    return open(target)


def _up_to_date(
    folder: pathlib.Path, listing: Listing, digest: str, unreadable: str, *, quiet: bool = False
) -> Listing | None:
    """The set in `folder` if it is what `prepare` would write again; else logs why not."""
    level = logging.DEBUG if quiet else logging.WARNING
    try:
        ready = open(folder)
    except FileNotFoundError:
        return None
    except TreeError as error:
        _log.log(level, "%s; preparing it again", error)
        return None
    if ready.records.images.fingerprint != digest:
        why = "holds other images or labels than are listed now"
        _log.log(level, "%s %s; preparing %s again", folder, why, listing.name)
        return None
    check_accepted(ready, strict=False, unreadable=unreadable)
    return ready


def _tfds() -> Any:
    try:  # tfds and what it brings take half a second to import, and readers do without
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"preparing a data set needs tensorflow_datasets ({error}): pip install "
            "'vireid_jax[data]'. Training from the tree itself (data.root) does without"
        ) from error
    return tensorflow_datasets


def _write(
    folder: pathlib.Path,
    listing: Listing,
    digest: str,
    size: int,
    unreadable: str,
    progress: cache.Progress | None,
) -> None:
    """Writes the data set to an empty folder; `size` is the bytes of all images."""
    tfds, reader, total = _tfds(), get_reader(listing.name), len(listing.records)
    text = tfds.features.Text()
    features: dict[str, Any] = dict(
        person=np.int32, camera=np.int32, modality=np.int8, name=text, part=text
    )
    features["image"] = tfds.features.Image(shape=(None, None, 3))
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=listing.name,
            version=tfds.core.Version(VERSION),
            data_dir=os.fspath(folder),
            module_name=__name__,
        ),
        description=f"{reader.TITLE}: {reader.DESCRIPTION}.",
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(),
    )
    shards = min(max(-(-size // _SHARD_BYTES), 1), total)
    writer = tfds.core.SequentialWriter(info, -(-total // shards), file_format="array_record")
    writer.initialize_splits([SPLIT])
    left_out: cache.LeftOut = []
    with ThreadPoolExecutor(decoding.cores()) as pool:
        for first in range(0, total, _CHUNK):
            chunk = listing.take(np.arange(first, min(first + _CHUNK, total)))
            images, names = chunk.records.images, chunk.records.name
            _, bad = decoding.decodable(images, names, (8, 8), "bilinear")  # any size would do
            left_out += [(first + n, line) for n, line in bad]
            if not (left_out and unreadable == "refuse"):  # else only to name all that are wrong
                good = chunk.take(np.delete(np.arange(len(images)), [n for n, _ in bad]))
                rows = {"image": pool.map(_as_stored, good.records.images), **_columns(good)}
                table = zip(*rows.values(), strict=True)
                writer.add_examples({SPLIT: [dict(zip(rows, row, strict=True)) for row in table]})
            if progress is not None:
                progress(first + len(images), total)
    kept = cache.without(listing, left_out, unreadable)  # or it raises
    info.metadata.update(
        fingerprint=digest,
        thermal_range=thermal.range_of(listing.records.images[0]),
        checks=[list(check) for check in listing.checks],
        problems=list(listing.problems),
        unreadable=[line for _, line in left_out],
        persons=list(listing.persons),
    )
    writer.close_all()
    np.savez_compressed(folder / COLUMNS, **_columns(kept))
    for path in folder.iterdir():
        files.sync(path)


def _columns(listing: Listing) -> dict[str, Any]:
    """What is stored of images beside their bytes."""
    of = {key: getattr(listing if key == "part" else listing.records, key) for key in _COLUMNS}
    return {key: np.array(of[key], kind) for key, kind in _COLUMNS.items()}


def _as_stored(path: str | os.PathLike[str]) -> bytes:
    """Plain files as they are, others as PNG with the pixels that `decode` gives."""
    data = files.read_regular(path, decoding.MAX_BYTES)
    if decoding.is_plain(data):
        return data
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.asarray(decoding.upright(path))  # without notes, such as of what is transparent
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
