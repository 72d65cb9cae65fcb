"""The largest batch that fits, by few compilations."""

from collections.abc import Callable
from typing import NamedTuple


class Point(NamedTuple):
    """What compiling for some number of identities came to."""

    fits: bool
    bytes: int | None  # that a chip needs, as far as the compiler says


class Found(NamedTuple):
    """The answer, and how sure it is."""

    largest: int | None  # identities that fit; None: not even the fewest
    refused: int | None  # the fewest that were tried and do not fit; None: all that may be fit
    points: dict[int, Point]


def largest(
    measure: Callable[[int], Point],
    limit: int,
    *,
    first: int,
    fewest: int = 1,
    most: int,
    within: float = 0.03,
    tries: int = 8,
) -> Found:
    """Finds the largest number of identities whose program needs no more than `limit` bytes.

    Bytes are nearly affine in the rows, so two compilations tell about where the limit is; what is
    returned has been compiled and fits, and what is refused has been compiled and does not.

    Args:
      measure: compiles for a number of identities.
      limit: bytes of a chip.
      first: where to begin.
      fewest: identities, at least; a loss may need two.
      most: identities there are.
      within: stop when what fits and what does not are so close, relative to the former.
      tries: the most compilations.
    """
    points: dict[int, Point] = {}
    low, high = fewest - 1, most + 1  # fits (or nothing is asked), does not fit
    guess = min(max(first, fewest), most)
    while len(points) < tries:
        points[guess] = point = measure(guess)
        if point.fits:
            low = guess
        else:
            high = guess
        step = max(1, int(within * low))
        if high - low <= step and (high in points or low == most):
            break
        if high - low <= 1:
            break
        guess = min(max(_guess(points, limit, low, high, step), low + 1), high - 1)
    return Found(low if low in points else None, high if high in points else None, points)


def _guess(points: dict[int, Point], limit: int, low: int, high: int, step: int) -> int:
    """Where the line through the two largest sizes that are known reaches the limit."""
    known = [(n, p.bytes) for n, p in sorted(points.items()) if p.fits and p.bytes is not None]
    if not known:
        return (low + high) // 2
    if len(known) == 1:
        # No slope yet. Half of what proportion promises is on the safe side and far enough off.
        (n, size), = known  # fmt: skip
        return max(n + 1, n * limit // (2 * size))
    (n0, b0), (n1, b1) = known[-2:]
    if b1 <= b0:  # the compiler has begun to trade time for memory
        return 2 * low if high not in points else (low + high) // 2
    reach = n1 + int((limit - b1) * (n1 - n0) / (b1 - b0))
    if reach <= low:  # by the line nothing more fits; a step farther shows whether it is so
        return low + step
    return reach if reach < high else max((low + high) // 2, high - step)
