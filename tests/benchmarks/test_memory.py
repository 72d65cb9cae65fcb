"""The memory of train steps: the line through two compilations, what fits, and the table."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import memory
from launch.ahead import programs, roofline

FIT = dict(first=2, most=395, rows=4, chunks=1)


def test_the_largest_batch_is_read_off_the_line():
    points = {8: 900, 16: 1700}  # 100 an identity, and 100 more
    assert memory.fitting(points, 5100, **FIT) == 50
    assert memory.fitting(points, 5199, **FIT) == 50
    assert memory.fitting(points, 300, **FIT) == 2
    assert memory.fitting(points, 299, **FIT) == 0  # a batch has two identities at least
    assert memory.fitting(points, 10**6, **FIT) == 395  # there are no more people
    assert memory.fitting({8: 900, 16: 900}, 900, **FIT) == 395
    assert memory.fitting({8: 900, 16: 900}, 899, **FIT) == 0


def test_rows_divide_into_the_chunks():
    points = {8: 900, 16: 1700}
    for rows, chunks, most in ((4, 4, 51), (5, 4, 48), (5, 2, 50), (2, 4, 50), (3, 4, 48)):
        found = memory.fitting(points, 5250, **FIT | dict(rows=rows, chunks=chunks))
        assert found == most and found * rows % chunks == 0, (rows, chunks)


def test_a_third_point_checks_the_line():
    assert memory.off_the_line({4: 500, 8: 900}) is None
    assert memory.off_the_line({4: 500, 8: 900, 12: 1300}) == 0
    assert memory.off_the_line({4: 500, 8: 900, 12: 1000}) == pytest.approx(0.3)


def test_each_topology_has_its_memories():
    assert memory.limits("h100") == memory.limits("cpu:1") == memory.GPUS
    assert memory.limits("v5e:1x1") == {"v5e": roofline.TPUS["v5e"].memory}
    with pytest.raises(ValueError, match="no chip"):
        memory.limits("b100")


@pytest.fixture
def compiled(monkeypatch):
    """Compilations that only note what they are asked for: 1 GB, and 100 MB an identity."""
    asked = []

    def train_step(config, target, keep):
        asked.append(config)
        peak = 10**9 + 10**8 * config.sampler.num_ids // config.devices.accumulate
        return SimpleNamespace(memory={"peak": peak}, seconds=2.0)

    monkeypatch.setattr(programs, "assemble", lambda config, *_: config)
    monkeypatch.setattr(programs, "train_step", train_step)
    return asked


def test_a_row_is_of_the_recipe_at_two_or_three_batches(compiled):
    row = memory.row_of("idkl", "accumulate 4", "bfloat16", "cpu:1", False, None)
    assert [c.sampler.num_ids for c in compiled] == [12, 24] == sorted(row["points"])
    assert {c.devices.accumulate for c in compiled} == {4}
    assert {c.method.dtype for c in compiled} == {"bfloat16"}
    assert not compiled[0].devices.remat
    assert row["largest"] == {"24 GB": 392, "80 GB": 392} and row["off_the_line"] is None
    row = memory.row_of("agw", "remat", "float32", "cpu:1", True, None)
    assert [c.sampler.num_ids for c in compiled[2:]] == [8, 16, 24]
    assert compiled[-1].devices.remat and row["off_the_line"] == pytest.approx(0, abs=1e-9)
    assert row["largest"] == {"24 GB": 230, "80 GB": 395}
    assert row["compile_s"] == 6.0


def test_every_variant_can_be_set_in_a_recipe(compiled):
    for variant, options in memory.VARIANTS.items():
        memory.row_of("smcl", variant, "float32", "cpu:1", False, None)
        devices = compiled[-1].devices.to_dict()
        assert devices | options == devices, variant


def test_the_table_has_a_line_for_each_step_and_all_topologies_beside_it():
    gib = 2**30
    row = dict(method="agw", variant="plain", dtype="float32", num_ids=8, num_instances=4)
    row |= dict(image_size=[288, 144], topology="h100", largest={"24 GB": 34, "80 GB": 114})
    row |= dict(points={8: 5 * gib, 16: 9 * gib})
    tpu = row | dict(topology="v5e:1x1", points={8: 3 * gib, 16: 4 * gib}, largest={"v5e": 0})
    rows = [row, row | dict(variant="remat"), tpu]
    text = memory.markdown(json.loads(json.dumps({"rows": rows})))  # keys become text
    assert "Compute in float32" in text and "P in 24 GB | P in 80 GB | v5e:1x1, GiB" in text
    assert (
        "| agw | 8 x 4 of 288 x 144 | plain | 5.00 | 0.500 | 34 | 114 | 3.00 | 0.125 | none |"
        in text
    )
    assert "| remat | 5.00 | 0.500 | 34 | 114 |  |  |  |" in text
