"""SYSU-MM01's fixed permutations: the file, the draw, and its digests."""

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.io

from tests.metrics import reference
from tests.metrics.problems import check_refusals, score_by_loops, sides_of
from tests.metrics.test_draws import SYSU_TEST, sysu_counts, tree
from tests.metrics.test_protocols import world
from vireid_jax.metrics import (
    check_permutations,
    draw_official,
    evaluate,
    read_permutations,
    sampled_rows,
)
from vireid_jax.metrics.draws import GOLDEN, draw_digest


def made_up(counts, seed=0, trials=10):
    """{(camera, person): [trials, n]} for {(camera, person): n}."""
    rng = np.random.default_rng(seed)
    return {
        key: np.stack([rng.permutation(n) + 1 for _ in range(trials)])
        for key, n in sorted(counts.items())
        if n
    }


def write_mat(path, permutations, people, *, change=None):
    """A file in the released layout: a 6x1 cell of cells of uint8 [10, n], or 10x0."""
    cameras = np.empty((6, 1), object)
    for camera in range(1, 7):
        cells = np.empty((people, 1), object)
        for person in range(1, people + 1):
            table = permutations.get((camera, person), np.zeros((10, 0)))
            cells[person - 1, 0] = table.astype(np.uint8)
        cameras[camera - 1, 0] = cells
    if change is not None:
        change(cameras)
    scipy.io.savemat(path, {"rand_perm_cam": cameras})
    return path


COUNTS = {(c, p): 3 + (5 * c + p) % 11 for c in range(1, 7) for p in (2, 7, 30) if (c, p) != (2, 7)}


def test_the_file_is_read_as_written(tmp_path):
    permutations = made_up(COUNTS)
    found = read_permutations(write_mat(tmp_path / "rand_perm_cam.mat", permutations, 33))
    assert set(found) == set(COUNTS)
    for key, table in permutations.items():
        np.testing.assert_array_equal(found[key], table)
        assert found[key].dtype == np.int64
    assert set(read_permutations(str(tmp_path / "rand_perm_cam.mat"))) == set(COUNTS)


def test_a_wrong_file_is_refused(tmp_path):
    def repeat(cameras):
        cameras[3, 0][6, 0][4, 0] = cameras[3, 0][6, 0][4, 1]

    def shorten(cameras):
        cameras[0, 0][1, 0] = cameras[0, 0][1, 0][:9]

    (tmp_path / "text.mat").write_text("no matlab file at all " * 20)
    scipy.io.savemat(tmp_path / "other.mat", {"x": np.arange(3)})
    scipy.io.savemat(tmp_path / "flat.mat", {"rand_perm_cam": np.arange(6)})
    write_mat(tmp_path / "empty.mat", {}, 3)
    write_mat(tmp_path / "twice.mat", made_up(COUNTS), 33, change=repeat)
    write_mat(tmp_path / "short.mat", made_up(COUNTS), 33, change=shorten)
    with pytest.raises(FileNotFoundError, match=r"rand_perm_cam\.mat \(it is in the evaluation"):
        read_permutations(tmp_path / "none.mat")
    check_refusals(
        lambda name: read_permutations(tmp_path / f"{name}.mat"),
        [
            ({"name": "text"}, "not a MATLAB 5 file"),
            ({"name": "other"}, "no variable rand_perm_cam"),
            ({"name": "flat"}, "expected a cell for each of six cameras"),
            ({"name": "empty"}, "holds no permutation"),
            ({"name": "twice"}, "camera 4, person 7: row 4 is not a permutation"),
            ({"name": "short"}, r"camera 1, person 2 is uint8 \[9, \d+\]"),
        ],
    )


def test_draw_takes_the_first_entries():
    permutations = made_up(COUNTS)
    person, camera, name = tree({k: n for k, n in COUNTS.items() if k[0] in (1, 2, 4, 5)})
    order = np.random.default_rng(1).permutation(len(name))
    person, camera, name = person[order], camera[order], [name[row] for row in order]
    for cameras, shots, trial in itertools.product([(1, 2, 4, 5), (1, 2)], [1, 10], [0, 9]):
        options = {"cameras": cameras, "shots": shots, "trial": trial}
        rows = draw_official(person, camera, name, permutations, **options)
        expected = first_entries(permutations, **options)
        assert [name[row] for row in rows] == expected, options
        endings = [f"SYSU-MM01/{n}.jpg" for n in name]
        again = draw_official(person, camera, endings, permutations, **options)
        assert again.tolist() == rows.tolist(), options


def first_entries(permutations, cameras, shots, trial):
    return [
        f"cam{c}/{p:04d}/{n:04d}"
        for c in cameras
        for p in (2, 7, 30)
        if (c, p) in permutations
        for n in permutations[c, p][trial][:shots]
    ]


def test_bad_pools():
    permutations = made_up(COUNTS)
    person, camera, name = tree({k: n for k, n in COUNTS.items() if k[0] in (1, 2, 4, 5)})
    options = {"cameras": (1, 2, 4, 5), "shots": 10, "trial": 3}

    def without(lost):
        kept = [row for row, n in enumerate(name) if not lost(n)]
        return person[kept], camera[kept], [name[row] for row in kept]

    gone = f"cam4/0007/{permutations[4, 7][3, 0]:04d}"
    others = COUNTS[4, 7] - 1
    nobody = without(lambda n: "/0030/" in n)
    assert len(draw_official(*nobody, permutations, **options))
    unknown = {k: v for k, v in permutations.items() if k != (1, 2)}
    pool = person, camera, name
    check_refusals(
        lambda pool, permutations=permutations, **changes: draw_official(
            *pool, permutations, **options | changes
        ),
        [
            (
                {"pool": without(lambda n: n == gone)},
                f"{gone} is missing: trial 3 .* {others} other images",
            ),
            ({"pool": without(lambda n: n.startswith("cam5/0030"))}, r"cam5/0030/.* is missing"),
            ({"pool": nobody, "people": [30, 2]}, r"cam1/0030/.* is missing"),
            (
                {"pool": pool, "permutations": unknown},
                "person 2 before camera 1 .*the permutations have none",
            ),
            ({"pool": pool, "trial": 10}, "have 10 trials, there is no trial 10"),
            ({"pool": ([2], [1], ["cam1/0002/front"])}, "does not end in a number"),
            (
                {"pool": ([2, 2], [1, 1], ["a/1.png", "a/1.jpg"])},
                r"a/1\.jpg and a/1\.png are both image 1 of person 2",
            ),
            ({"pool": pool, "shots": 0}, "shots is 0"),
        ],
    )


