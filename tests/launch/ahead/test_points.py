"""The search for the largest batch, on programs whose bytes are known."""

import itertools

from launch.ahead.points import Point, largest


def _measure(size, limit, calls):
    def measure(ids):
        calls.append(ids)
        return Point(size(ids) <= limit, round(size(ids)))

    return measure


def test_the_largest_is_found_to_a_few_percent_by_few_compilations():
    sizes = {
        "affine": lambda n: 500 + 100 * n,
        "proportional": lambda n: 100 * n,
        "losses over all pairs": lambda n: 500 + 100 * n + n**2 / 4,
        "padding to eight": lambda n: 500 + 128 * (n // 8) * 8 / 1.28 + 90 * n,
    }
    limits = (900, 1000, 2345, 5000, 16000, 70000)
    for (name, size), limit in itertools.product(sizes.items(), limits):
        calls, row = [], (name, limit)
        found = largest(_measure(size, limit, calls), limit, first=8, fewest=2, most=395)
        true = max((n for n in range(2, 396) if size(n) <= limit), default=None)
        assert found.largest is not None or true is None, row
        if found.largest is not None:
            assert size(found.largest) <= limit, row
            assert true - found.largest <= max(1, 0.03 * true), row
            assert found.refused is None or size(found.refused) > limit, row
            assert (found.refused is None) == (true == 395), row
        assert len(calls) == len(set(calls)) <= 8, row
        assert set(found.points) == set(calls) and all(2 <= n <= 395 for n in calls), row


def test_a_compiler_that_trades_time_for_memory_does_not_end_the_search():
    """Near the limit it computes values anew, so that more fits than a line says."""
    limit, calls = 10_000, []

    def measure(ids):
        calls.append(ids)
        plain = 1000 + 100 * ids
        return Point(ids <= 130, min(plain, 9900) if ids <= 130 else None)

    found = largest(measure, limit, first=8, most=395)
    assert 120 <= found.largest <= 130 < found.refused <= 140 and len(calls) <= 8


def test_sizes_that_the_compiler_does_not_say():
    found = largest(lambda n: Point(n <= 20, None), 1, first=8, most=64, within=0.0)
    assert (found.largest, found.refused) == (20, 21)


def test_nothing_fits_and_everything_fits():
    found = largest(lambda n: Point(False, None), 1, first=8, fewest=2, most=395)
    assert (found.largest, found.refused) == (None, 2)
    found = largest(lambda n: Point(True, n), 10**9, first=8, most=30)
    assert (found.largest, found.refused) == (30, None)
