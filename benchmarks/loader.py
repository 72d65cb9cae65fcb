"""Loading at 288 x 144 beside PyTorch's DataLoader: images per second and host core.

  python -m benchmarks.loader                          all contenders
  python -m benchmarks.loader --rounds 3 --seconds 10
  python -m benchmarks.loader --quick                  little data, no meaning

Cached: decoded images. Ours come from a memory-mapped .npy file as uint8 and are augmented and
standardized on the device, which is timed beside; PyTorch's come from an array in memory,
augmented and normalized by its workers, as AGW and its descendants do it. Encoded: JPEGs of
200 x 80 to 400 x 160 pixels, quality 95, read one by one from a file, decoded and resized with
Lanczos, uint8, on both sides with Pillow; first batches must be identical.

Every contender runs in a process of its own, with P = 8 and K = 4 and the same plan. "Per core"
is images per second of CPU time, workers included: wall times depend on what else the machine
does. Ours are measured in the steady state of a training run, the file in the page cache. Needs
PyTorch and Linux.
"""

import argparse
import functools
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import report
from vireid_jax.data import arrays, decoding, sampler
from vireid_jax.types import INFRARED, VISIBLE, Records, train_labels

SIZE = (288, 144)
NUM_IDS, NUM_INSTANCES = 8, 4
IMAGES = 2 * NUM_IDS * NUM_INSTANCES  # in a step
PER_ID = 80  # images of a person, half of them infrared; about as in SYSU-MM01


