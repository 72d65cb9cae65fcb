"""The helper that runs the rows of a table in one test."""

import pytest

from tests.support.rows import each


def test_every_row_runs_and_a_failure_names_its_row():
    seen = []

    @each("a, b", [(1, 2), (3, 3), (4, 5)])
    @each("kind", "xy")
    def unequal(kind, a, b):
        seen.append((a, b, kind))
        assert (a, kind) != (3, "x") and a != 4

    with pytest.raises(AssertionError, match=r"row 1 \(a=3, b=3\): row 0 \(kind=x\)") as error:
        unequal()
    assert len(seen) == 6 and "row 2 (a=4, b=5)" in str(error.value)
    assert "a=1" not in str(error.value)


@each("n", [1, 2])
@pytest.mark.usefixtures("tmp_path")
def test_fixtures_are_handed_on(n, tmp_path):
    assert tmp_path.is_dir() and n in (1, 2)
