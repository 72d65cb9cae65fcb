"""Whether a row differs from another: a paired bootstrap over test people and seeds.

Two trainings with the same seed are scored on the same queries, so they are compared query by
query. What would change if the experiment were repeated are the people and the seeds; both are
drawn again, with replacement.
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

DRAWS = 10_000
LEVEL = 0.95  # of the interval
FEWEST_SEEDS = 2
_SEED = 0  # of the draws: a table is the same each time it is written

Scores = Mapping[str, tuple[int, float]]  # query -> its person and its AP


class Difference(NamedTuple):
    """The mAP of a row less another's, as a fraction, with its interval."""

    mean: float
    low: float
    high: float

    @property
    def seen(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return ("helps" if self.mean > 0 else "hurts") if self.seen else "no difference seen"

    @property
    def smallest(self) -> float:
        """The smallest difference that could have been seen: half the width of the interval."""
        return (self.high - self.low) / 2


def between(row: Mapping[int, Scores], other: Mapping[int, Scores]) -> Difference | None:
    """The difference of two rows, {seed: scores}, over the seeds and queries that both have.

    A mean over few seeds strays further than a bootstrap of them says. So deviations between seeds
    are widened to what Student's t has for their number. None of fewer than `FEWEST_SEEDS` seeds.
    """
    seeds = sorted(row.keys() & other.keys())
    if len(seeds) < FEWEST_SEEDS:
        return None
    import numpy as np  # --list has to answer at once

    queries = sorted(set.intersection(*(set(s[n]) for s in (row, other) for n in seeds)))
    if not queries:
        return None
    person = np.array([row[seeds[0]][q][0] for q in queries])
    people, at = np.unique(person, return_inverse=True)
    gap = np.array([[row[n][q][1] - other[n][q][1] for q in queries] for n in seeds])
    sums = np.stack([np.bincount(at, g, len(people)) for g in gap])  # [S, P]
    counts = np.bincount(at, minlength=len(people))
    mean = float(sums.sum() / counts.sum() / len(seeds))
    middle = sums.mean(0)
    sums = middle + (sums - middle) * _widening(len(seeds))

    rng = np.random.default_rng(_SEED)
    of_seeds = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), DRAWS)
    of_people = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), DRAWS)
    totals = np.einsum("bs,sp,bp->b", of_seeds, sums, of_people, optimize=True)
    drawn = totals / (of_people @ counts) / len(seeds)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(mean, float(low), float(high))


@functools.cache
def _widening(seeds: int) -> float:
    from scipy import stats  # comes with jax; takes a second

    ends = (1 + LEVEL) / 2
    return float(stats.t.ppf(ends, seeds - 1) / stats.norm.ppf(ends)) * math.sqrt(
        seeds / (seeds - 1)
    )


@functools.cache
def read(path: pathlib.Path, changed: int) -> dict[str, tuple[int, float]]:
    """The scores of a saved result, {} if it has none; a file with another time is read again."""
    del changed
    found = json.loads(path.read_text()).get("per_query")
    if not found:
        return {}
    rows = zip(found["name"], found["person"], found["AP"], strict=True)
    return {name: (person, ap) for name, person, ap in rows if ap is not None}
