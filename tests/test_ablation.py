"""The ablation benchmark finds what a run has saved."""

import json

import pytest

from benchmarks import ablation
from vireid_jax import evaluate


def test_a_finished_cell_is_read_and_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation.subprocess, "run", lambda *_, **__: pytest.fail("it trains"))
    result = {
        "protocol": ablation.SETTINGS["eval.protocols"][0],
        "feature": "bn",
        "gallery": "agw",
        "test_set": "0123456789abcdef",
        "metrics": {"mAP": 0.25, "R1": 0.5, "R10": 0.75, "mINP": 0.125},
    }
    row = "with incremental training"
    folder = tmp_path / "with_incremental_training-seed1" / "eval" / "500"
    others = [{"feature": "pool"}, {"flip": True}, {"rerank": "all"}, {"gallery": "official"}]
    wrong = {"metrics": dict.fromkeys(result["metrics"], 0.0)}
    evaluate.save_results([result, *(result | other | wrong for other in others)], folder)
    assert len(list(folder.iterdir())) == 5
    assert ablation.run_cell(tmp_path, row, 1, []) == result["metrics"]
    assert json.dumps(ablation.table({row: [result["metrics"]]})).count("25.0") == 1
