"""Runs of real methods, killed and terminated: states of their own, and draws in their steps."""

import signal

import numpy as np
import pytest

from tests.support.jobs import STEPS, Job, write_recipe
from vireid_jax.types import epochs_to_steps

pytestmark = pytest.mark.slow


def smcl(job, arrays, rows):
    assert [r["step"] for r in rows if r["split"] == "val"] == [8, 16, 24]


def mun(job, arrays, rows):
    """MUN's prototypes survive a kill: they are state of the run, like its parameters."""
    (name,) = (name for name in arrays if "memory" in name)
    assert arrays[name]["shape"] == [8, 3, 32] and arrays[name]["dtype"] == "float32"
    # Beta goes from the first step to the last, whichever process did them.
    betas = [row["beta"] for row in rows if "beta" in row]
    np.testing.assert_allclose(betas, [1.0, *(np.arange(1, STEPS) / (STEPS - 1))], rtol=1e-6)
    at = {job.arrays(step)[name]["crc32"] for step in job.committed()}
    assert len(job.committed()) == 3 and len(at) == 3, "it goes on changing"
    assert epochs_to_steps(6.0, 4) == STEPS


def idkl(job, arrays, rows):
    """IDKL's dropout and erasing go on as if there had been no kill."""
    assert any("confuser_neck" in name for name in arrays)


def pdm(job, arrays, rows):
    """PDM's dropout, erasing and momentum go on as if there had been no kill."""
    assert any("expansion" in name for name in arrays)
    assert any("prototypes" in name for name in arrays)


# Of each method: what is looked at beside the bits, and statements on its config `c`.
ROWS = {
    smcl: "c.method.metric_from_epoch = 2.0  # the loss changes on the way",
    mun: """c.train.eval_every = 0.0
    c.method.generator_ratios = (2, 4)  # of maps of 8 x 4""",
    idkl: """c.train.eval_every = 0.0
    c.sampler.rule = "exhaust"
    c.augment.erase = (0.5, 0.5)""",
    # PDM's own optimizer: the embedded data are trained with Adam otherwise.
    pdm: """c.train.eval_every = 0.0
    c.data.image_size = (64, 32)
    c.method.num_prototypes = 3
    c.augment.erase = (0.5, 0.5)
    c.optim.name, c.optim.lr, c.optim.nesterov = "sgd", 0.01, True
    c.optim.warmup_epochs, c.optim.warmup_by = 3.0, "epoch"
    c.optim.multipliers = (("(?!neck|classifier)", 0.1),)""",
}


@pytest.mark.parametrize("check", ROWS, ids=lambda check: check.__name__)
def test_killed_and_terminated(tmp_path, check):
    recipe = write_recipe(tmp_path, check.__name__, ROWS[check])
    whole, job = (Job(recipe, tmp_path / name, devices=2) for name in ("whole", "run"))
    whole.finish()
    code, out, _ = job.stop_when(lambda: 7 in job.steps_written(), signal.SIGKILL)
    assert code == -signal.SIGKILL, out
    code, out, _ = job.stop_when(lambda: 14 in job.steps_written(), signal.SIGTERM)
    assert code == 42, out
    job.finish()
    arrays, rows = job.result()
    assert (arrays, rows) == whole.result()
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    check(job, arrays, rows)
