"""Features of random people in the numbers of the test sets, for `benchmarks.evaluator`."""

import pathlib
from typing import Any

import numpy as np

WIDTH = 2048
# Test images and people before each camera, SYSU-MM01: 6,775 visible and 3,803 infrared.
SYSU_CAMERAS = {
    1: (1374, 56), 2: (1565, 56), 3: (1883, 93), 4: (1918, 94), 5: (1918, 95), 6: (1920, 96)
}  # fmt: skip


def draw_features(
    rng: np.random.Generator, person: np.ndarray, spread: float = 4.0, center_seed: int = 0
) -> np.ndarray:
    """Float32 unit rows [N, WIDTH] around a center for each person."""
    centers = np.random.default_rng(center_seed).standard_normal(
        (int(person.max()) + 1, WIDTH), np.float32
    )
    features = rng.standard_normal((len(person), WIDTH), np.float32)
    features *= np.float32(spread)
    features += centers[person]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features


def sysu_problem(seed: int = 0) -> dict[str, Any]:
    """Arguments of `evaluate` with the test set's numbers of people and images."""
    person, camera, name = [], [], []
    for number, (images, people) in SYSU_CAMERAS.items():
        for who, shots in enumerate(np.bincount(np.arange(images) % people)):
            person += [who + 1] * shots
            camera += [number] * shots
            name += [f"cam{number}/{who + 1:04d}/{i + 1:04d}" for i in range(shots)]
    people_of, cameras, names = np.array(person), np.array(camera), np.array(name)
    infrared = np.isin(cameras, (3, 6))
    rng = np.random.default_rng(seed)
    return {
        "query_features": draw_features(rng, people_of[infrared]),
        "gallery_features": draw_features(rng, people_of[~infrared]),
        "query_person": people_of[infrared],
        "gallery_person": people_of[~infrared],
        "query_camera": cameras[infrared],
        "gallery_camera": cameras[~infrared],
        "query_name": names[infrared].tolist(),
        "gallery_name": names[~infrared].tolist(),
    }


def regdb_problem(seed: int = 0) -> dict[str, Any]:
    """206 people with ten visible and ten infrared images each."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(206), 10)
    return {
        "query_features": draw_features(rng, person),
        "gallery_features": draw_features(rng, person),
        "query_person": person,
        "gallery_person": person,
    }


def write_gallery(path: pathlib.Path, person: np.ndarray, known: int, part: int) -> np.ndarray:
    """A float16 memory map [G, WIDTH], `part` rows at a time.

    People below `known` gather around the centers that queries have; the others, of whom nobody
    asks, are noise around nothing, which is no closer and no farther than another person.
    """
    gallery = np.lib.format.open_memmap(path, "w+", np.float16, (len(person), WIDTH))
    for number, at in enumerate(range(0, len(person), part)):
        rng = np.random.default_rng([1, number])
        rows = person[at : at + part]
        features = rng.standard_normal((len(rows), WIDTH), np.float32)
        inside = np.flatnonzero(rows < known)
        features[inside] = draw_features(rng, rows[inside]) if len(inside) else 0
        gallery[at : at + part] = features
    gallery.flush()
    del gallery
    return np.load(path, mmap_mode="r")
