"""Stand-in trees: the right names and lists, empty files."""

import os
import pathlib

import numpy as np

# exp/test_id.txt of SYSU-MM01, which the released permutations name too.
SYSU_TEST = [
    6, 10, 17, 21, 24, 25, 27, 28, 31, 34, 36, 37, 40, 41, 42, 43, 44, 45, 49, 50, 51, 54, 63, 69,
    75, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 93, 102, 104, 105, 106, 108, 112, 116, 117,
    122, 125, 129, 130, 134, 138, 139, 150, 152, 162, 166, 167, 170, 172, 176, 185, 190, 192, 202,
    204, 207, 210, 215, 223, 229, 232, 237, 252, 253, 257, 259, 263, 266, 269, 272, 273, 274, 275,
    282, 285, 291, 300, 301, 302, 303, 307, 312, 315, 318, 331, 333,
]  # fmt: skip


def stub(path):
    """An empty file; returns its path."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    return path


def ids(path, numbers):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pathlib.Path(path).write_text(",".join(map(str, numbers)) + "\n")


def sysu(root, table, lists):
    """table: int [6, P], images of camera c + 1 and person p + 1; lists: {part: persons}."""
    for part, numbers in lists.items():
        ids(root / "exp" / f"{part}_id.txt", numbers)
    for camera, person in np.argwhere(table):
        folder = f"{root}/cam{camera + 1}/{person + 1:04d}"
        os.makedirs(folder)
        for n in range(1, table[camera, person] + 1):
            stub(f"{folder}/{n:04d}.jpg")
    return root


def small_sysu(root, train=(1, 2, 3), val=(4, 5), test=(6, 7, 8), images=2):
    count = max((*train, *val, *test))
    table = np.zeros((6, count), int)
    table[:, [p - 1 for p in (*train, *val, *test)]] = images
    return sysu(root, table, {"train": train, "val": val, "test": test})


def regdb(root, persons=412, images=10, seed=0):
    names = {}
    for folder, letter in (("Visible", "v"), ("Thermal", "t")):
        for p in range(1, persons + 1):
            os.makedirs(f"{root}/{folder}/{p}")
            names[folder, p] = [
                f"{folder}/{p}/front_{letter}_{10 * p + i:05d}_{p}.bmp" for i in range(images)
            ]
            for name in names[folder, p]:
                stub(f"{root}/{name}")
    os.makedirs(f"{root}/idx")
    rng = np.random.default_rng(seed)
    for trial in range(1, 11):
        order = rng.permutation(np.arange(1, persons + 1))
        half = {"train": sorted(order[: persons // 2]), "test": sorted(order[persons // 2 :])}
        for part, people in half.items():
            for folder in ("Visible", "Thermal"):
                lines = [f"{n} {k}" for k, p in enumerate(people) for n in names[folder, p]]
                pathlib.Path(root, "idx", f"{part}_{folder.lower()}_{trial}.txt").write_text(
                    "\n".join(lines)
                )
    return root


def spread(total, groups):
    """Positive whole numbers that add up to total."""
    return [total // groups + (g < total % groups) for g in range(groups)]


def llcm(root, train=713, test=351, counts=(16946, 13975, 8680, 7166), seed=0):
    numbers = np.random.default_rng(seed).permutation(np.arange(1, train + test + 1))
    people = {"train": sorted(numbers[:train].tolist()), "test": sorted(numbers[train:].tolist())}
    cameras = {"vis": list(range(1, 10)), "nir": [1, 2, 4, 5, 6, 7, 8, 9]}
    ids(root / "idx" / "test_id.txt", people["test"])
    for side, number in zip(("vis", "nir"), counts[:2], strict=True):
        lines = []
        for label, (p, n) in enumerate(zip(people["train"], spread(number, train), strict=True)):
            os.makedirs(f"{root}/{side}/{p:04d}")
            for i in range(n):
                c = cameras[side][(label + i) % len(cameras[side])]
                name = f"{side}/{p:04d}/{p:04d}_c{c:02d}_s{100 + i}_f{i}_{side}.jpg"
                stub(f"{root}/{name}")
                lines.append(f"{name} {label}")
        (root / "idx" / f"train_{side}.txt").write_text("\n".join(lines) + "\n")
    for side, number in zip(("vis", "nir"), counts[2:], strict=True):
        for p, n in zip(people["test"], spread(number, test), strict=True):
            for i in range(n):
                c = cameras[side][(p + i % 4) % len(cameras[side])]
                folder = f"{root}/test_{side}/cam{c}/{p:04d}"
                if i < 4:
                    os.makedirs(folder, exist_ok=True)
                stub(f"{folder}/{p:04d}_c{c:02d}_s{200 + i}_f{i}_{side}.jpg")
    return root


def people(root, layout):
    """layout: {"visible/anna": 3, ...}, images in each folder."""
    for folder, n in layout.items():
        os.makedirs(f"{root}/{folder}", exist_ok=True)
        for i in range(n):
            stub(f"{root}/{folder}/{i}.jpg")
    return root
