"""Small trees of images of all kinds, and a process of its own for what ends one."""

import io
import pathlib
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vireid_jax.data import prepared
from vireid_jax.data.readers.common import Check, Listing
from vireid_jax.types import Records

REPO = pathlib.Path(__file__).resolve().parents[2]
KINDS = [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "P"), ("BMP", "RGB"), ("BMP", "P"), ("PNG", "L")]


def picture(rng, kind):
    """An encoded image of random size."""
    fmt, mode = kind
    size = (*rng.integers(9, 40, 2), 3)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, size, np.uint8)).convert(mode).save(buffer, fmt)
    return buffer.getvalue()


def tree(folder, count=24, name="regdb"):
    """A listing of `count` image files of all kinds, with nothing sorted."""
    rng = np.random.default_rng(count)
    folder.mkdir(parents=True)
    paths, names = [], []
    for n in rng.permutation(count).tolist():
        kind = KINDS[n % len(KINDS)]
        path = folder / f"{n:03d}.{kind[0].lower()}"
        path.write_bytes(picture(rng, kind))
        paths.append(str(path))
        names.append(f"Visible/{n % 5}/ä {n}")
    records = Records(
        paths,
        rng.integers(0, 500, count).astype(np.int32),
        rng.integers(1, 7, count).astype(np.int32),
        rng.integers(0, 2, count).astype(np.int8),
        names,
    )
    part = np.array(["rererererr" if n % 3 else "eeeeeeeeer" for n in range(count)])
    checks = (Check("persons", "412", "5", False), Check("queries", "1", "1", True, False))
    return Listing(name, records, part, checks, ("person 3 has one modality",), ("Ann", "Bo"))


def broken_tree(folder):
    """A tree of 20 images of which four are broken, and their rows."""
    listing = tree(folder, 20)
    paths = [pathlib.Path(p) for p in listing.records.images]
    jpeg = next(n for n, p in enumerate(paths) if p.suffix == ".jpeg")
    others = [n for n in range(20) if n != jpeg][3:18:6]
    rows = sorted([jpeg, *others])
    paths[jpeg].write_bytes(paths[jpeg].read_bytes()[:-60])
    paths[others[0]].write_bytes(b"")
    paths[others[1]].write_text("Thumbs")
    paths[others[2]].unlink()
    return listing, rows


def never(done, total):
    raise AssertionError("it was prepared again")


def python(code, *arguments, expected=0):
    """Runs code in a process of its own; it prints what is returned."""
    head = (
        "import os, pathlib, signal, sys\n"
        "from tests.data.mixed_tree import tree\n"
        "from vireid_jax.data import arrays, cache, prepared\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, cwd=REPO, timeout=120,
    )  # fmt: skip
    assert run.returncode == expected, run.stdout + run.stderr
    return run.stdout


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def suffixes(folder):
    return sorted(p.suffix for p in folder.iterdir())


def in_files(listing, out, files=3, chunk=8, **options):
    """The listing prepared in as many files, a few images after others."""
    size = sum(pathlib.Path(p).stat().st_size for p in listing.records.images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "_SHARD_BYTES", -(-size // files))
        patch.setattr(prepared, "_CHUNK", chunk)
        return prepared.prepare(listing, out=out, **options)


def at_once(count, work):
    """What `work()` returns in as many threads."""
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(work) for _ in range(count)]]
