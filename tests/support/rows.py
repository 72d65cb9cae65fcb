"""Rows of a table in one test: every row runs, and a failure names its row."""

import functools
import inspect

import pytest


def each(names, rows):
    """As `pytest.mark.parametrize`, but one test: for rows that share their fixtures.

    Args:
      names: of the arguments, a string with commas or a sequence.
      rows: a value, or one for each name.
    """
    keys = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)

    def decorate(test):
        @functools.wraps(test)
        def loop(**fixtures):
            failures = []
            for number, row in enumerate(rows):
                own = dict(zip(keys, row if len(keys) > 1 else (row,), strict=True))
                try:
                    test(**fixtures, **own)
                except (Exception, pytest.fail.Exception) as error:
                    shown = ", ".join(f"{k}={str(v)[:60]}" for k, v in own.items())
                    failures.append((f"row {number} ({shown}): {error}", error))
            if failures:
                text = "\n".join(line for line, _ in failures)
                raise AssertionError(text) from failures[0][1]

        left = [p for p in inspect.signature(test).parameters.values() if p.name not in keys]
        loop.__signature__ = inspect.Signature(left)
        return loop

    return decorate
