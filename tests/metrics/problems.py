"""Random problems of RegDB, LLCM, IDKL's variants and own folders, and their scores by loops."""

import random
import re
import tracemalloc

import numpy as np
import pytest

from tests.metrics import reference
from vireid_jax.metrics import get_protocol

LLCM = ("llcm/i2v", "llcm/v2i", "llcm/v2i_released")
EVERYTHING = ("regdb/v2t", "regdb/t2v", "llcm/idkl_i2v", "llcm/idkl_v2i")
FOLDERS = ("folders/i2v", "folders/v2i")
VISIBLE, INFRARED = tuple(range(1, 10)), (1, 2, *range(4, 10))


def side(rng, people, cameras, images, width, ties):
    """One modality of a random problem: people and cameras are missing here and there."""
    rows = [
        (person, camera, f"cam{camera}/{person:04d}/x_{n:02d}.jpg")
        for person in people
        for camera in cameras
        if rng.random() < 0.6
        for n in range(rng.integers(1, images + 1))
    ]
    if not rows:
        rows = [(people[0], cameras[0], "only.jpg")]
    rng.shuffle(rows)
    person, camera, name = zip(*rows, strict=True)
    features = rng.normal(size=(len(rows), width)) + 2 * np.eye(40, width)[list(person)]
    if ties:  # all entries are -1 or 1: the cosines are exact and few
        features = np.where(features < 0.5, -1.0, 1.0)
    return {"features": features, "person": person, "camera": camera, "name": list(name)}


def problem(protocol, seed, *, ties):
    rng = np.random.default_rng(seed)
    width = 4 if ties else 16
    cameras = {"visible": VISIBLE, "infrared": INFRARED}
    rule = get_protocol(protocol)
    known = rng.permutation(30)[: rng.integers(2, 28)].tolist()  # often fewer than 20 people
    sides = {
        modality: side(
            rng,
            [p for p in known if rng.random() < 0.85] or known,
            rng.permutation(cameras[modality])[: rng.integers(1, 4)].tolist(),
            3,
            width,
            ties,
        )
        for modality in ("visible", "infrared")
    }
    return sides[rule.query], sides[rule.gallery]


def arguments(query, gallery):
    return {f"query_{k}": v for k, v in query.items()} | {
        f"gallery_{k}": v for k, v in gallery.items()
    }


def draw_by_hand(pool, trial):
    """AGW's draw: rows of one image of each person and camera."""
    generator = random.Random(trial)
    rows = []
    for person in sorted(set(pool["person"])):
        for camera in VISIBLE:
            names = sorted(
                name
                for name, p, c in zip(pool["name"], pool["person"], pool["camera"], strict=True)
                if (p, c) == (person, camera)
            )
            if names:
                rows.append(pool["name"].index(generator.choice(names)))
    return rows


def by_loops(protocol, query, gallery, trials):
    """The means of each trial, in exact integers where the features are -1 and 1."""
    out = []
    for trial in range(trials):
        rows, columns = range(len(query["person"])), range(len(gallery["person"]))
        if protocol == "llcm/v2i_released":
            rows = draw_by_hand(query, trial)
        elif protocol in LLCM:
            columns = draw_by_hand(gallery, trial)
        distance, excluded = [], []
        for q in rows:
            a = query["features"][q]
            line = []
            for g in columns:
                b = gallery["features"][g]
                line.append(-float(a @ b) / np.sqrt(float(a @ a) * float(b @ b)))
            distance.append(line)
            excluded.append(
                [
                    protocol in LLCM
                    and query["person"][q] == gallery["person"][g]
                    and query["camera"][q] == gallery["camera"][g]
                    for g in columns
                ]
            )
        found, mean = reference.rank_all(
            distance,
            [query["person"][q] for q in rows],
            [gallery["person"][g] for g in columns],
            excluded,
        )
        people = (query["person"][q] for q in rows)
        valid = [{**f, "person": p} for f, p in zip(found, people, strict=True) if f is not None]
        out.append((len(rows), valid, mean))
    return out


def check_refusals(call, rows):
    """Each row (keyword arguments, message) has to raise ValueError with its message."""
    for options, message in rows:
        try:
            call(**options)
        except ValueError as error:
            assert re.search(message, str(error)), f"expected {message!r}, got {error}"
        else:
            pytest.fail(f"was accepted, expected an error that matches {message!r}")


def peak_bytes(run):
    """The most memory that a call had at a time."""
    tracemalloc.start()  # NumPy reports its arrays to it
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
