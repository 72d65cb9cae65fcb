"""The embedded data set as a `Split`: which images there are, rendering them, the cache."""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from vireid_jax.data.readers.common import check_number, retrieval
from vireid_jax.runtime import files
from vireid_jax.synthetic import figure, scene
from vireid_jax.synthetic.identity import draw_people
from vireid_jax.types import INFRARED, VISIBLE, Records, Split

# Raise it whenever a pixel of any image changes: it is part of the cache's key.
RENDER_VERSION = 10

# First and last person of each split: more identities in one never renumber those of another.
FIRST_PERSON = {"train": 1, "val": 4001, "test": 6001}
_LAST_PERSON = {"train": 4000, "val": 6000, "test": 9999}
_MOST_BYTES = 2**33  # of all images, which are held in memory
_BLOCK = 512  # images whose parameters are held at once; after each, progress is noted
_OVERHEAD = 4096  # bytes of a split in a file beside its pixels, at most
_MODALITY = np.array([camera.modality for camera in scene.CAMERAS], np.int8)

_log = logging.getLogger(__name__)


def check_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) as ints; raises ValueError for anything that cannot be rendered."""
    try:
        height, width = (int(n) for n in image_size)
        whole = (height, width) == tuple(image_size)
    except (TypeError, ValueError):
        whole = False
    if not whole or not (16 <= height <= 2048 and 8 <= width <= 2048):
        raise ValueError(
            f"image_size {image_size!r} is not usable, expected (height, width) as whole numbers "
            "of pixels, height 16 to 2048 and width 8 to 2048, such as (96, 48)"
        )
    return height, width


def render_images(
    seed: int,
    person: np.ndarray,
    camera: np.ndarray,
    index: np.ndarray,
    *,
    image_size: tuple[int, int],
    world: int = 0,
    infrared: bool | None = None,
    rendered: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Renders images, each a function of (seed, its person, camera and index) alone.

    Args:
      seed: of the whole data set.
      person: int [N].
      camera: int [N], 1 to 6.
      index: int [N].
      image_size: (height, width) in pixels.
      world: whose cameras, see `scene.cameras`.
      infrared: overrides the cameras' modality; the same shot in both is an aligned pair.
      rendered: called now and then with the number of images since it was last called.

    Returns:
      uint8 [N, H, W, 3].
    """
    # The renderer brings jax in; a cached data set does without it.
    from vireid_jax.synthetic import render

    person, camera, index = (np.asarray(x) for x in (person, camera, index))
    out = np.empty((len(person), *image_size, 3), np.uint8)
    persons, who_is_it = np.unique(person, return_inverse=True)
    people = draw_people(seed, persons)
    dark = _MODALITY[camera - 1] == INFRARED
    if infrared is not None:
        dark[:] = infrared
    for lamp in (False, True):
        all_rows = np.flatnonzero(dark == lamp)
        for first in range(0, len(all_rows), _BLOCK):
            rows = all_rows[first : first + _BLOCK]
            who = {k: v[who_is_it[rows]] for k, v in people.items()}
            shot = scene.shots(seed, person[rows], camera[rows], index[rows], world)
            projected, frame = scene.project(figure.build(who, scene.gaits(shot, who)), shot, lamp)
            settings, rects = scene.build(shot, frame, lamp)
            tubes = scene.arrange(projected, shot, frame, lamp)
            out[rows] = render.render(tubes, settings, rects, shot.key, image_size=image_size)
            rendered(len(rows))
    return out


def _rows(name: str, ids: int, visible: int, infrared: int) -> tuple[np.ndarray, ...]:
    """Int32 [N] each: person, camera, 1-based index of a split's images, sorted by camera first."""
    persons = FIRST_PERSON[name] + np.arange(ids)
    parts = []
    for camera in scene.CAMERAS:
        count = visible if camera.modality == VISIBLE else infrared
        grid = np.meshgrid(camera.number, persons, np.arange(1, count + 1), indexing="ij")
        parts.append([x.ravel() for x in grid])
    camera, person, index = np.concatenate(parts, axis=1).astype(np.int32)
    return person, camera, index


def cache_folder() -> pathlib.Path:
    """Where rendered sets are kept: $VIREID_CACHE, else the user's cache folder."""
    return pathlib.Path(files.user_folder("VIREID_CACHE"))


