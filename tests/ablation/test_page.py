"""docs/ablations.md has a place for every table, and its arithmetic is the losses'."""

import pathlib
import re

import pytest
from vireid_jax.losses.counts import distance_counts

from configs import tables

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "ablations.md"


def test_the_page_has_a_place_for_every_table():
    text = PAGE.read_text()
    places = re.findall(r"^<!-- table: (\S+) -->$", text, re.M)
    assert places == [name.replace("/", "-") for name in tables.TABLES]
    assert len(re.findall(r"^<!-- end -->$", text, re.M)) == len(places)


@pytest.mark.parametrize("name", tables.TABLES["smcl/4"].rows)
def test_the_counts_on_the_page(name):
    (line,) = re.findall(rf"^\| `{name}` \|.*\| (\d+), (\d+) \|$", PAGE.read_text(), re.M)
    assert tuple(map(int, line)) == distance_counts(name, num_ids=4, num_instances=4)
