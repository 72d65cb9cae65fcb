"""Random problems of the protocols, and their scores by loops."""

import random
import re
import tracemalloc

import numpy as np
import pytest

from tests.metrics import reference
from vireid_jax.metrics import chance_map, get_protocol

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


def sides_of(arguments):
    """(query, gallery) as `problem` returns them, from arguments of `evaluate`."""
    return [
        {k.removeprefix(side): v for k, v in arguments.items() if k.startswith(side)}
        for side in ("query_", "gallery_")
    ]


def draw_by_hand(pool, trial, cameras=VISIBLE, shots=1):
    """AGW's draw: rows of some images of each person and camera."""
    generator = random.Random(trial)
    labels = list(zip(pool["name"], pool["person"], pool["camera"], strict=True))
    rows = []
    for person in sorted(set(pool["person"])):
        for camera in cameras:
            there = sorted(
                (name, row) for row, (name, *who) in enumerate(labels) if who == [person, camera]
            )
            if there and shots == 1:
                rows.append(generator.choice(there)[1])
            elif there:
                picked = generator.sample(there, min(shots, len(there)))
                rows += [row for _, row in sorted(picked)]
    return rows


def left_out(protocol, person, camera, other, other_camera):
    if protocol.startswith("sysu"):
        return camera == 3 and other_camera == 2
    return protocol in LLCM and (person, camera) == (other, other_camera)


def score_by_loops(protocol, query, gallery, rows, columns):
    """`reference.rank_all` of some rows; exact where the features are -1 and 1."""
    a = np.asarray(query["features"], float)[rows]
    b = np.asarray(gallery["features"], float)[columns]
    distance = -(a @ b.T) / np.sqrt(np.outer((a * a).sum(axis=1), (b * b).sum(axis=1)))
    asked, images = (
        [(side["person"][row], side["camera"][row]) for row in some]
        for side, some in ((query, rows), (gallery, columns))
    )
    excluded = [[left_out(protocol, *q, *g) for g in images] for q in asked]
    people = [p for p, _ in asked], [p for p, _ in images]
    return reference.rank_all(distance.tolist(), *people, excluded)


def by_loops(protocol, query, gallery, trials):
    """(results of each query, means) of each trial, after the protocol's text."""
    out = []
    for trial in range(trials):
        rows, columns = list(range(len(query["person"]))), list(range(len(gallery["person"])))
        if protocol == "llcm/v2i_released":
            rows = draw_by_hand(query, trial)
        elif protocol in LLCM:
            columns = draw_by_hand(gallery, trial)
        elif protocol.startswith("sysu"):
            _, place, shot = protocol.split("/")
            cameras = {"all": (1, 2, 4, 5), "indoor": (1, 2)}[place]
            columns = draw_by_hand(gallery, trial, cameras, {"single": 1, "multi": 10}[shot])
        out.append(score_by_loops(protocol, query, gallery, rows, columns))
    return out


def check_chance(result, trials):
    """Holds the chance level of a result against what `by_loops` returns."""
    chances = []
    for found, _ in trials:
        valid = [f for f in found if f is not None]
        true, kept, people = ([f[k] for f in valid] for k in ("num_true", "num_kept", "person"))
        chances.append(chance_map(true, kept, query_person=people))
    for name in ("mAP", "R1", "mAP_sigma"):
        mean = np.mean([getattr(chance, name) for chance in chances])
        assert result["chance"][name] == pytest.approx(mean, abs=1e-9), name


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