class Packed:
    """Encoded images in one file, each read when asked for."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._ends = np.load(folder / "ends.npy")
        self._file = os.open(folder / "images.bin", os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> bytes:
        first, end = int(self._ends[row]), int(self._ends[row + 1])
        return os.pread(self._file, end - first, first)


def write_data(folder: pathlib.Path, *, cached: int, encoded: int, rendered: int) -> None:
    """Writes images of rendered people, decoded ones as images.npy, encoded ones as Packed."""
    from PIL import Image

    from vireid_jax.synthetic import render_images

    at = np.arange(rendered)
    people = render_images(0, at // 2, np.where(at % 2, 3, 1), at, image_size=(400, 160))
    pictures = [Image.fromarray(x) for x in people]
    r = np.random.default_rng(0)

    out = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (cached, *SIZE, 3))
    small = [np.asarray(p.resize(SIZE[::-1], Image.Resampling.LANCZOS)) for p in pictures]
    for n in range(cached):  # shifted, so that no two are the same
        out[n] = np.roll(small[n % rendered], (n // rendered, 7 * n), axis=(0, 1))
    out.flush()

    ends = [0]
    with (folder / "images.bin").open("wb") as file:
        for n in range(encoded):
            height = int(r.integers(200, 401))
            picture = pictures[n % rendered].resize((height * 2 // 5, height))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=95)
            ends.append(ends[-1] + file.write(buffer.getvalue()))
    np.save(folder / "ends.npy", ends)


def records_of(images: Any) -> tuple[Records, np.ndarray, Callable[[int], np.ndarray]]:
    """Records of the images, their labels, and the plan that all contenders follow."""
    n = np.arange(len(images))
    modality = np.where(n % 2, INFRARED, VISIBLE).astype(np.int8)
    person, camera = (n // PER_ID).astype(np.int32), (n % 2 * 2 + 1).astype(np.int32)
    records = Records(images, person, camera, modality, [f"{i:05d}" for i in n])
    label, _ = train_labels(records)
    plan = functools.partial(_plan, label, modality)
    return records, label, plan


def _plan(label: np.ndarray, modality: np.ndarray, epoch: int) -> np.ndarray:
    return sampler.plan(
        label, modality, num_ids=NUM_IDS, num_instances=NUM_INSTANCES, seed=0, epoch=epoch,
        steps_per_epoch=100,
    )  # fmt: skip


CORES = decoding.cores()

CONTENDERS = {  # N: of so many cores
    "cached/arrays": "vireid_jax, arrays",
    "cached/tfdata": "vireid_jax, tfdata",
    "cached/torch_0": "PyTorch, no workers",
    "cached/torch_n": "PyTorch, N workers",
    "encoded/arrays": "vireid_jax, N threads",
    "encoded/arrays_1": "vireid_jax, 1 thread",
    "encoded/torch_0": "PyTorch, no workers",
    "encoded/torch_n": "PyTorch, N workers",
    "encoded/torch_once": "PyTorch, N workers, one call of resize",
}
# Cores that work at the same time are slower each, so one, held to its core, is compared with one.
BESIDE = {"encoded/torch_0": "encoded/arrays_1"}
TITLES = {"cached": "From decoded images", "encoded": "From JPEGs"}


# --- Contenders -------------------------------------------------------------------------


def start(contender: str, folder: pathlib.Path) -> Iterator[Any]:
    """The batches of a contender, as many as are asked for."""
    kind, who = contender.split("/")
    if who in ("arrays_1", "torch_0"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    images: Any
    if kind == "encoded":
        images = Packed(folder)
    else:
        images = np.load(folder / "images.npy", mmap_mode=None if "torch" in who else "r")
        images.sum(dtype=np.int64)  # every page has been touched, as after the first epoch
    records, label, plan = records_of(images)
    if who.startswith("torch"):
        import torch

        from benchmarks import loader_torch

        torch.set_num_threads(1)  # more of them cost time here, not only cores
        if kind == "cached":
            dataset: Any = loader_torch.CachedPairs(images, label)
        else:
            dataset = loader_torch.EncodedPairs(images, label, SIZE, one_call=who == "torch_once")
        return loader_torch.batches(dataset, plan, 0 if who == "torch_0" else CORES)
    if who == "tfdata":
        from vireid_jax.data import tfdata

        load: Any = tfdata.batches
    else:
        load = arrays.batches
    return load(records, label, plan, start=0, stop=10**9, image_size=SIZE)


def cpu_s() -> float:
    """CPU seconds so far of this process and its live children."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(contender: str, folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Runs one contender in this process: about `seconds` after a quarter of that to warm up."""
    batches = start(contender, folder)
    digest = hashlib.sha256()
    for _ in range(2):
        batch = next(batches)
        for key in ("visible", "infrared", "label"):
            # Labels are int32 here and int64 in PyTorch.
            values = np.asarray(batch[key])
            digest.update(values.astype(np.int64 if values.ndim == 1 else values.dtype).tobytes())
    end = time.perf_counter() + seconds / 4
    while time.perf_counter() < end:
        next(batches)
    steps, wall, cpu = 0, time.perf_counter(), cpu_s()
    while (elapsed := time.perf_counter() - wall) < seconds or steps < 2:
        next(batches)
        steps += 1
    used = cpu_s() - cpu
    return {
        "contender": contender,
        "steps": steps,
        "wall_s": elapsed,
        "cpu_s": used,
        "images_per_s": steps * IMAGES / elapsed,
        "images_per_core_s": steps * IMAGES / used,
        "first_batches": digest.hexdigest()[:16],
    }


# --- Comparison -------------------------------------------------------------------------


