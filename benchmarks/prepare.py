"""Preparing a full-size data set: seconds, peak memory and size on disk.

  python -m benchmarks.prepare                       a tree of SYSU-MM01's size
  python -m benchmarks.prepare --images 2000         a small one
  python -m benchmarks.prepare --quick               a tiny one, of no meaning
  python -m benchmarks.prepare --folder /data/tmp    where there is room (13 GB at full size)

The tree is a stand-in: 500 distinct textured crops of 200 x 80 to 400 x 160 pixels, written as
JPEG again and again under the names of SYSU-MM01, in its numbers of images for each camera and
person where the table of those is at hand (sysu_images_per_camera_and_id.npy in the folder
$VIREID_SHARED/data), else in equal numbers. The identity lists divide its persons arbitrarily.

Every stage runs in a process of its own, so that its peak of resident memory is its own; it
includes the interpreter and the libraries. Files that were just written are in the operating
system's cache, as far as they fit. "open" is what a later run does that finds all of it ready.
"""

import argparse
import io
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import report
from vireid_jax.runtime.files import size_text

IMAGES = 45_863  # of SYSU-MM01, all persons
SIZES = ((288, 144), (384, 128))  # AGW's and MPANet's
DISTINCT = 500
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


# --- The tree ---------------------------------------------------------------------------


def counts(images: int) -> np.ndarray:
    """Numbers of images, int [6, persons], that add up to `images`."""
    shared = pathlib.Path(os.environ.get("VIREID_SHARED", SHARED))
    table = shared / "data" / "sysu_images_per_camera_and_id.npy"
    if table.exists():
        full = np.load(table).astype(int)
    else:
        full = np.full((6, 491), 16)
    # As many of each, up to one: cutting the running total keeps the sum exact.
    total = np.cumsum(full.ravel()) * images // full.sum()
    return np.diff(total, prepend=0).reshape(full.shape)


def crops(count: int) -> list[bytes]:
    """JPEGs of random texture with the spectrum of photographs, amplitude 1 / frequency."""
    rng = np.random.default_rng(0)
    from PIL import Image

    encoded = []
    for _ in range(count):
        height = int(rng.integers(200, 401))
        width = int(height * rng.uniform(0.4, 0.42))
        picture = np.zeros((height, width, 3), np.float32)
        for octave in range(2, 8):
            noise = rng.uniform(-1, 1, (2**octave, 2 ** (octave - 1), 3)) * 128
            scaled = Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8))
            scaled = scaled.resize((width, height), Image.Resampling.BICUBIC)
            picture += (np.asarray(scaled, np.float32) - 128) * (4 / 2**octave)
        buffer = io.BytesIO()
        pixels = (128 + 0.6 * picture).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
        encoded.append(buffer.getvalue())
    return encoded


