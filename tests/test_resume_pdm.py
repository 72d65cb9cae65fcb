"""PDM's dropout, erasing and momentum go on after a kill as if there had been none."""

import numpy as np

from tests.test_resume import STEPS, killed_and_terminated

# The recipe's own optimizer: the embedded data are trained with Adam otherwise.
CHANGES = """
    c.data.image_size = (64, 32)
    c.method.num_prototypes = 3
    c.augment.erase = (0.5, 0.5)
    c.optim.name, c.optim.lr, c.optim.nesterov = "sgd", 0.01, True
    c.optim.warmup_epochs, c.optim.warmup_by = 3.0, "epoch"
    c.optim.multipliers = (("(?!neck|classifier)", 0.1),)
"""


def test_killed_and_terminated_with_dropout(tmp_path):
    job = killed_and_terminated(tmp_path, "pdm", CHANGES.strip())
    arrays, rows = job.result()
    assert any("expansion" in name for name in arrays)
    assert any("prototypes" in name for name in arrays)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == STEPS and np.isfinite(losses).all()