def test_the_released_file_is_known_by_its_digests(monkeypatch):
    permutations = made_up(COUNTS)
    with pytest.raises(ValueError, match=r"shots, trial 0 has digest \w{12} .* expected f6ada1d2"):
        check_permutations(permutations, [2, 7, 30])
    official = [key for key in GOLDEN if key[0] == "official"]
    assert len(official) == 8
    for key in official:
        lines = first_entries(permutations, *key[1:])
        monkeypatch.setitem(GOLDEN, key, draw_digest(lines))
    check_permutations(permutations, [30, 7, 2])


def test_full_size_counts():
    """The galleries and queries of the released data set, with permutations of our own."""
    counts = sysu_counts()
    person, camera, name = tree(counts)
    gallery, query = np.isin(camera, (1, 2, 4, 5)), np.isin(camera, (3, 6))
    assert query.sum() == 3803 and set(person[query]) == set(SYSU_TEST)
    rows = {what: np.flatnonzero(which) for what, which in (("g", gallery), ("q", query))}
    labels = {
        "query_person": person[rows["q"]],
        "query_camera": camera[rows["q"]],
        "gallery_person": person[rows["g"]],
        "gallery_camera": camera[rows["g"]],
        "gallery_name": [name[row] for row in rows["g"]],
    }
    permutations = made_up({k: n for k, n in counts.items() if n})
    sizes = {"all/single": 301, "all/multi": 3010, "indoor/single": 112, "indoor/multi": 1120}
    for protocol, size in sizes.items():
        for draw in ("agw", "official"):
            queries, images = sampled_rows(
                f"sysu/{protocol}", **labels, gallery=draw, permutations=permutations, trial=9
            )
            assert len(images) == len(set(images)) == size
            assert len(queries) == 3803
    rng = np.random.default_rng(0)
    valid = {"all": 3803, "indoor": 2208}
    for place, expected in valid.items():
        result = evaluate(
            rng.normal(size=(3803, 2)),
            rng.normal(size=(gallery.sum(), 2)),
            **labels,
            protocol=f"sysu/{place}/single",
            gallery="official",
            permutations=permutations,
            trials=2,
        )
        assert result["counts"]["queries"] == 3803
        assert result["counts"]["valid_queries"] == expected
        assert result["counts"]["invalid_queries"] == 3803 - expected
        assert result["counts"]["gallery_images"] == sizes[f"{place}/single"]
        valid_camera_3 = np.array(result["per_query"]["valid_trials"]) > 0
        valid_camera_3 &= labels["query_camera"] == 3
        assert valid_camera_3.sum() == (1088 if place == "indoor" else 1883)


def test_evaluate_with_the_official_draw():
    """Against loops over galleries that are looked up by name, ties included."""
    w = world(seed=4, images=6)
    for side in ("query", "gallery"):  # entries of -1 and 1: cosines are exact, many are equal
        w[f"{side}_features"] = np.where(w[f"{side}_features"][:, :4] < 0, -1, 1)
    counts = Counter(zip(w["gallery_camera"].tolist(), w["gallery_person"].tolist(), strict=True))
    permutations = made_up(counts, seed=5)
    where = {name: row for row, name in enumerate(w["gallery_name"])}
    for place, shot in itertools.product(["all", "indoor"], ["single", "multi"]):
        result = evaluate(
            **w,
            protocol=f"sysu/{place}/{shot}",
            gallery="official",
            permutations=permutations,
            trials=3,
        )
        assert (result["gallery"], len(result["trials"])) == ("official", 3)
        assert result["counts"]["tied_true_images"] > 30
        for t, trial in enumerate(result["trials"]):
            gallery = [
                where[f"cam{c}/{p:04d}/{n:04d}"]
                for c in ((1, 2, 4, 5) if place == "all" else (1, 2))
                for p in range(6)
                if (c, p) in permutations
                for n in permutations[c, p][t][: 1 if shot == "single" else 10]
            ]
            assert trial["gallery_images"] == len(gallery)
            rows = list(range(len(w["query_person"])))
            mean = score_by_loops("sysu", *sides_of(w), rows, gallery)[1]
            reference.check_trial(trial, mean)


def test_what_evaluate_says_of_permutations():
    w = world()
    with pytest.raises(ValueError, match=r"needs `permutations`, got None; pass read_perm"):
        evaluate(**w, gallery="official")
    with pytest.raises(ValueError, match="no gallery 'random', expected agw or official"):
        evaluate(**w, gallery="random")
    permutations = made_up({(c, p): 3 for c in (1, 2, 4, 5) for p in range(7) if p or c > 2})
    w["query_person"] = np.where(w["query_person"] == 3, 6, w["query_person"])
    with pytest.raises(ValueError, match=r"cam1/0006/.* is missing"):  # person 6 has no images
        evaluate(**w, gallery="official", permutations=permutations)
