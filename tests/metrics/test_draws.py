"""The gallery draws: golden values, and what a draw must satisfy."""

import hashlib
import os
import pathlib
import random

import numpy as np
import pytest

from vireid_jax.metrics import PROTOCOLS, draw_gallery
from vireid_jax.metrics.draws import GOLDEN

# The 96 test people of SYSU-MM01 (exp/test_id.txt).
SYSU_TEST = [
    *(6, 10, 17, 21, 24, 25, 27, 28, 31, 34, 36, 37, 40, 41, 42, 43, 44, 45, 49, 50, 51, 54, 63),
    *(69, 75, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 93, 102, 104, 105, 106, 108, 112, 116),
    *(117, 122, 125, 129, 130, 134, 138, 139, 150, 152, 162, 166, 167, 170, 172, 176, 185, 190),
    *(192, 202, 204, 207, 210, 215, 223, 229, 232, 237, 252, 253, 257, 259, 263, 266, 269, 272),
    *(273, 274, 275, 282, 285, 291, 300, 301, 302, 303, 307, 312, 315, 318, 331, 333),
]


def tree(counts):
    """(person, camera, name) of a tree with counts[camera, person] images."""
    rows = [
        (person, camera, f"cam{camera}/{person:04d}/{n:04d}")
        for (camera, person), count in sorted(counts.items())
        for n in range(1, count + 1)
    ]
    person, camera, name = zip(*rows, strict=True)
    return np.array(person), np.array(camera), list(name)


def sysu_counts():
    """Image counts of SYSU-MM01's test people, from a file that is not distributed with us."""
    root = pathlib.Path(__file__).resolve().parents[2]
    shared = pathlib.Path(os.environ.get("VIREID_SHARED", root.parent / "shared"))
    path = shared / "data" / "sysu_images_per_camera_and_id.npy"
    if not path.is_file():
        pytest.skip("needs sysu_images_per_camera_and_id.npy; set VIREID_SHARED to its parent")
    table = np.load(path)  # [6 cameras, 533 people]
    return {(c + 1, p): int(table[c, p - 1]) for c in range(6) for p in SYSU_TEST}


def sha1(lines):
    return hashlib.sha1("\n".join(lines).encode()).hexdigest()[:12]


def test_sysu_golden():
    person, camera, name = tree(sysu_counts())
    everywhere, indoor = (1, 2, 4, 5), (1, 2)
    for cameras, trial, start, digest in (
        (everywhere, 0, "cam1/0006/0025 cam2/0006/0025 cam4/0006/0014", "b3878ebad3e2"),
        (everywhere, 1, "cam1/0006/0009 cam2/0006/0019 cam4/0006/0003", "4bbcd579121f"),
        (everywhere, 9, "cam1/0006/0030 cam2/0006/0020 cam4/0006/0012", "c66187d020b0"),
        (indoor, 0, "cam1/0006/0025 cam2/0006/0025 cam1/0010/0027", "f175d91c02b7"),
        (indoor, 1, "cam1/0006/0009 cam2/0006/0019 cam1/0010/0005", "521c9a69f8fe"),
        (indoor, 9, "cam1/0006/0030 cam2/0006/0020 cam1/0010/0024", "e95ca35ffb86"),
    ):
        rows = draw_gallery(person, camera, name, cameras=cameras, shots=1, trial=trial)
        picked = [name[row] for row in rows]
        assert picked[:3] == start.split()
        assert len(picked) == (301 if len(cameras) == 4 else 112)
        assert sha1(f"{n}.jpg" for n in picked) == digest
        assert GOLDEN["agw", cameras, 1, trial] == digest


def toy():
    counts = {(c, p): 3 + (5 * c + p) % 11 for c in range(1, 7) for p in (2, 7, 30, 115)}
    counts[2, 7] = counts[4, 30] = 0
    return tree(counts)


# sha1 of the picked names. Single-shot ones were drawn by `random.seed(t)` and the module's
# `choice`, as the released code does; multi-shot ones pin our own stream.
TOY_GOLDEN = {
    ("sysu/all/single", 0): "33c20ef7a538",
    ("sysu/all/single", 9): "1b7cdcab4ce2",
    ("sysu/indoor/single", 0): "fcb6ca7f9dfb",
    ("sysu/indoor/single", 9): "240cdf6bdccf",
    ("sysu/all/multi", 0): "60351d6a10f5",
    ("sysu/all/multi", 9): "5365fb60c501",
    ("sysu/indoor/multi", 0): "4ea36c5b8009",
    ("sysu/indoor/multi", 9): "1aace4ded247",
}


def test_toy_golden():
    person, camera, name = toy()
    for (protocol, trial), digest in TOY_GOLDEN.items():
        rule = PROTOCOLS[protocol]
        rows = draw_gallery(
            person, camera, name, cameras=rule.draw_cameras, shots=rule.shots, trial=trial
        )
        assert sha1(name[row] for row in rows) == digest, (protocol, trial)


def test_draw_ignores_the_pool_order_and_the_global_generator():
    person, camera, name = toy()
    shuffled = np.random.default_rng(0).permutation(len(name))
    state = random.getstate()
    for protocol in filter(lambda p: p.drawn, PROTOCOLS.values()):
        options = {"cameras": protocol.draw_cameras, "shots": protocol.shots, "trial": 3}
        a = draw_gallery(person, camera, name, **options)
        b = draw_gallery(
            person[shuffled], camera[shuffled], [name[row] for row in shuffled], **options
        )
        assert [name[row] for row in a] == [name[row] for row in shuffled[b]]
    assert random.getstate() == state


def test_multi_shot_draw():
    person, camera, name = toy()
    rows = draw_gallery(person, camera, name, cameras=(1, 2, 4, 5), shots=10, trial=0)
    assert len(set(rows)) == len(rows)
    pairs = list(zip(person[rows], camera[rows], strict=True))
    assert pairs == sorted(pairs)
    for p in (2, 7, 30, 115):
        for c in (1, 2, 4, 5):
            there = int(((person == p) & (camera == c)).sum())
            assert pairs.count((p, c)) == min(10, there)
    trials = [
        tuple(draw_gallery(person, camera, name, cameras=(1, 2, 4, 5), shots=10, trial=t))
        for t in range(5)
    ]
    assert len(set(trials)) == 5
    assert set(camera[list(trials[0])]) == {1, 2, 4, 5}


def test_people_sort_as_folder_names():
    # "10000" sorts before "9999", as the folders do.
    name = ["cam1/9999/0001", "cam1/10000/0001"]
    rows = draw_gallery([9999, 10000], [1, 1], name, cameras=(1,), shots=1, trial=0)
    assert rows.tolist() == [1, 0]


def test_bad_input():
    with pytest.raises(ValueError, match="'a' is given to pool rows 0 and 2"):
        draw_gallery([1, 1, 1], [1, 1, 1], ["a", "b", "a"], cameras=(1,), shots=1, trial=0)
    with pytest.raises(ValueError, match="shots is 0"):
        draw_gallery([1], [1], ["a"], cameras=(1,), shots=0, trial=0)
    with pytest.raises(ValueError, match=r"person .* \[2\]"):
        draw_gallery([1, 2], [1], ["a"], cameras=(1,), shots=1, trial=0)
