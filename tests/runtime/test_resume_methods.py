"""Runs of real methods that are killed: states of their own, and draws in their steps."""

import numpy as np
import pytest

from tests.support.jobs import Job, write_recipe

pytestmark = pytest.mark.slow

STEPS = 6  # 3 epochs of 2
SHORT = """c.train.epochs, c.sampler.steps_per_epoch, c.train.eval_every = 3.0, 2, 0.0
    """
# Statements on the config `c` of each method, and parts of the names of its own arrays. SMCL: its
# loss changes on the way. MUN: prototypes, which the steps replace. IDKL: dropout. PDM: momentum.
ROWS = {
    "smcl": ("c.method.metric_from_epoch = 2.0", ()),
    "mun": (
        """c.sampler.rule = "exhaust"
    c.method.generator_ratios = (2, 4)  # of maps of 8 x 4""",
        ("memory",),
    ),
    "idkl": ("c.augment.erase = (0.5, 0.5)", ("confuser_neck",)),
    "pdm": (
        """c.data.image_size = (64, 32)
    c.method.num_prototypes = 3
    c.augment.erase = (0.5, 0.5)
    c.optim.name, c.optim.lr, c.optim.nesterov = "sgd", 0.01, True
    c.optim.warmup_epochs, c.optim.warmup_by = 3.0, "epoch"
    c.optim.multipliers = (("(?!neck|classifier)", 0.1),)""",
        ("expansion", "prototypes"),
    ),
}


@pytest.mark.parametrize("method", ROWS)
def test_a_killed_run_ends_with_the_bits_of_a_whole_one(tmp_path, method):
    changes, own = ROWS[method]
    recipe = write_recipe(tmp_path, method, SHORT + changes)
    whole = Job(recipe, tmp_path / "whole", devices=2)

    def between_two_saves():
        return whole.committed() and 3 in whole.steps_written()

    job = whole.copied_at(between_two_saves, tmp_path / "run")
    assert job.steps_written()[-1] < STEPS
    assert "resumed at step" in job.finish()
    arrays, rows = job.result(STEPS)
    assert (arrays, rows) == whole.result(STEPS)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    for part in own:
        (*_, name) = (name for name in arrays if part in name)
        at = {job.arrays(step)[name]["crc32"] for step in job.committed()}
        assert len(job.committed()) == len(at) == 3, "it goes on changing"
    # Beta goes from the first step to the last, whichever process did them.
    betas = [row["beta"] for row in rows if "beta" in row]
    assert bool(betas) == (method == "mun")
    if betas:
        expected = [1.0, *(np.arange(1, STEPS) / (STEPS - 1))]
        np.testing.assert_allclose(betas, expected, rtol=1e-6)
