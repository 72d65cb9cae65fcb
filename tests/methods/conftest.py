"""Whole models are compiled without optimizations, see tests/support/plain.py."""

import pytest

from tests.support.plain import plainly


@pytest.fixture(autouse=True, scope="module")
def compiled_plainly():
    """Module-wide: fixtures of a module compile, too."""
    with plainly():
        yield