def write_tree(root: pathlib.Path, images: int) -> None:
    """Writes cam1 .. cam6/<person>/<index>.jpg and the identity lists."""
    table, files = counts(images), crops(min(DISTINCT, images))
    n = 0
    for camera, person in np.argwhere(table).tolist():
        folder = root / f"cam{camera + 1}" / f"{person + 1:04d}"
        folder.mkdir(parents=True)
        for index in range(table[camera, person]):
            (folder / f"{index + 1:04d}.jpg").write_bytes(files[n % len(files)])
            n += 1
    for camera in range(1, 7):
        (root / f"cam{camera}").mkdir(exist_ok=True)
    persons = (np.flatnonzero(table.any(0)) + 1).tolist()
    third = max(len(persons) // 5, 1)
    parts = {
        "test": persons[:third],
        "val": persons[third : 2 * third],
        "train": persons[2 * third :],
    }
    (root / "exp").mkdir()
    for part, ids in parts.items():
        (root / "exp" / f"{part}_id.txt").write_text(",".join(map(str, ids)))


# --- Stages, each in a process of its own ----------------------------------------------------


def scan(folder: pathlib.Path) -> int:
    """Lists the tree: names only."""
    from vireid_jax.data.readers import get_reader

    return len(get_reader("sysu").scan(folder / "tree", strict=False).records)


def prepare(folder: pathlib.Path) -> int:
    """Lists the tree, checks every image and writes the prepared set."""
    from vireid_jax.data import prepared
    from vireid_jax.data.readers import get_reader

    listing = get_reader("sysu").scan(folder / "tree", strict=False)
    return len(prepared.prepare(listing, out=folder / "prepared").records)


def decode(folder: pathlib.Path, size: tuple[int, int]) -> int:
    """Decodes the prepared set into the pixel cache."""
    from vireid_jax.data import cache, prepared

    listing = prepared.find("sysu", out=folder / "prepared")
    if listing is None:
        raise FileNotFoundError(f"{folder / 'prepared'} has no prepared set; run all stages")
    cached = cache.decode_once(listing, image_size=size, folder=folder / "pixels")
    return len(cached.records)


def stages() -> dict[str, tuple[Callable[[pathlib.Path], int], str, str]]:
    """By name: what to run, what it is called, and the part of the folder that it writes."""

    def decoding(size: tuple[int, int]) -> Callable[[pathlib.Path], int]:
        return lambda folder: decode(folder, size)

    named: dict[str, tuple[Callable[[pathlib.Path], int], str, str]] = {
        "scan": (scan, "scan the tree", ""),
        "prepare": (prepare, "prepare: check and store every image", "prepared"),
        "reopen": (prepare, "prepare again, nothing has changed", ""),
    }
    for height, width in SIZES:
        key, title = f"{height}x{width}", f"{height} x {width}"
        run = decoding((height, width))
        named[f"decode-{key}"] = (run, f"decode once to {title}", "pixels")
        named[f"open-{key}"] = (run, f"open the pixels, {title}", "")
    return named


def measure(stage: str, folder: pathlib.Path) -> dict[str, Any]:
    """Runs one stage here."""
    begin = time.perf_counter()
    images = stages()[stage][0](folder)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return {"images": images, "seconds": seconds, "peak": peak}


def size_of(folder: pathlib.Path) -> int:
    """Bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


# --- Report -------------------------------------------------------------------------------


def all_stages(folder: pathlib.Path, images: int) -> dict[str, Any]:
    """Writes the tree and runs all stages."""
    write_tree(folder / "tree", images)
    rows = []
    for stage, (_, title, written) in stages().items():
        before = size_of(folder / written) if written else 0
        arguments = ["--stage", stage, "--folder", str(folder)]
        row = {"stage": title, **report.in_process("benchmarks.prepare", arguments)}
        row["written"] = size_of(folder / written) - before if written else None
        print(f"{title}: {row['seconds']:.1f} s", file=sys.stderr)
        rows.append(row)
    return {"images": images, "tree": size_of(folder / "tree"), "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """What the tree is, and a row for each stage."""
    images, tree = found["images"], found["tree"]
    header = ["stage", "seconds", "images/s", "peak memory", "written"]
    lines = []
    for r in found["rows"]:
        line = [r["stage"], f"{r['seconds']:.1f}", f"{r['images'] / r['seconds']:,.0f}"]
        written = "" if r["written"] is None else size_text(r["written"])
        lines.append([*line, size_text(r["peak"]), written])
    return (
        f"{images:,} JPEG files, {size_text(tree)} ({tree // images:,} bytes each)\n\n"
        + report.table(header, lines)
    )


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser)
    parser.add_argument("--images", type=report.positive, default=IMAGES)
    parser.add_argument("--quick", action="store_true", help="600 images, of no meaning")
    parser.add_argument("--folder", type=pathlib.Path, help="an empty or new folder to work in")
    parser.add_argument("--stage", choices=list(stages()), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.stage:
        print(json.dumps(measure(flags.stage, flags.folder)))
        return
    if flags.folder is not None:
        flags.folder.mkdir(parents=True, exist_ok=True)
        if any(flags.folder.iterdir()):
            parser.error(f"{flags.folder} is not empty, expected an empty or new folder")
    run = report.Run("prepare", flags)
    images = min(flags.images, 600) if flags.quick else flags.images
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        run.save(all_stages(pathlib.Path(folder), images), markdown)


if __name__ == "__main__":
    main()