def _read(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
    """The cached images, or None where there are none that can be used."""
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        # Opened here: np.load leaves the file open when the archive is broken.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            if sum(member.file_size for member in stored.zip.infolist()) > _size(shapes):
                raise ValueError("it holds more than the images")
            images = {name: stored[name] for name in shapes}  # a zip member: its CRC is checked
        for name, shape in shapes.items():
            if images[name].shape != shape or images[name].dtype != np.uint8:
                raise ValueError(f"its {name!r} is not uint8 of shape {shape}")
    except Exception as error:  # a damaged file fails in many ways
        _log.warning("cannot use %s (%s); the images are rendered again", path, error)
        return None
    return images


def _size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes that the file takes at most."""
    return sum(math.prod(shape) + _OVERHEAD for shape in shapes.values())


def _cached(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    rendered: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The images in the file `path`; rendered, and kept there if that can be, if it has none."""
    if (images := _read(path, shapes)) is not None:
        return images
    folder, what, hint = path.parent, "the rendered data set", "set VIREID_CACHE to another folder"
    with contextlib.ExitStack() as held:
        try:
            files.make_folder(folder, what=what, hint=hint)
            held.enter_context(files.locked(path.with_suffix(".lock")))
            files.clear_temporaries(folder, path.stem)
            # Another process may have rendered it while this one waited.
            if (images := _read(path, shapes)) is not None:
                return images
            files.check_space(folder, _size(shapes), what=what, hint=hint)
            images = rendered()
            with files.explain_full_disk(folder, what=what, hint=hint, needed=_size(shapes)):
                files.write_whole(path, lambda file: np.savez(file, **images))  # type: ignore
        except OSError as error:
            _log.warning("%s; until then it is rendered at each start", error.strerror or error)
    return rendered() if images is None else images


def load(
    check: Callable[[Split], None] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    image_size: tuple[int, int] = (96, 48),
    seed: int = 0,
    world: int = 0,
    infrared_light: bool = True,
    train_ids: int = 240,
    train_visible: int = 3,
    train_infrared: int = 5,
    val_ids: int = 24,
    val_visible: int = 2,
    val_infrared: int = 3,
    test_ids: int = 96,
    test_visible: int = 10,
    test_infrared: int = 5,
    cache: bool | str | os.PathLike[str] = True,
) -> Split:
    """The embedded data set: rendered people before six cameras in SYSU-MM01's roles.

    Person p looks the same for any sizes of the set, and image n of a person before a
    camera is the same image: more identities or images never change the others.

    Args:
      check: raises for a split that is of no use; called before anything is rendered, with
        images that have no pixels.
      progress: called now and then with the number of images rendered, and of all.
      image_size: (height, width) in pixels.
      seed: of everything, at least 0.
      world: whose cameras: 0 the standard ones, another number a draw of others.
      infrared_light: whether cameras 3 and 6 see by infrared light; False: by visible light, as
        the other four, for a network that shall not have seen infrared images.
      train_ids: identities to train on, at least 1.
      train_visible: images of each before each of the cameras 1, 2, 4 and 5.
      train_infrared: images of each before each of the cameras 3 and 6.
      val_ids: identities to choose a checkpoint on; 0 for no validation set.
      val_visible: as for training.
      val_infrared: as for training.
      test_ids: identities to test on, at least 1.
      test_visible: as for training; SYSU-MM01's multi-shot protocol draws 10.
      test_infrared: as for training.
      cache: whether to keep the rendered images in `cache_folder()`, or the folder to use.

    Returns:
      A Split named "synthetic" with uint8 images [N, H, W, 3]. The test and validation
      queries are all their infrared images, the galleries all their visible ones.

    Raises:
      ValueError: an option is out of range; nothing has been rendered then.
    """
    height, width = check_image_size(image_size)
    check_number("seed", seed, 0, 2**63 - 1)
    check_number("world", world, 0, 2**63 - 1)
    plans = {
        "train": (train_ids, train_visible, train_infrared),
        "val": (val_ids, val_visible, val_infrared),
        "test": (test_ids, test_visible, test_infrared),
    }
    for name, (ids, visible, infrared) in plans.items():
        most = _LAST_PERSON[name] - FIRST_PERSON[name] + 1
        check_number(f"{name}_ids", ids, 0 if name == "val" else 1, most)
        check_number(f"{name}_visible", visible, 1, 9999)
        check_number(f"{name}_infrared", infrared, 1, 9999)
    if not isinstance(cache, bool | str | os.PathLike):
        raise ValueError(f"cache is {cache!r}, expected True, False or a folder")
    if not val_ids:
        del plans["val"]
    cameras = np.bincount(_MODALITY)
    count = sum(int(ids * (cameras @ per)) for ids, *per in plans.values())
    if count * height * width * 3 > _MOST_BYTES:
        raise ValueError(
            f"the data set would be {count:,} images of {height} x {width} pixels, which take more "
            f"than {_MOST_BYTES:,} bytes of memory; ask for fewer people or images"
        )

    rows = {name: _rows(name, *plan) for name, plan in plans.items()}
    shapes = {name: (len(person), height, width, 3) for name, (person, _, _) in rows.items()}
    if check is not None:
        check(
            _split(
                rows, {name: np.empty((n, 0, 0, 3), np.uint8) for name, (n, *_) in shapes.items()}
            )
        )
    path = None
    if cache is not False:
        folder = cache_folder() if cache is True else pathlib.Path(cache)
        sizes = [[name, *map(int, plan)] for name, plan in plans.items()]
        other = [[int(world), bool(infrared_light)]] * (world != 0 or not infrared_light)
        key = json.dumps([RENDER_VERSION, height, width, int(seed), sizes, *other])
        path = folder / f"synthetic-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"

    def rendered() -> dict[str, np.ndarray]:
        done = 0

        def note(images: int) -> None:
            nonlocal done
            done += images
            progress(done, count)

        draw = functools.partial(
            render_images,
            int(seed),
            image_size=(height, width),
            world=int(world),
            infrared=None if infrared_light else False,
            rendered=note,
        )
        return {name: draw(*of_split) for name, of_split in rows.items()}

    images = _cached(path, shapes, rendered) if path else rendered()
    return _split(rows, images)


def _split(rows: Mapping[str, tuple[np.ndarray, ...]], images: Mapping[str, np.ndarray]) -> Split:
    parts = {}
    for name, (person, camera, index) in rows.items():
        names = [f"cam{c}/{p:04d}/{i:04d}" for p, c, i in zip(person, camera, index, strict=True)]
        parts[name] = Records(images[name], person, camera, _MODALITY[camera - 1], names)
    train = parts.pop("train")
    found = {name: retrieval(part, np.ones(len(part), bool)) for name, part in parts.items()}
    return Split("synthetic", train, found["test"], found.get("val"))
