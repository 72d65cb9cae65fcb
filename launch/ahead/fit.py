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
    slow = False
    while len(points) < tries:
        before = high - low
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
        # Where bytes go up by steps, a line may creep up on the limit.
        slow = high in points and low in points and not slow and 2 * (high - low) > before
        guess = (low + high) // 2 if slow else _guess(points, limit, low, high, step)
        guess = min(max(guess, low + 1), high - 1)
    return Found(low if low in points else None, high if high in points else None, points)


def _guess(points: dict[int, Point], limit: int, low: int, high: int, step: int) -> int:
    """Where the line through two sizes that are known reaches the limit."""
    known = [(n, p.bytes) for n, p in sorted(points.items()) if p.bytes is not None]
    below = [(n, size) for n, size in known if n <= low]
    above = [(n, size) for n, size in known if n >= high]
    pair = [*below[-1:], *above[:1]] if above else below[-2:]
    if not below:
        return (low + high) // 2
    if len(pair) == 1:
        if high in points:
            return (low + high) // 2
        # No slope yet. Parameters take their share whatever the batch, so proportion promises too
        # little, which is the safe side.
        ((n, size),) = pair
        return max(n + 1, int(0.95 * n * limit / size))
    (n0, b0), (n1, b1) = pair
    if b1 <= b0:  # the compiler has begun to trade time for memory
        return (low + high) // 2 if high in points else 2 * low
    reach = n0 + int((limit - b0) * (n1 - n0) / (b1 - b0))
    return reach if reach > low else low + step
