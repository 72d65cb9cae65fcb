"""IDKL's dropout, erasing and gradient reversal go on after a kill as if there had been none."""

import numpy as np

from tests.runtime.test_resume import STEPS, killed_and_terminated

CHANGES = """
    c.method.reversal_ramp = True  # its strength is a function of the step
    c.sampler.rule = "exhaust"
    c.augment.erase = (0.5, 0.5)
"""


def test_killed_and_terminated_with_dropout(tmp_path):
    job = killed_and_terminated(tmp_path, "idkl", CHANGES.strip())
    arrays, rows = job.result()
    assert any("confuser_neck" in name for name in arrays)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == STEPS and np.isfinite(losses).all()
