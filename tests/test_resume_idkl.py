"""IDKL's dropout, erasing and gradient reversal go on after a kill as if there had been none."""

import signal

import numpy as np

from tests.test_resume import STEPS, Job

RECIPE = """
from configs import idkl

def get_config(arg=None):
    c = idkl.get_config()
    c.run_name = "tiny"
    parts = ("train", "val", "test")
    c.data.update({{f"{{part}}_{{m}}": 1 for part in parts for m in ("visible", "infrared")}})
    c.data.update(train_ids=6, val_ids=3, test_ids=3, cache={cache!r})
    c.data.image_size = (32, 16)
    c.method.width = 4
    c.method.reversal_ramp = True  # its strength is a function of the step
    c.sampler.rule = "exhaust"
    c.sampler.num_ids, c.sampler.num_instances, c.sampler.steps_per_epoch = 4, 2, 4
    c.augment.erase = (0.5, 0.5)
    c.train.epochs, c.train.log_every = 6.0, 1
    c.train.eval_every, c.train.checkpoint_every = 0.0, 1.0
    c.eval.protocols, c.eval.trials = ("sysu/all/single",), 2
    c.eval.baselines, c.eval.batch_size = False, 16
    return c
"""


def test_killed_and_terminated_with_dropout(tmp_path):
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE.format(cache=str(tmp_path / "cache")))
    whole, job = (Job(recipe, tmp_path / name, devices=2) for name in ("whole", "run"))
    whole.finish()
    code, out, _ = job.stop_when(lambda: 7 in job.steps_written(), signal.SIGKILL)
    assert code == -signal.SIGKILL, out
    code, out, _ = job.stop_when(lambda: 14 in job.steps_written(), signal.SIGTERM)
    assert code == 42, out
    job.finish()
    (arrays, rows), (expected, expected_rows) = job.result(), whole.result()
    assert arrays == expected and rows == expected_rows
    assert any("confuser_neck" in name for name in arrays)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == STEPS and np.isfinite(losses).all()
