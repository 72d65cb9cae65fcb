"""docs/ablations.md has a place for every table, and its arithmetic is the losses'."""

import pathlib
import re

from configs import tables

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "ablations.md"


def test_the_page_has_a_place_for_every_table():
    text = PAGE.read_text()
    places = re.findall(r"^<!-- table: (\S+) -->$", text, re.M)
    assert places == [name.replace("/", "-") for name in tables.TABLES]
    assert len(re.findall(r"^<!-- end -->$", text, re.M)) == len(places)


def test_the_counts_on_the_page():
    """Table 3 of SMCL: distances to positives and to negatives, for P = K = 4."""
    counts = {"adsl": (12, 12), "bh_tri": (224, 768), "bdtr": (224, 768)}
    counts |= {"bicenter": (32, 96), "hc_tri": (8, 48)}
    assert set(counts) == set(tables.TABLES["smcl/4"].rows)
    for name, count in counts.items():
        (line,) = re.findall(rf"^\| `{name}` \|.*\| (\d+), (\d+) \|$", PAGE.read_text(), re.M)
        assert tuple(map(int, line)) == count, name
