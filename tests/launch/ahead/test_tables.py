"""The table of several recipes."""

import copy
import json
import subprocess
import sys

import pytest

from launch.ahead import tables

REDUCE = {"kind": "all-reduce", "arrays": ["f32[1000,25000]"], "group": 256, "times": 1}
GATHER = {"kind": "all-gather", "arrays": ["bf16[4096,2048]"], "group": 0, "times": 2}
FIGURES = {
    "recipe": "agw_sysu",
    "image_size": [288, 144],
    "step": {
        "num_ids": 8,
        "num_instances": 4,
        "fits": True,
        "memory_bytes": {"peak": 3 << 30},
        "flops_per_chip": 2.5e12,
        "seconds": {"compute": 0.01, "memory": 0.02, "serial": 0.02},
    },
    "scaling": [
        {
            "topology": "v5e:16x16",
            "chips": 256,
            "fits": True,
            "seconds": {"compute": 0.01, "memory": 0.021, "serial": 0.025},
            "collectives": {
                "a": {"bytes": 100_000_000, "list": [REDUCE | {"op_name": ""}]},
                "b": {"bytes": 33_554_432, "list": [GATHER | {"op_name": ""}]},
            },
        }
    ],
    "largest_batch": {
        "plain": {"num_ids": 60, "num_instances": 4, "refused_num_ids": 62},
        "remat": {"num_ids": 100, "num_instances": 4, "refused_num_ids": None},
    },
}


def _cells(figures):
    return [cell.strip() for cell in tables.row(figures).strip("|").split("|")]


def test_a_row():
    cells = _cells(FIGURES)
    assert cells[:6] == ["agw_sysu", "8 x 4", "288 x 144", "3.0 GiB", "2.50", "134 MB"]
    assert cells[9:] == ["80%", "60 x 4", ">= 100 x 4"]
    assert cells[6:9] == ["-"] * 3  # not compiled for
    head, line, *rows = tables.table([FIGURES, FIGURES]).splitlines()
    assert len(rows) == 2 and {r.count("|") for r in (head, line, *rows)} == {len(cells) + 1}


def test_bytes_of_several_slices_are_in_the_order_of_their_chips():
    figures = copy.deepcopy(FIGURES)
    smaller = copy.deepcopy(figures["scaling"][0]) | {"chips": 8}
    smaller["collectives"]["a"]["bytes"] = 0
    figures["scaling"].append(smaller)
    cells = _cells(figures)
    assert cells[5] == "34, 134 MB" and cells[6] == "80%"


def test_what_was_not_asked_for_or_does_not_fit():
    figures = copy.deepcopy(FIGURES)
    figures["scaling"][0]["fits"] = False
    assert _cells(figures)[9] == "80%, does not fit"
    del figures["scaling"], figures["largest_batch"]
    figures["step"] |= {"fits": False, "flops_per_chip": None}
    cells = _cells(figures)
    assert cells[3:] == ["3.0 GiB, no", *["-"] * 8]
    none = FIGURES | {
        "largest_batch": {"plain": {"num_ids": None, "num_instances": 4, "refused_num_ids": 2}}
    }
    assert _cells(none)[10:] == ["under 2 x 4", "-"]


@pytest.mark.slow
def test_the_command(tmp_path):
    file = tmp_path / "a.json"
    for content, code in ((json.dumps(FIGURES), 0), ("{}", 1), ("x", 1)):
        file.write_text(content)
        run = subprocess.run(
            [sys.executable, "-m", "launch.ahead.tables", str(file)], capture_output=True, text=True
        )
        assert run.returncode == code, content
        assert ("| agw_sysu | 8 x 4" in run.stdout) == (code == 0), content
        assert ("expected files that" in run.stderr) == (code == 1), content
