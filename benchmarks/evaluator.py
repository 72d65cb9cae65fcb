"""The evaluator beside the loops of the open codes, and a gallery of a million vectors.

  python -m benchmarks.evaluator                     SYSU-MM01 and RegDB sizes
  python -m benchmarks.evaluator --million           also a gallery of 1,000,000 x 2048
  python -m benchmarks.evaluator --million --images 100000 --quick

Features are drawn at random around one center for each person, with the numbers of people,
cameras and images of the test sets. Both sides start from the same float32 features in memory
and end at the metrics of all trials. "From features" has the product of query and gallery in both
times, a matrix product that takes the same time on either side and bounds the ratio; "from
distances" is the scoring alone. The loops are in `benchmarks.open_evaluators`. Metrics must agree
to 1e-8.

The million vectors are written to a temporary file as float16 and read back as a memory map.
Peak memory is the resident memory of the process beyond that of its start, without the pages of
the file itself, which the operating system can drop at any time.
"""

import argparse
import contextlib
import functools
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.open_evaluators import RANKS, Metrics, score_regdb, score_sysu
from vireid_jax.metrics import Ranking, evaluate, rank_features, rank_metrics, sampled_rows

AGREE = 1e-8
SYSU = [f"sysu/{place}/{shots}" for place in ("all", "indoor") for shots in ("single", "multi")]
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


class SysuTrials:
    """All-search, single-shot, trial by trial: what both sides start from, and the two sides."""

    def __init__(self, problem: dict[str, Any], trials: int):
        known = {key: value for key, value in problem.items() if not key.endswith("_features")}
        self.problem = problem
        self.rows = [
            sampled_rows("sysu/all/single", trial=trial, **known)[1] for trial in range(trials)
        ]

    def distances(self) -> Iterator[np.ndarray]:
        """A matrix for each trial, as the open codes compute it."""
        for rows in self.rows:
            yield -np.matmul(
                self.problem["query_features"], self.problem["gallery_features"][rows].T
            )

    def loops(self, distances: Iterable[np.ndarray]) -> list[Metrics]:
        """The open codes on each trial."""
        problem = self.problem
        return [
            score_sysu(
                distance,
                problem["query_person"],
                problem["gallery_person"][rows],
                problem["query_camera"],
                problem["gallery_camera"][rows],
            )
            for distance, rows in zip(distances, self.rows, strict=True)
        ]

    def ours(self, distances: Iterable[np.ndarray]) -> list[Metrics]:
        """`rank_metrics` on each trial."""
        problem = self.problem
        results = []
        for distance, rows in zip(distances, self.rows, strict=True):
            same_room = (problem["query_camera"] == 3)[:, None] & (
                problem["gallery_camera"][rows] == 2
            )
            ranking = rank_metrics(
                distance,
                problem["query_person"],
                problem["gallery_person"][rows],
                excluded=same_room,
            )
            results.append(metrics_of(ranking, ranking.cmc_id))
        return results