def run(contender: str, folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Runs one contender, or "parts", in a process of its own."""
    arguments = ["--contender", contender, "--folder", str(folder), "--seconds", str(seconds)]
    return report.in_process("benchmarks.loader", arguments)


def merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One row from the rounds of a contender: images, wall and CPU time of all together."""
    total = {k: sum(r[k] for r in rounds) for k in ("steps", "wall_s", "cpu_s")}
    images = total["steps"] * IMAGES
    return {
        **rounds[0],
        **total,
        "images_per_s": images / total["wall_s"],
        "images_per_core_s": images / total["cpu_s"],
        "rounds": [r["images_per_core_s"] for r in rounds],
    }


def table(rows: list[dict[str, Any]], cores: int) -> str:
    """A Markdown table of one kind; the last column compares PyTorch's rows to ours, per core."""
    header = ["", "images/s", "images/s and core", "CPU ms an image", "ours to it, per core"]
    lines = []
    rate = {r["contender"]: r["images_per_core_s"] for r in rows}
    for r in rows:
        name = r["contender"]
        ours = rate.get(BESIDE.get(name, name.split("/")[0] + "/arrays"))
        ratio = f"{ours / rate[name]:.2f}" if "torch" in name and ours else ""
        line = [CONTENDERS[name].replace(" N ", f" {cores} "), f"{r['images_per_s']:,.0f}"]
        lines.append([*line, f"{rate[name]:,.0f}", f"{1e3 / rate[name]:.3f}", ratio])
    return report.table(header, lines)


def parts_table(figures: dict[str, Any]) -> str:
    """A Markdown table of `loader_parts.measure`."""
    lines = []
    groups = {
        **{f"{name}, CPU time": group for name, group in figures["images_us"].items()},
        f"device ({figures['device']}), wall time": figures["device_us"],
    }
    for name, group in groups.items():
        for part, value in group.items():
            lines.append([name, part, f"{value:.1f}"])
            name = ""
        if len(group) > 2:
            lines.append(["", "sum", f"{sum(group.values()):.1f}"])
    return report.table(["", "part", "µs an image"], lines, left=2)


def check_identical(rows: list[dict[str, Any]]) -> None:
    """Refuses contenders that do the same work but whose first batches differ."""
    for same in (
        ["cached/arrays", "cached/tfdata"],
        ["encoded/arrays", "encoded/arrays_1", "encoded/torch_0", "encoded/torch_n"],
    ):
        found = {r["contender"]: r["first_batches"] for r in rows if r["contender"] in same}
        if len(set(found.values())) > 1:
            raise RuntimeError(f"not the same batches: {found}")


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser, rounds=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contender")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="little data, a moment for each")
    parser.add_argument("--contender", choices=[*CONTENDERS, "parts"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.contender == "parts":
        from benchmarks import loader_parts

        print(json.dumps(loader_parts.measure(flags.folder, flags.seconds)))
        return
    if flags.contender:
        print(json.dumps(measure(flags.contender, flags.folder, flags.seconds)))
        return
    measuring = report.Run("loader", flags)
    seconds, rounds = (0.2, 1) if flags.quick else (flags.seconds, flags.rounds)
    sizes = dict(cached=640, encoded=640, rendered=8)
    sizes = sizes if flags.quick else dict(cached=2000, encoded=1000, rendered=64)
    with tempfile.TemporaryDirectory(prefix="vireid-loader-") as name:
        folder = pathlib.Path(name)
        write_data(folder, **sizes)
        kilobytes = (folder / "images.bin").stat().st_size / sizes["encoded"] / 1000
        results = report.in_turn(flags.only, lambda c: run(c, folder, seconds), rounds)
        rows = [merge(r) for r in results.values()]
        check_identical(rows)
        parts = run("parts", folder, seconds)
    versions = {n: report.version(n) for n in ("Pillow", "tensorflow-cpu")}
    data = {**sizes, "jpeg_kb": kilobytes, "image_size": SIZE, "cores": CORES}
    figures = {"versions": versions, "data": data, "rows": rows, "parts": parts}
    measuring.save(figures, markdown)


def markdown(found: dict[str, Any]) -> str:
    """A table for each kind of images, and one of the parts of the work."""
    parts = []
    for kind, title in TITLES.items():
        if rows := [r for r in found["rows"] if r["contender"].startswith(kind)]:
            size = f", {found['data']['jpeg_kb']:.0f} KB each" if kind == "encoded" else ""
            parts.append(f"{title}{size}, {IMAGES} images of {SIZE[0]} x {SIZE[1]} a step:")
            parts.append(table(rows, found["data"]["cores"]))
    on_device = found["parts"]["device_us"]["augmentation"]
    parts.append(
        f"Augmentation on the device ({found['parts']['device']}): "
        f"{on_device * IMAGES / 1000:.1f} ms a step, {1e6 / on_device:,.0f} images/s."
    )
    return "\n\n".join([*parts, parts_table(found["parts"])])


if __name__ == "__main__":
    main()