def metrics_of(ranking: Ranking, curve: np.ndarray) -> Metrics:
    """A ranking in the form of the loops."""
    return {
        **{f"R{rank}": float(curve[rank - 1]) for rank in RANKS},
        "mAP": ranking.mAP,
        "mINP": ranking.mINP,
    }


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds of a run, and its result."""
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def compare(
    name: str,
    rounds: int,
    ours: Callable[[], list[Metrics]],
    theirs: Callable[[], list[Metrics]],
) -> dict[str, Any]:
    """One row of the comparison, the fastest of each side; raises if the metrics differ."""
    timed(ours)  # threads and libraries start
    sides = {"ours": ours, "theirs": theirs}
    runs = report.in_turn(sides, lambda side: timed(sides[side]), rounds)
    seconds, loop_seconds = (min(s for s, _ in runs[side]) for side in sides)
    found, expected = (runs[side][0][1] for side in sides)
    if len(found) == 1 and len(expected) > 1:  # `evaluate` returns the mean of the trials
        expected = [{key: float(np.mean([m[key] for m in expected])) for key in expected[0]}]
    difference = max(
        abs(a[key] - b[key]) for a, b in zip(found, expected, strict=True) for key in b
    )
    row = {
        "problem": name,
        "seconds": seconds,
        "loop_seconds": loop_seconds,
        "ratio": loop_seconds / seconds,
        "difference": difference,
        "mAP": expected[0]["mAP"],
    }
    if difference > AGREE:
        raise RuntimeError(f"{name}: metrics differ by {difference:.1e}, at most {AGREE:.0e} may")
    return row


def compare_all(trials: int, rounds: int) -> list[dict[str, Any]]:
    """The evaluator beside the loops, with and without the product of the features."""
    sysu, regdb = sysu_problem(), regdb_problem()
    sysu_trials = SysuTrials(sysu, trials)
    people = regdb["query_person"], regdb["gallery_person"]

    def regdb_distance() -> np.ndarray:
        return -np.matmul(regdb["query_features"], regdb["gallery_features"].T)

    def regdb_ours(distance: np.ndarray) -> list[Metrics]:
        ranking = rank_metrics(distance, *people)
        return [metrics_of(ranking, ranking.cmc_image)]

    known = list(sysu_trials.distances()), regdb_distance()
    sysu_name = f"SYSU-MM01 all-search single-shot, 3803 x 301, {trials} trials"
    regdb_name = "RegDB one direction, 2060 x 2060"
    return [
        compare(
            f"{sysu_name}: from features",
            rounds,
            lambda: [evaluate(**sysu, protocol="sysu/all/single", trials=trials)["metrics"]],
            lambda: sysu_trials.loops(sysu_trials.distances()),
        ),
        compare(
            f"{sysu_name}: from distances",
            rounds,
            lambda: sysu_trials.ours(known[0]),
            lambda: sysu_trials.loops(known[0]),
        ),
        compare(
            f"{regdb_name}: from features",
            rounds,
            lambda: [evaluate(**regdb, protocol="regdb/v2t")["metrics"]],
            lambda: [score_regdb(regdb_distance(), *people)],
        ),
        compare(
            f"{regdb_name}: from distances",
            rounds,
            lambda: regdb_ours(known[1]),
            lambda: [score_regdb(known[1], *people)],
        ),
        {
            "problem": "the product of RegDB's features alone",
            "seconds": min(timed(regdb_distance)[0] for _ in range(rounds)),
        },
    ]


def all_protocols(trials: int) -> dict[str, float]:
    """Seconds of each SYSU-MM01 protocol from features in memory."""
    problem = sysu_problem()
    seconds = {}
    for protocol in SYSU:
        score = functools.partial(evaluate, **problem, protocol=protocol, trials=trials)
        seconds[protocol], _ = timed(score)
    seconds["all four"] = sum(seconds.values())
    return seconds


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Samples the resident memory that is not the pages of a file, in bytes.

    "start" and "peak" are filled in at the end; without /proc they are NaN.
    """
    status = pathlib.Path("/proc/self/status")

    def resident() -> float:
        if not status.exists():
            return float("nan")
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024.0 * int(lines["RssAnon"].split()[0])

    found = {"start": resident(), "peak": resident()}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            found["peak"] = max(found["peak"], resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def million(images: int, queries: int, top_k: int, block_bytes: int) -> dict[str, Any]:
    """Exact top-k and AP of a gallery in a file, checked against whole rows of distances."""
    people = images // 10
    person = np.random.default_rng(2).permutation(np.arange(images) % people)
    asked = np.arange(queries) % min(queries, people)
    query = draw_features(np.random.default_rng(3), asked)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "gallery.npy"
        gallery = write_gallery(path, person, int(asked.max()) + 1, 20_000)
        with peak_memory() as memory:
            seconds, found = timed(
                lambda: rank_features(
                    query, gallery, asked, person, top_k=top_k, block_bytes=block_bytes
                )
            )
        difference = check_queries(found, query, gallery, asked, person, range(0, queries, 50))
    return {
        "images": images,
        "queries": queries,
        "top_k": top_k,
        "block_bytes": block_bytes,
        "seconds": seconds,
        "queries_per_second": queries / seconds,
        "peak_beyond_features": memory["peak"] - memory["start"],
        "mAP": found.ranking.mAP,
        "difference": difference,
    }


def check_queries(
    found: Any,
    query: np.ndarray,
    gallery: np.ndarray,
    query_person: np.ndarray,
    gallery_person: np.ndarray,
    rows: range,
) -> float:
    """Compares some queries with a sort of all their distances, in float64 where it matters.

    Ranks may differ only where the distances do by less than float32 can tell; the result is
    the largest difference of an AP.

    Raises:
      RuntimeError: an image at the top that is farther than it may be, or another AP.
    """
    distance = np.empty((len(rows), len(gallery)), np.float32)
    for at in range(0, len(gallery), 20_000):
        part = gallery[at : at + 20_000].astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        distance[:, at : at + 20_000] = 1 - query[list(rows)] @ part.T
    worst = 0.0
    for row, known in zip(rows, distance, strict=True):
        order = np.argsort(known, kind="stable")
        top = found.top_index[row]
        if np.abs(known[order[: len(top)]] - known[top]).max() > 1e-6:
            raise RuntimeError(f"query {row}: the closest images are not those of a sort")
        ranks = np.flatnonzero(gallery_person[order] == query_person[row]) + 1
        ap = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        worst = max(worst, abs(float(ap - found.ranking.rows.ap[row])))
    if worst > 1e-4:
        raise RuntimeError(f"an AP differs by {worst:.1e} from that of a sort")
    return worst


def markdown(found: dict[str, Any]) -> str:
    """A table for each part that was measured."""
    parts = []
    if "loops" in found:
        header = ["problem", "loops, s", "vireid_jax, s", "faster", "max difference"]
        *rows, product = found["loops"]
        lines = []
        for r in rows:
            line = [r["problem"], f"{r['loop_seconds']:.2f}", f"{r['seconds']:.3f}"]
            lines.append([*line, f"{r['ratio']:.0f} x", f"{r['difference']:.1e}"])
        parts += [report.table(header, lines), f"{product['problem']}: {product['seconds']:.3f} s"]
        lines = [[name, f"{s:.2f}"] for name, s in found["protocols"].items()]
        parts.append(report.table([f"SYSU-MM01 protocol, {found['trials']} trials", "s"], lines))
    if "million" in found:
        m = found["million"]
        header = ["gallery", "queries", "top", "s", "queries/s", "peak beyond features"]
        line = [f"{m['images']:,} x {WIDTH} float16", f"{m['queries']:,}", m["top_k"]]
        line += [f"{m['seconds']:.1f}", f"{m['queries_per_second']:.1f}"]
        line += [f"{m['peak_beyond_features'] / 1e9:.2f} GB", f"{m['difference']:.1e}"]
        parts.append(report.table([*header, "max difference"], [line]))
    return "\n\n".join(parts)


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser, rounds=3)
    parser.add_argument("--quick", action="store_true", help="2 trials, 200 queries")
    parser.add_argument("--million", action="store_true", help="also the large gallery")
    parser.add_argument("--only-million", action="store_true", help="the large gallery alone")
    parser.add_argument("--images", type=int, default=1_000_000, help="of the large gallery")
    parser.add_argument("--block-mb", type=int, default=1024, help="working memory, large gallery")
    flags = parser.parse_args()
    run = report.Run("evaluator", flags)
    figures: dict[str, Any] = {"trials": 2 if flags.quick else 10}
    if not flags.only_million:
        figures["loops"] = compare_all(figures["trials"], flags.rounds)
        figures["protocols"] = all_protocols(figures["trials"])
    if flags.million or flags.only_million:
        queries = 200 if flags.quick else 1000
        figures["million"] = million(flags.images, queries, 100, flags.block_mb << 20)
    run.save(figures, markdown)


if __name__ == "__main__":
    main()
